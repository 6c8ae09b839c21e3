"""An inspection as one HTML file that needs no network: the page (report.html, .css, .js here) and its data.

The data is JSON inside the page. Whatever a prompt holds stays data: `<` is written as an escape, so nothing in it can
end the script element or start another, and the page's policy forbids it to load or run anything else.
"""

import base64
import html
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from string import Template
from typing import Any

import numpy as np
from jaxtyping import Float
from PIL import Image

from zoo.inspection.capture import Attended, Inspection
from zoo.inspection.flow import entropy, mean_distance, rollout
from zoo.inspection.lens import Lens

MAX_WEIGHTS = 8_000_000
"""Weights that a page holds at the most, of all layers and heads: some 30 MB."""
MAX_NUMBERS = 3_000_000
"""Components of queries, keys, values and contexts, and scores, that a page holds at the most; else it has none."""
_DIGITS = 4
_VECTORS = ("scores", "query", "key", "value", "context")


@dataclass(frozen=True, kw_only=True)
class Picture:
    """What an image model saw, and where its patches lie."""

    pixels: Float[np.ndarray, "C height width"]
    """As the model read them; shown stretched to the whole range from black to white."""
    grid: tuple[int, int]
    """Rows and columns of patches."""
    first: int
    """Position of the first patch: the number of class tokens before it."""
    stack: str = "encoder"
    """The path of the stack that reads it."""


@dataclass(frozen=True, kw_only=True)
class Ablation:
    """What `zoo.inspection.ablate_heads` gave, and of what."""

    effects: Mapping[str, Float[np.ndarray, "U N"]]
    measure: str
    """What the loss is, for the reader: "held-out loss, nats per token, of 16 rows"."""
    whole: float
    """The loss of the whole model."""


@dataclass(frozen=True, kw_only=True)
class Shown:
    """What a report shows beside the inspection itself."""

    title: str
    tokens: Mapping[str, Sequence[str]]
    """What stands at each position that a stack reads, by the stack's path."""
    facts: Sequence[str] = ()
    """Lines about the model."""
    picture: Picture | None = None
    ablation: Ablation | None = None
    lens: Lens | None = None
    answers: Sequence[Sequence[Sequence[str]]] = ()
    """What the ids of the lens stand for: [L + 1][T][k]; for a model with one answer a row, T is 1."""
    row: int = 0
    """Of the batch."""


def write_report(path: str | Path, inspection: Inspection, shown: Shown) -> Path:
    """Write the page.

    Maps that are too large are left out, the largest first, and the page says so: those of an encoder of half a minute
    of sound are.

    Raises:
        ValueError: labels that do not fit the positions, or more weights than `MAX_WEIGHTS` in every map.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(render(inspection, shown), encoding="utf-8")
    return path


def render(inspection: Inspection, shown: Shown) -> str:
    """The page as text; raises as `write_report`."""
    home = resources.files("zoo.inspection")
    page, style, script = ((home / f"report.{kind}").read_text(encoding="utf-8") for kind in ("html", "css", "js"))
    # `substitute` makes one pass: what is put in is not looked at again.
    return Template(page).substitute(
        title=html.escape(shown.title), style=style, script=script, data=as_script(report_data(inspection, shown))
    )


def as_script(data: Any) -> str:
    """JSON that may stand in a script element: ASCII, without `<`, `>` and `&`."""
    text = json.dumps(data, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def report_data(inspection: Inspection, shown: Shown) -> dict[str, Any]:
    """All that the page shows."""
    attentions = _small_enough(inspection.attentions)
    left_out = [f"{_name(path)}: too large for a page" for path in inspection.attentions if path not in attentions]
    arrays = [getattr(seen, name) for seen in attentions.values() for name in _VECTORS]
    whole = sum(array[:, 0].size for array in arrays if array is not None) <= MAX_NUMBERS
    maps = [_map(path, seen, shown, whole) for path, seen in attentions.items()]
    return {
        "title": shown.title,
        "facts": [*shown.facts, *left_out],
        "maps": maps,
        "ablation": None if shown.ablation is None else _ablation(shown.ablation, inspection),
        "lens": None if shown.lens is None else _lens(shown.lens, shown, inspection),
        "picture": None if shown.picture is None else _picture(shown.picture),
    }


def _small_enough(attentions: Mapping[str, Attended]) -> Mapping[str, Attended]:
    """As many maps as a page holds, without the largest of them."""
    counts = {path: seen.weights[:, 0].size for path, seen in attentions.items()}
    kept = sorted(counts, key=counts.__getitem__)
    while sum(counts[path] for path in kept) > MAX_WEIGHTS:
        kept.pop()
    if not kept:
        raise ValueError(
            f"a report of these inputs would hold {sum(counts.values()):,} attention weights, and {MAX_WEIGHTS:,} is "
            "the most; give a shorter text, or call zoo.inspection.inspect in Python"
        )
    return {path: seen for path, seen in attentions.items() if path in kept}


def _map(path: str, seen: Attended, shown: Shown, whole: bool) -> dict[str, Any]:
    ours, source = _sides(path)
    queries, keys = ["(probe)"], _fitting(shown.tokens, source, seen.weights.shape[-1])
    if ours is not None:
        queries = _fitting(shown.tokens, ours, seen.weights.shape[-2])
    weights = seen.weights[:, shown.row]
    square = ours == source
    one = seen.weights[:, shown.row : shown.row + 1]
    return {
        "path": path,
        "name": _name(path),
        "queries": queries,
        "keys": keys,
        "pictured": shown.picture is not None and source == shown.picture.stack,
        "layers": seen.num_layers,
        "heads": seen.num_heads,
        "weights": _numbers(weights, 1.0),
        "entropy": np.round(entropy(one), _DIGITS).tolist(),
        "distance": np.round(mean_distance(one), _DIGITS).tolist() if square else None,
        "rollout": _numbers(rollout(one)[:, 0], 1.0) if square else None,
        **{name: _vectors(getattr(seen, name), shown.row) if whole else None for name in _VECTORS},
    }


def _sides(path: str) -> tuple[str | None, str]:
    """The stacks whose positions are a map's rows and columns; None: a learned query."""
    if path.endswith("head/pool/attention"):  # over what the last stack gives: models that pool so have one, an encoder
        return None, path.removesuffix("head/pool/attention") + "encoder"
    stack, _, kind = path.rpartition("/")
    return stack, stack if kind == "attention" else stack.removesuffix("decoder") + "encoder"


def _fitting(tokens: Mapping[str, Sequence[str]], stack: str, length: int) -> list[str]:
    """What stands at a stack's positions, by number where nobody says."""
    found = list(tokens.get(stack, map(str, range(1, length + 1))))
    if len(found) != length:
        raise ValueError(f"tokens[{stack!r}] has {len(found)} labels, and there are {length} positions; give one each")
    return found


_KINDS = {"attention": "self-attention", "cross_attention": "cross-attention", "pool": "pooling"}


def _name(path: str) -> str:
    """A path for a reader: decoder/cross_attention is the "decoder cross-attention"."""
    *stacks, kind = path.removesuffix("/attention" if path.endswith("pool/attention") else "").split("/")
    return " ".join([stack for stack in stacks if stack != "head"] + [_KINDS.get(kind, kind.replace("_", " "))])


def _vectors(array: np.ndarray | None, row: int) -> dict[str, Any] | None:
    """One row of the batch, in as many digits as its largest component has use for."""
    if array is None:
        return None
    finite = np.abs(array[:, row][np.isfinite(array[:, row])])
    return _numbers(array[:, row], float(finite.max(initial=0)))


def _numbers(array: np.ndarray, largest: float) -> dict[str, Any]:
    """An array as whole multiples of a power of ten that keeps four digits of the largest; null is not finite."""
    power = _DIGITS - max(math.ceil(math.log10(largest)) if largest > 0 else 0, -300)
    finite = np.isfinite(array)
    levels = np.round(np.where(finite, array, 0).astype(np.float64) * 10.0**power).astype(np.int64)
    data: list[int | None] = list(levels.reshape(-1).tolist())
    for place in np.flatnonzero(~finite.reshape(-1)):
        data[place] = None
    return {"shape": list(array.shape), "unit": 10.0**-power, "data": data}


def _ablation(ablation: Ablation, inspection: Inspection) -> dict[str, Any]:
    return {
        "measure": ablation.measure,
        "whole": round(ablation.whole, 6),
        "effects": {
            path: [[float(f"{effect:.4g}") for effect in layer] for layer in effects]
            for path, effects in ablation.effects.items()
            if path in inspection.attentions
        },
    }


def _lens(lens: Lens, shown: Shown, inspection: Inspection) -> dict[str, Any]:
    probabilities = lens.probabilities[:, shown.row]
    per_token = probabilities.ndim == 3
    stack = next((name for name in ("decoder", "encoder") if name in inspection.hidden_states), "")
    return {
        "columns": list(shown.tokens.get(stack, ())) if per_token else ["the whole input"],
        "answers": [[list(cell) for cell in layer] for layer in shown.answers],
        "probabilities": np.round(
            probabilities if per_token else probabilities[:, None], _DIGITS
        ).tolist(),
        "causal": stack == "decoder" and per_token,
    }  # fmt: skip


def _picture(picture: Picture) -> dict[str, Any]:
    pixels = np.asarray(picture.pixels, np.float64).transpose(1, 2, 0)
    low, high = pixels.min(), pixels.max()
    levels = np.round((pixels - low) * (255 / (high - low if high > low else 1))).astype(np.uint8)
    image = Image.fromarray(levels[..., 0] if levels.shape[-1] == 1 else levels[..., :3])
    file = io.BytesIO()
    image.save(file, "PNG")
    return {
        "source": "data:image/png;base64," + base64.b64encode(file.getvalue()).decode(),
        "rows": picture.grid[0],
        "columns": picture.grid[1],
        "first": picture.first,
        "map": f"{picture.stack}/attention",
    }
