"""Batches made and put on the devices by a background thread, each with the data position that follows it.

The position travels with its batch: a checkpoint stores where the last *consumed* batch ended, however far
the thread has read ahead.
"""

import math
import queue
import threading
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from zoo.training.protocol import Batch, BatchIterator
from zoo.training.sharding import AXES, shard_batch

Part = tuple[int, int]
"""(index, count): the rows of a batch that are part `index` of `count` equal ones."""
ALL: Part = (0, 1)


def rows_here(mesh: Mesh) -> Part:
    """Return which rows of a batch this process's devices hold; all, where they are no part of equal ones."""
    shards = math.prod(mesh.shape[axis] for axis in AXES["B"])
    sharding = NamedSharding(mesh, PartitionSpec(AXES["B"]))
    indices = sharding.addressable_devices_indices_map((shards,)).values()
    slices = [index[0].indices(shards) for index in indices if index is not None]
    if not slices:
        raise ValueError(
            f"the mesh {dict(mesh.shape)} has no device of process {jax.process_index()}: several processes train on "
            f"all their {jax.device_count()} devices; leave one mesh axis at -1"
        )
    start, stop = min(first for first, _, _ in slices), max(last for _, last, _ in slices)
    size = stop - start
    return (start // size, shards // size) if shards % size == 0 and start % size == 0 else ALL


def read_part(iterator: BatchIterator, part: Part, workers: int) -> BatchIterator:
    """Return an iterator of some rows of each batch, read by so many threads where the iterator knows how."""
    if hasattr(iterator, "part"):
        return iterator.part(*part, workers)
    return iterator if part == ALL else _Rows(iterator, part)


class _Rows:
    """Some rows of the batches of an iterator that can only be read whole."""

    def __init__(self, iterator: BatchIterator, part: Part):
        self._iterator, (self._index, self._count) = iterator, part
        self.get_state, self.set_state = iterator.get_state, iterator.set_state

    def __iter__(self) -> "_Rows":
        return self

    def __next__(self) -> Batch:
        def own(x):
            size = x.shape[0] // self._count
            return x[self._index * size : (self._index + 1) * size]

        return jax.tree.map(own, next(self._iterator))


def place_batch(batch: Batch, mesh: Mesh, part: Part = ALL) -> Any:
    """Return the whole batch on the mesh's devices, of which `batch` is the part that this process's devices hold."""
    if jax.process_count() == 1:
        return jax.device_put(batch, shard_batch(batch, mesh))
    index, count = part

    def place(x):
        size = x.shape[0]
        whole = jax.ShapeDtypeStruct((size * count, *x.shape[1:]), x.dtype)

        def read(where):
            start, stop, _ = where[0].indices(whole.shape[0])
            return x[(slice(start - index * size, stop - index * size), *where[1:])]

        return jax.make_array_from_callback(whole.shape, shard_batch(whole, mesh), read)

    return jax.tree.map(place, batch)


class Prefetcher:
    """Iterates over (batch on the devices, data position after it). Use as a context manager."""

    def __init__(self, iterator: BatchIterator, mesh: Mesh, depth: int = 2, part: Part = ALL):
        """`iterator` gives the rows of each batch that are `part`."""
        self._iterator, self._mesh, self._part = iterator, mesh, part
        self._ready: queue.Queue[Any] = queue.Queue(depth)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._fill, name="prefetch", daemon=True)
        self._thread.start()

    def __enter__(self) -> "Prefetcher":
        return self

    def __exit__(self, *_) -> None:
        self._stop.set()
        while self._thread.is_alive():
            try:  # make room, in case the thread waits to put
                self._ready.get_nowait()
            except queue.Empty:
                self._thread.join(0.01)

    def __iter__(self) -> "Prefetcher":
        return self

    def __next__(self) -> tuple[Any, Any]:
        item = self._ready.get()
        if isinstance(item, BaseException):
            raise item
        return item

    def wait(self, seconds: float) -> bool:
        """Wait for the next batch, at most so long; return whether it is there."""
        with self._ready.not_empty:
            return bool(self._ready.not_empty.wait_for(lambda: len(self._ready.queue), seconds))

    def _fill(self) -> None:
        try:
            while not self._stop.is_set():
                batch = next(self._iterator)
                self._ready.put((place_batch(batch, self._mesh, self._part), self._iterator.get_state()))
        except StopIteration:
            self._ready.put(ValueError('the task\'s "train" batches ended: they must be endless; repeat the data'))
        except BaseException as error:  # whatever it is, the training thread raises it
            self._ready.put(error)
