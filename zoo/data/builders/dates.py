"""zoo_dates: a day as people write it in many languages, and as ISO 8601, from Babel's locale data (CLDR).

"samedi 21 novembre 2026" -> "2026-11-21". Every day of two centuries once, in a locale and one of its full,
long and medium formats drawn by a hash of the day. All are Gregorian with the whole year, and one text never
means two days. Short formats are left out: 02/03/26 does.

The split is by day: a held-out day occurs in train in no locale at all.
"""

import datetime
import hashlib
from collections.abc import Iterator
from typing import ClassVar

import babel
import tensorflow_datasets as tfds
from babel.dates import format_date

from zoo.data.builders.embedded import EmbeddedBuilder

# Latin, Cyrillic and Greek letters, Han characters and kana.
LOCALES = ("en", "de", "es", "fr", "it", "ja", "nl", "pl", "pt", "ru", "sv", "el")
FORMATS = ("full", "long", "medium")
FIRST, LAST = datetime.date(1900, 1, 1), datetime.date(2099, 12, 31)
HELD_OUT = 0.03


def draw(day: datetime.date) -> tuple[bool, str, str]:
    """Whether `day` is held out, its locale and its format: a function of the day alone."""
    digest = hashlib.sha256(day.isoformat().encode()).digest()
    share, locale, style = (int.from_bytes(digest[4 * i : 4 * i + 4], "big") for i in range(3))
    return share < HELD_OUT * 2**32, LOCALES[locale % len(LOCALES)], FORMATS[style % len(FORMATS)]


def write_days(split: str) -> Iterator[dict[str, str]]:
    """The examples of "train" or "validation", in the order of the days."""
    for ordinal in range(FIRST.toordinal(), LAST.toordinal() + 1):
        day = datetime.date.fromordinal(ordinal)
        is_held_out, locale, style = draw(day)
        if is_held_out == (split == "validation"):
            source = format_date(day, style, locale)
            yield {"source": source, "target": day.isoformat(), "locale": locale}


class ZooDates(EmbeddedBuilder):
    """Days in many languages and as ISO 8601: {"source", "target", "locale"}."""

    VERSION = tfds.core.Version(".".join([*babel.__version__.split("."), "0", "0"][:3]))
    BUILDER_CONFIGS: ClassVar = [tfds.core.BuilderConfig(name="edition_1", version=VERSION)]
    FEATURES: ClassVar = {field: tfds.features.Text() for field in ("source", "target", "locale")}

    def _generate_examples(self, split):
        yield from enumerate(write_days(split))
