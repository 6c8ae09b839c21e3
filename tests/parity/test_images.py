"""Images against the reference library, run here: sizes other than the trained one, hidden patches, preprocessing."""

import json

import jax
import numpy as np
import pytest
import small

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
Image = pytest.importorskip("PIL.Image")
pytestmark = pytest.mark.peers

import reference

import zoo
from zoo.data.images import ImageProcessor


@pytest.mark.parametrize("height_and_width", [(24, 24), (13, 22)])
@pytest.mark.parametrize(
    ("model_type", "head", "options"),
    [
        ("dinov2", "base", {}),
        ("beit", "base", {}),
        ("beit", "image_classification", {}),
        ("vit", "base", {"interpolate_pos_encoding": True}),
    ],
)
def test_images_of_another_size(model_type, head, options, height_and_width, tmp_path):
    if (model_type, height_and_width) == ("beit", (13, 22)):
        height_and_width = (12, 20)
    model = reference.make_model(model_type, head, tmp_path)
    pixels = np.random.default_rng(0).standard_normal((2, 3, *height_and_width)).astype(np.float32)
    with torch.no_grad():
        expected = model(torch.tensor(pixels), **options)
    with jax.default_matmul_precision("highest"):
        found = zoo.load(tmp_path)(pixel_values=pixels)
    for name in ("logits", "last_hidden_state", "pooler_output"):
        wanted = getattr(expected, name, None)
        if wanted is not None:
            np.testing.assert_allclose(getattr(found, name), wanted, atol=1e-4)


@pytest.mark.parametrize("model_type", ["dinov2", "beit"])
def test_hidden_patches(model_type, tmp_path):
    model = reference.make_model(model_type, "base", tmp_path)
    bundle = zoo.load(tmp_path)
    hidden = np.random.default_rng(1).random((2, 16)) < 0.4
    inputs = small.make_pixels(bundle.config)
    with torch.no_grad():
        expected = model(**reference.tensors(inputs), bool_masked_pos=torch.tensor(hidden)).last_hidden_state
    found = bundle(**inputs, bool_masked_pos=hidden).last_hidden_state
    np.testing.assert_allclose(found, expected, atol=1e-4)


PROCESSORS = {
    "ViT": {"do_normalize": True, "do_resize": True, "size": 30, "image_mean": [0.5] * 3, "image_std": [0.5] * 3},
    "DeiT": {"size": 36, "crop_size": 30, "do_center_crop": True, "resample": 3},
    "Beit": {"size": {"height": 28, "width": 32}, "resample": 2},
    "Siglip": {"size": {"height": 30, "width": 30}},
    "CLIP": {"size": 30, "crop_size": 34, "do_center_crop": True, "do_convert_rgb": True},
    "Bit": {"size": {"shortest_edge": 33}, "crop_size": {"height": 28, "width": 28}, "do_convert_rgb": True},
    "ImageGPT": {"size": 8, "clusters": np.random.default_rng(3).uniform(-1, 1, (20, 3)).tolist()},
}


@pytest.mark.parametrize("kind", PROCESSORS)
@pytest.mark.parametrize("form", ["pil", "array", "fractions"])
def test_preprocessing(kind, form, tmp_path):
    named = {"feature_extractor_type": f"{kind}FeatureExtractor"} if form != "array" else {}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(PROCESSORS[kind] | named))
    model_type = "dinov2" if kind == "Bit" else kind.lower()
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    levels = np.random.default_rng(0).integers(0, 256, (2, 41, 57, 3), dtype=np.uint8)
    # Smooth, as photographs are.
    levels = np.stack([np.asarray(Image.fromarray(x).resize((57, 41), box=(0, 0, 9, 7))) for x in levels])
    pictures = {
        "pil": [Image.fromarray(x) for x in levels],
        "array": list(levels.transpose(0, 3, 1, 2)),
        "fractions": [np.float32(x / 255) for x in levels],
    }[form]
    theirs = getattr(transformers.models, kind.lower())
    theirs = getattr(theirs, f"{kind}ImageProcessorPil").from_pretrained(tmp_path)
    expected = theirs(pictures, return_tensors="np")
    found = ImageProcessor.from_folder(tmp_path)(pictures)
    assert found.keys() == expected.keys()
    for name, value in found.items():
        np.testing.assert_allclose(value, expected[name], atol=1e-5)
