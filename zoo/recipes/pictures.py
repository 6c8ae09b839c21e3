"""A picture file to `pixel_values`, as a checkpoint's preprocessor_config.json says."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image


def read_picture(path: str | Path, recipe: Mapping[str, Any], image_size: int) -> np.ndarray:
    """Pixels [1, 3, height, width] of a picture: resized, cut to the middle, scaled and normalised.

    Args:
        path: anything that Pillow opens.
        recipe: preprocessor_config.json; empty: stretched to `image_size`, mean and deviation 0.5.
        image_size: side of the square that the model reads, where the recipe has no size.

    Raises:
        ValueError: no picture.
    """
    try:
        picture = Image.open(path).convert("RGB")
    except OSError as error:
        raise ValueError(f"{path} is no picture that can be read: {error}") from None
    size = recipe.get("size") or image_size
    cut = recipe.get("crop_size") or size
    if recipe.get("do_resize", True):
        picture = picture.resize(_resized(picture.size, size), resample=recipe.get("resample", 2))
    if recipe.get("do_center_crop", False):
        height, width = _sides(cut)
        left, top = (picture.width - width) // 2, (picture.height - height) // 2
        picture = picture.crop((left, top, left + width, top + height))
    pixels = np.asarray(picture, np.float32)
    if recipe.get("do_rescale", True):
        pixels = pixels * recipe.get("rescale_factor", 1 / 255)
    if recipe.get("do_normalize", True):
        pixels = (pixels - recipe.get("image_mean", [0.5] * 3)) / recipe.get("image_std", [0.5] * 3)
    return pixels.transpose(2, 0, 1)[None].astype(np.float32)


def _sides(size: int | Mapping[str, int]) -> tuple[int, int]:
    """Height and width."""
    if isinstance(size, int):
        return size, size
    side = size.get("shortest_edge", 0)
    return size.get("height", side), size.get("width", side)


def _resized(found: tuple[int, int], size: int | Mapping[str, int]) -> tuple[int, int]:
    """Width and height to resize to: both, or in proportion where only the shorter side is given."""
    if isinstance(size, int) or "shortest_edge" not in size:
        height, width = _sides(size)
        return width, height
    short, least = size["shortest_edge"], min(found)
    width, height = (short if side == least else int(short * side / least) for side in found)
    return width, height
