"""Pictures to pixels, and pixels to pictures."""

from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps


def open_picture(path: str | Path) -> Image.Image:
    """A picture in colours, upright. ValueError where there is none."""
    try:
        return upright(Image.open(path)).convert("RGB")
    except OSError as error:
        raise ValueError(f"{path} is no picture that can be read: {error}") from None


def upright(picture: Any) -> Any:
    """A PIL image as its EXIF data say it is to be looked at; telephones store photos on their side."""
    return ImageOps.exif_transpose(picture) if isinstance(picture, Image.Image) else picture


def stretch(picture: Image.Image, size: int) -> np.ndarray:
    """Pixels [1, 3, size, size] in [-1, 1], for checkpoints that do not say how theirs are made."""
    pixels = np.asarray(picture.resize((size, size), resample=Image.Resampling.BILINEAR), np.float32)
    return as_pixels(pixels).transpose(2, 0, 1)[None]


def square(picture: Any, size: int) -> UInt8[np.ndarray, "3 size size"]:
    """The middle of a picture, as large a square as there is, shrunk or stretched to `size`, in colours.

    `picture` is a PIL image, a `PictureFile`, or an array [height, width(, 1 or 3)] of 0 to 255.
    """
    if not hasattr(picture, "convert"):
        levels = np.asarray(picture, np.uint8)
        if levels.shape == (size, size, 3):
            return levels.transpose(2, 0, 1)
        picture = Image.fromarray(levels[..., 0] if levels.ndim == 3 and levels.shape[-1] == 1 else levels)
    whole = upright(picture).convert("RGB")
    side = min(whole.size)
    left, top = ((length - side) // 2 for length in whole.size)
    middle = whole.crop((left, top, left + side, top + side))
    return np.asarray(middle.resize((size, size), resample=Image.Resampling.BICUBIC)).transpose(2, 0, 1)


def as_pixels(levels: Any) -> Any:
    """Whole levels, of NumPy or JAX, as pixels from -1 to 1."""
    return levels.astype(np.float32) / 127.5 - 1


def as_levels(pixels: Any) -> UInt8[np.ndarray, "B height width 3"]:
    """Pixels [B, 3, height, width] from -1 to 1 as pictures of whole levels."""
    levels = np.round((np.asarray(pixels, np.float32) + 1) * 127.5)
    return np.clip(levels, 0, 255).astype(np.uint8).transpose(0, 2, 3, 1)
