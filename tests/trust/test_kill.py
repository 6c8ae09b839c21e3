"""kill -9 at a hundred random points: the same command again ends in the same bits as if nothing had been.

Each process is killed in a phase that was drawn for it, a random moment after the event that opens the phase. When
a run is over it is compared with the one that was never killed, and the next one starts from nothing. The default tier
kills ten times, and each seed reaches all phases.
"""

import random
import time
from collections import Counter
from pathlib import Path

import attacks
import pytest
from attacks import Training, cleans_up, rows, unfinished
from small_run import CHECKPOINT_EVERY, EVALUATE_EVERY, NUM_STEPS

PHASES = {
    # phase: (the event that opens it, seconds after it within which the kill comes)
    "start": (lambda training: True, 1.5),
    "compile": (lambda training: training.says("compiling the step"), 0.5),
    "step": (lambda training: rows(training.folder) > training.rows_before, 0.05),
    "save": (lambda training: unfinished(training.folder), 0.05),
    "evaluation": (lambda training: rows(training.folder) % EVALUATE_EVERY == EVALUATE_EVERY - 1, 0.05),
    "clean-up": (lambda training: cleans_up(training.folder), 0.001),
    "report": (lambda training: training.says(f"step {NUM_STEPS}/{NUM_STEPS}  validation"), 1.0),
}
KILLS = 10
"""Of each seed, at least."""
SEEDS = [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, 10))]


def where(training: Training) -> set[str]:
    """Phases that a killed process was in, by what it said and left."""
    folder, found = training.folder, set()
    if not training.says("compiling the step") and not training.says("is the last"):
        found.add("start")
    elif rows(folder) <= training.rows_before and not training.says("validation:"):
        found.add("compile")
    if rows(folder) > training.rows_before:
        found.add("step")
    if unfinished(folder):
        found.add("save")
    if cleans_up(folder):
        found.add("clean-up")
    done = rows(folder) + 1
    if done % EVALUATE_EVERY == 0 and done % CHECKPOINT_EVERY and not training.says(f"step {done}/{NUM_STEPS}  vali"):
        found.add("evaluation")
    if training.says(f"step {NUM_STEPS}/{NUM_STEPS}  validation") or training.says("is the last"):
        found.add("report")
    return found


def attack(folder: Path, phase: str, chance: random.Random, arguments, environment) -> set[str] | None:
    """Run the command until a moment in a phase, and kill it; return where it was, None if it had finished."""
    event, window = PHASES[phase]
    before = rows(folder)
    with Training(folder, arguments, environment, fresh=phase == "start") as training:
        training.rows_before = before
        if training.wait_for(event):
            time.sleep(chance.uniform(0, window))
            training.kill()
        code = training.finish()
        assert code in (0, -9), training.said[-3000:]
        return None if code == 0 else where(training)


@pytest.mark.parametrize("seed", SEEDS)
def test_kills_at_random_points(whole, arguments, environment, tmp_path, seed):
    chance, reached, runs, kills = random.Random(seed), Counter(), 0, 0
    folder, drawn = tmp_path / "0", []
    while kills < KILLS or reached.keys() != PHASES.keys():
        assert kills < 4 * KILLS, f"never killed in {PHASES.keys() - reached.keys()}"
        drawn = drawn or chance.sample(list(PHASES), len(PHASES))  # none twice before each was once
        phase = drawn.pop()
        found = attack(folder, phase, chance, arguments, environment)
        if found is None:
            attacks.assert_same_end(whole, folder)
            runs += 1
            folder = tmp_path / str(runs)
            continue
        kills += 1
        reached.update(found)
    with Training(folder, arguments, environment) as training:
        assert training.finish() == 0, training.said[-3000:]
    attacks.assert_same_end(whole, folder)
