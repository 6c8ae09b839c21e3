"""A run of the default recipe that is over in seconds: its options, text and environment, and one that is finished."""

import json
import os
from pathlib import Path

import processes
import pytest
import shared

NUM_STEPS, EVALUATE_EVERY, CHECKPOINT_EVERY, KEEP = 20, 5, 3, 2

OPTIONS = tuple(
    word
    for option in (
        "--model.embedding.width 32",
        "--model.decoder.width 32",
        "--model.decoder.attention.num-heads 2",
        "--model.decoder.attention.head-size 16",
        "--model.decoder.mlp.hidden-size 48",
        "--model.embedding.vocab-size 400",
        "--data.tokenizer.vocab-size 400",
        "--task.sequence-length 32",
        "--task.batch-size 8",
        "--task.stride 32",
        "--schedule.warmup-steps 2",
        "--compute-dtype float32",
    )
    for word in option.split()
)
SMALL = (
    *OPTIONS,
    *("--model.decoder.num-layers", "1"),
    *("--training.num-steps", str(NUM_STEPS)),
    *("--training.evaluate-every", str(EVALUATE_EVERY)),
    *("--training.checkpoint-every", str(CHECKPOINT_EVERY)),
    *("--training.keep", str(KEEP)),
)
"""Those of a run that is over in a second, start aside."""


def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a file of eighty short documents: Python's own docstrings, so nothing is copied in."""
    documents = [f"{name}: {getattr(str, name).__doc__}\n" for name in sorted(dir(str))]
    lines = "".join(json.dumps({"text": document}) + "\n" for document in documents)
    return shared.once(tmp_path_factory, "text.jsonl", lambda path: path.write_text(lines))


def environment() -> dict[str, str]:
    """Return XLA's settings as a user has them, with one device."""
    return os.environ | {"XLA_FLAGS": "", "JAX_DISABLE_MOST_OPTIMIZATIONS": "0", "COLUMNS": "200"}


def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Return the folder of a run with `SMALL` that was never interrupted, and what it printed; do not write there."""

    def train(path: Path) -> None:
        path.mkdir()
        command = ["train.py", "--folder", str(path / "run"), "--data.path", str(text(tmp_path_factory)), *SMALL]
        done = processes.run(command, environment=environment())
        assert done.returncode == 0, done.stderr[-3000:]
        (path / "printed").write_text(done.stdout)

    folder = shared.once(tmp_path_factory, "whole", train)
    return folder / "run", (folder / "printed").read_text()
