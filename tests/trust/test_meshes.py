"""train.py goes on from a checkpoint on another mesh, again and again, as if it had been on one device all along."""

import numpy as np
import pytest
import small_run
from attacks import Training, arrays

from zoo.training.metrics import read_metrics

MESHES = {
    4: {"data": 8},
    8: {"data": 1, "fsdp": 4, "tensor": 2},
    12: {"data": 2, "fsdp": 2, "context": 2},
    16: {"data": 1, "fsdp": 1, "tensor": 2, "context": 2},
    20: {"data": 1},
}
"""The mesh on which the run is, up to a step."""
FEWER = {step: MESHES[step] for step in (8, 20)}


@pytest.mark.parametrize("meshes", [FEWER, pytest.param(MESHES, marks=pytest.mark.slow)], ids=["two", "five"])
def test_train_goes_on_on_any_other_mesh(arguments, environment, tmp_path, meshes):
    # Programs compiled in haste: each mesh has its own.
    eight = {**environment, "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
    eight["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"
    constant = (*arguments, "--schedule.name", "constant", "--training.evaluate-every", "100")
    whole, folder = tmp_path / "whole", tmp_path / "run"
    with Training(whole, (*constant, "--mesh.data", "1"), eight) as training:
        assert training.finish() == 0, training.said[-3000:]
    before = None
    for step, sizes in meshes.items():
        mesh = [word for axis, size in sizes.items() for word in (f"--mesh.{axis}", str(size))]
        with Training(folder, (*constant, *mesh, "--training.num-steps", str(step)), eight) as training:
            assert training.finish() == 0, training.said[-3000:]
        assert before is None or training.says(f"step {before} is restored")
        before = step
    ours, one = (read_metrics(path / "metrics.csv") for path in (folder, whole))
    assert [row["step"] for row in ours] == [row["step"] for row in one]
    assert [row["tokens"] for row in ours] == [row["tokens"] for row in one]
    np.testing.assert_allclose([float(row["loss"]) for row in ours], [float(row["loss"]) for row in one], rtol=1e-4)
    ours, one = (arrays(path, small_run.NUM_STEPS) for path in (folder, whole))
    for name, value in one.items():
        np.testing.assert_allclose(ours[name], value, atol=1e-3, err_msg=name)
