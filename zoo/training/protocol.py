"""What training asks of a model and of a task; nothing here is inherited from, the shapes alone count.

Training knows no loss, no vocabulary and no architecture. Whatever has these methods can be trained: a
transformer, a recurrent baseline, a two-line toy in a test.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol, TypeAlias, runtime_checkable

import jax
import numpy as np

Params: TypeAlias = dict[str, Any]
"""A nested dict of float32 arrays whose paths read as English, such as `decoder/attention/query/kernel`."""

Batch: TypeAlias = dict[str, np.ndarray]
"""Named arrays that share their leading axis B, the rows of the global batch."""

Apply: TypeAlias = Callable[..., Any]
"""`apply(params, **inputs, dropout_rng=key | None) -> Output`: the model's forward pass as a task sees it."""


@runtime_checkable
class Model(Protocol):
    """A Flax Linen module, or anything that initialises and applies like one."""

    def init_with_output(self, rng: jax.Array, **inputs: Any) -> tuple[Any, Mapping[str, Any]]:
        """Return (output, {"params": ...}) for example inputs. Parameters are float32."""
        ...

    def apply(self, variables: Mapping[str, Any], **inputs: Any) -> Any:
        """Return the output for {"params": ...} and inputs; `dropout_rng=None` is deterministic."""
        ...


@runtime_checkable
class BatchIterator(Protocol):
    """An endless iterator of batches that knows its position: a `grain.DatasetIterator` is one.

    One with `part(index, count, workers)` gives the iterator of the rows that are that part of `count` equal ones of
    each batch, read by so many threads: the same batches, and the same positions in them. Of any other, each of several
    processes reads whole batches and keeps its rows.
    """

    def __iter__(self) -> Iterator[Batch]: ...

    def __next__(self) -> Batch: ...

    def get_state(self) -> Any:
        """Return the position after the batch returned last, as bytes or a JSON-able value."""
        ...

    def set_state(self, state: Any) -> None:
        """Go to a position that `get_state` returned, in this process or in another one."""
        ...


@runtime_checkable
class Task(Protocol):
    """How batches are made, what the loss is, and how well a model does on held-out data.

    One that has a `unit` says what its weights count, which are tokens otherwise.
    """

    def batches(self, split: str) -> BatchIterator:
        """Return an endless, deterministic iterator for "train"; other splits are one finite pass."""
        ...

    def loss(
        self, apply: Apply, params: Params, batch: Mapping[str, jax.Array], rng: jax.Array | None
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Return (mean loss in nats per scored token, metrics); pure, traced under `jit`.

        `metrics["weight"]` is the number of scored tokens. Every other metric is a float32 mean over that
        weight, so that micro-batches combine by it. `rng=None` is evaluation: no dropout.
        """
        ...

    def evaluate(self, apply: Apply, params: Params) -> dict[str, float]:
        """Return the task's own held-out metrics, such as loss, perplexity or exact_match."""
        ...
