"""Texts and pairs to classes: rows, scores from their definitions, and what a user is told."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zoo.data import DataConfig, Dataset, TokenizerConfig, fit_tokenizer
from zoo.tasks.report import Question
from zoo.tasks.text_classification import TextClassificationConfig, score_classes

LABELS = ["yes" if n % 3 else "no" for n in range(24)]
TEXTS = [{"text": f"{'good' if label == 'yes' else 'bad'} thing number {n}", "second": "x" * n, "label": label}
         for n, label in enumerate(LABELS)]  # fmt: skip


class Output:
    def __init__(self, logits):
        self.logits = logits


@pytest.fixture(scope="module")
def tokenizer():
    return fit_tokenizer(TEXTS, TokenizerConfig(vocab_size=330), keys=("text", "second"))


def few():
    return Dataset(name="few", splits={"train": TEXTS, "validation": TEXTS[:10]})


def make(tokenizer, *, length=24, **keys):
    config = TextClassificationConfig(sequence_length=length, batch_size=4)
    return config.bind(few(), tokenizer, seed=0, data=DataConfig(name="few", **keys))


def knows_bad(tokenizer):
    """A model that says no where it reads a token that all bad texts have, and no good one."""
    ids: dict[str, list[set[int]]] = {"bad": [], "good": []}
    for example in TEXTS:
        ids[example["text"].split()[0]].append(set(tokenizer.encode(example["text"])))
    bad = min(set.intersection(*ids["bad"]) - set.union(*ids["good"]))

    def apply(params, input_ids, attention_mask, dropout_rng=None, **types):
        found = ((input_ids == bad) & (attention_mask > 0)).any(-1)
        return Output(jnp.stack([jnp.where(found, 2.0, -2.0), jnp.zeros(len(found))], -1))

    return apply


def test_rows_of_one_text_and_of_two(tokenizer):
    row = make(tokenizer).encode(TEXTS[1])
    ids = [tokenizer.bos_id, *tokenizer.encode(TEXTS[1]["text"]), tokenizer.eos_id]
    assert row["input_ids"].tolist() == ids + [tokenizer.pad_id] * (24 - len(ids))
    assert row["attention_mask"].sum() == len(ids) and not row["token_type_ids"].any()
    pair = make(tokenizer, pair_key="second", length=8).encode(TEXTS[20])
    assert pair["attention_mask"].all()
    first, second = np.flatnonzero(pair["input_ids"] == tokenizer.eos_id)
    assert second == 7 and pair["token_type_ids"].tolist() == [0] * (first + 1) + [1] * (7 - first)


def test_scores(tokenizer):
    task = make(tokenizer)
    assert task.classes == ("no", "yes")
    results = task.evaluate(knows_bad(tokenizer), {})
    assert results["accuracy"] == results["f1"] == results["mcc"] == 100 and results["texts"] == 10
    probability = jax.nn.sigmoid(2.0)
    assert results["loss"] == pytest.approx(-float(jnp.log(probability)), rel=1e-5)


def test_predictions_are_lines_of_names(tokenizer):
    said = make(tokenizer).predictions(knows_bad(tokenizer), {})[""]
    assert said.splitlines() == ["index\tprediction", *(f"{n}\t{LABELS[n]}" for n in range(10))]
    assert make(tokenizer, pair_key="second").beside == {"pair": ""} and make(tokenizer).beside == {}


def test_scores_from_their_definitions():
    guesses, wanted = [0, 0, 1, 1, 1], [0, 1, 1, 1, 0]
    scores = score_classes(guesses, wanted)
    assert scores["accuracy"] == pytest.approx(60)
    assert scores["f1"] == pytest.approx(100 * (2 / 4 + 4 / 6) / 2)
    # True and false, positives and negatives: 2, 1, 1, 1.
    assert scores["mcc"] == pytest.approx(100 * (2 * 1 - 1 * 1) / (3 * 3 * 2 * 2) ** 0.5)


@pytest.mark.parametrize("num_classes", [2, 5])
def test_scores_are_those_of_scikit_learn(num_classes):
    from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

    rng = np.random.default_rng(num_classes)
    guesses, wanted = rng.integers(0, num_classes, (2, 30))
    scores = score_classes(guesses, wanted)
    assert scores["accuracy"] == pytest.approx(100 * accuracy_score(wanted, guesses))
    assert scores["f1"] == pytest.approx(100 * f1_score(wanted, guesses, average="macro"))
    assert scores["mcc"] == pytest.approx(100 * matthews_corrcoef(wanted, guesses))
    if num_classes == 2:
        assert score_classes(guesses, wanted, f1_class=1)["f1"] == pytest.approx(100 * f1_score(wanted, guesses))


def test_training_rows_have_their_own_labels(tokenizer):
    task = make(tokenizer)
    iterator = task.batches("train")
    for _ in range(6):
        batch = next(iterator)
        said = [tokenizer.decode(row) for row in batch["input_ids"]]
        assert [text.startswith("good") for text in said] == batch["labels"].tolist()


def test_answers_and_mistakes(tokenizer):
    task = make(tokenizer)
    assert task.respond(knows_bad(tokenizer), {}, Question(prompt=TEXTS[0]["text"])).startswith("no (88.1 %), yes")
    assert [figure.name for figure in task.baselines()] == ["commonest", "TF-IDF"]
    with pytest.raises(ValueError, match="give --prompt and --pair"):
        make(tokenizer, pair_key="second").respond(knows_bad(tokenizer), {}, Question(prompt="bad news"))
    with pytest.raises(ValueError, match=r"set data\.label_key"):
        make(tokenizer, label_key="text_that_is_missing")
    strange = Dataset(name="x", splits={"train": TEXTS, "validation": [TEXTS[0] | {"label": "perhaps"}]})
    with pytest.raises(ValueError, match="row 0 of validation in 'x' is held out and has 'label': 'perhaps'"):
        TextClassificationConfig().bind(strange, tokenizer, seed=0, data=DataConfig(name="x"))
    with pytest.raises(ValueError, match="f1_class is 2; the classes are 0 to 1"):
        TextClassificationConfig(f1_class=2).bind(few(), tokenizer, seed=0, data=DataConfig(name="few"))
