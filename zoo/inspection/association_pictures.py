"""Pictures of `zoo.inspection.association`: words by what they are associated with, sentence pairs by preference."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from zoo.inspection.association import Association, Preference

FIRST, SECOND = "#d94801", "#08519c"


def draw_associations(path: Path, associations: Sequence[Association]) -> Path:
    """A panel a test, a named bar for each target word, sorted: which attribute it is nearer to."""
    tallest = max(len(found.test.words) for found in associations)
    size = (6.4 * len(associations), 1.9 + 0.14 * tallest)
    figure = Figure(figsize=size, dpi=150, layout="constrained")
    for panel, found in zip(figure.subplots(1, len(associations), squeeze=False)[0], associations, strict=True):
        _draw_words(panel, found)
    figure.savefig(path)
    return path


def _draw_words(panel, found: Association) -> None:
    (one, first), (other, second) = found.test.targets.items()
    words, values = [*first, *second], np.concatenate(found.associations)
    colours = [FIRST] * len(first) + [SECOND] * len(second)
    order = np.argsort(values, kind="stable")
    panel.barh(range(len(words)), values[order], color=[colours[place] for place in order], height=0.72)
    panel.set_yticks(range(len(words)), [words[place] for place in order], fontsize=8.5)
    panel.axvline(0, color="black", linewidth=0.8)
    handles = [Patch(color=colour, label=name) for name, colour in ((one, FIRST), (other, SECOND))]
    panel.legend(handles=handles, frameon=False, fontsize=9, loc="lower right")
    near, far = found.test.attributes
    panel.set_xlabel(f"← nearer to {far}      (difference of mean cosines)      nearer to {near} →", fontsize=9)
    panel.set_title(f"{found.test.name}\neffect size d = {found.effect:.2f}, p = {found.p_value:.2g}", fontsize=10.5)
    panel.spines[["top", "right"]].set_visible(False)


def draw_preference(path: Path, preference: Preference, num_shown: int = 40) -> Path:
    """A bar for each pair, sorted, with both sentences' text; of many pairs, those with the greatest differences."""
    strongest = np.argsort(-np.abs(preference.differences), kind="stable")[:num_shown]
    order = strongest[np.argsort(preference.differences[strongest], kind="stable")]
    figure = Figure(figsize=(10, 1.6 + 0.3 * len(order)), dpi=150, layout="constrained")
    panel = figure.subplots()
    values = preference.differences[order]
    panel.barh(range(len(order)), values, color=np.where(values > 0, FIRST, SECOND), height=0.7)
    panel.set_yticks(range(len(order)), [preference.pairs[place].more for place in order], fontsize=8.5)
    panel.axvline(0, color="black", linewidth=0.8)
    panel.set_xlabel("← its counterpart is likelier      (difference in nats)      the sentence shown is likelier →")
    shown = "" if len(order) == len(preference.pairs) else f"; the {len(order)} greatest differences"
    panel.set_title(
        f"{preference.share:.0%} of {len(preference.pairs)} pairs go with the stereotype (50 % is none), "
        f"d = {preference.effect:.2f}, p = {preference.p_value():.2g}{shown}",
        fontsize=10.5,
    )
    panel.spines[["top", "right"]].set_visible(False)
    figure.savefig(path)
    return path
