"""Every endless stream of batches is the same, row for row, by any number of processes and threads, and goes on so."""

import json

import numpy as np
import pytest
from tiers import tiered

from zoo.data import packed_batches, pair_batches
from zoo.data.batches import label_batches, row_batches
from zoo.data.windows import window_batches

B = 8
NUM_EXAMPLES = 43  # no multiple of anything: batches cross the ends of epochs
STEPS = 40


def packed(tokenizer):
    documents = [{"text": f"document {i}: " + "and so on " * (i % 9)} for i in range(NUM_EXAMPLES)]
    # A window is 5 batches, so that a position lies within one, at its end and at its beginning.
    return packed_batches(documents, tokenizer, sequence_length=12, batch_size=B, seed=3, shuffled_batches=5)


def pairs(tokenizer, *, packed):
    source = [{"source": f"number {i}", "target": f"{i}" * (1 + i % 3)} for i in range(NUM_EXAMPLES)]
    return pair_batches(source, tokenizer, source_length=24, target_length=12, batch_size=B, seed=3, packed=packed)


def encode(example):
    return {"input_ids": np.arange(4, dtype=np.int32) * example["number"]}


def rows(_tokenizer):
    return row_batches([{"number": i} for i in range(NUM_EXAMPLES)], encode, batch_size=B, seed=3)


def labels(_tokenizer):
    source = [{"number": i, "label": i % 3} for i in range(NUM_EXAMPLES)]
    return label_batches(source, encode, classes=("a", "b", "c"), batch_size=B, seed=3)


def windows(_tokenizer):
    def cut(example):
        return [{"tokens": np.array([example["number"], part], np.int32)} for part in range(example["number"] % 4)]

    return window_batches([{"number": i} for i in range(NUM_EXAMPLES)], cut, batch_size=B, seed=3)


STREAMS = {
    "packed": packed,
    "pairs": lambda tokenizer: pairs(tokenizer, packed=False),
    "packed pairs": lambda tokenizer: pairs(tokenizer, packed=True),
    "rows": rows,
    "labels": labels,
    "windows": windows,
}


def assert_equal(first, second):
    assert first.keys() == second.keys()
    for name in first:
        np.testing.assert_array_equal(first[name], second[name])


def together(parts):
    """The whole batch of which each of several processes reads a part."""
    read = [next(part) for part in parts]
    return {name: np.concatenate([batch[name] for batch in read]) for name in read[0]}


@pytest.mark.parametrize("kind", STREAMS)
@pytest.mark.parametrize(("count", "workers"), tiered([(1, 3), (2, 0), (4, 2), (8, 0)], [(4, 2)]))
def test_batches_do_not_depend_on_who_reads_them(kind, count, workers, tokenizer):
    alone, parts = STREAMS[kind](tokenizer), [STREAMS[kind](tokenizer).part(i, count, workers) for i in range(count)]
    given = []
    for _ in range(STEPS):
        given.append(next(alone))
        assert_equal(together(parts), given[-1])
        states = {json.dumps(stream.get_state()) for stream in (alone, *parts)}
        assert len(states) == 1, "the position in a checkpoint is that of whoever wrote it"
    assert not all(np.array_equal(x, y) for x, y in zip(given[0].values(), given[1].values(), strict=True))


@pytest.mark.parametrize("kind", tiered(STREAMS, lambda kind: kind != "windows"))
def test_a_run_goes_on_with_other_processes_and_threads(kind, tokenizer):
    alone = STREAMS[kind](tokenizer)
    whole = [next(alone) for _ in range(STEPS)]
    state, step = json.dumps(STREAMS[kind](tokenizer).get_state()), 0
    # One process, then two with threads, four, one again with threads: each begins where the last stopped.
    for steps, count, workers in [(3, 1, 0), (4, 2, 2), (5, 4, 0), (8, 1, 3), (7, 8, 1), (13, 2, 0)]:
        parts = [STREAMS[kind](tokenizer).part(index, count, workers) for index in range(count)]
        for part in parts:
            part.set_state(json.loads(state))
        for _ in range(steps):
            assert_equal(together(parts), whole[step])
            step += 1
        state = json.dumps(parts[-1].get_state())
    assert step == STEPS


def test_rows_are_read_by_their_own_process_alone():
    """Where rows are known by their number, no process reads another's."""
    read = []

    def count(example):
        read.append(example["number"])
        return encode(example)

    source = [{"number": i} for i in range(NUM_EXAMPLES)]
    part = row_batches(source, count, batch_size=B, seed=3).part(1, 4)
    for _ in range(5):
        next(part)
    assert len(read) == 5 * B // 4


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ((2, 2), "index=2 must lie in 0 to 1, one a part"),
        ((0, 3), "a batch of 8 rows cannot be read in 3 equal parts: make it a multiple of that"),
        ((0, 1, -1), "workers=-1 must be at least 0"),
    ],
)
@pytest.mark.parametrize("kind", ["packed", "rows"])
def test_impossible_parts_are_named(kind, part, message, tokenizer):
    with pytest.raises(ValueError, match=message):
        next(STREAMS[kind](tokenizer).part(*part))
