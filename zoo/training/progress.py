"""What a run says while it runs: a live line in a terminal, plain lines elsewhere.

Times are shown here and nowhere else: metrics.csv must be the same for every run of the same configuration.
"""

import time
from typing import Any

import jax
from rich.console import Console
from rich.progress import BarColumn, TextColumn
from rich.progress import Progress as Bar
from rich.table import Table

from zoo.training.breakdown import STEP_PARTS, Breakdown, shares_since
from zoo.training.flops import memory_in_use

REFRESH_SECONDS = {True: 0.5, False: 10.0}  # in a terminal, elsewhere
WATCH_SECONDS = 10.0  # of steps, over which the wait for batches is watched
LONG_WAIT = 0.1  # of that time


class Progress:
    """Use as a context manager around the steps. Only the first process of several speaks."""

    def __init__(
        self,
        num_steps: int,
        step: int,
        *,
        flops_per_step: float = 0.0,
        peak: float | None = None,
        unit: str = "tokens",
        spent: Breakdown | None = None,
    ):
        """`flops_per_step` are the model's for the global batch, `peak` the FLOP/s of one device; `unit` is counted;
        `spent` is where the loop's time goes.
        """
        self._spent = spent or Breakdown()
        self._spent_before = self._watched = self._spent.read()
        self._warned = False
        self._num_steps = num_steps
        self._flops, self._peak, self._unit = flops_per_step, peak, unit
        self._devices = max(jax.sharding.get_abstract_mesh().size, 1)
        self._console = Console(stderr=True, quiet=jax.process_index() != 0, highlight=False)
        self._live = self._console.is_terminal
        self._step, self._tokens, self._since = step, None, time.monotonic()
        self._seconds: float | None = None  # of one step, smoothed
        self._bar = Bar(
            TextColumn("[bold]step {task.completed:.0f}/{task.total:.0f}"),
            BarColumn(bar_width=20),
            TextColumn("{task.fields[text]}"),
            console=self._console,
            auto_refresh=False,
            disable=not self._live,
        )
        self._line = self._bar.add_task("train", total=num_steps, completed=step, text="compiling")

    def __enter__(self) -> "Progress":
        self._bar.start()
        if not self._live and self._step < self._num_steps:
            self.say("compiling the step")
        return self

    def __exit__(self, *_) -> None:
        self._bar.stop()

    def restart_clock(self) -> None:
        """Begin a new window: what came before it (compilation, an evaluation, a save) was no step."""
        self._tokens, self._since = None, time.monotonic()

    def show_step(self, step: int, tokens: int, values: dict[str, Any]) -> dict[str, float] | None:
        """Tell a finished step; returns speeds for TensorBoard each time the display was renewed."""
        now = time.monotonic()
        if self._tokens is None:  # the first step of a window only starts its clock
            self._begin_window(step, tokens, now)
            return None
        self._warn_of_waits()
        done = step - self._step
        # The last step ends a short window only if no other was ever shown: few steps make a poor mean.
        enough = done >= 10 and step == self._num_steps and self._seconds is None
        if now - self._since < REFRESH_SECONDS[self._live] and not enough:
            if self._live and step == self._num_steps:
                self._bar.update(self._line, completed=step, refresh=True)
            return None
        seconds = (now - self._since) / done
        rate = (tokens - self._tokens) / (now - self._since) / self._devices
        self._seconds = seconds if self._seconds is None else 0.7 * self._seconds + 0.3 * seconds
        shares = shares_since(self._spent.read(), self._spent_before)
        self._begin_window(step, tokens, now)
        speeds = {"step_seconds": seconds, "tokens_per_second_per_device": rate}
        speeds |= {f"{part}_share": share for part, share in shares.items()}
        if self._flops and self._peak:
            speeds["mfu"] = self._flops / seconds / (self._peak * self._devices)
        self._show(step, self._describe(step, values, speeds))
        return speeds

    def _begin_window(self, step: int, tokens: int, now: float) -> None:
        self._step, self._tokens, self._since = step, tokens, now
        self._spent_before = self._spent.read()

    def _warn_of_waits(self) -> None:
        """Say it, once, where the devices wait for batches; over long enough a time to be no accident."""
        spent = self._spent.read()
        if self._warned or sum(spent[part] - self._watched[part] for part in STEP_PARTS) < WATCH_SECONDS:
            return
        share = shares_since(spent, self._watched)["input"]
        self._watched = spent
        if share > LONG_WAIT:
            self._warned = True
            self.say(
                f"input waits {100 * share:.0f} % of the time: the devices stand still for batches. If they come in "
                "bursts, raise training.prefetch; otherwise give the host more cores, or make a batch cheaper"
            )

    def show_breakdown(self, steps: int) -> None:
        """Tell where the time went, part by part, after so many steps."""
        spent = self._spent.read()
        whole = sum(spent.values())
        table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0))
        for column in ("where the time went", f"{whole:,.1f} s", "", "a step"):
            table.add_column(column, justify="right" if table.columns else "left")
        for part, seconds in spent.items():
            if seconds:
                a_step = "" if part == "start" else f"{1e3 * seconds / steps:.2f} ms"
                table.add_row(part, f"{seconds:,.1f} s", f"{100 * seconds / whole:.1f} %", a_step)
        self._console.print(table)

    def show_evaluation(self, step: int, values: dict[str, float]) -> None:
        """Tell the results of an evaluation."""
        results = "  ".join(f"{name} {value:.4g}" for name, value in values.items())
        self.say(f"step {step}/{self._num_steps}  validation: {results}")

    def say(self, line: str) -> None:
        """Print a line above the live one."""
        self._console.print(line, markup=False, soft_wrap=True)

    def _describe(self, step: int, values: dict[str, Any], speeds: dict[str, float]) -> str:
        memory = memory_in_use(jax.local_devices()[0]) / 2**30
        left = (self._num_steps - step) * (self._seconds or 0)
        per_device = "/device" if self._devices > 1 else ""
        parts = [
            f"loss {values['loss']:.4f}",
            f"{1e3 * speeds['step_seconds']:.1f} ms/step",
            f"{speeds['tokens_per_second_per_device']:,.0f} {self._unit}/s{per_device}",
        ]
        if "mfu" in speeds:
            parts.append(f"MFU {100 * speeds['mfu']:.1f} %")
        parts += [f"{part} {100 * speeds[f'{part}_share']:.0f} %" for part in ("input", "host")]
        return "  ".join([*parts, f"{memory:.1f} GiB", f"{_clock(left)} left"])

    def _show(self, step: int, text: str) -> None:
        if self._live:
            self._bar.update(self._line, completed=step, text=text)
            self._bar.refresh()
        else:
            self.say(f"step {step}/{self._num_steps}  {text}")


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
