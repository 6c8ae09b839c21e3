"""Where the time of a run goes, part by part, as the thread that runs the loop sees it; the parts sum to the wall time.

Steps are dispatched ahead of the device, so a part is what the loop's thread waits for, or does itself:

- compute: in the jitted step, waiting for the results of a step, or waiting for a batch while the device is still at
  work on steps that it was given before: that wait costs nothing;
- input: waiting for a batch with nothing left on the device;
- host: all the rest of the loop (metrics, logging, the progress line). As long as steps are in flight the device works
  on behind it, so its share is the most that it can cost;
- checkpoint, evaluation, profile: the loop stands still for them. What a save does in the background is in none;
- start: before the first step, compiling it included.
"""

import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import jax

from zoo.training.run_record import write_text

PARTS = ("compute", "input", "host", "checkpoint", "evaluation", "profile", "start")
STEP_PARTS = ("compute", "input", "host")
"""What steps consist of; the others come between them."""


class Breakdown:
    """Adds up seconds by part. At each moment exactly one part runs, from the moment this is made."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter):
        self._clock, self._part = clock, "start"
        self._seconds: dict[str, float] = dict.fromkeys(PARTS, 0.0)
        self._since = clock()

    @contextmanager
    def within(self, part: str) -> Iterator[None]:
        """Within this block the time is `part`'s, and after it again that of the part that was interrupted."""
        interrupted = self.switch(part)
        try:
            yield
        finally:
            self.switch(interrupted)

    def switch(self, part: str) -> str:
        """From now on the time is `part`'s; returns the part that ends."""
        now, ended = self._clock(), self._part
        self._seconds[ended] += now - self._since
        self._part, self._since = part, now
        return ended

    def read(self) -> dict[str, float]:
        """The seconds of each part until now."""
        self.switch(self._part)
        return dict(self._seconds)


def shares_since(now: Mapping[str, float], before: Mapping[str, float]) -> dict[str, float]:
    """Each step part's share of the time that steps took between two readings; zeros if there was none."""
    spent = {part: now[part] - before[part] for part in STEP_PARTS}
    whole = sum(spent.values())
    return {part: seconds / whole if whole > 0 else 0.0 for part, seconds in spent.items()}


def write_breakdown(folder: Path, spent: Breakdown, steps: int) -> None:
    """Write the seconds of each part, and how many steps there were, to the folder's breakdown.json; of this process,
    that is of the steps since a run went on, and on the first machine alone.
    """
    if jax.process_index() == 0:
        record = {"steps": steps, "seconds": spent.read()}
        write_text(folder / "breakdown.json", json.dumps(record, indent=2) + "\n")
