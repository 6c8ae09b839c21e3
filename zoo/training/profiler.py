"""A trace of some steps, for XProf and Perfetto: what each device and each thread did when."""

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import jax


class Profiler:
    """Traces the steps from the first to the last of a pair into `folder`/profile; None traces nothing."""

    def __init__(self, folder: Path, steps: tuple[int, int] | None):
        self._folder = folder / "profile"
        self._steps = range(0) if steps is None else range(steps[0], steps[1] + 1)
        self._is_tracing = False

    def starts(self, step: int) -> bool:
        """Whether the trace begins with this step, as it does when a run goes on in the middle of it."""
        return not self._is_tracing and step in self._steps

    def ends(self, step: int) -> bool:
        """Whether the trace ends with this step, once the devices are done with it."""
        return self._is_tracing and step + 1 not in self._steps

    def start(self) -> None:
        """Begin the trace. The first second of a process's first trace is the profiler's own."""
        jax.profiler.start_trace(str(self._folder))
        self._is_tracing = True

    def stop(self) -> None:
        """Write the trace, if there is one."""
        if self._is_tracing:
            self._is_tracing = False
            jax.profiler.stop_trace()

    def mark(self, step: int) -> AbstractContextManager:
        """Around a step's call: the trace groups what the devices do by these marks."""
        return jax.profiler.StepTraceAnnotation("train", step_num=step) if self._is_tracing else nullcontext()
