"""Search: the contrastive loss and the scores from their definitions, over one device and eight, and what users see."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from models import BERT

from zoo.bundle import Bundle
from zoo.config import EmbeddingHead
from zoo.data import DataConfig, Dataset, TokenizerConfig, fit_tokenizer
from zoo.data.builders.parallel import write_parallel
from zoo.tasks.report import Question
from zoo.tasks.retrieval import find_answers, nearest, rank_answers, score_ranks, tfidf
from zoo.tasks.sentence_embedding import SentenceEmbeddingConfig
from zoo.training.config import MeshConfig
from zoo.training.prefetch import place_batch
from zoo.training.sharding import make_mesh
from zoo.training.state import bind_apply
from zoo.transformer import Transformer

NUMBERS = ("eins", "zwei", "drei", "vier", "fünf", "sechs", "sieben", "acht")
PAIRS = [{"source": f"{n} {word} Katzen", "target": f"{number} {n} cats"}
         for n in range(7) for number, word in enumerate(NUMBERS)]  # fmt: skip


@pytest.fixture(scope="module")
def model():
    """A small BERT that embeds, and its parameters."""
    embedding = dataclasses.replace(BERT.embedding, vocab_size=320)
    module = Transformer(dataclasses.replace(BERT, embedding=embedding, head=EmbeddingHead()))
    params = jax.jit(module.init)(jax.random.key(0), input_ids=jnp.ones((1, 4), jnp.int32))["params"]
    # Larger than they begin, so that texts differ.
    return module, jax.tree.map(lambda leaf: 3 * leaf, params)


@pytest.fixture(scope="module")
def tokenizer():
    return fit_tokenizer(PAIRS, TokenizerConfig(vocab_size=320), keys=("source", "target"))


def make(tokenizer, *, train=PAIRS, held_out=PAIRS[:20], **options):
    config = SentenceEmbeddingConfig(**({"source_length": 24, "target_length": 20, "batch_size": 16} | options))
    dataset = Dataset(name="pairs", splits={"train": train, "validation": held_out})
    return config.bind(dataset, tokenizer, seed=0, data=DataConfig(name="pairs"))


def vectors_of(task, module, params, batch):
    """As sentence-transformers makes them: the mean of the last states over tokens, of length one."""
    forward = jax.jit(Transformer(dataclasses.replace(module.config, head=None)).apply)
    params = {name: part for name, part in params.items() if name != "head"}
    for side in ("source", "target"):
        ids, mask = batch[f"{side}_input_ids"], batch[f"{side}_attention_mask"]
        hidden = np.asarray(forward({"params": params}, input_ids=ids, attention_mask=mask).last_hidden_state)
        mean = (hidden * mask[..., None]).sum(1) / np.maximum(mask.sum(1, keepdims=True), 1)
        yield mean / np.maximum(np.linalg.norm(mean, axis=-1, keepdims=True), 1e-12)


@pytest.mark.parametrize("symmetric", [True, False])
def test_loss_from_its_definition(model, tokenizer, symmetric):
    module, params = model
    twice = [PAIRS[0], PAIRS[9] | {"target": PAIRS[0]["target"]}, PAIRS[0] | {"target": "cats"},
             {"source": "cats", "target": PAIRS[30]["target"]}, *PAIRS[40:46]]  # fmt: skip
    task = make(tokenizer, held_out=twice, symmetric=symmetric, temperature=0.3)
    (batch,) = task.batches("validation")
    loss, metrics = jax.jit(task.loss, static_argnums=0)(bind_apply(module), params, batch)
    source, target = vectors_of(task, module, params, batch)
    texts, losses, right = [{pair["source"], pair["target"]} for pair in twice], [], 0
    for i in range(10):
        others = [j for j in range(10) if not texts[i] & texts[j]]
        forward, back = ([x[i] @ y[j] / 0.3 for j in (i, *others)] for x, y in ((source, target), (target, source)))
        nats = [np.log(np.exp(scores).sum()) - scores[0] for scores in (forward, back)]
        losses.append(np.mean(nats) if symmetric else nats[0])
        right += forward[0] == max(forward)
    assert metrics["weight"] == 10 and loss == pytest.approx(np.mean(losses), rel=1e-4)
    assert metrics["accuracy"] == pytest.approx(right / 10)


@pytest.mark.slow
def test_negatives_are_the_whole_batchs_on_eight_devices(model, tokenizer):
    module, params = model
    task, apply = make(tokenizer, temperature=0.5), bind_apply(module)
    batch = next(task.batches("train"))

    @jax.jit
    def learn(params, batch):
        return jax.value_and_grad(lambda p: task.loss(apply, p, batch, jax.random.key(1))[0])(params)

    loss, gradients = learn(params, batch)
    mesh = make_mesh(MeshConfig(data=8))
    with jax.set_mesh(mesh):
        placed = place_batch(batch, mesh)
        assert placed["source_input_ids"].addressable_shards[0].data.shape == (2, 24)
        shared, shared_gradients = learn(params, placed)
    assert float(shared) == pytest.approx(float(loss), rel=1e-5)
    one, eight = (np.concatenate([leaf.ravel() for leaf in jax.tree.leaves(g)]) for g in (gradients, shared_gradients))
    assert np.linalg.norm(one - eight) < 1e-4 * np.linalg.norm(one)
    parts = [learn(params, {name: x[i : i + 2] for name, x in batch.items()})[0] for i in range(0, 16, 2)]
    assert np.mean(parts) < 0.5 * float(loss)  # among two, the partner is sooner found than among sixteen


def test_ranks_from_their_definition():
    texts, answers = find_answers(["a", "b", "a", "c"], ["x", "y", "z", "y"])
    assert texts == ["x", "y", "z"] and answers == [[0, 2], [1], [0, 2], [1]]
    asked, known = np.eye(3)[[0, 1, 0, 2]], np.array([[0.2, 0.9, 0.1], [0.7, 0.5, 0.1], [0.9, 0.6, 0.3]])
    # y is third for b; for c it ties with x behind z.
    ranks = rank_answers(asked, known, answers)
    assert ranks.tolist() == [1, 3, 1, 2.5]
    scores = score_ranks(ranks)
    assert scores["recall_at_1"] == 50 and scores["recall_at_5"] == 100
    assert scores["mrr"] == pytest.approx(100 * (1 + 1 / 3 + 1 + 1 / 2.5) / 4)
    assert [place for place, _ in nearest(known[0], known)] == [0, 2, 1]


def test_search_is_scored_over_all_held_out_texts(model, tokenizer):
    module, params = model
    held_out = [*PAIRS[:20], PAIRS[3] | {"target": PAIRS[5]["target"]}]
    task = make(tokenizer, held_out=held_out, batch_size=8)
    results = task.evaluate(bind_apply(module), params)
    assert (results["queries"], results["pool"]) == (21, 20)
    rows = [task.encode(pair) for pair in held_out]
    batch = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
    source, target = vectors_of(task, module, params, batch)
    found = 0
    for query, pair in zip(source, held_out, strict=True):
        best = held_out[int((target @ query).argmax())]["target"]
        found += any(best == other["target"] and pair["source"] == other["source"] for other in held_out)
    assert results["recall_at_1"] == pytest.approx(100 * found / 21)
    assert [figure.name for figure in task.figures(results)] == ["loss", "recall@1", "recall@5", "recall@10", "MRR"]


def test_baselines_search_the_same_texts(tokenizer):
    pytest.importorskip("sklearn")
    same = [{"source": f"{n} and more", "target": f"more {n}"} for n in ("apples", "pears", "plums")]
    figures = list(make(tokenizer, held_out=same).baselines())
    assert [(figure.name, figure.value) for figure in figures] == [
        ("recall@1: words", "100.00 %"),
        ("recall@1: letters", "100.00 %"),
    ]
    asked, known = tfidf(["Hunde"], ["Hund", "Katze"], "letters")
    assert (asked @ known.T).toarray().argmax() == 0


def test_a_run_embeds_what_it_learned_to(model, tokenizer):
    """`Bundle.embed`, search and the definition agree, whatever stands beside a text in its batch."""
    module, params = model
    task = make(tokenizer)
    texts = [pair["source"] for pair in PAIRS[:5]] + ["Katzen"]
    vectors = task.embed(bind_apply(module), params, texts, 24)
    bundle = Bundle(model=module, params=params, config=module.config, tokenizer=tokenizer)
    np.testing.assert_allclose(bundle.embed(texts, batch_size=4), vectors, atol=1e-5)
    rows = [task.encode({"source": text, "target": text}) for text in texts]
    batch = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
    np.testing.assert_allclose(next(vectors_of(task, module, params, batch)), vectors, atol=1e-5)
    with pytest.raises(ValueError, match="'query' is no prompt"):
        bundle.embed(texts, prompt="query")


def test_answers(model, tokenizer):
    module, params = model
    task, apply = make(tokenizer), bind_apply(module)
    prompt = PAIRS[4]["source"]
    lines = task.respond(apply, params, Question(prompt=prompt, candidates=("cats", prompt))).splitlines()
    assert lines[0] == f" 1.0000  {prompt}" and lines[1].endswith("  cats")
    found = task.respond(apply, params, Question(prompt=prompt)).splitlines()
    assert len(found) == 10 and {line[9:] for line in found} <= {pair["target"] for pair in PAIRS[:20]}
    cosines = [float(line[:7]) for line in found]
    assert cosines == sorted(cosines, reverse=True)
    assert len(list(task.samples(apply, params))) == 6


def test_mistakes(model, tokenizer):
    module, params = model
    headless = bind_apply(Transformer(dataclasses.replace(module.config, head=None)))
    with pytest.raises(ValueError, match="give it an EmbeddingHead"):
        make(tokenizer).embed(headless, {k: v for k, v in params.items() if k != "head"}, ["a"], 8)
    with pytest.raises(ValueError, match="temperature is 0"):
        SentenceEmbeddingConfig(temperature=0)
    with pytest.raises(ValueError, match="batch_size is 1"):
        SentenceEmbeddingConfig(batch_size=1)


def test_parallel_texts_mean_one_thing():
    train, held_out = list(write_parallel("train")), list(write_parallel("validation"))
    assert len(train) > 80_000 and len(held_out) > 700
    texts = [pair[side] for pair in held_out for side in ("source", "target")]
    assert len(set(texts)) == len(texts)  # each is in one pair
    assert not set(texts) & {pair[side] for pair in train for side in ("source", "target")}
    assert all(pair["source"] != pair["target"] and ">>" not in pair["source"] for pair in train)
    assert len({(pair["source_language"], pair["target_language"]) for pair in train}) == 56
