"""A process for each contender: its allocator, its threads and its peak memory are its own, as they are at a user's.

In one process they are not: what one library keeps lies in the memory that the other gives back, whose next call then
asks the kernel for pages anew (measured: up to twice the time of a training step on a CPU). An accelerator's memory is
not the host's, and its time is dear: there all contenders live in the benchmark's own process.
"""

import contextlib
import gc
import multiprocessing
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from benchmarks import model_contenders, model_peers, timing
from benchmarks.contenders import Refused
from benchmarks.model_cells import DECODE, TRAINING, Cell
from benchmarks.model_problems import Problem
from zoo.compilation import MIN_SECONDS
from zoo.training import huge_pages
from zoo.training.host import give_back_freed_memory, keep_freed_memory

CALLS = 3
"""Calls whose peak memory counts, the first among them."""
PATIENCE_SECONDS = 1800


class Failed(Exception):
    """A contender could not be made or called; the message says why, in one line."""


class Made:
    """A contender, called as often as its peak memory takes, and what may be asked of it."""

    def __init__(self, cell: Cell, name: str):
        """Make it; raises Refused or Failed."""
        if cell.work == TRAINING:
            keep_freed_memory()  # as train.py does without huge pages
        try:
            self.problem = Problem(cell)
            jax.block_until_ready(self.problem.params)
            if name in model_peers.contenders(self.problem):
                model_peers.import_libraries()
            give_back_freed_memory()
            before = _reset_peak()
            makers = model_contenders.contenders(self.problem) | model_peers.contenders(self.problem)
            self.contender = makers[name]()
            if cell.work == TRAINING:
                give_back_freed_memory()
            for _ in range(CALLS - 1):
                self.contender.wait(self.contender.start())
        except Refused:
            raise
        except Exception as error:
            lines = str(error).strip().splitlines() or [""]
            raise Failed(f"{type(error).__name__}: {lines[0][:200]}") from None
        self.peak = _peak() - before

    @property
    def facts(self) -> dict[str, Any]:
        """What is said of it at once."""
        made = self.contender
        return {"first_call_seconds": made.compile_seconds, "kind": made.kind, "exact": made.exact,
                "weight_bytes": made.weight_bytes}  # fmt: skip

    def answer(self, what: str, *values: Any) -> Any:
        """As `Worker.ask` says."""
        match what:
            case "peak":
                return self.peak
            case "results":
                return {key: np.asarray(value) for key, value in self.contender.results().items()}
            case "nats":
                return model_contenders.nats_per_token(self.problem, *values)
            case "sample":
                if jax.default_backend() == "cpu" and self.problem.cell.work != DECODE:
                    # What the last call gave back may have gone to the machine's host while others ran.
                    self.contender.wait(self.contender.start())
                return timing.sample(self.contender, *values)
        raise AssertionError(what)


class Worker:
    """A contender in a process of its own, or not. Use as a context manager: leaving it ends the process."""

    def __init__(self, cell: Cell, name: str, *, apart: bool, cache: str | None = None):
        """Start it, with a folder for what is compiled, or an empty one that it alone uses."""
        self.name, self.samples, self._cell = name, [], cell
        self._stack = contextlib.ExitStack()
        self._made: Made | None = None
        if apart:
            self.cache = cache or self._stack.enter_context(tempfile.TemporaryDirectory())
            facts = self._start()
        else:
            self._made = Made(cell, name)
            self._stack.callback(self._forget)
            facts = self._made.facts
        self.first_call_seconds: float = facts["first_call_seconds"]
        self.kind: str = facts["kind"]
        self.weight_bytes: int | None = facts["weight_bytes"]
        self.exact: bool = facts["exact"]

    def _start(self) -> dict[str, Any]:
        spawn = multiprocessing.get_context("spawn")
        self._pipe, other = spawn.Pipe()
        self._process = spawn.Process(target=serve, args=(other, self._cell, self.name), daemon=True)
        with _environment(
            **huge_pages.environment() if self._cell.work == TRAINING and huge_pages.are_there() else {},
            JAX_COMPILATION_CACHE_DIR=f"{self.cache}/jax",
            JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS=str(MIN_SECONDS),  # as zoo.load has it
            TORCHINDUCTOR_CACHE_DIR=f"{self.cache}/torch",
        ):
            self._process.start()
        self._stack.callback(self._end_process)
        other.close()
        try:
            return self._receive()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def ask(self, what: str, *values: Any) -> Any:
        """Get "peak" (bytes), "results", "nats" of tokens, or a "sample" of so many calls (seconds); raises Failed."""
        if self._made is not None:
            return self._made.answer(what, *values)
        with contextlib.suppress(ConnectionError):  # what it died of is found out next
            self._pipe.send((what, *values))
        return self._receive()

    def warm_seconds(self) -> float:
        """The first call of another process that finds everything compiled."""
        with Worker(self._cell, self.name, apart=True, cache=self.cache) as again:
            return again.first_call_seconds

    def close(self) -> None:
        """End the process, or give back what was held, if that was not done before."""
        self._stack.close()

    def _end_process(self) -> None:
        self._pipe.close()
        self._process.join(10)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()

    def _forget(self) -> None:
        self._made = None
        _free_memory()

    def _receive(self) -> Any:
        try:
            if not self._pipe.poll(PATIENCE_SECONDS):
                raise Failed(f"no answer in {PATIENCE_SECONDS} s")
            answer = self._pipe.recv()
        except (EOFError, ConnectionError):
            self._process.join(10)
            raise Failed(f"its process ended, code {self._process.exitcode}") from None
        if isinstance(answer, Failed | Refused):
            raise answer
        return answer


def names(problem: Problem, peers: bool, compiled: bool) -> list[str]:
    """Of all contenders of a cell."""
    found = [*model_contenders.contenders(problem), *(model_peers.contenders(problem) if peers else ())]
    return [name for name in found if compiled or name != model_peers.COMPILED]


def serve(pipe: Any, cell: Cell, name: str) -> None:
    """What the process does: make the contender, then answer until the pipe is closed."""
    # What a library prints is no answer, and the parent's table stays readable.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    with contextlib.suppress(EOFError):
        try:
            made = Made(cell, name)
            pipe.send(made.facts)
            while True:
                pipe.send(made.answer(*pipe.recv()))
        except (Refused, Failed) as reason:
            pipe.send(reason)


def _free_memory() -> None:
    gc.collect()
    if "torch" in sys.modules:
        torch = sys.modules["torch"]
        torch.compiler.reset()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


@contextlib.contextmanager
def _environment(**values: str) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def _reset_peak() -> int:
    """Bytes held now, from which the peak counts anew."""
    if jax.default_backend() != "cpu":
        return 0
    Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def _peak() -> int:
    """Most bytes held since."""
    if jax.default_backend() == "cpu":
        return _status("VmHWM")
    torch = sys.modules.get("torch")
    ours = (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use", 0)
    return max(ours, torch.cuda.max_memory_allocated() if torch is not None and torch.cuda.is_available() else 0)


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(field))
