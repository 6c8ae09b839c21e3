"""loss.png: the loss of every logged step, its smoothed course, and the evaluations, from metrics.csv alone.

Steps are on a logarithmic axis: the start is fast and the end is slow, and both should be seen.
"""

from pathlib import Path

import numpy as np

from zoo.training.metrics import read_metrics

TRAIN, SMOOTH, VALIDATION = "#9ecae1", "#08519c", "#d94801"


def smooth(values: np.ndarray, share: float = 0.08) -> np.ndarray:
    """Return the mean over a window around each point that grows with its place, `share` of it to a side."""
    sums = np.concatenate([[0.0], np.cumsum(values)])
    index = np.arange(len(values))
    half = (share * (index + 1)).astype(int)
    low, high = index - half, np.minimum(index + half, len(values) - 1) + 1
    return (sums[high] - sums[low]) / (high - low)


def draw_loss(folder: str | Path, title: str = "") -> Path | None:
    """Draw a run folder's metrics.csv to its loss.png; return the path, None if there is nothing to draw."""
    from matplotlib.figure import Figure  # half a second, at the end of a run

    folder = Path(folder)
    rows = read_metrics(folder / "metrics.csv")
    train = [(int(row["step"]), float(row["loss"])) for row in rows if "loss" in row and "skipped" not in row]
    held_out = [(int(row["step"]), float(row["validation_loss"])) for row in rows if "validation_loss" in row]
    if not train:
        return None
    figure = Figure(figsize=(8, 5), dpi=150, layout="constrained")
    axes = figure.subplots()
    _plot(axes, np.array(train), held_out)
    axes.set(xlabel="step", ylabel="loss (nats per target)", title=title or folder.name)
    axes.legend(frameon=False, loc="lower left")
    path = folder / "loss.png"
    figure.savefig(path)
    return path


def _plot(axes, train: np.ndarray, held_out: list[tuple[int, float]]) -> None:
    """Plot the curves; the axes show the whole smoothed course, and a few wild steps do not squeeze it."""
    steps, losses = train.T
    smoothed = smooth(losses)
    axes.plot(steps, losses, color=TRAIN, linewidth=0.7, label="training, each logged step")
    axes.plot(steps, smoothed, color=SMOOTH, linewidth=1.8, label="training, smoothed")
    if held_out:
        axes.plot(
            *zip(*held_out, strict=True),
            "o-",
            color=VALIDATION,
            markersize=4,
            linewidth=1,
            label="validation",
        )
        style = {"textcoords": "offset points", "va": "center", "color": VALIDATION}
        axes.annotate(f"{held_out[-1][1]:.3f}", held_out[-1], (8, 0), **style)
    if len(losses) > 1:
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(lambda x, _: f"{x:,.0f}")
        axes.set_xlim(steps[0], steps[-1] * steps[-1] ** 0.1 if held_out else steps[-1])
        shown = [losses.min(), np.quantile(losses, 0.995), smoothed.max(), *(loss for _, loss in held_out)]
        margin = 0.05 * (max(shown) - min(shown)) or 0.1
        axes.set_ylim(min(shown) - margin, max(shown) + margin)
    axes.grid(True, color="#e0e0e0", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
