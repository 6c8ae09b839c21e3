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
from contextlib import contextmanager, nullcontext
from dataclasses import Field, asdict, dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.console import Console
from rich.padding import Padding
from rich.table import Table

from zoo.compilation import keep_compiled_programs
from zoo.generation_config import SAMPLING, GenerationConfig
from zoo.recipes import DEFAULT, RECIPES
from zoo.recipes.run import Run
from zoo.serialization import as_dict
from zoo.training.config import DryRunConfig
from zoo.training.host import keep_freed_memory
from zoo.training.hosts import joined
from zoo.training.manifest import describe_steps


@dataclass(frozen=True, kw_only=True)
class _Command:
    """What follows a recipe's name: fields of its run, and of a plan of it."""

    run: Annotated[Run, tyro.conf.arg(name="")]
    dry_run: DryRunConfig = DryRunConfig()


def parse_run(arguments: Sequence[str]) -> tuple[Run, DryRunConfig | None]:
    """The run that a command line asks for; without a recipe's name, the default recipe's. And the plan of it that it
    asks for instead, if it has --dry-run or an option of it.

    Raises:
        SystemExit: help was asked for, or a value is of the wrong type.
        ValueError: an unknown recipe or option, named with the nearest known one; or values that do not fit together.
    """
    name, *rest = arguments if arguments and not arguments[0].startswith("-") else (DEFAULT, *arguments)
    if name not in RECIPES:
        raise ValueError(f"unknown recipe {name!r}{_nearest(name, RECIPES)}; there are {', '.join(RECIPES)}")
    recipe = RECIPES[name]
    own = recipe()
    with _plain_errors():
        command, unknown = tyro.cli(
            tyro.conf.configure(tyro.conf.AvoidSubcommands, tyro.conf.FlagConversionOff)(_Command),
            default=_Command(run=own),
            args=[re.sub("^--init(?==|$)", "--init.checkpoint", word) for word in rest if word != "--dry-run"],
            prog=f"train.py {name}",
            description=inspect.getdoc(recipe),
            return_unknown_args=True,
        )
    run, dry_run = command.run, command.dry_run
    if unknown:
        option, known = unknown[0], {**as_dict(run), "dry_run": asdict(dry_run)}
        raise ValueError(
            f"unknown option {option}{_nearest(option, _options(known))}; python train.py {name} --help lists all"
        )
    if run.init.checkpoint is not None and (run.model, run.data.tokenizer) != (own.model, own.data.tokenizer):
        raise ValueError(
            "--model and --data.tokenizer are of no use with --init: the checkpoint's take their place; leave them out"
        )
    return run, dry_run if any(re.match(r"--dry-run(\.|$)", word) for word in rest) else None


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
  python train.py classify-tiny --init MODEL  [dim]fine-tune a pretrained checkpoint[/]
  python train.py llama-1b --dry-run --dry-run.devices 8  [dim]memory, FLOPs, step time; nothing is run[/]
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
    keep_compiled_programs()
    if list(arguments) in (["-h"], ["--help"]):
        return _show_recipes(console)
    is_plan = any(argument.startswith("--dry-run") for argument in arguments)
    with one_line_errors(), nullcontext() if is_plan else joined(), one_line_errors():
        run, dry_run = parse_run(arguments)
        # TFDS, Grain and Orbax: not needed for --help
        if dry_run is not None:
            from zoo.recipes.plan import plan_run

            return plan_run(run, dry_run, console)
        from zoo.recipes.job import train_and_report

        train_and_report(run, console)


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Score a trained model on held-out data, or let it or a pretrained checkpoint answer."""

    model: Annotated[str, tyro.conf.Positional]
    """The folder that train.py wrote, a checkpoint's folder in the layout of transformers, or its name on the hub."""
    prompt: str | None = None
    """What to continue, fill (write <mask> where a token is missing), translate, classify, ask, embed or draw."""
    pair: str | None = None
    """A second text beside the prompt, for classes of pairs."""
    context: str | None = None
    """The text that holds the answer to the prompt."""
    candidates: tuple[str, ...] = ()
    """Texts to rank by their similarity to the prompt or to the image; a file.txt stands for its lines."""
    image: str | None = None
    """A picture to classify, to describe, or to match with candidates."""
    audio: str | None = None
    """A WAV file of speech to write down."""
    source_language: str | None = None
    """The prompt's, as the tokenizer spells it, for models of many languages."""
    target_language: str | None = None
    """To translate into, as the tokenizer spells it."""
    chat: bool = False
    """Put the prompt into the checkpoint's chat template; without a prompt, chat line by line."""
    prefix: str | None = None
    """What the answer of an encoder-decoder begins with."""
    max_new_tokens: int | None = None
    """Tokens to write at the most; a checkpoint's or a run's own number, else 200."""
    num_beams: int | None = None
    """Sequences to follow side by side; a checkpoint's or a run's own number, else 1."""
    length_penalty: float | None = None
    """Above 0 beams prefer longer sequences."""
    temperature: float | None = None
    """0 takes the likeliest token each time; higher is more varied. A checkpoint's own; 0.7 for runs that go on with a
    text."""
    top_k: int | None = None
    """Choose among this many likeliest tokens."""
    top_p: float | None = None
    """Choose among the likeliest tokens that together have this probability. A checkpoint's own; 0.95 for runs that go
    on with a text."""
    min_p: float | None = None
    """Choose among tokens of at least this share of the likeliest one's probability."""
    repetition_penalty: float | None = None
    """Above 1 tokens that are there already become less likely."""
    seed: int = 0
    """Of the sampling: another seed, another text or picture."""
    predictions: str | None = None
    """Write what a run predicts for its held-out data to this file, as the field's scorers read it: a line a text
    (sacreBLEU), index and class by tabs (GLUE), JSON from id to answer (SQuAD; beside it the .na_prob file)."""
    inspect: bool = False
    """Look inside: write a page on what attention does with the prompt or picture (a run has an example of its own)."""
    output: str | None = None
    """Where to write the picture that a run of text-to-image draws, or the page of --inspect; in the run's folder
    unless given, and a checkpoint's page in the working directory."""
    variants: int | None = None
    """Pictures to draw of the prompt, side by side; 4 unless given."""
    guidance_scale: float | None = None
    """How far pictures are led to the prompt: 1 follows the model, more exaggerates; the run's own unless given."""
    export: str | None = None
    """Write the model into this folder as transformers opens it: config.json, model.safetensors, tokenizer."""
    step: int | None = None
    """Of a run's checkpoint; the newest unless given."""
    average: int | None = None
    """Take the mean of so many of a run's newest checkpoints in the place of one; --training.keep says how many there
    are."""
    verify: bool = False
    """Compare every file of a run's checkpoints with its sha256 as it was written; exit with 1 if any is damaged."""
    head: str | None = None
    """Of a pretrained checkpoint, as zoo.load takes it; the one that config.json names."""

    def __post_init__(self):
        if self.variants is not None and self.variants < 1:
            raise ValueError(f"variants is {self.variants}; give at least 1")
        GenerationConfig(**self.options)
        if self.verify:
            given = [x.name for x in fields(self) if x.name not in ("model", "verify") and self._is_given(x)]
            if given:
                raise ValueError(f"--{given[0].replace('_', '-')} is of no use with --verify; leave it out")

    def _is_given(self, field: Field) -> bool:
        return getattr(self, field.name) != field.default

    @property
    def options(self) -> dict[str, Any]:
        """What was asked of generation, by the names of `GenerationConfig`."""
        given = {name: getattr(self, name) for name in _GENERATION if getattr(self, name) is not None}
        if given.get("temperature") == 0:
            return {name: value for name, value in given.items() if name not in SAMPLING} | {"do_sample": False}
        return given | ({"do_sample": True} if given.keys() & SAMPLING else {})


_GENERATION = (
    "max_new_tokens", "num_beams", "length_penalty", "repetition_penalty", "guidance_scale", *SAMPLING
)  # fmt: skip


RUN_ONLY = ("step", "average", "predictions", "output", "variants", "guidance_scale")
CHECKPOINT_ONLY = (
    "audio", "source_language", "target_language", "chat", "head",
)  # fmt: skip
"""Options of `Evaluation` that the other kind of model has no use for."""


def evaluate(arguments: Sequence[str]) -> None:
    """`evaluate.py`: load a model, then score it or let it answer."""
    console = Console()
    keep_freed_memory()
    keep_compiled_programs()
    with one_line_errors():
        with _plain_errors():
            wanted, unknown = tyro.cli(
                Evaluation,
                args=list(arguments),
                prog="evaluate.py",
                return_unknown_args=True,
            )
        if unknown:
            names = [f"--{name.replace('_', '-')}" for name in Evaluation.__dataclass_fields__]
            raise ValueError(f"unknown option {unknown[0]}{_nearest(unknown[0], names)}; evaluate.py --help lists all")
        wanted = replace(wanted, candidates=tuple(read_candidates(wanted.candidates)))
        folder = Path(wanted.model)
        if wanted.verify:
            return _verify(folder, console)
        is_run = folder.is_dir() and not (folder / "config.json").exists()
        if is_run and (folder / "model.json").exists():
            raise ValueError(
                f"{folder} holds a model in zoo's own layout, which says neither its task nor its data: use zoo.load, "
                "or evaluate the run that it comes from"
            )
        for name in CHECKPOINT_ONLY if is_run else RUN_ONLY:
            if getattr(wanted, name) not in (None, (), False) and not (wanted.inspect and name == "output"):
                kind = "a run of train.py" if is_run else "a pretrained checkpoint"
                raise ValueError(f"--{name.replace('_', '-')} is of no use here: {wanted.model} is {kind}")
        if wanted.export is not None:
            from zoo.recipes.export import export

            export(
                wanted.model, wanted.export, step=wanted.step, average=wanted.average, head=wanted.head, console=console
            )
        elif is_run:
            _evaluate_run(wanted, console)
        else:
            _ask_checkpoint(wanted, console)


def read_candidates(given: Iterable[str]) -> Iterator[str]:
    """Texts, and the lines of the .txt files among them that are not blank. OSError for a file that is not there."""
    for text in given:
        if not text.endswith(".txt"):
            yield text
            continue
        yield from filter(None, map(str.strip, Path(text).read_text(encoding="utf-8").splitlines()))


def _evaluate_run(wanted: Evaluation, console: Console) -> None:
    from zoo.recipes.job import answer, score, write_predictions

    run = Run.load(wanted.model)
    if wanted.inspect:
        from zoo.recipes.inspection import inspect_run

        inspect_run(run, wanted, console)
    elif wanted.predictions is not None:
        write_predictions(run, wanted, console)
    elif wanted.prompt is None and wanted.image is None:
        score(run, wanted, console)
    else:
        answer(run, wanted, console)


def _verify(folder: Path, console: Console) -> None:
    """Print the state of every checkpoint; SystemExit of code 1 if one is damaged."""
    states = list(describe_steps(folder))
    if not states:
        raise ValueError(f"{folder} has no checkpoint: name the folder that training wrote to")
    for name, state, _ in states:
        console.print(f"{name}  {state}", soft_wrap=True, highlight=False, markup=False)
    if any(damaged for *_, damaged in states):
        raise SystemExit(1)


def _ask_checkpoint(wanted: Evaluation, console: Console) -> None:
    from zoo.pretrained import load
    from zoo.recipes.ask import ask

    bundle = load(wanted.model, head=wanted.head)
    if not wanted.inspect:
        return ask(bundle, wanted, console)
    from zoo.recipes.inspection import inspect_checkpoint

    inspect_checkpoint(bundle, wanted, console)


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
