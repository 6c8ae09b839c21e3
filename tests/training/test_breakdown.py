"""Where a run's time goes: the parts sum to the wall time, and each wait is found in its own part; traces of steps."""

import gzip
import json
import threading
import time

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_reporting import read_events
from toy import Batches, Counting, Toy, run_toy

from zoo.training.breakdown import PARTS, STEP_PARTS, Breakdown, shares_since
from zoo.training.config import TrainingConfig
from zoo.training.metrics import read_metrics


@given(st.lists(st.tuples(st.sampled_from(PARTS), st.floats(0, 10), st.booleans()), max_size=30))
def test_parts_sum_to_the_time_that_passed(blocks):
    now, wanted = [5.0], dict.fromkeys(PARTS, 0.0)
    spent = Breakdown(lambda: now[0])

    def run(part, seconds, rest):
        """A block of a part, with the next one inside of it or after it."""
        with spent.within(part):
            now[0] += seconds
            wanted[part] += seconds
            if rest and rest[0][2]:
                run(*rest[0][:2], rest[1:])
            now[0] += 1
            wanted[part] += 1
        if rest and not rest[0][2]:
            run(*rest[0][:2], rest[1:])

    if blocks:
        run(*blocks[0][:2], blocks[1:])
    now[0] += 2
    wanted["start"] += 2  # what runs outside of all blocks
    assert spent.read() == pytest.approx(wanted) and sum(spent.read().values()) == pytest.approx(now[0] - 5)


def test_shares_are_those_of_steps_alone():
    before = dict.fromkeys(PARTS, 1.0)
    after = before | {"compute": 7.0, "input": 3.0, "host": 3.0, "evaluation": 100.0}
    assert shares_since(after, before) == {"compute": 0.6, "input": 0.2, "host": 0.2}
    assert shares_since(before, before) == dict.fromkeys(STEP_PARTS, 0.0)


class Slow(Counting):
    """Batches, evaluations and steps that take as long as they are told; a step by a call back to the host."""

    def __init__(self, *, batch=0.0, evaluation=0.0):
        super().__init__()
        self.batch, self.evaluation = batch, evaluation

    def batches(self, split):
        seconds = self.batch if split == "train" else 0

        class Sleeping(Batches):
            def __next__(self):
                time.sleep(seconds)
                return super().__next__()

        return Sleeping(self.batch_size, self.seed)

    def evaluate(self, apply, params):
        time.sleep(self.evaluation)
        return super().evaluate(apply, params)


def spent_by(folder, **settings):
    begin = time.perf_counter()
    run_toy(folder, **settings)
    wall = time.perf_counter() - begin
    record = json.loads((folder / "breakdown.json").read_text())
    seconds = record["seconds"]
    assert list(seconds) == list(PARTS) and all(x >= 0 for x in seconds.values())
    assert sum(seconds.values()) <= wall
    return record["steps"], seconds


def test_a_slow_input_is_found_and_warned_of(tmp_path, capfd, monkeypatch):
    """Sleeps are lower bounds on any machine; all that is compared was measured in this process."""
    monkeypatch.setattr("zoo.training.progress.WATCH_SECONDS", 1.0)
    steps, fast = spent_by(tmp_path / "fast")
    assert steps == 12 and "input waits" not in capfd.readouterr().err
    alone = {"evaluate_every": None, "checkpoint_every": None}  # nothing else during which batches are made ahead
    _, slow = spent_by(tmp_path / "slow", task=Slow(batch=0.5), **alone)
    assert slow["input"] > 2, "9 of 12 batches, half a second each"
    assert slow["input"] > 5 * fast["input"] and slow["input"] > slow["compute"]
    said = capfd.readouterr().err
    assert said.count("input waits") == 1 and "raise training.prefetch" in said
    (table,) = [said[at:] for at in range(len(said)) if said.startswith("where the time went", at)]
    assert [line.split()[0] for line in table.splitlines()[1:7]] == [part for part in PARTS if part != "profile"]


@pytest.mark.slow
def test_a_slow_evaluation_is_found(tmp_path):
    _, spent = spent_by(tmp_path, task=Slow(evaluation=1.0), tensorboard=True)
    assert spent["evaluation"] > 3 * 1.0 > spent["input"], "after steps 5, 10 and 12"
    assert spent["checkpoint"] > 0 and spent["profile"] == 0
    tags = {(event.step, v.tag): v.simple_value for event in read_events(tmp_path) for v in event.summary.value}
    told = [tags[step, "speed/evaluation_seconds"] for step in (5, 10, 12)]
    assert min(told) > 1.0 and sum(told) == pytest.approx(spent["evaluation"], rel=0.01)
    assert all(tags[step, "speed/checkpoint_seconds"] > 0 for step in (4, 8, 12))


@pytest.mark.slow
def test_a_wait_behind_the_device_is_its_work(tmp_path):
    """The third batch comes a second into the second step, which takes three: nothing stands still for it."""
    begun = threading.Event()

    class Late(Counting):
        def batches(self, split):
            class Waiting(Batches):
                def __next__(self):
                    if self.index == 2 and split == "train":
                        assert begun.wait(100)
                        time.sleep(1)
                    return super().__next__()

            return Waiting(self.batch_size, self.seed)

        def loss(self, apply, params, batch, rng):
            value, metrics = super().loss(apply, params, batch, rng)
            if rng is None:
                return value, metrics
            return value + jax.pure_callback(work, jax.ShapeDtypeStruct((), "float32"), metrics["weight"]), metrics

        def evaluate(self, apply, params):
            return {"loss": 0.0}

    calls = []

    def work(_):
        calls.append(time.perf_counter())
        if len(calls) == 2:
            begun.set()
            time.sleep(3)
        return np.float32(0)

    steps, spent = spent_by(
        tmp_path, task=Late(), model=Toy(), mesh={"data": 1}, num_steps=3, evaluate_every=None, checkpoint_every=None
    )
    assert len(calls) == steps == 3
    assert spent["input"] < 0.5 < 2.5 < spent["compute"]


def test_a_trace_holds_the_steps_that_were_asked_for(tmp_path):
    plain, traced = tmp_path / "plain", tmp_path / "traced"
    run_toy(plain)
    run_toy(traced, profile_steps=(4, 7), num_steps=5)
    run_toy(traced, profile_steps=(8, 9))  # a run that goes on, with other steps to trace
    first, second = sorted((traced / "profile").rglob("*.trace.json.gz"), key=lambda path: path.stat().st_mtime)
    assert len(list((traced / "profile").rglob("*.xplane.pb"))) == 2
    assert marks(first) == [4, 5] and marks(second) == [8, 9]
    assert (plain / "metrics.csv").read_bytes() == (traced / "metrics.csv").read_bytes()
    assert json.loads((traced / "breakdown.json").read_text())["seconds"]["profile"] > 0
    assert not (plain / "profile").exists()


def marks(path):
    """The steps that a trace marks."""
    events = json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]
    return sorted(int(event["args"]["step_num"]) for event in events if event.get("name") == "train")


@pytest.mark.parametrize("steps", [(0, 3), (5, 4)])
def test_steps_to_trace_are_checked(steps):
    with pytest.raises(ValueError, match=r"training.profile_steps"):
        TrainingConfig(profile_steps=steps)


def test_a_run_on_the_way_is_in_its_rows(tmp_path):
    """Speeds are in TensorBoard and breakdown.json, and never in metrics.csv."""
    run_toy(tmp_path, tensorboard=True)
    columns = {name for row in read_metrics(tmp_path / "metrics.csv") for name in row}
    assert not any("share" in name or "seconds" in name for name in columns)
