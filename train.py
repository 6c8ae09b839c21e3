"""Train a model: `python train.py` runs the default recipe, `python train.py --help` lists the others."""

import sys

from zoo.training.huge_pages import restart_with_huge_pages
from zoo.training.stopping import listen

if __name__ == "__main__":
    restart_with_huge_pages()
    with listen(owns_process=True):  # before the imports, which take seconds
        from zoo.cli import train

        train(sys.argv[1:])
