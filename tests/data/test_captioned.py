"""A folder of pictures with captions: read as it is written, and every mistake named by file and line."""

import json

import numpy as np
import pytest
from PIL import Image

from zoo.data import DataConfig, open_dataset
from zoo.data.pictures import open_picture, square
from zoo.data.sources import read_field


@pytest.fixture
def folder(tmp_path):
    """Twenty pictures of one grey level each, without their captions."""
    for level in range(20):
        Image.new("RGB", (12, 8), (level * 10,) * 3).save(tmp_path / f"{level}.png")
    return tmp_path


def write_metadata(folder, **changes):
    rows = [{"file_name": f"{level}.png", "caption": f"grey {level}", "kind": "grey"} for level in range(20)]
    rows[3] |= changes
    (folder / "metadata.jsonl").write_text("\n".join(json.dumps(row) for row in rows) + "\n\n")


def open_path(folder, **options):
    dataset = open_dataset(DataConfig(path=str(folder), validation_fraction=0.2, **options))
    return [dataset.split(split) for split in ("train", "validation")]


@pytest.mark.parametrize("kind", ["metadata.jsonl", "captions.tsv"])
def test_pictures_and_captions_belong_together(folder, kind):
    if kind == "metadata.jsonl":
        write_metadata(folder)
    else:
        (folder / kind).write_text("".join(f"{level}.png\tgrey {level}\r\n" for level in range(20)))
    train, validation = open_path(folder)
    assert len(train) + len(validation) == 20 and len(validation) > 0
    for example in [*train, *validation]:
        level = int(example["caption"].split()[1])
        assert example["name"] == f"{level}.png"
        assert (square(example["image"], 4) == level * 10).all()
    again = open_path(folder)[1]
    assert [example["caption"] for example in again] == [example["caption"] for example in validation]


def test_photos_that_lie_on_their_side_are_put_upright(folder):
    """As telephones store them: the pixels one way, and which way is up in the EXIF data."""
    levels = np.zeros((40, 60, 3), np.uint8)
    levels[:, :20] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # the first row is the right side
    Image.fromarray(levels).save(folder / "3.jpg", exif=exif, quality=95)
    write_metadata(folder, file_name="3.jpg")
    (folder / "3.png").unlink()
    picture = next(e["image"] for split in open_path(folder) for e in split if e["name"] == "3.jpg").convert("RGB")
    assert picture.size == (40, 60) and open_picture(folder / "3.jpg").size == (40, 60)
    for whole in (picture, open_picture(folder / "3.jpg")):
        assert np.asarray(whole)[:15].min() > 200 and np.asarray(whole)[25:].max() < 50
    assert square(Image.open(folder / "3.jpg"), 40)[0, :5].min() > 200


def test_pictures_with_classes_need_no_captions(folder):
    rows = [{"file_name": f"{row}.png", "label": "dark" if row < 10 else "bright"} for row in range(20)]
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    dataset = open_dataset(DataConfig(path=str(folder), validation_fraction=0.2))
    assert dataset.classes("label") == ("bright", "dark")
    assert {row["label"] for row in dataset.split("validation")} <= {"bright", "dark"}


@pytest.mark.parametrize("is_split", [False, True])
def test_a_folder_a_class(folder, is_split):
    for row in range(20):
        parts = ("validation" if row % 5 == 0 else "train") if is_split else "", "dark" if row < 10 else "bright"
        place = folder.joinpath(*filter(None, parts))
        place.mkdir(parents=True, exist_ok=True)
        (folder / f"{row}.png").rename(place / f"{row}.png")
    train, validation = open_path(folder)
    found = {row["name"]: row["label"] for row in [*train, *validation]}
    assert found == {f"{label}/{row}.png": label for row in range(20) for label in ["dark" if row < 10 else "bright"]}
    assert len(validation) == 4 if is_split else 0 < len(validation) < 10
    (folder / ("train" if is_split else "") / "stray.png").write_bytes(next(folder.rglob("3.png")).read_bytes())
    with pytest.raises(ValueError, match=r"stray.png' has neither caption nor class: write metadata.jsonl, or put"):
        open_path(folder)


def test_split_folders_and_other_keys(folder):
    for split in ("train", "validation"):
        (folder / split).mkdir()
        Image.new("L", (5, 5), 7).save(folder / split / "a.jpg")
        (folder / split / "metadata.jsonl").write_text(json.dumps({"file_name": "a.jpg", "text": split}))
    train, validation = open_path(folder, caption_key="text")
    assert (train[0]["text"], validation[0]["text"]) == ("train", "validation")
    (folder / "validation" / "metadata.jsonl").unlink()
    with pytest.raises(ValueError, match="has captions in train and none in validation"):
        open_path(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"file_name": "99.png"}, r"metadata\.jsonl' line 4: there is no picture '.*99\.png'"),
        ({"file_name": "metadata.jsonl"}, r"metadata\.jsonl' line 4: '.*' is no picture that can be read"),
        ({"file_name": 7}, r"line 4 has no text field 'file_name'; it has caption, file_name, kind: name the picture"),
        ({"caption": " "}, r"line 4 has no text field 'caption'.*data\.caption_key"),
    ],
)
def test_bad_rows_are_named(folder, changes, message):
    write_metadata(folder, **changes)
    with pytest.raises(ValueError, match=message):
        open_path(folder)


def test_bad_files_are_named(folder):
    (folder / "metadata.jsonl").write_text('{"file_name": "0.png", "caption": "x"}\n{"file_name"\n')
    with pytest.raises(ValueError, match=r"line 2 is not JSON: .* at column"):
        open_path(folder)
    (folder / "metadata.jsonl").write_text('{"file_name": "0.png", "caption": "x"}\n[1]\n')
    with pytest.raises(ValueError, match="line 2 is a JSON list, not an object"):
        open_path(folder)
    (folder / "metadata.jsonl").write_text("\n")
    with pytest.raises(ValueError, match="is empty: there is nothing to train on"):
        open_path(folder)
    (folder / "captions.tsv").write_text("0.png\n")
    with pytest.raises(ValueError, match=r"holds both metadata\.jsonl and captions\.tsv"):
        open_path(folder)
    (folder / "metadata.jsonl").unlink()
    with pytest.raises(ValueError, match=r"captions\.tsv' line 1 is '0\.png', not a picture's file, one tab"):
        open_path(folder)


def test_a_damaged_picture_is_named_when_it_is_decoded(folder):
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3)).astype(np.uint8)
    Image.fromarray(noise).save(folder / "3.png")
    (folder / "3.png").write_bytes((folder / "3.png").read_bytes()[:4000])
    write_metadata(folder)
    damaged = next(e for split in open_path(folder) for e in split if e["name"] == "3.png")
    with pytest.raises(ValueError, match=r"metadata\.jsonl' line 4: the picture '.*3\.png' cannot be read"):
        square(damaged["image"], 4)


def test_captions_inside_of_nested_fields():
    """As coco_captions of TFDS has them: several for a picture."""
    example = {"captions": {"id": [1, 2], "text": ["a dog", "an animal"]}}
    assert read_field(example, "captions/text") == "a dog"
    with pytest.raises(ValueError, match="no text field 'captions/words'"):
        read_field(example, "captions/words")
