"""What the attacks share: a text, an environment with caches, and the run that met no trouble."""

from pathlib import Path

import pytest
import small_run


@pytest.fixture(scope="session")
def text(tmp_path_factory) -> Path:
    return small_run.text(tmp_path_factory)


@pytest.fixture(scope="session")
def environment() -> dict[str, str]:
    return small_run.environment()


@pytest.fixture(scope="session")
def arguments(text) -> tuple[str, ...]:
    return ("--data.path", str(text), *small_run.SMALL)


@pytest.fixture(scope="session")
def whole(tmp_path_factory) -> Path:
    """The folder of a run that was never interrupted."""
    return small_run.whole(tmp_path_factory)[0]
