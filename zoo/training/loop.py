"""The training loop: restore or initialise, step, evaluate, save, and stop cleanly when told to.

What the loop promises: killed at any moment and run again, it ends in the same bits. Every step depends on
the state, the batch and the step's number alone, and a checkpoint holds the first with the position of the
second. The loop waits for the device only `LAG` steps behind it, to read metrics, and before an evaluation or
a save.
"""

import dataclasses
import math
import sys
from collections import deque
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from zoo.training.bad_batches import save_batch
from zoo.training.breakdown import Breakdown, write_breakdown
from zoo.training.card import write_card
from zoo.training.checkpoint import Checkpoints, decode_data_state, encode_data_state
from zoo.training.config import MeshConfig, OptimizerConfig, ScheduleConfig, TrainingConfig
from zoo.training.disk_full import clear_disk_errors
from zoo.training.fixed_order import check_parts
from zoo.training.flops import peak_flops
from zoo.training.guard import check_finite, describe, refuse
from zoo.training.host import give_back_freed_memory
from zoo.training.hosts import Agreement, check_same, is_first, synchronise
from zoo.training.loggers import Loggers, check_loggers
from zoo.training.manifest import list_steps
from zoo.training.metrics import MetricsFile
from zoo.training.one_device import one_device
from zoo.training.optimizer import make_updates
from zoo.training.plots import draw_loss
from zoo.training.prefetch import Prefetcher, read_part, rows_here
from zoo.training.profiler import Profiler
from zoo.training.progress import Progress
from zoo.training.protocol import Model, Params, Task
from zoo.training.run_lock import hold
from zoo.training.run_record import check_same_run, write_run
from zoo.training.scalars import Scalars
from zoo.training.sharding import AXES, make_mesh, shard_parameters
from zoo.training.state import (
    TrainState,
    abstract_state,
    activation_dtype,
    bind_apply,
    initialise_state,
    start_state,
)
from zoo.training.step import compile_step, count_step_flops, make_train_step, step_options
from zoo.training.stopping import EvaluationStopped, Stopped, listen
from zoo.training.tuning import merge

# Steps in flight while the host reads the metrics of the one before them: the device never idles for it.
LAG = 2
_GLANCE = 0.002  # seconds between two looks at the device while a batch is waited for
_merge = jax.jit(merge)


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
    frozen: Params | None = None,
    may_differ: tuple[str, ...] = (),
    compute_dtype: Any = "bfloat16",
    description: str = "",
) -> TrainState:
    """Train a model on a task in a folder; go on from the folder's newest checkpoint; return the final state.

    `resolved` is the whole run as nested JSON-able dicts, kept in every checkpoint. A folder of another run
    is refused, unless only fields that do not change the mathematics or `may_differ` (globs over dotted
    fields) differ. A new run starts from `params`, such as a pretrained model's; None initialises them. Where `params`
    are not the whole model, `frozen` is the rest of it, as `zoo.training.tuning.split` gives them, and the state that
    is returned, and saved, holds what trains alone.
    `compute_dtype` is what MFU is measured against, bfloat16 where it is "float8", as `bind_apply` reads it;
    `description` opens the model card.

    Raises ValueError for a folder of another run or one in which another process trains, and a mesh or a batch that
    does not fit; DamagedError where no checkpoint is whole; NonFiniteError or SpikeError where more updates would harm
    the state than may be skipped; DiskFullError; and Stopped, a SystemExit of code 0, after SIGTERM, SIGUSR1 or SIGINT.
    """
    configs = {"optimizer": optimizer, "schedule": schedule, "mesh": mesh, "training": training}
    resolved = {**{name: dataclasses.asdict(value) for name, value in configs.items()}, **(resolved or {})}
    folder = Path(folder).absolute()
    check_loggers(training.loggers)
    with clear_disk_errors(folder), listen() as stop:
        check_same(resolved)
        folder.mkdir(parents=True, exist_ok=True)
        check_folder(folder, resolved, may_differ)
        with hold(folder) if is_first() else nullcontext(), Checkpoints(folder, training.keep) as checkpoints:
            step, lines = checkpoints.choose_step()
            print(*lines, sep="\n", end="\n" * bool(lines), file=sys.stderr)
            position = {"step": 0, "tokens": 0} if step is None else checkpoints.read(step)[0]
            if is_first():
                write_run(folder, resolved)
            stop.step = position["step"]
            device_mesh = make_mesh(mesh)
            part = rows_here(device_mesh)
            iterator = read_part(task.batches("train"), part, training.workers)
            if position["step"]:
                iterator.set_state(decode_data_state(position["data"]))
            with jax.set_mesh(device_mesh), Prefetcher(iterator, device_mesh, training.prefetch, part) as batches:
                session = _Session(
                    task, bind_apply(model, compute_dtype), training, checkpoints, batches, stop, resolved
                )
                session.place_frozen(frozen or {}, device_mesh)
                step = session.prepare(model, optimizer, schedule, device_mesh, params, position)
                session.run(step, compute_dtype)
                checkpoints.wait()
            stop.all_saved(session.step)
        write_report(folder, session.model_params, resolved, description)
        synchronise("the report is written")
        return session.state


def check_folder(folder: str | Path, resolved: dict[str, Any], may_differ: tuple[str, ...] = ()) -> None:
    """Raise ValueError if a folder's newest checkpoint is of another run; `train` asks too, later."""
    if list_steps(folder):
        with Checkpoints(folder) as checkpoints:
            saved = checkpoints.read_newest_run()
        if saved is not None:
            check_same_run(saved, resolved, Path(folder), may_differ)


class _Session:
    """One process's part of a run: what it holds, and what happens each step."""

    def __init__(self, task, apply, training, checkpoints, batches, stop, resolved):
        self.task, self.apply, self.training, self.resolved = task, apply, training, resolved
        self.checkpoints, self.batches, self.stop = checkpoints, batches, stop
        self.folder: Path = checkpoints.folder.parent
        self.pending: deque[tuple[int, Any, Any]] = deque()  # steps and batches whose metrics are still on the device
        self.agreement = Agreement(LAG)
        self.state: TrainState
        self.metrics: MetricsFile
        self.progress: Progress
        self.scalars: Scalars
        self.loggers: Loggers
        self.profiler = Profiler(self.folder, training.profile_steps)
        self.spent = Breakdown()

    def place_frozen(self, frozen: Params, mesh: Mesh) -> None:
        """Put the parameters that no step changes on the mesh."""
        self.frozen = jax.device_put(frozen, shard_parameters(frozen, mesh))

    @property
    def model_params(self) -> Params:
        """What the model takes: the state's parameters, or these and the frozen ones in one tree."""
        return _merge(self.state.params, self.frozen) if self.frozen else self.state.params

    def prepare(
        self,
        model: Model,
        optimizer_config: OptimizerConfig,
        schedule_config: ScheduleConfig,
        mesh: Mesh,
        params: Params | None,
        position: dict[str, Any],
    ) -> Callable:
        """Put the state of a position on the mesh and return the step function."""
        training = self.training
        self.step, self.tokens, self.data = position["step"], position["tokens"], None
        self.skipped = position.get("skipped", 0)
        optimizer, schedule = make_updates(optimizer_config, schedule_config, training)
        self.item = next(self.batches)
        batch = self.item[0]
        check_batch(batch, mesh, training)
        if self.step and self.frozen:
            params = self.checkpoints.read_shapes(self.step)
        target = abstract_state(model, self.task, optimizer, batch, mesh, trained=params, frozen=self.frozen)
        if self.step:
            self.state = self.checkpoints.restore(self.step, target)
        elif params is not None:
            self.state = start_state(params, optimizer, target)
        else:
            self.state = initialise_state(model, self.task, optimizer, batch, target, training.seed)
        return make_train_step(
            self.task,
            self.apply,
            optimizer,
            schedule,
            target=target,
            **step_options(training),
        )

    def run(self, train_step: Callable, compute_dtype: Any) -> None:
        """Take the steps that are left."""
        self.metrics = MetricsFile(self.folder / "metrics.csv" if is_first() else None)
        self.scalars = Scalars(self.folder, self.step, self.training.num_steps, self.training.tensorboard)
        flops, peak = 0.0, None
        if self.step < self.training.num_steps:
            flops = count_step_flops(self.task, self.apply, self.state.params, self.frozen, self.item[0])
            peak = peak_flops(jax.devices()[0], activation_dtype(compute_dtype))
        unit = getattr(self.task, "unit", "tokens")
        self.progress = Progress(
            self.training.num_steps, self.step, flops_per_step=flops, peak=peak, unit=unit, spent=self.spent
        )
        self.loggers = Loggers(self.folder, self.training.loggers, self.resolved)
        is_complete = False
        try:
            self.metrics.open(self.step)
            self.loggers.write(self.step, self.metrics.newest)
            with self.progress:
                self._take_steps(train_step)
            is_complete = True
        finally:
            self.profiler.stop()
            self.metrics.close()
            self.scalars.close()
            self.loggers.close(is_complete=is_complete)

    def _take_steps(self, train_step: Callable) -> None:
        if self.step:
            done = self.step == self.training.num_steps
            self.progress.say(f"step {self.step} is {'the last: nothing left to train' if done else 'restored'}")
            evaluated = is_first() and self.metrics.has(self.step, "validation_")
            if self._due(self.training.evaluate_every) and not self.agreement.now(evaluated):
                self._evaluate()  # the run was stopped during this evaluation
        first = self.step
        while self.step < self.training.num_steps:
            if self.agreement.soon(bool(self.stop)):
                self._save_and_stop()
            batch, self.data = self.item
            if self.profiler.starts(self.step + 1):
                self._profile(self.profiler.start)
            with self.spent.within("start" if self.step == first else "compute"), self.profiler.mark(self.step + 1):
                if self.step == first:
                    compile_step(train_step, self.state, batch, self.frozen)
                self.state, metrics = train_step(self.state, batch, self.frozen)
                if self.step == first:
                    jax.block_until_ready(metrics)
                    give_back_freed_memory()
            self.spent.switch("host")
            self.step += 1
            self.stop.unsaved = True
            for value in metrics.values():
                value.copy_to_host_async()
            self.pending.append((self.step, metrics, batch))
            self._read_metrics(LAG)
            if self.profiler.ends(self.step):
                self._profile(self.profiler.stop)
            # Saved first: an evaluation that fails, at the last step too, costs no training.
            if self._due(self.training.checkpoint_every):
                self._save()
            if self._due(self.training.evaluate_every):
                self._evaluate()
            if self.step < self.training.num_steps:
                self.item = self._next_batch()
        if self.step > first:
            with self.spent.within("checkpoint"):
                self.checkpoints.wait()
            self.progress.show_breakdown(self.step - first)
            write_breakdown(self.folder, self.spent, self.step - first)

    def _next_batch(self) -> Any:
        """The next batch. Waiting for it costs time only once the device has nothing left to do."""
        while True:
            is_idle = not self.pending or self.pending[-1][1]["loss"].is_ready()
            with self.spent.within("input" if is_idle else "compute"):
                if self.batches.wait(_GLANCE):
                    return next(self.batches)

    def _profile(self, begin_or_end: Callable[[], None]) -> None:
        """Begin or end the trace with the device at rest: it holds whole steps."""
        self._read_metrics(0)
        with self.spent.within("profile"):
            begin_or_end()
        self.progress.restart_clock()

    def _due(self, every: int | None) -> bool:
        return self.step == self.training.num_steps or (every is not None and self.step % every == 0)

    def _read_metrics(self, lag: int) -> None:
        """Fetch the metrics of all but the last `lag` steps; tell of skipped ones."""
        while len(self.pending) > lag:
            step, device_metrics, batch = self.pending.popleft()
            with self.spent.within("compute"):
                values = {name: np.asarray(x)[()] for name, x in device_metrics.items()}
            if not values.pop("skipped"):
                self.tokens += round(float(values.pop("weight")))
            else:
                del values["weight"]
                self._tell_skipped(step, values, batch)
            if step % self.training.log_every == 0 or step == self.training.num_steps:
                self.metrics.write(step, {"tokens": self.tokens, **values})
                self.loggers.write(step, {"tokens": self.tokens, **values})
            self.scalars.write(step, values)
            speeds = self.progress.show_step(step, self.tokens, values)
            if speeds:
                self.scalars.write(step, speeds, "speed")

    def _tell_skipped(self, step: int, values: dict[str, Any], batch: Any) -> None:
        """Keep the batch of a skipped update for study; stop if there were too many of them."""
        path = save_batch(self.folder, step, self.training.seed, batch, values)
        if self.skipped == self.training.max_skipped:
            self.checkpoints.wait()
            raise refuse(step, values, self.training.max_skipped, self.checkpoints.latest_step())
        self.skipped += 1
        values["skipped"] = self.skipped
        self.progress.say(
            f"step {step}: {describe(values)}; its update is skipped, {self.skipped} of at most "
            f"{self.training.max_skipped}, and its batch kept in {path}"
        )

    def _evaluate(self) -> None:
        self._read_metrics(0)
        before = self.spent.read()
        try:
            # One of several processes does not leave an evaluation that the others are in.
            with self.spent.within("evaluation"), self.stop.interruptible() if self.stop.alone else nullcontext():
                needed = self.training.deterministic_parts is not None
                with one_device(self.model_params, needed) as params:
                    values = self.task.evaluate(self.apply, params)
        except EvaluationStopped:
            self._save_and_stop()
        except Exception:
            if self.stop.alone:  # of several processes each would have to take part
                self._save()
                self.checkpoints.wait()
            raise
        values = {name: float(value) for name, value in values.items()}
        columns = {f"validation_{name}": value for name, value in values.items()}
        self.metrics.write(self.step, {"tokens": self.tokens, **columns})
        self.loggers.write(self.step, {"tokens": self.tokens, **columns})
        self.scalars.write(self.step, values, "validation")
        self._write_seconds("evaluation", before)
        self.progress.show_evaluation(self.step, values)
        self.progress.restart_clock()

    def _save(self) -> None:
        """Save the state; its row of metrics.csv is on the disk before."""
        self._read_metrics(0)
        before = self.spent.read()
        with self.spent.within("checkpoint"):
            self.metrics.flush()
            self.scalars.flush()
            position = {"step": self.step, "tokens": self.tokens, "skipped": self.skipped}
            position["data"] = encode_data_state(self.data)
            check_finite((self.state.params, self.state.opt_state), self.step)
            self.checkpoints.save(self.state, position, self.resolved)
        self._write_seconds("checkpoint", before)
        self.progress.restart_clock()

    def _write_seconds(self, part: str, before: dict[str, float]) -> None:
        """Tell TensorBoard for how long the loop has just stood still."""
        self.scalars.write(self.step, {f"{part}_seconds": self.spent.read()[part] - before[part]}, "speed")

    def _save_and_stop(self) -> None:
        if self.step:
            self._save()
            with self.spent.within("checkpoint"):
                self.checkpoints.wait()
        self.stop.step, self.stop.unsaved = self.step, False
        saved = ", which is saved" if self.step else ""
        asked = self.stop.name or "another process was asked to stop"
        self.progress.say(f"{asked}: stopped after step {self.step}{saved}; run the same command again to go on")
        raise Stopped(self.step)


def write_report(folder: Path, params: Params, resolved: dict[str, Any], description: str) -> None:
    """Draw the loss and write the model card, on the first machine."""
    if is_first():
        draw_loss(folder, str(resolved.get("recipe") or ""))
        write_card(folder, params, resolved, description)


def check_batch(batch: Any, mesh: Mesh, training: TrainingConfig) -> None:
    """Raise ValueError unless the rows divide among the devices and the micro-batches."""
    accumulate, parts = training.accumulate, training.deterministic_parts
    if parts is not None:
        check_parts(parts, mesh, next(iter(batch.values())).shape[0])
    shards = math.prod(mesh.shape[axis] for axis in AXES["B"])
    for name, x in batch.items():
        if x.shape[0] % (shards * accumulate):
            raise ValueError(
                f"a batch of {x.shape[0]} rows ({name}) does not divide into training.accumulate = "
                f"{accumulate} parts for {' x '.join(f'mesh.{axis}' for axis in AXES['B'])} = {shards} devices; make "
                f"it a multiple of {shards * accumulate}"
            )
