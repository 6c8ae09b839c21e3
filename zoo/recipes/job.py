"""The jobs behind the two scripts: train and report, score, answer a prompt."""

from pathlib import Path
from typing import Any

import jax
from rich.console import Console

from zoo.data import open_dataset
from zoo.pretrained import load_run_params
from zoo.recipes.companions import make_companions
from zoo.recipes.preparation import prepare
from zoo.recipes.report import show_next, show_results, show_sample
from zoo.recipes.run import Run
from zoo.recipes.start import begin
from zoo.serialization import as_dict
from zoo.tasks.report import Question
from zoo.training.hosts import first_one_first, is_first
from zoo.training.loop import check_folder, train
from zoo.training.metrics import read_metrics
from zoo.training.one_device import one_device
from zoo.training.state import bind_apply, count_parameters
from zoo.training.tuning import merge


def train_and_report(run: Run, console: Console) -> None:
    """Train in the run's folder, going on from its newest checkpoint, and print results, a sample and what is next."""
    run.mesh.sizes(jax.device_count())  # raises where they do not fit
    console.quiet = console.quiet or not is_first()
    with first_one_first():
        dataset = open_dataset(run.data)
    start = begin(run, dataset)
    run, resolved = start.run, as_dict(start.run)
    check_folder(run.folder, resolved)
    make_companions(run, console)
    start.save()
    with first_one_first():
        prepared = prepare(run, dataset)
    about = list(start.describe())
    for line in about:
        console.print(line, soft_wrap=True, highlight=False)
    state = train(
        prepared.model,
        prepared.task,
        run.folder,
        optimizer=run.optimizer,
        schedule=run.schedule,
        mesh=run.mesh,
        training=run.training,
        resolved=resolved,
        params=start.params,
        frozen=start.frozen,
        compute_dtype=run.compute_dtype,
        description="\n\n".join(filter(None, (getattr(prepared.task, "description", ""), _listed(about)))),
    )
    prefix = "validation_"
    last = read_metrics(Path(run.folder) / "metrics.csv")[-1]
    results = {name.removeprefix(prefix): float(x) for name, x in last.items() if name.startswith(prefix)}
    show_results(console, prepared, results, with_baselines=True)
    with one_device(merge(state.params, start.frozen)) as params:
        show_sample(console, prepared, bind_apply(prepared.model, run.compute_dtype), params)
    show_next(console, run, prepared)


def score(run: Run, wanted: Any, console: Console) -> None:
    """Print held-out results and a sample of the checkpoint, or of the mean, that a `zoo.cli.Evaluation` names."""
    params, step = _params(run, wanted)
    mean = "" if wanted.average is None else f", the mean of {wanted.average} checkpoints"
    prepared = prepare(run)
    apply = bind_apply(prepared.model, run.compute_dtype)
    console.print(f"{run.folder}, step {step}{mean}: {run.model.family}, {count_parameters(params):,} parameters")
    results = prepared.task.evaluate(apply, params)
    show_results(console, prepared, results, with_baselines=False)
    show_sample(console, prepared, apply, params)


def answer(run: Run, wanted: Any, console: Console) -> None:
    """Print what a checkpoint makes of the prompt of a `zoo.cli.Evaluation`."""
    params, _ = _params(run, wanted)
    prepared = prepare(run)
    task = prepared.task
    needs = (task.option, *getattr(task, "beside", {}))
    extras = getattr(task, "extras", ())
    given = [name for name in _QUESTION if getattr(wanted, name)]
    if task.option not in given or not {*given} <= {*needs, *extras}:
        known = " and ".join(f"--{name}" for name in needs)
        more = "".join(f", --{name} where wanted" for name in extras)
        raise ValueError(f"{' and '.join(f'--{name}' for name in given)}: this run answers {known}{more}")
    asked = {name: getattr(wanted, name) for name in given}
    question = Question(**asked, options=wanted.options, seed=wanted.seed)
    text = task.respond(bind_apply(prepared.model, run.compute_dtype), params, question)
    for piece in [text] if isinstance(text, str) else text:
        console.out(piece, end="", highlight=False)
    console.out()


_QUESTION = ("prompt", "image", "pair", "context", "prefix", "candidates", "output", "variants")


def write_predictions(run: Run, wanted: Any, console: Console) -> None:
    """Write a checkpoint's predictions for the held-out data to the file of a `zoo.cli.Evaluation`.

    Raises:
        ValueError: a task whose predictions no scorer of the field reads.
    """
    params, step = _params(run, wanted)
    prepared = prepare(run)
    if not hasattr(prepared.task, "predictions"):
        raise ValueError("--predictions: this run's task has none that a scorer reads; leave it out for its own scores")
    path = Path(wanted.predictions)
    for name, text in prepared.task.predictions(bind_apply(prepared.model, run.compute_dtype), params).items():
        file = path.with_name(f"{path.stem}.{name}{path.suffix}") if name else path
        file.write_text(text, encoding="utf-8")
        console.print(f"{file}, of {run.folder}, step {step}", soft_wrap=True, highlight=False)


def _listed(lines: list[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


def _params(run: Run, wanted: Any) -> tuple[Any, int]:
    return load_run_params(Path(run.folder), wanted.step, wanted.average)
