"""`train.py RECIPE --dry-run`: what a run will take of its devices, without them, its data, its tokenizer or memory.

The shapes of a batch are those of two rows that the task makes of an invented example, with as many rows as the run
has. Classes are counted as the recipe counts them. A mesh that is larger than the machine is played by CPU devices. A
checkpoint that the run starts from is read, its parameters with it.
"""

import dataclasses
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.extend.backend
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from zoo.config import ClassifierHead, ImageTokenizerConfig
from zoo.data import DataConfig, Dataset, TextTokenizer
from zoo.data.tokenizer import Tokenizer
from zoo.image_tokens import LearnedTokens, PaletteTokens
from zoo.recipes.preparation import task_tokenizer
from zoo.recipes.run import Run
from zoo.recipes.start import begin
from zoo.tasks.picture_attributes import PictureAttributesConfig
from zoo.tasks.text_to_image import TextToImageConfig
from zoo.training.config import MESH_AXES, DryRunConfig, MeshConfig
from zoo.training.devices import ACCELERATORS, Accelerator, find_accelerator, peak_products
from zoo.training.plan import Plan, StepTime, bound_step_time, find_largest_batch, plan_step
from zoo.training.sharding import AXES, make_mesh
from zoo.training.state import activation_dtype

GIB = 1 << 30
_WORDS = " ".join(str(number) for number in range(5000))


def plan_run(run: Run, options: DryRunConfig, console: Console) -> None:
    """Print what a step of the run takes of each device, and what `options` asks for beside.

    Raises:
        ValueError: a mesh or a batch that does not fit, an unknown device, or a checkpoint that the run cannot use.
    """
    run = replace(run, folder=f"{run.folder}.dry-run")  # where nothing is: a plan is that of a new run
    accelerator = None if options.device is None else _find(options)
    gather_devices(run.mesh, options.devices)
    mesh, start = make_mesh(run.mesh), begin(run, invent_dataset(run))
    for line in start.describe():
        _say(console, line)
    run, model = start.run, start.run.make_model()
    batch, task = make_batch(run, None if start.bundle is None else task_tokenizer(start.bundle))
    settings = {"optimizer": run.optimizer, "schedule": run.schedule, "training": run.training}
    settings |= {"trained": start.params, "frozen": start.frozen, "compute_dtype": run.compute_dtype}

    def plan_rows(rows: int) -> Plan:
        shapes = {name: jax.ShapeDtypeStruct((rows, *x.shape[1:]), x.dtype) for name, x in batch.items()}
        return plan_step(model, task, shapes, mesh, **settings)

    with console.status("compiling the step"):
        plan = plan_rows(run.task.batch_size)
    show_plan(plan, console)
    record = {"plan": dataclasses.asdict(plan), "compiled_for": jax.devices()[0].device_kind}
    if accelerator is not None:
        platform = "tpu" if options.device.startswith("TPU") else "gpu"
        peak = peak_products(accelerator, platform, activation_dtype(run.compute_dtype))
        times = bound_step_time(plan, accelerator, peak=peak, mfu=options.mfu)
        show_time(times, plan, options, accelerator, peak, console)
        record["seconds"] = dataclasses.asdict(times) | {"bound": times.bound}
    if options.memory_bytes is not None:
        record["largest_batch"] = _show_largest(run, plan, plan_rows, options, console)
    if options.json is not None:
        Path(options.json).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def gather_devices(mesh: MeshConfig, num_devices: int | None) -> None:
    """Let JAX have as many devices as the mesh: the machine's own where they are enough, else CPUs that play them.

    Called before the first array is made: those there are would belong to devices that are gone. An axis of -1 shares
    `num_devices`, or the machine's.
    """
    given = {axis: getattr(mesh, axis) for axis in MESH_AXES}
    if -1 in given.values():
        num_devices = num_devices or jax.device_count()
    sizes = mesh.sizes(num_devices) if num_devices else given
    needed = math.prod(sizes.values())
    if needed > jax.device_count() or (num_devices or 0) > jax.device_count():
        jax.extend.backend.clear_backends()
        jax.config.update("jax_platforms", "cpu")
        jax.config.update("jax_num_cpu_devices", num_devices or needed)


def make_batch(run: Run, tokenizer: TextTokenizer | None = None) -> tuple[dict[str, np.ndarray], Any]:
    """A batch of two rows, [2, ...] each, as the run's task makes it of an invented example; and the task.

    `tokenizer` is that of the checkpoint which the run starts from.
    """
    config, vocab_size = run.task, None
    if not isinstance(run.model, ImageTokenizerConfig):
        vocab_size = run.model.embedding.vocab_size
    if tokenizer is None and vocab_size is not None:
        tokenizer = _Words(vocab_size)
    others = {}
    if isinstance(config, TextToImageConfig):
        others = {"codec": _make_codec(config), "judge": None, "folder": Path(run.folder)}
    task = replace(config, batch_size=2).bind(invent_dataset(run), tokenizer, seed=0, data=run.data, **others)
    return next(task.batches("train")), task


def invent_dataset(run: Run) -> Dataset:
    """Two examples that have all fields that the run reads, and as many classes as its recipe."""
    config, data, head = run.task, run.data, getattr(run.model, "head", None)
    num_classes = head.num_classes if isinstance(head, ClassifierHead) else 1
    labels = {data.label_key: tuple(map(str, range(num_classes)))}
    if isinstance(config, PictureAttributesConfig):
        shares = np.array_split(np.arange(num_classes), len(config.attributes))
        labels = {name: tuple(map(str, share)) for name, share in zip(config.attributes, shares, strict=True)}
    example = _invent_example(data, getattr(config, "image_size", 1)) | dict.fromkeys(labels, 0)
    return Dataset(name="invented", splits={"train": [example] * 2, "validation": [example] * 2}, labels=labels)


def _invent_example(data: DataConfig, image_size: int) -> dict[str, Any]:
    keys = (data.text_key, data.pair_key, data.source_key, data.target_key, data.caption_key)
    example: dict[str, Any] = {key: _WORDS for key in keys if key is not None}
    if "/" in data.caption_key:  # such as captions/text
        outer, _, inner = data.caption_key.partition("/")
        example[outer] = {inner: [_WORDS]}
    answers = {"text": [_WORDS[:3]], "answer_start": [0]}
    example |= {"question": _WORDS, "context": _WORDS, "answers": answers}
    return example | {data.image_key: np.zeros((image_size, image_size, 3), np.uint8)}


class _Words(Tokenizer):
    """A tokenizer of a run's size that never was trained: each word is one id."""

    def __init__(self, vocab_size: int):
        self.vocab_size, self._model = vocab_size, b""

    def encode(self, text: str) -> list[int]:
        return [5] * len(text.split())

    def encode_with_offsets(self, text: str) -> tuple[list[int], np.ndarray]:
        ends = np.cumsum([len(word) + 1 for word in text.split()]).astype(np.int32)
        return self.encode(text), np.stack([np.concatenate([[0], ends[:-1]]), ends - 1], -1).astype(np.int32)


def _make_codec(config: TextToImageConfig) -> LearnedTokens | PaletteTokens:
    """The pictures' tokens: of the finished run that the task names, or of the recipe that its folder is called after.

    Its parameters are zeros, and there: a step holds them as constants.
    """
    if config.image_tokens is None:
        return PaletteTokens(np.zeros((config.palette_size, 3), np.float32), config.image_size)
    from zoo.recipes import RECIPES  # it imports the recipes, and they the runs

    folder = Path(config.image_tokens)
    if (folder / "run.json").exists():
        run = Run.load(folder)
    elif folder.name in RECIPES:
        run = RECIPES[folder.name]()
    else:
        raise ValueError(
            f"task.image_tokens is {config.image_tokens!r}: neither a run's folder nor called after a recipe"
        )
    model = run.make_model()
    pixels = jax.ShapeDtypeStruct((1, 3, config.image_size, config.image_size), jnp.float32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), pixel_values=pixels)["params"]
    return LearnedTokens(model, jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes))


def _find(options: DryRunConfig) -> Accelerator:
    accelerator = find_accelerator(options.device or "")
    if accelerator is None:
        raise ValueError(f"dry_run.device is {options.device!r}; known are {', '.join(ACCELERATORS)}")
    return accelerator if options.link is None else replace(accelerator, link=options.link)


def show_plan(plan: Plan, console: Console) -> None:
    """Print a step's memory, its largest tensors, its products and its collectives."""
    mesh = " x ".join(f"{axis} {size}" for axis, size in plan.mesh.items() if size > 1) or "one device"
    frozen = f", of which {plan.num_frozen:,} frozen" if plan.num_frozen else ""
    _say(console, f"{plan.num_parameters:,} parameters{frozen}, {plan.rows:,} rows a step, on {mesh}")
    _say(
        console,
        f"{plan.model_flops:.4g} FLOPs a step for MFU, {plan.step_flops:.4g} with what is computed again and the "
        "optimizer's",
    )
    memory = plan.memory
    parts = {
        "parameters": memory.parameters,
        "frozen parameters": memory.frozen,
        "optimizer state": memory.optimizer,
        "batch": memory.batch,
        "gradients, all alive together": memory.gradients,
        "activations and other temporaries": memory.activations,
        "outputs beside the state": memory.outputs,
    }
    table = _table("memory a device", "")
    for name, size in parts.items():
        if not size:
            continue
        table.add_row(name, show_bytes(size))
    table.add_row("[bold]all[/]", f"[bold]{show_bytes(memory.total)}[/]")
    console.print("", table)
    platform = jax.default_backend()
    note = ": a GPU's or TPU's program has other temporaries, and other collectives" if platform == "cpu" else ""
    console.print(f"by the compiler's analysis for {jax.devices()[0].device_kind}{note}", style="dim", soft_wrap=True)
    _show_tensors(plan, console)
    if plan.collectives:
        table = _table("collectives a step", "times", "given to a device", "sent by a device")
        for x in plan.collectives:
            table.add_row(x.kind, f"{x.count:,}", show_bytes(x.payload), show_bytes(x.sent))
        console.print("", table)


def _show_tensors(plan: Plan, console: Console) -> None:
    table = _table("largest tensors", "shape", "type", "split over", "a device")
    for tensor in plan.largest:
        # optax's own containers stand between the optimizer and a parameter's path.
        parts = [part for part in tensor.path.split("/") if not part.isdigit() and not part.startswith("inner_state")]
        shape = " ".join(map(str, tensor.shape))
        table.add_row("/".join(parts), shape, tensor.dtype, tensor.sharding, show_bytes(tensor.num_bytes))
    console.print("", table)
    table = _table("largest temporaries", "a device's part", "a device")
    for temporary in plan.temporaries:
        where = temporary.where.removeprefix("jit(train_step)/")
        table.add_row(where, escape(temporary.shape), show_bytes(temporary.num_bytes))
    console.print("", table)


def show_time(
    times: StepTime, plan: Plan, options: DryRunConfig, accelerator: Accelerator, peak: float, console: Console
) -> None:
    """Print the parts of a step's time on a named device."""
    table = _table(f"a step on {plan.num_devices} x {options.device}", "", "how")
    for name, seconds, how in (
        ("products", times.products, f"all, at the peak of {peak / 1e12:g} TFLOP/s"),
        ("memory", times.memory, f"state and temporaries, once, at {accelerator.bandwidth:g} GB/s"),
        ("collectives", times.collectives, f"at {accelerator.link:g} GB/s from each device"),
        ("[bold]no less than[/]", times.bound, "the longest of them, all else hidden behind it"),
        ("[bold]expected[/]", times.expected, f"with the model's products at an assumed MFU of {options.mfu:.0%}"),
    ):
        table.add_row(name, f"{1e3 * seconds:,.4g} ms", how)
    console.print("", table)
    fits = "fits" if plan.memory.total <= accelerator.memory * GIB else "does not fit"
    console.print("bounds from data sheets, not a measurement", style="dim")
    _say(console, f"{show_bytes(plan.memory.total)} {fits} into the {accelerator.memory:g} GiB of one")


def _show_largest(run: Run, plan: Plan, plan_rows: Any, options: DryRunConfig, console: Console) -> int:
    memory, unit = options.memory_bytes, math.prod(plan.mesh[axis] for axis in AXES["B"]) * run.training.accumulate
    assert memory is not None
    known = {plan.rows: plan.memory.total}

    def measure(rows: int) -> int:
        if rows not in known:
            with console.status(f"compiling the step for {rows:,} rows"):
                known[rows] = plan_rows(rows).memory.total
        return known[rows]

    rows = find_largest_batch(measure, unit, memory, plan.rows)
    if rows:
        said = f"largest batch: {rows:,} rows, {show_bytes(known[rows])} of {show_bytes(memory)} a device"
        said += f"; {rows + unit:,} would take {show_bytes(known[rows + unit])}"
    else:
        said = f"no batch fits: {unit:,} rows take {show_bytes(known[unit])} of {show_bytes(memory)} a device"
    _say(console, f"\n{said}")
    return rows


def show_bytes(size: float) -> str:
    """1.50 GiB, 23.4 MiB, 512 B."""
    for unit in ("B", "KiB", "MiB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1024
    return f"{size:,.2f} GiB" if size < 100 else f"{size:,.0f} GiB"


def _say(console: Console, line: str) -> None:
    console.print(line, highlight=False, soft_wrap=True)


def _table(first: str, *others: str) -> Table:
    """Names on the left, then the columns `others`: those of bytes, times and counts end at the right."""
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0))
    table.add_column(first, overflow="fold")
    for column in others:
        left = column in ("shape", "type", "split over", "a device's part", "how")
        table.add_column(column, justify="left" if left else "right", no_wrap=column != "how")
    return table
