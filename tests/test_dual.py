"""Dual encoders: texts and images, scored together or embedded apart."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from models import CONFIGS, inputs

from zoo.config import DualConfig
from zoo.dual import DualEncoder
from zoo.transformer import parameter_shapes

CONFIG = DualConfig(text=CONFIGS["clip"], image=CONFIGS["siglip"])
GIVEN = jax.tree.map(jnp.asarray, inputs(CONFIG.text) | inputs(CONFIG.image, batch=3))


def build(config: DualConfig):
    model = DualEncoder(config)
    rng = np.random.default_rng(0)
    draw = lambda leaf: jnp.asarray(0.3 * rng.standard_normal(leaf.shape), jnp.float32)  # noqa: E731
    return model, jax.tree.map(draw, parameter_shapes(model))


def test_scores_are_scaled_cosines_of_the_vectors():
    model, params = build(CONFIG)
    output = model.apply({"params": params}, **GIVEN)
    assert output.logits_per_text.shape == (2, 3)
    np.testing.assert_allclose(jnp.linalg.norm(output.image_embeds, axis=-1), 1, rtol=1e-5)
    expected = jnp.exp(params["logit_scale"]) * output.text_embeds @ output.image_embeds.T
    np.testing.assert_allclose(output.logits_per_text, expected, atol=1e-5)
    np.testing.assert_array_equal(output.logits_per_image, output.logits_per_text.T)


def test_one_side_alone_gives_the_same_vectors():
    model, params = build(CONFIG)
    both = model.apply({"params": params}, **GIVEN)
    text = model.apply({"params": params}, input_ids=GIVEN["input_ids"])
    image = model.apply({"params": params}, pixel_values=GIVEN["pixel_values"])
    np.testing.assert_allclose(text.text_embeds, both.text_embeds, atol=1e-6)
    np.testing.assert_allclose(image.image_embeds, both.image_embeds, atol=1e-6)
    assert text.logits_per_text is None and text.image_embeds is None
    with pytest.raises(ValueError, match="one of the two"):
        model.apply({"params": params})


def test_a_bias_is_added_to_every_score():
    model, params = build(dataclasses.replace(CONFIG, bias=True))
    output = model.apply({"params": params}, **GIVEN)
    plain = model.apply({"params": params | {"logit_bias": jnp.zeros(())}}, **GIVEN)
    np.testing.assert_allclose(output.logits_per_text, plain.logits_per_text + params["logit_bias"], atol=1e-5)
