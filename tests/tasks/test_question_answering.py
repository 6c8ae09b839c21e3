"""Answers as spans: windows that miss nothing, characters that come back exactly, and SQuAD's scores."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from zoo.config import (
    AttentionConfig,
    EmbeddingConfig,
    MlpConfig,
    NormConfig,
    StackConfig,
    TokenHead,
    TransformerConfig,
)
from zoo.data import DataConfig, Dataset, TokenizerConfig, train_tokenizer
from zoo.tasks.answer_baselines import nearest_sentences
from zoo.tasks.question_answering import NO_ANSWER, QuestionAnsweringConfig
from zoo.tasks.report import Question
from zoo.tasks.spans import span_scores, window_starts
from zoo.tasks.squad_scores import exact_match, f1, normalize, score_answers
from zoo.training.config import MeshConfig
from zoo.training.prefetch import place_batch
from zoo.training.sharding import make_mesh, shard_parameters
from zoo.training.state import bind_apply
from zoo.transformer import Transformer

WORDS = [
    "the",
    "answer",
    "says",
    "élan,",
    "naïve\u3000日本",
    "😀",
    "and\t\tmore",
    "",
    "words\n\n",
    "  indented",
    "long",
]


def ask(number, *answers, length=60, context=None):
    """A question about a drawn text, whose answers are words of it by their places."""
    rng = np.random.default_rng(number)
    words = [f"{word}{n}" for n, word in enumerate(rng.choice(WORDS, length))]
    context = " ".join(words) if context is None else context
    starts = [context.index(words[place]) for place in answers]
    texts = [words[place] for place in answers]
    return {"id": f"q{number}", "question": f"Where is it, {number}?", "context": context,
            "answers": {"text": texts, "answer_start": starts}}  # fmt: skip


EXAMPLES = [ask(n, *([n * 5] if n % 4 else [])) for n in range(12)]


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer([example["context"] for example in EXAMPLES], TokenizerConfig(vocab_size=380))


def make(tokenizer, examples=EXAMPLES, *, length=64, threshold=0.0):
    dataset = Dataset(name="few", splits={"train": examples, "validation": examples})
    config = QuestionAnsweringConfig(
        sequence_length=length, question_length=12, answer_length=24, stride=20, batch_size=4,
        no_answer_threshold=threshold,
    )  # fmt: skip
    return config.bind(dataset, tokenizer, seed=0, data=DataConfig(name="few"))


class Output:
    def __init__(self, start, end):
        self.start_logits, self.end_logits = start, end


def knows(task):
    """A model that has seen the answers: it knows each window by its ids."""
    rows = [row for example in task.dataset.split("validation") for row in task.cut(example)]
    ids, starts, ends = (jnp.array([row[name] for row in rows]) for name in ("input_ids", "starts", "ends"))

    def apply(params, input_ids, attention_mask, token_type_ids, dropout_rng=None):
        row = (input_ids[:, None] == ids[None]).all(-1).argmax(-1)
        length = input_ids.shape[1]
        # A window that holds the answer is surer than one that says that it does not.
        height = jnp.where(starts[row] > 0, 9.0, 4.0)[:, None]
        return Output(*(jax.nn.one_hot(places[row], length) * height for places in (starts, ends)))

    return apply


@given(st.integers(0, 300), st.integers(1, 80), st.data())
def test_windows_cover_every_token_and_hold_every_short_span(num_tokens, room, data):
    stride = data.draw(st.integers(1, room))
    starts = window_starts(num_tokens, room, stride)
    assert {place for start in starts for place in range(start, min(start + room, num_tokens))} == {*range(num_tokens)}
    assert all(start < num_tokens for start in starts[1:])
    longest = min(room - stride + 1, num_tokens)
    for first in range(num_tokens - longest + 1):
        assert any(start <= first and first + longest <= start + room for start in starts)


def test_every_answer_is_in_a_window_and_comes_back_exactly(tokenizer):
    task = make(tokenizer)
    for example in EXAMPLES:
        rows = task.cut(example)
        assert len(rows) > 2
        _, offsets = tokenizer.encode_with_offsets(example["context"])
        held = [row for row in rows if row["starts"] > 0]
        assert bool(held) == bool(example["answers"]["text"])
        for row in rows:
            assert row["input_ids"].shape == (64,) and row["candidates"][row["starts"]] == 1
            assert row["token_type_ids"].sum() == row["candidates"].sum()  # the last end token, the first position
        for row in held:
            (begin, _), (_, end) = (offsets[row[name] + row["shift"]] for name in ("starts", "ends"))
            said = example["context"][begin:end]
            # A token may reach over the answer's ends.
            assert example["answers"]["text"][0] in said and len(said) <= len(example["answers"]["text"][0]) + 12


def test_a_model_that_knows_is_right(tokenizer):
    task = make(tokenizer)
    results = task.evaluate(knows(task), {})
    assert results["no_answer_exact"] == 100 and results["questions"] == 12 and results["accuracy"] == 1
    for example, found in zip(EXAMPLES, task.find(knows(task), {}, "validation"), strict=True):
        answer = task.decide(found)
        assert answer in example["context"] and answer == answer.strip()
        assert all(text in answer for text in example["answers"]["text"]) and bool(answer) == bool(
            example["answers"]["text"]
        )
    assert [figure.name for figure in task.figures(results)] == [
        "loss", "exact", "f1", "has answer exact", "has answer f1", "no answer exact",
    ]  # fmt: skip


def test_the_threshold_decides(tokenizer):
    never, always = (make(tokenizer, threshold=threshold) for threshold in (-100.0, None))
    assert set(map(never.decide, never.find(knows(never), {}, "validation"))) == {""}
    assert all(map(always.decide, always.find(knows(always), {}, "validation")))
    assert [*always.predictions(knows(always), {})] == [""]


def test_predictions_are_what_the_scorer_reads(tokenizer):
    task = make(tokenizer)
    files = task.predictions(knows(task), {})
    answers, odds = json.loads(files[""]), json.loads(files["na_prob"])
    assert [*answers] == [*odds] == [f"q{n}" for n in range(12)]
    wanted = [example["answers"]["text"] for example in EXAMPLES]
    assert score_answers([*answers.values()], wanted)["exact"] == task.evaluate(knows(task), {})["exact"]
    assert all((odds[name] > 0.5) == (answers[name] == "") for name in odds)


def test_no_span_is_backwards_or_too_long():
    start, end = jnp.array([[0.0, 5, 0, 0]]), jnp.array([[9.0, 0, 0, 7]])
    scores = np.asarray(span_scores(start, end, 2))[0]
    assert np.isfinite(scores).sum() == 4 + 3
    assert scores[1, 2] == 5 and scores[2, 3] == 7 and scores[1, 3] == scores[1, 0] == -np.inf
    assert np.unravel_index(np.asarray(span_scores(start, end, 3)).argmax(), (4, 4)) == (1, 3)


def test_answers_to_a_prompt(tokenizer):
    task = make(tokenizer)
    question = Question(prompt=EXAMPLES[1]["question"], context=EXAMPLES[1]["context"])
    assert EXAMPLES[1]["answers"]["text"][0] in task.respond(knows(task), {}, question)
    question = Question(prompt=EXAMPLES[0]["question"], context=EXAMPLES[0]["context"])
    assert task.respond(knows(task), {}, question) == NO_ANSWER
    assert task.respond(knows(task), {}, Question(prompt="why", context="\n 日")) in (NO_ANSWER, "日")
    with pytest.raises(ValueError, match="--context is missing"):
        task.respond(knows(task), {}, Question(prompt="why"))
    assert task.beside["context"] in [example["context"] for example in EXAMPLES]
    assert len([*task.samples(knows(task), {})]) == 6


def test_training_batches_go_on_where_they_were(tokenizer):
    iterator = make(tokenizer).batches("train")
    for _ in range(3):
        next(iterator)
    state = iterator.get_state()
    wanted = [next(iterator) for _ in range(20)]
    again = make(tokenizer).batches("train")
    again.set_state(state)
    for batch in wanted:
        for name, value in next(again).items():
            np.testing.assert_array_equal(value, batch[name])
    assert {int(index) for batch in wanted for index in batch["example"]} == {*range(12)}


def test_few_windows_without_the_answer_are_trained_on(tokenizer):
    examples = [ask(n, 30) for n in range(8)]
    task = make(tokenizer, examples)
    few = dataclasses.replace(task, config=dataclasses.replace(task.config, empty_windows=0.0))
    for example in (*examples, ask(9)):
        rows, kept = task.cut_to_train(example), few.cut_to_train(example)
        assert len(rows) == len(task.cut(example)) > 2
        answered = [row for row in rows if row["starts"]] or rows  # of a question without an answer all windows stay
        assert [int(row["shift"]) for row in kept] == [int(row["shift"]) for row in answered]


def test_settings_under_which_answers_would_be_lost_are_refused(tokenizer):
    with pytest.raises(ValueError, match="give at least 222, or a smaller stride"):
        QuestionAnsweringConfig(sequence_length=221, question_length=60, answer_length=40, stride=120)
    with pytest.raises(ValueError, match="stride is 0"):
        QuestionAnsweringConfig(stride=0)
    with pytest.raises(ValueError, match=r"empty_windows is 1\.5; give a share"):
        QuestionAnsweringConfig(empty_windows=1.5)
    with pytest.raises(ValueError, match=r"has no field 'question' but text: give questions in SQuAD's shape"):
        make(tokenizer, [{"text": "no question"}])


def test_scores_by_hand():
    assert normalize(" The  Eiffel-Tower,\n an iron (lattice) tower! ") == "eiffeltower iron lattice tower"
    assert exact_match("a cat.", "The Cat") == 1 and exact_match("cats", "cat") == 0
    # Said: 3 words, wanted: 2, in common: 2, one of them twice.
    assert f1("big big dog", "the big dog") == pytest.approx(2 * (2 / 3) * 1 / (2 / 3 + 1))
    assert f1("dog", "cat") == 0 and f1("", "cat") == 0 and f1("the", "a") == 1
    scores = score_answers(["Paris", "", "in the city of Paris", "no"], [["London", "paris"], [], ["Paris"], []])
    assert scores["exact"] == 50 and scores["f1"] == pytest.approx(100 * (1 + 1 + 2 / 5 + 0) / 4)
    assert scores["has_answer_exact"] == 50 and scores["has_answer_f1"] == pytest.approx(70)
    assert scores["no_answer_exact"] == 50
    assert score_answers(["x"], [["x", "y"]]) == {"exact": 100, "f1": 100}
    assert score_answers([""], [["..."]])["exact"] == 100  # a text without words is no answer


def test_the_sentence_most_like_a_question(tokenizer):
    pytest.importorskip("sklearn")
    assert [figure.name for figure in make(tokenizer).baselines()] == ["sentence", "no answer"]
    context = "Ants are small. The elephant eats grass and fruit! Birds fly. "
    assert nearest_sentences(["What does the elephant eat?", "Do birds fly"], [context] * 2) == [
        "The elephant eats grass and fruit!",
        "Birds fly.",
    ]


def small_model(vocab_size):
    stack = StackConfig(
        num_layers=1, width=16, attention=AttentionConfig(num_heads=2, head_size=8), mlp=MlpConfig(hidden_size=32),
        norm=NormConfig(),
    )  # fmt: skip
    embedding = EmbeddingConfig(width=16, vocab_size=vocab_size, num_token_types=2)
    return Transformer(TransformerConfig(embedding=embedding, encoder=stack, head=TokenHead(num_classes=2)))


def test_eight_devices_have_one_devices_loss(tokenizer):
    task = make(tokenizer, [ask(n, 3) for n in range(8)])
    batch = next(task.batches("train"))
    batch = {name: np.concatenate([value, np.roll(value, 1, 0)]) for name, value in batch.items()}
    model = small_model(tokenizer.vocab_size)
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask", "token_type_ids")}
    params = jax.jit(model.init)(jax.random.key(0), **inputs)["params"]
    losses = []
    for config in (MeshConfig(data=1), MeshConfig(data=2, fsdp=2, tensor=2)):
        mesh = make_mesh(config)
        with jax.set_mesh(mesh):
            placed = jax.device_put(params, shard_parameters(params, mesh))
            loss = jax.jit(lambda params, batch: task.loss(bind_apply(model), params, batch))
            losses.append(jax.tree.map(float, loss(placed, place_batch(batch, mesh))))
    assert losses[0][0] == pytest.approx(losses[1][0], abs=1e-5) and losses[0][1] == losses[1][1]
    assert losses[0][0] == pytest.approx(np.log(batch["candidates"].sum(1)).mean(), abs=1.0)
