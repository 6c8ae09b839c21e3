"""Score a trained model: `python evaluate.py RUN`; or let it answer: `python evaluate.py RUN --prompt "..."`."""

import sys

from zoo.cli import evaluate

if __name__ == "__main__":
    evaluate(sys.argv[1:])
