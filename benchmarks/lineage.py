"""Compare the road to the Transformer: LSTM encoder-decoder, GRU with additive attention, Transformer, of equal size.

    python benchmarks/lineage.py                        under 30 minutes on two CPU cores
    python benchmarks/lineage.py --quick                everything once, in two or three; its figures mean little
    python benchmarks/lineage.py --resume               go on where an interrupted run ended
    python benchmarks/lineage.py --data zoo_phrases --score chrf     another set: embedded, a prepared TFDS name,
    python benchmarks/lineage.py --path pairs.tsv                    or a file of yours

Same data, task, generation and scorer for all: quality against source length, on rows of several pairs (dates, by
default) and on recall over growing distance; against wall time; against the amount of data; speed and memory of
training against length; the gradient that reaches an early input. Written after every piece of work:
lineage-<device>.json; at the end the page, lineage-<device>.md, and its plots (--quick: lineage-quick-<device>).
"""

import argparse
import dataclasses
import functools
import json
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.lineage_data import Problem, make_recall, make_translation
from benchmarks.lineage_page import write_page
from benchmarks.lineage_speed import measure_length
from benchmarks.lineage_systems import DEFAULT, TITLES, System, Widths, make_system
from benchmarks.lineage_training import Budget, learn, score_written
from benchmarks.options import RESULTS, Parser, positive
from benchmarks.report import environment, file_stem, read_earlier, write_json
from benchmarks.timing import clock
from zoo.data import DataConfig, open_dataset
from zoo.tasks.pair_baselines import write_baseline
from zoo.tasks.text_scores import TextScore, check_scores

PARTS = ("baselines", "speed", "translation", "recall", "amount")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """The size of everything; the defaults are the small setting."""

    name: str = "small"
    widths: Widths = Widths()
    dtype: str = "float32"
    vocab_size: int = 1024
    num_rows: int = 16_384
    """Of translation, to learn from."""
    num_test_rows: int = 96
    """Of each test."""
    pairs_trained: int = 2
    pairs_tested: tuple[int, ...] = (1, 2, 3, 4)
    translation: Budget = Budget(num_steps=1000, batch_size=64, num_scorings=10)
    fractions: tuple[float, ...] = (1 / 64, 1 / 8)
    """Of `num_rows`; the whole is the translation itself."""
    recall_rows: int = 65_536
    recall_trained: int = 7
    recall_tested: tuple[int, ...] = (0, 3, 7, 11, 15, 19, 23)
    recall: Budget = Budget(num_steps=2400, batch_size=128, num_scorings=8)
    lengths: tuple[int, ...] = (32, 64, 128, 256, 512)
    tokens: int = 4096
    """Source tokens, and target tokens, of a step that is timed."""
    speed_seconds: float = 8.0
    """Of timing a length; compilation comes on top."""


QUICK = Settings(
    name="quick",
    vocab_size=512,
    widths=Widths(lstm=32, attention=28, transformer=32, head_size=16),
    num_rows=1024,
    num_test_rows=16,
    pairs_trained=1,
    pairs_tested=(1, 2),
    translation=Budget(num_steps=20, batch_size=32, num_scorings=2),
    fractions=(1 / 4,),
    recall_rows=1024,
    recall_trained=3,
    recall_tested=(0, 3, 5),
    recall=Budget(num_steps=20, batch_size=32, num_scorings=2),
    lengths=(32, 64),
    tokens=256,
    speed_seconds=0.5,
)

Work = tuple[str, Callable[[], list[dict[str, Any]]]]
"""A piece of work: its name, and what makes its results."""


def main(argv: list[str] | None = None, settings: Settings | None = None) -> int:
    """Do all that is not yet done, write JSON, page and plots; 1 where something failed.

    `settings` replace those that the options choose.
    """
    options = parse(argv)
    settings = settings or (QUICK if options.quick else Settings())
    settings = dataclasses.replace(settings, dtype=options.dtype or settings.dtype)
    folder = Path(options.out)
    folder.mkdir(parents=True, exist_ok=True)
    try:
        problems = make_problems(options, settings)
        chosen = {name: getattr(options, name) for name in ("data", "path", "systems")}
        stem = file_stem("lineage" if settings.name == "small" else f"lineage-{settings.name}")
        record = Record(folder / f"{stem}.json", as_json(settings) | chosen, problems, resume=options.resume)
    except (ValueError, FileNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    run(list(plan(options, settings, problems)), record, options.deadline_seconds)
    for path in write_page(record.path):
        print(f"wrote {path}")
    print(f"wrote {record.path}: {len(record.results)} results in {clock(record.seconds)}")
    for name, reason in record.failures.items():
        print(f"failed: {name}: {reason}", file=sys.stderr)
    return 1 if record.failures else 0


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--quick", action="store_true", help="tiny models and few steps: everything runs, the figures mean little")
    add("--resume", action="store_true", help="go on with the results file, past what it has")
    add("--deadline-seconds", type=positive(float), help="after which no further piece of work is begun")
    add("--out", default=str(RESULTS), help="folder of the results (benchmarks/results)")
    add("--systems", nargs="+", choices=TITLES, default=list(DEFAULT), metavar="NAME", help=", ".join(TITLES))
    add("--parts", nargs="+", choices=PARTS, default=list(PARTS), metavar="PART", help=", ".join(PARTS))
    add("--data", default="zoo_dates", metavar="NAME", help="pairs: embedded, or a TFDS name that is prepared")
    add("--path", metavar="FILE", help="your own pairs: .tsv, .jsonl, or a folder with train.* and validation.*")
    add("--source-key", default="source", metavar="FIELD", help="of the set, what is read (source)")
    add("--target-key", default="target", metavar="FIELD", help="of the set, what is written (target)")
    add("--validation-split", default="validation", metavar="SPLIT", help="of the set, what is held out (validation)")
    add("--score", choices=get_args(TextScore)[:3], default="exact_match", help="of translations (exact_match)")
    add("--dtype", choices=("float32", "bfloat16"), help="of activations and products (float32)")
    add("--vocab-size", type=positive(int), metavar="V", help="tokens of the translation (1024; --quick: 512)")
    options = parser.parse_args(argv)
    if Path(options.out).exists() and not Path(options.out).is_dir():
        parser.error(f"--out {options.out} is a file; give a folder")
    return options


def make_problems(options: argparse.Namespace, settings: Settings) -> dict[str, Problem]:
    """Both problems. ValueError or FileNotFoundError for data that is not there, and a score without its package."""
    check_scores([options.score])
    keys = options.source_key, options.target_key
    data = DataConfig(name=options.data, path=options.path, validation_split=options.validation_split)
    data = dataclasses.replace(data, source_key=keys[0], target_key=keys[1])
    translation = make_translation(
        open_dataset(data),
        keys,
        score=options.score,
        vocab_size=options.vocab_size or settings.vocab_size,
        trained=settings.pairs_trained,
        tests=settings.pairs_tested,
        num_rows=settings.num_rows,
        num_test_rows=settings.num_test_rows,
    )
    recall = make_recall(
        trained=settings.recall_trained,
        tests=settings.recall_tested,
        num_rows=settings.recall_rows,
        num_test_rows=settings.num_test_rows,
    )
    return {"translation": translation, "recall": recall}


def plan(options: argparse.Namespace, settings: Settings, problems: dict[str, Problem]) -> Iterator[Work]:
    """Return the work of the chosen parts, the most telling first."""
    budgets = {"translation": settings.translation, "recall": settings.recall}
    systems = {
        part: [make_system(name, problem.tokenizer.vocab_size, settings.widths) for name in options.systems]
        for part, problem in problems.items()
    }
    if "baselines" in options.parts:
        for part, problem in problems.items():
            yield f"baselines of {part}", functools.partial(score_baselines, part, problem)
    for part in (name for name in ("translation", "recall") if name in options.parts):
        for system in systems[part]:
            yield (
                f"{part}: {system.title}",
                functools.partial(train, part, system, problems[part], budgets[part], settings.dtype),
            )
    if "speed" in options.parts:
        for length in settings.lengths:
            yield (
                f"speed at length {length}",
                functools.partial(time_length, systems["translation"], problems["translation"], length, settings),
            )
    if "amount" in options.parts:
        for fraction in settings.fractions:
            num_rows = max(1, round(fraction * settings.num_rows))
            for system in systems["translation"]:
                yield (
                    f"amount of data, {num_rows:,} rows: {system.title}",
                    functools.partial(
                        train, "amount", system, problems["translation"], settings.translation, settings.dtype, num_rows
                    ),
                )


def run(work: list[Work], record: "Record", deadline_seconds: float | None = None) -> None:
    """Do what is not yet done; what fails is noted, and the rest goes on. After the deadline nothing is begun."""
    left = [(name, make) for name, make in work if name not in record.done]
    start, before = time.perf_counter(), record.seconds
    for index, (name, make) in enumerate(left):
        elapsed = time.perf_counter() - start
        if deadline_seconds is not None and elapsed > deadline_seconds:
            print(f"{len(left) - index} of {len(left)} are left out: {deadline_seconds:.0f} s are over")
            record.write()
            return
        ahead = f", about {clock(elapsed / index * (len(left) - index))} left" if index else ""
        print(f"\n[{index + 1} of {len(left)}, {clock(elapsed)} so far{ahead}] {name}", flush=True)
        try:
            results = make()
        except Exception as error:
            traceback.print_exc()
            lines = str(error).strip().splitlines() or [""]
            record.fail(name, f"{type(error).__name__}: {lines[0][:200]}")
            continue
        record.seconds = before + time.perf_counter() - start
        record.finish(name, results)
    record.write(finished=not record.failures)


def train(
    part: str, system: System, problem: Problem, budget: Budget, dtype: str, num_rows: int | None = None
) -> list[dict[str, Any]]:
    """One system on one problem; of fewer rows, its curve alone."""

    def say(line: str) -> None:
        print(f"    {line}", flush=True)

    found = learn(system, problem, budget, dtype=dtype, num_rows=num_rows, say=say)
    return [{"part": part, "system": system.name, "dtype": dtype, **found}]


def time_length(systems: list[System], problem: Problem, length: int, settings: Settings) -> list[dict[str, Any]]:
    """All systems side by side at one length."""
    task = problem.task(["validation"], settings.translation.batch_size)
    rows = measure_length(
        systems, task, length, tokens=settings.tokens, dtype=settings.dtype, budget_seconds=settings.speed_seconds
    )
    for row in rows:
        rate = f"{row['tokens_per_second']:10,.0f} tokens/s" if "tokens_per_second" in row else "too slow to be timed"
        print(f"    {rate}  {row['system']}", flush=True)
    return [{"part": "speed", **row} for row in rows]


def score_baselines(part: str, problem: Problem) -> list[dict[str, Any]]:
    """What is reached without a model: the source itself, and the target of the nearest training source (TF-IDF)."""
    found = []
    for name in ("copy", "nearest"):
        tests = []
        for test in problem.tests:
            sources, wanted = problem.texts(str(test))
            written, how = write_baseline(name, sources, *problem.texts("train"))
            tests.append({"test": test, **score_written(problem, written, wanted)})
        found.append({"part": "baselines", "problem": part, "name": name, "how": how, "tests": tests})
        print(f"    {name}: {', '.join(format(at['score'], '.1f') for at in tests)}", flush=True)
    return found


def as_json(settings: Settings) -> dict[str, Any]:
    """As it reads in a file: tuples are lists."""
    return json.loads(json.dumps(dataclasses.asdict(settings)))


class Record:
    """The results file, written after every piece of work."""

    def __init__(self, path: Path, settings: dict[str, Any], problems: dict[str, Problem], *, resume: bool):
        self.path, self.settings = path, settings
        self.problems = {part: describe(problem) for part, problem in problems.items()}
        old = read_earlier(path, resume)
        if old and (old["settings"], old["problems"]) != (self.settings, self.problems):
            raise ValueError(f"{path} is of another run, with other settings or data: leave --resume out to start anew")
        self.results: list[dict[str, Any]] = old.get("results", [])
        self.done: list[str] = old.get("done", [])
        self.seconds: float = old.get("seconds", 0.0)
        self.failures: dict[str, str] = {}

    def finish(self, name: str, results: list[dict[str, Any]]) -> None:
        """Add what a piece of work has found."""
        self.results += results
        self.done.append(name)
        self.write()

    def fail(self, name: str, reason: str) -> None:
        """Note that a piece of work has failed; a resumed run tries it again."""
        self.failures[name] = reason
        self.write()

    def write(self, *, finished: bool = False) -> None:
        """Write the file."""
        content = {
            "environment": environment("lineage"),
            "finished": finished,
            "seconds": self.seconds,
            "settings": self.settings,
            "problems": self.problems,
            "results": self.results,
            "failures": self.failures,
            "done": self.done,
        }
        write_json(self.path, content)


def describe(problem: Problem) -> dict[str, Any]:
    """A problem as the page needs it."""
    return {
        "name": problem.name,
        "title": problem.title,
        "trained": problem.trained,
        "tests": list(problem.tests),
        "axis": problem.axis,
        "score": problem.score,
        "vocab_size": problem.tokenizer.vocab_size,
        "example": problem.rows("train")[problem.trained - 1],
    }


if __name__ == "__main__":
    sys.exit(main())
