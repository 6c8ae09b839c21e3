"""Several processes of the real train.py are one run, in the bits of one device; none survives another's death."""

import itertools
import signal

import jax
import numpy as np
import pytest
from together import SAME_BITS, Together, by_hand, open_mpi, slurm

from zoo.training.checkpoint import list_steps, load_params
from zoo.training.metrics import read_metrics


def assert_same_run(folder, other):
    """The same bytes of metrics.csv, evaluations included, and the same bits of every parameter."""
    assert (folder / "metrics.csv").read_bytes() == (other / "metrics.csv").read_bytes()
    (left, step), (right, last) = load_params(folder), load_params(other)
    assert step == last
    for x, y in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
        np.testing.assert_array_equal(np.asarray(x), np.asarray(y))


def test_two_processes_make_the_bits_of_one_device(start, alone, tmp_path):
    with start(tmp_path, 2, 4, *SAME_BITS) as run:
        run.finish()
        for index in range(2):
            joined = run.errors(index).splitlines()[0]
            assert joined.startswith(f"environment: process {index} of 2 on ")
            assert "with 4 of 8 devices (cpu)" in joined
        assert "validation: loss" in run.errors(0) and "held out" in run.output(0)
        assert run.output(1) == "" and len(run.errors(1).splitlines()) == 1
    assert_same_run(tmp_path, alone)
    assert len(list((tmp_path / "tensorboard").iterdir())) == 1
    assert {"README.md", "loss.png", "run.json"} <= {path.name for path in tmp_path.iterdir()}


@pytest.mark.slow  # a minute: several processes compile for several counts of devices
def test_two_processes_under_slurm_stop_as_one_and_four_under_open_mpi_go_on(start, alone, tmp_path):
    with start(tmp_path, 2, 4, *SAME_BITS, launcher=slurm) as run:
        run.wait_for_step(tmp_path, 7)
        run.send(1, signal.SIGTERM)
        assert run.codes() == [0, 0]
        assert run.errors(0).startswith("SLURM: process 0 of 2 on ")
        assert "run the same command again to go on" in run.errors(0)
    step = list_steps(tmp_path)[-1]
    assert 7 <= step < 60
    assert int(read_metrics(tmp_path / "metrics.csv")[-1]["step"]) == step
    with start(tmp_path, 4, 1, *SAME_BITS, launcher=open_mpi) as run:
        run.finish()
        assert run.errors(0).startswith("Open MPI: process 0 of 4 on ")
        assert f"step {step} is restored" in run.errors(0)
    assert_same_run(tmp_path, alone)


@pytest.mark.parametrize(("victim", "heirs"), [(0, 2), pytest.param(1, 1, marks=pytest.mark.slow)])
def test_when_one_process_dies_the_other_ends_and_others_go_on(start, alone, tmp_path, victim, heirs):
    with start(tmp_path, 2, 4, *SAME_BITS) as run:
        run.wait_for_step(tmp_path, 9)
        run.send(victim, signal.SIGKILL)
        codes = run.codes()  # in bounded time: of JAX's own heartbeat they would have had to wait for 100 s
        assert codes[victim] == -signal.SIGKILL and codes[1 - victim] == 1
        line = run.errors(1 - victim).splitlines()[-1]
        assert line == (
            f"error: process {victim} of 2 is lost, so process {1 - victim} ends too; checkpoints are intact: "
            "start all processes again to go on from the newest"
        )
    steps = list_steps(tmp_path)
    assert steps and steps[-1] < 60
    with start(tmp_path, heirs, 8 // heirs, *SAME_BITS) as run:
        run.finish()
        assert f"step {steps[-1]} is restored" in run.errors(0)
    assert_same_run(tmp_path, alone)


@pytest.mark.slow  # a minute: several processes compile for several counts of devices
def test_two_processes_share_parameters_and_write_what_one_does(environment, tmp_path):
    """Without fixed parts, under `fsdp`, and with an evaluation that generates: near, and the same texts."""
    words = sorted(
        {word for name in dir(str) for word in (getattr(str, name).__doc__ or "").split() if '"' not in word}
    )
    pairs = tmp_path / "pairs.tsv"
    pairs.write_text("".join(f"{word} {other}\t{other} {word}\n" for word, other in itertools.pairwise(words)))
    options = "--task.batch-size 8 --training.num-steps 4 --compute-dtype float32 --mesh.fsdp 4"
    options += " --model.encoder.num-layers 1 --model.decoder.num-layers 1 --model.embedding.vocab-size 400"
    options += " --data.tokenizer.vocab-size 400"
    folders = tmp_path / "one", tmp_path / "two"
    hasty = environment | {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
    for folder, places, devices in zip(folders, ([{}], by_hand(2)), (8, 4), strict=True):
        arguments = ["translate-dates", "--data.path", str(pairs), "--folder", str(folder), *options.split()]
        with Together(arguments, folder.with_suffix(".logs"), hasty, devices, places) as run:
            run.finish()
            assert "sample" in run.output(0)
    one, two = (read_metrics(folder / "metrics.csv") for folder in folders)
    assert [list(row) for row in one] == [list(row) for row in two]
    # Adam's first updates divide gradients by their own size: rounding in the smallest becomes 1e-6 of a parameter,
    # and 1e-4 of the next gradients. One process that goes on from the two's first step has their second one's norm.
    for name, tolerance in [
        ("loss", 1e-5),
        ("grad_norm", 1e-3),
        ("validation_loss", 1e-5),
        ("validation_exact_match", 0),
    ]:
        values = [[float(row[name]) for row in rows if name in row] for rows in (one, two)]
        assert len(values[0]) == (1 if name.startswith("validation") else 4)
        np.testing.assert_allclose(*values, rtol=tolerance)
    np.testing.assert_allclose(float(one[0]["grad_norm"]), float(two[0]["grad_norm"]), rtol=1e-6)
