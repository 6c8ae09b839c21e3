"""A run, or any checkpoint that zoo reads, as a folder that transformers opens."""

from pathlib import Path

from rich.console import Console

from zoo.bundle import Bundle
from zoo.data import Tokenizer, open_dataset
from zoo.pretrained import load
from zoo.recipes.run import Run
from zoo.saving import save
from zoo.training.state import count_parameters


def export(
    model: str, folder: str, *, step: int | None, average: int | None, head: str | None, console: Console
) -> None:
    """Write config.json, model.safetensors and the tokenizer's files, LoRA merged, and print what they are.

    Raises:
        CheckpointError: a model that no architecture of the reference describes.
        ValueError: a folder that holds a run, or zoo's own layout, already.
    """
    bundle = load(model, step=step, average=average, head=head)
    save(bundle, folder, labels=_labels(model, bundle))
    written = load(folder, head=head)
    assert written.origin is not None  # it has just been written
    name = written.origin.architecture.classes[written.origin.head]
    console.print(f"{folder}: {name}, {count_parameters(written.params):,} parameters", soft_wrap=True, highlight=False)
    if isinstance(bundle.tokenizer, Tokenizer):
        console.print(
            "its tokenizer is zoo's own, as tokenizer.json: transformers opens it with AutoTokenizer",
            soft_wrap=True,
            highlight=False,
        )
    console.print(f"next  python evaluate.py {folder}", soft_wrap=True, highlight=False)


def _labels(model: str, bundle: Bundle) -> tuple[str, ...] | None:
    """The names of a run's classes, where it was trained from scratch; a checkpoint's configuration has its own."""
    if bundle.origin is not None or not (Path(model) / "run.json").exists():
        return None
    run = Run.load(model)
    if not getattr(run.task, "head", "").endswith("classification"):
        return None
    return open_dataset(run.data).classes(run.data.label_key)
