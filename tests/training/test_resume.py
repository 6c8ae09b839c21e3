"""An interrupted run ends in the same bits as one that never stopped: parameters, moments and metrics.csv."""

import itertools
import os
import random
import signal
import time
from pathlib import Path

import pytest
from processes import Process, start
from resume_script import SETTINGS
from tiers import tiered
from toy import Batches, Counting, assert_same_bits, run_toy

from zoo.training.checkpoint import load_params
from zoo.training.metrics import read_metrics
from zoo.training.stopping import Stopped


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Return (folder, final state) of a run that was not interrupted."""
    folder = tmp_path_factory.mktemp("whole")
    return folder, run_toy(folder)


class Interrupting(Counting):
    """Sends this process a signal when a batch is drawn or an evaluation begins; once."""

    def __init__(self, at_batch=None, at_evaluation=None, number=signal.SIGTERM):
        super().__init__()
        self.at_batch, self.at_evaluation, self.number = at_batch, at_evaluation, number
        self.evaluations = 0

    def batches(self, split):
        task = self

        class Interrupted(Batches):
            def __next__(self):
                if split == "train" and self.index == task.at_batch:
                    task.at_batch = None
                    os.kill(os.getpid(), task.number)
                return super().__next__()

        return Interrupted(self.batch_size, self.seed if split == "train" else self.seed + 1000)

    def evaluate(self, apply, params):
        self.evaluations += 1
        if self.evaluations == self.at_evaluation:
            os.kill(os.getpid(), self.number)
            time.sleep(5)
            raise AssertionError("the signal did not break the evaluation off")
        return super().evaluate(apply, params)


@pytest.mark.parametrize(
    "interrupt",
    tiered(
        [{"at_batch": 6}, {"at_batch": 10, "number": signal.SIGINT}, {"at_evaluation": 1}, {"at_evaluation": 3}],
        [{"at_evaluation": 1}],
    ),
    ids=str,
)
def test_signal_saves_and_the_next_call_goes_on(whole, tmp_path, capfd, interrupt):
    folder, state = whole
    handler = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Stopped) as stopped:
        run_toy(tmp_path, task=Interrupting(**interrupt))
    assert stopped.value.code == 0
    assert signal.getsignal(signal.SIGTERM) == handler
    assert "run the same command again to go on" in capfd.readouterr().err
    _, step = load_params(tmp_path)
    assert step == stopped.value.step > 0
    resumed = run_toy(tmp_path)
    assert f"step {step} is " in capfd.readouterr().err
    assert_same_bits(resumed, state)
    assert (tmp_path / "metrics.csv").read_bytes() == (folder / "metrics.csv").read_bytes()


class Failing(Counting):
    """Its evaluation fails once as many have been made."""

    def __init__(self, after):
        super().__init__()
        self.left = after

    def evaluate(self, apply, params):
        if self.left == 0:
            raise KeyError("a class that only held-out rows have")
        self.left -= 1
        return super().evaluate(apply, params)


@pytest.mark.parametrize("after", [0, 2])
def test_an_evaluation_that_fails_costs_no_training(whole, tmp_path, after):
    """Neither between two checkpoints nor at the last step."""
    folder, state = whole
    with pytest.raises(KeyError, match="only held-out rows"):
        run_toy(tmp_path, task=Failing(after))
    assert load_params(tmp_path)[1] == (5 if after == 0 else 12)
    assert_same_bits(run_toy(tmp_path), state)
    assert (tmp_path / "metrics.csv").read_bytes() == (folder / "metrics.csv").read_bytes()


def test_metrics_hold_every_step_and_only_what_steps_compute(whole):
    folder, _ = whole
    rows = read_metrics(folder / "metrics.csv")
    assert [int(row["step"]) for row in rows] == list(range(1, 13))
    assert [int(row["step"]) for row in rows if "validation_loss" in row] == [5, 10, 12]
    header = (folder / "metrics.csv").read_text().splitlines()[0]
    assert header == "step,tokens,loss,grad_norm,learning_rate,accuracy,validation_loss,validation_accuracy"
    assert all(float(a["tokens"]) < float(b["tokens"]) for a, b in itertools.pairwise(rows))
    assert float(rows[-1]["loss"]) < float(rows[0]["loss"])


def test_a_finished_run_is_returned_as_it_is(whole, capfd):
    folder, state = whole
    before = (folder / "metrics.csv").read_bytes()
    assert_same_bits(run_toy(folder), state)
    assert "step 12 is the last: nothing left to train" in capfd.readouterr().err
    assert (folder / "metrics.csv").read_bytes() == before


def _wait_for_step(folder: Path, step: int, process: Process) -> None:
    """Return once the process has logged a step of its own, or ended."""
    end = time.monotonic() + 120
    while time.monotonic() < end and process.poll() is None:
        rows = read_metrics(folder / "metrics.csv")
        if rows and int(rows[-1]["step"]) >= step:
            return
        time.sleep(0.01)


@pytest.mark.slow
def test_sigkill_at_random_points(tmp_path):
    reference = run_toy(tmp_path / "whole", **SETTINGS)
    folder = tmp_path / "killed"
    command = [str(Path(__file__).with_name("resume_script.py")), str(folder), "0.02"]
    chance = random.Random(0)
    reached = []
    for kill in range(3):
        with open(os.devnull, "w") as nowhere:
            process = start(command, environment=os.environ, out=nowhere.fileno(), err=nowhere.fileno())
        _wait_for_step(folder, 10 * kill + 1, process)
        time.sleep(chance.uniform(0, 0.3))  # within a few steps of three saves and an evaluation
        process.kill()
        assert process.wait(120) == -signal.SIGKILL, "the run ended before it was killed"
        reached.append(len(read_metrics(folder / "metrics.csv")))
    assert reached == sorted(reached) and reached[-1] > reached[0]
    resumed = run_toy(folder, **SETTINGS)
    assert_same_bits(resumed, reference)
    assert (folder / "metrics.csv").read_bytes() == (tmp_path / "whole" / "metrics.csv").read_bytes()
