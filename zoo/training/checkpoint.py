"""Checkpoints: Orbax, written in the background, committed whole or not at all, verified, restored onto any mesh.

A step's folder has four items: `params` and `optimizer` (plain nested trees), `position` (JSON: the step, the
tokens seen, where the data stands) and `run` (JSON: the resolved configuration), and a manifest of all their files.
Parameters lie apart from moments so that evaluation reads them alone. Orbax writes beside the final name; the thread
that ends a save writes the manifest and renames: an unfinished save is never seen, and what is seen can be verified.
"""

import asyncio
import base64
import os
import shutil
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from orbax.checkpoint.path import atomicity

from zoo.training.config import MeshConfig
from zoo.training.disk_full import clear_disk_errors, remove_unfinished
from zoo.training.hosts import synchronise
from zoo.training.manifest import (
    CHECKPOINTS,
    MARK,
    DamagedError,
    find_damage,
    has_manifest,
    list_steps,
    set_aside,
    sync_files,
    write_manifest,
)
from zoo.training.protocol import Params
from zoo.training.quiet import quiet_orbax
from zoo.training.run_record import as_json
from zoo.training.sharding import make_mesh, shard_parameters
from zoo.training.state import TrainState


def encode_data_state(state: Any) -> dict[str, Any]:
    """Return an iterator's position as JSON; raise ValueError if it would not come back the same."""
    if isinstance(state, bytes):
        return {"base64": base64.b64encode(state).decode()}
    value = as_json(state)
    if value != state:
        raise ValueError(f"the data iterator's state must be bytes or JSON-able, got {state!r}")
    return {"json": value}


def decode_data_state(encoded: dict[str, Any]) -> Any:
    """Invert `encode_data_state`."""
    return base64.b64decode(encoded["base64"]) if "base64" in encoded else encoded["json"]


class _CommittedPath(atomicity.AtomicRenameTemporaryPath):
    """Where Orbax writes a step: `finalize` runs on the first machine after every machine has written its part."""

    async def finalize(self) -> None:
        """Write the manifest of all that is there, and commit by renaming."""
        await asyncio.to_thread(self._commit, Path(self.get()), Path(self.get_final()))

    def _commit(self, written: Path, final: Path) -> None:
        assert self._checkpoint_metadata_store is not None
        self._checkpoint_metadata_store.wait_until_finished()
        # Orbax's own sign of a whole checkpoint, for its other readers.
        (written / atomicity.COMMIT_SUCCESS_FILE).write_text(f"committed as {final.name}")
        sync_files(written)
        write_manifest(written)
        os.rename(written, final)
        _sync_folder(final.parent)


def _sync_folder(folder: Path) -> None:
    """See that the names in a folder are on the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


_NONE, _DAMAGED = -1, -2
"""In a step's place among machines: there is no checkpoint, or none that is whole."""


class Checkpoints:
    """The checkpoints of one run folder. Use as a context manager: leaving it waits for saves under way."""

    def __init__(self, folder: str | Path, keep: int | None = None):
        """Open them for writing, keeping the last `keep`; None is for reading alone, even beside a run."""
        self.run_folder = Path(folder).absolute()
        self.folder = self.run_folder / CHECKPOINTS
        self._keep = keep
        self._verified: set[int] = set()
        if keep is not None and jax.process_index() == 0:
            self.folder.mkdir(parents=True, exist_ok=True)
            remove_unfinished(self.folder)
        if keep is not None:
            synchronise("what was unfinished is removed")
        quiet_orbax()
        handler = ocp.CompositeCheckpointHandler(
            params=ocp.StandardCheckpointHandler(),
            optimizer=ocp.StandardCheckpointHandler(),
            position=ocp.JsonCheckpointHandler(),
            run=ocp.JsonCheckpointHandler(),
        )
        self._checkpointer = ocp.AsyncCheckpointer(handler, temporary_path_class=_CommittedPath)
        self._finisher = ThreadPoolExecutor(1, "checkpoint")
        self._finishing: Future[None] | None = None

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind, error, trace) -> None:
        with ExitStack() as stack:
            stack.callback(self._close, error is not None)
            if error is None:
                self.wait()

    def _close(self, quietly: bool) -> None:
        """Wait for the save under way and close; if something failed before, that is the error to see."""
        try:
            self._finisher.shutdown()
            self._checkpointer.close()
        except Exception:
            if not quietly:
                raise

    def latest_step(self) -> int | None:
        """Return the newest committed checkpoint's step, None if there is none; whether it is whole is not asked."""
        return max(self.all_steps(), default=None)

    def all_steps(self) -> list[int]:
        """Return the steps of all committed checkpoints, oldest first."""
        return list_steps(self.run_folder)

    def choose_step(self) -> tuple[int | None, list[str]]:
        """Return the newest whole checkpoint's step, None if there is none at all, and what is to be told, in lines.

        Damaged ones that are newer are set aside. The first machine verifies for all. Raises DamagedError, and changes
        nothing, if there are checkpoints and none is whole: going on would begin anew unasked.
        """
        step, lines = _NONE, []
        if jax.process_index() == 0:
            step, lines = self._choose_step()
            if step >= 0:
                self._remove_old()  # not before one that stays is known to be whole
        if jax.process_count() > 1:
            step = int(multihost_utils.broadcast_one_to_all(np.int32(step)))
        if step == _DAMAGED:
            raise DamagedError(lines[0] if lines else f"every checkpoint of {self.run_folder} is damaged")
        if step == _NONE:
            return None, lines
        self._verified.add(step)
        return step, lines

    def _choose_step(self) -> tuple[int, list[str]]:
        damages: dict[int, str] = {}
        for step in reversed(self.all_steps()):
            damage = find_damage(self.folder / str(step))
            if damage is None:
                return step, [*self._set_aside(damages, step), *self._tell_old(step)]
            damages[step] = damage
        if not damages:
            return _NONE, []
        found = "; ".join(f"step {step}: {damage}" for step, damage in damages.items())
        mend = "put a copy back, or remove them to start anew"
        return _DAMAGED, [f"every checkpoint of {self.run_folder} is damaged ({found}): {mend}"]

    def _set_aside(self, damages: dict[int, str], step: int) -> list[str]:
        return [
            f"the checkpoint of step {bad} is damaged ({damage}): it is kept as "
            f"{set_aside(self.folder / str(bad)).name}, and step {step} is used"
            for bad, damage in damages.items()
        ]

    def _tell_old(self, step: int) -> list[str]:
        if has_manifest(self.folder / str(step)):
            return []
        return [f"the checkpoint of step {step} was written before checkpoints had manifests: it is not verified"]

    def save(self, state: TrainState, position: dict[str, Any], resolved: Any) -> None:
        """Copy the state to the host and write it in the background; raises what the save before met."""
        step = position["step"]
        self.wait()
        if step in self.all_steps():
            return
        self._save(
            step,
            params=ocp.args.StandardSave(state.params),
            optimizer=ocp.args.StandardSave(state.opt_state),
            position=ocp.args.JsonSave(position),
            run=ocp.args.JsonSave(as_json(resolved)),
        )

    def save_params(self, params: Params) -> None:
        """Write parameters alone, as those of step 0, in the background."""
        self._save(0, params=ocp.args.StandardSave(params))

    def _save(self, step: int, **items: Any) -> None:
        args = ocp.args.Composite(**items)
        self._checkpointer.save(self.folder / str(step), args=args, custom_metadata=MARK)
        self._finishing = self._finisher.submit(self._finish)

    def _finish(self) -> None:
        self._checkpointer.wait_until_finished()
        if jax.process_index() == 0:
            self._remove_old()

    def _remove_old(self) -> None:
        """Remove all but the newest checkpoints, each at once: one that is half removed is no checkpoint any more."""
        for step in self.all_steps()[: -self._keep] if self._keep else []:
            shutil.rmtree((self.folder / str(step)).rename(self.folder / f"removed-{step}"), ignore_errors=True)

    def wait(self) -> None:
        """Wait until the save under way is committed and older ones are removed; raise what went wrong."""
        finishing, self._finishing = self._finishing, None
        if finishing is not None:
            finishing.result()

    def read(self, step: int) -> tuple[dict[str, Any], Any]:
        """Return (position, resolved run) of a step without reading any array."""
        self._check(step, "position", "run")
        items = ocp.args.Composite(position=ocp.args.JsonRestore(), run=ocp.args.JsonRestore())
        restored = self._checkpointer.restore(self.folder / str(step), args=items)
        return restored.position, restored.run

    def read_newest_run(self) -> Any:
        """Return the resolved run of the newest checkpoint that still has it whole; None if there is none."""
        for step in reversed(self.all_steps()):
            if find_damage(self.folder / str(step), ("position", "run")) is None:
                return self.read(step)[1]
        return None

    def restore(self, step: int, target: TrainState) -> TrainState:
        """Return the state of a step in the shapes and shardings of `target`, whatever mesh wrote it."""
        self._check(step, "params", "optimizer")
        items = ocp.args.Composite(
            params=ocp.args.StandardRestore(target.params),
            optimizer=ocp.args.StandardRestore(target.opt_state),
        )
        restored = self._checkpointer.restore(self.folder / str(step), args=items)
        counter = jax.device_put(jax.numpy.asarray(step, target.step.dtype), target.step.sharding)
        return TrainState(step=counter, params=restored.params, opt_state=restored.optimizer)

    def read_shapes(self, step: int) -> Params:
        """Return the shapes and dtypes of a step's parameters."""
        self._check(step, "params")
        items = self._checkpointer.metadata(self.folder / str(step)).item_metadata
        assert items is not None
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), items["params"].tree)

    def restore_params(self, step: int, mesh: Mesh) -> Params:
        """Return the parameters of a step, sharded by the table; the checkpoint knows their shapes."""
        shapes = self.read_shapes(step)
        target = jax.tree.map(
            lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
            shapes,
            shard_parameters(shapes, mesh),
        )
        items = ocp.args.Composite(params=ocp.args.StandardRestore(target))
        return self._checkpointer.restore(self.folder / str(step), args=items).params

    def _check(self, step: int, *items: str) -> None:
        """Raise DamagedError unless the items are what was written."""
        if step in self._verified:
            return
        damage = find_damage(self.folder / str(step), items)
        if damage is not None:
            whole = [other for other in self.all_steps() if find_damage(self.folder / str(other), items) is None]
            mend = f"step {whole[-1]} is whole" if whole else "put a copy back"
            raise DamagedError(
                f"the checkpoint of step {step} of {self.run_folder} is damaged ({damage}): {mend}; "
                "evaluate.py --verify says what else is"
            )


def load_params(folder: str | Path, step: int | None = None, mesh: Mesh | None = None) -> tuple[Params, int]:
    """Return (parameters, step) of a run folder's checkpoint, the newest unless a step is given.

    Raises ValueError if the folder has no such checkpoint, naming those it has, and DamagedError if its parameters are
    not what was written.
    """
    steps = list_steps(folder)
    if not steps or (step is not None and step not in steps):
        wanted = "checkpoint" if step is None else f"checkpoint of step {step}"
        have = f"it has steps {', '.join(map(str, steps))}" if steps else "train it first"
        raise ValueError(f"{folder} has no {wanted}: {have}")
    step = steps[-1] if step is None else step
    with Checkpoints(folder) as checkpoints:
        mesh = make_mesh(MeshConfig(), jax.devices()[:1]) if mesh is None else mesh
        return checkpoints.restore_params(step, mesh), step


def newest_steps(folder: str | Path, count: int) -> list[int]:
    """Return the steps of a run folder's newest `count` checkpoints; ValueError if it has fewer, or for none."""
    steps = list_steps(folder)
    if count < 1:
        raise ValueError(f"average is {count}; give at least 1 checkpoint")
    if count > len(steps):
        have = f"{len(steps)} (steps {', '.join(map(str, steps))})" if steps else "none"
        raise ValueError(
            f"average is {count} checkpoints and {folder} has {have}; give no more than that, or train with "
            f"--training.keep {count} and a --training.checkpoint-every that makes as many"
        )
    return steps[-count:]


def mean_params(trees: Iterable[Params]) -> Params:
    """Return the mean of parameters, such as those of a run's last checkpoints (Vaswani et al. 2017, section 6.1).

    One tree at a time is added, in float32.
    """
    trees = iter(trees)
    total, count = next(trees), 1
    for tree in trees:
        total, count = jax.tree.map(jax.numpy.add, total, tree), count + 1
    return jax.tree.map(lambda x: x / count, total)


def save_params(folder: str | Path, params: Params) -> None:
    """Write parameters alone, as the checkpoint of step 0, for `load_params`."""
    with clear_disk_errors(Path(folder)), Checkpoints(folder, keep=1) as checkpoints:
        checkpoints.save_params(params)
