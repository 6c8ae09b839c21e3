"""The two problems of lineage.py: pairs of texts joined to rows of growing length, and recall over growing distance.

Each is an ordinary `Dataset` whose further splits are tests, one a length, so that the tasks and batches of zoo read
it. A row is a function of the seed and the pairs alone.
"""

import random
import string
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from zoo.data import Dataset, TextTokenizer, TokenizerConfig, fit_tokenizer
from zoo.data.sources import Source
from zoo.tasks.sequence_to_sequence import SequenceToSequence, SequenceToSequenceConfig
from zoo.tasks.text_scores import TextScore

Pair = dict[str, str]

KEYS, VALUES, QUESTION = string.ascii_lowercase, string.digits, "?"
VALIDATION, MULTIPLE = "validation", 4


@dataclass(frozen=True, kw_only=True)
class Problem:
    """What systems learn, and how it is tested."""

    name: str
    title: str
    dataset: Dataset
    """Splits train and validation of the lengths that are trained on, and those of `tests`."""
    tokenizer: TextTokenizer
    tests: tuple[int, ...]
    """Numbers of pairs, or distances, that name a split each."""
    trained: int
    """The greatest of them that occurs in train."""
    axis: str
    """What they count."""
    score: TextScore

    def task(self, splits: Iterable[str], batch_size: int, num_rows: int | None = None) -> SequenceToSequence:
        """The task of writing targets, a pair a row, with room for all of these splits.

        Args:
            splits: what is read.
            batch_size: rows a batch.
            num_rows: of train, where it is less than all.
        """
        rows = [row for split in splits for row in self.rows(split)]
        lengths = {}
        for key in ("source", "target"):
            longest = max(len(self.tokenizer.sequence(row[key])) for row in rows)
            lengths[f"{key}_length"] = -(-longest // MULTIPLE) * MULTIPLE
        config = SequenceToSequenceConfig(**lengths, batch_size=batch_size, packed=False, scores=(self.score,))
        dataset = Dataset(name=self.name, splits={**self.dataset.splits, "train": self.rows("train")[:num_rows]})
        return SequenceToSequence(config, dataset, self.tokenizer, 0, "source", "target")

    def rows(self, split: str) -> list[Pair]:
        """All of a split."""
        source = self.dataset.split(split)
        return [source[index] for index in range(len(source))]

    def texts(self, split: str) -> tuple[list[str], list[str]]:
        """Sources and targets of a split."""
        rows = self.rows(split)
        return [row["source"] for row in rows], [row["target"] for row in rows]

    def source_tokens(self, test: int) -> float:
        """Mean length of a test's sources, the end token included."""
        lengths = [len(self.tokenizer.sequence(row["source"])) for row in self.rows(str(test))]
        return sum(lengths) / len(lengths)


def make_translation(
    dataset: Dataset,
    keys: tuple[str, str],
    *,
    score: TextScore,
    vocab_size: int,
    trained: int,
    tests: tuple[int, ...],
    num_rows: int,
    num_test_rows: int,
    seed: int = 0,
) -> Problem:
    """Rows of 1 to `trained` pairs to learn from; tests of as many as `tests` says, from held-out pairs alone."""
    train, held_out = ([_pair(part[i], keys) for i in range(len(part))] for part in map(dataset.split, _SPLITS))
    splits: dict[str, Source] = {
        "train": join_pairs(train, range(1, trained + 1), num_rows, f"train {seed}"),
        VALIDATION: join_pairs(held_out, range(1, trained + 1), num_test_rows, f"validation {seed}"),
    }
    splits |= {str(test): join_pairs(held_out, [test], num_test_rows, f"{test} {seed}") for test in tests}
    tokenizer = fit_tokenizer(
        train, TokenizerConfig(vocab_size=vocab_size, training_bytes=500_000), keys=("source", "target")
    )
    return Problem(
        name=dataset.name,
        title=f"{dataset.name}: several in a row, to be translated one after the other",
        dataset=Dataset(name=dataset.name, splits=splits),
        tokenizer=tokenizer,
        tests=tests,
        trained=trained,
        axis="pairs in a row",
        score=score,
    )


_SPLITS = ("train", VALIDATION)


def _pair(example: dict, keys: tuple[str, str]) -> Pair:
    return {"source": example[keys[0]], "target": example[keys[1]]}


def join_pairs(pairs: Sequence[Pair], counts: Iterable[int], num_rows: int, seed: str) -> list[Pair]:
    """`num_rows` rows of `counts` pairs in turn, drawn by `seed`: sources joined by "; ", targets by a space."""
    drawn, counts, rows = random.Random(seed), list(counts), []
    for index in range(num_rows):
        chosen = drawn.choices(pairs, k=counts[index % len(counts)])
        rows.append(
            {
                "source": "; ".join(pair["source"] for pair in chosen),
                "target": " ".join(pair["target"] for pair in chosen),
            }
        )
    return rows


def make_recall(*, trained: int, tests: tuple[int, ...], num_rows: int, num_test_rows: int, seed: int = 0) -> Problem:
    """Rows in which at most `trained` items stand between the one that is asked for and the question."""
    short = range(trained + 1)
    splits: dict[str, Source] = {
        "train": recall_rows(short, num_rows, f"recall train {seed}"),
        VALIDATION: recall_rows(short, num_test_rows, f"recall validation {seed}"),
    }
    splits |= {str(test): recall_rows([test], num_test_rows, f"recall {test} {seed}") for test in tests}
    return Problem(
        name="recall",
        title="recall: the digit that stood behind a letter",
        dataset=Dataset(name="recall", splits=splits),
        tokenizer=Characters(characters=KEYS + VALUES + QUESTION),
        tests=tests,
        trained=trained,
        axis="items between the wanted one and the question",
        score="exact_match",
    )


def recall_rows(distances: Iterable[int], num_rows: int, seed: str) -> list[Pair]:
    """Letters with a digit each, and a question: "k3b7q1?b" wants "b7", with one item between: distance 1.

    One to three items come before the wanted one. No letter occurs twice, so that distances go to 24.
    """
    drawn, distances, rows = random.Random(seed), list(distances), []
    for index in range(num_rows):
        distance = distances[index % len(distances)]
        before = drawn.randint(1, min(3, len(KEYS) - distance - 1))
        keys = drawn.sample(KEYS, before + 1 + distance)
        values = drawn.choices(VALUES, k=len(keys))
        items = "".join(key + value for key, value in zip(keys, values, strict=True))
        rows.append({"source": f"{items}{QUESTION}{keys[before]}", "target": keys[before] + values[before]})
    return rows


@dataclass(frozen=True, kw_only=True)
class Characters:
    """A tokenizer of known characters, one a token."""

    characters: str
    pad_id: int = 0
    eos_id: int = 1
    start_id: int = 2

    @property
    def vocab_size(self) -> int:
        """Ids are below it."""
        return len(self.characters) + 3

    def encode(self, text: str) -> list[int]:
        """Token ids. ValueError for other characters."""
        return [self.characters.index(character) + 3 for character in text]

    def sequence(self, text: str) -> list[int]:
        """Token ids, and the end token."""
        return [*self.encode(text), self.eos_id]

    def decode(self, ids: Iterable[int]) -> str:
        """The text of the ids that stand for one."""
        return "".join(self.characters[token - 3] for token in ids if token >= 3)
