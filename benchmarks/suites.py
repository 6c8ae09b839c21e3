"""Grids of cells by name. A grid is a product of lists; a suite is grids in order of importance."""

import dataclasses
import itertools
from collections.abc import Iterator

from benchmarks.problems import BOTH, DECODE, FORWARD, Cell
from zoo.kernels.cases import Sizes

BOTH_WAYS = (FORWARD, BOTH)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Grid:
    """A product of lists, each named as on the command line.

    Attributes:
      lengths: T and S; in decoding S, the keys in the cache.
      heads: query heads N.  kv_heads: K, or None for as many.
      tokens: queries a call; the batch is tokens / length, at least 1. In decoding, `batches` says the batch.
      backends, peers: names, or None for all.
    """

    cases: tuple[str, ...] = ("causal", "full", "window", "packed", "padding", "alibi", "relative")
    directions: tuple[str, ...] = BOTH_WAYS
    dtypes: tuple[str, ...] = ("float32", "bfloat16")
    lengths: tuple[int, ...] = (512, 1024, 2048, 4096)
    head_sizes: tuple[int, ...] = (64,)
    heads: tuple[int, ...] = (8,)
    kv_heads: tuple[int | None, ...] = (None,)
    batches: tuple[int, ...] = (1, 8)
    tokens: int = 2048
    backends: tuple[str, ...] | None = None
    peers: tuple[str, ...] | None = None

    def cells(self) -> Iterator[Cell]:
        """Every cell, those that differ in direction or length alone side by side."""
        shapes = itertools.product(self.dtypes, self.head_sizes, self.heads, self.kv_heads, self.cases)
        for dtype, head_size, heads, kv_heads, case in shapes:
            for length, direction in itertools.product(self.lengths, self.directions):
                decode = direction == DECODE
                for batch in self.batches if decode else (max(1, self.tokens // length),):
                    sizes = Sizes(
                        B=batch, T=1 if decode else length, S=length,
                        N=heads, K=kv_heads or heads, H=head_size, V=head_size,
                    )  # fmt: skip
                    yield Cell(case=case, direction=direction, dtype=dtype, sizes=sizes)


LARGE = Grid(dtypes=("bfloat16",), tokens=16384, head_sizes=(128,), heads=(16,))
QUICK = Grid(dtypes=("float32",), lengths=(256, 1024), tokens=1024, heads=(4,), kv_heads=(2,))
TINY = Grid(dtypes=("float32",), lengths=(64, 256), tokens=256, heads=(2,), head_sizes=(16,))
FLEX = ("jax-cudnn", "torch-sdpa", "torch-flex", "tokamax")
FUSED = ("jax-cudnn", "torch-sdpa", "torch-sdpa-cudnn", "torch-sdpa-flash", "tokamax")


def _but(grid: Grid, **changes) -> Grid:
    return dataclasses.replace(grid, **changes)


SUITES: dict[str, list[Grid]] = {
    "default": [Grid(), Grid(cases=("causal", "window", "padding"), directions=(DECODE,), kv_heads=(2,))],
    # Two minutes on two CPU cores.
    "quick": [
        _but(QUICK, cases=("causal",)),
        _but(QUICK, cases=("relative",), lengths=(1024,)),
        _but(QUICK, cases=("full", "window"), lengths=(1024,), directions=(FORWARD,)),
        _but(QUICK, cases=("causal",), directions=(DECODE,), lengths=(1024, 4096), batches=(4,)),
    ],
    # Eight minutes on a large GPU; the most important first, for the run may be cut short.
    "gpu": [
        _but(LARGE, cases=("causal",), lengths=(4096,)),
        _but(LARGE, cases=("causal",), directions=(DECODE,), lengths=(8192, 32768), batches=(1, 64), heads=(32,),
             kv_heads=(8,), peers=("jax-xla", "jax-cudnn", "torch-sdpa", "torch-sdpa-cudnn")),
        _but(LARGE, cases=("causal", "full"), lengths=(1024, 16384), peers=FUSED),
        _but(LARGE, cases=("relative",), directions=(BOTH,), lengths=(1024, 4096), peers=FLEX),
        _but(LARGE, cases=("window", "packed"), lengths=(4096, 16384), directions=(FORWARD,), peers=FLEX),
        _but(LARGE, cases=("causal",), lengths=(4096,), head_sizes=(64,), heads=(32,), peers=FUSED),
        _but(LARGE, cases=("causal",), lengths=(4096,), heads=(32,), kv_heads=(4,), peers=FUSED),
        _but(LARGE, cases=("causal", "full"), lengths=(2048, 8192), directions=(FORWARD,), peers=FUSED),
        _but(LARGE, cases=("full",), lengths=(4096,), peers=FUSED),
        _but(LARGE, cases=("window", "packed"), lengths=(4096, 16384), directions=(BOTH,), peers=FLEX),
        _but(LARGE, cases=("causal",), directions=(DECODE,), lengths=(8192, 32768), batches=(8,), heads=(32,),
             kv_heads=(8,), peers=("jax-cudnn", "torch-sdpa")),
        _but(LARGE, cases=("causal", "full"), lengths=(1024, 16384), head_sizes=(64,), heads=(32,),
             directions=(FORWARD,), peers=FUSED),
    ],
    # The same kinds of cell in a minute on a small CPU.
    "small": [
        _but(TINY, cases=("causal",)),
        _but(TINY, cases=("packed", "window"), directions=(FORWARD,)),
        _but(TINY, cases=("relative",), directions=(BOTH,), lengths=(64,)),
        _but(TINY, cases=("causal",), directions=(DECODE,), lengths=(256,), batches=(2,)),
    ],
}  # fmt: skip
"""Suites by the name that --suite takes."""
