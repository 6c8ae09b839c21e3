"""Words into numbers on the command line: `python -m zoo.static --help`.

What a user can mend ends in one line and exit code 1.
"""

import time
from collections.abc import Sequence
from pathlib import Path

import tyro

from zoo.data import DataConfig, open_dataset, read_texts
from zoo.static.counts import Weighting, count_words
from zoo.static.files import read_vectors, vector_format, write_vectors
from zoo.static.similarity import read_pairs, score_pairs
from zoo.static.skipgram import Progress, SkipGramConfig, train_skipgram

_FOUND = 10
"""How many answers are shown."""


def train(
    output: tyro.conf.Positional[Path],
    /,
    data: tuple[str, ...] = ("zoo_stdlib", "zoo_docstrings"),
    skipgram: SkipGramConfig = SkipGramConfig(),  # noqa: B008  (frozen)
) -> None:
    """Train skip-gram vectors and write them.

    Args:
        output: a file: .txt (GloVe), .vec (word2vec's text), .bin (word2vec's binary) or .npy.
        data: names of embedded or TFDS sets, or your own .txt and .jsonl files and folders.
        skipgram: how.
    """
    vector_format(output)  # raises before there is any work to lose
    texts, start = _read_data(data), time.perf_counter()

    def report(progress: Progress) -> None:
        print(
            f"epoch {progress.epoch} of {skipgram.epochs}: loss {progress.loss:.4f} nats a pair, "
            f"{progress.num_pairs:,} pairs, {time.perf_counter() - start:.0f} s",
            flush=True,
        )

    vectors = train_skipgram(texts, skipgram, report)
    print(f"{write_vectors(vectors, output)}: {len(vectors):,} words, {vectors.matrix.shape[1]} numbers each")


def nearest(vectors: tyro.conf.Positional[Path], words: tyro.conf.Positional[tuple[str, ...]], /) -> None:
    """The nearest neighbours of each word, with cosines.

    Args:
        vectors: a file of vectors.
        words: at least one.
    """
    known = read_vectors(vectors)
    for word in words:
        print(f"{word}: {_listed(known.nearest(word, _FOUND))}")


def analogy(
    vectors: tyro.conf.Positional[Path],
    a: tyro.conf.Positional[str],
    b: tyro.conf.Positional[str],
    c: tyro.conf.Positional[str],
    /,
) -> None:
    """What C is to, as A is to B, by 3CosAdd.

    Args:
        vectors: a file of vectors.
        a: as "man".
        b: as "king".
        c: as "woman".
    """
    print(f"{a} is to {b} as {c} is to: {_listed(read_vectors(vectors).analogy(a, b, c, _FOUND))}")


def similarity(vectors: tyro.conf.Positional[Path], pairs: tyro.conf.Positional[tuple[Path, ...]], /) -> None:
    """Spearman's correlation with judged pairs of words.

    Args:
        vectors: a file of vectors.
        pairs: files as WordSim-353 and SimLex-999 are: two words and a score a row.
    """
    known = read_vectors(vectors)
    for path in pairs:
        scores = score_pairs(known, read_pairs(path))
        print(f"{path.name}: {scores.correlation:.4f} Spearman, {scores.num_scored} of {scores.num_pairs} pairs")
        if scores.unknown:
            print(f"  without a vector: {', '.join(scores.unknown)}")


def convert(source: tyro.conf.Positional[Path], output: tyro.conf.Positional[Path], /) -> None:
    """Write vectors in another format.

    Args:
        source: a file of vectors.
        output: a file: .txt (GloVe), .vec (word2vec's text), .bin (word2vec's binary) or .npy.
    """
    vector_format(output)
    print(write_vectors(read_vectors(source), output))


def texts(
    query: tyro.conf.Positional[str],
    /,
    data: tuple[str, ...] = ("zoo_docstrings",),
    weighting: Weighting = "tfidf",
) -> None:
    """The texts that share most words with a query; needs scikit-learn.

    Args:
        query: what to look for.
        data: as for `train`.
        weighting: TF-IDF, or the plain counts of the bag of words.
    """
    known = _read_data(data)
    cosines = count_words(known, weighting=weighting).similarities([query])[0]
    for place in cosines.argsort()[::-1][:_FOUND]:
        print(f"{cosines[place]:.3f}  {' '.join(known[place].split())[:100]}")


def _read_data(names: Sequence[str]) -> list[str]:
    """All texts of sets and files, of every split."""
    found: list[str] = []
    for name in names:
        config = DataConfig(path=name) if Path(name).exists() else DataConfig(name=name)
        dataset = open_dataset(config)
        for split in dataset.splits:
            found += read_texts(dataset.split(split), config.text_key)
    return found


def _listed(found: Sequence[tuple[str, float]]) -> str:
    return ", ".join(f"{word} {score:.2f}" for word, score in found)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command."""
    commands = {command.__name__: command for command in (train, nearest, analogy, similarity, convert, texts)}
    try:
        tyro.extras.subcommand_cli_from_dict(commands, args=arguments, prog="python -m zoo.static")
    except (ValueError, OSError) as error:
        raise SystemExit(f"error: {error}") from None


if __name__ == "__main__":
    main()
