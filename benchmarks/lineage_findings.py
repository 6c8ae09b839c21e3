"""What a results file of lineage.py says, in sentences: every comparison names its figures, and the verdict follows.

Nothing here knows how the comparison ought to come out.
"""

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from benchmarks.lineage_plots import SCORES, rows_of
from benchmarks.lineage_systems import TITLES

POINTS, SHARE = 2.0, 0.05
"""Scores less than so many points apart, and rates and sizes within such a share, count as level."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One figure of each system, and which of them is best."""

    what: str
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
        figures = ", ".join(f"{TITLES[name]} {show(self.values[name])}" for name in TITLES if name in self.values)
        return f"{self.what} ({self.unit}): {figures}."


def show(value: float) -> str:
    """Three digits, thousands with commas."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def compare(content: dict) -> Iterator[Comparison]:
    """Return every comparison that the results allow; one takes at least two systems."""
    for found in (*_by_length(content), *_by_distance(content), *_by_time(content), *_by_amount(content),
                  *_by_speed(content)):  # fmt: skip
        if len(found.values) > 1:
            yield found


def _by_length(content: dict) -> Iterator[Comparison]:
    rows = rows_of(content, "translation")
    if not rows:
        return
    problem = content["problems"]["translation"]
    for test in problem["tests"]:
        where = "as in training" if test <= problem["trained"] else "more than ever in training"
        for key in ("score", "words_right"):
            values = {row["system"]: at[key] for row in rows for at in row["tests"] if at["test"] == test}
            unit = SCORES[problem["score"] if key == "score" else key]
            yield Comparison(what=f"{problem['name']}, {test} {problem['axis']}, {where}", values=values, unit=unit)


def _by_distance(content: dict) -> Iterator[Comparison]:
    rows = rows_of(content, "recall")
    if not rows:
        return
    problem = content["problems"]["recall"]
    for test in problem["tests"]:
        where = "as in training" if test <= problem["trained"] else "more than ever in training"
        values = {row["system"]: at["score"] for row in rows for at in row["tests"] if at["test"] == test}
        yield Comparison(what=f"recall, {test} {problem['axis']}, {where}", values=values, unit=SCORES["exact_match"])


def _by_time(content: dict) -> Iterator[Comparison]:
    for part in ("translation", "recall"):
        rows = rows_of(content, part)
        if not rows:
            continue
        name, end = content["problems"][part]["name"], min(row["training_seconds"] for row in rows)
        values = {row["system"]: row["training_seconds"] for row in rows}
        yield Comparison(what=f"{name}, training of {rows[0]['num_steps']} steps", values=values, unit="seconds",
                         better="low")  # fmt: skip
        for share in (0.25, 1.0):
            reached = {row["system"]: _reached(row["curve"], share * end) for row in rows}
            yield Comparison(what=f"{name}, held out, after {share * end:.0f} seconds of training each",
                             values=reached, unit=SCORES["words_right"])  # fmt: skip


def _reached(curve: list[dict], seconds: float) -> float:
    """Words right at a time, on the line between two scorings."""
    before = {"seconds": 0.0, "words_right": 0.0}
    for at in curve:
        if at["seconds"] >= seconds:
            share = (seconds - before["seconds"]) / (at["seconds"] - before["seconds"])
            return before["words_right"] + share * (at["words_right"] - before["words_right"])
        before = at
    return before["words_right"]


def _by_amount(content: dict) -> Iterator[Comparison]:
    rows = rows_of(content, "amount")
    for num_rows in sorted({row["train_rows"] for row in rows}):
        values = {row["system"]: row["curve"][-1]["words_right"] for row in rows if row["train_rows"] == num_rows}
        name = content["problems"]["translation"]["name"]
        yield Comparison(what=f"{name}, held out, {num_rows:,} rows to learn from", values=values,
                         unit=SCORES["words_right"])  # fmt: skip


def _by_speed(content: dict) -> Iterator[Comparison]:
    rows = rows_of(content, "speed")
    for length in sorted({row["length"] for row in rows}):
        at = [row for row in rows if row["length"] == length]
        rates = {row["system"]: row["tokens_per_second"] for row in at if "tokens_per_second" in row}
        yield Comparison(what=f"training at length {length}", values=rates, unit="tokens a second")
        memory = {row["system"]: row["temp_bytes"] / 1e6 for row in at if row["temp_bytes"]}
        yield Comparison(what=f"memory of a training step at length {length}", values=memory, unit="MB", better="low")
        kept = {row["system"]: row["decoding_bytes"] / 1e3 for row in at}
        yield Comparison(what=f"memory in decoding at length {length}", values=kept, unit="kB a sequence",
                         better="low")  # fmt: skip


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
            for when, points in row["gradients"].items():
                near, far = points[0], points[-1]
                if near["norm"] > 0:
                    share = far["norm"] / near["norm"]
                    yield (f"{content['problems'][part]['name']}, {TITLES[row['system']]}, {when}: an input "
                           f"{far['distance']:.0f} tokens away gets {show(share)} times the gradient of one "
                           f"{near['distance']:.0f} away.")  # fmt: skip
