"""Pictures of `zoo.inspection.senses`: where sentences of two senses lie, and heat maps of attention weights."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from zoo.inspection.senses import Placement, WeightMap

FIRST, SECOND = "#d94801", "#08519c"
"""Colours of the two senses."""


def draw_placements(path: Path, placements: Sequence[Placement]) -> Path:
    """A panel a word, in it a line for each way of making vectors, and on the line a dot for each sentence."""
    words = list(dict.fromkeys(placement.word for placement in placements))
    figure = Figure(figsize=(5.2 * len(words), 5.2), dpi=150, layout="constrained")
    panels = figure.subplots(1, len(words), squeeze=False)[0]
    for panel, word in zip(panels, words, strict=True):
        _draw_word(panel, [placement for placement in placements if placement.word == word])
    figure.suptitle(
        "Each dot is a sentence that uses the word; its place says to which sense the word's vector leans in it. "
        "Told apart: 50 % is chance.",
        fontsize=12,
    )
    figure.savefig(path)
    return path


def _draw_word(panel, placements: Sequence[Placement]) -> None:
    first, second = placements[0].senses
    for row, placement in enumerate(placements):
        for label, colour, offset in ((0, FIRST, -0.11), (1, SECOND, 0.11)):
            leanings = placement.leanings[placement.labels == label]
            panel.scatter(leanings, np.full(len(leanings), row + offset), s=34, color=colour, alpha=0.65, linewidths=0)
        panel.text(
            1.0,
            row - 0.3,
            f"told apart: {placement.separation:.0%}",
            transform=panel.get_yaxis_transform(),
            ha="right",
            va="center",
            fontsize=8.5,
        )
    panel.axvline(0, color="#aaaaaa", linewidth=0.8, zorder=0)
    names = [placement.way.replace(" without", "\nwithout") for placement in placements]
    panel.set_yticks(range(len(placements)), names, fontsize=9)
    panel.set_ylim(len(placements) - 0.5, -0.5)
    for line in np.arange(len(placements) - 1) + 0.5:
        panel.axhline(line, color="#e0e0e0", linewidth=0.6, zorder=0)
    panel.set_xlabel(f"← nearer to {', '.join(second.anchors)}\nnearer to {', '.join(first.anchors)} →", fontsize=9)
    panel.set_title(f"“{placements[0].word}”", fontsize=12)
    handles = [panel.scatter([], [], color=colour, label=f"used as: {sense.name}")
               for colour, sense in ((FIRST, first), (SECOND, second))]  # fmt: skip
    panel.legend(handles=handles, frameon=False, fontsize=8.5, loc="lower center", bbox_to_anchor=(0.5, -0.36), ncols=2)
    panel.spines[["top", "right", "left"]].set_visible(False)
    panel.tick_params(axis="y", length=0)


def draw_weights(path: Path, sentences: Mapping[str, Sequence[WeightMap]]) -> Path:
    """A row a sentence, a column for each way of attending: each line of a map is a word, and sums to one."""
    columns = max(map(len, sentences.values()))
    figure = Figure(figsize=(4.6 * columns, 3.9 * len(sentences)), dpi=130, layout="constrained")
    grid = figure.subplots(len(sentences), columns, squeeze=False)
    for panels, (sentence, maps) in zip(grid, sentences.items(), strict=True):
        for panel, way in zip(panels, maps, strict=True):
            _draw_map(panel, way, sentence)
    figure.suptitle("How much each word (row) takes from each word (column); rows sum to 1", fontsize=12)
    figure.savefig(path)
    return path


def _draw_map(panel, way: WeightMap, sentence: str) -> None:
    panel.imshow(way.weights, cmap="Blues", vmin=0, vmax=1)
    size = len(way.tokens)
    panel.set_xticks(range(size), way.tokens, rotation=45, ha="right", fontsize=9)
    panel.set_yticks(range(size), way.tokens, fontsize=9)
    if size <= 12:  # more figures would not be legible
        for row, column in np.ndindex(size, size):
            weight = way.weights[row, column]
            colour = "white" if weight > 0.55 else "black"
            panel.text(column, row, f"{weight:.2f}", ha="center", va="center", fontsize=7.5, color=colour)
    panel.set_title(f"{sentence}\n{way.way}", fontsize=9.5)
    panel.tick_params(length=0)
