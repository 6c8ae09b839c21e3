"""Score a run: `python evaluate.py RUN`; let it or a checkpoint answer: `python evaluate.py MODEL --prompt "..."`."""

import sys

from zoo.cli import evaluate

if __name__ == "__main__":
    evaluate(sys.argv[1:])
