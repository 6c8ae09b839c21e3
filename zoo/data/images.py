"""Pictures to `pixel_values`: resize, crop, rescale and normalise, as preprocessor_config.json says.

The steps and their rounding are those of the reference library's Pillow processors: pictures are resized in whole grey
levels, by Pillow. Pictures for tasks other than encoding (segments, boxes, video) are left out.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int

Picture = Any
"""A PIL image, or an array [height, width], [height, width, C] or [C, height, width]."""

_HALF = (0.5, 0.5, 0.5)
_CLIP = {
    "resample": 3,
    "size": {"shortest_edge": 224},
    "do_center_crop": True,
    "crop_size": 224,
    "image_mean": (0.48145466, 0.4578275, 0.40821073),
    "image_std": (0.26862954, 0.26130258, 0.27577711),
}
_DEFAULTS: dict[str, dict[str, Any]] = {
    "ViT": {},
    "ImageGPT": {"size": 256},
    "DeiT": {"resample": 3, "size": 256, "do_center_crop": True},
    "Beit": {"resample": 3},
    "Siglip": {"resample": 3},
    "CLIP": _CLIP,
    "Bit": _CLIP,
}
"""What files leave out, by the kind of processor, where it is not what `ImageProcessor` has."""
_OF_MODEL = {"vit": "ViT", "imagegpt": "ImageGPT", "deit": "DeiT", "beit": "Beit", "dinov2": "Bit", "clip": "CLIP"}
_OF_MODEL |= {"clip_vision_model": "CLIP", "siglip": "Siglip", "siglip_vision_model": "Siglip"}
"""The kind where a file does not say it, as the first ViTs' do not, by config.json's model_type."""


@dataclass(frozen=True, kw_only=True)
class ImageProcessor:
    """The preprocessing of a checkpoint; call it on pictures."""

    size: tuple[int, int] | int | None = (224, 224)
    """Height and width, or the length of the shorter side; None: pictures keep their size."""
    resample: int = 2
    """Pillow's number of the filter: 0 nearest, 1 Lanczos, 2 bilinear, 3 bicubic."""
    crop: tuple[int, int] | None = None
    """Height and width that are cut from the middle; what a picture lacks is black."""
    scale: float | None = 1 / 255
    """Multiplies grey levels."""
    mean: Sequence[float] | None = _HALF
    """Subtracted from each channel, before `std` divides it."""
    std: Sequence[float] = _HALF
    clusters: np.ndarray | None = None
    """Colours [V, 3]: pictures become the ids of the nearest ones (ImageGPT)."""

    @classmethod
    def from_folder(cls, folder: str | Path) -> "ImageProcessor":
        """Read a checkpoint's preprocessor_config.json, or processor_config.json.

        Raises ValueError where there is none, or it is of a kind that zoo does not know.
        """
        path = Path(folder) / "preprocessor_config.json"
        fields = json.loads(path.read_text()) if path.exists() else {}
        whole = Path(folder) / "processor_config.json"
        if not fields and whole.exists():
            fields, path = json.loads(whole.read_text()).get("image_processor", {}), whole
        if not fields:
            raise ValueError(f"{folder} has no preprocessor_config.json; make pixel_values yourself")
        name = fields.get("image_processor_type") or fields.get("feature_extractor_type")
        config = Path(folder) / "config.json"
        if name is None and config.exists():
            name = f"{_OF_MODEL.get(json.loads(config.read_text()).get('model_type'))}ImageProcessor"
        kind = next((kind for kind in _DEFAULTS if str(name).startswith((f"{kind}Image", f"{kind}Feature"))), None)
        if kind is None:
            raise ValueError(f"{path}: image_processor_type is {name}; zoo knows those of {', '.join(_DEFAULTS)}")
        known = {key: value for key, value in fields.items() if value is not None}
        return cls._from_fields(_DEFAULTS[kind] | known, square=kind not in ("CLIP", "Bit"))

    @classmethod
    def _from_fields(cls, fields: dict[str, Any], square: bool) -> "ImageProcessor":
        """`square` says what a single number in `size` means."""
        size = fields.get("size", 224)
        size = (size if square else {"shortest_edge": size}) if isinstance(size, int) else size
        shorter = size.get("shortest_edge") if isinstance(size, dict) else None
        if shorter is not None and size.get("longest_edge") is not None:
            raise ValueError(f"size is {size}; zoo resizes to a shortest_edge, or to height and width")
        clusters = fields.get("clusters")
        return cls(
            size=(shorter or _sides(size)) if fields.get("do_resize", True) else None,
            resample=fields.get("resample", 2),
            crop=_sides(fields.get("crop_size", 224)) if fields.get("do_center_crop", False) else None,
            scale=fields.get("rescale_factor", 1 / 255) if fields.get("do_rescale", True) else None,
            mean=fields.get("image_mean", _HALF) if fields.get("do_normalize", True) else None,
            std=fields.get("image_std", _HALF),
            clusters=None if clusters is None or not fields.get("do_color_quantize", True) else np.array(clusters),
        )

    def __call__(
        self, images: Picture | Sequence[Picture]
    ) -> dict[str, Float[np.ndarray, "B C height width"] | Int[np.ndarray, "B T"]]:
        """`pixel_values` of a picture or of several, or `input_ids` where pictures become colours."""
        if not isinstance(images, list | tuple):
            images = [images]
        pixels = np.stack([self._process(_channels_first(image)) for image in images])
        if self.clusters is None:
            return {"pixel_values": pixels}
        colours = pixels.transpose(0, 2, 3, 1).reshape(len(images), -1, 3)
        distances = np.square(self.clusters).sum(1) - 2 * colours @ self.clusters.T
        return {"input_ids": distances.argmin(-1).astype(np.int32)}

    def _process(self, image: np.ndarray) -> np.ndarray:
        """One picture [C, height, width]."""
        if self.size is not None:
            image = _resize(image, _target(self.size, image.shape[1:]), self.resample)
        if self.crop is not None:
            image = _crop(image, *self.crop)
        if self.scale is not None:
            image = (image.astype(np.float64) * self.scale).astype(np.float32)
        image = image.astype(np.float32)
        if self.mean is not None:
            mean, std = (np.asarray(values, np.float32).reshape(-1, 1, 1) for values in (self.mean, self.std))
            image = (image - mean) / std
        return image


def _sides(size: Any) -> tuple[int, int]:
    """Height and width as files write them: a number, two, or an object."""
    if isinstance(size, int):
        return size, size
    height, width = (size["height"], size["width"]) if isinstance(size, dict) else size
    return height, width


def _channels_first(image: Picture) -> np.ndarray:
    """A picture as [C, height, width]; PIL images become upright, and red, green and blue."""
    if hasattr(image, "convert"):
        from zoo.data.pictures import upright

        return np.asarray(upright(image).convert("RGB")).transpose(2, 0, 1)
    array = np.asarray(image)
    if array.ndim == 2:
        return array[None]
    if array.ndim != 3 or not {array.shape[0], array.shape[-1]} & {1, 3, 4}:
        raise ValueError(f"a picture has shape {array.shape}; give [height, width, 3] or [3, height, width]")
    return array if array.shape[0] in (1, 3) else array.transpose(2, 0, 1)


def _target(size: tuple[int, int] | int, shape: tuple[int, ...]) -> tuple[int, int]:
    """Height and width after resizing; a single number is the shorter side's, and the proportions stay."""
    if not isinstance(size, int):
        return size
    height, width = shape
    longer = int(size * max(height, width) / min(height, width))
    return (longer, size) if width <= height else (size, longer)


def _resize(image: np.ndarray, size: tuple[int, int], resample: int) -> np.ndarray:
    """Resize by Pillow, in whole grey levels; fractions of one go through those too."""
    from PIL import Image

    fractions = image.dtype != np.uint8 and not np.allclose(image, image.astype(int))
    if image.min() < 0 or image.max() > (1 if fractions else 255):
        raise ValueError(f"a picture has values from {image.min()} to {image.max()}; give 0 to 255, or 0.0 to 1.0")
    levels = (image.astype(np.float64) * 255).astype(np.float32) if fractions else image
    levels = levels.astype(np.uint8).transpose(1, 2, 0)
    picture = Image.fromarray(levels[..., 0] if levels.shape[-1] == 1 else levels)
    resized = np.asarray(picture.resize((size[1], size[0]), resample=Image.Resampling(resample)))
    resized = (resized[..., None] if resized.ndim == 2 else resized).transpose(2, 0, 1)
    return (resized.astype(np.float64) / 255).astype(np.float32) if fractions else resized


def _crop(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """The middle of a picture, on black where it is smaller."""
    for axis, wanted in ((1, height), (2, width)):
        have = image.shape[axis]
        if have < wanted:
            before = -(-(wanted - have) // 2)
            padding = [(0, 0)] * 3
            padding[axis] = (before, wanted - have - before)
            image = np.pad(image, padding)
        else:
            start = (have - wanted) // 2
            image = image.take(range(start, start + wanted), axis)
    return image
