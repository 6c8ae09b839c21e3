"""Two runs in one folder would tear each other's files: the second waits a little, and is refused."""

import pytest
from toy import run_toy

from zoo.training import run_lock
from zoo.training.run_lock import hold


def test_a_second_run_in_a_folder_is_refused_and_waits_for_one_that_ends(tmp_path, monkeypatch):
    monkeypatch.setattr(run_lock, "PATIENCE", 0.2)
    with hold(tmp_path), pytest.raises(ValueError, match=r"another process trains in .*choose another --folder"):
        run_toy(tmp_path)
    assert not any(tmp_path.iterdir())
    with hold(tmp_path), hold(tmp_path.parent):
        pass
    with hold(tmp_path):
        pass


def test_where_folders_cannot_be_locked_runs_go_on(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError("no locks here")

    monkeypatch.setattr("fcntl.flock", refuse)
    with hold(tmp_path):
        pass
