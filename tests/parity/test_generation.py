"""Beam search, logits processing and their options against the reference library's; needs torch and transformers.

The model is two tables: logits of the next token are a row for the newest token plus a row for the one before.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import struct

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.peers

from transformers.modeling_outputs import CausalLMOutput

from zoo.generate import generate, stream
from zoo.generation_config import read_config
from zoo.logits import History, process

VOCAB = 23
TABLES = np.random.default_rng(0).normal(size=(2, VOCAB, VOCAB)).astype(np.float32) * 1.5


@struct.dataclass
class Cache:
    token: jax.Array

    def select(self, rows):
        return Cache(self.token[rows])


def apply(params, *, method, input_ids=None, attention_mask=None, capacity=None, token=None, cache=None):
    """The model, as `zoo.generate` calls it."""
    del attention_mask, capacity
    if method == "for_steps":
        return params
    newest, before = (input_ids[:, -1], input_ids[:, -2]) if method == "prefill" else (token, cache.token)
    return params[0][newest] + params[1][before], Cache(newest)


class Reference(transformers.PreTrainedModel, transformers.GenerationMixin):
    """The model, as the reference calls it."""

    config_class = transformers.GPT2Config
    _supports_cache_class = False

    def __init__(self):
        super().__init__(transformers.GPT2Config(vocab_size=VOCAB, bos_token_id=None, eos_token_id=None))
        self.tables = torch.nn.Parameter(torch.tensor(TABLES))

    def forward(self, input_ids, attention_mask=None, **rest):
        logits = self.tables[0][input_ids[:, -1]] + self.tables[1][input_ids[:, -2]]
        return CausalLMOutput(logits=logits[:, None])


@pytest.fixture(scope="module")
def reference():
    transformers.logging.set_verbosity_error()
    return Reference().eval()


PROMPTS = np.array([[2, 3, 5, 3, 5], [2, 2, 7, 11, 4], [9, 8, 9, 8, 7]], np.int32)
MASK = np.array([[1] * 5, [0, 0, 1, 1, 1], [1] * 5], np.int32)

PROCESSORS = {
    "repetition_penalty": {"repetition_penalty": 1.3},
    "repetition_reward": {"repetition_penalty": 0.7},
    "unigrams": {"no_repeat_ngram_size": 1},
    "bigrams": {"no_repeat_ngram_size": 2},
    "trigrams": {"no_repeat_ngram_size": 3},
    "long_ngrams": {"no_repeat_ngram_size": 9},
    "bad_words": {"bad_words_ids": [[1], [4], [7, 12], [5, 3, 5, 13], [9, 9]]},
    "sequence_bias": {"sequence_bias": [[[6], 2.0], [[7, 3], 1.0], [[4, 3], -1.0], [[8, 7, 3], 0.5]]},
    "min_length": {"min_length": 6},
    "min_new_tokens": {"min_new_tokens": 1},
    "forced_eos": {"forced_eos_token_id": [1, 6], "max_length": 6},
    "decay": {"exponential_decay_length_penalty": (0, 1.5)},
    "suppress": {"suppress_tokens": [0, 5, 17]},
    "begin_suppress": {"begin_suppress_tokens": [0, 5, 17]},
    "renormalize": {"suppress_tokens": [3], "renormalize_logits": True},
    "temperature": {"do_sample": True, "temperature": 0.6, "top_k": None},
    "top_k": {"do_sample": True, "top_k": 4},
    "top_k_default": {"do_sample": True},
    "top_p": {"do_sample": True, "top_p": 0.8, "top_k": 0},
    "min_p": {"do_sample": True, "min_p": 0.2, "top_k": 0},
    "all": {"do_sample": True, "temperature": 1.4, "top_k": 9, "top_p": 0.9, "min_p": 0.05, "repetition_penalty": 1.2,
            "no_repeat_ngram_size": 2, "bad_words_ids": [[4]], "renormalize_logits": True},
    "beams_keep_more": {"do_sample": True, "num_beams": 2, "top_p": 0.05, "min_p": 0.9, "top_k": 1},
}  # fmt: skip


@pytest.mark.parametrize("new", [0, 1, 3])
@pytest.mark.parametrize("name", PROCESSORS)
def test_processing_equals_the_reference(reference, name, new):
    options = {"eos_token_id": [1, 6], "max_length": 12} | PROCESSORS[name]
    rng = np.random.default_rng(new)
    ids = np.concatenate([PROMPTS, rng.integers(2, VOCAB, (3, new))], 1).astype(np.int32)
    logits = rng.normal(size=(3, VOCAB)).astype(np.float32) * 3
    config = transformers.GenerationConfig(**({"top_k": 50} | options))
    config._eos_token_tensor = torch.tensor([1, 6])
    if "min_new_tokens" in options:
        config.min_length = options["min_new_tokens"] + 5
    processors = reference._get_logits_processor(
        config, input_ids_seq_length=5, model_kwargs={"attention_mask": torch.tensor(MASK)}
    )
    wanted = processors(torch.tensor(ids).long(), torch.tensor(logits)).numpy()
    room = 4  # what fills the bucket before the prompts
    history = History(
        tokens=jnp.asarray(np.pad(ids, ((0, 0), (room, 6)), constant_values=3)),
        begin=jnp.int32(room),
        prompt_end=jnp.int32(room + 5),
        end=jnp.int32(room + 5 + new),
        limit=jnp.int32(room + options["max_length"]),
        min_length=jnp.int32(config.min_length or 0),
        first=jnp.asarray(room + MASK.argmax(-1)),
    )
    found = process(jnp.asarray(logits), history, read_config(options))
    if new == 0 and name not in ("decay", "long_ngrams", "top_k_default"):
        assert (wanted != logits).any()
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)


SEARCHES = [
    {"num_beams": beams, "early_stopping": early, "length_penalty": penalty, "eos_token_id": eos}
    for beams, early, penalty, eos in [
        (2, False, 1.0, 1), (2, True, 1.0, [1, 6, 12]), (2, "never", 1.0, [1, 6]), (3, False, 0.0, [1, 6]),
        (3, True, 2.0, 1), (3, "never", 2.0, [1, 6, 12]), (3, "never", -1.0, [1, 6]), (4, False, -1.0, [1, 6, 12, 18]),
        (4, True, 0.6, [1, 6]), (5, False, 2.0, [1, 6]), (2, False, 1.0, None), (3, True, 1.0, list(range(9))),
    ]
] + [
    {"num_beams": 3, "num_return_sequences": 2, "eos_token_id": 1, "no_repeat_ngram_size": 2},
    {"num_beams": 3, "num_return_sequences": 3, "eos_token_id": [1, 6], "repetition_penalty": 1.4, "max_length": 12},
    {"num_beams": 2, "eos_token_id": [1, 6], "min_length": 9, "forced_eos_token_id": 1, "bad_words_ids": [[3], [5, 4]]},
    {"num_beams": 2, "eos_token_id": 1, "pad_token_id": 0, "min_new_tokens": 4, "renormalize_logits": True},
    {"num_beams": 3, "eos_token_id": 1, "exponential_decay_length_penalty": (2, 1.3), "suppress_tokens": [2, 3]},
    {"eos_token_id": [1, 6], "pad_token_id": 2},
    {"eos_token_id": [1, 6], "repetition_penalty": 1.2, "no_repeat_ngram_size": 2, "begin_suppress_tokens": [1, 6, 7]},
    {},
]  # fmt: skip


@pytest.mark.filterwarnings("ignore:Using the model-agnostic default:UserWarning")
@pytest.mark.parametrize("options", SEARCHES, ids=lambda options: "-".join(map(str, options.values())) or "default")
def test_sequences_equal_the_reference(reference, options):
    options = {"max_new_tokens": 9} | options if options and "max_length" not in options else options
    for prompts, mask in ((PROMPTS, MASK), (PROMPTS[:1, 2:], MASK[:1, 2:])):
        wanted = reference.generate(
            torch.tensor(prompts).long(), attention_mask=torch.tensor(mask).long(), do_sample=False, use_cache=False,
            return_dict_in_generate=True, output_scores=True, **options,
        )  # fmt: skip
        found = generate(apply, jnp.asarray(TABLES), prompts, mask, **options)
        np.testing.assert_array_equal(found.sequences, wanted.sequences)
        if options.get("num_beams", 1) > 1:
            np.testing.assert_allclose(found.scores, wanted.sequences_scores, rtol=1e-5)
        else:
            new = [row[row >= 0].tolist() for row in np.array(list(stream(apply, TABLES, prompts, mask, **options))).T]
            assert new == np.asarray(found.sequences)[:, prompts.shape[1] :].tolist()


def test_beam_sampling_draws_without_replacement_by_probability():
    """The best of two beams after one step is as likely as its token among the pairs drawn."""
    ids = np.repeat([[2, 3]], 4096, 0).astype(np.int32)
    options = {"num_beams": 2, "num_return_sequences": 2, "do_sample": True, "top_k": 0, "max_new_tokens": 1}
    found = np.asarray(generate(apply, jnp.asarray(TABLES), ids, **options).sequences)[:, -1].reshape(-1, 2)
    assert (found[:, 0] != found[:, 1]).all()
    probability = np.exp(TABLES[0][3] + TABLES[1][2])
    probability /= probability.sum()
    # Four tokens are drawn without replacement, and the two likeliest of these go on only where they were drawn first.
    pairs = itertools.permutations(range(VOCAB), 2)
    wanted = np.zeros(VOCAB)
    for first, second in pairs:
        share = probability[first] * probability[second] / (1 - probability[first])
        wanted[max(first, second, key=lambda token: probability[token])] += share
    shares = np.bincount(found[:, 0], minlength=VOCAB) / len(found)
    np.testing.assert_allclose(shares, wanted, atol=0.03)
