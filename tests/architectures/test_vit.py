"""ViT folders as they are found: without a pooler, without a prefix, with a side written twice."""

import json
from pathlib import Path

import numpy as np
import pytest
from parity import small

import zoo
from zoo.architectures import Fields, find_architecture
from zoo.formats.safetensors import SafetensorsFile, write_file


def rewrite(folder: Path, fields: dict | None = None, keep=lambda name: True, rename=lambda name: name) -> Path:
    """Change config.json and drop or rename tensors."""
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | (fields or {})))
    file = SafetensorsFile(folder / "model.safetensors")
    kept = {rename(name): file.read(name) for name in file.shapes if keep(name)}
    entries = [(name, x.shape, x.dtype, lambda x=x: x) for name, x in kept.items()]
    write_file(folder / "model.safetensors", entries)
    return folder


@pytest.fixture
def folder(tmp_path):
    with np.load(small.RECORDED / "vit-base.npz") as file:
        manifest = json.loads(file["manifest"].tobytes())
    shapes = {name: tuple(shape) for name, shape in manifest["shapes"].items()}
    return small.write_folder(tmp_path / "checkpoint", manifest["config"], shapes)


def test_a_base_model_may_lack_the_pooler(folder):
    whole = zoo.load(folder)
    inputs = small.make_pixels(whole.config)
    expected = whole(**inputs).last_hidden_state
    bundle = zoo.load(rewrite(folder, keep=lambda name: not name.startswith("pooler.")))
    output = bundle(**inputs)
    assert output.pooler_output is None
    np.testing.assert_array_equal(output.last_hidden_state, expected)


def test_prefix_and_sides_may_be_written_in_full(folder):
    expected = zoo.load(folder)
    inputs = small.make_pixels(expected.config)
    sides = {"image_size": [16, 16], "patch_size": [4, 4]}
    bundle = zoo.load(rewrite(folder, sides, rename=lambda name: f"vit.{name}"))
    np.testing.assert_array_equal(bundle(**inputs).pooler_output, expected(**inputs).pooler_output)


def test_an_oblong_image_is_refused(folder):
    with pytest.raises(zoo.CheckpointError, match="square"):
        zoo.load(rewrite(folder, {"image_size": [16, 12]}))


@pytest.mark.parametrize(("width", "ratio"), [(1536, 4), (32, 4), (24, 2), (40, 2.7)])
def test_the_ratio_of_a_gated_mlp_is_written_back(width, ratio):
    """DINOv2's widths are rounded up to eights."""
    architecture = find_architecture("dinov2")
    fields = {"hidden_size": width, "num_attention_heads": 4, "mlp_ratio": ratio, "use_swiglu_ffn": True}
    config = architecture.config_from_hf(Fields(fields, "config.json"), "base")
    written = architecture.config_to_hf(config)
    assert architecture.config_from_hf(Fields(written, "config.json"), "base") == config
    assert isinstance(written["mlp_ratio"], int) == isinstance(ratio, int)
