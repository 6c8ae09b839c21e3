"""Values taken out of models: they are what the op used, and taking them out changes nothing."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from models import CONFIGS, MECHANISMS, build, inputs
from tiers import tiered

from zoo.bundle import Bundle
from zoo.config import EmbeddingConfig, ImageTokenizerConfig, RecurrentConfig
from zoo.inspection import inspect
from zoo.inspection.capture import Attended, attention_weights, require_attention
from zoo.kernels import attention
from zoo.kernels.cases import CASES, SMALL_CASES, TEST_SIZES, fits
from zoo.recurrent import Recurrent

FEATURES = {name: case for name, case in (CASES | SMALL_CASES).items() if "dropout" not in name}


def bundle_of(name: str, **clone) -> Bundle:
    model, params = build(name)
    return Bundle(model=model.clone(**clone), params=params, config=CONFIGS[name])


def main_result(output):
    return next(x for x in (output.logits, output.pooler_output, output.last_hidden_state) if x is not None)


@functools.cache
def inspected(name: str):
    return inspect(bundle_of(name), **inputs(CONFIGS[name]))


CELLS = [(case, sizes) for case in FEATURES for sizes in TEST_SIZES]


@pytest.mark.parametrize(("case", "sizes"), tiered(CELLS, CELLS[:: len(TEST_SIZES) + 1]))
def test_weights_times_values_are_the_ops_output(case, sizes):
    if not fits(case, TEST_SIZES[sizes]):
        pytest.skip("packed self-attention needs as many keys as queries")
    rng = np.random.default_rng(7)
    arguments = FEATURES[case](rng, TEST_SIZES[sizes])
    q, k, v = TEST_SIZES[sizes].inputs(rng, np.float32)
    scores, weights = jax.jit(lambda q, k, v: attention_weights(q, k, v, **arguments))(q, k, v)
    repeated = np.repeat(v, q.shape[2] // v.shape[2], axis=2)
    out = np.einsum("bnts,bsnh->btnh", weights, repeated)
    for backend in ("dense", "blockwise"):
        np.testing.assert_allclose(out, attention(q, k, v, **arguments, backend=backend), atol=1e-5)
    # The scores are what the weights are made of.
    highest = np.where(np.isneginf(scores).all(-1, keepdims=True), 0, scores.max(-1, keepdims=True))
    exponentials = np.exp(scores - highest)
    total = exponentials.sum(-1, keepdims=True)
    if (sinks := arguments.get("sinks")) is not None:
        total = total + np.exp(np.asarray(sinks)[:, None, None] - highest)
    np.testing.assert_allclose(weights, exponentials / np.where(total > 0, total, 1), atol=1e-5)


@pytest.mark.parametrize("name", tiered(CONFIGS, MECHANISMS))
def test_inspected_outputs_are_the_models_and_contexts_the_ops(name):
    found, bundle = inspected(name), bundle_of(name)
    np.testing.assert_allclose(
        main_result(found.output), main_result(bundle(**inputs(CONFIGS[name]))), atol=1e-5, rtol=1e-5
    )
    assert found.attentions
    for path, seen in found.attentions.items():
        stack = {"encoder": bundle.config.encoder, "decoder": bundle.config.decoder}.get(path.split("/")[0])
        assert seen.num_layers == (stack.num_layers if stack else 1), path
        values = np.repeat(seen.value, seen.num_heads // seen.value.shape[3], axis=3)
        np.testing.assert_allclose(np.einsum("lbnts,lbsnh->lbtnh", seen.weights, values), seen.context, atol=1e-5)
        assert np.isfinite(seen.weights).all() and (seen.weights >= 0).all()
        assert seen.scores.shape == seen.weights.shape and (seen.weights[np.isneginf(seen.scores)] == 0).all()


@pytest.mark.parametrize("name", ["gemma", "t5", "albert", "mixtral"])
def test_a_scanned_model_shows_the_same(name):
    found = inspect(bundle_of(name, layers="scanned", remat="full"), **inputs(CONFIGS[name]))
    for path, seen in inspected(name).attentions.items():
        np.testing.assert_array_equal(found.attentions[path].weights, seen.weights)


@pytest.mark.parametrize("name", ["bert", "t5"])
def test_a_model_that_was_inspected_runs_the_same_program(name):
    """Not a bit of the fast path changes: before, while another forward pass is inspected, and after."""
    model, params = build(name)
    given = inputs(CONFIGS[name])

    def program():
        # A new function each time: nothing is found in a cache.
        return str(jax.make_jaxpr(lambda params: main_result(model.apply({"params": params}, **given)))(params))

    def compute():
        return np.asarray(jax.jit(lambda params: main_result(model.apply({"params": params}, **given)))(params))

    program_before, before = program(), compute()
    inspect(bundle_of(name), **given)
    assert program() == program_before
    np.testing.assert_array_equal(compute(), before)


def test_the_path_names_the_parameters():
    for name in ("t5", "siglip", "gpt2"):
        _, params = build(name)
        for path in inspected(name).attentions:
            node = params
            for part in path.split("/"):
                node = node[part]
            assert "query" in node
    assert list(inspected("t5").attentions) == ["encoder/attention", "decoder/attention", "decoder/cross_attention"]


def test_hidden_states_are_those_of_the_output():
    found = inspected("t5")
    np.testing.assert_array_equal(found.hidden_states["decoder"], np.stack(found.output.hidden_states))
    np.testing.assert_array_equal(found.hidden_states["encoder"], np.stack(found.output.encoder_hidden_states))


def test_padding_and_the_future_have_no_weight():
    given = inputs(CONFIGS["gpt2"])
    mask = np.ones_like(given["input_ids"])
    mask[1, :4] = 0
    weights = inspect(bundle_of("gpt2"), **given, attention_mask=mask).attentions["decoder/attention"].weights
    assert (weights[..., np.triu_indices(12, 1)[0], np.triu_indices(12, 1)[1]] == 0).all()
    assert (weights[:, 1, :, :, :4] == 0).all() and (weights[:, 0, :, 4:, :4] > 0).any()
    np.testing.assert_allclose(weights[:, 1, :, 4:].sum(-1), 1, atol=1e-6)
    assert (weights[:, 1, :, :4] == 0).all()  # rows that see nothing


def test_too_much_is_refused_before_it_runs(monkeypatch):
    monkeypatch.setattr("zoo.inspection.capture.MAX_WEIGHTS", 1000)
    with pytest.raises(ValueError, match="2,304 attention weights"):
        inspect(bundle_of("gpt2"), **inputs(CONFIGS["gpt2"]))


def test_a_recurrent_model_shows_its_alignment():
    config = RecurrentConfig(
        embedding=EmbeddingConfig(width=8, vocab_size=30), cell="gru", width=6, direction="both", attention="additive"
    )
    model, rng = Recurrent(config), np.random.default_rng(0)
    given = {
        "input_ids": rng.integers(1, 30, (2, 7)),
        "attention_mask": np.array([[1] * 7, [1] * 4 + [0] * 3]),
        "decoder_input_ids": rng.integers(1, 30, (2, 5)),
    }
    params = jax.jit(lambda rng: model.init(rng, **jax.tree.map(jnp.asarray, given))["params"])(jax.random.key(0))
    bundle = Bundle(model=model, params=params, config=config)
    found, output = inspect(bundle, **given), bundle(**given)
    assert list(found.attentions) == ["decoder/alignment"] and not found.hidden_states
    weights = found.attentions["decoder/alignment"].weights
    np.testing.assert_array_equal(weights[0, :, 0], output.alignment)
    np.testing.assert_array_equal(found.output.logits, output.logits)
    np.testing.assert_allclose(weights.sum(-1), 1, atol=1e-6)
    assert (weights[0, 1, 0, :, 4:] == 0).all() and [len(states) for states in found.output.hidden_states] == [2, 2]


def test_models_without_attention_are_refused():
    config = RecurrentConfig(embedding=EmbeddingConfig(width=8, vocab_size=30), width=8)
    for other, message in (
        (config, "train one with --model.attention additive"),
        (ImageTokenizerConfig(image_size=16), "inspect a run that draws with it"),
    ):
        with pytest.raises(ValueError, match=message):
            require_attention(other)
    with pytest.raises(ValueError, match="no attention to look at"):
        inspect(Bundle(model=Recurrent(config), params={}, config=config), input_ids=[[1]], decoder_input_ids=[[1]])


def test_alignments_of_other_attention_fit_in():
    weights = np.random.default_rng(0).dirichlet(np.ones(5), (2, 3))
    seen = Attended.of_alignment(weights)
    assert (seen.num_layers, seen.num_heads, seen.query) == (1, 1, None)
    np.testing.assert_array_equal(seen.weights[0, :, 0], weights.astype(np.float32))
    with pytest.raises(ValueError, match="of_alignment"):
        Attended(weights=weights)
