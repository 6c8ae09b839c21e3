"""The six plots of a results file of lineage.py, a colour and a marker a system in all of them."""

from collections.abc import Callable, Iterable
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import NullLocator

from benchmarks.lineage_systems import TITLES
from benchmarks.plots import grid, plain_ticks

COLOURS = {"lstm": "#d55e00", "attention": "#009e73", "transformer": "#0072b2", "relative": "#7b3294"}
MARKERS = {"lstm": "o", "attention": "s", "transformer": "^", "relative": "D"}
SCORES = {
    "exact_match": "rows exactly right, %",
    "bleu": "BLEU",
    "chrf": "chrF",
    "rouge": "ROUGE",
    "words_right": "words right in their place, %",
}
SCALE = 1.25

Point = tuple[float, float]


def draw(content: dict, path: Path) -> dict[str, Path]:
    """Draw all plots for which there are results beside `path`; returns their files by name."""
    written = {}
    for name, make in FIGURES.items():
        figure = make(content)
        if figure is not None:
            written[name] = path.with_name(f"{path.stem}-{name}.png")
            figure.savefig(written[name], dpi=110)
    return written


def rows_of(content: dict, part: str) -> list[dict]:
    """The results of a part."""
    return [row for row in content["results"] if row["part"] == part]


def length(content: dict) -> Figure | None:
    """Scores of translation against source length."""
    rows = rows_of(content, "translation")
    if not rows:
        return None
    problem = content["problems"]["translation"]
    names = dict.fromkeys(("score", "words_right"))
    figure, places = grid(len(names), f"{_where(content)}: quality against source length", SCALE)
    for axes, key in zip(places, names, strict=True):
        _lines(axes, rows, lambda row, key=key: [(test["source_tokens"], test[key]) for test in row["tests"]])
        edge = max(test["source_tokens"] for test in rows[0]["tests"] if test["test"] <= problem["trained"])
        _mark_edge(axes, edge)
        label = SCORES[problem["score"] if key == "score" else key]
        axes.set(xlabel="source tokens (mean of a test)", ylabel=label, ylim=(-4, 104), title=label.capitalize())
    _legend(figure, rows)
    return figure


def recall(content: dict) -> Figure | None:
    """Accuracy of recall against distance."""
    rows = rows_of(content, "recall")
    if not rows:
        return None
    problem = content["problems"]["recall"]
    figure, (axes,) = grid(1, f"{_where(content)}: recall against distance", 1.5)
    _lines(axes, rows, lambda row: [(test["test"], test["score"]) for test in row["tests"]])
    _mark_edge(axes, problem["trained"])
    axes.axhline(10, color="black", linestyle=":", linewidth=1)
    axes.annotate("guessing a digit", (1, 10), xycoords=("axes fraction", "data"), fontsize=8, va="bottom", ha="right")
    axes.set(xlabel=problem["axis"], ylabel="answers exactly right, %", ylim=(-4, 104),
             title='"k3b7q1?b" wants "b7"')  # fmt: skip
    _legend(figure, rows)
    return figure


def time(content: dict) -> Figure | None:
    """Held-out scores against seconds of training."""
    parts = {name: rows for name in ("translation", "recall") if (rows := rows_of(content, name))}
    if not parts:
        return None
    figure, places = grid(len(parts), f"{_where(content)}: quality against training time", SCALE)
    for axes, (name, rows) in zip(places, parts.items(), strict=True):
        problem = content["problems"][name]
        key = "words_right" if name == "translation" else "score"
        _lines(axes, rows, lambda row, key=key: [(0, 0)] + [(at["seconds"], at[key]) for at in row["curve"]])
        label = SCORES["words_right" if name == "translation" else problem["score"]]
        axes.set(xlabel="seconds of training (compilation and scoring left out)", ylabel=label, ylim=(-4, 104),
                 title=f"{_short(content, name)}, held out, of lengths trained on")  # fmt: skip
    _legend(figure, [row for rows in parts.values() for row in rows])
    return figure


def speed(content: dict) -> Figure | None:
    """Tokens a second in training, temporary memory, and what decoding keeps, against length."""
    rows = rows_of(content, "speed")
    if not rows:
        return None
    panels: dict[str, Callable[[dict], float | None]] = {
        "training: tokens a second (higher is faster)": lambda row: row.get("tokens_per_second"),
        "a training step's temporary memory, MB": lambda row: row["temp_bytes"] and row["temp_bytes"] / 1e6,
        "kept in decoding, kB a sequence": lambda row: row["decoding_bytes"] / 1e3,
    }
    figure, places = grid(len(panels), f"{_where(content)}: speed and memory against length", SCALE)
    lengths = sorted({row["length"] for row in rows})
    for axes, (label, value) in zip(places, panels.items(), strict=True):
        for name in _systems(rows):
            points = [(row["length"], value(row)) for row in rows if row["system"] == name and value(row)]
            if points:
                axes.plot(*zip(*sorted(points), strict=True), **_style(name))
        axes.set(xscale="log", yscale="log", xlabel="source tokens, and target tokens, of a row", ylabel=label)
        axes.set_xticks(lengths, list(map(str, lengths)))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.grid(alpha=0.3)
        plain_ticks(axes)
    tokens = rows[0]["batch"] * rows[0]["length"]
    places[0].set_title(f"{tokens:,} source tokens a step")
    places[1].set_title("beyond inputs and outputs")
    places[2].set_title("states, memory, cache")
    _legend(figure, rows)
    return figure


def gradients(content: dict) -> Figure | None:
    """Norm of the gradient of the last output's loss at an input against distance, each line by its own largest.

    Norms themselves say more of the loss, which training makes small, than of the way that a gradient takes.
    """
    parts = {name: rows for name in ("translation", "recall") if (rows := rows_of(content, name))}
    if not parts:
        return None
    figure, places = grid(2 * len(parts), f"{_where(content)}: how much gradient reaches an input", SCALE, columns=2)
    panels = [(name, when) for name in parts for when in ("untrained", "trained")]
    for axes, (name, when) in zip(places, panels, strict=True):
        rows = [{**row, "gradients": row["gradients"][when]} for row in parts[name]]
        _lines(axes, rows, _relative)
        title = f"{_short(content, name)}, {'at initialisation' if when == 'untrained' else 'after training'}"
        axes.set(yscale="log", title=title, xlabel="tokens from the input to the last output, as they are read",
                 ylabel="gradient norm, share of the line's largest")  # fmt: skip
    lowest = min(axes.get_ylim()[0] for axes in places)
    for axes in places:
        axes.set_ylim(lowest, 1.5)
    _legend(figure, [row for rows in parts.values() for row in rows])
    return figure


def _relative(row: dict) -> list[Point]:
    largest = max(at["norm"] for at in row["gradients"]) or 1.0
    return [(at["distance"], at["norm"] / largest) for at in row["gradients"]]


def amount(content: dict) -> Figure | None:
    """Held-out score against the amount of training data."""
    rows = rows_of(content, "amount")
    if not rows:
        return None
    points: dict[str, list[dict]] = {}
    for row in [*rows, *rows_of(content, "translation")]:
        points.setdefault(row["system"], []).append(row)
    figure, places = grid(2, f"{_where(content)}: quality against the amount of training data", SCALE)
    score = content["problems"]["translation"]["score"]
    for axes, key in zip(places, ("score", "words_right"), strict=True):
        for name, own in points.items():
            pairs = sorted((row["train_rows"], row["curve"][-1][key]) for row in own)
            axes.plot(*zip(*pairs, strict=True), **_style(name))
        title = f"{_short(content, 'translation')}, held out, of lengths trained on"
        axes.set(xscale="log", ylim=(-4, 104), title=title, ylabel=SCORES[score if key == "score" else key],
                 xlabel="rows to learn from (the same number of steps)")  # fmt: skip
        ticks = sorted({row["train_rows"] for own in points.values() for row in own})
        axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
        axes.xaxis.set_minor_locator(NullLocator())
        axes.grid(alpha=0.3)
    _legend(figure, [row for own in points.values() for row in own])
    return figure


FIGURES = {"length": length, "recall": recall, "time": time, "speed": speed, "gradients": gradients, "amount": amount}
"""What makes each figure; None where a part has no results."""


def _where(content: dict) -> str:
    quick = ", --quick: these figures mean little" if content["settings"]["name"] == "quick" else ""
    return f"From the LSTM to the Transformer ({content['environment']['device']}{quick})"


def _short(content: dict, part: str) -> str:
    return content["problems"][part]["name"]


def _systems(rows: Iterable[dict]) -> list[str]:
    found = {row["system"] for row in rows}
    return [name for name in TITLES if name in found]


def _style(name: str) -> dict:
    return {"color": COLOURS[name], "marker": MARKERS[name], "markersize": 5, "linewidth": 1.7}


def _lines(axes: Axes, rows: list[dict], points: Callable[[dict], list[Point]]) -> None:
    """A line a system."""
    for row in rows:
        axes.plot(*zip(*points(row), strict=True), **_style(row["system"]))
    axes.grid(alpha=0.3)


def _mark_edge(axes: Axes, place: float) -> None:
    """Where the lengths end that occur in training."""
    axes.axvline(place, color="black", linestyle="--", linewidth=1)
    axes.annotate("more than ever in training →", (place, 1), (5, -4), xycoords=("data", "axes fraction"),
                  textcoords="offset points", fontsize=8, va="top")  # fmt: skip


def _legend(figure: Figure, rows: list[dict]) -> None:
    handles = [Line2D([], [], label=TITLES[name], **_style(name)) for name in _systems(rows)]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), fontsize=9)
