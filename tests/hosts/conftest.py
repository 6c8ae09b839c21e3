"""A small run of the default recipe, whose every step has the same bits however many processes take it."""

import json
import os
from pathlib import Path

import pytest
from together import OPTIONS, SAME_BITS, Together, by_hand


@pytest.fixture(scope="session")
def text(tmp_path_factory) -> Path:
    """Sixty short documents: Python's own docstrings."""
    path = tmp_path_factory.mktemp("data") / "text.jsonl"
    documents = [f"{name}: {getattr(str, name).__doc__}\n" for name in sorted(dir(str))]
    path.write_text("".join(json.dumps({"text": document}) + "\n" for document in documents))
    return path


@pytest.fixture(scope="session")
def environment(tmp_path_factory) -> dict[str, str]:
    """XLA as a user has it, and one compilation for all processes."""
    compiled = {
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path_factory.mktemp("compiled")),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        "COLUMNS": "200",
    }
    return {name: value for name, value in os.environ.items() if name != "JAX_DISABLE_MOST_OPTIMIZATIONS"} | compiled


@pytest.fixture(scope="session")
def start(text, environment, tmp_path_factory):
    """`start(folder, count, devices, *options, launcher)`: processes of the small run in a folder."""

    def start(folder: Path, count: int, devices: int, *options: str, launcher=by_hand) -> Together:
        arguments = [*OPTIONS, "--data.path", str(text), "--folder", str(folder), *options]
        places = launcher(count) if count > 1 else [{}]
        return Together(arguments, tmp_path_factory.mktemp("logs"), environment, devices, places)

    return start


@pytest.fixture(scope="session")
def alone(start, tmp_path_factory) -> Path:
    """The folder of the run by one process on one device."""
    folder = tmp_path_factory.mktemp("alone")
    with start(folder, 1, 1, *SAME_BITS) as run:
        run.finish()
    return folder
