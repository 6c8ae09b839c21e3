"""Pictures to classes: the loss from its definition, what training does to pictures, and what a user sees."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from zoo.data import DataConfig, Dataset
from zoo.tasks.image_classification import ImageClassificationConfig
from zoo.tasks.report import Question

CLASSES = ("dark", "light", "other", "more", "others", "most")


class Output:
    aux_loss = 0.0

    def __init__(self, logits):
        self.logits = logits


def mean_grey(params, pixel_values, dropout_rng=None):
    """A model that knows dark from light."""
    del params, dropout_rng
    light = pixel_values.mean((1, 2, 3))
    return Output(jnp.stack([-light, light, *[jnp.full_like(light, -5.0)] * 4], -1))


def make(count: int = 10, **options):
    rng = np.random.default_rng(0)
    examples = []
    for index in range(count):
        low = 0 if index % 2 == 0 else 200
        examples.append({"image": rng.integers(low, low + 50, (8, 8, 1)).astype(np.uint8), "label": index % 2})
    dataset = Dataset(name="grey", splits={"train": examples, "validation": examples}, labels={"label": CLASSES})
    config = ImageClassificationConfig(**({"image_size": 8, "channels": 1, "batch_size": 4} | options))
    return config.bind(dataset, None, seed=0, data=DataConfig(name="grey"))


def test_held_out_loss_is_the_plain_cross_entropy():
    task = make(label_smoothing=0.3, mixup=0.2, zoom=0.3)
    batches = list(task.batches("validation"))
    assert [batch["weights"].sum() for batch in batches] == [4, 4, 2]
    results = task.evaluate(mean_grey, {})
    logits = np.concatenate([mean_grey({}, batch["pixel_values"]).logits for batch in batches])[:10]
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    assert results["loss"] == pytest.approx(-np.mean([log_p[i, i % 2] for i in range(10)]), rel=1e-5)
    assert results["accuracy"] == 100 and results["pictures"] == 10


def test_smoothing_and_mixing_keep_targets_a_distribution():
    task, batch = make(batch_size=8), next(make(batch_size=8).batches("train"))
    plain = task.loss(mean_grey, {}, batch)[0]
    assert task.loss(mean_grey, {}, batch, jax.random.key(0))[0] == pytest.approx(float(plain), rel=1e-6)
    smooth = make(label_smoothing=0.5).loss(mean_grey, {}, batch, jax.random.key(0))[0]
    uniform = -jax.nn.log_softmax(mean_grey({}, batch["pixel_values"]).logits).mean(-1).mean()
    assert float(smooth) == pytest.approx(0.5 * float(plain) + 0.5 * float(uniform), rel=1e-5)
    pixels, targets = make(mixup=1.0)._mix(batch["pixel_values"], jnp.eye(6)[batch["labels"]], jax.random.key(1))
    assert np.allclose(targets.sum(-1), 1)
    # The same weights for a picture and its target: light is the second class.
    assert np.corrcoef(pixels.mean((1, 2, 3)), targets[:, 1])[0, 1] > 0.99


def test_pictures_are_moved_scaled_and_mirrored():
    picture = -np.ones((64, 1, 9, 9), np.float32)
    picture[:, :, 4, 4] = 1
    still = make(image_size=9)._move(picture, jax.random.key(0))
    assert (np.asarray(still) == picture).all()
    moved = np.asarray(make(shift=0.3)._move(picture, jax.random.key(0))) + 1
    where = (moved * np.arange(9)).sum((1, 2, 3)) / moved.sum((1, 2, 3))
    assert np.allclose(moved.sum((1, 2, 3)), 2, atol=1e-4)
    assert where.min() > 4 - 2.75 and where.max() < 4 + 2.75 and where.std() > 1
    zoomed = np.asarray(make(zoom=0.5)._move(picture, jax.random.key(0))) + 1
    centre = (zoomed * np.arange(9)).sum((1, 2, 3)) / zoomed.sum((1, 2, 3))
    assert np.allclose(centre, 4, atol=0.05)
    left = np.where(np.arange(9) < 4, 1.0, -1.0).astype(np.float32) * np.ones((64, 1, 9, 1), np.float32)
    mirrored = np.asarray(make(flip=True)._move(left, jax.random.key(0)))[:, 0, 0, 0]
    assert set(mirrored) == {1.0, -1.0}


def test_training_batches_are_shuffled_pictures_with_their_labels():
    iterator = make().batches("train")
    state = iterator.get_state()
    batch = next(iterator)
    assert batch["pixel_values"].shape == (4, 1, 8, 8) and batch["pixel_values"].dtype == np.float32
    assert ((batch["pixel_values"].mean((1, 2, 3)) > 0) == batch["labels"]).all()
    iterator.set_state(state)
    assert (next(iterator)["pixel_values"] == batch["pixel_values"]).all()


def test_a_users_picture_of_any_size_and_colour(tmp_path):
    Image.new("RGB", (40, 30), (250, 250, 250)).save(tmp_path / "light.png")
    answer = make().respond(mean_grey, {}, Question(image=str(tmp_path / "light.png")))
    assert answer.startswith("light (")
    with pytest.raises(ValueError, match="no picture that can be read"):
        make().respond(mean_grey, {}, Question(image=str(tmp_path / "none.png")))


def test_baselines_and_mistakes():
    pytest.importorskip("sklearn")
    assert [figure.value for figure in make(20).baselines()] == ["100.00 %", "100.00 %"]
    with pytest.raises(ValueError, match="mixup is -1"):
        ImageClassificationConfig(mixup=-1)
    with pytest.raises(ValueError, match=r"set data\.label_key"):
        ImageClassificationConfig().bind(
            Dataset(name="x", splits={"train": []}), None, seed=0, data=DataConfig(name="x", label_key="kind")
        )
