"""Random calls of the attention op against the float64 oracle: `python tests/kernels/fuzz.py --cases 20000 --seed 0`.

A structure is what a program is compiled for: sizes, dtypes, the tree of masks, the kind of bias, options, a backend. A
draw fills it with values: standard normal ones, and those at the ends of what each argument takes. Compiling takes a
second and a draw a millisecond, so that each structure has many draws. Every structure and draw is known by its seeds.
"""

import argparse
import dataclasses
import functools
import sys
from collections import Counter
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]
    import conftest  # noqa: F401  before JAX is imported

import jax
import jax.numpy as jnp
import numpy as np
from oracle import allowed_pairs
from oracle import attention as oracle

from zoo.kernels import (
    ALiBi,
    Causal,
    Chunked,
    Dense,
    DenseBias,
    Full,
    Lengths,
    PrefixLM,
    RelativeBias,
    Segments,
    Window,
    blockwise,
    decode,
    dense,
    mosaic_tpu,
    split_k,
    triton,
)
from zoo.kernels.attention import prepare
from zoo.kernels.dropout import seeds as dropout_seeds

DTYPES = {"float32": 1e-5, "bfloat16": 2e-2, "float16": 3e-3}
"""Dtypes of q, k and v, with the largest error of a result, relative to the size of what it is a sum of."""
INTEGERS = ("int8", "uint8", "int16", "uint16", "int32", "uint32")
NATIVE = ("dense", "blockwise", "decode", "split_k")
INTERPRETED = ("triton", "mosaic_tpu")
SHARE_INTERPRETED = 0.1
"""Share of the structures that run in Pallas's interpreter, which takes ten times as long to compile."""
TINY_TILING = triton.Tiling(16, 16, 4, 1)
ATTEND = {
    "dense": dense.attend,
    "blockwise": functools.partial(blockwise.attend, block_sizes=(8, 16)),
    "decode": decode.attend,
    "split_k": split_k.attend,
    "triton": functools.partial(
        triton.attend, tilings=triton.Tilings(TINY_TILING, TINY_TILING, TINY_TILING), interpret=True
    ),
    "mosaic_tpu": functools.partial(mosaic_tpu.attend, interpret=True),
}
SUPPORTS = {"triton": triton.supports, "mosaic_tpu": mosaic_tpu.supports, "decode": decode.supports,
            "split_k": split_k.supports}  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class Structure:
    """Static facts that one program is compiled for; sizes by the letters of `attention`."""

    seed: int
    backend: str
    dtype: str
    B: int
    T: int
    S: int
    N: int
    K: int
    H: int
    V: int
    mask: Any
    bias: str | None
    softcap: float | None
    scale: float | None
    has_sinks: bool
    rate: float
    has_offset: bool
    has_positions: bool


def make_structure(seed: int) -> Structure:
    """The structure of a seed."""
    rng = np.random.default_rng([seed, 0])
    backends = INTERPRETED if rng.random() < SHARE_INTERPRETED else NATIVE
    backend = str(rng.choice(backends))
    few = backend in ("decode", "split_k")
    num_kv_heads = int(rng.choice([1, 2]))
    num_keys = int(rng.choice([1, 40, 300, 600] if few else [1, 7, 16, 33, 40]))
    same = rng.random() < 0.5 and not few
    return Structure(
        seed=seed, backend=backend, dtype=str(rng.choice(list(DTYPES)[: 2 if backend == "mosaic_tpu" else 3])),
        B=int(rng.integers(1, 4)), T=num_keys if same else int(rng.choice([1, 2, 3] if few else [1, 9, 24, 37])),
        S=num_keys, N=num_kv_heads * int(rng.choice([1, 2, 3])), K=num_kv_heads,
        H=int(rng.choice([4, 8, 12])), V=int(rng.choice([4, 8])), mask=_mask_shape(rng, depth=2),
        bias=rng.choice([None, None, "full", "keys", "rows", "matrix", "alibi", "relative"]),
        softcap=rng.choice([None, None, None, 5.0, 50.0]), scale=rng.choice([None, None, 1.0, 0.25, -0.5, 0.0]),
        has_sinks=bool(rng.random() < 0.25), rate=float(rng.choice([0.0, 0.0, 0.0, 0.3])),
        has_offset=bool(rng.random() < 0.3), has_positions=bool(rng.random() < 0.2),
    )  # fmt: skip


def _mask_shape(rng, depth: int):
    """A tree of masks: ("and" | "or", left, right), or the name of one and what of it is static."""
    if depth and rng.random() < 0.4:
        return (str(rng.choice(["and", "and", "or"])), _mask_shape(rng, depth - 1), _mask_shape(rng, depth - 1))
    name = str(rng.choice(["full", "causal", "window", "chunked", "prefix", "lengths", "segments", "dense"]))
    if name == "window":
        return name, *(None if rng.random() < 0.3 else int(rng.choice([0, 1, 5, 20, 2**31 - 1, 2**40])) for _ in "lr")
    if name == "chunked":
        return name, int(rng.choice([1, 2, 5, 16, 2**30, 2**31 - 1, 2**33]))
    if name in ("prefix", "lengths", "segments"):
        return name, str(rng.choice(INTEGERS)), bool(rng.random() < 0.5)
    return (name,)


def draw(structure: Structure, number: int) -> tuple[tuple, dict]:
    """((q, k, v, grad_out, grad_lse), arguments of `attention`) of a structure's draw."""
    z = structure
    rng = np.random.default_rng([z.seed, 1, number])
    kind = str(rng.choice(["normal", "normal", "flat", "large", "small"]))
    bias = _bias(z, rng, extreme=kind == "flat")
    size = {"normal": 1.0, "flat": 0.0, "large": 4.0, "small": 1e-4}[kind]
    dtype = jnp.dtype(z.dtype)
    q, k, v = (
        jnp.asarray(rng.standard_normal(shape) * factor, dtype)
        for shape, factor in (
            ((z.B, z.T, z.N, z.H), size),
            ((z.B, z.S, z.K, z.H), max(size, 1.0)),
            ((z.B, z.S, z.K, z.V), float(rng.choice([1.0, 1.0, 1e-4, 100.0]))),
        )
    )
    grad_out = jnp.asarray(rng.standard_normal((z.B, z.T, z.N, z.V)), dtype).astype(jnp.float32)
    grad_lse = jnp.asarray(rng.standard_normal((z.B, z.T, z.N)) * (rng.random() < 0.5), jnp.float32)
    start = int(rng.choice([0, 0, z.S, 2**29, -5])) if z.has_offset else 0
    arguments: dict[str, Any] = {"mask": _mask(z, rng, z.mask)}
    if bias is not None:
        arguments["bias"] = bias
    if z.has_sinks:
        arguments["sinks"] = jnp.asarray(rng.standard_normal(z.N) * float(rng.choice([1.0, 30.0])), jnp.float32)
    if z.has_offset:
        arguments["q_offset"] = jnp.asarray(start + rng.integers(0, 8, z.B), jnp.int32)
    if z.has_positions:
        slots = start + np.sort(rng.integers(0, 2 * z.S, (z.B, z.S)), axis=-1)
        empty = rng.random((z.B, z.S)) < 0.2
        arguments["kv_positions"] = jnp.asarray(np.where(empty, 2**29 + 2**28, rng.permuted(slots, axis=1)), jnp.int32)
    if z.rate:
        arguments["dropout_rng"] = jax.random.key(int(rng.integers(2**31)))
    return (q, k, v, grad_out, grad_lse), arguments


def static(structure: Structure) -> dict:
    """The arguments that are compiled in."""
    options = {"softcap": structure.softcap, "scale": structure.scale, "dropout_rate": structure.rate}
    return {name: value for name, value in options.items() if value is not None}


def _ends(rng, dtype: str, usual, shape):
    """Integers, among them those at the ends of their type."""
    info = np.iinfo(dtype)
    ends = [info.min, info.min + 1, info.max - 1, info.max, *np.clip(usual, info.min, info.max)]
    return jnp.asarray(rng.choice(np.array(ends, dtype), shape))


def _mask(z: Structure, rng, shape):
    match shape:
        case ("and", left, right):
            return _mask(z, rng, left) & _mask(z, rng, right)
        case ("or", left, right):
            return _mask(z, rng, left) | _mask(z, rng, right)
        case ("full",):
            return Full()
        case ("causal",):
            return Causal()
        case ("window", left, right):
            return Window(left, right)
        case ("chunked", size):
            return Chunked(size)
        case ("prefix", dtype, by_row):
            return PrefixLM(_ends(rng, dtype, [0, 1, z.S // 2, z.S, z.S + 5], (z.B,) if by_row else ()))
        case ("lengths", dtype, by_row):
            count = lambda size: _ends(rng, dtype, [0, 1, size // 2, size, size + 5], (z.B,) if by_row else ())  # noqa: E731
            return Lengths(q=count(z.T) if by_row else None, kv=count(z.S))
        case ("segments", dtype, alone) if alone and z.T == z.S:
            return Segments(_ends(rng, dtype, [-1, 0, 1], (z.B, z.T)))
        case ("segments", dtype, _):
            return Segments(_ends(rng, dtype, [-1, 0, 1], (z.B, z.T)), _ends(rng, dtype, [-1, 0, 1], (1, z.S)))
    return Dense(jnp.asarray(rng.random((z.B, 1, z.T, z.S)) < 0.5))


def _bias(z: Structure, rng, extreme: bool):
    """A bias; with queries of zero it alone decides, and may be as large as float32 is exact at."""
    match z.bias:
        case None:
            return None
        case "alibi":
            return ALiBi(jnp.asarray(rng.standard_normal(z.N), jnp.float32))
        case "relative":
            return RelativeBias(
                jnp.asarray(rng.standard_normal((8, z.N)), jnp.float32), bidirectional=bool(z.seed % 2), max_distance=20
            )
    shape = {"full": (z.B, z.N, z.T, z.S), "keys": (z.B, 1, 1, z.S), "rows": (1, z.N, z.T, 1), "matrix": (z.T, z.S)}
    array = rng.standard_normal(shape[str(z.bias)])
    if extreme:
        large = rng.choice([95.0, -95.0, 2.0**20, -1e6, -1e9, -1e10, -(2.0**100), np.finfo("float32").min, -np.inf])
        where = rng.choice(["all", "some", "rows"])
        chosen = {"all": np.ones(array.shape, bool), "some": rng.random(array.shape) < 0.5,
                  "rows": np.broadcast_to(rng.random((*array.shape[:-1], 1)) < 0.5, array.shape)}[where]  # fmt: skip
        # Whole numbers: beside a large one no fraction is left.
        array = np.where(chosen, large, np.round(array))
    return DenseBias(jnp.asarray(array, jnp.float32))


def program(structure: Structure):
    """The compiled function of one draw: {name: array} of outputs and gradients."""
    options, attend = static(structure), ATTEND[structure.backend]

    def run(q, k, v, trained, fixed):
        call, rng = prepare(q, k, v, **(fixed | trained | options))
        if rng is not None:
            call = dataclasses.replace(call, dropout_seeds=dropout_seeds(rng, structure.B, structure.N))
        if structure.backend in SUPPORTS and (reason := SUPPORTS[structure.backend](call)):
            raise NotImplementedError(reason)
        return attend(call)

    @jax.jit
    def evaluate(q, k, v, grad_out, grad_lse, trained, fixed):
        (out, lse), pull = jax.vjp(lambda q, k, v, trained: run(q, k, v, trained, fixed), q, k, v, trained)
        dq, dk, dv, rest = pull((grad_out.astype(out.dtype), jnp.where(jnp.isneginf(lse), 0, grad_lse)))
        leaves = {name: jax.tree.leaves(value)[0] for name, value in rest.items()}
        return {"out": out, "lse": lse, "q": dq, "k": dk, "v": dv} | leaves

    return evaluate


def check(structure: Structure, numbers) -> Counter:
    """Compare draws with the oracle; AssertionError names the draw. Returns how many were compared."""
    evaluate, counted = program(structure), Counter()
    for number in numbers:
        inputs, arguments = draw(structure, number)
        trained = {name: arguments[name] for name in ("bias", "sinks") if name in arguments}
        fixed = {name: value for name, value in arguments.items() if name not in trained}
        try:
            found = evaluate(*spoilt(structure, inputs, arguments), trained, fixed)
        except NotImplementedError:
            counted["refused"] += 1
            continue
        out, lse, gradients = oracle(*inputs, **arguments, **static(structure))
        truth = {"out": out, "lse": lse} | gradients
        sizes = result_sizes(structure, inputs, arguments)
        for name, wanted in truth.items():
            got = np.asarray(found[name], np.float64)
            place = f"structure {structure.seed}, draw {number}: {name} of {structure}"
            infinite = np.isneginf(wanted)  # rows without keys, in the log-sum-exp alone
            assert (np.isneginf(got) == infinite).all(), f"{place}: where it is infinite differs"
            assert np.isfinite(got[~infinite]).all(), f"{place}: not finite"
            error = np.abs(np.where(infinite, 0, got) - np.where(infinite, 0, wanted)).max()
            bound = DTYPES[structure.dtype] * sizes[name] + 2.0**-23 * np.abs(wanted[~infinite]).max(initial=0)
            bound += float(jnp.finfo(structure.dtype).smallest_subnormal)
            assert error <= bound, f"{place}: off by {error:.3g}, and {bound:.3g} is allowed"
        counted["compared"] += 1
    return counted


def spoilt(structure: Structure, inputs, arguments) -> tuple:
    """The inputs of a draw with NaN in the keys and values that no row sees."""
    z = structure
    rows, columns = np.arange(z.T)[None], np.arange(z.S)[None]
    query = np.broadcast_to(rows + np.asarray(arguments.get("q_offset", 0)).reshape(-1, 1), (z.B, z.T))
    key = np.broadcast_to(np.asarray(arguments.get("kv_positions", columns)), (z.B, z.S))
    hidden = ~allowed_pairs(arguments["mask"], (z.B, z.N, z.T, z.S), query, key).any((1, 2))
    hidden = jnp.asarray(hidden)[..., None, None]
    q, k, v, *rest = inputs
    return q, *(jnp.where(hidden, jnp.asarray(jnp.nan, x.dtype), x) for x in (k, v)), *rest


def result_sizes(structure: Structure, inputs, arguments) -> dict[str, float]:
    """Bound each result as a sum of products of its largest factors: rounding is relative to that."""
    z = structure
    q, k, v, grad_out, grad_lse = (np.abs(np.asarray(x, np.float64)).max() for x in inputs)
    scale = abs(z.scale if z.scale is not None else z.H**-0.5)
    logits = scale * z.H * q * k + 1
    drop = 1 / (1 - z.rate)
    grad_logits = 2 * drop * z.V * grad_out * v + grad_lse  # times a weight of at most 1
    rows = z.T * (z.N // z.K)
    spread = max(1.0, logits)  # rounding of a logit of this size moves all weights
    sizes = {
        "out": drop * v, "lse": 1.0, "q": scale * grad_logits * k, "k": scale * grad_logits * q * rows,
        "v": drop * grad_out * rows,
    }  # fmt: skip
    distance = 1.0 if z.bias != "alibi" else 4.0 * z.S
    sizes["bias"] = grad_logits * z.B * z.T * distance
    sizes["sinks"] = grad_logits * z.B * z.T
    if z.bias == "alibi":
        spread *= 8 * z.S
        if z.has_offset or z.has_positions:  # distances of 2**29, at which float32 has steps of 64
            return dict.fromkeys(sizes, np.inf)
    return {name: spread * size for name, size in sizes.items()}


def main() -> int:
    """Run the command; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=2000, help="draws in all")
    parser.add_argument("--draws", type=int, default=40, help="draws of each structure")
    parser.add_argument("--seed", type=int, default=0, help="the first structure")
    arguments = parser.parse_args()
    total, wrong = Counter(), 0
    for seed in range(arguments.seed, arguments.seed + -(-arguments.cases // arguments.draws)):
        try:
            total += check(make_structure(seed), range(arguments.draws))
        except Exception as error:  # each is told, and the search goes on
            wrong += 1
            print(f"{type(error).__name__}: {str(error)[:600]}", flush=True)
        if seed % 25 == 0:
            jax.clear_caches()
            print(f"... structure {seed}: {dict(total)}, {wrong} wrong", flush=True)
    print(f"{dict(total)}, {wrong} structures wrong")
    return wrong > 0


if __name__ == "__main__":
    sys.exit(main())
