"""The plot of models.py: time of each contender in each cell as a multiple of torch eager's."""

import json
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from benchmarks.plots import SPARE, grouped

KNOWN = {"zoo": "#0072b2", "zoo, int8": "#009e73", "zoo, w8a8": "#56b4e9", "torch eager": "#555555",
         "torch.compile": "#d55e00"}  # fmt: skip
ROW_HEIGHT = 0.34


def described(environment: dict[str, str]) -> str:
    """The device; of a CPU the processor too, where the results know it."""
    device, processor = environment["device"], environment.get("processor")
    return f"{device} ({processor})" if environment["platform"] == "cpu" and processor else device


def draw(path: Path) -> list[Path]:
    """Draw the plot of a results file beside it; returns its path, or none where nothing was compared."""
    content = json.loads(path.read_text())
    rows = [row for row in content["results"] if row["ratio"] is not None]
    if not rows:
        return []
    cells = grouped(rows, lambda row: row["cell"])
    figure = Figure(figsize=(9, 1.8 + ROW_HEIGHT * len(cells)), layout="constrained")
    axes = figure.add_subplot()
    names = list(dict.fromkeys(row["name"] for row in rows))
    for name in names:
        points = [
            (row["ratio"], place) for place, own in enumerate(cells.values()) for row in own if row["name"] == name
        ]
        colour = KNOWN.get(name) or SPARE[names.index(name) % len(SPARE)]
        peer = name.startswith("torch")
        axes.plot(*zip(*points, strict=True), "s" if peer else "o", color=colour, label=name, markersize=7,
                  markerfacecolor="white" if peer else colour)  # fmt: skip
    axes.axvline(1, color="black", linewidth=1)
    axes.set(xscale="log", xlabel="time as a multiple of torch eager's: left of the line is faster",
             title=f"Whole models on {described(content['environment'])}")  # fmt: skip
    axes.set_yticks(range(len(cells)), list(cells))
    axes.invert_yaxis()
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5, 7)))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.grid(axis="both", alpha=0.3)
    figure.legend(loc="outside lower center", ncols=len(names))
    written = path.with_suffix(".png")
    figure.savefig(written, dpi=110)
    return [written]
