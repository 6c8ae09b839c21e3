"""A batch that gives NaN, an update that blows up, a spike: skipped on the device, kept for study, never saved.

The harm comes through the real pipeline: a run starts from a model in which the embedding of one rare token is far too
large, so batches with that token, and no others, overflow or stand out.
"""

import json
import math
from collections import Counter
from dataclasses import replace
from pathlib import Path

import attacks
import jax
import numpy as np
import pytest
from attacks import Training, arrays, steps
from small_run import CHECKPOINT_EVERY, NUM_STEPS
from tiers import tiered

import zoo
from zoo.recipes.preparation import prepare
from zoo.recipes.run import Run
from zoo.training.metrics import read_metrics

MODEL_OPTIONS = ("--model.", "--data.tokenizer.")


@pytest.fixture(scope="module")
def environment(environment) -> dict[str, str]:
    """Programs compiled in haste: each model and schedule here has its own, and is compared with itself alone."""
    return environment | {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}


@pytest.fixture(scope="module")
def model(arguments, environment, tmp_path_factory):
    """A model after one step, in which an embedding harms what reads it, through to the logits, and nothing else."""
    folder = tmp_path_factory.mktemp("model") / "run"
    bare = ("--model.head.tied", "False", "--model.decoder.final-norm", "False")
    once = ("--training.num-steps", "1", "--schedule.warmup-steps", "0")
    with Training(folder, (*arguments, *bare, *once), environment) as training:
        assert training.finish() == 0, training.said[-3000:]
    return zoo.load(folder)


@pytest.fixture(scope="module")
def rare(model, text) -> int:
    """A token of some documents."""
    documents = [json.loads(line)["text"] for line in text.read_text().splitlines()]
    found = Counter(token for document in documents for token in {*model.tokenizer.encode(document)})
    return min(token for token, count in found.items() if count == 4)


@pytest.fixture(scope="module")
def begin(model, rare, arguments, tmp_path_factory):
    """A function from a value to the arguments of a run that starts with it in a token's embedding, the rare one's."""

    def begin(value: float, token: int = rare) -> tuple[str, ...]:
        params = jax.tree.map(np.array, model.params)
        params["embedder"]["token"]["embedding"][token] = value
        folder = zoo.save(replace(model, params=params), tmp_path_factory.mktemp("poisoned") / "model", layout="zoo")
        pairs = zip(arguments[::2], arguments[1::2], strict=True)
        kept = [word for pair in pairs if not pair[0].startswith(MODEL_OPTIONS) for word in pair]
        return (*kept, "--init", str(folder))

    return begin


def bad_batches(folder: Path) -> dict[int, dict[str, np.ndarray]]:
    """The batches that were kept, by their steps."""
    files = {int(path.stem.removeprefix("step-")): path for path in (folder / "bad-batches").glob("*.npz")}
    return {step: dict(np.load(files[step])) for step in sorted(files)}


@pytest.fixture(scope="module")
def skipping(begin, environment, tmp_path_factory):
    """Arguments of a run with batches that give NaN, and its folder after the end."""
    given = (*begin(3e38), "--training.max-skipped", str(NUM_STEPS))
    folder = tmp_path_factory.mktemp("skipping") / "run"
    with Training(folder, given, environment) as training:
        assert training.finish() == 0, training.said[-3000:]
    return given, folder, training.lines


def test_a_batch_that_gives_nan_is_skipped_and_kept(skipping, rare):
    _, folder, lines = skipping
    bad = bad_batches(folder)
    assert 0 < len(bad) < NUM_STEPS / 2
    rows = {int(row["step"]): row for row in read_metrics(folder / "metrics.csv")}
    assert rows.keys() == {*range(1, NUM_STEPS + 1)}
    skipped = [step for step, row in rows.items() if "skipped" in row]
    assert skipped == list(bad)
    for number, (step, batch) in enumerate(bad.items(), 1):
        assert rare in batch["tokens"] and batch["step"] == step and batch["seed"] == 0
        assert not (np.isfinite(batch["loss"]) and np.isfinite(batch["grad_norm"]))
        assert rows[step]["skipped"] == str(number)
        (line,) = [line for line in lines if line.startswith(f"step {step}: ")]
        assert "its update is skipped" in line and f"step-{step:06d}.npz" in line
    for step, row in rows.items():
        assert step in bad or (math.isfinite(float(row["loss"])) and math.isfinite(float(row["grad_norm"])))
    for step in steps(folder):
        assert all(np.isfinite(value).all() for value in arrays(folder, step).values())
    assert "np.load" in (folder / "bad-batches" / "README.md").read_text()


@pytest.mark.slow
def test_skips_are_counted_over_a_kill(skipping, environment, tmp_path):
    given, whole, _ = skipping
    first = min(bad_batches(whole))
    folder = tmp_path / "run"
    for event in (lambda t: t.says(f"step {first}: "), lambda t: attacks.rows(folder) > first + CHECKPOINT_EVERY):
        with Training(folder, given, environment) as training:
            training.wait_for(event)
            training.kill()
    with Training(folder, given, environment) as training:
        assert training.finish() == 0, training.said[-3000:]
    attacks.assert_same_end(whole, folder)
    assert bad_batches(folder).keys() == bad_batches(whole).keys()


def test_more_than_may_be_skipped_ends_the_run(skipping, environment, tmp_path):
    given, whole, _ = skipping
    first, second, *_ = bad_batches(whole)
    folder = tmp_path / "run"
    for _ in range(2):  # the same command meets the same batch
        with Training(folder, (*given, "--training.max-skipped", "1"), environment) as training:
            assert training.finish() == 1, training.said[-3000:]
        (error,) = [line for line in training.lines if line.startswith("error: ")]
        assert f"at step {second}; 1 updates were skipped before" in error and "bad-batches" in error
        assert all(step < second for step in steps(folder))
    assert list(bad_batches(folder)) == [first, second]
    with Training(folder, given, environment) as training:  # the limit may be raised
        assert training.finish() == 0, training.said[-3000:]
    attacks.assert_same_end(whole, folder)


@pytest.mark.parametrize(
    ("options", "message"),
    tiered(
        [
            ("--optimizer.learning-rate 1e30", "3 updates were skipped before"),
            (
                "--optimizer.learning-rate 1e38 --optimizer.weight-decay 1e3",
                "has values that are not finite after step 1",
            ),
        ],
        lambda _, message: "not finite" in message,
    ),
)
def test_an_update_that_blows_up_is_never_saved(arguments, environment, tmp_path, options, message):
    given = (*arguments, *options.split(), "--training.checkpoint-every", "1", "--schedule.warmup-steps", "0")
    folder = tmp_path / "run"
    with Training(folder, given, environment) as training:
        assert training.finish() == 1, training.said[-3000:]
    (error,) = [line for line in training.lines if line.startswith("error: ")]
    assert message in error
    for step in steps(folder):
        assert all(np.isfinite(value).all() for value in arrays(folder, step).values())


def first_seen(folder: Path, batch_size: int) -> dict[int, int]:
    """The step in which a model first reads each token of a run's training data, in smaller batches."""
    run = Run.load(folder)
    batches = prepare(replace(run, task=replace(run.task, batch_size=batch_size))).task.batches("train")
    found: dict[int, int] = {}
    for step in range(1, 101):
        for token in {*next(batches)["tokens"][:, :-1].flat}:  # the last one is only predicted
            found.setdefault(int(token), step)
    return found


def test_a_spike_is_skipped_and_the_same_over_a_kill(skipping, begin, environment, tmp_path):
    """The window of the last updates is part of the checkpoint."""
    token, step = min((item for item in first_seen(skipping[1], 2).items() if item[1] > 70), key=lambda item: item[1])
    options = (
        "--task.batch-size 2 --training.num-steps 100 --training.checkpoint-every 10 --training.evaluate-every 100"
    )
    given = (*begin(1000.0, token), *options.split(), "--training.spike-sigmas", "6")
    whole, folder = tmp_path / "whole", tmp_path / "killed"
    with Training(whole, given, environment) as training:
        assert training.finish() == 0, training.said[-3000:]
    assert next(iter(bad_batches(whole))) == step
    assert training.says(f"step {step}: loss ") and training.says("stands out from the last updates'")
    assert token in bad_batches(whole)[step]["tokens"]
    with Training(folder, given, environment) as training:
        training.wait_for(lambda training: training.says(f"step {step}: "))
        training.kill()
    with Training(folder, given, environment) as training:
        assert training.finish() == 0, training.said[-3000:]
    attacks.assert_same_end(whole, folder, 100)
