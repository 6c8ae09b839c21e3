"""Generation: greedy equals an argmax loop without a cache; sampling follows its distribution; one compilation."""

import itertools
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import models
import numpy as np
import pytest
from models import CONFIGS, inputs
from tiers import tiered

from zoo.architectures import find_architecture
from zoo.bundle import Bundle, Origin
from zoo.generate import BUCKET, _generate, _search, generate, stream
from zoo.generation_config import GenerationConfig, stored_options
from zoo.layers import KeysValues
from zoo.logits import choose, narrow
from zoo.stack import Cache


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


def by_definition(apply, params, sources, scale, count):
    """Guided greedy decoding without a cache: u + scale (c - u) of the last position, token by token."""
    states = [apply(params, input_ids=source, method="encode").last_hidden_state for source in sources]
    forward = jax.jit(lambda ids, memory: apply(params, input_ids=ids, encoder_hidden_states=memory, method="decode"))
    row = [1]
    for place in range(count):
        padded = np.array([row + [0] * (count + 1 - len(row))], np.int32)
        led, away = (forward(padded, memory).logits[0, place] for memory in states)
        row.append(int((away + scale * (led - away)).argmax()))
    return row


@pytest.mark.parametrize("scale", tiered([0.0, 3.0], [3.0]))
def test_guidance_is_its_formula_on_logits(scale):
    apply, params = build("t5")
    source = np.asarray(inputs(CONFIGS["t5"], batch=2)["input_ids"])
    away = np.array([[9, 4, 1]], np.int32)
    options = {"max_new_tokens": 6, "decoder_start_token_id": 1, "negative_prompt_ids": away}
    guided = generate(apply, params, source, guidance_scale=scale, **options)
    expected = [by_definition(apply, params, (row[None], away), scale, 6) for row in source]
    assert np.asarray(guided.sequences).tolist() == expected
    plain = generate(apply, params, source, max_new_tokens=6, decoder_start_token_id=1)
    assert np.asarray(plain.sequences).tolist() != expected
    # One beam among two is no worse than greedy's, and both sides of the cache are selected alike.
    beams = generate(apply, params, source, guidance_scale=scale, num_beams=2, num_return_sequences=2, **options)
    assert beams.sequences.shape == (4, 7)
    copies = generate(
        apply, params, source, guidance_scale=scale, do_sample=True, num_return_sequences=3, top_k=1, **options
    )
    assert np.asarray(copies.sequences).tolist() == [row for row in expected for _ in range(3)]


def test_a_prompt_compiles_one_layer_and_a_step_each_of_them_without_a_way_out():
    """What a first call compiles: scanned what runs once, and nothing in a step for NaN that a cache does not hold."""
    apply, params = build("llama")
    ids = jnp.ones((1, 4), jnp.int32)
    prompt = {"input_ids": ids, "attention_mask": ids, "capacity": 8, "method": "prefill"}
    _, cache = apply(params, **prompt)
    looped = apply(params, method="for_steps")
    programs = [
        str(jax.make_jaxpr(lambda params: apply(params, **prompt))(params)),
        str(jax.make_jaxpr(lambda params: apply(params, token=ids[0, :1], cache=cache, method="step"))(looped)),
    ]
    assert [" scan[" in program for program in programs] == [True, False]
    assert " cond[" in programs[0] and " cond[" not in programs[1]


@pytest.mark.parametrize("method", ["for_steps", "for_calls"])
def test_parameters_of_each_layer_are_no_copies(method):
    apply, params = build("llama")
    apart = apply(params, method=method)
    kernel, first = (jax.tree.leaves(tree["decoder"]["mlp"])[0] for tree in (params, apart))
    assert first.unsafe_buffer_pointer() == kernel.unsafe_buffer_pointer()
    np.testing.assert_array_equal(first, kernel[0])


def test_a_cache_holds_zeros_for_padding():
    fresh = KeysValues(*jnp.full((2, 3, 1, 4, 1, 2), jnp.nan))
    seen = jnp.array([[0, 0, 1, 1]])
    cache = Cache.start(fresh, seen, 6, memory=fresh, memory_segment_ids=seen)
    for leaf in jax.tree.leaves((cache.layers, cache.memory)):
        assert (leaf[:, :, :2] == 0).all() and jnp.isnan(leaf[:, :, 2:4]).all()


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


@pytest.mark.parametrize(("loop", "num_beams"), [(_generate, 1), (_search, 2)])
def test_lengths_in_a_bucket_share_one_compilation(loop, num_beams):
    apply, params = build("gpt2")
    before = loop._cache_size()
    for length in (1, 3, 7):
        for limit in ({"max_new_tokens": length}, {"max_length": 9, "min_length": length}):
            generate(apply, params, np.full((1, length), 5, np.int32), num_beams=num_beams, **limit)
    assert loop._cache_size() == before + 1
    assert BUCKET > 7


@pytest.mark.parametrize("name", ["t5", "captioner"])
def test_beams_of_an_encoder_decoder_are_those_of_an_exhaustive_search(name):
    """As many beams as there are sequences of two tokens find the best sequences of three."""
    apply, params = build(name)
    source = {key: value[:1] for key, value in inputs(CONFIGS[name]).items() if key != "decoder_input_ids"}
    states = apply(params, **source, method="encode").last_hidden_state
    allowed = [3, 7, 20, 41]
    sequences = np.array([[1, *rest] for rest in itertools.product(allowed, repeat=3)], np.int32)
    logits = apply(
        params, input_ids=sequences, encoder_hidden_states=jnp.repeat(states, len(sequences), 0), method="decode"
    ).logits
    log_probs = jnp.take_along_axis(jax.nn.log_softmax(logits[:, :-1]), sequences[:, 1:, None], -1).sum((1, 2))
    order = np.argsort(-log_probs)[:5]
    others = [token for token in range(61) if token not in allowed]
    options = dict(num_beams=16, num_return_sequences=5, suppress_tokens=others, length_penalty=0.0, max_new_tokens=3)
    found = generate(apply, params, **source, decoder_start_token_id=1, **options)
    assert np.asarray(found.sequences).tolist() == sequences[order].tolist()
    np.testing.assert_allclose(found.scores, log_probs[order], rtol=1e-5)


def test_rows_of_a_batch_do_not_touch_each_other():
    """Encoder inputs padded on the right, with beams: each row is what it is alone."""
    apply, params = build("bart")
    ids = inputs(CONFIGS["bart"], batch=3)["input_ids"]
    mask = np.ones_like(ids)
    mask[1, 5:], mask[2, 9:] = 0, 0
    options = dict(decoder_start_token_id=2, num_beams=3, eos_token_id=7, max_new_tokens=8, pad_token_id=59)
    together = generate(apply, params, ids, mask, **options)
    for row in range(3):
        alone = np.asarray(generate(apply, params, ids[row : row + 1, : mask[row].sum()], **options).sequences)[0]
        assert np.asarray(together.sequences)[row, : len(alone)].tolist() == alone.tolist()


def test_stream_gives_the_tokens_of_generate():
    apply, params = build("llama")
    ids = inputs(CONFIGS["llama"], batch=2)["input_ids"]
    for options in ({}, {"do_sample": True, "seed": 3, "num_return_sequences": 2}):
        options = {"max_new_tokens": 7, "eos_token_id": [5, 9], "repetition_penalty": 1.3} | options
        whole = np.asarray(generate(apply, params, ids, **options).sequences)[:, ids.shape[1] :]
        assert np.array(list(stream(apply, params, ids, **options))).T.tolist() == whole.tolist()


def test_a_decoder_prompt_is_continued():
    apply, params = build("t5")
    source = inputs(CONFIGS["t5"])["input_ids"]
    options = dict(decoder_start_token_id=1, max_new_tokens=3)
    free = np.asarray(generate(apply, params, source, decoder_start_token_id=1, max_new_tokens=5).sequences)
    for prompt in (free[:, :3], free[:, 1:3]):
        again = generate(apply, params, source, decoder_input_ids=prompt, **options)
        assert np.asarray(again.sequences).tolist() == free.tolist()
    forced = generate(apply, params, source, forced_decoder_ids=[[1, 9], [2, 4]], **options).sequences
    assert (np.asarray(forced)[:, :3] == [1, 9, 4]).all() and forced.shape == (2, 6)


def test_stored_options_are_those_of_one_file():
    legacy = {"num_beams": 4, "eos_token_id": 2, "bos_token_id": 0, "force_bos_token_to_be_generated": True,
              "min_length": None, "hidden_size": 8, "task_specific_params": {"x": {"num_beams": 6}}}  # fmt: skip
    assert stored_options(legacy, {}) == {
        "num_beams": 4, "eos_token_id": 2, "bos_token_id": 0, "forced_bos_token_id": 0
    }  # fmt: skip
    assert stored_options(legacy, {"eos_token_id": [1, 2]}) == {"eos_token_id": [1, 2]}
    nested = {"decoder": {"max_length": 30, "num_beams": 2}, "num_beams": 3}
    assert stored_options(nested, None) == {"max_length": 30, "num_beams": 3}


def test_seeds_repeat_and_differ():
    apply, params = build("gpt2")
    ids = np.full((4, 3), 5, np.int32)

    def draw(seed: int) -> np.ndarray:
        return np.asarray(generate(apply, params, ids, do_sample=True, seed=seed, max_new_tokens=8).sequences)

    np.testing.assert_array_equal(draw(1), draw(1))
    assert (draw(1) != draw(2)).any()
    assert len({tuple(row) for row in draw(1)}) > 1  # rows of a batch are drawn apart


LOGITS = jnp.log(jnp.array([[0.5, 0.25, 0.15, 0.06, 0.04]]))


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"do_sample": False}, [1.0, 0, 0, 0, 0]),
        ({}, [0.5, 0.25, 0.15, 0.06, 0.04]),
        ({"top_k": 2}, [2 / 3, 1 / 3, 0, 0, 0]),
        ({"top_k": 9}, [0.5, 0.25, 0.15, 0.06, 0.04]),
        ({"top_p": 0.74}, [2 / 3, 1 / 3, 0, 0, 0]),
        ({"top_p": 0.76}, [0.5 / 0.9, 0.25 / 0.9, 0.15 / 0.9, 0, 0]),
        ({"top_p": 1e-6}, [1.0, 0, 0, 0, 0]),
        ({"min_p": 0.2}, [0.5 / 0.9, 0.25 / 0.9, 0.15 / 0.9, 0, 0]),
        ({"temperature": 0.5}, np.array([0.25, 0.0625, 0.0225, 0.0036, 0.0016]) / 0.3402),
    ],
)
def test_sampling_follows_its_distribution(options, expected):
    config = GenerationConfig(**({"do_sample": True} | options))
    count = 20_000
    scores = LOGITS
    if config.do_sample:
        scores = narrow(LOGITS, config.temperature, config.top_k, config.top_p, config.min_p)
    rngs = jax.random.split(jax.random.key(0), count)
    drawn = jax.jit(jax.vmap(lambda rng: choose(scores, rng, config)[0]))(rngs)
    shares = np.bincount(np.asarray(drawn), minlength=5) / count
    np.testing.assert_allclose(shares, expected, atol=0.015)
    assert (shares[np.asarray(expected) == 0] == 0).all()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: generate(None, {}, np.zeros((1, 0), np.int32)), "at least one token"),
        (lambda: generate(None, {}, np.ones((2, 3)), np.ones((2, 2))), r"give that of input_ids"),
        (lambda: generate(None, {}, np.ones((1, 3)), np.array([[1, 1, 0]])), "pad them on the left"),
        (lambda: generate(None, {}, np.ones((2, 2)), np.array([[1, 1], [0, 0]])), "row 1 of attention_mask"),
        (lambda: generate(None, {}, np.ones((1, 3)), max_new_tokens=0), "max_new_tokens is 0"),
        (lambda: generate(None, {}, np.ones((1, 3)), num_beam=2), "unknown option 'num_beam'; did you mean num_beams"),
        (lambda: generate(None, {}, np.ones((1, 3)), guidance_scale=2.0), "guidance_scale is 2.0, which needs neg"),
        (lambda: generate(None, {}, np.ones((1, 3)), diversity_penalty=2.0), "diversity_penalty is 2.0, which zoo"),
        (lambda: generate(None, {}, np.ones((1, 3)), max_length=3), "max_length is 3 and the prompt has 3 tokens"),
        (lambda: generate(None, {}, np.ones((1, 3)), max_positions=9, max_new_tokens=8), "has 9 positions"),
        (lambda: generate(None, {}, np.ones((1, 3)), num_return_sequences=2), "num_return_sequences is 2"),
        (lambda: generate(None, {}, np.ones((1, 3)), do_sample=True, temperature=0.0), "give do_sample=False"),
        (lambda: generate(None, {}, np.ones((1, 3)), early_stopping="soon"), "early_stopping is 'soon'"),
        (lambda: generate(None, {}, np.ones((1, 3)), pixel_values=np.ones(3)), "pixel_values was given"),
        (lambda: generate(None, {}, decoder_start_token_id=1), "the encoder's input is missing"),
        (
            lambda: generate(None, {}, np.ones((1, 3)), negative_prompt_ids=np.ones((1, 2)), decoder_start_token_id=1),
            "guidance_scale is 1, which leads nowhere",
        ),
        (lambda: stream(None, {}, np.ones((1, 3)), num_beams=2), "num_beams is 2; what beams write"),
    ],
)
def test_wrong_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def load(name: str, generation: dict | None = None, fields: dict | None = None) -> Bundle:
    """A small model as `zoo.load` would give it from a run, or from a checkpoint with these files."""
    model, params = models.build(name)
    if generation is None:
        tokenizer = SimpleNamespace(bos_id=1, eos_id=2, pad_id=0)
        return Bundle(model=model, params=params, config=model.config, tokenizer=tokenizer)
    architecture = find_architecture("bert")  # no one asks it here
    origin = Origin(
        architecture=architecture, head="causal_lm", fields=fields or {}, generation=generation, folder=Path()
    )
    return Bundle(model=model, params=params, config=model.config, origin=origin)


def test_what_the_caller_says_goes_before_what_the_checkpoint_says():
    bundle = load("llama", {"max_length": 9, "no_repeat_ngram_size": 1, "do_sample": True})
    ids = inputs(CONFIGS["llama"])["input_ids"][:, :4]
    assert bundle.generate(ids).sequences.shape == (2, 9)
    options = {"do_sample": False, "max_new_tokens": 7}
    plain = np.asarray(bundle.generate(ids, **options, no_repeat_ngram_size=0).sequences)
    run = load("llama").generate(ids, max_new_tokens=7, eos_token_id=None)
    assert plain.tolist() == np.asarray(run.sequences).tolist()
    unique = np.asarray(bundle.generate(ids, **options).sequences)
    assert all(len(set(row)) == len(row) for row in unique[:, 4:]) and unique.shape == (2, 11)
    assert load("llama", {}, {"eos_token_id": 2}).generate(ids).sequences.shape[1] <= 24


MISTAKES = {
    "sampling without do_sample": ("llama", {"temperature": 0.5}, "temperature is given and do_sample is not"),
    "misspelt": ("llama", {"max_new_token": 5}, "did you mean max_new_tokens?"),
    "too long": ("gpt2", {"max_new_tokens": 64}, "this model has 40 positions"),
    "no decoder": ("bert", {}, "it generates nothing"),
    "an id": ("t5", {"decoder_input_ids": [[99]]}, r"decoder_input_ids\[0, 0\] is 99"),
    "no start": ("t5", {"bos_token_id": None}, "decoder_start_token_id; give it"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_bundle_names_mistakes(mistake):
    name, options, message = MISTAKES[mistake]
    with pytest.raises(ValueError, match=message):
        load(name).generate(np.full((1, 3), 5), **options)
