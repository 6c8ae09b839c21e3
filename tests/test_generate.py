"""Generation: greedy equals an argmax loop without a cache; sampling follows its distribution; one compilation."""

import jax
import jax.numpy as jnp
import models
import numpy as np
import pytest
from models import CONFIGS, inputs

from zoo.generate import BUCKET, GREEDY, Sampling, _generate, generate


def build(name: str):
    model, params = models.build(name)

    def apply(params, **given):
        return model.apply({"params": params}, **given)

    return apply, params


def argmax_loop(apply, params, row, count, **encoded):
    """Greedy decoding by definition: the whole sequence again for every token."""
    forward = jax.jit(lambda ids: apply(params, input_ids=ids, **encoded, method="decode").logits)
    row = list(row)
    for _ in range(count):
        padded = np.array([row + [0] * (count + 8 - len(row))], np.int32)
        row.append(int(forward(padded)[0, len(row) - 1].argmax()))
    return row


def test_greedy_equals_argmax_loop_on_ragged_prompts():
    apply, params = build("llama")
    prompts = [[5, 9, 3], [7, 2, 8, 30, 11], [4]]
    width = max(map(len, prompts))
    ids = np.array([[0] * (width - len(p)) + p for p in prompts], np.int32)
    mask = np.array([[0] * (width - len(p)) + [1] * len(p) for p in prompts], np.int32)
    out = np.asarray(generate(apply, params, ids, mask, max_new_tokens=6).sequences)
    for row, prompt in zip(out, prompts, strict=True):
        expected = argmax_loop(apply, params, prompt, 6)
        assert row[width - len(prompt) :].tolist() == expected


def test_encoder_decoder_greedy_equals_argmax_loop():
    apply, params = build("t5")
    source = inputs(CONFIGS["t5"], batch=1)["input_ids"]
    states = apply(params, input_ids=source, method="encode").last_hidden_state
    expected = argmax_loop(apply, params, [1], 6, encoder_hidden_states=states)
    out = generate(apply, params, source, max_new_tokens=6, decoder_start_token_id=1)
    assert np.asarray(out.sequences)[0].tolist() == expected


def test_rows_end_at_eos_and_are_padded():
    apply, params = build("gpt2")
    ids = inputs(CONFIGS["gpt2"])["input_ids"][:, :4]
    free = np.asarray(generate(apply, params, ids, max_new_tokens=8).sequences)
    eos = int(free[0, 6])
    out = generate(apply, params, ids, max_new_tokens=8, eos_token_id=eos, pad_token_id=59)
    for row, length, unbounded in zip(np.asarray(out.sequences), np.asarray(out.lengths), free, strict=True):
        new = row[4:]
        found = np.flatnonzero(unbounded[4:] == eos)
        expected = int(found[0]) + 1 if found.size else 8
        assert length == expected
        assert new[:length].tolist() == unbounded[4 : 4 + length].tolist()
        assert (new[length:] == 59).all()


def test_lengths_in_a_bucket_share_one_compilation():
    apply, params = build("gpt2")
    before = _generate._cache_size()
    for length in (1, 3, 7):
        generate(apply, params, np.full((1, length), 5, np.int32), max_new_tokens=3)
    assert _generate._cache_size() == before + 1
    assert BUCKET > 7


def test_seeds_repeat_and_differ():
    apply, params = build("gpt2")
    ids = np.full((4, 3), 5, np.int32)

    def draw(seed: int) -> np.ndarray:
        return np.asarray(generate(apply, params, ids, sampling=Sampling(), seed=seed, max_new_tokens=8).sequences)

    np.testing.assert_array_equal(draw(1), draw(1))
    assert (draw(1) != draw(2)).any()
    assert len({tuple(row) for row in draw(1)}) > 1  # rows of a batch are drawn apart


LOGITS = jnp.log(jnp.array([[0.5, 0.25, 0.15, 0.06, 0.04]]))


@pytest.mark.parametrize(
    ("sampling", "expected"),
    [
        (GREEDY, [1.0, 0, 0, 0, 0]),
        (Sampling(), [0.5, 0.25, 0.15, 0.06, 0.04]),
        (Sampling(top_k=2), [2 / 3, 1 / 3, 0, 0, 0]),
        (Sampling(top_k=9), [0.5, 0.25, 0.15, 0.06, 0.04]),
        (Sampling(top_p=0.74), [2 / 3, 1 / 3, 0, 0, 0]),
        (Sampling(top_p=0.76), [0.5 / 0.9, 0.25 / 0.9, 0.15 / 0.9, 0, 0]),
        (Sampling(top_p=1e-6), [1.0, 0, 0, 0, 0]),
        (Sampling(temperature=0.5), np.array([0.25, 0.0625, 0.0225, 0.0036, 0.0016]) / 0.3402),
    ],
)
def test_sampling_follows_its_distribution(sampling, expected):
    count = 20_000
    rngs = jax.random.split(jax.random.key(0), count)
    drawn = jax.jit(jax.vmap(lambda rng: sampling.choose(LOGITS, rng)[0]))(rngs)
    shares = np.bincount(np.asarray(drawn), minlength=5) / count
    np.testing.assert_allclose(shares, expected, atol=0.015)
    assert (shares[np.asarray(expected) == 0] == 0).all()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Sampling(temperature=-1.0), "temperature is -1.0"),
        (lambda: Sampling(top_k=0), "top_k is 0"),
        (lambda: Sampling(top_p=0.0), "top_p is 0.0"),
        (lambda: generate(None, {}, np.zeros((1, 0), np.int32)), "at least one token"),
        (lambda: generate(None, {}, np.ones((2, 3)), np.ones((2, 2))), r"give that of input_ids"),
        (lambda: generate(None, {}, np.ones((1, 3)), np.array([[1, 1, 0]])), "pad them on the left"),
        (lambda: generate(None, {}, np.ones((2, 2)), np.array([[1, 1], [0, 0]])), "row 1 of attention_mask"),
        (lambda: generate(None, {}, np.ones((1, 3)), max_new_tokens=0), "max_new_tokens is 0"),
    ],
)
def test_wrong_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
