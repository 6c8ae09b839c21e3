"""zoo_parallel: what `zoo_phrases` says, as pairs of texts of one meaning in two languages, to learn search by meaning.

"47 kilometrów na godzinę" -> "47 километров в час". Nothing in a text names a language to find. Of each held-out
expression there is one pair, so that a source means one held-out target and no other; of the others there are
`DIRECTIONS`. Pairs of equal texts are left out.
"""

import random
from collections.abc import Iterator
from typing import ClassVar

import babel
import tensorflow_datasets as tfds

from zoo.data.builders.embedded import EmbeddedBuilder
from zoo.data.builders.phrases import LANGUAGES, split_expressions

DIRECTIONS = 6
"""Ordered pairs of languages drawn for each expression of train, of the 56 there are."""
FIELDS = ("source", "target", "source_language", "target_language", "kind")


def write_parallel(split: str) -> Iterator[dict[str, str]]:
    """The examples of "train" or "validation"."""
    seen: set[str] = set()
    directions = [(source, target) for source in LANGUAGES for target in LANGUAGES if source != target]
    for kind, texts in split_expressions(split):
        drawn = random.Random(f"parallel {texts['en']}").sample(directions, DIRECTIONS if split == "train" else 1)
        for source, target in drawn:
            pair = texts[source], texts[target]
            if pair[0] == pair[1] or (split == "validation" and not seen.isdisjoint(pair)):
                continue
            seen.update(pair)
            yield dict(zip(FIELDS, (*pair, source, target, kind), strict=True))


class ZooParallel(EmbeddedBuilder):
    """Pairs of texts of one meaning in two languages."""

    VERSION = tfds.core.Version(".".join([*babel.__version__.split("."), "0", "0"][:3]))
    BUILDER_CONFIGS: ClassVar = [tfds.core.BuilderConfig(name="edition_2", version=VERSION)]
    FEATURES: ClassVar = {field: tfds.features.Text() for field in FIELDS}

    def _generate_examples(self, split):
        yield from enumerate(write_parallel(split))
