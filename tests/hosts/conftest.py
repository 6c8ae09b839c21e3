"""A small run of the default recipe, whose every step has the same bits however many processes take it."""

from pathlib import Path

import pytest
import shared
import small_run
from together import OPTIONS, SAME_BITS, Together, by_hand


@pytest.fixture(scope="session")
def text(tmp_path_factory) -> Path:
    return small_run.text(tmp_path_factory)


@pytest.fixture(scope="session")
def environment() -> dict[str, str]:
    return small_run.environment()


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

    def train(folder: Path) -> None:
        with start(folder, 1, 1, *SAME_BITS) as run:
            run.finish()

    return shared.once(tmp_path_factory, "alone", train)
