"""What the attacks share: a text, an environment with caches, and the run that met no trouble."""

from pathlib import Path

import attacks
import pytest
import small_run


@pytest.fixture(scope="session")
def text(tmp_path_factory) -> Path:
    return small_run.write_text(tmp_path_factory.mktemp("data") / "text.jsonl")


@pytest.fixture(scope="session")
def environment(tmp_path_factory) -> dict[str, str]:
    return small_run.environment(tmp_path_factory.mktemp("caches"))


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
