"""What a run says while it runs."""

import sys
import time
from typing import Any


class Progress:
    """Prints a line every few seconds."""

    def __init__(self, num_steps: int, step: int):
        self.num_steps = num_steps
        self._start = self._last = time.monotonic()
        self._step = step

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def show_step(self, step: int, tokens: int, values: dict[str, Any]) -> None:
        now = time.monotonic()
        if now - self._last > 5 or step == self.num_steps:
            rate = (now - self._last) / max(step - self._step, 1)
            self.say(f"step {step}/{self.num_steps}  loss {values['loss']:.4f}  {1e3 * rate:.1f} ms/step")
            self._last, self._step = now, step

    def show_evaluation(self, step: int, values: dict[str, float]) -> None:
        self.say(f"step {step}  " + "  ".join(f"{k} {v:.4g}" for k, v in values.items()))

    def say(self, line: str) -> None:
        print(line, file=sys.stderr, flush=True)
