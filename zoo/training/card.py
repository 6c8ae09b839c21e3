"""The model card: README.md in the run's folder, so that whoever finds the folder knows what it is."""

import json
import platform
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import flax
import jax
import optax

from zoo.training.metrics import read_metrics
from zoo.training.protocol import Params
from zoo.training.run_record import as_json, write_text
from zoo.training.state import count_parameters

FILES = (
    (
        "checkpoints/",
        "parameters, optimizer state, data position and configuration of the newest steps (Orbax)",
    ),
    ("run.json", "the resolved configuration"),
    ("metrics.csv", "one row a logged step; the same bytes however often the run was interrupted"),
    ("bad-batches/", "batches whose updates were skipped, for study"),
    ("loss.png", "the loss curve"),
    ("tensorboard/", "the same metrics and the speeds for TensorBoard"),
)


def write_card(folder: str | Path, params: Params, resolved: dict[str, Any], description: str = "") -> Path:
    """Write the card of a run from its parameters (arrays or shapes), configuration and metrics.csv."""
    folder = Path(folder)
    rows = read_metrics(folder / "metrics.csv")
    sections = [
        f"# {resolved.get('recipe') or folder.name}",
        description.strip(),
        "## Results",
        "\n".join(_results(rows)),
    ]
    if (folder / "loss.png").is_file():
        sections.append("![Loss over steps](loss.png)")
    sections += [
        "## How to use it",
        "```\npython evaluate.py .    # with the path of this folder\n```",
        '```python\nfrom zoo.training.checkpoint import load_params\n\nparams, step = load_params(".")\n```',
        "## Parameters",
        "\n".join(parameter_table(params)),
        "## Configuration",
        "```\n" + "\n".join(_settings(as_json(resolved))) + "\n```",
        "## Files",
        "\n".join(f"- `{name}`: {what}" for name, what in FILES if (folder / name).exists()),
        _made_with(),
    ]
    path = folder / "README.md"
    write_text(path, "\n\n".join(section for section in sections if section) + "\n")
    return path


def _results(rows: list[dict[str, str]]) -> Iterator[str]:
    if not rows:
        yield "Nothing was logged."
        return
    evaluated = [row for row in rows if any(name.startswith("validation_") for name in row)]
    last = rows[-1]
    yield "| | value |"
    yield "|---|---|"
    yield f"| steps | {int(last['step']):,} |"
    yield f"| targets scored in training | {int(last['tokens']):,} |"
    if "loss" in last:
        yield f"| training loss of the last step (nats per target) | {float(last['loss']):.4f} |"
    for name, value in (evaluated[-1] if evaluated else {}).items():
        if name.startswith("validation_"):
            yield f"| {name.replace('_', ' ')} | {float(value):.4g} |"


def parameter_table(params: Params) -> Iterator[str]:
    """Lines of a table of the parts' numbers of parameters."""
    yield "| part | parameters |"
    yield "|---|---|"
    for name, part in params.items():
        yield f"| {name} | {count_parameters(part):,} |"
    yield f"| **all** | **{count_parameters(params):,}** |"


def _settings(value: Any, indent: str = "") -> Iterator[str]:
    for name, part in value.items():
        if isinstance(part, dict) and part:
            yield f"{indent}{name}:"
            yield from _settings(part, indent + "  ")
        else:
            yield f"{indent}{name}: {part if isinstance(part, str) else json.dumps(part)}"


def _made_with() -> str:
    device = jax.devices()[0]
    return (
        f"Made with Python {platform.python_version()}, jax {jax.__version__}, flax {flax.__version__} and "
        f"optax {optax.__version__} on {jax.device_count()} x {device.device_kind}."
    )
