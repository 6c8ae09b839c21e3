"""What the device can do at best, measured: a large matrix product, and a large copy and sum through memory.

Taken before the cells all through the run, the best kept: a busy moment then lowers neither ceiling for good.
"""

import dataclasses
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

SAMPLES = 3
MIN_SECONDS_BETWEEN = 5
"""Cells that follow each other faster share a sample."""


@dataclasses.dataclass
class Ceilings:
    """Best rates seen so far.

    Attributes:
      matmul: operations a second of a square product, by dtype.
      copy: bytes a second, read and written, of x + 1.
      read: bytes a second of a sum along rows.
      num_samples: how often each was taken.
    """

    matmul: dict[str, float] = dataclasses.field(default_factory=dict)
    copy: float = 0.0
    read: float = 0.0
    num_samples: int = 0
    _last: dict[str, float] = dataclasses.field(default_factory=dict, repr=False)
    _programs: dict[str, Any] = dataclasses.field(default_factory=dict, repr=False)

    @property
    def memory(self) -> float:
        """Bytes a second: the better of copy and sum, for what attention mostly does is read."""
        return max(self.copy, self.read)

    def sample(self, dtype: str) -> None:
        """Take each ceiling anew, for products of `dtype`."""
        if time.perf_counter() - self._last.get(dtype, -MIN_SECONDS_BETWEEN) < MIN_SECONDS_BETWEEN:
            return
        small = jax.default_backend() == "cpu"
        width, rows, columns = (1536, 4096, 8192) if small else (8192, 32768, 16384)
        seconds = self._time(f"matmul {dtype}", _product, lambda: _normal((width, width), dtype), SAMPLES)
        self.matmul[dtype] = max(self.matmul.get(dtype, 0.0), 2.0 * width**3 / seconds)
        array = lambda: jnp.ones((rows, columns), jnp.float32)  # noqa: E731
        num_bytes = 4 * rows * columns
        # In place: else a CPU spends its time on pages that it has not seen before.
        seconds = self._time("copy", lambda x: x + 1, array, SAMPLES, donate=True)
        self.copy = max(self.copy, 2 * num_bytes / seconds)
        self.read = max(self.read, num_bytes / self._time("read", lambda x: x.sum(-1), array, SAMPLES))
        self.num_samples += SAMPLES
        self._last[dtype] = time.perf_counter()

    def _time(self, name: str, function: Callable, make: Callable, repeats: int, donate: bool = False) -> float:
        """Least seconds of a call; the program is kept, the array made anew, lest it take memory between cells."""
        x = jax.block_until_ready(make())
        if name not in self._programs:
            self._programs[name] = jax.jit(function, donate_argnums=(0,) if donate else ()).lower(x).compile()
        program, best = self._programs[name], float("inf")
        calls = 1 if jax.default_backend() == "cpu" else 4
        for _ in range(repeats + 1):  # the first warms up
            start = time.perf_counter()
            for _ in range(calls):
                out = program(x)
                x = out if donate else x
            jax.block_until_ready(out)
            best = min(best, (time.perf_counter() - start) / calls)
        return best

    def record(self) -> dict:
        """For the results file, and for `restore`."""
        return {
            "matmul_tflops": {dtype: rate / 1e12 for dtype, rate in self.matmul.items()},
            "copy_gb_per_second": self.copy / 1e9,
            "read_gb_per_second": self.read / 1e9,
            "num_samples": self.num_samples,
        }

    @classmethod
    def restore(cls, record: dict) -> "Ceilings":
        """From what `record` made."""
        matmul = {dtype: rate * 1e12 for dtype, rate in record["matmul_tflops"].items()}
        copy, read = record["copy_gb_per_second"] * 1e9, record["read_gb_per_second"] * 1e9
        return cls(matmul, copy, read, record["num_samples"])


def _product(x: jax.Array) -> jax.Array:
    # Accumulated in float32: the form in which every device uses its matrix units.
    return jnp.matmul(x, x, preferred_element_type=jnp.float32).astype(x.dtype)


def _normal(shape: tuple[int, int], dtype: str) -> jax.Array:
    # Random: some devices multiply zeros faster.
    return jax.random.normal(jax.random.key(0), shape, dtype)
