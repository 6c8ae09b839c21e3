"""Train a model: `python train.py` runs the default recipe, `python train.py --help` lists the others."""

import sys

from zoo.cli import train

if __name__ == "__main__":
    train(sys.argv[1:])
