"""Rows hold the documents' own tokens, are dealt to processes once, and resume exactly."""

import json
import random
import threading
from typing import ClassVar

import numpy as np
import pytest

from zoo.data import packed_batches, pair_batches, scored_windows
from zoo.data.batches import SHUFFLED_BATCHES

T, B = 16, 4


@pytest.fixture(scope="module")
def documents():
    words = ["alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta"]
    draw = random.Random(0)
    texts = [f"doc{i}: " + " ".join(draw.choices(words, k=draw.randrange(0, 60))) for i in range(37)]
    return [{"text": text} for text in [*texts, "", "x"]]


@pytest.fixture(scope="module")
def pairs():
    return [{"source": f"number {i}", "target": f"{i}" * (1 + i % 3)} for i in range(53)]


def packed(documents, tokenizer, **options):
    options = {"sequence_length": T, "batch_size": B, "seed": 7, "shuffled_batches": SHUFFLED_BATCHES, **options}
    return packed_batches(documents, tokenizer, **options)


def whole(document, tokenizer):
    return [tokenizer.bos_id, *tokenizer.encode(document["text"]), tokenizer.eos_id]


def segments(row):
    """The places of each segment of a row, without padding."""
    return [np.flatnonzero(row["segment_ids"] == i) for i in range(1, row["segment_ids"].max() + 1)]


def rows_of(batches):
    return [{name: value[i] for name, value in batch.items()} for batch in batches for i in range(B)]


def equal(first, second):
    return first.keys() == second.keys() and all(np.array_equal(first[k], second[k]) for k in first)


def read_stream(num_tokens, documents, tokenizer, **options):
    """The tokens in the order in which they are packed: a window of one row has nothing to shuffle."""
    batches = packed(documents, tokenizer, batch_size=1, shuffled_batches=1, **options)
    rows = [next(batches)["tokens"][0] for _ in range(-(-num_tokens // (T + 1)))]
    return np.concatenate(rows)


def split_documents(stream, tokenizer):
    """The whole documents of a stream, and not the last one, which may be cut."""
    return [piece.tolist() for piece in np.split(stream, np.flatnonzero(stream == tokenizer.eos_id) + 1)[:-1]]


class TestPacked:
    def test_every_epoch_holds_every_document_once_and_whole(self, documents, tokenizer):
        wanted = [whole(document, tokenizer) for document in documents]
        num_tokens = sum(map(len, wanted))
        found = split_documents(read_stream(3 * num_tokens + 1, documents, tokenizer), tokenizer)
        epochs = [found[i * len(wanted) : (i + 1) * len(wanted)] for i in range(3)]
        assert [sorted(epoch) for epoch in epochs] == [sorted(wanted)] * 3
        assert wanted not in epochs
        assert epochs[0] != epochs[1] != epochs[2] != epochs[0]

    def test_a_window_deals_the_rows_of_the_stream_in_another_order(self, documents, tokenizer):
        num_rows = SHUFFLED_BATCHES * B
        stream = read_stream(2 * num_rows * (T + 1), documents, tokenizer).reshape(2, num_rows, T + 1)
        batches = packed(documents, tokenizer)
        orders = []
        for window in stream:
            rows = np.concatenate([next(batches)["tokens"] for _ in range(SHUFFLED_BATCHES)])
            assert sorted(map(tuple, rows)) == sorted(map(tuple, window))
            assert not np.array_equal(rows, window)
            orders.append([(rows == row).all(1).argmax() for row in window])
        assert orders[0] != orders[1]

    def test_a_window_is_no_longer_than_an_epoch(self, documents, tokenizer):
        num_batches = -(-sum(len(whole(document, tokenizer)) for document in documents) // (B * (T + 1)))
        stream = read_stream(num_batches * B * (T + 1), documents, tokenizer).reshape(-1, T + 1)
        batches = packed(documents, tokenizer, shuffled_batches=1000 * num_batches)
        rows = np.concatenate([next(batches)["tokens"] for _ in range(num_batches)])
        assert sorted(map(tuple, rows)) == sorted(map(tuple, stream))
        assert batches.get_state()["window_index"] == 0
        next(batches)
        assert batches.get_state()["window_index"] == 1

    def test_shapes_segments_and_positions(self, documents, tokenizer):
        batches = packed(documents, tokenizer)
        for batch in (next(batches) for _ in range(30)):
            assert {name: (value.shape, value.dtype) for name, value in batch.items()} == dict.fromkeys(
                ("tokens", "segment_ids", "positions"), ((B, T + 1), np.int32)
            )
            for row in rows_of([batch]):
                assert row["segment_ids"][0] == 1
                assert set(np.diff(row["segment_ids"])) <= {0, 1}
                for index, places in enumerate(segments(row)):
                    assert row["positions"][places].tolist() == list(range(len(places)))
                    # Only what began in an earlier row starts without bos.
                    assert row["tokens"][places[0]] == tokenizer.bos_id or index == 0
                    assert tokenizer.bos_id not in row["tokens"][places[1:]]
                    assert tokenizer.eos_id not in row["tokens"][places[:-1]]

    def test_a_seed_repeats_and_another_differs(self, documents, tokenizer):
        its = packed(documents, tokenizer), packed(documents, tokenizer), packed(documents, tokenizer, seed=8)
        first, again, other = ([next(it) for _ in range(SHUFFLED_BATCHES + 2)] for it in its)
        assert all(map(equal, first, again))
        assert not any(map(equal, first, other))

    def test_resumes_exactly_from_any_step(self, documents, tokenizer):
        steps = 4 * SHUFFLED_BATCHES
        batches, states, given = packed(documents, tokenizer), [], []
        for _ in range(steps):
            states.append(json.dumps(batches.get_state()))
            given.append(next(batches))
        corners = [0, 1, SHUFFLED_BATCHES - 1, SHUFFLED_BATCHES, SHUFFLED_BATCHES + 1]
        for step in [*corners, *random.Random(1).sample(range(steps), 12)]:
            resumed = packed(documents, tokenizer)
            resumed.set_state(json.loads(states[step]))
            assert json.dumps(resumed.get_state()) == states[step]
            length = min(SHUFFLED_BATCHES + 3, steps - step)
            assert all(equal(next(resumed), batch) for batch in given[step : step + length]), step

    def test_an_iterator_in_use_can_be_rewound(self, documents, tokenizer):
        batches = packed(documents, tokenizer)
        for _ in range(SHUFFLED_BATCHES + 5):
            next(batches)
        state = batches.get_state()
        ahead = [next(batches) for _ in range(SHUFFLED_BATCHES)]
        batches.set_state(state)
        assert all(equal(next(batches), batch) for batch in ahead)

    def test_a_background_thread_may_drive_it(self, documents, tokenizer):
        batches, given = packed(documents, tokenizer), []
        expected = [next(batches) for _ in range(10)]
        batches = packed(documents, tokenizer)
        thread = threading.Thread(target=lambda: given.extend(next(batches) for _ in range(10)))
        thread.start()
        thread.join()
        assert len(given) == 10
        assert all(map(equal, given, expected))

    def test_what_is_remembered_changes_nothing(self, monkeypatch, documents, tokenizer):
        expected = [b for b, _ in zip(packed(documents, tokenizer), range(100), strict=False)]
        monkeypatch.setattr("zoo.data.batches.REMEMBERED_TOKENS", 50)
        assert all(map(equal, packed(documents, tokenizer), expected))


class Numbers:
    """A tokenizer of texts such as "17 18 19"."""

    bos_id, eos_id = 1, 2

    def encode(self, text):
        return [int(word) for word in text.split()]


class TestScored:
    @pytest.mark.parametrize("stride", [None, 1, 5, T - 1, T])
    def test_every_token_is_a_target_once_in_its_own_context(self, stride):
        lengths = [0, 1, T - 2, T - 1, T, T + 1, 3 * T - 1, 5 * T + 3, 2, 100]
        ids = iter(range(10, 1000))
        documents = [{"text": " ".join(str(next(ids)) for _ in range(length))} for length in lengths]
        batches = scored_windows(documents, Numbers(), sequence_length=T, batch_size=B, stride=stride)
        # No id occurs twice, so a target is known by itself and the token before it.
        wanted = {}
        for document in documents:
            tokens = [1, *map(int, document["text"].split()), 2]
            wanted.update({tuple(tokens[i - 1 : i + 1]): tokens[: i + 1] for i in range(1, len(tokens))})
        assert len(wanted) == sum(lengths) + len(lengths)
        for row in rows_of(batches):
            weights = np.append(0.0, row["weights"])
            assert set(weights) <= {0.0, 1.0}
            assert not weights[row["segment_ids"] == 0].any()
            for places in segments(row):
                assert row["positions"][places].tolist() == list(range(len(places)))
                window = row["tokens"][places].tolist()
                for i in np.flatnonzero(weights[places]):
                    before = wanted.pop((window[i - 1], window[i]))  # missing if it is scored a second time
                    assert window[: i + 1] == before[-(i + 1) :]
                    assert i >= min(len(before) - 1, T + 1 - (stride or T))
        assert not wanted

    def test_batches_are_full_and_blank_behind(self, documents, tokenizer):
        batches = list(scored_windows(documents, tokenizer, sequence_length=T, batch_size=B))
        for batch in batches:
            assert batch["weights"].shape == (B, T) and batch["weights"].dtype == np.float32
            for name in ("tokens", "segment_ids", "positions"):
                assert batch[name].shape == (B, T + 1) and batch[name].dtype == np.int32
        blank = [not row["segment_ids"].any() for row in rows_of(batches)]
        assert blank == sorted(blank) and sum(blank) < B
        assert not any(row["tokens"].any() or row["weights"].any() for row in rows_of(batches[-1:])[B - sum(blank) :])

    def test_short_documents_share_rows(self, tokenizer):
        documents = [{"text": f"{i % 10}"} for i in range(50)]  # 3 tokens each, so 5 fit into 17
        batches = list(scored_windows(documents, tokenizer, sequence_length=T, batch_size=B))
        rows = [row for row in rows_of(batches) if row["segment_ids"].any()]
        assert [row["segment_ids"].max() for row in rows] == [5] * 10

    def test_the_pass_repeats(self, documents, tokenizer):
        passes = [list(scored_windows(documents, tokenizer, sequence_length=T, batch_size=B)) for _ in range(2)]
        assert all(map(equal, *passes))


def unpack(row):
    """The pairs of a packed row, which start anew at position 0."""
    for segment in range(1, row["inputs_segment_ids"].max() + 1):
        pair = []
        for name in ("inputs", "targets"):
            mine = row[f"{name}_segment_ids"] == segment
            assert row[f"{name}_positions"][mine].tolist() == [*range(mine.sum())]
            pair.append(row[name][mine])
        yield tuple(pair)


class TestPairs:
    options: ClassVar = {"source_length": 12, "target_length": 8, "batch_size": B}

    def test_one_pass_gives_every_pair_once_in_order(self, pairs, tokenizer):
        batches = list(pair_batches(pairs, tokenizer, seed=None, **self.options))
        assert len(batches) == 14  # 53 pairs by 4
        rows = rows_of(batches)
        for pair, row in zip(pairs, rows[:53], strict=True):
            source = [*tokenizer.encode(pair["source"]), tokenizer.eos_id]
            target = [tokenizer.bos_id, *tokenizer.encode(pair["target"]), tokenizer.eos_id]
            for name, tokens, length in (("inputs", source, 12), ("targets", target, 9)):
                padding = [0] * (length - len(tokens))
                assert row[name].tolist() == tokens + padding
                assert row[f"{name}_segment_ids"].tolist() == [1] * len(tokens) + padding
                assert row[f"{name}_positions"].tolist() == [*range(len(tokens)), *padding]
        assert not any(value.any() for row in rows[53:] for value in row.values())

    def test_shapes(self, pairs, tokenizer):
        for seed in (None, 3):
            batch = next(iter(pair_batches(pairs, tokenizer, seed=seed, **self.options)))
            assert {name: (value.shape, value.dtype) for name, value in batch.items()} == {
                f"{name}{ending}": ((B, length), np.int32)
                for name, length in (("inputs", 12), ("targets", 9))
                for ending in ("", "_segment_ids", "_positions")
            }

    def test_epochs_are_shuffled_and_complete(self, pairs, tokenizer):
        batches = pair_batches(pairs, tokenizer, seed=3, **self.options)
        found = [pair for row in rows_of(next(batches) for _ in range(2 * 53 // B + 1)) for pair in unpack(row)]
        targets = {pair["source"]: pair["target"] for pair in pairs}
        assert all(tokenizer.decode(target) == targets[tokenizer.decode(source)] for source, target in found)
        texts = [tokenizer.decode(source) for source, _ in found]
        first, second = texts[:53], texts[53:106]
        assert sorted(first) == sorted(second) == sorted(pair["source"] for pair in pairs)
        assert first != second != [pair["source"] for pair in pairs]

    def test_resumes_exactly_from_any_step(self, pairs, tokenizer):
        batches, states, given = pair_batches(pairs, tokenizer, seed=3, **self.options), [], []
        for _ in range(60):
            states.append(json.dumps(batches.get_state()))
            given.append(next(batches))
        for step in [0, 1, 13, 14, *random.Random(2).sample(range(60), 10)]:
            resumed = pair_batches(pairs, tokenizer, seed=3, **self.options)
            resumed.set_state(json.loads(states[step]))
            assert all(equal(next(resumed), batch) for batch in given[step:]), step

    def test_what_is_too_long_loses_its_end_but_keeps_eos(self, tokenizer):
        pairs = [{"source": "0123456789" * 3, "target": "9876543210" * 3}]
        (batch,) = pair_batches(pairs, tokenizer, seed=None, **{**self.options, "batch_size": 1})
        inputs, targets = batch["inputs"][0], batch["targets"][0]
        assert inputs.tolist() == [*tokenizer.encode("01234567890"), tokenizer.eos_id]
        assert targets.tolist() == [tokenizer.bos_id, *tokenizer.encode("9876543"), tokenizer.eos_id]
        assert batch["inputs_segment_ids"].all() and batch["targets_segment_ids"].all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sequence_length": 0}, "sequence_length=0 must be at least 1"),
        ({"batch_size": -1}, "batch_size=-1 must be at least 1"),
    ],
)
def test_impossible_arguments_are_named(documents, tokenizer, options, message):
    with pytest.raises(ValueError, match=message):
        packed(documents, tokenizer, **options)


def test_a_stride_over_the_row_and_a_wrong_field_are_named(documents, tokenizer):
    options = {"sequence_length": T, "batch_size": B}
    with pytest.raises(ValueError, match="stride=17 must lie in 1 to sequence_length=16"):
        scored_windows(documents, tokenizer, stride=17, **options)
    for make in (packed_batches, scored_windows):
        seed = {"seed": 0} if make is packed_batches else {}
        with pytest.raises(ValueError, match=r"no text field 'body'; they have text: set data\.text_key"):
            next(make(documents, tokenizer, text_key="body", **seed, **options))
