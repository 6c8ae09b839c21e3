"""Rollout, entropy, distance, ablation and the logit lens, each against its definition."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from models import CONFIGS, build, inputs
from test_capture import bundle_of, inspected
from tiers import tiered

from zoo.inspection import ablate_heads, entropy, layer_logits, logit_lens, mean_distance, rollout
from zoo.inspection.ablation import output_kernels, without_head


def random_maps(shape=(3, 2, 4, 5, 5), seed=0):
    return np.random.default_rng(seed).dirichlet(np.ones(shape[-1]), shape[:-1]).astype(np.float32)


def test_rollout_is_the_papers():
    maps = random_maps()
    found = rollout(maps)
    for row in range(2):
        expected = np.eye(5)
        for layer in range(3):
            average = sum(maps[layer, row, head].astype(np.float64) for head in range(4)) / 4
            matrix = np.zeros((5, 5))
            for i in range(5):
                for j in range(5):
                    matrix[i, j] = (average[i, j] + (i == j)) / 2
            expected = matrix @ expected
            np.testing.assert_allclose(found[layer, row], expected, atol=1e-6)
    np.testing.assert_allclose(found.sum(-1), 1, atol=1e-6)


def test_rollout_keeps_causality_and_rows_that_see_nothing():
    maps = inspected("gpt2").attentions["decoder/attention"].weights.copy()
    maps[:, 1, :, 0] = 0  # the first query of the second row sees nothing
    found = rollout(maps)
    assert (np.triu(found, 1) == 0).all()
    np.testing.assert_allclose(found.sum(-1), 1, atol=1e-6)
    np.testing.assert_array_equal(found[:, 1, 0], np.eye(12)[:1].repeat(2, 0))


def test_sinks_do_not_shrink_rollout():
    maps = inspected("mixtral").attentions["decoder/attention"].weights
    assert maps.sum(-1).min() < 0.99
    np.testing.assert_allclose(rollout(maps).sum(-1), 1, atol=1e-6)


def test_entropy_of_known_maps():
    uniform, one = np.full((1, 1, 1, 8, 8), 1 / 8), np.eye(8)[None, None, None]
    both = np.concatenate([uniform, one], 2)
    np.testing.assert_allclose(entropy(both), [[3.0, 0.0]], atol=1e-9)
    half = np.where(np.arange(8) < 4, 0.125, 0.0) * np.ones((1, 1, 1, 8, 1))  # a sink has the other half
    np.testing.assert_allclose(entropy(half), [[2.0]], atol=1e-9)
    blind = both.copy()
    blind[..., :4, :] = 0
    np.testing.assert_allclose(entropy(blind), [[3.0, 0.0]], atol=1e-9)


def test_mean_distance_of_known_maps():
    previous = np.eye(6, k=-2)[None, None, None]
    np.testing.assert_allclose(mean_distance(previous), [[2.0]])
    np.testing.assert_allclose(mean_distance(np.eye(6)[None, None, None]), [[0.0]])
    for measure in (mean_distance, rollout):
        with pytest.raises(ValueError, match="3 queries by 6 keys"):
            measure(previous[..., :3, :])


def loss_of(name: str):
    model, _ = build(name)
    given = inputs(CONFIGS[name])

    def loss(params):
        output = model.apply({"params": params}, **given)
        result = output.logits if output.logits is not None else output.pooler_output
        return (result * np.random.default_rng(1).standard_normal(result.shape).astype(np.float32)).mean()

    return loss


@pytest.mark.parametrize("name", tiered(["gpt2", "albert", "t5", "siglip"], ["albert", "t5"]))
def test_ablation_is_what_zeroing_the_weights_by_hand_does(name):
    _, params = build(name)
    loss = jax.jit(loss_of(name))
    whole, effects = float(loss(params)), ablate_heads(loss_of(name), params)
    for path, found in effects.items():
        kernel = params
        for part in [*path.split("/"), "output", "kernel"]:
            kernel = kernel[part]
        kernel = np.asarray(kernel)
        stacked = kernel if kernel.ndim == 4 else kernel[None]
        assert found.shape == stacked.shape[:2]
        for layer, head in ((0, 0), (len(stacked) - 1, stacked.shape[1] - 1)):
            zeroed = stacked.copy()
            zeroed[layer, head] = 0
            copy = jax.tree.map(lambda leaf: leaf, params)
            node = copy
            for part in [*path.split("/"), "output"]:
                node = node[part]
            node["kernel"] = jnp.asarray(zeroed.reshape(kernel.shape))
            np.testing.assert_allclose(found[layer, head], float(loss(copy)) - whole, atol=2e-6)
        assert np.abs(found).max() > 1e-6


def test_a_removed_head_writes_nothing_and_the_others_all():
    _, params = build("gpt2")
    (path,) = output_kernels(params)
    kernel = np.asarray(params["decoder"]["attention"]["output"]["kernel"])
    changed = np.array(without_head(params, path, 1, 2)["decoder"]["attention"]["output"]["kernel"])
    assert (changed[1, 2] == 0).all() and (kernel[1, 2] != 0).all()
    changed[1, 2] = kernel[1, 2]
    np.testing.assert_array_equal(changed, kernel)


SEEN = ["gpt2", "bert", "opt", "gemma", "t5", "vit", "tagger"]


@pytest.mark.parametrize("name", tiered(SEEN, ["gpt2", "t5", "vit"]))
def test_the_lens_last_row_is_the_models_answer(name):
    bundle, given = bundle_of(name), inputs(CONFIGS[name])
    found, logits = layer_logits(bundle, **given), np.asarray(bundle(**given).logits)
    assert len(found) == bundle.config.output_stack.num_layers + 1
    np.testing.assert_allclose(found[-1], logits, atol=1e-5)
    assert np.abs(found[0] - found[-1]).max() > 1e-3
    lens = logit_lens(bundle, num_shown=3, **given)
    np.testing.assert_array_equal(lens.ids, np.argsort(-found, axis=-1, kind="stable")[..., :3])
    probabilities = np.asarray(jax.nn.softmax(found))
    np.testing.assert_allclose(lens.probabilities, np.sort(probabilities, axis=-1)[..., :-4:-1], atol=1e-6)


def test_the_lens_reads_a_layer_as_a_model_cut_off_there_would_answer():
    bundle, given = bundle_of("gpt2"), inputs(CONFIGS["gpt2"])
    config, params = bundle.config, dict(bundle.params)
    stack = params["decoder"]
    params["decoder"] = {
        name: leaf if name == "final_norm" else jax.tree.map(lambda x: x[:1], leaf) for name, leaf in stack.items()
    }
    cut = dataclasses.replace(config, decoder=dataclasses.replace(config.decoder, num_layers=1))
    logits = bundle.model.clone(config=cut).apply({"params": params}, **given).logits
    np.testing.assert_allclose(layer_logits(bundle, **given)[1], logits, atol=1e-5)


def test_no_lens_without_logits():
    for name in ("sentences", "clip"):
        with pytest.raises(ValueError, match=r"no logits|no head with logits"):
            logit_lens(bundle_of(name), **inputs(CONFIGS[name]))
