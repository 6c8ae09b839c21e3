"""The command line: recipe name plus typed overrides to a run, a run to a trained model, a trained model to answers.

Whatever a user can get wrong ends in one line on standard error and exit code 1 (2 for a misspelt option), before
anything compiles.
"""

import contextlib
import difflib
import inspect
import io
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Any

import tyro
from rich.console import Console
from rich.padding import Padding
from rich.table import Table

from zoo.recipes import DEFAULT, RECIPES
from zoo.recipes.run import Run
from zoo.serialization import as_dict
from zoo.training.host import keep_freed_memory


def parse_run(arguments: Sequence[str]) -> Run:
    """The run that a command line asks for; without a recipe's name, the default recipe's.

    Raises:
        SystemExit: help was asked for, or a value is of the wrong type.
        ValueError: an unknown recipe or option, named with the nearest known one; or values that do not fit together.
    """
    name, *rest = arguments if arguments and not arguments[0].startswith("-") else (DEFAULT, *arguments)
    if name not in RECIPES:
        raise ValueError(f"unknown recipe {name!r}{_nearest(name, RECIPES)}; there are {', '.join(RECIPES)}")
    recipe = RECIPES[name]
    with _plain_errors():
        run, unknown = tyro.cli(
            tyro.conf.configure(tyro.conf.AvoidSubcommands, tyro.conf.FlagConversionOff)(Run),
            default=recipe(),
            args=rest,
            prog=f"train.py {name}",
            description=inspect.getdoc(recipe),
            return_unknown_args=True,
        )
    if unknown:
        option = unknown[0]
        raise ValueError(
            f"unknown option {option}{_nearest(option, _options(as_dict(run)))}; "
            f"python train.py {name} --help lists all"
        )
    return run


@contextmanager
def _plain_errors():
    """Turn tyro's framed message about a wrong value into a ValueError of one line."""
    framed = io.StringIO()
    try:
        with contextlib.redirect_stderr(framed):
            yield
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
        # A title, the message, and help, with rules and a frame in whatever characters the terminal has.
        lines = [re.sub(r"[│─╭╮╰╯|]|-{3,}", " ", line).strip() for line in framed.getvalue().splitlines()]
        _, *body = [line for line in lines if line] or [""]
        message = re.split("Argument helptext|For full helptext", " ".join(body))[0].strip()
        raise ValueError(message.removeprefix("Error parsing ") or "the command line could not be read") from None


def _nearest(word: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f"; did you mean {close[0]}?" if close else ""


def _options(fields: dict[str, Any], prefix: str = "--") -> Iterator[str]:
    for name, value in fields.items():
        option = prefix + name.replace("_", "-")
        yield from _options(value, option + ".") if isinstance(value, dict) else (option,)


def _show_recipes(console: Console) -> None:
    table = Table(box=None, pad_edge=False, show_header=False, padding=(0, 3, 0, 0))
    for name, recipe in RECIPES.items():
        table.add_row(f"[bold]{name}[/]", " ".join((inspect.getdoc(recipe) or "").split("\n\n")[0].split()))
    console.print("[bold]python train.py[/] \\[RECIPE] \\[--field value ...]\n")
    console.print(Padding(table, (0, 2)))
    console.print(
        f"""
Without a recipe it runs {DEFAULT}. Every field can be overridden:

  python train.py --optimizer.learning-rate 1e-3 --training.num-steps 200
  python train.py --data.path my_notes.txt --folder runs/my-notes
  python train.py {DEFAULT} --help            [dim]all fields of a recipe[/]

The run's folder holds checkpoints, metrics.csv, loss.png and a model card.
The same command goes on after an interruption.
Then: python evaluate.py FOLDER --prompt "..."
""",
        highlight=False,
    )


def train(arguments: Sequence[str]) -> None:
    """`train.py`: parse, prepare, train, report."""
    console = Console()
    keep_freed_memory()
    if list(arguments) in (["-h"], ["--help"]):
        return _show_recipes(console)
    with one_line_errors():
        run = parse_run(arguments)
        from zoo.recipes.job import train_and_report  # TFDS, Grain and Orbax: not needed for --help

        train_and_report(run, console)


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Score a trained model on held-out data, or let it answer a prompt."""

    run: Annotated[str, tyro.conf.Positional]
    """The folder that train.py wrote."""
    prompt: str | None = None
    """Continue this text (causal models), fill its <mask>s (masked models) or translate it (sequence to sequence)."""
    max_new_tokens: int = 200
    """Tokens to write at the most."""
    temperature: float = 0.7
    """0 takes the likeliest token each time; higher is more varied."""
    top_k: int | None = None
    """Choose among this many likeliest tokens."""
    top_p: float | None = 0.95
    """Choose among the likeliest tokens that together have this probability."""
    seed: int = 0
    """Of the sampling: another seed, another text."""
    step: int | None = None
    """Of the checkpoint; the newest unless given."""


def evaluate(arguments: Sequence[str]) -> None:
    """`evaluate.py`: load a run, then score it or answer a prompt."""
    console = Console()
    keep_freed_memory()
    with one_line_errors():
        with _plain_errors():
            wanted = tyro.cli(Evaluation, args=list(arguments), prog="evaluate.py")
        from zoo.recipes.job import answer, score

        run = Run.load(wanted.run)
        if wanted.prompt is None:
            score(run, wanted.step, console)
        else:
            answer(run, wanted, console)


@contextmanager
def one_line_errors():
    """Turn what a user can mend (bad values, missing files, a full disk, divergence) into one line and exit code 1."""
    try:
        yield
    except BrokenPipeError:
        raise SystemExit(1) from None  # the reader of the output has left: `train.py --help | head`
    except (ValueError, OSError, FloatingPointError) as error:
        if not str(error):
            raise
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(1) from None
