"""A disk that fills while train.py runs: one clear line, earlier steps whole, nothing half written; later it goes on.

What fails first differs: the rows of metrics.csv, TensorBoard's file, or the arrays of a checkpoint.
"""

import resource
import subprocess
from pathlib import Path

import pytest
from attacks import Training, steps
from processes import PATIENCE

from zoo.training.manifest import find_damage

SLOWLY = ("--training.num-steps", "2000", "--training.checkpoint-every", "5", "--training.evaluate-every", "2000")
"""A run that lasts until the disk is full, however fast the machine."""


def check_end(training: Training) -> None:
    """It ended with one line that is true, and left what it had saved."""
    folder = training.folder
    assert training.finish() == 1, training.said[-3000:]
    errors = [line for line in training.lines if "error" in line.lower() or "Traceback" in line]
    assert len(errors) == 1 and errors[0].startswith(f"error: disk full while writing to {folder}"), training.said
    assert f"the checkpoint of step {steps(folder)[-1]} is intact" in errors[0] and "free space" in errors[0]
    for step in steps(folder):
        assert find_damage(folder / "checkpoints" / str(step)) is None
    assert not [path for path in folder.rglob("*tmp*") if path.name != "tmp"]


def check_resumes(folder: Path, arguments, environment) -> None:
    """With room again the run goes on from the step that was promised."""
    reached = steps(folder)[-1]
    with Training(folder, (*arguments, *SLOWLY), environment) as training:
        assert training.wait_for(lambda training: steps(folder)[-1] > reached), training.said[-3000:]
        assert training.says(f"step {reached} is restored")


@pytest.mark.skipif(not hasattr(resource, "prlimit"), reason="limits of another process can be set on Linux alone")
@pytest.mark.parametrize(
    "size",
    [
        pytest.param(1, id="nothing can be written", marks=pytest.mark.slow),
        pytest.param(8192, id="no large file can be written", marks=pytest.mark.slow),
    ],
)
def test_a_limit_on_files(arguments, environment, tmp_path, size):
    """As a quota does."""
    folder = tmp_path / "run"
    with Training(folder, (*arguments, *SLOWLY), environment) as training:
        assert training.wait_for(lambda training: len(steps(folder)) > 1), training.said[-3000:]
        resource.prlimit(training.process.pid, resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
        check_end(training)
    check_resumes(folder, arguments, environment)


def test_a_full_file_system(arguments, environment, tmp_path):
    mounted = tmp_path / "small"
    mounted.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(mounted)]
    if subprocess.run(mount, capture_output=True, timeout=PATIENCE).returncode:
        pytest.skip("no right to mount a small file system; the limit on files is tested everywhere")
    try:
        folder, ballast = mounted / "run", mounted / "ballast"
        with Training(folder, (*arguments, *SLOWLY), environment) as training:
            assert training.wait_for(lambda training: len(steps(folder)) > 1), training.said[-3000:]
            with open(ballast, "wb", buffering=0) as file, pytest.raises(OSError, match="No space left"):
                while True:
                    file.write(b"x" * 4096)
            check_end(training)
        ballast.unlink()
        check_resumes(folder, arguments, environment)
    finally:
        subprocess.run(["umount", "--lazy", mounted], check=True, timeout=PATIENCE)
