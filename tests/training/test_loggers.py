"""Weights & Biases and trackio get the rows of metrics.csv, and a run that goes on is the same run to them."""

import json
import os
import sqlite3
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from toy import run_toy

from zoo.training.config import TrainingConfig
from zoo.training.metrics import read_metrics

SCRIPT = """
import sys
from toy import run_toy
run_toy(sys.argv[2], num_steps=int(sys.argv[3]), loggers=(sys.argv[1],), mesh={"data": 1})
"""


def train_twice(name, folder):
    """A run of 8 steps that goes on to 12, each part a process of its own."""
    tests = Path(__file__).parent
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(tests), str(tests.parents[1]), os.environ.get("PYTHONPATH", "")]),
        "WANDB_MODE": "offline",
        "TRACKIO_DIR": str(folder / "trackio"),
    }
    for steps in (8, 12):
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT, name, folder / "run", str(steps)],
            env=environment, capture_output=True, text=True, timeout=900,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
    return (folder / "run" / "logger-id").read_text()


def assert_rows(logged, folder):
    """Those of metrics.csv: all of them, in their own precision; those that were given twice are the same."""
    rows = {int(row.pop("step")): row for row in read_metrics(folder / "metrics.csv")}
    assert {step for step, _ in logged} == rows.keys() == set(range(1, 13))
    for step, values in logged:
        assert {name: np.float32(x) for name, x in values.items()} == {
            name: np.float32(x) for name, x in rows[step].items()
        }
    assert "validation_loss" in rows[5], "an evaluation is in its step's row"


def read_records(path):
    """The records of a .wandb file: after 7 bytes, blocks of 32 KiB of pieces with a checksum, length and kind each."""
    from wandb.proto import wandb_internal_pb2

    data, at, whole = path.read_bytes(), 7, b""
    while at + 7 <= len(data):
        if (left := 32768 - at % 32768) < 7:
            at += left
            continue
        length, kind = struct.unpack("<HB", data[at + 4 : at + 7])
        whole = (whole if kind in (3, 4) else b"") + data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):
            yield wandb_internal_pb2.Record.FromString(whole)


@pytest.mark.peers
def test_wandb(tmp_path):
    pytest.importorskip("wandb")
    identity = train_twice("wandb", tmp_path)
    files = sorted((tmp_path / "run" / "wandb").glob("offline-run-*/*.wandb"))
    assert [path.stem for path in files] == [f"run-{identity}"] * 2
    logged = []
    for record in (record for path in files for record in read_records(path)):
        if record.WhichOneof("record_type") == "history":
            items = {".".join(item.nested_key) or item.key: item.value_json for item in record.history.item}
            values = {name: json.loads(x) for name, x in items.items() if not name.startswith("_")}
            logged.append((int(items["_step"]), values))
    assert_rows(logged, tmp_path / "run")


@pytest.mark.peers
def test_trackio(tmp_path):
    pytest.importorskip("trackio")
    identity = train_twice("trackio", tmp_path)
    (path,) = (tmp_path / "trackio").glob("*.db")
    with sqlite3.connect(path) as database:
        found = list(database.execute("select run_name, run_id, step, metrics from metrics"))
    assert {name for name, *_ in found} == {f"run-{identity}"} and len({run for _, run, *_ in found}) == 1
    assert_rows([(step, json.loads(values)) for *_, step, values in found], tmp_path / "run")


def test_a_logger_that_is_not_there_is_one_error_before_anything_starts(tmp_path, monkeypatch):
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if not path.endswith("site-packages")])
    with pytest.raises(ValueError, match=r"'wandb', which is not installed; .*pip install"):
        run_toy(tmp_path / "run", loggers=("wandb",))
    assert not (tmp_path / "run").exists()


def test_loggers_are_known_names():
    with pytest.raises(ValueError, match=r"training.loggers is 'mlflow'; it must be wandb or trackio"):
        TrainingConfig(loggers=("mlflow",))
