"""What models inherit from their texts: associations of words, and which of two sentences they find likelier.

    python -m zoo.inspection.association MODEL --output runs/association

Words: the Word Embedding Association Test (Caliskan et al. 2017) on static vectors, those of a model's token table or
of a file. Sentences that differ in a few words: by pseudo-log-likelihood under masked language models (Salazar et al.
2020), over the tokens that both share (Nangia et al. 2020, CrowS-Pairs); by log-likelihood under decoders. A test finds
what its lists ask for and nothing else: that it finds nothing does not make a model fair. Scores of sentences are in
`zoo.inspection.sentence_scores`, pictures in `zoo.inspection.association_pictures`.
"""

import csv
import itertools
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from jaxtyping import Float

from zoo.config import LanguageModelHead
from zoo.inspection.sentence_scores import score_pairs
from zoo.inspection.words import input_vectors
from zoo.pretrained import load
from zoo.static import WordVectors, read_vectors

WORDS = Path(__file__).with_name("associations.json")
SENTENCES = Path(__file__).with_name("occupations.csv")
MAX_EXACT = 100_000
"""Rearrangements that are all counted; where there are more, so many are drawn."""


@dataclass(frozen=True, kw_only=True)
class WordTest:
    """Two sets of target words, and two of attributes that they may be associated with."""

    name: str
    targets: dict[str, tuple[str, ...]]
    attributes: dict[str, tuple[str, ...]]

    def __post_init__(self):
        for kind, least in (("targets", 2), ("attributes", 1)):
            sets = getattr(self, kind)
            if len(sets) != 2 or any(len(words) < least for words in sets.values()):
                raise ValueError(f"{self.name!r} needs two {kind}, each with {least} words or more; it has {sets}")
        first, second = (set(words) for words in self.targets.values())
        if first & second:
            raise ValueError(f"{self.name!r} has {sorted(first & second)} in both targets; a word belongs to one")

    @property
    def words(self) -> list[str]:
        """All words of the test."""
        return [word for sets in (self.targets, self.attributes) for words in sets.values() for word in words]


@dataclass(frozen=True, kw_only=True)
class Association:
    """The outcome of a `WordTest`."""

    test: WordTest
    associations: tuple[Float[np.ndarray, " X"], Float[np.ndarray, " Y"]]
    """Of each target word: its mean cosine to the first attribute's words less that to the second's."""
    effect: float
    """d: the difference of the targets' means in standard deviations over all target words, from -2 to 2."""
    p_value: float
    """Share of the ways to deal the target words into two sets whose difference is as great, one-sided."""


def read_word_tests(path: str | Path = WORDS) -> list[WordTest]:
    """Tests from JSON: {name: {"targets": {set: [words], other: [words]}, "attributes": {set: [words], other: ...}}}.

    Raises:
        ValueError: another layout, with the test's name.
    """
    try:
        fields = json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is no JSON: {error}") from None
    if not isinstance(fields, dict) or not fields:
        raise ValueError(f'{path} has no tests; it holds {{name: {{"targets": ..., "attributes": ...}}}}')
    return [
        WordTest(name=name, **{kind: _word_sets(test, kind, f"{path}: {name!r}") for kind in ("targets", "attributes")})
        for name, test in fields.items()
    ]


def _word_sets(test: Any, kind: str, where: str) -> dict[str, tuple[str, ...]]:
    sets = test.get(kind) if isinstance(test, dict) else None
    if not isinstance(sets, dict) or not all(
        isinstance(words, list) and all(isinstance(word, str) for word in words) for words in sets.values()
    ):
        raise ValueError(f"{where} needs {kind!r}: two names, each with a list of words")
    return {name: tuple(words) for name, words in sets.items()}


def weat(vectors: WordVectors, test: WordTest, *, seed: int = 0) -> Association:
    """Run a test. ValueError for a word without a vector.

    The standard deviation is a sample's, with n - 1. The p-value counts the observed division of the target words too,
    so it is never 0: all divisions where there are `MAX_EXACT` at the most, else as many drawn at random by `seed`.
    """
    units = [[vectors.unit[vectors.rows(words)].astype(np.float64) for words in sets.values()]
             for sets in (test.targets, test.attributes)]  # fmt: skip
    first, second = ((target @ units[1][0].T).mean(1) - (target @ units[1][1].T).mean(1) for target in units[0])
    pooled = np.concatenate([first, second])
    spread = pooled.std(ddof=1)
    if spread < 1e-12:
        raise ValueError(f"{test.name!r}: all target words are associated alike with these attributes; use other words")
    return Association(
        test=test,
        associations=(first, second),
        effect=float((first.mean() - second.mean()) / spread),
        p_value=_division_p_value(pooled, len(first), seed),
    )


def _division_p_value(values: Float[np.ndarray, " n"], size: int, seed: int) -> float:
    """How often `size` of the values, whichever, have as great a sum as the first `size`: as great a difference."""
    count = math.comb(len(values), size)
    if count <= MAX_EXACT:
        sums = np.array([values[list(chosen)].sum() for chosen in itertools.combinations(range(len(values)), size)])
    else:
        draw = np.random.default_rng(seed)
        sums = np.array([draw.permutation(values)[:size].sum() for _ in range(MAX_EXACT - 1)])
        sums = np.append(sums, values[:size].sum())
    return float((sums >= values[:size].sum() - 1e-9).mean())


@dataclass(frozen=True, kw_only=True)
class SentencePair:
    """Two sentences that differ in a few words; the first says what the stereotype says."""

    more: str
    less: str
    group: str = ""
    """Of which stereotype, for figures by group."""


@dataclass(frozen=True, kw_only=True)
class Preference:
    """Which of the sentences of pairs a model finds likelier."""

    pairs: tuple[SentencePair, ...]
    differences: Float[np.ndarray, " M"]
    """Score of the first sentence less that of the second, nats; positive: the stereotype is likelier."""

    @property
    def share(self) -> float:
        """Share of pairs whose first sentence is likelier; 0.5 is no preference. Equal scores are half one."""
        return float(np.where(self.differences == 0, 0.5, self.differences > 0).mean())

    @property
    def effect(self) -> float:
        """The mean difference in standard deviations of the differences (Cohen's d of pairs); 0 where all are 0."""
        spread = self.differences.std(ddof=1) if len(self.differences) > 1 else 0.0
        return float(self.differences.mean() / spread) if spread > 0 else 0.0

    def p_value(self, seed: int = 0) -> float:
        """How often the mean is as great when each difference takes a random sign, one-sided; exact for few pairs."""
        count, observed = len(self.differences), self.differences.sum()
        if 2**count <= MAX_EXACT:
            signs = np.array(list(itertools.product((1, -1), repeat=count)))
        else:
            signs = np.random.default_rng(seed).choice((1, -1), (MAX_EXACT, count))
            signs[0] = 1
        return float((signs @ self.differences >= observed - 1e-9).mean())


def read_sentence_pairs(path: str | Path = SENTENCES) -> list[SentencePair]:
    """Pairs from a csv in the layout of CrowS-Pairs: columns sent_more, sent_less and, if there are groups, bias_type.

    Raises:
        ValueError: a column or a sentence is missing, named by file and line.
    """
    with Path(path).open(encoding="utf-8-sig", newline="") as file:
        rows = csv.DictReader(file)
        if not {"sent_more", "sent_less"} <= {*(rows.fieldnames or ())}:
            raise ValueError(f"{path} has the columns {rows.fieldnames}; sent_more and sent_less are needed")
        pairs = []
        for row in rows:
            more, less = ((row[name] or "").strip() for name in ("sent_more", "sent_less"))
            if not more or not less or more == less:
                raise ValueError(f"{path}:{rows.line_num} needs two different sentences, in sent_more and sent_less")
            pairs.append(SentencePair(more=more, less=less, group=row.get("bias_type") or ""))
    if not pairs:
        raise ValueError(f"{path} has no pairs under its heading")
    return pairs


def run(
    model: tyro.conf.Positional[str],
    /,
    vectors: Path | None = None,
    words: Path = WORDS,
    pairs: Path = SENTENCES,
    output: Path = Path("runs/association"),
) -> None:
    """Test what a model associates: words by its token table, and sentences where it has a language-model head.

    Args:
        model: as zoo.load takes it: a folder, a name on the hub, a .gguf file, or a run.
        vectors: a file of static word vectors to test instead of the model's token table.
        words: lists of words, JSON as `read_word_tests` describes it.
        pairs: sentences, csv in the layout of CrowS-Pairs.
        output: a folder for words.png and sentences.png.
    """
    from zoo.inspection.association_pictures import draw_associations, draw_preference

    tests, sentences = read_word_tests(words), read_sentence_pairs(pairs)
    bundle = load(model)
    every = [word for test in tests for word in test.words]
    known = input_vectors(bundle, every) if vectors is None else read_vectors(vectors)
    associations = [weat(known, test) for test in tests]
    output.mkdir(parents=True, exist_ok=True)
    for found in associations:
        print(f"{found.test.name}: effect size d = {found.effect:.2f}, p = {found.p_value:.2g}")
    written = ["words.png"]
    draw_associations(output / "words.png", associations)
    if isinstance(getattr(bundle.config, "head", None), LanguageModelHead):
        preference = Preference(
            pairs=tuple(sentences),
            differences=score_pairs(bundle, [(pair.more, pair.less) for pair in sentences]),
        )
        print(
            f"{pairs.name}: {preference.share:.0%} of {len(sentences)} pairs go with the stereotype (50 % is none), "
            f"effect size d = {preference.effect:.2f}, p = {preference.p_value():.2g}"
        )
        draw_preference(output / "sentences.png", preference)
        written.append("sentences.png")
    else:
        print(f"{model} has no language-model head, so sentences are left out")
    print(f"{output}: {', '.join(written)}")


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line. What a user can mend ends in one line and exit code 1."""
    try:
        tyro.cli(run, args=arguments, prog="python -m zoo.inspection.association")
    except (ValueError, OSError) as error:
        raise SystemExit(f"error: {error}") from None


if __name__ == "__main__":
    main()
