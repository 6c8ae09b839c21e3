"""Recurrent encoder-decoders: padding changes nothing, decoding is the forward pass, attention is its definition."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import models
import numpy as np
import pytest
from models import RECURRENT, inputs
from tiers import tiered

from zoo.config import EmbeddingConfig, LanguageModelHead, LearnedPositions, RecurrentConfig
from zoo.generate import generate, stream
from zoo.recurrence import State, gru, lstm
from zoo.recurrent import Recurrent
from zoo.training.state import bind_apply

NAMES = list(RECURRENT)
START, END = 1, 2


@functools.cache
def build(name):
    model, params = models.build(name)
    apply = bind_apply(model)
    return apply, params, jax.jit(apply)


def four(source, mask, target, target_mask=None):
    """The inputs by their names."""
    given = {"input_ids": source, "attention_mask": mask, "decoder_input_ids": target}
    return given if target_mask is None else given | {"decoder_attention_mask": target_mask}


def ragged(ids, lengths, side, width):
    """Rows of these lengths out of `ids`, padded with noise to a width on one side, and their mask."""
    rng = np.random.default_rng(5)
    rows, mask = rng.integers(1, 40, (len(ids), width)).astype(np.int32), np.zeros((len(ids), width), np.int32)
    for row, length in enumerate(lengths):
        place = slice(0, length) if side == "right" else slice(width - length, width)
        rows[row, place], mask[row, place] = ids[row, :length], 1
    return rows, mask


@pytest.mark.parametrize("name", NAMES)
def test_padding_changes_nothing(name):
    """On either side, in the source and in the target: the row is what it is alone."""
    _, params, forward = build(name)
    given, length, written = inputs(RECURRENT[name], batch=3, length=7), 4, 2
    alone = forward(
        params,
        input_ids=given["input_ids"][1:2, :length],
        decoder_input_ids=given["decoder_input_ids"][1:2, :written],
    )
    for side in ("left", "right"):
        source, mask = ragged(given["input_ids"], (7, length, 1), side, 11)
        target, target_mask = ragged(given["decoder_input_ids"], (4, written, 3), side, 9)
        padded = forward(params, **four(source, mask, target, target_mask))
        shown, seen = mask[1] == 1, target_mask[1] == 1
        np.testing.assert_allclose(padded.logits[1, seen], alone.logits[0], atol=1e-6)
        states = np.asarray(padded.encoder_last_hidden_state[1])
        np.testing.assert_allclose(states[shown], alone.encoder_last_hidden_state[0], atol=1e-6)
        assert (states[~shown] == 0).all()
        if padded.alignment is not None:
            weights = np.asarray(padded.alignment)[1, seen]
            np.testing.assert_allclose(weights[:, shown], alone.alignment[0], atol=1e-6)
            assert (weights[:, ~shown] == 0).all()


def test_a_reversed_source_is_the_source_read_forward_in_reverse():
    """Of the real tokens alone: the padding stays where it is."""
    _, params, apply = build("lstm")
    forward = jax.jit(bind_apply(Recurrent(dataclasses.replace(RECURRENT["lstm"], direction="forward"))))
    renamed = {layer: {"forward": sides["backward"]} for layer, sides in params["encoder"].items()}
    given = inputs(RECURRENT["lstm"], batch=3, length=7)
    lengths = (7, 4, 1)
    source, mask = ragged(given["input_ids"], lengths, "right", 11)
    turned = source.copy()
    for row, length in enumerate(lengths):
        turned[row, :length] = source[row, :length][::-1]
    target = given["decoder_input_ids"]
    expected = forward(params | {"encoder": renamed}, **four(turned, mask, target))
    found = apply(params, **four(source, mask, target))
    np.testing.assert_allclose(found.logits, expected.logits, atol=1e-6)
    other = forward(params | {"encoder": renamed}, **four(source, mask, target))
    assert np.abs(np.asarray(found.logits - other.logits)).max() > 1e-2


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def cell_step(kind, inputs, recurrent, hidden, cell):
    """A step of torch's formulas in float64."""
    if kind == "lstm":
        i, f, g, o = inputs + recurrent
        cell = sigmoid(f) * cell + sigmoid(i) * np.tanh(g)
        return sigmoid(o) * np.tanh(cell), cell
    (r, z), n = (sigmoid(inputs[gate] + recurrent[gate]) for gate in (0, 1)), inputs[2]
    new = np.tanh(n + r * recurrent[2])
    return (1 - z) * new + z * hidden, None


@pytest.mark.parametrize("name", ["attention", "attention_lstm"])
def test_additive_attention_is_its_definition(name):
    """Bahdanau et al. 2015, A.1.2 and A.2.2, step by step in NumPy and float64, from the encoder's states on."""
    config = RECURRENT[name]
    apply, params, forward = build(name)
    given = inputs(config, batch=1, length=7)
    output = forward(params, **given)
    encoded = apply(params, input_ids=given["input_ids"], method="encode")
    weights = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    own = "embedder" if config.decoder_embedding is None else "decoder_embedder"
    table = weights[own]["token"]["embedding"]
    memory = np.asarray(encoded.last_hidden_state[0], np.float64)
    carried = [
        (np.asarray(state.hidden[0]), None if state.cell is None else np.asarray(state.cell[0]))
        for state in encoded.decoder_states
    ]
    for place, token in enumerate(given["decoder_input_ids"][0]):
        embedded = table[token] * config.target_embedding.scale
        x = embedded
        for depth in range(config.num_layers):
            layer, (hidden, cell) = weights["decoder"][f"layer_{depth}"], carried[depth]
            mapped = np.einsum("i,igd->gd", x, layer["input"]["kernel"]) + layer["input"]["bias"]
            if depth == 0:
                alignment = layer["alignment"]
                energy = np.tanh(hidden @ alignment["query"]["kernel"] + memory @ alignment["key"]["kernel"])
                shares = np.exp(energy @ alignment["score"]["kernel"][:, 0])
                shares /= shares.sum()
                context = shares @ memory
                mapped = mapped + np.einsum("m,mgd->gd", context, layer["context"]["kernel"])
                np.testing.assert_allclose(output.alignment[0, place], shares, atol=1e-6)
            recurrent = np.einsum("d,dge->ge", hidden, layer["recurrent"]["kernel"])
            recurrent = recurrent + layer["recurrent"].get("bias", 0)
            carried[depth] = cell_step(config.cell, mapped, recurrent, hidden, cell)
            x = carried[depth][0]
        whole = np.concatenate([x, context, embedded])
        pairs = np.einsum("x,xep->ep", whole, weights["readout"]["kernel"]) + weights["readout"]["bias"]
        np.testing.assert_allclose(output.logits[0, place], pairs.max(-1) @ table.T, atol=1e-5)


def test_cells_forget_and_update_as_their_gates_say():
    state = State(jnp.full((1, 2), 0.5), jnp.full((1, 2), 0.25))
    shut, open_ = -1e4, 1e4
    kept = lstm(jnp.array([shut, open_, 3.0, open_])[None, :, None] * jnp.ones((1, 4, 2)), jnp.zeros((1, 4, 2)), state)
    np.testing.assert_allclose(kept.cell, state.cell)
    np.testing.assert_allclose(kept.hidden, np.tanh(state.cell))
    state = State(state.hidden)
    held = gru(jnp.array([0.0, open_, 3.0])[None, :, None] * jnp.ones((1, 3, 2)), jnp.ones((1, 3, 2)), state)
    np.testing.assert_allclose(held.hidden, state.hidden)
    reset = gru(jnp.array([shut, shut, 0.3])[None, :, None] * jnp.ones((1, 3, 2)), jnp.ones((1, 3, 2)), state)
    np.testing.assert_allclose(reset.hidden, np.tanh(0.3) * np.ones((1, 2)), rtol=1e-6)


def log_probabilities(forward, params, source, mask, prefixes):
    """By whole forward passes: of the token after each prefix (all of one length), of one source."""
    length = len(prefixes[0])
    rows = np.pad(np.array(prefixes, np.int32), ((0, 3 - len(prefixes)), (0, 8 - length)))
    source, mask = (np.repeat(array, 3, 0) for array in (source, mask))
    logits = forward(params, **four(source, mask, rows)).logits[: len(prefixes), length - 1]
    return np.asarray(jax.nn.log_softmax(logits), np.float64)


def greedy_by_definition(forward, params, source, mask, count):
    row = [START]
    while len(row) <= count and row[-1] != END:
        row.append(int(log_probabilities(forward, params, source, mask, [row])[0].argmax()))
    return row


def beams_by_definition(forward, params, source, mask, count, num_beams):
    """Beam search over prefixes: the best finished by mean log-probability."""
    going, ended = [([START], 0.0)], []
    for step in range(1, count + 1):
        found = log_probabilities(forward, params, source, mask, [row for row, _ in going])
        longer = [
            ([*row, token], score + found[index, token])
            for index, (row, score) in enumerate(going)
            for token in range(found.shape[1])
        ]
        longer.sort(key=lambda pair: -pair[1])
        best = longer[: 2 * num_beams]
        last = step == count
        ended += [(row, score / step) for row, score in best[:num_beams] if row[-1] == END or last]
        going = [pair for pair in best if pair[0][-1] != END][:num_beams]
    return max(ended, key=lambda pair: pair[1])


@pytest.mark.parametrize("name", tiered(NAMES, ["gru", "attention_lstm"]))
def test_greedy_decoding_is_the_argmax_of_whole_forward_passes(name):
    apply, params, forward = build(name)
    source, mask = ragged(inputs(RECURRENT[name], batch=3, length=7)["input_ids"], (7, 4, 1), "right", 9)
    options = {"max_new_tokens": 6, "decoder_start_token_id": START, "eos_token_id": END, "pad_token_id": 0}
    out = generate(apply, params, source, mask, **options)
    for row in range(3):
        expected = greedy_by_definition(forward, params, source[row : row + 1], mask[row : row + 1], 6)
        length = int(out.lengths[row])
        assert np.asarray(out.sequences)[row, : length + 1].tolist() == expected
    streamed = np.stack([*stream(apply, params, source, mask, **options)], 1)
    np.testing.assert_array_equal(streamed, np.asarray(out.sequences)[:, 1 : 1 + streamed.shape[1]])


@pytest.mark.parametrize("name", ["lstm", "attention"])
def test_beams_are_those_of_a_search_by_whole_forward_passes(name):
    # Sharper logits, and an end token that comes: otherwise the search is all ties and full lengths.
    _, params, _ = build(name)
    apply = bind_apply(Recurrent(dataclasses.replace(RECURRENT[name], head=LanguageModelHead(scale=6.0))))
    source, mask = ragged(inputs(RECURRENT[name], batch=2, length=7)["input_ids"], (7, 4), "right", 9)
    options = {"max_new_tokens": 5, "decoder_start_token_id": START, "eos_token_id": END, "pad_token_id": 0}
    forward = jax.jit(apply)
    out = generate(apply, params, source, mask, num_beams=3, early_stopping=False, **options)
    for row in range(2):
        expected, score = beams_by_definition(forward, params, source[row : row + 1], mask[row : row + 1], 5, 3)
        length = int(out.lengths[row])
        assert np.asarray(out.sequences)[row, : length + 1].tolist() == expected
        assert float(out.scores[row]) == pytest.approx(score, abs=1e-4)


def test_guidance_selects_both_sides():
    apply, params, _ = build("attention")
    source = inputs(RECURRENT["attention"], batch=2, length=7)["input_ids"]
    options = {"max_new_tokens": 5, "decoder_start_token_id": START, "negative_prompt_ids": source[:1, :3]}
    greedy = generate(apply, params, source, guidance_scale=2.0, **options)
    copies = generate(
        apply, params, source, guidance_scale=2.0, do_sample=True, top_k=1, num_return_sequences=2, **options
    )
    assert np.asarray(copies.sequences).tolist() == np.repeat(np.asarray(greedy.sequences), 2, 0).tolist()


@pytest.mark.parametrize("name", tiered(NAMES, ["attention"]))
@jax.debug_nans(True)
def test_every_parameter_learns(name):
    model, params = models.build(name)
    given = inputs(RECURRENT[name], batch=3, length=7)

    def loss(params, key=None):
        return -jax.nn.log_softmax(model.apply({"params": params}, **given, dropout_rng=key).logits)[..., 3].mean()

    gradients = jax.jit(jax.grad(loss))(params)
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradients):
        assert np.isfinite(leaf).all() and np.abs(leaf).max() > 1e-7, path

    # An early input reaches the loss of the last position through every step between.
    def last(embedding):
        moved = jax.tree_util.tree_map(lambda leaf: leaf, params)
        moved["embedder"]["token"]["embedding"] = embedding
        output = model.apply({"params": moved}, input_ids=jnp.array([[50, 7, 8, 9]]), decoder_input_ids=START * ONE)
        return output.logits[0, -1, 3]

    reach = jax.jit(jax.grad(last))(params["embedder"]["token"]["embedding"])
    assert np.abs(reach[50]).max() > 0 and (np.asarray(reach[51]) == 0).all()
    if RECURRENT[name].dropout:
        dropped = jax.jit(loss)
        assert float(dropped(params, jax.random.key(0))) != float(dropped(params, jax.random.key(1)))


ONE = jnp.ones((1, 3), jnp.int32)


@pytest.mark.parametrize("remat", ["dots", "full"])
def test_recomputing_changes_no_gradient(remat):
    _, params = models.build("attention")
    given = inputs(RECURRENT["attention"], batch=2, length=6)

    def gradient(model):
        return jax.jit(jax.grad(lambda params: jnp.sin(model.apply({"params": params}, **given).logits).sum()))(params)

    plain, again = (gradient(Recurrent(RECURRENT["attention"], remat=choice)) for choice in ("none", remat))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), plain, again)


def test_recomputing_saves_memory_that_grows_with_both_lengths():
    _, params = models.build("attention")
    ids = jnp.ones((4, 64), jnp.int32)

    def temporary(remat):
        model = Recurrent(RECURRENT["attention"], remat=remat)

        def loss(params):
            return model.apply({"params": params}, input_ids=ids, decoder_input_ids=ids).logits.sum()

        return jax.jit(jax.grad(loss)).lower(params).compile().memory_analysis().temp_size_in_bytes

    scores = 4 * 4 * 64 * 64 * models.WIDTH  # float32, one a pair of positions and hidden unit
    assert temporary("none") - temporary("full") > scores / 2


@pytest.mark.parametrize("name", ["lstm", "attention"])
def test_states_stay_float32_in_bfloat16(name):
    _, params = models.build(name)
    given = inputs(RECURRENT[name], batch=2, length=7)
    model = Recurrent(RECURRENT[name], dtype=jnp.bfloat16)
    encoded = model.apply({"params": params}, given["input_ids"], method="encode")
    assert encoded.last_hidden_state.dtype == jnp.bfloat16
    assert {leaf.dtype for leaf in jax.tree.leaves(encoded.decoder_states)} == {np.dtype("float32")}
    rough, exact = (
        jax.jit(model.apply)({"params": params}, **given),
        jax.jit(Recurrent(RECURRENT[name]).apply)({"params": params}, **given),
    )
    assert rough.logits.dtype == jnp.float32
    np.testing.assert_allclose(rough.logits, exact.logits, atol=0.05 * float(np.abs(exact.logits).max()))


def test_hidden_states_are_those_of_each_layer():
    model, params = models.build("attention")
    output = model.apply({"params": params}, **inputs(model.config, batch=2, length=7), output_hidden_states=True)
    assert [state.shape[-1] for state in output.encoder_hidden_states] == [12, 32, 32]
    assert [state.shape[-1] for state in output.hidden_states] == [10, 16, 16]
    np.testing.assert_array_equal(output.encoder_hidden_states[-1], output.encoder_last_hidden_state)


WRONG = {
    "cell is 'rnn'": {"cell": "rnn"},
    "direction is 'backwards'": {"direction": "backwards"},
    "attention is 'dot'": {"attention": "dot"},
    "num_layers is 0": {"num_layers": 0},
    "dropout is 1.0": {"dropout": 1.0},
    "transform='gelu'": {"head": LanguageModelHead(transform="gelu")},
    "width is 24; logits tied": {"width": 24},
    "knows the order by reading": {
        "embedding": EmbeddingConfig(width=16, vocab_size=9, positions=LearnedPositions(max_length=4))
    },
    "has no vocab_size": {"decoder_embedding": EmbeddingConfig(width=16)},
    "projected='tokens'": {"embedding": EmbeddingConfig(width=16, vocab_size=9, projected="tokens")},
}


@pytest.mark.parametrize("message", WRONG)
def test_wrong_values_are_named(message):
    right = {"embedding": EmbeddingConfig(width=16, vocab_size=9), "width": 16}
    RecurrentConfig(**right)
    with pytest.raises(ValueError, match=message):
        RecurrentConfig(**(right | WRONG[message]))


@pytest.mark.parametrize("missing", ["decoder_input_ids", "decoder_states", "encoder_hidden_states"])
def test_missing_inputs_are_named(missing):
    model, params = models.build("attention")
    given = {"decoder_input_ids": ONE, "decoder_states": (), "encoder_hidden_states": None} | {missing: None}
    given = {{"decoder_input_ids": "input_ids"}.get(name, name): value for name, value in given.items()}
    with pytest.raises(ValueError, match=f"{missing} is missing"):
        model.apply({"params": params}, **given, method="decode")
