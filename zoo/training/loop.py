"""The training loop: restore or initialise, step, evaluate, save, and stop cleanly when told to.

What the loop promises: killed at any moment and run again, it ends in the same bits. Every step depends on
the state, the batch and the step's number alone, and a checkpoint holds the first with the position of the second.
The loop waits for the device only `LAG` steps behind it, to read metrics, and before an evaluation or a save.
"""

import dataclasses
import errno
import math
from collections import deque
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from zoo.training.checkpoint import Checkpoints, decode_data_state, encode_data_state, is_disk_full
from zoo.training.config import MeshConfig, OptimizerConfig, ScheduleConfig, TrainingConfig
from zoo.training.metrics import MetricsFile
from zoo.training.optimizer import make_optimizer, make_schedule
from zoo.training.prefetch import Prefetcher
from zoo.training.progress import Progress
from zoo.training.protocol import Model, Params, Task
from zoo.training.run_record import check_same_run, write_run
from zoo.training.sharding import make_mesh
from zoo.training.state import TrainState, abstract_state, bind_apply, initialise_state, start_state
from zoo.training.step import make_train_step
from zoo.training.stopping import EvaluationStopped, Stopped, StopRequest

# Steps in flight while the host reads the metrics of the one before them: the device is never idle for it.
LAG = 2


class NonFiniteError(FloatingPointError):
    """The loss or the gradient norm is NaN or infinite; no such state is ever saved."""


def train(
    model: Model,
    task: Task,
    folder: str | Path,
    *,
    optimizer: OptimizerConfig,
    schedule: ScheduleConfig,
    mesh: MeshConfig,
    training: TrainingConfig,
    resolved: dict[str, Any] | None = None,
    params: Params | None = None,
    may_differ: tuple[str, ...] = (),
) -> TrainState:
    """Train a model on a task in a folder, and return the final state; goes on from the folder's newest checkpoint.

    `resolved` is the whole run as nested JSON-able dicts, kept in every checkpoint; a folder of another run is refused
    unless only `may_differ` (globs over dotted fields) and fields that do not change the mathematics differ.
    `params` are where a new run starts (a pretrained model); None initialises.

    Raises ValueError for a folder of another run or a mesh or batch that does not fit, NonFiniteError for a
    NaN or infinite loss, OSError (ENOSPC) for a full disk, and Stopped, a SystemExit of code 0, after SIGTERM or SIGINT.
    """
    configs = {"optimizer": optimizer, "schedule": schedule, "mesh": mesh, "training": training}
    resolved = {**{name: dataclasses.asdict(config) for name, config in configs.items()}, **(resolved or {})}
    folder = Path(folder).absolute()
    with _clear_disk_errors(folder), StopRequest() as stop:
        folder.mkdir(parents=True, exist_ok=True)
        with Checkpoints(folder, training.keep) as checkpoints:
            position = _read_position(checkpoints, folder, resolved, may_differ)
            write_run(folder, resolved)
            iterator = task.batches("train")
            if position["step"]:
                iterator.set_state(decode_data_state(position["data"]))
            device_mesh = make_mesh(mesh)
            with jax.set_mesh(device_mesh), Prefetcher(iterator, device_mesh, training.prefetch) as batches:
                session = _Session(
                    task, bind_apply(model), training, checkpoints, batches, stop, resolved, position
                )
                return session.run(model, optimizer, schedule, device_mesh, params)


def _read_position(
    checkpoints: Checkpoints, folder: Path, resolved: Any, may_differ: tuple[str, ...]
) -> dict:
    """Return the newest checkpoint's position, after making sure that it is of this run."""
    step = checkpoints.latest_step()
    if step is None:
        return {"step": 0, "tokens": 0, "data": None}
    position, saved = checkpoints.read(step)
    check_same_run(saved, resolved, folder, may_differ)
    return position


class _clear_disk_errors:  # noqa: N801
    """Turns a full disk, wherever it was met, into one line."""

    def __init__(self, folder: Path):
        self.folder = folder

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        said = isinstance(error, OSError) and "disk full" in str(error)
        if error is not None and not said and is_disk_full(error):
            raise OSError(
                errno.ENOSPC,
                f"disk full while writing to {self.folder}; checkpoints written before are intact: free space and "
                f"run the same command again",
            ) from error


class _Session:
    """One process's part of a run: what it holds, and what happens each step."""

    def __init__(self, task, apply, training, checkpoints, batches, stop, resolved, position):
        self.task, self.apply, self.training, self.resolved = task, apply, training, resolved
        self.checkpoints, self.batches, self.stop = checkpoints, batches, stop
        self.step, self.tokens, self.data = position["step"], position["tokens"], position["data"]
        self.pending: deque[tuple[int, Any]] = deque()
        self.metrics = MetricsFile(checkpoints.folder.parent / "metrics.csv")
        self.progress = Progress(training.num_steps, self.step)
        self.state: TrainState

    def run(
        self,
        model: Model,
        optimizer_config: OptimizerConfig,
        schedule_config: ScheduleConfig,
        mesh: Mesh,
        params: Params | None,
    ) -> TrainState:
        """Compile, then train from where the session stands to the end."""
        training = self.training
        schedule = make_schedule(schedule_config, optimizer_config.learning_rate, training.num_steps)
        optimizer = make_optimizer(optimizer_config, schedule)
        item = next(self.batches)
        check_batch(item[0], mesh, training.accumulate)
        target = abstract_state(model, self.task, optimizer, item[0], mesh)
        if self.step:
            self.state = self.checkpoints.restore(self.step, target)
        elif params is not None:
            self.state = start_state(params, optimizer, target)
        else:
            self.state = initialise_state(model, self.task, optimizer, item[0], target, training.seed)
        train_step = make_train_step(
            self.task,
            self.apply,
            optimizer,
            schedule,
            seed=training.seed,
            accumulate=training.accumulate,
            target=target,
        )
        self.metrics.open(self.step)
        try:
            with self.progress:
                self._loop(train_step, item)
        finally:
            self.metrics.close()
        return self.state

    def _loop(self, train_step, item) -> None:
        if (
            self.step
            and self._due(self.training.evaluate_every)
            and not self.metrics.has(self.step, "validation_")
        ):
            self._evaluate()  # the run was stopped during this evaluation
        while self.step < self.training.num_steps:
            if self.stop:
                self._save_and_stop()
            batch, data = item
            self.state, metrics = train_step(self.state, batch)
            jax.tree.map(lambda x: x.copy_to_host_async(), metrics)
            self.step, self.data = self.step + 1, encode_data_state(data)
            self.pending.append((self.step, metrics))
            self._read_metrics(LAG)
            if self._due(self.training.evaluate_every):
                self._evaluate()
            if self._due(self.training.checkpoint_every):
                self._save()
            if self.step < self.training.num_steps:
                item = next(self.batches)

    def _due(self, every: int | None) -> bool:
        return self.step == self.training.num_steps or (every is not None and self.step % every == 0)

    def _read_metrics(self, lag: int) -> None:
        """Take the metrics of all but the last `lag` steps from the device; stop at one that is not finite."""
        while len(self.pending) > lag:
            step, device_metrics = self.pending.popleft()
            values = {name: np.float32(x) for name, x in jax.device_get(device_metrics).items()}
            for name in ("loss", "grad_norm"):
                if not math.isfinite(values[name]):
                    self._stop_at_non_finite(step, name, values[name])
            self.tokens += round(float(values.pop("weight")))
            if step % self.training.log_every == 0 or step == self.training.num_steps:
                self.metrics.write(step, {"tokens": self.tokens, **values})
            self.progress.show_step(step, self.tokens, values)

    def _stop_at_non_finite(self, step: int, name: str, value: float) -> None:
        saved = self.checkpoints.latest_step()
        where = f"the newest checkpoint, step {saved}, is from before it" if saved else "nothing was saved"
        raise NonFiniteError(
            f"{name} is {value} at step {step}; {where}. Lower optimizer.learning_rate, lengthen schedule.warmup_steps "
            f"or look at the batch of that step"
        )

    def _evaluate(self) -> None:
        self._read_metrics(0)
        try:
            with self.stop.interruptible():
                values = self.task.evaluate(self.apply, self.state.params)
        except EvaluationStopped:
            self._save_and_stop()
        values = {f"validation_{name}": float(value) for name, value in values.items()}
        self.metrics.write(self.step, {"tokens": self.tokens, **values})
        self.progress.show_evaluation(self.step, values)

    def _save(self) -> None:
        """Save the state; its row of metrics.csv is on the disk before."""
        self._read_metrics(0)
        self.metrics.flush()
        position = {"step": self.step, "tokens": self.tokens, "data": self.data}
        self.checkpoints.save(self.state, position, self.resolved)

    def _save_and_stop(self) -> None:
        if self.step:
            self._save()
            self.checkpoints.wait()
        self.progress.say(
            f"{self.stop.name}: stopped after step {self.step}"
            + (", which is saved" if self.step else "")
            + "; run the same command again to go on"
        )
        raise Stopped(self.step)


def check_batch(batch: Any, mesh: Mesh, accumulate: int) -> None:
    """Raise ValueError unless the rows divide among the devices and the micro-batches."""
    shards = mesh.shape["data"] * mesh.shape["fsdp"]
    for name, x in batch.items():
        if x.shape[0] % (shards * accumulate):
            raise ValueError(
                f"a batch of {x.shape[0]} rows ({name}) does not divide into training.accumulate = {accumulate} parts "
                f"for mesh.data x mesh.fsdp = {shards} devices; make it a multiple of {shards * accumulate}"
            )
