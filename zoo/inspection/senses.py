"""Static against contextual: whether a word's vector tells in which sense a sentence uses it.

    python -m zoo.inspection.senses sentence-transformers/all-MiniLM-L6-v2 --output runs/senses

The same word in sentences of two senses ("apple" the fruit, the company) is looked at in four ways: its static vector,
which knows no sentence; the self-attention without weights of textbooks, softmax(E Eᵀ) E on the static vectors of a
sentence, through `zoo.attention`; the model's first layer, which is one block with learned queries, keys and values on
the same static vectors; and all of its layers. Pictures are in `zoo.inspection.sense_pictures`.
"""

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import tyro
from jaxtyping import Float, Int

from zoo.bundle import Bundle
from zoo.inspection.capture import inspect
from zoo.inspection.words import find_word, input_vectors, read_sentences, word_states
from zoo.kernels import attention
from zoo.pretrained import load
from zoo.static import WordVectors, read_vectors, split_words

OWN = Path(__file__).with_name("senses.json")
SHOWN = ("money in the bank grows", "the bank of the river", "a piece of cake")
"""Sentences whose weights are shown."""
STATIC_WAYS = ("static", "attention without weights")
"""Ways of making vectors that need no model."""


@dataclass(frozen=True, kw_only=True)
class Sense:
    """One meaning of a word."""

    name: str
    anchors: tuple[str, ...]
    """Words that mean nothing else, to measure by."""
    sentences: tuple[str, ...]
    """Uses of the word in this sense."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Placement:
    """Where one way of making vectors puts a word in sentences of its two senses."""

    word: str
    way: str
    senses: tuple[Sense, Sense]
    vectors: Float[np.ndarray, "M D"]
    """Of the word in each sentence, those of the first sense first."""
    anchors: Float[np.ndarray, "2 D"]

    @property
    def labels(self) -> Int[np.ndarray, " M"]:
        """Which sense each sentence is meant in."""
        return np.repeat([0, 1], [len(sense.sentences) for sense in self.senses])

    @property
    def leanings(self) -> Float[np.ndarray, " M"]:
        """How much nearer each is to the first sense's anchors than to the second's, as a difference of cosines."""
        cosines = _unit(self.vectors) @ _unit(self.anchors).T
        return cosines[:, 0] - cosines[:, 1]

    @property
    def separation(self) -> float:
        """How often a sentence of the first sense leans more to it than one of the second: the area under the ROC.

        1 is perfect; 0.5 is chance, and what equal vectors have.
        """
        first, second = self.leanings[self.labels == 0][:, None], self.leanings[self.labels == 1]
        near = np.abs(first - second) < _EQUAL
        return float(np.where(near, 0.5, first > second).mean())

    @property
    def accuracy(self) -> float:
        """Share of sentences nearer to the mean of their own sense's other sentences than to that of the other sense.

        It needs no anchors. A tie is half right.
        """
        units, labels, right = _unit(self.vectors), self.labels, []
        for row, label in enumerate(labels):
            others = np.arange(len(labels)) != row
            means = _unit(np.stack([units[others & (labels == sense)].mean(0) for sense in (0, 1)]))
            cosines = means @ units[row]
            ahead = cosines[label] - cosines[1 - label]
            right.append(0.5 if abs(ahead) < _EQUAL else float(ahead > 0))
        return float(np.mean(right))

    @property
    def silhouette(self) -> float:
        """Rousseeuw's (1987) by cosine distances: 1 two tight heaps far apart, 0 none; 0 where all distances are."""
        units, labels = _unit(self.vectors), self.labels
        distances = 1 - units @ units.T
        same = labels[:, None] == labels
        own = (distances * same).sum(1) / (same.sum(1) - 1)
        other = (distances * ~same).sum(1) / (~same).sum(1)
        widest = np.maximum(own, other)
        return float(np.where(widest < _EQUAL, 0, (other - own) / np.where(widest == 0, 1, widest)).mean())


_EQUAL = 1e-6
"""Differences of cosines that float32 cannot tell from none."""


def read_senses(path: str | Path = OWN) -> dict[str, tuple[Sense, Sense]]:
    """Words and their senses from JSON: {word: {sense: {"anchors": [words], "sentences": [texts]}, other sense: ...}}.

    Raises:
        ValueError: another layout, a word without two senses of two sentences, or a sentence without its word.
    """
    try:
        fields = json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is no JSON: {error}") from None
    found = {}
    for word, senses in fields.items() if isinstance(fields, dict) else ():
        if not isinstance(senses, dict) or len(senses) != 2 or not all(map(_is_sense, senses.values())):
            raise ValueError(
                f'{path}: {word!r} needs two senses, each {{"anchors": [words], "sentences": [two texts or more]}}'
            )
        first, second = (
            Sense(name=name, anchors=tuple(sense["anchors"]), sentences=tuple(sense["sentences"]))
            for name, sense in senses.items()
        )
        for sentence in (*first.sentences, *second.sentences):
            find_word(sentence, word)
        found[word] = (first, second)
    if not found:
        raise ValueError(f"{path} has no words; it holds {{word: {{sense: ..., other sense: ...}}}}")
    return found


def _is_sense(fields: Any) -> bool:
    lists = [fields.get(name) for name in ("anchors", "sentences")] if isinstance(fields, dict) else [None]
    texts = all(isinstance(texts, list) and all(isinstance(text, str) for text in texts) for texts in lists)
    return texts and len(lists[0]) > 0 and len(lists[1]) > 1


def static_placements(word: str, senses: tuple[Sense, Sense], vectors: WordVectors) -> tuple[Placement, Placement]:
    """The word by its static vector, and by attention without weights over its sentence's.

    Words of a sentence that have no vector are left out. ValueError where the word itself or an anchor has none.
    """
    vectors.rows([word])
    anchors = np.stack([_unit(vectors.matrix[vectors.rows(sense.anchors)]).mean(0) for sense in senses])
    alone, mixed = [], []
    for sentence in (*senses[0].sentences, *senses[1].sentences):
        known = [w for w in split_words(sentence) if w in vectors]
        alone.append(vectors[word])
        mixed.append(weight_free_attention(vectors.matrix[vectors.rows(known)])[0][known.index(word)])
    shared = dict(word=word, senses=senses, anchors=anchors)
    return (
        Placement(way=STATIC_WAYS[0], vectors=np.stack(alone), **shared),
        Placement(way=STATIC_WAYS[1], vectors=np.stack(mixed), **shared),
    )


def contextual_placements(word: str, senses: tuple[Sense, Sense], bundle: Bundle) -> list[Placement]:
    """The word by the model's states after each layer; anchors are each read as a text of their own."""
    sentences = [*senses[0].sentences, *senses[1].sentences]
    anchors = [anchor for sense in senses for anchor in sense.anchors]
    states, _ = word_states(bundle, [*sentences, *anchors], [word] * len(sentences) + anchors)
    placements = []
    for layer in range(1, len(states)):
        inside, alone = np.split(states[layer], [len(sentences)])
        middles = [_unit(part).mean(0) for part in np.split(alone, [len(senses[0].anchors)])]
        placements.append(
            Placement(way=layer_name(layer), word=word, senses=senses, vectors=inside, anchors=np.stack(middles))
        )
    return placements


def layer_name(layer: int) -> str:
    """How a layer is called in tables and pictures, counted from 1."""
    return f"layer {layer}"


def weight_free_attention(
    vectors: Float[np.ndarray, "T D"],
) -> tuple[Float[np.ndarray, "T D"], Float[np.ndarray, "T T"]]:
    """softmax(E Eᵀ) E of all words at once, and the weights softmax(E Eᵀ).

    Queries, keys and values are the vectors themselves, nothing is learned, and logits are not scaled.
    """
    words = jnp.asarray(vectors, jnp.float32)[None, :, None]
    # Columns of the identity, as further values, come out as the weights.
    columns = jnp.eye(words.shape[1])[None, :, None]
    out = attention(words, words, jnp.concatenate([words, columns], -1), scale=1.0)[0, :, 0]
    return np.asarray(out[:, : vectors.shape[1]]), np.asarray(out[:, vectors.shape[1] :])


def learned_attention(bundle: Bundle, text: str) -> tuple[list[str], Float[np.ndarray, "L T T"]]:
    """The tokens of a text, and the model's attention weights in each layer, the mean over its heads."""
    reading = read_sentences(bundle, [text])
    (attended,) = inspect(bundle, **reading.inputs).attentions.values()
    return reading.tokens[0], attended.weights[:, 0].mean(1)


def weight_table(tokens: Sequence[str], weights: Float[np.ndarray, "T T"], num_shown: int = 4) -> list[str]:
    """A line a word: "money = 0.70 money + 0.20 bank + 0.10 grows", the greatest weights first."""
    lines = []
    for token, row in zip(tokens, weights, strict=True):
        greatest = np.argsort(-row, kind="stable")[:num_shown]
        lines.append(f"{token} = " + " + ".join(f"{row[place]:.2f} {tokens[place]}" for place in greatest))
        if num_shown < len(tokens):
            lines[-1] += " + ..."
    return lines


def _unit(vectors: Float[np.ndarray, "... D"]) -> Float[np.ndarray, "... D"]:
    lengths = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return vectors / np.where(lengths == 0, 1, lengths)


@dataclass(frozen=True, kw_only=True)
class WeightMap:
    """The weights of one sentence in one way of attending."""

    way: str
    tokens: tuple[str, ...]
    weights: Float[np.ndarray, "T T"]


def place_words(
    bundle: Bundle, senses: Mapping[str, tuple[Sense, Sense]], vectors: WordVectors | None = None
) -> list[Placement]:
    """All ways of placing all words; `vectors` are the static ones, those of the model's token table where absent."""
    placements = []
    for word, pair in senses.items():
        static = vectors
        if static is None:
            texts = [text for sense in pair for text in sense.sentences]
            spelt = [w for text in texts for w in split_words(text)]
            static = input_vectors(bundle, [word, *spelt, *(anchor for sense in pair for anchor in sense.anchors)])
        placements += [*static_placements(word, pair, static), *contextual_placements(word, pair, bundle)]
    return placements


def weigh_sentences(
    bundle: Bundle, sentences: Sequence[str], vectors: WordVectors | None = None
) -> list[list[WeightMap]]:
    """For each sentence its weights without learning, in the model's first layer, and in its last."""
    found = []
    for sentence in sentences:
        words = split_words(sentence)
        static = input_vectors(bundle, words) if vectors is None else vectors
        known = tuple(word for word in words if word in static)
        if not known:
            raise ValueError(f"no word of {sentence!r} has a vector")
        free = weight_free_attention(static.matrix[static.rows(known)])[1]
        tokens, layers = learned_attention(bundle, sentence)
        found.append(
            [
                WeightMap(way=STATIC_WAYS[1], tokens=known, weights=free),
                WeightMap(way=layer_name(1), tokens=tuple(tokens), weights=layers[0]),
                WeightMap(way=layer_name(len(layers)), tokens=tuple(tokens), weights=layers[-1]),
            ]
        )
    return found


def write_placements(path: Path, placements: Sequence[Placement]) -> None:
    """A csv with every sentence: word, way, its sense, how it leans, its text."""
    with path.open("w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["word", "way", "sense", "leaning to", "leaning", "sentence"])
        for placement in placements:
            sentences = [(sense.name, text) for sense in placement.senses for text in sense.sentences]
            for (name, text), leaning in zip(sentences, placement.leanings, strict=True):
                rows.writerow([placement.word, placement.way, name, placement.senses[0].name, f"{leaning:.6f}", text])


def run(
    model: tyro.conf.Positional[str],
    /,
    vectors: Path | None = None,
    senses: Path = OWN,
    sentences: tuple[str, ...] = SHOWN,
    output: Path = Path("runs/senses"),
) -> None:
    """Show whether a model's vectors of a word tell its senses apart, and whether static ones do.

    Args:
        model: an encoder or decoder, as zoo.load takes it: a folder, a name on the hub, or a run.
        vectors: a file of static word vectors; the rows of the model's own token table where absent.
        senses: words, senses, anchors and sentences, JSON as `read_senses` describes it.
        sentences: whose attention weights to show.
        output: a folder for senses.csv, senses.png, weights.txt and weights.png.
    """
    from zoo.inspection.sense_pictures import draw_placements, draw_weights

    words, static = read_senses(senses), None if vectors is None else read_vectors(vectors)
    bundle = load(model)
    placements = place_words(bundle, words, static)
    maps = weigh_sentences(bundle, sentences, static)
    output.mkdir(parents=True, exist_ok=True)
    write_placements(output / "senses.csv", placements)
    print(f"{'word':12} {'vectors':26} separation  accuracy  silhouette")
    for placement in placements:
        print(
            f"{placement.word:12} {placement.way:26} {placement.separation:10.3f} {placement.accuracy:9.3f} "
            f"{placement.silhouette:11.3f}"
        )
    lines = []
    for sentence, ways in zip(sentences, maps, strict=True):
        for way in ways:
            lines += [f"{sentence}: {way.way}", *(f"  {line}" for line in weight_table(way.tokens, way.weights)), ""]
    (output / "weights.txt").write_text("\n".join(lines), encoding="utf-8")
    print(f"\n{sentences[0]}, by attention without weights:")
    print("\n".join(weight_table(maps[0][0].tokens, maps[0][0].weights)))
    depth = sum(placement.word == placements[-1].word for placement in placements) - len(STATIC_WAYS)
    shown = {*STATIC_WAYS, *map(layer_name, (1, (depth + 1) // 2, depth))}
    draw_placements(output / "senses.png", [placement for placement in placements if placement.way in shown])
    draw_weights(output / "weights.png", dict(zip(sentences, maps, strict=True)))
    print(f"\n{output}: senses.png, weights.png, senses.csv, weights.txt")


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line. What a user can mend ends in one line and exit code 1."""
    try:
        tyro.cli(run, args=arguments, prog="python -m zoo.inspection.senses")
    except (ValueError, OSError) as error:
        raise SystemExit(f"error: {error}") from None


if __name__ == "__main__":
    main()
