"""zoo_pictures: captions say what is drawn, and no held-out combination is in train."""

import random

import numpy as np
import pytest

from zoo.data import DataConfig, open_dataset
from zoo.data.builders import pictures
from zoo.data.builders.pictures import COLOURS, OBJECTS, Scene, Thing, draw_scene, is_held_out, render, write_pictures
from zoo.data.clusters import assign, fit_clusters
from zoo.data.pictures import as_levels, square


@pytest.fixture(scope="module")
def examples(tmp_path_factory):
    """Both splits of a small edition of the set, as a user opens it."""
    with pytest.MonkeyPatch.context() as patch:
        few = {("train", "seen"): 1200, ("validation", "seen"): 60, ("validation", "held_out"): 60}
        patch.setattr(pictures, "COUNTS", few)
        dataset = open_dataset(DataConfig(name="zoo_pictures", directory=str(tmp_path_factory.mktemp("tfds"))))
        return dataset, {split: [dataset.split(split)[i] for i in range(len(dataset.split(split)))]
                         for split in ("train", "validation")}  # fmt: skip


def combinations(example):
    return example["combination"].split(", ")


def test_train_has_no_held_out_combination_and_every_value(examples):
    dataset, splits = examples
    seen = {name for example in splits["train"] for name in combinations(example)}
    assert not any(is_held_out(name) for name in seen)
    for field, names in dataset.labels.items():
        if field != "part":
            assert {int(example[field]) for example in splits["train"]} == set(range(len(names))), field
    parts = dataset.classes("part")
    for example in splits["validation"]:
        held_out = [is_held_out(name) for name in combinations(example)]
        assert parts[example["part"]] == ("held_out" if any(held_out) else "seen")
    assert [sum(e["part"] == part for e in splits["validation"]) for part in (0, 1)] == [60, 60]


def test_the_rule_is_a_hash_that_leaves_every_value_in_train():
    held_out = {(colour, name) for colour in COLOURS for name in OBJECTS if is_held_out(f"{colour} {name}")}
    assert 0.1 < len(held_out) / (len(COLOURS) * len(OBJECTS)) < 0.2
    assert ("yellow", "A") in held_out and ("red", "A") not in held_out  # as everywhere and always
    assert all(any((colour, name) not in held_out for name in OBJECTS) for colour in COLOURS)
    assert all(any((colour, name) not in held_out for colour in COLOURS) for name in OBJECTS)


def test_fields_are_what_the_caption_says(examples):
    dataset, splits = examples
    for example in splits["validation"]:
        names = {field: dataset.classes(field)[example[field]] for field in dataset.labels}
        words = [names[f"{other}{field}"] for other in ("", "other_") for field in ("object", "colour", "style")]
        words += [names["size"], names["place"]]
        assert all(word in example["caption"] for word in words if word not in ("plain", "none", "medium"))
        assert (names["other_object"] == "none") == (names["size"] != "medium")
    assert len({example["caption"] for example in splits["train"]}) > 1000


def test_captions_are_english():
    heart = Thing(object="heart", colour="orange", style="plain")
    ring = Thing(object="circle", colour="blue", style="outlined")
    assert (
        Scene(things=(heart, ring), size="medium", place="above").caption
        == "an orange heart above an outlined blue circle"
    )
    letter = Thing(object="A", colour="red", style="bold")
    assert (
        Scene(things=(letter,), size="large", place="at the top left").caption == "a large bold red A at the top left"
    )


def test_pictures_show_colour_size_and_place():
    """Ink is measured: where it lies, how far it reaches, and what colour it has."""
    for index in range(200):
        rng = random.Random(index)
        scene = draw_scene(rng)
        if len(scene.things) == 2:
            continue
        ink = 255.0 - render(scene, rng)
        cover = ink.max(-1)
        rows, columns = np.nonzero(cover > 64)
        height, middle = np.ptp(rows) + 1, (np.ptp(columns) / 2 + columns.min(), np.ptp(rows) / 2 + rows.min())
        assert (height > 13) == (scene.size == "large"), scene
        for place, offset in zip(middle, pictures.PLACES[scene.place], strict=True):
            assert abs(place - 15.5 - 8 * offset) < 4, scene
        shade = 255 - ink[cover == cover.max()][0]
        nearest = min(COLOURS, key=lambda name: np.abs(shade - COLOURS[name]).sum())
        assert nearest == scene.things[0].colour, scene


def test_styles_differ_and_drawings_repeat():
    def draw(style, name="E"):
        things = (Thing(object=name, colour="black", style=style),)
        scene = Scene(things=things, size="large", place="in the centre")
        drawn = np.stack([render(scene, random.Random(seed)) for seed in range(8)])
        assert len({picture.tobytes() for picture in drawn}) == 8
        return 255.0 - drawn

    assert draw("bold").mean() > 1.3 * draw("plain").mean()
    assert draw("plain", "square").mean() > 2 * draw("outlined", "square").mean()
    first, again = (next(write_pictures("validation")) for _ in range(2))
    assert first["caption"] == again["caption"] and (first["image"] == again["image"]).all()


def test_any_picture_becomes_a_square():
    wide = np.zeros((10, 30, 3), np.uint8)
    wide[:, 10:20] = 200
    assert (square(wide, 5) == 200).all() and square(wide, 5).shape == (3, 5, 5)
    assert square(wide[..., 0], 4).shape == square(wide[..., :1], 4).shape == (3, 4, 4)
    exact = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    assert (as_levels(square(exact, 4)[None].astype(np.float32) / 127.5 - 1)[0] == exact).all()


def test_clusters_are_found_and_lost_ones_revived():
    rng = np.random.default_rng(0)
    middles = rng.normal(size=(12, 3)).astype(np.float32) * 10
    points = np.repeat(middles, 40, 0) + rng.normal(size=(480, 3)).astype(np.float32) * 0.05
    centres = fit_clusters(points, 12)
    nearest, distances = assign(points, centres)
    assert np.bincount(nearest, minlength=12).min() > 0 and distances.mean() < 0.05 * points.var(0).sum()
    with pytest.raises(ValueError, match="there are 2 different points and 3 centres"):
        fit_clusters(np.array([[0.0], [1.0], [1.0]]), 3)
