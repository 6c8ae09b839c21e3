"""Check every attention backend on the device at hand against the dense one in float32; exit 1 if one disagrees.

First two traps that fused kernels are known for: a window that lets in keys of the future, and a bias without its
gradient. Then every case of zoo/kernels/cases.py in each dtype: output, log-sum-exp, gradients of q, k, v, biases
and sinks. For machines where the test suite does not run: it needs jax and numpy alone. Writes check.json.
"""

import argparse
import dataclasses
import functools
import json
import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.problems import ALL_CASES, BOTH, Cell, Problem
from benchmarks.reference import discrepancy
from zoo.kernels import Causal, DenseBias, RelativeBias, Window, attention
from zoo.kernels.attention import BACKENDS, refusal
from zoo.kernels.cases import Sizes, fits

# Of a result's norm; or three times what dense itself is off in that dtype, for products may be TF32 or bfloat16.
TOLERANCE = {"float32": 2e-5, "bfloat16": 2e-2}
DENSE_FACTOR = 3
ROW_FACTOR = 8
"""A single row may be off by so many times as much as the whole."""
SIZES = Sizes(B=2, T=320, S=320, N=4, K=2, H=64, V=64)
DECODING = dataclasses.replace(SIZES, T=1)


def main(argv: list[str] | None = None) -> None:
    """Check the traps, then the cases; print what is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default=".", help="folder of check.json")
    parser.add_argument("--cases", nargs="+", default=list(ALL_CASES), choices=ALL_CASES, metavar="CASE")
    parser.add_argument("--dtypes", nargs="+", default=list(TOLERANCE), choices=TOLERANCE)
    parser.add_argument("--backends", nargs="+", default=list(BACKENDS), choices=BACKENDS, metavar="NAME")
    parser.add_argument("--deadline-seconds", type=float, default=float("inf"), help="after which no case is begun")
    options = parser.parse_args(argv)
    start = time.perf_counter()
    jobs = [functools.partial(trap, name) for trap in (check_windows, check_biases) for name in options.backends]
    for case in options.cases:
        for dtype in options.dtypes:
            for sizes in (SIZES, DECODING) if fits(case, DECODING) else (SIZES,):
                jobs.append(functools.partial(check_case, case, dtype, sizes, options.backends))

    def run(job) -> list[dict]:
        late = time.perf_counter() - start > options.deadline_seconds
        return [{"check": "left out", "wrong": False}] if late else job()

    # Compiling is most of the work, and runs beside itself.
    with ThreadPoolExecutor(max(1, min(8, (os.cpu_count() or 1) // 2))) as pool:
        rows = [row for found in pool.map(run, jobs) for row in found]
    sys.exit(report(rows, Path(options.out)))


def report(rows: list[dict], folder: Path) -> int:
    """Write and print what was found; returns the exit status."""
    device, wrong = jax.devices()[0].device_kind, [row for row in rows if row["wrong"]]
    folder.mkdir(parents=True, exist_ok=True)
    content = {"device": device, "jax": jax.__version__, "num_wrong": len(wrong), "results": rows}
    (folder / "check.json").write_text(json.dumps(content, indent=1) + "\n")
    for text in dict.fromkeys(f"{r['backend']} is left out: {r['refused']}" for r in rows if r.get("refused")):
        print(text)
    for row in wrong:
        print(f"WRONG: {row}")
    left_out = sum(row["check"] == "left out" for row in rows)
    compared = sum("error" in row for row in rows)
    print(f"{compared} comparisons on {device}, {len(wrong)} wrong" + (f", {left_out} left out" if left_out else ""))
    return int(bool(wrong))


def guarded(check):
    """A check whose exception is a wrong result, not the end of the run."""

    @functools.wraps(check)
    def run(backend: str, *arguments) -> dict:
        try:
            return check(backend, *arguments)
        except Exception as error:
            lines = str(error).strip().splitlines() or [""]
            return {"backend": backend, "wrong": True, "raised": f"{type(error).__name__}: {lines[0][:300]}"}

    return run


def check_windows(backend: str) -> list[dict]:
    """Keys beyond a window's right side, with no causal mask beside it, must not change the output by a bit."""
    rows = []
    for right in (0, 16):
        found = {"check": f"Window(64, {right}) hides the future"} | _check_window(backend, right)
        rows.append(found | {"backend": backend})
    return rows


@guarded
def _check_window(backend: str, right: int) -> dict:
    cell = Cell(case="full", direction=BOTH, dtype="bfloat16", sizes=SIZES)
    problem = Problem(cell)
    mask = Window(64, right)
    if (reason := refusal(backend, problem.call(mask=mask))) is not None:
        return {"refused": reason, "wrong": False}
    q, k, v = problem.inputs
    half = SIZES.T // 2
    later = (np.arange(SIZES.S) > half + right)[None, :, None, None]
    attend = jax.jit(lambda q, k, v: attention(q, k, v, mask=mask, backend=backend))
    plain, changed = attend(q, k, v), attend(q, jnp.where(later, 9, k), jnp.where(later, -9, v))
    leak = float(jnp.abs(plain[:, : half + 1].astype(jnp.float32) - changed[:, : half + 1].astype(jnp.float32)).max())
    moved = float(jnp.abs(plain - changed).max())
    return {"error": leak, "wrong": leak != 0 or not moved > 0}


def check_biases(backend: str) -> list[dict]:
    """A bias must shift the output, and have the gradient that dense gives it, not zero and not none."""
    z, rng = SIZES, np.random.default_rng(0)
    biases = {
        "DenseBias": DenseBias(jnp.asarray(rng.standard_normal((1, z.N, z.T, z.S)), jnp.float32)),
        "RelativeBias": RelativeBias(jnp.asarray(rng.standard_normal((32, z.N)), jnp.float32)),
    }
    rows = []
    for name, bias in biases.items():
        found = {"check": f"{name} has its gradient"} | _check_bias(backend, bias)
        rows.append(found | {"backend": backend})
    return rows


@guarded
def _check_bias(backend: str, bias) -> dict:
    problem = Problem(Cell(case="full", direction=BOTH, dtype="bfloat16", sizes=SIZES))
    problem.fixed["mask"], problem.trained["bias"] = Causal(), bias
    if (reason := refusal(backend, problem.call())) is not None:
        return {"refused": reason, "wrong": False}
    found, expected = evaluate(problem, backend), evaluate(problem, "dense", exact=True)
    return compare({"bias": found["bias"]}, {"bias": expected["bias"]}, {"bias": (0.0, 0.0)}, "bfloat16")


def check_case(case: str, dtype: str, sizes: Sizes, backends: list[str]) -> list[dict]:
    """A row a backend: output, log-sum-exp and all gradients of one case against dense in float32."""
    problem = Problem(Cell(case=case, direction=BOTH, dtype=dtype, sizes=sizes))
    if sizes.T == 1 and "q_offset" not in problem.fixed | problem.static:
        problem.fixed["q_offset"] = jnp.int32(sizes.S - 1)
    expected = evaluate(problem, "dense", exact=True)
    dense = {name: discrepancy(x, expected[name]) for name, x in evaluate(problem, "dense").items()}
    rows = []
    for backend in backends:
        found = {"check": f"{case}, T={sizes.T}", "dtype": dtype} | _check_case(backend, problem, expected, dense)
        rows.append(found | {"backend": backend})
    return rows


@guarded
def _check_case(backend: str, problem: Problem, expected: dict, dense: dict) -> dict:
    if (reason := refusal(backend, problem.call())) is not None:
        return {"refused": reason, "wrong": False}
    return compare(evaluate(problem, backend), expected, dense, problem.cell.dtype)


def compare(found: dict, expected: dict, dense: dict, dtype: str) -> dict:
    """Largest relative error and the results beyond tolerance, given those of dense in the same dtype."""
    errors = {name: discrepancy(found[name], expected[name]) for name in expected}
    beyond = []
    for name, (error, worst_row) in errors.items():
        limit = max(TOLERANCE[dtype], DENSE_FACTOR * dense[name][0])
        row_limit = max(ROW_FACTOR * limit, DENSE_FACTOR * dense[name][1])
        if not (error <= limit and worst_row <= row_limit):
            beyond.append(f"{name}: {error:.1e}, worst row {worst_row:.1e}")
    return {"error": max(error for error, _ in errors.values()), "wrong": bool(beyond), "beyond": beyond}


def evaluate(problem: Problem, backend: str, exact: bool = False) -> dict[str, np.ndarray]:
    """Output, log-sum-exp and gradients in float64 NumPy; `exact` from float32 inputs with the best products."""
    inputs = [x.astype(jnp.float32) for x in problem.inputs] if exact else problem.inputs
    grad_lse = problem.grad_out.astype(jnp.float32)[..., 0]

    def loss(q, k, v, trained, fixed):
        out, lse = attention(q, k, v, **trained, **fixed, **problem.static, backend=backend, return_lse=True)
        weighted = (out.astype(jnp.float32) * problem.grad_out.astype(jnp.float32)).sum()
        return weighted + (jnp.where(jnp.isneginf(lse), 0, lse) * grad_lse).sum(), (out, lse)

    with jax.default_matmul_precision("highest" if exact else None):
        gradient = jax.jit(jax.grad(loss, argnums=(0, 1, 2, 3), has_aux=True))
        (*gradients, trained), (out, lse) = gradient(*inputs, problem.trained, problem.fixed)
    results = {"out": out, "lse": lse[..., None]} | dict(zip("qkv", gradients, strict=True))
    results |= {name: jax.tree.leaves(value)[0] for name, value in trained.items()}
    return {name: np.asarray(value).astype(np.float64) for name, value in results.items()}


if __name__ == "__main__":
    main()
