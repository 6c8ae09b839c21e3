"""Image tokens: codes go there and back, gradients pass the rounding, and training uses and revives codes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zoo.config import ImageTokenizerConfig
from zoo.data import DataConfig, Dataset
from zoo.image_tokens import (
    ImageTokenizer,
    LearnedTokens,
    PaletteTokens,
    cut_patches,
    dequantize,
    join_patches,
    mix,
    quantize,
)
from zoo.tasks.image_tokens import ImageTokensConfig
from zoo.tasks.report import Question
from zoo.training.config import MeshConfig, OptimizerConfig, ScheduleConfig, TrainingConfig
from zoo.training.loop import train
from zoo.training.state import bind_apply

LEVELS = (5, 4, 3)
CONFIG = ImageTokenizerConfig(image_size=8, patch_size=4, width=16, num_blocks=1, levels=LEVELS)


def pictures(count: int, seed: int = 0) -> list[dict]:
    """Halves of two colours each, of eight."""
    rng = np.random.default_rng(seed)
    colours = np.array([[r, g, b] for r in (20, 230) for g in (20, 230) for b in (20, 230)], np.uint8)
    found = []
    for left, right in rng.integers(0, 8, (count, 2)):
        image = np.empty((8, 8, 3), np.uint8)
        image[:, :4], image[:, 4:] = colours[left], colours[right]
        found.append({"image": image})
    return found


@pytest.fixture(scope="module")
def task():
    dataset = Dataset(name="halves", splits={"train": pictures(256), "validation": pictures(24, seed=1)})
    config = ImageTokensConfig(image_size=8, batch_size=16, baseline_codes=6)
    return config.bind(dataset, None, seed=0, data=DataConfig(name="halves"))


@pytest.fixture(scope="module")
def trained(task, tmp_path_factory):
    """A tokenizer that has seen halves, trained as a run is."""
    state = train(
        ImageTokenizer(CONFIG),
        task,
        tmp_path_factory.mktemp("run"),
        optimizer=OptimizerConfig(learning_rate=1e-2, weight_decay=0.0),
        schedule=ScheduleConfig(warmup_steps=5),
        mesh=MeshConfig(data=1),
        training=TrainingConfig(num_steps=250, tensorboard=False),
        compute_dtype="float32",
    )
    return jax.device_get(state.params)


def test_every_code_comes_back():
    codes = np.arange(5 * 4 * 3)
    values = dequantize(jnp.asarray(codes), LEVELS)
    assert values.shape == (60, 3) and len(np.unique(values, axis=0)) == 60
    for column, levels in enumerate(LEVELS):
        assert np.allclose(np.unique(values[:, column]), np.linspace(-1, 1, levels))
    # The squashing turned round: what lies in the middle of a level is rounded to it.
    highest = np.array(LEVELS) - 1
    share = np.clip((np.asarray(values) + 1) / 2, 0.02, 0.98)
    rounded, ids = quantize(jnp.asarray(np.log(share / (1 - share))), LEVELS)
    assert (ids == codes).all() and np.allclose(rounded, values, atol=1e-6)
    assert (np.abs(np.asarray(values) * highest % 2 - highest % 2) < 1e-5).any()


def test_gradients_are_those_of_the_squashed_numbers():
    x = jnp.array([[0.3, -1.2, 2.0]])
    weights = jnp.array([[1.0, 2.0, -3.0]])
    gradient = jax.grad(lambda x: (quantize(x, LEVELS)[0] * weights).sum())(x)
    squashed = jax.grad(lambda x: ((2 * jax.nn.sigmoid(x) - 1) * weights).sum())(x)
    assert np.allclose(gradient, squashed, rtol=1e-6) and (gradient != 0).all()


def test_patches_are_cut_joined_and_mixed_with_their_neighbours_alone():
    pixels = jax.random.normal(jax.random.key(0), (2, 3, 12, 8))
    patches = cut_patches(pixels, 4)
    assert patches.shape == (2, 3, 2, 48)
    assert (patches[1, 2, 1].reshape(4, 4, 3) == pixels[1, :, 8:, 4:].transpose(1, 2, 0)).all()
    assert (join_patches(patches, 4) == pixels).all()
    x, scale = jnp.zeros((1, 5, 5, 2)).at[0, 1, 3].set(1.0), jax.random.normal(jax.random.key(1), (9, 2))
    wanted = jax.lax.conv_general_dilated(
        x, scale.reshape(3, 3, 1, 2), (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=2
    )
    assert np.allclose(mix(x, scale), wanted, atol=1e-6)


def test_a_token_is_of_its_own_patch_and_is_drawn_with_its_neighbours():
    model = ImageTokenizer(CONFIG)
    pixels = jax.random.uniform(jax.random.key(0), (1, 3, 8, 8), minval=-1)
    params = model.init(jax.random.key(1), pixels)["params"]
    codec = LearnedTokens(model, params)
    assert (codec.num_codes, codec.num_tokens) == (60, 4)
    ids, other = codec.encode(pixels), codec.encode(pixels.at[:, :, :4, :4].multiply(-1))
    assert ids.shape == (1, 4) and (ids[:, 1:] == other[:, 1:]).all()
    both_ways = model.apply({"params": params}, pixels)
    assert (both_ways.token_ids == ids).all()
    assert np.allclose(codec.decode(ids), np.clip(both_ways.pixel_values, -1, 1), atol=1e-5)
    changed = np.abs(codec.decode(ids.at[0, 0].set((ids[0, 0] + 30) % 60)) - codec.decode(ids)).max((0, 1))
    assert (changed[:4, 4:] > 0).any()
    with pytest.raises(ValueError, match=r"this tokenizer reads \[batch, 3, 8, 8\]"):
        codec.encode(jnp.zeros((1, 3, 8, 4)))


def test_training_draws_the_pictures_again_with_many_codes(task, trained):
    apply = bind_apply(ImageTokenizer(CONFIG))
    fresh = ImageTokenizer(CONFIG).init(jax.random.key(0), jnp.zeros((1, 3, 8, 8)))["params"]
    before, after = task.evaluate(apply, fresh), task.evaluate(apply, trained)
    assert after["psnr"] > 20 > before["psnr"] and after["pictures"] == 24 and after["tokens_each"] == 4
    # Eight colours are told apart, whatever few codes the start had; a codebook could have left some of them dead.
    assert after["codes"] >= 8 and after["code_perplexity"] > 5


def test_dead_codes_come_alive():
    """A start at which everything has one code is left, with no more than the gradient."""
    levels, targets = (5, 5), jnp.array([[-1.0, 0.5], [1.0, -0.5], [0.0, 1.0]])
    x = jnp.full((3, 2), 0.1)
    step = jax.jit(jax.grad(lambda x: jnp.square(quantize(x, levels)[0] - targets).sum()))
    assert len(np.unique(quantize(x, levels)[1])) == 1
    for _ in range(300):
        x -= 0.3 * step(x)
    rounded, codes = quantize(x, levels)
    assert len(np.unique(codes)) == 3 and np.abs(rounded - targets).max() <= 0.5


def test_what_a_user_sees(task, trained, tmp_path):
    from PIL import Image

    apply = bind_apply(ImageTokenizer(CONFIG))
    values = {figure.name: figure.value for figure in task.figures(task.evaluate(apply, trained))}
    assert values["PSNR"].endswith(" dB") and int(values["codes"]) >= 8
    baselines = {figure.name: float(figure.value.removesuffix(" dB")) for figure in task.baselines()}
    assert baselines["mean colour"] < baselines["k-means"] < 60
    Image.fromarray(pictures(1)[0]["image"]).resize((40, 30)).save(tmp_path / "p.png")
    answer = task.respond(apply, trained, Question(image=str(tmp_path / "p.png")))
    assert len(answer.split(" (")[0].split()) == 4 and answer.endswith(" dB)")


def test_a_palette_takes_the_nearest_colour():
    codec = PaletteTokens(np.array([[-1, -1, -1], [1, 1, 1], [1, -1, -1]], np.float32), 2)
    pixels = jnp.array([[[0.9, -0.8], [0.7, -1.0]], [[0.8, -0.9], [-0.6, -1]], [[1.0, -0.7], [-0.9, -1]]])[None]
    assert codec.encode(pixels).tolist() == [[1, 0, 2, 0]] and (codec.num_codes, codec.num_tokens) == (3, 4)
    drawn = codec.decode(codec.encode(pixels))
    assert drawn.shape == (1, 3, 2, 2) and drawn[0, :, 1, 0].tolist() == [1, -1, -1]
    assert (codec.encode(drawn) == codec.encode(pixels)).all()


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="patch_size is 5; give a divisor"):
        ImageTokenizerConfig(image_size=32, patch_size=5)
    with pytest.raises(ValueError, match=r"levels is \(8, 1\)"):
        ImageTokenizerConfig(image_size=32, levels=(8, 1))
