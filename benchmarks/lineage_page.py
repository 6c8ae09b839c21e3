"""The page of a results file of lineage.py: what was compared, who wins where, six plots and the tables behind them.

python benchmarks/lineage_page.py benchmarks/results/lineage-<device>.json     writes it anew, and draws the plots
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.lineage_findings import POINTS, SHARE, compare, fading, order, summarise
from benchmarks.lineage_plots import SCORES, draw, rows_of
from benchmarks.lineage_systems import ABOUT, TITLES
from benchmarks.pages import bullets, show, table

FIGURES = {
    "length": "Quality against source length. Right of the dashed line rows are longer than any that was learnt from.",
    "recall": "Recall against distance. That is how many items stand between the one asked for and the question.",
    "time": "Quality against training time. On held-out rows of the lengths trained on. Every system takes the same "
    "number of steps, so that a line that ends earlier is of a faster one.",
    "speed": "Speed and memory against length. Rows have as many target tokens as source tokens, and each step as many "
    "tokens. A recurrent system takes its steps one after the other, however wide the machine is.",
    "gradients": "Gradient at an input against distance. Of the loss at the last output with respect to the vector of "
    "one input token: the norm, the median over inputs, each line as a share of its largest. Where it fades with "
    "distance, a far input teaches nothing (vanishing gradients). A reversed source is read from its end, so that its "
    "first tokens are the near ones.",
    "amount": "Quality against the amount of training data. Few rows are seen again and again in as many steps.",
}
"""What is written beside each plot."""


def write_page(path: Path) -> list[Path]:
    """Write the page of a results file, and draw its plots; returns what was written."""
    content = json.loads(path.read_text())
    figures = draw(content, path)
    page = path.with_suffix(".md")
    page.write_text("\n\n".join(sections(content, {name: file.name for name, file in figures.items()})) + "\n")
    return [page, *figures.values()]


def sections(content: dict, figures: dict[str, str]) -> Iterator[str]:
    """Return the parts of the page, in Markdown."""
    environment, settings = content["environment"], content["settings"]
    yield "# From the LSTM to the Transformer, measured"
    if settings["name"] == "quick":
        yield "**Made with `--quick`: everything ran, and the figures mean little.**"
    if not content["finished"]:
        yield "**Unfinished: go on with `--resume`.**"
    versions = ", ".join(f"{name} {version}" for name, version in environment["versions"].items())
    yield (
        f"The same data, task, optimizer step, greedy decoding and scorer for all systems. {environment['device']}, "
        f"{settings['dtype']}; Python {environment['python']}, {versions}; {content['seconds'] / 60:.0f} minutes.\n\n"
        f"    {environment['command']}"
    )
    yield from _problems(content)
    yield bullets(f"**{TITLES[name]}**: {ABOUT[name]}" for name in TITLES if name in settings["systems"])
    yield table(*overview(content))
    yield from _verdicts(content)
    for name, text in FIGURES.items():
        if name in figures:
            yield f"## {text.partition('.')[0]}\n\n![{name}]({figures[name]})\n\n{text.partition('. ')[2]}".rstrip()
        extra = _beside(content, name)
        if extra:
            yield extra
    if content["failures"]:
        yield "## What failed\n\n" + bullets(f"{key}: {reason}" for key, reason in content["failures"].items())
    yield f"Settings: `{json.dumps(settings)}`"


def _problems(content: dict) -> Iterator[str]:
    for problem in content["problems"].values():
        source, target = problem["example"]["source"], problem["example"]["target"]
        yield (
            f"**{problem['title']}.** For example `{source}` to `{target}`. "
            f"Trained with up to {problem['trained']} {problem['axis']}, tested with "
            f"{', '.join(map(str, problem['tests']))}."
        )


def _verdicts(content: dict) -> Iterator[str]:
    found = list(compare(content))
    for verdict, heading in (("older", "Where the older systems win"), ("level", "Where they are level"),
                             ("newest", "Where the newest wins")):  # fmt: skip
        chosen = list(summarise(comparison for comparison in found if comparison.verdict == verdict))
        yield f"## {heading}\n\n" + (bullets(chosen) if chosen else "Nowhere in this run.")
    yield (
        f"Level is what lies within {POINTS:.0f} points of a score, or {SHARE:.0%} of a time, a rate or a size. Every "
        "sentence here follows from the figures of this run."
    )
    lines = list(order(content))
    if lines:
        yield "## Does each step help at lengths beyond those trained on?\n\n" + bullets(lines)


def _beside(content: dict, figure: str) -> str:
    """The table or the sentences that belong to a figure."""
    match figure:
        case "length":
            return _tests(content, "translation")
        case "recall":
            return _tests(content, "recall")
        case "gradients":
            return bullets(fading(content))
        case "speed":
            rows = rows_of(content, "speed")
            lines = [[str(row["length"]), str(row["batch"]), TITLES[row["system"]],
                      show(row["tokens_per_second"]) if "tokens_per_second" in row else "too slow to be timed",
                      show(row["milliseconds"]) if "milliseconds" in row else "",
                      show(row["temp_bytes"] / 1e6) if row["temp_bytes"] else "", show(row["decoding_bytes"] / 1e3)]
                     for row in rows]  # fmt: skip
            head = ["length", "rows", "system", "tokens/s", "ms a step", "MB a step", "kB in decoding"]
            return table(head, lines) if rows else ""
    return ""


def _tests(content: dict, part: str) -> str:
    """Scores by test, beside those of writing without a model."""
    problem = content["problems"][part]
    lines = []
    rows = [(TITLES[row["system"]], row["tests"]) for row in rows_of(content, part)]
    rows += [(row["how"], row["tests"]) for row in rows_of(content, "baselines") if row["problem"] == part]
    for title, tests in rows:
        by_test = {at["test"]: at for at in tests}
        cells = [f"{by_test[t]['score']:.1f} ({by_test[t]['words_right']:.1f})" for t in problem["tests"]]
        lines.append([title, *cells])
    head = f"{SCORES[problem['score']]} ({SCORES['words_right']}), by {problem['axis']}"
    return table([head, *map(str, problem["tests"])], lines) if lines else ""


def overview(content: dict) -> tuple[list[str], list[list[str]]]:
    """The table of the systems: head and lines."""
    columns: dict[str, dict[str, str]] = {}

    def put(column: str, system: str, value: float) -> None:
        columns.setdefault(column, {})[system] = show(value)

    for part in ("translation", "recall"):
        problem = content["problems"].get(part)
        for row in rows_of(content, part):
            if part == "translation":
                put("parameters", row["system"], row["parameters"])
            put(f"{problem['name']}: seconds to train", row["system"], row["training_seconds"])
            put(f"{problem['name']}: {SCORES[problem['score']]}", row["system"], row["curve"][-1]["score"])
            hardest = f"{problem['name']}, {problem['tests'][-1]} {problem['axis']}"
            put(hardest, row["system"], row["tests"][-1]["score"])
    speed = rows_of(content, "speed")
    for length in sorted({row["length"] for row in speed})[:: max(1, len({row["length"] for row in speed}) - 1)]:
        for row in speed:
            if row["length"] == length and "tokens_per_second" in row:
                put(f"tokens/s in training, length {length}", row["system"], row["tokens_per_second"])
    systems = [name for name in TITLES if any(name in column for column in columns.values())]
    return ["", *(TITLES[name] for name in systems)], [
        [label, *(values.get(name, "–") for name in systems)] for label, values in columns.items()
    ]


if __name__ == "__main__":
    for written in write_page(Path(sys.argv[1])):
        print(f"wrote {written}")
