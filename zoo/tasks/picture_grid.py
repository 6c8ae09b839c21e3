"""Pictures side by side under their captions, as one picture to look at."""

import functools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont

_SIDE = 160
"""Each picture is shown about as large, in whole pixels of its own."""
_GAP = 8
_LINE = 22


def draw_grid(rows: Sequence[tuple[str, UInt8[np.ndarray, "n 3 height width"]]], path: str | Path) -> Path:
    """Write a picture with a row of pictures for each caption, the caption above them."""
    size = rows[0][1].shape[-1]
    side = max(1, round(_SIDE / size)) * size
    columns = max(len(pictures) for _, pictures in rows)
    width = columns * (side + _GAP) + _GAP
    height = len(rows) * (side + _LINE + 2 * _GAP) + _GAP
    whole = Image.new("RGB", (max(width, 420), height), (236, 236, 236))
    pen = ImageDraw.Draw(whole)
    for number, (caption, pictures) in enumerate(rows):
        top = _GAP + number * (side + _LINE + 2 * _GAP)
        pen.text((_GAP, top), caption, fill=(20, 20, 20), font=_font())
        for column, picture in enumerate(pictures):
            shown = Image.fromarray(np.ascontiguousarray(picture.transpose(1, 2, 0)))
            shown = shown.resize((side, side), resample=Image.Resampling.NEAREST)
            whole.paste(shown, (_GAP + column * (side + _GAP), top + _LINE))
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        whole.save(path)
    except ValueError:  # Pillow knows no format of this name
        raise ValueError(f"{path} is no name of a picture; let it end in .png") from None
    return path


@functools.cache
def _font() -> ImageFont.FreeTypeFont:
    import matplotlib

    return ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf", 15)
