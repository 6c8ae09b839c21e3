"""Pairs packed into rows cost what they cost alone, and what is written is scored against whole targets."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from models import CONFIGS

from zoo.data import DataConfig, Dataset, TokenizerConfig, fit_tokenizer
from zoo.tasks.pair_baselines import write_baseline
from zoo.tasks.report import Question, spell
from zoo.tasks.sequence_to_sequence import SequenceToSequenceConfig
from zoo.training.state import bind_apply
from zoo.transformer import Transformer

PAIRS = [{"source": f">>en<< {n} {'Hund' if n % 2 else 'Katzen'}", "target": f"{n} {'dog' if n % 2 else 'cats'}"}
         for n in range(100, 140)]  # fmt: skip


@pytest.fixture(scope="module")
def bound():
    """The task on a few pairs, a small T5's forward pass, and its parameters."""
    config = CONFIGS["t5"]
    config = dataclasses.replace(config, embedding=dataclasses.replace(config.embedding, vocab_size=320))
    tokenizer = fit_tokenizer(PAIRS, TokenizerConfig(vocab_size=320), keys=("source", "target"))
    dataset = Dataset(name="pairs", splits={"train": PAIRS, "validation": PAIRS[:5]})
    chosen = SequenceToSequenceConfig(source_length=64, target_length=40, batch_size=4, baselines=("copy",))
    task = chosen.bind(dataset, tokenizer, seed=0, data=DataConfig(name="pairs"))
    model = Transformer(config)
    ids = jnp.ones((1, 4), jnp.int32)
    params = jax.jit(model.init)(jax.random.key(0), input_ids=ids, decoder_input_ids=ids)["params"]
    return task, bind_apply(model), params


def compiled_loss(task):
    """`task.loss`, compiled: run op by op, it takes ten times as long."""
    return jax.jit(task.loss, static_argnums=0)


def test_packed_pairs_cost_what_they_cost_alone(bound):
    task, apply, params = bound
    packed = next(task.batches("train"))
    assert packed["inputs_segment_ids"].max() > 1
    cost = compiled_loss(task)
    loss, metrics = cost(apply, params, packed)
    total = count = 0.0
    for row in range(4):
        for segment in range(1, packed["inputs_segment_ids"][row].max() + 1):
            alone = {}
            for name in ("inputs", "targets"):
                tokens = packed[name][row][packed[f"{name}_segment_ids"][row] == segment]
                places = np.arange(packed[name].shape[1], dtype=np.int32)  # rows as long as before: one program
                alone[name] = np.pad(tokens, (0, len(places) - len(tokens)))[None]
                alone[f"{name}_segment_ids"] = (places < len(tokens)).astype(np.int32)[None]
                alone[f"{name}_positions"] = places[None]
            nats, found = cost(apply, params, alone)
            total, count = total + float(nats) * float(found["weight"]), count + float(found["weight"])
    assert count == float(metrics["weight"])
    assert float(loss) == pytest.approx(total / count, rel=1e-5)


def test_every_held_out_pair_is_scored_once(bound, monkeypatch):
    task, apply, params = bound
    answers = {pair["source"]: pair["target"] for pair in PAIRS}

    def write(self, apply, params, ids, mask, **options):
        return [answers.get(self.tokenizer.decode(row), "blank") for row in ids]

    monkeypatch.setattr(type(task), "write", write)
    results = task.evaluate(apply, params)
    assert results["exact_match"] == 100 and results["pairs"] == 5
    answers[PAIRS[3]["source"]] = "two\nlines"
    lines = [pair["target"] for pair in PAIRS[:3]] + ["two lines", PAIRS[4]["target"]]
    assert task.predictions(apply, params) == {"": "\n".join(lines) + "\n"}
    assert task.evaluate(apply, params)["exact_match"] == 80


def test_the_model_writes_and_reports(bound):
    task, apply, params = bound
    results = task.evaluate(apply, params)
    names = [figure.name for figure in task.figures(results)]
    assert names == ["loss", "perplexity", "accuracy", "exact match"]
    assert [(figure.name, figure.value) for figure in task.baselines()] == [("copy: exact match", "0.00")]
    ((prompt, answer), *_) = task.samples(apply, params)
    assert prompt == PAIRS[0]["source"] and isinstance(answer, str)


def test_an_answer_is_what_the_split_is_scored_by(bound):
    task, apply, params = bound
    batch = next(iter(task.batches("validation")))
    asked = apply, params, batch["inputs"], batch["inputs_segment_ids"]
    answers = ["".join(task.respond(apply, params, Question(prompt=pair["source"]))) for pair in PAIRS[:4]]
    assert task.write(*asked) == answers
    beams = dataclasses.replace(task, config=dataclasses.replace(task.config, num_beams=3))
    (whole,) = task.respond(apply, params, Question(prompt=PAIRS[0]["source"], options={"num_beams": 3}))
    assert beams.write(*asked)[0] == whole


def test_a_prefix_is_kept_and_counts(bound):
    task, apply, params = bound
    assert "".join(task.respond(apply, params, Question(prompt="zwei", prefix="two d"))).startswith("two d")
    with pytest.raises(ValueError, match=r"the prefix has .* tokens and this model writes 40; shorten it"):
        task.respond(apply, params, Question(prompt="zwei", prefix="q" * 50))


def test_baselines():
    pytest.importorskip("sklearn")
    train = [">>en<< drei Hunde", ">>fr<< drei Hunde", ">>en<< zwei Katzen"]
    targets = ["three dogs", "trois chiens", "two cats"]
    asked = [">>fr<< vier Hunde", ">>en<< vier Katzen"]
    assert write_baseline("copy", asked, train, targets)[0] == ["vier Hunde", "vier Katzen"]
    assert write_baseline("lead", ["one two three four"], train, ["a b", "a b c d"])[0] == ["one two three"]
    assert write_baseline("nearest", asked, train, targets)[0] == ["trois chiens", "two cats"]


def test_text_comes_in_whole_characters():
    said = {(1,): "a", (1, 2): "a\N{REPLACEMENT CHARACTER}", (1, 2, 3): "aé", (1, 2, 3, 4): "aé!"}
    tokens = [np.array([token, 9]) for token in (2, 3, 4)]
    assert [*spell(tokens, lambda ids: said[tuple(ids)], [1])] == ["a", "é", "!", ""]


def test_rows_of_their_own_cost_what_shared_rows_cost(bound):
    """One pair a row in training, told by masks: the same loss, and the same pairs of an epoch."""
    task, apply, params = bound
    alone = dataclasses.replace(task, config=dataclasses.replace(task.config, packed=False))
    batches, seen = alone.batches("train"), []
    costs = compiled_loss(alone), compiled_loss(task)
    for _ in range(10):
        batch = next(batches)
        assert batch["inputs_segment_ids"].max() == 1 and batch["targets_segment_ids"].max() == 1
        seen += [alone.tokenizer.decode(row) for row in batch["targets"]]
        (nats, found), (again, expected) = (cost(apply, params, batch) for cost in costs)
        assert float(nats) == pytest.approx(float(again), rel=1e-5) and found["weight"] == expected["weight"]
    assert sorted(seen) == sorted(pair["target"] for pair in PAIRS)  # 40 pairs in 10 batches of 4


def test_smoothed_targets_are_their_definition(bound):
    task, apply, params = bound
    smooth = dataclasses.replace(task, config=dataclasses.replace(task.config, label_smoothing=0.3))
    batch = next(iter(task.batches("validation")))
    plain, _ = compiled_loss(task)(apply, params, batch, jax.random.key(0))
    loss, _ = compiled_loss(smooth)(apply, params, batch, jax.random.key(0))
    ids = {"input_ids": batch["inputs"], "attention_mask": batch["inputs_segment_ids"]}
    logits = apply(params, **ids, decoder_input_ids=batch["targets"][:, :-1]).logits
    flat = -np.asarray(jax.nn.log_softmax(logits)).mean(-1)
    kept = batch["targets_segment_ids"][:, 1:] > 0
    assert float(loss) == pytest.approx(0.7 * float(plain) + 0.3 * flat[kept].mean(), rel=1e-5)
    scored, _ = smooth.loss(apply, params, batch)
    assert float(scored) == pytest.approx(float(plain), rel=1e-6)  # held-out loss is of the targets themselves
    with pytest.raises(ValueError, match=r"label_smoothing is 1\.0; give a share"):
        SequenceToSequenceConfig(label_smoothing=1.0)
