"""FlashAttention for GPUs, in Pallas with the Triton lowering: every feature of the op, in O(T + S) memory.

The libraries' kernels refuse biases, masks or gradients that published models need; this one takes them all. Here are
the choice of blocks, the gradient rule and what surrounds the kernels, which are in `triton_kernels.py`. The method is
that of FlashAttention-2 (Dao 2023): one kernel forward; one for the gradient of q and of a structured bias, one for
those of k and v, and one, dropped where nobody asks for its result, for that of a dense bias. No sum depends on the
order in which the blocks of a GPU happen to run.
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

from zoo.kernels import block
from zoo.kernels.bias import ALiBi, Bias, DenseBias, RelativeBias, relative_bucket
from zoo.kernels.call import LOWEST, Call, guard_nonfinite, without_nonfinite
from zoo.kernels.masks import FAR, is_static
from zoo.kernels.schedule import pad, pad_pairs, plan
from zoo.kernels.tiles import Grid, MaskTiles

PLATFORM = "gpu"

DTYPES = ("float32", "bfloat16", "float16")
MIN_BLOCK = 16
"""No side of a product of Triton's is shorter."""
MAX_HEAD_SIZE = 256
"""Beyond, the blocks of one program do not fit a multiprocessor's registers."""


@dataclasses.dataclass(frozen=True)
class Tiling:
    """How one kernel is cut: rows and columns of a block, powers of two; warps a program; stages of the pipeline."""

    block_q: int
    block_k: int
    num_warps: int
    num_stages: int

    def cut(self, num_queries: int, num_keys: int) -> Grid:
        """The grid of blocks, none longer than the sequence needs."""
        sizes = (self.block_q, num_queries), (self.block_k, num_keys)
        block_q, block_k = (max(MIN_BLOCK, min(block, _power_of_two(length))) for block, length in sizes)
        return Grid.cut(num_queries, num_keys, (block_q, block_k))


@dataclasses.dataclass(frozen=True)
class Tilings:
    """The tilings of the forward kernel, of the gradient by rows (q, biases) and of that by columns (k, v)."""

    forward: Tiling
    rows: Tiling
    columns: Tiling


# By bytes of an element and the largest head size (padded): (block_q, block_k, warps, stages) of each kernel. Chosen by
# registers (255 a thread) and shared memory (227 KB a multiprocessor of an H200), not yet by measurement.
TILINGS = {
    (2, 64): Tilings(Tiling(128, 64, 4, 3), Tiling(128, 64, 8, 2), Tiling(64, 128, 8, 2)),
    (2, 128): Tilings(Tiling(128, 64, 8, 3), Tiling(128, 64, 8, 2), Tiling(32, 128, 8, 2)),
    (2, 256): Tilings(Tiling(64, 32, 8, 2), Tiling(64, 32, 8, 2), Tiling(32, 64, 8, 2)),
    (4, 64): Tilings(Tiling(64, 32, 4, 2), Tiling(64, 32, 4, 2), Tiling(32, 64, 4, 2)),
    (4, 128): Tilings(Tiling(64, 32, 8, 2), Tiling(64, 32, 8, 2), Tiling(32, 64, 8, 2)),
    (4, 256): Tilings(Tiling(32, 16, 8, 1), Tiling(32, 16, 8, 1), Tiling(16, 32, 8, 1)),
}


def default_tilings(head_size: int, itemsize: int) -> Tilings:
    """The tilings for padded heads of this size (the larger of H and Hv) and elements of so many bytes."""
    return next(tilings for (size, limit), tilings in TILINGS.items() if size == itemsize and head_size <= limit)


def supports(call: Call) -> str | None:
    """Why this backend cannot run the call; None when it can."""
    if call.q.dtype.name not in DTYPES:
        return f"dtype {call.q.dtype}, and it is made for {', '.join(DTYPES)}"
    head_size = max(call.q.shape[-1], call.v.shape[-1])
    return None if head_size <= MAX_HEAD_SIZE else f"head size {head_size}, and it is made for at most {MAX_HEAD_SIZE}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Setup:
    """How a call is run: tilings, and whether in Pallas's interpreter, which needs no GPU."""

    tilings: Tilings
    interpret: bool


def attend(call: Call, tilings: Tilings | None = None, interpret: bool = False) -> tuple[jax.Array, jax.Array]:
    """Attention output [B, T, N, Hv] in v's dtype, and log-sum-exp [B, T, N] in float32."""
    if call.scale <= 0:  # the kernels divide by it, and take the largest logit before they multiply
        call = dataclasses.replace(call, q=call.q * (-1.0 if call.scale < 0 else 0.0), scale=abs(call.scale) or 1.0)
    head_size = _padded_size(max(call.q.shape[-1], call.v.shape[-1]))
    setup = Setup(tilings=tilings or default_tilings(head_size, call.q.dtype.itemsize), interpret=interpret)
    inputs = (call.q, call.k, call.v, call.bias, call.sinks)
    rest = dataclasses.replace(call, q=None, k=None, v=None, bias=None, sinks=None)
    return _attend(inputs, rest, setup)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _attend(inputs, rest: Call, setup: Setup):
    return _forward(inputs, rest, setup)[0]


def _forward(inputs, rest: Call, setup: Setup):
    from zoo.kernels import triton_kernels

    call = _join(inputs, rest)
    k, v = guard_nonfinite(call.k, call.v)
    operands, settings = arrange(dataclasses.replace(call, k=k, v=v), setup, setup.tilings.forward)
    out, largest, total = triton_kernels.forward(operands, settings)
    _, num_queries, _, _, _ = call.sizes
    out = out[:, :num_queries, :, : v.shape[-1]]
    largest, total = (x[:, :, :num_queries].swapaxes(1, 2) for x in (largest, total))
    lse, short = block.log_sum_exp(largest, total, lambda x: jnp.log(x) / settings.unit)
    return (out, lse * settings.unit), (inputs, rest, out, lse, short * settings.unit)


def _backward(setup: Setup, residuals, cotangents):
    from zoo.kernels import triton_kernels

    inputs, rest, out, lse, short = residuals
    call = _join((*(without_nonfinite(x) for x in inputs[:3]), *inputs[3:]), rest)
    grad_out, lse, delta = block.rows_backward(out, lse, short, *cotangents)
    rows, columns = (
        arrange(call, setup, tiling, by_column, Above(grad_out, lse, delta))
        for tiling, by_column in ((setup.tilings.rows, False), (setup.tilings.columns, True))
    )
    dq, dbias = triton_kernels.gradient_by_rows(*rows)
    dk, dv = triton_kernels.gradient_by_columns(*columns)
    if isinstance(call.bias, DenseBias):
        dbias = triton_kernels.dense_bias_gradient(*rows)
    gradients = [dx[tuple(map(slice, x.shape))] for dx, x in zip((dq, dk, dv), inputs[:3], strict=True)]
    dsinks = block.sinks_gradient(call.sinks, lse * rows[1].unit, delta)
    return (*gradients, _bias_gradient(call.bias, dbias), dsinks), None


_attend.defvjp(_forward, _backward)


def _join(inputs, rest: Call) -> Call:
    q, k, v, bias, sinks = inputs
    return dataclasses.replace(rest, q=q, k=k, v=v, bias=bias, sinks=sinks)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Above:
    """What comes from above in the backward pass, over [B, T, N]: grad_out [..., Hv], log-sum-exp in units, delta."""

    grad_out: jax.Array
    lse: jax.Array
    delta: jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Steps:
    """A relative bias as a function of the clipped distance: constant beyond `reach` on either side.

    Attributes:
      values: the bias over the scale of the logits at the distances -reach … reach, float32 [N, 2 * reach + 1].
      starts: the distances at which a constant stretch begins, ascending, int32, padded to a power of two; the first
        is below and the padding above every distance.
    """

    values: jax.Array
    starts: jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Operands:
    """The arrays that a kernel reads, lengths and head sizes padded; references to them, inside.

    Attributes:
      q: [B, T, N, H].  k: [B, S, K, H].  v: [B, S, K, Hv].
      clauses: the mask's normal form.
      query_positions: [B or 1, T].
      key_positions: [B or 1, S]; None for the array indices.
      bias: a dense bias of 4 axes, slopes, or steps.
      sinks: [N].  seeds: uint32 [B, N, 2].
      order, num_live: the schedule, as in `schedule.Schedule`, but each index doubled, plus 1 where no mask is needed.
      above: in the backward pass; its lse and delta are [B, N, T].
    """

    q: jax.Array
    k: jax.Array
    v: jax.Array
    clauses: tuple
    query_positions: jax.Array
    key_positions: jax.Array | None
    bias: DenseBias | ALiBi | Steps | None
    sinks: jax.Array | None
    seeds: jax.Array | None
    order: jax.Array
    num_live: jax.Array
    above: Above | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """What is compiled into a kernel beside its operands' shapes."""

    grid: Grid
    tiling: Tiling
    interpret: bool
    scale: float
    softcap: float | None
    dropout_rate: float

    @property
    def unit(self) -> float:
        """What the kernels' logits are counted in: the scale, or under a soft cap the cap."""
        return self.scale if self.softcap is None else self.softcap


def arrange(
    call: Call, setup: Setup, tiling: Tiling, by_column: bool = False, above: Above | None = None
) -> tuple[Operands, Settings]:
    """Pad a call to whole blocks and schedule them, by rows of blocks or by columns."""
    _, num_queries, num_keys, _, _ = call.sizes
    grid = tiling.cut(num_queries, num_keys)
    mask = MaskTiles(call, grid)
    order, num_live = _schedule(mask, by_column)
    if above is not None:
        above = Above(
            _pad_heads(above.grad_out, grid.num_queries),
            pad(above.lse.swapaxes(1, 2), grid.num_queries, "constant", constant_values=-LOWEST),
            pad(above.delta.swapaxes(1, 2), grid.num_queries, "constant"),
        )
    operands = Operands(
        q=_pad_heads(call.q, grid.num_queries),
        k=_pad_heads(call.k, grid.num_keys),
        v=_pad_heads(call.v, grid.num_keys),
        clauses=mask.clauses,
        query_positions=pad(call.frame().query, grid.num_queries, "edge"),
        key_positions=None if call.kv_positions is None else mask.positions,
        bias=_arrange_bias(call.bias, grid, call.scale),
        sinks=call.sinks,
        seeds=call.dropout_seeds,
        order=order,
        num_live=num_live,
        above=above,
    )
    settings = Settings(
        grid=grid,
        tiling=tiling,
        interpret=setup.interpret,
        scale=call.scale,
        softcap=call.softcap,
        dropout_rate=call.dropout_rate,
    )
    return jax.tree.map(jnp.asarray, operands), settings


def _schedule(mask: MaskTiles, by_column: bool):
    """`order` and `num_live` of `Operands`."""
    live, whole = mask.live(per_batch=True), mask.whole()
    if by_column:
        live, whole = live.swapaxes(1, 2), whole.swapaxes(1, 2)
    schedule = plan(live)
    namespace = np if is_static(live, whole) else jnp
    whole = namespace.take_along_axis(whole, schedule.order, axis=-1).astype(np.int32)
    return 2 * schedule.order + whole, schedule.num_live


def _arrange_bias(bias: Bias | None, grid: Grid, scale: float) -> DenseBias | ALiBi | Steps | None:
    match bias:
        case DenseBias():
            array = bias.array.reshape((1,) * (4 - bias.array.ndim) + bias.array.shape)
            return DenseBias(pad_pairs(array, grid.num_queries, grid.num_keys))
        case RelativeBias():
            distances = np.arange(-bias.max_distance, bias.max_distance + 1, dtype=np.int32)
            return Steps(values=bias.evaluate(distances) / scale, starts=_steps(bias)[0])
    return bias


def _steps(bias: RelativeBias) -> tuple[np.ndarray, np.ndarray]:
    """(where the constant stretches of a relative bias start, the bucket of each stretch)."""
    distances = np.arange(-bias.max_distance, bias.max_distance + 1, dtype=np.int32)
    buckets = np.asarray(relative_bucket(distances, bias.table.shape[0], bias.bidirectional, bias.max_distance))
    first = np.flatnonzero(np.diff(buckets, prepend=-1))
    starts = np.full(_power_of_two(len(first) + 1), 2 * int(FAR) - 1, np.int64)
    starts[: len(first)] = distances[first]
    starts[0] = -2 * int(FAR)
    return starts.astype(np.int32), buckets[first]


def _bias_gradient(bias: Bias | None, sums):
    """The gradient of a bias object from what the kernels summed."""
    match bias:
        case DenseBias():
            corner = sums[tuple(map(slice, (1,) * (4 - bias.array.ndim) + bias.array.shape))]
            return DenseBias(corner.reshape(bias.array.shape).astype(bias.array.dtype))
        case ALiBi():
            return ALiBi(-sums.sum((0, 2, 3)).astype(bias.slopes.dtype))
        case RelativeBias():
            buckets = _steps(bias)[1]
            by_bucket = jnp.zeros(bias.table.shape, jnp.float32).at[buckets].set(sums.sum((0, 2))[:, : len(buckets)].T)
            return dataclasses.replace(bias, table=by_bucket.astype(bias.table.dtype))
    return None


def _pad_heads(x: jax.Array, length: int) -> jax.Array:
    """[B, L, N, H] with L lengthened to `length`, and H to a power of two."""
    widths = [(0, 0), (0, length - x.shape[1]), (0, 0), (0, _padded_size(x.shape[3]) - x.shape[3])]
    return jnp.pad(x, widths) if any(after for _, after in widths) else x


def _padded_size(head_size: int) -> int:
    return max(MIN_BLOCK, _power_of_two(head_size))


def _power_of_two(n: int) -> int:
    """The least power of two that is not below n."""
    return 2 ** math.ceil(math.log2(n))
