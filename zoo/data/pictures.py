"""A picture file to pixels."""

from pathlib import Path

import numpy as np
from PIL import Image


def open_picture(path: str | Path) -> Image.Image:
    """A picture in colours. ValueError where there is none."""
    try:
        return Image.open(path).convert("RGB")
    except OSError as error:
        raise ValueError(f"{path} is no picture that can be read: {error}") from None


def stretch(picture: Image.Image, size: int) -> np.ndarray:
    """Pixels [1, 3, size, size] in [-1, 1], for checkpoints that do not say how theirs are made."""
    pixels = np.asarray(picture.resize((size, size), resample=Image.Resampling.BILINEAR), np.float32)
    return (pixels / 127.5 - 1).transpose(2, 0, 1)[None]
