"""zoo_phrases: what locale data can say, from any of eight languages into any other, from Babel's locale data (CLDR).

">>de<< 17.5 kilometers per hour" -> "17,5 Kilometer pro Stunde". Measures, money, days, spans of days, times from now,
lists of places and variants of languages, with numbers, dates and names drawn at random. The source begins with the
language to write, as in Marian's models of many languages. No-break spaces are plain ones here, as people type them.

The split is by expression: what is held out occurs in train in no language. An expression of train that is written in
some language as a held-out one is left out, so that no held-out target can be copied.
"""

import datetime
import functools
import hashlib
import random
from collections.abc import Callable, Iterator, Mapping
from typing import ClassVar

import babel
import tensorflow_datasets as tfds
from babel import Locale
from babel.dates import format_date, format_interval, format_timedelta
from babel.lists import format_list
from babel.numbers import format_currency
from babel.units import format_unit

from zoo.data.builders.embedded import EmbeddedBuilder

LANGUAGES = ("en", "de", "es", "fr", "it", "nl", "pl", "ru")
UNITS = (
    "length-kilometer", "length-meter", "length-centimeter", "length-mile", "length-foot", "length-inch",
    "area-hectare", "area-square-kilometer", "area-square-meter", "volume-liter", "volume-cubic-meter",
    "volume-teaspoon", "mass-kilogram", "mass-gram", "mass-tonne", "mass-pound", "speed-kilometer-per-hour",
    "speed-meter-per-second", "speed-mile-per-hour", "temperature-celsius", "temperature-fahrenheit", "energy-joule",
    "energy-kilowatt-hour", "power-watt", "power-horsepower", "pressure-hectopascal", "digital-megabyte",
    "digital-gigabit", "duration-minute", "duration-second", "duration-week", "electric-volt", "frequency-hertz",
    "angle-degree",
)  # fmt: skip
"""Units that all languages name. Dutch and Italian have no "duration-day", so that Babel writes just that."""
CURRENCIES = (
    "EUR", "USD", "GBP", "JPY", "CHF", "CNY", "INR", "BRL", "CAD", "AUD", "MXN", "RUB", "PLN", "SEK", "NOK", "DKK",
    "CZK", "HUF", "TRY", "ZAR", "KRW", "THB", "IDR", "EGP", "NGN", "ARS", "CLP", "ILS", "UAH", "NZD",
)  # fmt: skip
VARIANTS = (
    "en_GB", "en_US", "en_AU", "en_IN", "fr_CA", "fr_BE", "fr_CH", "de_AT", "de_CH", "es_MX", "es_AR", "es_ES", "pt_BR",
    "pt_PT", "nl_BE", "it_CH", "ar_EG", "ar_MA", "sw_KE", "ru_UA", "ta_LK", "bn_IN", "el_CY", "sv_FI",
)  # fmt: skip
HELD_OUT = 0.05
DIRECTIONS = 6
"""Ordered pairs of languages drawn for each expression, of the 56 there are."""

Write = Callable[[str], str]
"""An expression: from a language to its text."""


def _number(rng: random.Random) -> int | float:
    return rng.choice([rng.randint(1, 30), rng.randint(1, 2000), rng.randint(1, 999) / 10])


def _day(rng: random.Random) -> datetime.date:
    return datetime.date(1900, 1, 1) + datetime.timedelta(days=rng.randrange(73_000))


def _measure(rng: random.Random) -> Write:
    number, unit = _number(rng), rng.choice(UNITS)
    return lambda language: format_unit(number, unit, "long", locale=language)


def _money(rng: random.Random) -> Write:
    number, currency = rng.choice([rng.randint(1, 100), rng.randint(1, 99_999) / 100]), rng.choice(CURRENCIES)
    return lambda language: format_currency(number, currency, locale=language, format_type="name")


def _date(rng: random.Random) -> Write:
    day, style = _day(rng), rng.choice(("full", "long", "medium"))
    return lambda language: format_date(day, style, language)


def _interval(rng: random.Random) -> Write:
    first = _day(rng)
    last = first + datetime.timedelta(days=rng.randint(1, 400))
    return lambda language: format_interval(first, last, "yMMMd", locale=language)


def _from_now(rng: random.Random) -> Write:
    unit, most = rng.choice((("hour", 96), ("day", 60), ("week", 60), ("month", 40), ("year", 120)))
    number = rng.choice((-1, 1)) * rng.randint(1, most)
    hours = {"hour": 1, "day": 24, "week": 24 * 7, "month": 24 * 30, "year": 24 * 365}[unit]
    delta = datetime.timedelta(hours=number * hours)
    return lambda language: format_timedelta(delta, unit, threshold=1e9, add_direction=True, locale=language)


@functools.cache
def _countries() -> list[str]:
    """Codes of territories that all languages name; of regions and placeholders none."""
    names = [Locale(language).territories for language in LANGUAGES]
    known = [str(code) for code in names[0] if len(str(code)) == 2 and all(code in other for other in names)]
    return [code for code in known if code not in ("EU", "EZ", "QO", "UN", "XA", "XB", "ZZ")]


def _places(rng: random.Random) -> Write:
    codes = rng.sample(_countries(), rng.randint(2, 4))
    style = rng.choice(("standard", "or"))

    def write(language: str) -> str:
        return format_list([Locale(language).territories[code] for code in codes], style, language)

    return write


def _variants(rng: random.Random) -> Write:
    chosen = rng.sample(VARIANTS, rng.randint(1, 3))

    def write(language: str) -> str:
        return format_list([str(Locale.parse(name).get_display_name(language)) for name in chosen], locale=language)

    return write


KINDS: Mapping[str, tuple[Callable[[random.Random], Write], int]] = {
    "measure": (_measure, 4000),
    "money": (_money, 3000),
    "date": (_date, 2000),
    "interval": (_interval, 2000),
    "from now": (_from_now, 600),
    "places": (_places, 5000),
    "variants": (_variants, 1500),
}
"""How an expression of each kind is drawn, and how many are; the same one drawn twice counts once."""


@functools.cache
def list_expressions() -> list[tuple[str, dict[str, str]]]:
    """Every expression: its kind, and its text in each language."""
    found: dict[tuple[str, ...], str] = {}
    for kind, (draw, count) in KINDS.items():
        for index in range(count):
            write = draw(random.Random(f"{kind} {index}"))
            found.setdefault(tuple(" ".join(write(language).split()) for language in LANGUAGES), kind)
    return [(kind, dict(zip(LANGUAGES, texts, strict=True))) for texts, kind in found.items()]


def _is_held_out(texts: Mapping[str, str]) -> bool:
    digest = hashlib.sha256("\n".join(texts.values()).encode()).digest()
    return int.from_bytes(digest[:4], "big") < HELD_OUT * 2**32


def split_expressions(split: str) -> Iterator[tuple[str, dict[str, str]]]:
    """The expressions of "train" or "validation", as `list_expressions` gives them."""
    expressions = list_expressions()
    held_out = {item for _, texts in expressions if _is_held_out(texts) for item in texts.items()}
    for kind, texts in expressions:
        wanted = _is_held_out(texts) if split == "validation" else held_out.isdisjoint(texts.items())
        if wanted:
            yield kind, texts


def write_pairs(split: str) -> Iterator[dict[str, str]]:
    """The examples of "train" or "validation"."""
    directions = [(source, target) for source in LANGUAGES for target in LANGUAGES if source != target]
    for kind, texts in split_expressions(split):
        for source, target in random.Random(texts["en"]).sample(directions, DIRECTIONS):
            yield {
                "source": f">>{target}<< {texts[source]}",
                "target": texts[target],
                "source_language": source,
                "target_language": target,
                "kind": kind,
            }


class ZooPhrases(EmbeddedBuilder):
    """What locale data can say, between eight languages."""

    VERSION = tfds.core.Version(".".join([*babel.__version__.split("."), "0", "0"][:3]))
    BUILDER_CONFIGS: ClassVar = [tfds.core.BuilderConfig(name="edition_2", version=VERSION)]
    FEATURES: ClassVar = {
        field: tfds.features.Text() for field in ("source", "target", "source_language", "target_language", "kind")
    }

    def _generate_examples(self, split):
        yield from enumerate(write_pairs(split))
