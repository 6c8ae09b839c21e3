"""Examples that become several rows each, such as questions about texts longer than a row."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import grain
import numpy as np

from zoo.data.batches import deal_rows
from zoo.data.sources import Source
from zoo.data.streams import Batch, Reading, Rows, Stream

SHUFFLED_ROWS = 1024
"""Rows of training that are shuffled among one another: neighbours would otherwise be of one example."""


class _Unpack(grain.experimental.FlatMapTransform):
    """The rows of an example, one by one."""

    def flat_map(self, element: Sequence[Batch]) -> Sequence[Batch]:
        return element


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
        return deal_rows(rows, batch_size)
    examples = grain.MapDataset.range(len(source)).seed(seed).shuffle().repeat().map(cut_numbered)

    def shuffle_rows(reading: Reading) -> grain.DatasetIterator:
        rows = grain.experimental.FlatMapIterDataset(examples.to_iter_dataset(reading.options), _Unpack())
        rows = grain.experimental.WindowShuffleIterDataset(rows, window_size=SHUFFLED_ROWS, seed=seed)
        return Rows(iter(rows.batch(batch_size)), reading)

    return Stream(shuffle_rows)
