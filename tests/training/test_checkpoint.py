"""Checkpoints: any mesh to any other, another configuration refused, a full disk survived."""

import asyncio
import contextlib
import errno
import gc
import json
import os
import resource
import subprocess
import threading
import time

import jax
import numpy as np
import pytest
from tiers import tiered
from toy import Batches, Counting, Toy, assert_same_bits, make_batch, run_toy

from zoo.training.checkpoint import (
    Checkpoints,
    decode_data_state,
    encode_data_state,
    load_params,
    mean_params,
    newest_steps,
)
from zoo.training.config import MeshConfig, OptimizerConfig, ScheduleConfig
from zoo.training.disk_full import DiskFullError, is_disk_full, remove_unfinished
from zoo.training.guard import NonFiniteError
from zoo.training.metrics import read_metrics
from zoo.training.optimizer import make_optimizer, make_schedule
from zoo.training.quiet import quiet_orbax
from zoo.training.run_record import find_difference, read_run
from zoo.training.sharding import make_mesh
from zoo.training.state import abstract_state


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Return the final state of a run that met no trouble."""
    return run_toy(tmp_path_factory.mktemp("whole"))


POSITION = {"step": 3, "tokens": 7, "data": None}


def make_state(mesh, name="adamw"):
    """Return (a state of random numbers, its target) on a mesh; nothing is compiled."""
    opt = make_optimizer(OptimizerConfig(name=name), make_schedule(ScheduleConfig(), 1e-3, 10))
    target = abstract_state(Toy(), Counting(), opt, make_batch(8, 0), mesh)
    rng = np.random.default_rng(0)
    state = jax.tree.map(lambda x: jax.device_put((9 * rng.normal(size=x.shape)).astype(x.dtype), x.sharding), target)
    return state.replace(step=jax.device_put(np.int32(3), target.step.sharding)), target


MESHES = {
    "one device": {"data": 1},
    "data": {"data": 8},
    "fsdp": {"data": 1, "fsdp": 8},
    "tensor": {"data": 1, "tensor": 8},
    "data, fsdp, tensor": {"data": 2, "fsdp": 2, "tensor": 2},
    "fsdp, tensor, context": {"data": 1, "fsdp": 2, "tensor": 2, "context": 2},
    "data, context": {"data": 4, "context": 2},
}


SAVED = [(mesh, optimizer) for mesh in MESHES for optimizer in ("adamw", "muon", "adafactor")]
SAVED_BY_DEFAULT = [
    ("data, fsdp, tensor", "adamw"), ("fsdp", "muon"),
]  # fmt: skip


@pytest.mark.parametrize(("saved_on", "name"), tiered(SAVED, SAVED_BY_DEFAULT))
def test_saved_on_one_mesh_restored_on_any_other(tmp_path, saved_on, name):
    state, _ = make_state(make_mesh(MeshConfig(**MESHES[saved_on])), name)
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        checkpoints.save(state, POSITION, {"a": 1})
    for sizes in MESHES.values():
        _, target = make_state(make_mesh(MeshConfig(**sizes)), name)
        with Checkpoints(tmp_path) as checkpoints:
            assert checkpoints.read(3) == (POSITION, {"a": 1})
            restored = checkpoints.restore(checkpoints.latest_step(), target)
        assert_same_bits(restored, state)
        jax.tree.map(lambda x, y: np.testing.assert_equal(x.sharding, y.sharding), restored, target)


def test_parameters_are_read_alone_and_sharded(tmp_path):
    state, _ = make_state(make_mesh(MeshConfig(data=1)))
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        checkpoints.save(state, POSITION, {})
    params, step = load_params(tmp_path, mesh=make_mesh(MeshConfig(data=1, fsdp=8)))
    assert step == 3
    assert_same_bits(params, state.params)
    assert params["head"]["kernel"].addressable_shards[0].data.shape == (2, 16)
    with pytest.raises(ValueError, match="no checkpoint of step 4: it has steps 3"):
        load_params(tmp_path, step=4)
    with pytest.raises(ValueError, match="no checkpoint: train it first"):
        load_params(tmp_path / "elsewhere")


def test_the_last_k_are_kept_and_an_unfinished_one_is_never_seen(tmp_path):
    state, target = make_state(make_mesh(MeshConfig(data=1)))
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        for step in (1, 2, 3):
            checkpoints.save(state, {**POSITION, "step": step}, {})
        checkpoints.wait()
        assert checkpoints.all_steps() == [2, 3]
    # What a SIGKILL leaves: a folder that was never renamed to its step.
    whole, torn = tmp_path / "checkpoints" / "3", tmp_path / "checkpoints" / "4.orbax-checkpoint-tmp"
    torn.mkdir()
    (torn / "_CHECKPOINT_METADATA").write_bytes((whole / "_CHECKPOINT_METADATA").read_bytes())
    assert load_params(tmp_path)[1] == 3
    assert torn.exists()  # reading beside a run that is saving must not disturb it
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        assert checkpoints.latest_step() == 3
        assert not torn.exists()
        assert_same_bits(checkpoints.restore(3, target).params, state.params)


def test_no_checkpoint_is_removed_before_one_is_known_to_be_whole(tmp_path):
    state, _ = make_state(make_mesh(MeshConfig(data=1)))
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        for step in (2, 3):
            checkpoints.save(state, {**POSITION, "step": step}, {})
    with open(tmp_path / "checkpoints" / "3" / "params" / "_METADATA", "ab") as file:
        file.write(b" ")
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        step, (line,) = checkpoints.choose_step()
        assert step == 2 and "step 3 is damaged (params/_METADATA has changed)" in line
        assert checkpoints.all_steps() == [2]
        checkpoints.save(state, {**POSITION, "step": 3}, {})
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        assert checkpoints.choose_step() == (3, []) and checkpoints.all_steps() == [3]


def test_data_states_come_back_the_same():
    for state in (b"\x00\xff", {"index": 3, "parents": [1, {"x": None}]}, 5):
        assert decode_data_state(json.loads(json.dumps(encode_data_state(state)))) == state
    with pytest.raises(ValueError, match="bytes or JSON-able"):
        encode_data_state({"position": (1, 2)})


class Untouchable(Counting):
    """Fails if anything is asked of it: a refused run must not have begun."""

    def batches(self, split):
        raise AssertionError("the run began")


RESOLVED = {"recipe": "toy", "model": {"width": 16, "layers": [1, 2]}}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    run_toy(folder, resolved=RESOLVED)
    return folder


@pytest.mark.parametrize(
    ("change", "field", "values"),
    [
        ({"optimizer": {"weight_decay": 0.3}}, "optimizer.weight_decay", ("0.1", "0.3")),
        ({"schedule": {"name": "linear"}}, "schedule.name", ("'constant'", "'linear'")),
        ({"seed": 1}, "training.seed", ("0", "1")),
        ({"resolved": {**RESOLVED, "model": {"width": 32, "layers": [1, 2]}}}, "model.width", ("16", "32")),
        ({"resolved": {**RESOLVED, "task": {"name": "x"}}}, "task.name", ("'absent'", "'x'")),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_a_folder_of_another_run_is_refused_before_anything_begins(trained, change, field, values):
    before = {path: path.stat().st_mtime_ns for path in trained.rglob("*") if path.is_file()}
    settings = {"resolved": RESOLVED, **change}
    with pytest.raises(ValueError) as refused:
        run_toy(trained, task=Untouchable(), **settings)
    message = str(refused.value)
    assert f"{field} = {values[0]}" in message and f"{field} = {values[1]}" in message
    assert "choose another folder" in message and "\n" not in message
    assert {path: path.stat().st_mtime_ns for path in trained.rglob("*") if path.is_file()} == before


def test_fields_that_do_not_change_the_mathematics_may_differ(trained):
    free = {"mesh": {"data": 4, "fsdp": 1}, "log_every": 2, "keep": 3, "checkpoint_every": 2, "accumulate": 2}
    run_toy(trained, resolved=RESOLVED, **free)
    assert read_run(trained)["mesh"]["data"] == 4
    constant = {"schedule": {"name": "constant"}, "training": {"num_steps": 5}}
    assert find_difference(constant, {**constant, "training": {"num_steps": 9}}) is None
    cosine = {"schedule": {"name": "cosine"}, "training": {"num_steps": 5}}
    assert find_difference(cosine, {**cosine, "training": {"num_steps": 9}}) == ("training.num_steps", 5, 9)
    assert find_difference({"a": {"b": 1}}, {"a": {"b": 2}}, free=("a.*",)) is None
    assert find_difference({"a": 1}, {"a": True}) == ("a", 1, True)


class FillsTheDisk(Counting):
    """Calls a function in the second evaluation: after the save of step 8 began, before that of step 12."""

    def __init__(self, fill):
        super().__init__()
        self.fill, self.evaluations = fill, 0

    def evaluate(self, apply, params):
        self.evaluations += 1
        if self.evaluations == 2:
            self.fill()
        return super().evaluate(apply, params)


@pytest.fixture
def limit_file_size():
    """Return a function that makes this process fail to write a file beyond 8 KiB, as a quota does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def limit(size=8192):
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft if size is None else size, hard))

    yield limit
    limit(None)


def check_intact(folder, error):
    message, (_, step) = str(error), load_params(folder)
    assert error.errno == errno.ENOSPC and "disk full" in message and "\n" not in message
    assert step in (4, 8) and f"step {step} is intact" in message and "run the same command again" in message
    assert not list((folder / "checkpoints").glob("*tmp*"))


def test_a_limit_on_file_size_leaves_earlier_steps_intact(tmp_path, whole, limit_file_size):
    """The writes fail in Orbax's own threads."""
    with pytest.raises(DiskFullError) as full:
        run_toy(tmp_path, task=FillsTheDisk(limit_file_size))
    limit_file_size(None)
    check_intact(tmp_path, full.value)
    assert_same_bits(run_toy(tmp_path), whole)


def test_a_full_file_system_leaves_earlier_steps_intact(tmp_path, whole):
    mount = subprocess.run(f"mount -t tmpfs -o size=2m tmpfs {tmp_path}".split(), capture_output=True)
    if mount.returncode:
        pytest.skip("no right to mount a small file system; the limit on file size is tested everywhere")
    ballast = tmp_path / "ballast"

    def fill():
        with open(ballast, "wb", buffering=0) as file, pytest.raises(OSError, match="No space left"):
            while True:
                file.write(b"x" * 1024)

    try:
        with pytest.raises(DiskFullError) as full:
            run_toy(tmp_path, task=FillsTheDisk(fill))
        check_intact(tmp_path, full.value)
        ballast.unlink()
        assert_same_bits(run_toy(tmp_path), whole)
    finally:
        subprocess.run(["umount", tmp_path], check=True)


def test_disk_full_is_found_in_a_chain_and_nothing_else_is():
    inner = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    outer = RuntimeError("save failed")
    outer.__cause__ = inner
    assert is_disk_full(ExceptionGroup("saving", [outer]))
    assert is_disk_full(ValueError("RESOURCE_EXHAUSTED: write: No space left on device"))
    assert not is_disk_full(ValueError("no such key"))


class Explodes(Counting):
    """Gives an infinite loss from a batch on."""

    def loss(self, apply, params, batch, rng):
        value, metrics = super().loss(apply, params, batch, rng)
        return value / jax.numpy.where(batch["tokens"][0, 0] == batch["tokens"][0, 1], 0.0, 1.0), metrics

    def batches(self, split):
        class Constant(Batches):
            def __next__(self):
                batch = super().__next__()
                if self.index == 7:
                    batch["tokens"][0, 1] = batch["tokens"][0, 0]
                return batch

        return Constant(self.batch_size, self.seed)


def test_a_loss_that_is_not_finite_stops_the_run_and_is_never_saved(tmp_path):
    with pytest.raises(NonFiniteError, match=r"loss is inf at step 7; .* step 4, is from before"):
        run_toy(tmp_path, task=Explodes(), max_skipped=0)
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.all_steps() == [4]
    assert all(np.isfinite(float(row["loss"])) for row in read_metrics(tmp_path / "metrics.csv"))


def test_a_batch_that_does_not_divide_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"8 rows .* make it a multiple of 12"):
        run_toy(tmp_path, mesh={"data": 4}, accumulate=3)


def test_train_batches_that_end_are_refused(tmp_path):
    class Ends(Counting):
        def batches(self, split):
            class Short(Batches):
                def __next__(self):
                    if self.index == 3:
                        raise StopIteration
                    return super().__next__()

            return Short(self.batch_size, self.seed)

    with pytest.raises(ValueError, match="must be endless"):
        run_toy(tmp_path, task=Ends())


def test_the_mean_of_the_newest_checkpoints(tmp_path):
    state, _ = make_state(make_mesh(MeshConfig(data=1)))
    with Checkpoints(tmp_path, keep=3) as checkpoints:
        for step in (2, 4, 6, 8):
            scaled = jax.tree.map(lambda x, step=step: x * step, state.params)
            checkpoints.save(state.replace(params=scaled), POSITION | {"step": step}, {})
    assert newest_steps(tmp_path, 2) == [6, 8]
    mean = mean_params(load_params(tmp_path, step)[0] for step in newest_steps(tmp_path, 2))
    jax.tree.map(lambda ours, x: np.testing.assert_allclose(ours, 7 * x, rtol=1e-6), mean, state.params)
    with pytest.raises(ValueError, match=r"average is 4 checkpoints and .* has 3 \(steps 4, 6, 8\); give no more"):
        newest_steps(tmp_path, 4)
    with pytest.raises(ValueError, match="average is 0; give at least 1"):
        newest_steps(tmp_path, 0)
    with pytest.raises(ValueError, match="has none"):
        newest_steps(tmp_path / "empty", 2)


@pytest.mark.parametrize(
    "forget",
    [
        pytest.param(lambda write: [asyncio.ensure_future(write())], id="tasks"),
        pytest.param(lambda write: [asyncio.gather(write(), write())], id="gathered tasks", marks=pytest.mark.slow),
    ],
)
def test_what_tasks_of_orbax_raised_is_not_logged_again(forget, caplog):
    """Where several fail at once, asyncio logs all but the first, which alone is raised."""
    quiet_orbax()

    def fail(file: str) -> None:
        scope: dict = {}
        exec(compile("async def write(): raise ValueError('it cannot be written')", file, "exec"), scope)

        async def end():
            futures = forget(scope["write"])
            await asyncio.sleep(0.01)
            assert all(future.done() for future in futures)
            del futures  # as those that nobody waits for once the first has failed

        asyncio.run(end())
        gc.collect()

    fail("/packages/orbax/checkpoint/write.py")
    assert not caplog.records
    fail("/packages/other/write.py")
    assert {record.name for record in caplog.records} == {"asyncio"}


def test_what_is_written_while_it_is_removed_is_removed_too(tmp_path):
    """As by Orbax's other tasks, after one has failed."""
    unfinished = tmp_path / "3.orbax-checkpoint-tmp"

    def write():
        for index in range(40):
            with contextlib.suppress(FileNotFoundError):  # removed between the two
                unfinished.mkdir(exist_ok=True)
                (unfinished / str(index)).write_text("an array")
            time.sleep(0.005)

    (tmp_path / "removed-1" / "params").mkdir(parents=True)
    writer = threading.Thread(target=write)
    writer.start()
    time.sleep(0.02)
    remove_unfinished(tmp_path)
    writer.join()
    assert list(tmp_path.iterdir()) == []
