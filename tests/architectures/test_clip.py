"""CLIP folders as they are found: towers inside the whole, old names of fields, buffers, the legacy end of text."""

import json
from pathlib import Path

import numpy as np
import pytest
from parity import small

import zoo
from zoo.formats.safetensors import SafetensorsFile, write_file


@pytest.fixture
def folder(tmp_path) -> Path:
    with np.load(small.RECORDED / "clip-base.npz") as file:
        manifest = json.loads(file["manifest"].tobytes())
    shapes = {name: tuple(shape) for name, shape in manifest["shapes"].items()}
    return small.write_folder(tmp_path / "checkpoint", manifest["config"], shapes)


def rewrite(folder: Path, change) -> Path:
    """Change config.json in place."""
    fields = json.loads((folder / "config.json").read_text())
    change(fields)
    (folder / "config.json").write_text(json.dumps(fields))
    return folder


def test_towers_of_the_whole(folder):
    whole = zoo.load(folder)
    inputs = small.make_inputs(whole)["padded"]
    both = whole(**inputs)
    pixels = {"pixel_values": inputs.pop("pixel_values")}
    for head, own, name in (("text_embedding", inputs, "text_embeds"), ("image_embedding", pixels, "image_embeds")):
        bundle = zoo.load(folder, head=head)
        found = np.array(getattr(bundle(**own), name))
        found /= np.linalg.norm(found, axis=-1, keepdims=True)
        np.testing.assert_allclose(found, getattr(both, name), atol=1e-5)
        np.testing.assert_allclose(getattr(whole(**own), name), getattr(both, name), atol=1e-5)
        again = zoo.load(zoo.save(bundle, folder.parent / head))
        np.testing.assert_array_equal(getattr(again(**own), name), getattr(bundle(**own), name))
    assert zoo.load(folder, head="text").config.head.projection is None
    with pytest.raises(ValueError, match="image_embedding"):
        zoo.load(folder, head="pictures")


def test_old_files_repeat_the_towers_and_keep_position_ids(folder):
    expected = zoo.load(folder)

    def repeat(fields):
        fields["text_config_dict"] = fields.pop("text_config")
        fields["text_config"] = {"hidden_size": 512}
        fields["vision_config_dict"] = None

    rewrite(folder, repeat)
    file = SafetensorsFile(folder / "model.safetensors")
    tensors = {name: file.read(name) for name in file.shapes}
    tensors["text_model.embeddings.position_ids"] = np.arange(40)[None]
    tensors["vision_model.embeddings.position_ids"] = np.arange(17)[None]
    write_file(folder / "model.safetensors", [(n, x.shape, x.dtype, lambda x=x: x) for n, x in tensors.items()])
    bundle = zoo.load(folder)
    assert bundle.config == expected.config


def test_the_legacy_end_of_text_is_the_highest_id(folder):
    def legacy(fields):
        fields["text_config"]["eos_token_id"] = 2

    bundle = zoo.load(rewrite(folder, legacy), head="text")
    ids = np.array([[7, 98, 9, 9, 9]])
    output = bundle(input_ids=ids)
    np.testing.assert_allclose(output.pooler_output, output.last_hidden_state[:, 1], atol=1e-6)
    assert json.loads((zoo.save(bundle, folder.parent / "saved") / "config.json").read_text())["eos_token_id"] == 2
