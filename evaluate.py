"""Score a trained model, or let it answer a prompt: `python evaluate.py RUN`, `python evaluate.py RUN --prompt "..."`."""

import sys

from zoo.cli import evaluate

if __name__ == "__main__":
    evaluate(sys.argv[1:])
