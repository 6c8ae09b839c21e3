"""What a run says at its end: held-out figures beside baselines on the same data, a sample, and what to run next."""

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from zoo.recipes.preparation import Prepared
from zoo.recipes.run import Run


def show_results(console: Console, prepared: Prepared, results: dict[str, float], with_baselines: bool) -> None:
    """Print held-out results as a table, the baselines under them where asked for."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("held out")
    table.add_column("", justify="right")
    table.add_column("", style="dim", overflow="fold")
    for figure in prepared.task.figures(results):
        table.add_row(figure.name, figure.value, figure.note)
    if with_baselines:
        with console.status("measuring the baselines on the same data"):
            for figure in prepared.task.baselines():
                table.add_row(figure.name, figure.value, figure.note, style="cyan")
    console.print(Padding(table, (1, 0)))


def show_sample(console: Console, prepared: Prepared, apply: Callable[..., Any], params: Any) -> None:
    """Print what the model makes of a few questions of the task's kind."""
    console.print("[bold]sample[/]")
    for prompt, answer in prepared.task.samples(apply, params):
        console.print(Padding(_highlighted(prompt, answer), (0, 2)))
    console.print()


def show_next(console: Console, run: Run, prepared: Prepared) -> None:
    """Print where the run lies and the commands that use it."""
    left = {"checkpoint": "checkpoints", "card": "README.md", "curve": "loss.png"}
    shown = [f"[bold]{name}[/]  {Path(run.folder) / file}" for name, file in left.items()]
    console.print("   ".join(shown), soft_wrap=True)
    options = {prepared.task.option: prepared.task.example, **getattr(prepared.task, "beside", {})}
    said = " ".join(f"--{name} {shlex.quote(value)}" for name, value in options.items())
    command = Text(f"python evaluate.py {run.folder} {said}")
    console.print(Text("next        ", style="bold"), command, sep="", soft_wrap=True)


def _highlighted(prompt: str, answer: str) -> Text:
    if answer.startswith(prompt):
        return Text(prompt, style="dim") + Text(answer[len(prompt) :])
    if "\n" in prompt:
        return Text(answer)
    return Text(f"{prompt}  ->  ", style="dim") + Text(answer)
