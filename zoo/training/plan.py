"""What a run will take of its devices, found by compiling its step for shapes: nothing is allocated, nothing is run.

Memory is the compiler's own analysis of the step for one device. It is that of the platform that compiled it: the
same step has other temporaries on a GPU than on the CPUs that play one. Time is a bound from data sheets.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
from jax.sharding import Mesh

from zoo.training.config import OptimizerConfig, ScheduleConfig, TrainingConfig
from zoo.training.devices import Accelerator
from zoo.training.flops import count_flops
from zoo.training.loop import check_batch
from zoo.training.optimizer import make_updates
from zoo.training.program import Collective, Temporary, read_collectives, read_temporaries
from zoo.training.protocol import Model, Params, Task
from zoo.training.sharding import path_name, shard_batch, shard_parameters
from zoo.training.state import TrainState, abstract_state, bind_apply, count_parameters
from zoo.training.step import count_step_flops, make_train_step, step_options
from zoo.training.tuning import merge

SHOWN = 8  # of the largest tensors


@dataclass(frozen=True, kw_only=True)
class Tensor:
    """An array that lies on the devices from step to step, or comes with a batch."""

    path: str
    shape: tuple[int, ...]
    dtype: str
    sharding: str
    """The mesh axes that split each dimension."""
    num_bytes: int
    """On one device."""


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes on one device during a step."""

    parameters: int
    """Those that train."""
    frozen: int
    optimizer: int
    batch: int
    gradients: int
    """Where all are alive together, as at the end of the backward pass; they are among the temporaries."""
    temporaries: int
    """All that the step makes on its way, at its peak: activations, gradients, buffers. By the compiler."""
    arguments: int
    """Parameters, optimizer state, batch and counters, as the compiler counts them."""
    outputs: int
    """What does not take the place of an argument. By the compiler."""

    @property
    def activations(self) -> int:
        """The temporaries without the gradients."""
        return max(self.temporaries - self.gradients, 0)

    @property
    def total(self) -> int:
        """What a device must have room for."""
        return self.arguments + self.outputs + self.temporaries


@dataclass(frozen=True, kw_only=True)
class Plan:
    """One step on one mesh."""

    mesh: dict[str, int]
    rows: int
    """Of the global batch."""
    num_parameters: int
    num_frozen: int
    """Of them those that do not train."""
    memory: Memory
    model_flops: float
    """Products of three forward passes of the global batch: what MFU counts."""
    step_flops: float
    """Products of the whole step, what is computed again and the optimizer's included."""
    collectives: tuple[Collective, ...]
    largest: tuple[Tensor, ...]
    temporaries: tuple[Temporary, ...]

    @property
    def num_devices(self) -> int:
        """Devices of the mesh."""
        return math.prod(self.mesh.values())


@dataclass(frozen=True, kw_only=True)
class StepTime:
    """How long one step takes at the least, part by part, in seconds; no measurement."""

    products: float
    """All products of the step at the device's peak."""
    memory: float
    """The state read and written, and each temporary byte written and read once, at the memory's full rate."""
    collectives: float
    """What a device sends, at its link's full rate."""
    expected: float
    """The model's products at the assumed MFU, or one of the others where that is longer."""

    @property
    def bound(self) -> float:
        """No step is shorter: the longest part, all of the others hidden behind it."""
        return max(self.products, self.memory, self.collectives)


def plan_step(
    model: Model,
    task: Task,
    batch: Any,
    mesh: Mesh,
    *,
    optimizer: OptimizerConfig,
    schedule: ScheduleConfig,
    training: TrainingConfig,
    trained: Params | None = None,
    frozen: Params | None = None,
    compute_dtype: Any = None,
) -> Plan:
    """Compile the step that `zoo.training.loop.train` would run, and say what it takes.

    `batch` has the shapes and dtypes of the global batch's arrays, [B, ...] each. `trained` and `frozen` (arrays or
    shapes) make up the model's parameters, where not all of them are the model's own and train. `compute_dtype` is as
    `bind_apply` reads it.

    Raises ValueError for a batch that does not divide among the devices.
    """
    with jax.set_mesh(mesh):
        check_batch(batch, mesh, training)
        batch = _shapes(batch, shard_batch(batch, mesh))
        frozen = _shapes(frozen or {}, shard_parameters(frozen or {}, mesh))
        updates, rates = make_updates(optimizer, schedule, training)
        state = abstract_state(model, task, updates, batch, mesh, trained=trained, frozen=frozen)
        apply = bind_apply(model, compute_dtype)
        step = make_train_step(task, apply, updates, rates, target=state, **step_options(training))
        compiled = step.lower(state, batch, frozen).compile()
        step_flops = count_flops(step, state, batch, frozen)
        model_flops = count_step_flops(task, apply, state.params, frozen, batch)
    text = compiled.as_text()
    tensors = sorted(_tensors(state, frozen, batch), key=lambda tensor: -tensor.num_bytes)
    return Plan(
        mesh=dict(mesh.shape),
        rows=next(iter(batch.values())).shape[0],
        num_parameters=count_parameters(jax.eval_shape(merge, state.params, frozen)),
        num_frozen=count_parameters(frozen),
        memory=_memory(compiled, state, frozen, batch),
        model_flops=model_flops,
        step_flops=step_flops,
        collectives=tuple(read_collectives(text, mesh.size)),
        largest=tuple(tensors[:SHOWN]),
        temporaries=tuple(read_temporaries(text, SHOWN)),
    )


def find_largest_batch(measure: Callable[[int], int], unit: int, memory: int, rows: int) -> int:
    """The most rows whose step fits into a device's memory: it was compiled and fits, and one unit more does not.

    Args:
        measure: bytes on a device for a number of rows; each answer costs a compilation.
        unit: rows must be a multiple of it.
        memory: bytes of a device.
        rows: a number to begin with, such as the run's own.

    Memory is nearly affine in the rows, so that a line through two known points finds the next guess. 0: even the
    smallest batch does not fit.
    """
    known = {n: measure(n) for n in sorted({unit, max(rows // unit, 2) * unit})}
    if known[unit] > memory:
        return 0
    while True:
        fits = max(n for n, size in known.items() if size <= memory)
        too_large = min((n for n, size in known.items() if size > memory and n > fits), default=None)
        if too_large == fits + unit:
            return fits
        guess = _interpolate(known, unit, memory)
        # A line that is no longer steep, or curves, must not leave the bracket, nor walk through it step by step.
        guess = max(guess, fits + unit)
        guess = min(guess, 8 * fits if too_large is None else too_large - unit)
        known[guess] = measure(guess)


def _interpolate(known: dict[int, int], unit: int, memory: int) -> int:
    """Where the line through the two known points nearest to the memory reaches it, in whole units."""
    (a, size_a), (b, size_b) = sorted(known.items(), key=lambda item: abs(item[1] - memory))[:2]
    slope = (size_b - size_a) / (b - a)
    return math.floor((a + (memory - size_a) / slope) / unit) * unit if slope > 0 else 2 * max(a, b)


def bound_step_time(plan: Plan, accelerator: Accelerator, *, peak: float, mfu: float) -> StepTime:
    """What the data sheet's rates say of a step. `peak` is one device's FLOP/s; `mfu` is assumed, not known."""
    peak *= plan.num_devices
    memory = plan.memory
    state = memory.parameters + memory.optimizer
    products = plan.step_flops / peak
    traffic = (2 * state + memory.frozen + memory.batch + 2 * memory.temporaries) / (1e9 * accelerator.bandwidth)
    collectives = sum(collective.sent for collective in plan.collectives) / (1e9 * accelerator.link)
    return StepTime(
        products=products,
        memory=traffic,
        collectives=collectives,
        expected=max(plan.model_flops / (peak * mfu), traffic, collectives),
    )


def _shapes(tree: Any, shardings: Any) -> Any:
    return jax.tree.map(lambda x, to: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=to), tree, shardings)


def _memory(compiled: Any, state: TrainState, frozen: Any, batch: Any) -> Memory:
    found = compiled.memory_analysis()
    parameters = _device_bytes(state.params)
    return Memory(
        parameters=parameters,
        frozen=_device_bytes(frozen),
        optimizer=_device_bytes(state.opt_state),
        batch=_device_bytes(batch),
        gradients=min(parameters, found.temp_size_in_bytes),
        temporaries=found.temp_size_in_bytes,
        arguments=found.argument_size_in_bytes,
        outputs=found.output_size_in_bytes - found.alias_size_in_bytes,
    )


def _device_bytes(tree: Any) -> int:
    return sum(map(_leaf_bytes, jax.tree.leaves(tree)))


def _leaf_bytes(x: Any) -> int:
    """Bytes of one device's share of an array or of a shape with a sharding."""
    return math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize


def _tensors(state: TrainState, frozen: Any, batch: Any) -> list[Tensor]:
    named = {"params": state.params, "frozen": frozen, "optimizer": state.opt_state, "batch": batch}
    return [
        Tensor(
            path=path_name(path),
            shape=x.shape,
            dtype=x.dtype.name,
            sharding=" ".join(_axes(entry) for entry in (*x.sharding.spec, *[None] * len(x.shape))[: len(x.shape)]),
            num_bytes=_leaf_bytes(x),
        )
        for path, x in jax.tree_util.tree_leaves_with_path(named)
    ]


def _axes(entry: Any) -> str:
    """One dimension's mesh axes: fsdp, data+fsdp, or a dot for none."""
    return "." if entry is None else "+".join((entry,) if isinstance(entry, str) else entry) or "."
