"""A run of the default recipe that is over in seconds, and what its processes need: options, a text, an environment."""

import json
import os
from pathlib import Path

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


def write_text(path: Path) -> Path:
    """Write eighty short documents: Python's own docstrings, so nothing is copied in."""
    documents = [f"{name}: {getattr(str, name).__doc__}\n" for name in sorted(dir(str))]
    path.write_text("".join(json.dumps({"text": document}) + "\n" for document in documents))
    return path


def environment(cache: Path) -> dict[str, str]:
    """One device, as a user has, and one compilation, of programs and of modules, for all processes."""
    return os.environ | {
        "XLA_FLAGS": "",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "0",
        "JAX_COMPILATION_CACHE_DIR": str(cache / "programs"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        "PYTHONPYCACHEPREFIX": str(cache / "modules"),
        "COLUMNS": "200",
    }
