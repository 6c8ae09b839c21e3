"""Timing contenders in turn: an order drawn anew each round, many calls a sample where calls are short, medians."""

import itertools
import random
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

import jax

from benchmarks.contenders import Contender

SAMPLE_SECONDS = 2e-3
"""A sample holds as many calls as the fastest contender needs to take this long."""
MAX_CALLS = 1000
MIN_ROUNDS, MAX_ROUNDS = 3, 50
SLOW = 4
"""A call that takes this many times the cell's budget is not timed; shorter ones get their rounds all the same."""


def clock(seconds: float) -> str:
    """Minutes and seconds."""
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


def sample(contender: Contender, num_calls: int) -> float:
    """Seconds a call, over `num_calls` issued back to back.

    An accelerator works them off one after another, and only the last is waited for: so the host's part is hidden
    behind the device's. A CPU would run them side by side, and there each is waited for.
    """
    each = jax.default_backend() == "cpu"
    start = time.perf_counter()
    for _ in range(num_calls - 1):
        started = contender.start()
        if each:
            contender.wait(started)
    contender.wait(contender.start())
    return (time.perf_counter() - start) / num_calls


class Timed(Protocol):
    """What has a name and samples, seconds a call."""

    name: str
    samples: list[float]


T = TypeVar("T", bound=Timed)


def measure(
    contenders: Sequence[T], budget_seconds: float, sample: Callable[[T, int], float] = sample
) -> tuple[int, list[T]]:
    """Fill each contender's `samples` within the budget; returns calls a sample, and those too slow to be timed.

    `sample` gives a contender's seconds a call, over so many.
    """
    warm = {c.name: min(sample(c, 1) for _ in range(2)) for c in contenders}
    slow = [c for c in contenders if warm[c.name] > SLOW * budget_seconds]
    timed = [c for c in contenders if warm[c.name] <= SLOW * budget_seconds]
    if not timed:
        return 1, slow
    one_round = sum(warm[c.name] for c in timed)
    # As many calls for all, and yet three rounds within the budget.
    num_calls = min(SAMPLE_SECONDS / min(warm[c.name] for c in timed), budget_seconds / (MIN_ROUNDS * one_round))
    num_calls = max(1, min(MAX_CALLS, round(num_calls)))
    order, deadline = random.Random(0), time.perf_counter() + budget_seconds
    for index in itertools.count(1):
        for contender in order.sample(timed, len(timed)):
            contender.samples.append(sample(contender, num_calls))
        if index >= MAX_ROUNDS or (index >= MIN_ROUNDS and time.perf_counter() > deadline):
            return num_calls, slow
    raise AssertionError


def quartiles(samples: list[float]) -> tuple[float, float, float]:
    """Lower quartile, median, upper quartile."""
    low, median, high = statistics.quantiles(samples, n=4, method="inclusive")
    return low, median, high
