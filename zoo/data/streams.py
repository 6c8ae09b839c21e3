"""Endless batches that several processes read together: each its own rows of every batch, with threads that read ahead.

The batches are a function of the data, the seed and their number alone. How many processes and threads read them
changes nothing, and the position in them is the same for all, so that a run goes on with other ones.

Left out: worker processes. Reading is Grain's, decoding and tokenising are C that leaves Python's lock alone, so
threads run side by side.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import grain
import numpy as np

Batch = dict[str, np.ndarray]


@dataclass(frozen=True, kw_only=True)
class Reading:
    """Which rows of each batch are read, and by how many threads."""

    index: int = 0
    count: int = 1
    """The rows are the part `index` of `count` equal ones."""
    workers: int = 0
    """Threads beside the one that drives the iterator, which reads by itself where there are none."""

    def __post_init__(self):
        if not 0 <= self.index < self.count:
            raise ValueError(f"index={self.index} must lie in 0 to {self.count - 1}, one a part")
        if self.workers < 0:
            raise ValueError(f"workers={self.workers} must be at least 0")

    def rows(self, batch_size: int) -> slice:
        """The rows among a batch's. ValueError for a batch that does not divide."""
        if batch_size % self.count:
            raise ValueError(
                f"a batch of {batch_size} rows cannot be read in {self.count} equal parts: make it a multiple of that"
            )
        size = batch_size // self.count
        return slice(self.index * size, (self.index + 1) * size)

    @property
    def options(self) -> grain.ReadOptions:
        """For what reads elements at random; their order is the same for any number of threads."""
        return grain.ReadOptions(num_threads=self.workers, prefetch_buffer_size=4 * self.workers)


ALONE = Reading()


class Stream(grain.DatasetIterator):
    """Endless batches, opened by `open_batches(reading)`, an iterator of its rows that knows its position."""

    def __init__(self, open_batches: Callable[[Reading], grain.DatasetIterator], reading: Reading = ALONE):
        super().__init__()
        self._open, self._batches = open_batches, open_batches(reading)

    def part(self, index: int, count: int, workers: int = 0) -> "Stream":
        """The same batches from their beginning: part `index` of `count` equal ones of each one's rows."""
        return Stream(self._open, Reading(index=index, count=count, workers=workers))

    def __next__(self) -> Batch:
        return next(self._batches)

    def get_state(self) -> Any:
        """Where the next batch comes from, whichever rows of it are read."""
        return self._batches.get_state()

    def set_state(self, state: Any) -> None:
        """Continue exactly where `get_state` was called, given the same data and arguments."""
        self._batches.set_state(state)


class Rows(grain.DatasetIterator):
    """Some rows of the batches of an iterator that can only be read whole."""

    def __init__(self, batches: grain.DatasetIterator, reading: Reading):
        super().__init__()
        self._whole, self._reading = batches, reading

    def __next__(self) -> Batch:
        batch = next(self._whole)
        rows = self._reading.rows(len(next(iter(batch.values()))))
        return {name: value[rows] for name, value in batch.items()}

    def get_state(self) -> Any:
        """That of the whole batches."""
        return self._whole.get_state()

    def set_state(self, state: Any) -> None:
        """That of the whole batches."""
        self._whole.set_state(state)
