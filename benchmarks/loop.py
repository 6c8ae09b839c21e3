"""What the training loop and its checkpoints cost beside the step: a recipe's own breakdown, with saves and without.

    python benchmarks/loop.py                       # translate-dates; medians of three runs of each
    python benchmarks/loop.py --rows 8 --recipe gpt-tiny --json loop.json

Runs alternate, one with a checkpoint every so many steps, one without; nothing is evaluated. `host_share` is the loop
around the step, of the time that steps take; its milliseconds hardly depend on the step's, hence the share of a step
of 50 ms beside it. A save costs what the loop waits for it, and what it slows the steps that run beside it: the first
is in the breakdown, both are in the ratio of the two runs' wall time a step. A busy machine has more of either.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import jax

from zoo.recipes import RECIPES
from zoo.recipes.preparation import Prepared, prepare
from zoo.recipes.run import Run
from zoo.training.breakdown import STEP_PARTS
from zoo.training.host import keep_freed_memory
from zoo.training.loop import train


class WithoutEvaluation:
    """A task whose evaluation, which a run ends with, has nothing to do."""

    def __init__(self, task):
        self.batches, self.loss = task.batches, task.loss

    def evaluate(self, apply, params):
        """Nothing."""
        return {}


def measure(run: Run, prepared: Prepared, folder: str, every: int | None) -> dict[str, float]:
    """Seconds of each part, a step; of a new run in a folder."""
    train(
        prepared.model,
        WithoutEvaluation(prepared.task),
        folder,
        optimizer=run.optimizer,
        schedule=run.schedule,
        mesh=run.mesh,
        training=replace(run.training, evaluate_every=None, checkpoint_every=every),
        compute_dtype=run.compute_dtype,
    )
    record = json.loads((Path(folder) / "breakdown.json").read_text())
    return {part: seconds / record["steps"] for part, seconds in record["seconds"].items()}


def main(argv: list[str] | None = None) -> None:
    """Measure, print, and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="translate-dates", choices=RECIPES)
    parser.add_argument("--rows", type=int, help="a step; the recipe's own unless given")
    parser.add_argument("--steps", type=int, default=400, help="a run")
    parser.add_argument("--every", type=int, default=100, help="steps between two checkpoints")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", help="file to write")
    options = parser.parse_args(argv)
    keep_freed_memory()
    run = RECIPES[options.recipe]()
    task = run.task if options.rows is None else replace(run.task, batch_size=options.rows)
    with tempfile.TemporaryDirectory() as folder:
        run = replace(run, task=task, training=replace(run.training, num_steps=options.steps), folder=folder)
        prepared = prepare(run)
        runs: dict[int | None, list[dict[str, float]]] = {options.every: [], None: []}
        for repeat in range(options.repeats):
            for every, measured in runs.items():
                measured.append(measure(run, prepared, f"{folder}/{repeat}-{every}", every))
    result = {
        "device": jax.devices()[0].device_kind,
        "cores": len(os.sched_getaffinity(0)),
        "jax": jax.__version__,
        "command": " ".join(["benchmarks/loop.py", *(sys.argv[1:] if argv is None else argv)]),
        **summarise(runs[options.every], runs[None]),
    }
    text = json.dumps(result, indent=2)
    print(text)
    if options.json:
        Path(options.json).write_text(text + "\n")


def summarise(saving: list[dict[str, float]], plain: list[dict[str, float]]) -> dict[str, float]:
    """Medians over the runs. The last save, which every run ends with, is in both."""

    def median(runs, value):
        return statistics.median(value(run) for run in runs)

    def step(run):
        return sum(run[part] for part in STEP_PARTS)

    host = median(plain, lambda run: run["host"])
    save = median(saving, lambda run: run["checkpoint"]) - median(plain, lambda run: run["checkpoint"])
    return {
        "step_ms": 1e3 * median(plain, step),
        "host_ms": 1e3 * host,
        "host_share": median(plain, lambda run: run["host"] / step(run)),
        "host_share_of_a_50_ms_step": host / 50e-3,
        "input_share": median(plain, lambda run: run["input"] / step(run)),
        "checkpoint_share_waited": save / median(plain, step),
        "wall_ratio_with_checkpoints": median(saving, lambda run: step(run) + run["checkpoint"])
        / median(plain, lambda run: step(run) + run["checkpoint"]),
    }


if __name__ == "__main__":
    main()
