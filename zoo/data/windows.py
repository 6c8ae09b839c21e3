"""Examples that become several rows each, such as questions about texts longer than a row."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import grain
import numpy as np

from zoo.data.batches import OWN_THREAD, Batch, deal_rows
from zoo.data.sources import Source

SHUFFLED_ROWS = 1024
"""Rows of training that are shuffled among one another: neighbours would otherwise be of one example."""


class _Cut(grain.experimental.FlatMapTransform):
    """An index to the rows of its example."""

    def __init__(self, cut: Callable[[int], Sequence[Batch]]):
        self._cut = cut

    def flat_map(self, element: int) -> Sequence[Batch]:
        return self._cut(element)


def window_batches(
    source: Source, cut: Callable[[dict[str, Any]], Sequence[Batch]], *, batch_size: int, seed: int | None
) -> Iterator[Batch]:
    """The rows that `cut` makes of examples: endless, examples newly shuffled each epoch by `seed`, then rows among
    their neighbours; or one ordered pass if None, whose last batch is filled with rows of zeros.

    Yields what `cut` makes, stacked, and int32 "example" [B], the example's index. The endless one knows its position.
    """

    def cut_numbered(index: int) -> list[Batch]:
        return [{**row, "example": np.asarray(index, np.int32)} for row in cut(source[int(index)])]

    if seed is None:
        rows = (row for index in range(len(source)) for row in cut_numbered(index))
        return deal_rows(rows, batch_size, 0, 1)
    indices = grain.MapDataset.range(len(source)).seed(seed).shuffle().repeat().to_iter_dataset(OWN_THREAD)
    rows = grain.experimental.FlatMapIterDataset(indices, _Cut(cut_numbered))
    rows = grain.experimental.WindowShuffleIterDataset(rows, window_size=SHUFFLED_ROWS, seed=seed)
    return iter(rows.batch(batch_size))
