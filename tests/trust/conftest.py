"""What the attacks share: a text, an environment with caches, and the run that met no trouble."""

import json
from pathlib import Path

import attacks
import pytest


@pytest.fixture(scope="session")
def text(tmp_path_factory) -> Path:
    """Sixty short documents: Python's own docstrings, so nothing is copied in."""
    documents = [f"{name}: {getattr(str, name).__doc__}\n" for name in sorted(dir(str))]
    path = tmp_path_factory.mktemp("data") / "text.jsonl"
    path.write_text("".join(json.dumps({"text": document}) + "\n" for document in documents))
    return path


@pytest.fixture(scope="session")
def environment(tmp_path_factory) -> dict[str, str]:
    return attacks.environment(tmp_path_factory.mktemp("caches"))


@pytest.fixture(scope="session")
def arguments(text) -> tuple[str, ...]:
    return ("--data.path", str(text), *attacks.SMALL)


@pytest.fixture(scope="session")
def whole(arguments, environment, tmp_path_factory) -> Path:
    """The folder of a run that was never interrupted; whatever it compiles, the others find compiled."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    with attacks.Training(folder, arguments, environment) as training:
        assert training.finish() == 0, training.said
    return folder
