"""The settings of a training run as frozen dataclasses, from the standard library alone: --help is fast."""

import dataclasses
import math
import re
from typing import Any, Literal

MESH_AXES = ("data", "fsdp", "expert", "tensor", "context")
"""From the slowest links between devices to the fastest."""


def _require(condition: bool, field: str, value: Any, mend: str) -> None:
    if not condition:
        raise ValueError(f"{field} is {value!r}; it must be {mend}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """How gradients become updates."""

    name: Literal["adamw", "muon", "adafactor"] = "adamw"
    """adamw; muon (orthogonalised momentum for matrices, Adam for the rest); adafactor (factored moments)."""
    learning_rate: float = 3e-4
    """Peak learning rate. Muon's updates are scaled to AdamW's size, so one value serves either."""
    betas: tuple[float, float] = (0.9, 0.95)
    """Decay rates of Adam's two moments; Adafactor uses the first, and keeps no first moment if it is 0."""
    momentum: float = 0.95
    """Muon: decay rate of the momentum (Nesterov)."""
    epsilon: float = 1e-8
    """Added to denominators. Adafactor has its own floor (1e-30 under the square root)."""
    weight_decay: float = 0.1
    """Decoupled decay, times the learning rate, of matrices only: no norm, bias or embedding."""
    clip_norm: float | None = 1.0
    """Largest global gradient norm; None does not clip."""
    state: Literal["float32", "int8"] = "float32"
    """How adamw keeps its moments between steps; int8 takes a quarter of the memory (norms, biases, small parameters
    stay float32)."""

    def __post_init__(self):
        _require(self.learning_rate > 0, "optimizer.learning_rate", self.learning_rate, "above 0")
        for beta in (*self.betas, self.momentum):
            _require(0 <= beta < 1, "optimizer.betas and optimizer.momentum", beta, "in [0, 1)")
        _require(self.epsilon > 0, "optimizer.epsilon", self.epsilon, "above 0")
        _require(self.weight_decay >= 0, "optimizer.weight_decay", self.weight_decay, "at least 0")
        clip = self.clip_norm
        _require(clip is None or clip > 0, "optimizer.clip_norm", clip, "above 0, or None for no clipping")
        known = ("adamw", "muon", "adafactor")
        _require(self.name in known, "optimizer.name", self.name, "one of " + ", ".join(known))
        _require(self.state in ("float32", "int8"), "optimizer.state", self.state, "float32 or int8")
        fits = self.state == "float32" or self.name == "adamw"
        _require(fits, "optimizer.state", self.state, f"float32 with {self.name}; adamw alone keeps int8")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """How the learning rate changes over a run, as a fraction of its peak."""

    name: Literal["constant", "cosine", "linear", "wsd", "inverse_sqrt"] = "cosine"
    """After the warm-up: constant; cosine or linear decay; wsd (the peak, then linear decay at the end); inverse_sqrt
    (the peak times the root of the warm-up's share of the steps so far; Vaswani et al. 2017)."""
    warmup_steps: int = 100
    """Steps of linear warm-up; the step after them has the peak. 0 starts at the peak."""
    decay_fraction: float = 0.2
    """wsd: the share of all steps that the final decay takes."""
    final_fraction: float = 0.1
    """The last step's learning rate as a fraction of the peak; without effect on constant and inverse_sqrt."""

    def __post_init__(self):
        known = ("constant", "cosine", "linear", "wsd", "inverse_sqrt")
        _require(self.name in known, "schedule.name", self.name, "one of " + ", ".join(known))
        _require(self.warmup_steps >= 0, "schedule.warmup_steps", self.warmup_steps, "at least 0")
        _require(0 < self.decay_fraction <= 1, "schedule.decay_fraction", self.decay_fraction, "in (0, 1]")
        _require(0 <= self.final_fraction <= 1, "schedule.final_fraction", self.final_fraction, "in [0, 1]")


@dataclasses.dataclass(frozen=True, kw_only=True)
class InitConfig:
    """What a run starts from, and what of that trains."""

    checkpoint: str | None = None
    """A pretrained model to fine-tune (`--init MODEL` for short): a folder or a name on the hub, as zoo.load takes it.
    The run has its configuration, parameters and tokenizer, and reads pictures as it does. None: from scratch."""
    revision: str | None = None
    """Branch, tag or commit on the hub."""
    tune: Literal["full", "frozen", "lora"] = "full"
    """What trains: full (everything), frozen (a head that the checkpoint lacks, alone), or lora (that head, and
    low-rank updates of the targets; Hu et al. 2021)."""
    rank: int = 16
    """LoRA: the rank of an update."""
    alpha: float = 16.0
    """LoRA: updates are multiplied by alpha / rank."""
    targets: tuple[str, ...] = ("all",)
    """LoRA: the projections that are updated, by their names: query key value output up gate down; all, for those that
    the model has."""

    def __post_init__(self):
        known = ("full", "frozen", "lora")
        _require(self.tune in known, "init.tune", self.tune, "one of " + ", ".join(known))
        _require(self.checkpoint != "", "init.checkpoint", self.checkpoint, "a folder or a name on the hub")
        scratch = self.checkpoint is None
        _require(not scratch or self.tune == "full", "init.tune", self.tune, "'full' without a checkpoint (--init)")
        _require(not scratch or self.revision is None, "init.revision", self.revision, "absent without a checkpoint")
        _require(self.rank >= 1, "init.rank", self.rank, "at least 1")
        _require(self.alpha > 0, "init.alpha", self.alpha, "above 0")
        _require(bool(self.targets), "init.targets", self.targets, "at least one projection, such as query")


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeshConfig:
    """How many devices each mesh axis has. -1, on at most one axis, takes all devices that remain: docs/scaling.md."""

    data: int = -1
    """Copies of the model, each with its own rows of the batch."""
    fsdp: int = 1
    """Devices that share both the rows of the batch and the parameters (fully sharded data parallel)."""
    expert: int = 1
    """Devices that share both the rows of the batch and the experts of a mixture."""
    tensor: int = 1
    """Devices that share attention heads, hidden units and the vocabulary."""
    context: int = 1
    """Devices that share the positions of a sequence."""
    slices: int = 1
    """Equal groups of devices (TPU slices, machines) that a slower network joins; `data` alone runs across them."""

    def __post_init__(self):
        sizes = {axis: getattr(self, axis) for axis in MESH_AXES}
        for axis, size in sizes.items():
            if size != -1 and size < 1:
                raise ValueError(f"mesh.{axis} is {size}; give a positive count, or -1 for all remaining devices")
        if list(sizes.values()).count(-1) > 1:
            raise ValueError(f"only one mesh axis can be -1 (all remaining devices), got {sizes}")
        _require(self.slices >= 1, "mesh.slices", self.slices, "at least 1")

    def sizes(self, num_devices: int) -> dict[str, int]:
        """Return the size of every axis for a number of devices; raise ValueError if they do not fit."""
        sizes = {axis: getattr(self, axis) for axis in MESH_AXES}
        fixed = math.prod(size for size in sizes.values() if size != -1)
        if fixed > num_devices:
            raise ValueError(
                f"the mesh {sizes} needs {fixed} devices, but {num_devices} are here; make an axis smaller"
            )
        for axis, size in sizes.items():
            if size == -1:
                if num_devices % fixed:
                    raise ValueError(
                        f"mesh.{axis}=-1 cannot share {num_devices} devices among the other axes' {fixed}; "
                        f"choose sizes whose product divides {num_devices}"
                    )
                sizes[axis] = num_devices // fixed
        if sizes["data"] % self.slices:
            raise ValueError(
                f"mesh.data is {sizes['data']} and mesh.slices {self.slices}: `data` alone runs across slices; make it "
                f"a multiple of {self.slices}"
            )
        return sizes


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """How long a run is, and how often it reports, evaluates and saves. Steps are optimizer updates."""

    num_steps: int = 1000
    """Optimizer updates in the whole run; the schedule's length, unless that is constant or inverse_sqrt."""
    seed: int = 0
    """Seeds the parameters and, with the step's number, each step's dropout. The task seeds its own data."""
    accumulate: int = 1
    """Micro-batches a step's batch is split into, one after the other: less memory, the same gradients."""
    max_skipped: int = 3
    """Updates of the whole run that are skipped where the loss or the gradients are not finite, or a spike; at the
    next one the run ends with an error. The batches are kept in the run's folder, under bad-batches."""
    spike_sigmas: float | None = None
    """Skip an update whose loss or gradient norm lies so many standard deviations above the mean of the last 128
    updates' (OLMo 2 takes 6). None: never."""
    log_every: int = 1
    """Write a row of metrics.csv every so many steps; a row holds that step's own values."""
    evaluate_every: int | None = None
    """Evaluate every so many steps, and after the last. None: after the last alone."""
    checkpoint_every: int | None = None
    """Save a checkpoint every so many steps, and after the last. None: after the last alone."""
    keep: int = 2
    """Newest checkpoints that are kept."""
    prefetch: int = 2
    """Batches made and put on the devices ahead of the step."""
    workers: int = 0
    """Threads that read and encode examples for the one that makes batches; it does so itself where there are none. Any
    number gives the same batches."""
    deterministic_parts: int | None = None
    """Cut each batch into so many parts, a power of two, and add up their gradients in one fixed order: the same bits
    on 1, 2, 4, … devices, up to as many as parts, for more time and memory. None: in whatever order is fastest."""
    tensorboard: bool = True
    """Write TensorBoard files to the run's folder."""
    loggers: tuple[Literal["wandb", "trackio"], ...] = ()
    """Give the rows of metrics.csv to these as well: wandb (Weights & Biases), trackio. Each is an extra."""
    profile_steps: tuple[int, int] | None = None
    """Trace from the first to the last of these steps into the run's folder, under profile, for XProf and Perfetto."""

    def __post_init__(self):
        for field in ("num_steps", "accumulate", "log_every", "keep", "prefetch"):
            value = getattr(self, field)
            _require(value >= 1, f"training.{field}", value, "at least 1")
        _require(self.max_skipped >= 0, "training.max_skipped", self.max_skipped, "at least 0")
        sigmas = self.spike_sigmas
        _require(sigmas is None or sigmas > 0, "training.spike_sigmas", sigmas, "above 0, or None to skip no spikes")
        _require(self.workers >= 0, "training.workers", self.workers, "at least 0")
        parts = self.deterministic_parts
        power = parts is None or (parts > 0 and parts.bit_count() == 1)
        _require(power, "training.deterministic_parts", parts, "a power of two, or None")
        if parts is not None and self.accumulate > 1:
            raise ValueError(
                "training.deterministic_parts are micro-batches already: leave training.accumulate at 1, and give more "
                "parts for less memory"
            )
        for field in ("evaluate_every", "checkpoint_every"):
            value = getattr(self, field)
            _require(value is None or value >= 1, f"training.{field}", value, "at least 1, or None")
        for name in self.loggers:
            _require(name in ("wandb", "trackio"), "training.loggers", name, "wandb or trackio, each")
        first, last = self.profile_steps or (1, 1)
        _require(
            1 <= first <= last, "training.profile_steps", self.profile_steps, "two steps, counted from 1, in order"
        )
        _require(0 <= self.seed < 2**31, "training.seed", self.seed, "in [0, 2**31)")


@dataclasses.dataclass(frozen=True, kw_only=True)
class DryRunConfig:
    """A plan in the place of a run (--dry-run): what a step takes, by compiling it alone; nothing is allocated."""

    devices: int | None = None
    """How many there are for a mesh axis of -1. Absent: as many as this machine has."""
    device: str | None = None
    """Bound a step's time on such devices, named as JAX names them: "NVIDIA H100", "TPU v5p"."""
    memory: str | None = None
    """Find the largest batch that fits into so much memory a device, such as 80GiB. It takes some more compilations."""
    mfu: float = 0.4
    """The share of the peak that the expected step time assumes."""
    link: float | None = None
    """10^9 bytes a second that a device sends to the others. Absent: what joins such devices inside of one host."""
    json: str | None = None
    """Write the plan to this file, too."""

    def __post_init__(self):
        _require(self.devices is None or self.devices >= 1, "dry_run.devices", self.devices, "at least 1")
        _require(0 < self.mfu <= 1, "dry_run.mfu", self.mfu, "a share above 0, up to 1")
        _require(self.link is None or self.link > 0, "dry_run.link", self.link, "above 0")
        _ = self.memory_bytes

    @property
    def memory_bytes(self) -> int | None:
        """`memory` in bytes. ValueError for what is no size."""
        if self.memory is None:
            return None
        found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?)(i?)B?\s*", self.memory, re.IGNORECASE)
        if found is None or not float(found[1]):
            raise ValueError(f"dry_run.memory is {self.memory!r}; give a size such as 80GiB")
        power = " KMGT".index(found[2].upper() or " ")
        return int(float(found[1]) * (1024 if found[3] else 1000) ** power)
