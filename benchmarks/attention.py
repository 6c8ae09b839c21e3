"""Time every attention backend side by side: forward, forward and backward, one run, interleaved, medians.

    python benchmarks/attention.py --quick                 # two minutes on two CPU cores
    python benchmarks/attention.py --lengths 512 2048 8192 --cases causal window packed --dtypes bfloat16

Peers on the same inputs in the same run: `jax.nn.dot_product_attention`, and torch's scaled_dot_product_attention where
torch is installed. Beside each time stand the largest error against the dense backend in float32, and the temporary
memory by the compiler's own analysis. Results go to results/<device>.json and .png. Needs jax, numpy and matplotlib.
"""

import argparse
import dataclasses
import functools
import importlib.metadata
import itertools
import json
import os
import platform
import random
import re
import shlex
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

import jax
import jax.numpy as jnp
import numpy as np

import zoo
from zoo.kernels.cases import CASES, Sizes

REPEATS = 7
"""Least number of timed calls a figure; the median is reported."""
CHECKED_LENGTH = 4096
"""Longest sequence whose result is compared with the dense backend, which needs S² memory."""
OURS = ("auto", "blockwise", "dense")
JAX, TORCH = "jax.nn", "torch SDPA"


@dataclasses.dataclass
class Contender:
    """One implementation on one problem: what is timed, and what is known about it."""

    name: str
    call: Callable[[], Any]
    error: float | None = None
    temp_bytes: int | None = None
    compile_seconds: float | None = None
    times: list[float] = dataclasses.field(default_factory=list)


def main() -> None:
    """Run the grid, print a table, write JSON and a plot."""
    options = parse()
    rows = []
    for dtype in options.dtypes:
        for case in options.cases:
            for length in options.lengths:
                for backward in (False, True):
                    rows += run_cell(options, case, length, dtype, backward)
    folder = Path(options.out)
    folder.mkdir(parents=True, exist_ok=True)
    name = re.sub(r"[^a-z0-9]+", "-", device_name().lower()).strip("-")
    record = {"environment": environment(), "results": rows}
    (folder / f"attention-{name}.json").write_text(json.dumps(record, indent=1) + "\n")
    draw(rows, folder / f"attention-{name}.png")
    print(f"\nwrote {folder}/attention-{name}.json and .png")


def parse() -> argparse.Namespace:
    """The grid, from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", type=int, nargs="+", default=[512, 1024, 2048, 4096, 8192])
    parser.add_argument("--cases", nargs="+", default=["causal", "full", "window", "packed", "relative"], choices=CASES)
    parser.add_argument(
        "--dtypes", nargs="+", default=["float32", "bfloat16"], choices=["float32", "bfloat16", "float16"]
    )
    parser.add_argument("--heads", type=int, default=8)
    parser.add_argument("--head-size", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=2048, help="batch is tokens / length, at least 1")
    parser.add_argument("--backends", nargs="+", default=list(OURS))
    parser.add_argument(
        "--dense-up-to", type=int, default=4096, help="longest S for implementations that need S² memory"
    )
    parser.add_argument("--repeats", type=int, default=REPEATS)
    parser.add_argument("--out", default=str(Path(__file__).parent / "results"))
    parser.add_argument("--quick", action="store_true", help="a small grid: 512 and 2048, causal")
    options = parser.parse_args()
    if options.quick:
        options.lengths, options.cases, options.repeats = [512, 2048], ["causal"], 5
    return options


def run_cell(options: argparse.Namespace, case: str, length: int, dtype: str, backward: bool) -> list[dict]:
    """Time all contenders on one problem, in turn, and print a line each."""
    batch = max(1, options.tokens // length)
    sizes = Sizes(
        B=batch, T=length, S=length, N=options.heads, K=options.heads, H=options.head_size, V=options.head_size
    )
    rng = np.random.default_rng(0)
    inputs = sizes.inputs(rng, jnp.dtype(dtype))
    arguments = CASES[case](rng, sizes)
    contenders = [c for c in make_contenders(options, case, sizes, inputs, arguments, backward) if c is not None]
    rounds, order = options.repeats, random.Random(0)
    for index in itertools.count():
        for contender in order.sample(contenders, len(contenders)):
            start = time.perf_counter()
            contender.call()
            contender.times.append(time.perf_counter() - start)
        if index == 0:  # short calls are repeated for some seconds
            rounds = max(rounds, min(50, round(3 / sum(c.times[0] for c in contenders))))
        if index + 1 >= rounds:
            return report(contenders, case, sizes, dtype, backward)


def make_contenders(options, case, sizes, inputs, arguments, backward) -> list[Contender | None]:
    """Compile and warm up every implementation that can run the case."""
    long = options.dense_up_to < sizes.S
    reference = None
    if min(CHECKED_LENGTH, options.dense_up_to) >= sizes.S:
        exact = [x.astype(jnp.float32) for x in inputs]
        with jax.default_matmul_precision("highest"):
            reference = jax.block_until_ready(jitted(ours("dense", arguments), backward)(*exact))
    made = []
    for backend in options.backends:
        if not (long and backend == "dense"):
            made.append(prepare(backend, jitted(ours(backend, arguments), backward), inputs, reference))
    peer = jax_peer(case, sizes, arguments)
    if peer is not None and not long:
        made.append(prepare(JAX, jitted(peer, backward), inputs, reference))
    made.append(torch_peer(case, inputs, backward))
    return made


def ours(backend: str, arguments: dict) -> Callable:
    """The attention op with one backend."""
    return lambda q, k, v: zoo.attention(q, k, v, backend=backend, **arguments)


def jax_peer(case: str, sizes: Sizes, arguments: dict) -> Callable | None:
    """`jax.nn.dot_product_attention` with the same mask, where it has one."""
    attend = jax.nn.dot_product_attention
    match case:
        case "full":
            return attend
        case "causal":
            return functools.partial(attend, is_causal=True)
        case "window":
            mask = arguments["mask"]
            return functools.partial(attend, local_window_size=(mask.left, mask.right))
        case "padding":
            return functools.partial(attend, key_value_seq_lengths=arguments["mask"].kv)
        case "packed":
            # What a user of jax.nn writes: the mask as an array.
            ids = arguments["mask"].right.q_ids
            causal = jnp.tril(jnp.ones((sizes.T, sizes.S), bool))
            return functools.partial(attend, mask=(causal & (ids[:, :, None] == ids[:, None, :]))[:, None])
    return None


def jitted(attend: Callable, backward: bool) -> Any:
    """Forward, or the gradients of the sum of squares."""
    if not backward:
        return jax.jit(attend)

    def loss(q, k, v):
        return jnp.square(attend(q, k, v).astype(jnp.float32)).sum()

    return jax.jit(jax.grad(loss, argnums=(0, 1, 2)))


def prepare(name: str, function: Any, inputs: tuple, reference: Any) -> Contender:
    """Compile, measure memory and error, warm up."""
    start = time.perf_counter()
    compiled = function.lower(*inputs).compile()
    seconds = time.perf_counter() - start
    error = None
    result = jax.block_until_ready(compiled(*inputs))
    if reference is not None:
        pairs = zip(jax.tree.leaves(result), jax.tree.leaves(reference), strict=True)
        error = max(float(jnp.abs(a.astype(jnp.float32) - b).max() / jnp.abs(b).max()) for a, b in pairs)
    analysis = compiled.memory_analysis()
    return Contender(
        name,
        lambda: jax.block_until_ready(compiled(*inputs)),
        error,
        None if analysis is None else analysis.temp_size_in_bytes,
        seconds,
    )


def torch_peer(case: str, inputs: tuple, backward: bool) -> Contender | None:
    """Torch's scaled_dot_product_attention on the same values, where torch is installed and the mask is its own."""
    if case not in ("full", "causal"):
        return None
    # Else torch's threads spin on after each call, and whoever comes next has fewer cores.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        import torch
    except ImportError:
        return None
    device = "cuda" if torch.cuda.is_available() and jax.default_backend() == "gpu" else "cpu"
    kind = getattr(torch, str(inputs[0].dtype))
    tensors = [
        torch.tensor(np.asarray(x.astype(jnp.float32))).to(device, kind).transpose(1, 2).requires_grad_(backward)
        for x in inputs
    ]

    def call():
        out = torch.nn.functional.scaled_dot_product_attention(*tensors, is_causal=case == "causal")
        if backward:
            torch.autograd.grad(out.float().square().sum(), tensors)
        if device == "cuda":
            torch.cuda.synchronize()

    call()
    return Contender(TORCH, call)


def report(contenders: list[Contender], case: str, sizes: Sizes, dtype: str, backward: bool) -> list[dict]:
    """Print a block of lines, ratios to `jax.nn` (else to the first) first; return them as records."""
    medians = {c.name: statistics.median(c.times) for c in contenders}
    base = JAX if JAX in medians else contenders[0].name
    direction = "forward+backward" if backward else "forward"
    print(
        f"\n{case}, {dtype}, {direction}: B={sizes.B} S={sizes.S} N={sizes.N} H={sizes.H}   (speed relative to {base})"
    )
    rows = []
    for c in contenders:
        row = {
            "case": case,
            "dtype": dtype,
            "direction": direction,
            "name": c.name,
            "B": sizes.B,
            "S": sizes.S,
            "N": sizes.N,
            "H": sizes.H,
            "speed_relative_to": base,
            "relative_speed": medians[base] / medians[c.name],
            "milliseconds": 1e3 * medians[c.name],
            "tokens_per_second": sizes.B * sizes.T / medians[c.name],
            "relative_error": c.error,
            "temp_megabytes": None if c.temp_bytes is None else c.temp_bytes / 1e6,
            "compile_seconds": c.compile_seconds,
        }
        rows.append(row)
        error = "        " if c.error is None else f"{c.error:8.1e}"
        memory = "         " if c.temp_bytes is None else f"{c.temp_bytes / 1e6:7.1f} MB"
        print(
            f"  {row['relative_speed']:6.2f}x  {row['milliseconds']:9.2f} ms  error {error}  temp {memory}  {c.name}",
            flush=True,
        )
    return rows


def device_name() -> str:
    """What the figures were made on: the accelerator's kind, or the CPU's number of cores."""
    device = jax.devices()[0]
    return f"cpu-{os.cpu_count()}-cores" if device.platform == "cpu" else device.device_kind


def environment() -> dict[str, Any]:
    """Versions, device and command, to stand beside the figures."""
    packages = ("jax", "jaxlib", "numpy", "torch")
    installed = {d.metadata["Name"].lower(): d.version for d in importlib.metadata.distributions()}
    return {
        "device": device_name(),
        "machine": platform.machine(),
        "python": platform.python_version(),
        "versions": {name: installed[name] for name in packages if name in installed},
        "command": "python " + " ".join(map(shlex.quote, ["benchmarks/attention.py", *sys.argv[1:]])),
        "repeats": "medians of calls in an order drawn for each round, after a warm-up",
    }


def draw(rows: list[dict], path: Path) -> None:
    """One panel a case, dtype and direction: tokens per second against length, a line an implementation."""
    from matplotlib.figure import Figure

    panels = sorted({(r["dtype"], r["direction"], r["case"]) for r in rows})
    columns = min(4, len(panels))
    lines = -(-len(panels) // columns)
    figure = Figure(figsize=(4.2 * columns, 3.4 * lines), layout="constrained")
    colours = {"auto": "#08519c", "blockwise": "#3182bd", "dense": "#9ecae1", JAX: "#d94801", TORCH: "#555555"}
    for place, (dtype, direction, case) in enumerate(panels, 1):
        axes = figure.add_subplot(lines, columns, place)
        chosen = [r for r in rows if (r["dtype"], r["direction"], r["case"]) == (dtype, direction, case)]
        for name in dict.fromkeys(r["name"] for r in chosen):
            points = sorted((r["S"], r["tokens_per_second"]) for r in chosen if r["name"] == name)
            style = {"linestyle": "--"} if name == "auto" else {}
            axes.plot(
                *zip(*points, strict=True), marker="o", label=name, color=colours.get(name), markersize=4, **style
            )
        axes.set(xscale="log", yscale="log", title=f"{case}, {dtype}\n{direction}", xlabel="length S")
        ticks = sorted({r["S"] for r in chosen})
        axes.set_xticks(ticks, [str(t) for t in ticks])
        axes.minorticks_off()
        axes.grid(alpha=0.3, which="both")
        if (place - 1) % columns == 0:
            axes.set_ylabel("tokens per second (higher is faster)")
        if place == 1:
            axes.legend(fontsize=8)
    figure.suptitle(f"Attention on {device_name()}: {rows[0]['N']} heads of {rows[0]['H']}")
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
