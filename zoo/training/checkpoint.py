"""Checkpoints: Orbax, written in the background, committed whole or not at all, restored onto any mesh.

A step's folder has four items: `params` and `optimizer` (plain nested trees), `position` (JSON: the step, the
tokens seen, where the data stands) and `run` (JSON: the resolved configuration). Parameters lie apart from
moments so that evaluation reads them alone. Orbax writes beside the final name and renames: an unfinished
save is never seen.
"""

import base64
import errno
import shutil
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from jax.sharding import Mesh

from zoo.training.config import MeshConfig
from zoo.training.protocol import Params
from zoo.training.quiet import quiet_orbax
from zoo.training.run_record import as_json
from zoo.training.sharding import make_mesh, shard_parameters
from zoo.training.state import TrainState

CHECKPOINTS = "checkpoints"


class DiskFullError(OSError):
    """No more can be written; what was committed before is whole."""

    def __init__(self, message: str):
        super().__init__(errno.ENOSPC, message)

    def __str__(self) -> str:
        return str(self.strerror)


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


def _chain(error: BaseException | None, seen: set[int]) -> Iterator[BaseException]:
    if error is None or id(error) in seen:
        return
    seen.add(id(error))
    yield error
    for inner in (*getattr(error, "exceptions", ()), error.__cause__, error.__context__):
        yield from _chain(inner, seen)


def is_disk_full(error: BaseException) -> bool:
    """Return whether an error, or one it was raised from, says that no more can be written.

    Tensorstore reports its own errors as text, so the messages count too.
    """
    full = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    phrases = ("No space left on device", "Disk quota exceeded", "File too large")
    return any(
        (isinstance(e, OSError) and e.errno in full) or any(phrase in str(e) for phrase in phrases)
        for e in _chain(error, set())
    )


class Checkpoints:
    """The checkpoints of one run folder. Use as a context manager: leaving it waits for saves under way."""

    def __init__(self, folder: str | Path, keep: int | None = None):
        """Open them for writing, keeping the last `keep`; None is for reading alone, even beside a run."""
        self.folder = Path(folder).absolute() / CHECKPOINTS
        if keep is not None and jax.process_index() == 0:
            _remove_unfinished(self.folder)
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep, create=keep is not None, enable_async_checkpointing=True
        )
        handlers = {
            "params": ocp.StandardCheckpointHandler(),
            "optimizer": ocp.StandardCheckpointHandler(),
            "position": ocp.JsonCheckpointHandler(),
            "run": ocp.JsonCheckpointHandler(),
        }
        quiet_orbax()
        self._manager = ocp.CheckpointManager(self.folder, options=options, item_handlers=handlers)

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
            self._manager.close()
        except Exception:
            if not quietly:
                raise

    def latest_step(self) -> int | None:
        """Return the newest whole checkpoint's step, None if there is none."""
        return self._manager.latest_step()

    def all_steps(self) -> list[int]:
        """Return the steps of all whole checkpoints, oldest first."""
        return sorted(self._manager.all_steps())

    def save(self, state: TrainState, position: dict[str, Any], resolved: Any) -> None:
        """Copy the state to the host and write it in the background; raises what the save before met."""
        step = position["step"]
        self._manager.wait_until_finished()
        if step in self._manager.all_steps():
            return
        items = ocp.args.Composite(
            params=ocp.args.StandardSave(state.params),
            optimizer=ocp.args.StandardSave(state.opt_state),
            position=ocp.args.JsonSave(position),
            run=ocp.args.JsonSave(as_json(resolved)),
        )
        self._manager.save(step, args=items, force=True)

    def save_params(self, params: Params) -> None:
        """Write parameters alone, as those of step 0, in the background."""
        self._manager.save(0, args=ocp.args.Composite(params=ocp.args.StandardSave(params)), force=True)

    def wait(self) -> None:
        """Wait until the save under way is committed; raise what went wrong with it."""
        self._manager.wait_until_finished()

    def read(self, step: int) -> tuple[dict[str, Any], Any]:
        """Return (position, resolved run) of a step without reading any array."""
        items = ocp.args.Composite(position=ocp.args.JsonRestore(), run=ocp.args.JsonRestore())
        restored = self._manager.restore(step, args=items)
        return restored.position, restored.run

    def restore(self, step: int, target: TrainState) -> TrainState:
        """Return the state of a step in the shapes and shardings of `target`, whatever mesh wrote it."""
        items = ocp.args.Composite(
            params=ocp.args.StandardRestore(target.params),
            optimizer=ocp.args.StandardRestore(target.opt_state),
        )
        restored = self._manager.restore(step, args=items)
        counter = jax.device_put(jax.numpy.asarray(step, target.step.dtype), target.step.sharding)
        return TrainState(step=counter, params=restored.params, opt_state=restored.optimizer)

    def read_shapes(self, step: int) -> Params:
        """Return the shapes and dtypes of a step's parameters."""
        metadata = self._manager.item_metadata(step)["params"]
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), metadata.tree)

    def restore_params(self, step: int, mesh: Mesh) -> Params:
        """Return the parameters of a step, sharded by the table; the checkpoint knows their shapes."""
        shapes = self.read_shapes(step)
        target = jax.tree.map(
            lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
            shapes,
            shard_parameters(shapes, mesh),
        )
        items = ocp.args.Composite(params=ocp.args.StandardRestore(target))
        return self._manager.restore(step, args=items).params


def list_steps(folder: str | Path) -> list[int]:
    """Return the steps of a run folder's whole checkpoints, oldest first, from their names alone."""
    return sorted(int(path.name) for path in (Path(folder) / CHECKPOINTS).glob("*") if path.name.isdigit())


def _remove_unfinished(folder: Path) -> None:
    """Remove what a killed or failed save left. Orbax would do it in the background, beside the next save."""
    for path in folder.glob("*orbax-checkpoint-tmp*"):
        shutil.rmtree(path, ignore_errors=True)


@contextmanager
def clear_disk_errors(folder: Path) -> Iterator[None]:
    """Turn a full disk, whichever thread met it, into one DiskFullError, and remove what was unfinished."""
    try:
        yield
    except Exception as error:
        if not is_disk_full(error):
            raise
        _remove_unfinished(folder / CHECKPOINTS)
        steps = list_steps(folder)
        intact = f"the checkpoint of step {steps[-1]} is intact" if steps else "no checkpoint was written before"
        raise DiskFullError(
            f"disk full while writing to {folder}; {intact}: free space and run the same command again"
        ) from error


def load_params(folder: str | Path, step: int | None = None, mesh: Mesh | None = None) -> tuple[Params, int]:
    """Return (parameters, step) of a run folder's checkpoint, the newest unless a step is given.

    Raises ValueError if the folder has no such checkpoint, naming those it has.
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
