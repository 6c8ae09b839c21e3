"""What a results file of lineage.py says, in sentences: every comparison names its figures, and the verdict follows.

Nothing here knows how the comparison ought to come out.
"""

import itertools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from benchmarks.lineage_plots import SCORES, rows_of
from benchmarks.lineage_systems import TITLES
from benchmarks.pages import show

POINTS, SHARE = 2.0, 0.05
"""Scores less than so many points apart, and rates and sizes within such a share, count as level."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One figure of each system, and which of them is best."""

    topic: str
    place: str
    """Where on the topic's axis: a length, a distance, an amount."""
    values: Mapping[str, float]
    """By system."""
    unit: str
    better: Literal["high", "low"] = "high"

    @property
    def best(self) -> list[str]:
        """The systems that are best, within the margin, in the order of the papers."""
        top = max(self.values.values()) if self.better == "high" else min(self.values.values())
        margin = POINTS if self.unit in SCORES.values() else SHARE * abs(top)
        return [name for name in TITLES if name in self.values and abs(self.values[name] - top) <= margin]

    @property
    def verdict(self) -> Literal["older", "newest", "level"]:
        """Who wins: "older" where the newest system is not among the best, "newest" where it is alone, else "level"."""
        newest = [name for name in TITLES if name in self.values][-1]
        if newest not in self.best:
            return "older"
        return "newest" if self.best == [newest] else "level"

    def __str__(self) -> str:
        return ", ".join(f"{TITLES[name]} {show(self.values[name])}" for name in TITLES if name in self.values)


def summarise(comparisons: Iterable[Comparison]) -> Iterator[str]:
    """Return a sentence for each run of comparisons of one topic that the same systems win, with the last's figures."""

    def kind(found: Comparison) -> tuple:
        return found.topic, found.unit, found.best

    for (topic, unit, best), group in itertools.groupby(comparisons, kind):
        found = list(group)
        places = list(dict.fromkeys(one.place for one in found))
        names = " and ".join(TITLES[name] for name in best)
        yield f"**{names}**: {topic} {', '.join(places)} ({unit}). At {places[-1]}: {found[-1]}."


def compare(content: dict) -> Iterator[Comparison]:
    """Return every comparison that the results allow: one takes the newest system, and another."""
    newest = [name for name in TITLES if name in content["settings"]["systems"]][-1]
    for found in (*_by_length(content), *_by_distance(content), *_by_time(content), *_by_amount(content),
                  *_by_speed(content)):  # fmt: skip
        if newest in found.values and len(found.values) > 1:
            yield found


def _by_length(content: dict) -> Iterator[Comparison]:
    rows = rows_of(content, "translation")
    if not rows:
        return
    problem = content["problems"]["translation"]
    for key in ("score", "words_right"):
        unit = SCORES[problem["score"] if key == "score" else key]
        yield from _by_test(rows, problem, key, unit)


def _by_distance(content: dict) -> Iterator[Comparison]:
    rows = rows_of(content, "recall")
    if rows:
        yield from _by_test(rows, content["problems"]["recall"], "score", SCORES["exact_match"])


def _by_test(rows: list[dict], problem: dict, key: str, unit: str) -> Iterator[Comparison]:
    for test in problem["tests"]:
        where = "" if test <= problem["trained"] else ", more than ever in training"
        values = {row["system"]: at[key] for row in rows for at in row["tests"] if at["test"] == test}
        topic = f"{problem['name']} by {problem['axis']}{where}:"
        yield Comparison(topic=topic, place=str(test), values=values, unit=unit)


def _by_time(content: dict) -> Iterator[Comparison]:
    for part in ("translation", "recall"):
        rows = rows_of(content, part)
        if not rows:
            continue
        name, end = content["problems"][part]["name"], min(row["training_seconds"] for row in rows)
        values = {row["system"]: row["training_seconds"] for row in rows}
        steps = f"{rows[0]['num_steps']} steps"
        yield Comparison(topic=f"{name}, training time of", place=steps, values=values, unit="seconds", better="low")
        for share in (0.25, 0.5, 1.0):
            reached = {row["system"]: _reached(row["curve"], share * end) for row in rows}
            yield Comparison(topic=f"{name}, held out, each after as long a training:", values=reached,
                             place=f"{share * end:.0f} s", unit=SCORES["words_right"])  # fmt: skip


def _reached(curve: list[dict], seconds: float) -> float:
    """Words right at a time, on the line between two scorings."""
    times, values = zip((0.0, 0.0), *((at["seconds"], at["words_right"]) for at in curve), strict=True)
    return float(np.interp(seconds, times, values))


def _by_amount(content: dict) -> Iterator[Comparison]:
    rows, name = rows_of(content, "amount"), content["problems"]["translation"]["name"]
    for num_rows in sorted({row["train_rows"] for row in rows}):
        values = {row["system"]: row["curve"][-1]["words_right"] for row in rows if row["train_rows"] == num_rows}
        yield Comparison(topic=f"{name}, held out, by rows to learn from:", place=f"{num_rows:,}", values=values,
                         unit=SCORES["words_right"])  # fmt: skip


def _by_speed(content: dict) -> Iterator[Comparison]:
    rows = rows_of(content, "speed")
    for topic, unit, key, scale in (
        ("speed of training at length", "tokens a second", "tokens_per_second", 1),
        ("memory of a training step at length", "MB", "temp_bytes", 1e6),
        ("memory in decoding at length", "kB a sequence", "decoding_bytes", 1e3),
    ):
        for length in sorted({row["length"] for row in rows}):
            values = {row["system"]: row[key] / scale for row in rows if row["length"] == length and row.get(key)}
            better = "high" if key == "tokens_per_second" else "low"
            yield Comparison(topic=topic, place=str(length), values=values, unit=unit, better=better)


def order(content: dict) -> Iterator[str]:
    """Say, for each test beyond the lengths trained on, whether each system beats the one before it."""
    rows = {row["system"]: row for row in rows_of(content, "translation")}
    names = [name for name in TITLES if name in rows]
    if len(names) < 2:
        return
    problem = content["problems"]["translation"]
    chain = " < ".join(TITLES[name] for name in names)
    for key in ("score", "words_right"):
        unit = SCORES[problem["score"] if key == "score" else key]
        for test in (test for test in problem["tests"] if test > problem["trained"]):
            values = [next(at[key] for at in rows[name]["tests"] if at["test"] == test) for name in names]
            holds = all(a < b for a, b in itertools.pairwise(values))
            figures = " / ".join(map(show, values))
            yield f"{test} {problem['axis']}, {unit}: {figures}: {chain} {'holds' if holds else 'does not hold'}."


def fading(content: dict) -> Iterator[str]:
    """Say how much of the gradient of the nearest inputs the farthest ones get."""
    for part in ("translation", "recall"):
        for row in rows_of(content, part):
            shares = {}
            for when, points in row["gradients"].items():
                if points[0]["norm"] > 0:
                    shares[when] = f"{show(points[-1]['norm'] / points[0]['norm'])} {when}"
            near, far = (row["gradients"]["trained"][end]["distance"] for end in (0, -1))
            yield (f"{content['problems'][part]['name']}, {TITLES[row['system']]}: the gradient at an input {far:.0f} "
                   f"tokens away, as a multiple of that at {near:.0f}: {', '.join(shares.values())}.")  # fmt: skip
