"""zoo_pictures: letters, digits and shapes of 32 by 32 pixels, drawn by Pillow with matplotlib's DejaVu fonts, with
captions: "a large bold red A at the top left", "a blue circle above an outlined green star".

A picture has one thing or two. A thing has a colour and a style; one that is alone also a size and a place. Its exact
place, height, tilt and shade are drawn at random, so that a caption has many pictures. In the fields of a picture of
one thing the other's are "none"; pictures of two have the size "medium", and how the things stand as their place.

The split is by combination of colour and object: a hash of "red A" says whether it is held out. No picture of train
shows a held-out combination; every colour, and every object, is there in others. Half of validation is new pictures of
combinations that train has, the other half shows a held-out one at least; the field `part` tells them apart.
"""

import functools
import hashlib
import math
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import PIL
import tensorflow_datasets as tfds
from PIL import Image, ImageDraw, ImageFont

from zoo.data.builders.embedded import EmbeddedBuilder

SIZE = 32
COLOURS = {
    "red": (215, 25, 35), "orange": (250, 135, 0), "yellow": (235, 210, 0), "green": (20, 155, 50),
    "cyan": (0, 190, 200), "blue": (30, 60, 215), "purple": (140, 30, 190), "black": (15, 15, 15),
}  # fmt: skip
SHAPES = ("circle", "square", "triangle", "star", "cross", "heart")
OBJECTS = (*"AEHKLTX", *"2347", *SHAPES)
STYLES = ("plain", "bold", "outlined")
"""Letters and digits are plain or bold; shapes are plain, which is filled, or outlined."""
HEIGHTS = {"small": 10.0, "medium": 13.0, "large": 15.5}
"""In pixels."""
PLACES = {
    "in the centre": (0, 0), "at the top left": (-1, -1), "at the top right": (1, -1), "at the bottom left": (-1, 1),
    "at the bottom right": (1, 1),
}  # fmt: skip
RELATIONS = {"left of": (-1, 0), "above": (0, -1)}
"""Where the first of two things stands; the other is on the opposite side."""
PARTS = ("seen", "held_out")
HELD_OUT = 0.15
COUNTS = {("train", "seen"): 30_000, ("validation", "seen"): 1_000, ("validation", "held_out"): 1_000}

_OFFSET = 8.0
"""From the middle of the picture to where a thing stands, in pixels, along each axis."""
_DRAWN = 4
"""Pictures are drawn so many times larger, and shrunk."""
_FONTS = {"plain": "DejaVuSans.ttf", "bold": "DejaVuSans-Bold.ttf"}
_CAP_HEIGHT = 0.729
"""Of an A, as a share of the font's size."""


@dataclass(frozen=True, kw_only=True)
class Thing:
    """What a picture shows."""

    object: str
    colour: str
    style: str

    @property
    def combination(self) -> str:
        """What may be held out, such as "red A"."""
        return f"{self.colour} {self.object}"


@dataclass(frozen=True, kw_only=True)
class Scene:
    """What a caption says."""

    things: tuple[Thing, ...]
    size: str
    place: str

    @property
    def is_held_out(self) -> bool:
        """Whether it shows a combination that train has not."""
        return any(is_held_out(thing.combination) for thing in self.things)

    @property
    def caption(self) -> str:
        """The words; "plain" and "medium" have none."""
        words = [[thing.style, thing.colour, thing.object] for thing in self.things]
        words = [[word for word in each if word != "plain"] for each in words]
        if len(words) == 1:
            return f"{_with_article([self.size, *words[0]])} {self.place}"
        return f"{_with_article(words[0])} {self.place} {_with_article(words[1])}"

    @property
    def fields(self) -> dict[str, str]:
        """An example's fields beside the picture."""
        first, *rest = self.things
        other = rest[0] if rest else Thing(object="none", colour="none", style="none")
        return {
            "caption": self.caption,
            "object": first.object,
            "colour": first.colour,
            "style": first.style,
            "other_object": other.object,
            "other_colour": other.colour,
            "other_style": other.style,
            "size": self.size,
            "place": self.place,
            "part": PARTS[self.is_held_out],
            "combination": ", ".join(thing.combination for thing in self.things),
        }


def is_held_out(combination: str) -> bool:
    """Whether no picture of train shows a colour and object such as "red A"."""
    return int.from_bytes(hashlib.sha256(combination.encode()).digest()[:4], "big") < HELD_OUT * 2**32


def draw_scene(rng: random.Random) -> Scene:
    """One thing or two, at random."""
    if rng.random() < 0.5:
        return Scene(things=(_draw_thing(rng),), size=rng.choice(("small", "large")), place=rng.choice((*PLACES,)))
    return Scene(things=(_draw_thing(rng), _draw_thing(rng)), size="medium", place=rng.choice((*RELATIONS,)))


def _draw_thing(rng: random.Random) -> Thing:
    name = rng.choice(OBJECTS)
    style = rng.choice(("plain", "outlined") if name in SHAPES else ("plain", "bold"))
    return Thing(object=name, colour=rng.choice((*COLOURS,)), style=style)


def render(scene: Scene, rng: random.Random) -> np.ndarray:
    """A picture of a scene, uint8 [SIZE, SIZE, 3], on white."""
    picture = Image.new("RGB", (SIZE, SIZE), (255, 255, 255))
    x, y = (PLACES | RELATIONS)[scene.place]
    for thing, side in zip(scene.things, (1, -1), strict=False):
        centre = tuple(SIZE / 2 + side * _OFFSET * offset + rng.uniform(-0.75, 0.75) for offset in (x, y))
        mask = _draw_mask(thing, HEIGHTS[scene.size] * rng.uniform(0.97, 1.03), centre, rng.uniform(-4, 4))
        shade = tuple(min(255, max(0, level + rng.randint(-4, 4))) for level in COLOURS[thing.colour])
        picture.paste(shade, mask=mask)
    return np.asarray(picture)


def _draw_mask(thing: Thing, height: float, centre: tuple[float, ...], degrees: float) -> Image.Image:
    """How much of each pixel a thing covers, from 0 to 255."""
    mask = Image.new("L", (SIZE * _DRAWN, SIZE * _DRAWN))
    pen = ImageDraw.Draw(mask)
    height, (x, y) = height * _DRAWN, (_DRAWN * place for place in centre)
    if thing.object in SHAPES:
        corners = [(x + height / 2 * right, y + height / 2 * down) for right, down in _outline(thing.object)]
        if thing.style == "outlined":
            pen.line([*corners, *corners[:2]], fill=255, width=round(1.5 * _DRAWN), joint="curve")
        else:
            pen.polygon(corners, fill=255)
    else:
        font = _font(thing.style, round(height / _CAP_HEIGHT))
        left, top, right, bottom = font.getbbox(thing.object)
        pen.text((x - (left + right) / 2, y - (top + bottom) / 2), thing.object, fill=255, font=font)
    return mask.rotate(degrees, resample=Image.Resampling.BILINEAR, center=(x, y)).reduce(_DRAWN)


@functools.cache
def _font(style: str, size: int) -> ImageFont.FreeTypeFont:
    import matplotlib

    return ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / _FONTS[style], size)


@functools.cache
def _outline(shape: str) -> tuple[tuple[float, float], ...]:
    """Corners of a shape about (0, 0), to the right and down, within -1 and 1 or little beyond."""

    def around(count: int, *radii: float, turn: float = 0.0):
        angles = [math.tau * (index / count + turn) for index in range(count)]
        return tuple(
            (radii[i % len(radii)] * math.sin(angle), -radii[i % len(radii)] * math.cos(angle))
            for i, angle in enumerate(angles)
        )

    thirds = (
        (-1, 3),
        (1, 3),
        (1, 1),
        (3, 1),
        (3, -1),
        (1, -1),
        (1, -3),
        (-1, -3),
        (-1, -1),
        (-3, -1),
        (-3, 1),
        (-1, 1),
    )
    turns = [math.tau * index / 40 for index in range(40)]
    return {
        "circle": around(40, 1.0),
        "square": ((-0.9, -0.9), (0.9, -0.9), (0.9, 0.9), (-0.9, 0.9)),
        "triangle": ((0.0, -1.0), (1.05, 0.9), (-1.05, 0.9)),
        "star": around(10, 1.15, 0.5),
        "cross": tuple((x / 3, y / 3) for x, y in thirds),
        "heart": tuple(
            (math.sin(t) ** 3, -(13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)) / 15)
            for t in turns
        ),
    }[shape]


def write_pictures(split: str) -> Iterator[dict[str, Any]]:
    """The examples of "train" or "validation"."""
    for part in PARTS:
        for index in range(COUNTS.get((split, part), 0)):
            rng = random.Random(f"{split} {part} {index}")
            scene = draw_scene(rng)
            while PARTS[scene.is_held_out] != part:
                scene = draw_scene(rng)
            yield {"image": render(scene, rng), **scene.fields}


def _with_article(words: list[str]) -> str:
    return " ".join(["an" if words[0][0] in "aeiou" else "a", *words])


class ZooPictures(EmbeddedBuilder):
    """Captioned pictures of letters, digits and shapes, with what the caption says as classes."""

    VERSION = tfds.core.Version(".".join([*PIL.__version__.split("."), "0", "0"][:3]))
    BUILDER_CONFIGS: ClassVar = [tfds.core.BuilderConfig(name="edition_3", version=VERSION)]
    FEATURES: ClassVar = {
        "image": tfds.features.Tensor(shape=(SIZE, SIZE, 3), dtype=np.uint8),
        "caption": tfds.features.Text(),
        "object": tfds.features.ClassLabel(names=list(OBJECTS)),
        "colour": tfds.features.ClassLabel(names=list(COLOURS)),
        "style": tfds.features.ClassLabel(names=list(STYLES)),
        "other_object": tfds.features.ClassLabel(names=["none", *OBJECTS]),
        "other_colour": tfds.features.ClassLabel(names=["none", *COLOURS]),
        "other_style": tfds.features.ClassLabel(names=["none", *STYLES]),
        "size": tfds.features.ClassLabel(names=list(HEIGHTS)),
        "place": tfds.features.ClassLabel(names=[*PLACES, *RELATIONS]),
        "part": tfds.features.ClassLabel(names=list(PARTS)),
        "combination": tfds.features.Text(),
    }

    def _generate_examples(self, split):
        yield from enumerate(write_pictures(split))
