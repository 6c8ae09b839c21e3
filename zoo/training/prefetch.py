"""Batches made and put on the devices by a background thread, each with the data position that follows it.

The position travels with its batch: a checkpoint stores where the last *consumed* batch ended, however far
the thread has read ahead.
"""

import queue
import threading
from typing import Any

import jax
from jax.sharding import Mesh

from zoo.training.protocol import Batch, BatchIterator
from zoo.training.sharding import shard_batch


def place_batch(batch: Batch, mesh: Mesh) -> Any:
    """Return the batch on the mesh's devices. On several machines each gives its own share of the rows."""
    if jax.process_count() == 1:
        return jax.device_put(batch, shard_batch(batch, mesh))
    rows = jax.process_count()
    whole = jax.tree.map(lambda x: jax.ShapeDtypeStruct((x.shape[0] * rows, *x.shape[1:]), x.dtype), batch)
    return jax.tree.map(
        lambda x, sharding: jax.make_array_from_process_local_data(sharding, x),
        batch,
        shard_batch(whole, mesh),
    )


class Prefetcher:
    """Iterates over (batch on the devices, data position after it). Use as a context manager."""

    def __init__(self, iterator: BatchIterator, mesh: Mesh, depth: int = 2):
        self._iterator = iterator
        self._mesh = mesh
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
                self._ready.put((place_batch(batch, self._mesh), self._iterator.get_state()))
        except StopIteration:
            self._ready.put(ValueError('the task\'s "train" batches ended: they must be endless; repeat the data'))
        except BaseException as error:  # whatever it is, the training thread raises it
            self._ready.put(error)
