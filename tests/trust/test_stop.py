"""SIGTERM, SIGUSR1 and SIGINT in any phase: exit 0 within the grace time, no step lost, and the run goes on.

The phases are met one after the other in one folder; then the run is finished, and compared with one that met none.
"""

import itertools
import random
import signal
import time
from pathlib import Path

import attacks
import pytest
from attacks import Training, rows, steps, unfinished

GRACE_SECONDS = 30


def listens(training: Training) -> bool:
    """Whether Python has a handler for SIGTERM, or the interpreter is not that far yet."""
    status = Path(f"/proc/{training.process.pid}/status").read_text()
    caught = next(line.split()[1] for line in status.splitlines() if line.startswith("SigCgt"))
    return bool(int(caught, 16) >> (signal.SIGTERM - 1) & 1)


def new_rows(training: Training, count: int) -> bool:
    return rows(training.folder) >= training.rows_before + count


PHASES = {
    # phase: (the event that opens it, seconds after it within which the signal comes)
    "import": (listens, 1.0),
    "data": (lambda training: listens(training) and training.folder.exists(), 0.3),
    "compile": (lambda training: training.says("compiling the step"), 0.0),
    "step": (lambda training: new_rows(training, 1), 0.02),
    "evaluation": (lambda training: rows(training.folder) in (4, 9, 14, 19), 0.02),
    "save": (lambda training: new_rows(training, 1) and unfinished(training.folder), 0.02),
    "report": (lambda training: training.says("20/20  validation"), 0.5),
}


def stop(folder: Path, phase: str, number: int, chance: random.Random, arguments, environment) -> bool:
    """Ask a run to stop in a phase; return whether it heard it before its end."""
    event, window = PHASES[phase]
    before = rows(folder)
    with Training(folder, arguments, environment, fresh=phase == "import") as training:
        training.rows_before = before
        if not training.wait_for(event):
            assert training.finish() == 0, training.said[-3000:]
            return False
        time.sleep(chance.uniform(0, window))
        training.kill(number)
        since = time.monotonic()
        assert training.finish() == 0, training.said[-3000:]
        assert time.monotonic() - since < GRACE_SECONDS
    stopped = training.says(f"{signal.Signals(number).name}: stopped")
    assert stopped or training.says("next"), training.said[-3000:]
    assert not unfinished(folder)
    assert rows(folder) == max(steps(folder), default=0), "a step was lost"
    return stopped


SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
IN_TURN = dict(zip(PHASES, itertools.cycle(SIGNALS), strict=False))
"""A signal for each phase."""
EACH = [pytest.param(dict.fromkeys(PHASES, number), id=number.name, marks=pytest.mark.slow) for number in SIGNALS]


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="tells by /proc when a process listens")
@pytest.mark.parametrize("signals", [pytest.param(IN_TURN, id="in turn"), *EACH])
def test_a_signal_in_any_phase(whole, arguments, environment, tmp_path, signals):
    chance, runs = random.Random(0), 0
    folder = tmp_path / "0"
    for phase, number in signals.items():
        for _ in range(10):
            if stop(folder, phase, number, chance, arguments, environment):
                break
            runs += 1  # the run was over before: anew, until the phase is met
            folder = tmp_path / str(runs)
        else:
            pytest.fail(f"no run was ever stopped in its phase {phase}")
    with Training(folder, arguments, environment) as training:
        assert training.finish() == 0, training.said[-3000:]
    attacks.assert_same_end(whole, folder)


def test_a_signal_does_not_wait_for_a_compilation(arguments, environment, tmp_path):
    """Nothing is unsaved while the first step compiles, however long it takes."""
    folder, cold = tmp_path / "run", {**environment, "JAX_ENABLE_COMPILATION_CACHE": "0"}
    deep = ("--model.decoder.num-layers", "16")
    with Training(folder, (*arguments, *deep), cold) as training:
        assert training.wait_for(PHASES["compile"][0]), training.said[-3000:]
        training.kill(signal.SIGTERM)
        assert training.finish() == 0, training.said[-3000:]
    assert training.says("SIGTERM: stopped, no step was taken; run the same command again to go on"), training.said
    assert not steps(folder)
