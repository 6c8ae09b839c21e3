"""The benchmark of whole models as a user runs it: every kind of work, checked before it is timed."""

import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest
from bare import bare_python

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks import model_page, model_report, models
from benchmarks.model_cells import CACHE, DECODE, FIRST_CALLS, FORWARD, SUITES, TRAINING, Cell, Grid
from benchmarks.model_problems import Problem
from benchmarks.model_workers import Failed, Worker
from benchmarks.pages import show

ROOT = Path(__file__).parents[1]
PACKAGES = ("optax", "jaxtyping", "wadler_lindig", "absl", "etils", "msgpack", "rich", "pygments", "yaml", "treescope",
            "typing_extensions")  # fmt: skip
"""optax, jaxtyping, and what these and flax need."""
CHOICE = "--suite small --dtypes float32 --models gpt2-toy bert-toy --no-compile --together --budget-seconds 0.02"


@pytest.fixture(
    scope="module", params=[False, pytest.param(True, marks=pytest.mark.peers)], ids=["alone", "beside its peers"]
)
def run(request, tmp_path_factory) -> dict:
    """The content of the results file of a small run, in a process of its own."""
    if request.param:
        pytest.importorskip("torch")
        pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("results")
    # Without its peers it needs no more than what a rented machine has.
    command = [sys.executable] if request.param else bare_python(*PACKAGES)
    command += ["benchmarks/models.py", *CHOICE.split(), "--out", str(folder)]
    environment = os.environ | {"XLA_FLAGS": ""}
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    (path,) = folder.glob("models-*.json")
    assert path.with_suffix(".png").exists() == request.param
    return json.loads(path.read_text()) | {"peers": request.param, "page": path.with_suffix(".md").read_text()}


@pytest.mark.slow
def test_every_work_is_measured_and_right(run):
    assert run["finished"]
    assert {row["work"] for row in run["results"]} == {FORWARD, TRAINING, DECODE, CACHE}
    for row in run["results"]:
        assert 0 < row["quartile_milliseconds"][0] <= row["milliseconds"] <= row["quartile_milliseconds"][1]
        exact = row["name"] in ("zoo", "torch eager") or row["work"] == CACHE
        assert abs(row["error"]) <= (model_report.TOLERANCE["float32"] if exact else model_report.NATS_TOLERANCE)
        assert row["tokens_per_second"] > 0 and row["first_call_seconds"] > 0
        share = row["mfu"] if row["work"] in (FORWARD, TRAINING) else row["fraction_of_memory"]
        assert 0 < share < 2, row
    missing = [entry for entry in run["skipped"] if "is not installed" in entry["reason"]]
    assert bool(missing) != run["peers"]


@pytest.mark.slow
def test_the_page_shows_all_that_was_measured(run):
    for heading in model_page.HEADINGS.values():
        assert f"## {heading}" in run["page"]
    lines = [line.split(" | ") for line in run["page"].splitlines() if line.startswith("| ")]
    shown = [(line[1], line[3].partition(" ")[0]) for line in lines if "(" in line[3] and line[2] != "ratio"]
    assert sorted(shown) == sorted((row["name"], show(row["milliseconds"])) for row in run["results"])
    for row in run["skipped"]:
        assert row["reason"] in run["page"].partition("## What was left out")[2]


@pytest.mark.slow
def test_first_calls_are_timed_cold_and_in_a_second_process(tmp_path, monkeypatch):
    toy = Grid(model="bert-toy", work=FORWARD, sizes=((1, 16),), dtypes=("float32",))
    monkeypatch.setitem(SUITES, FIRST_CALLS, (toy,))
    models.main(["--first-calls", "--no-peers", "--budget-seconds", "0.02", "--out", str(tmp_path)])
    (path,) = tmp_path.glob("first-calls-*.json")
    (row,) = json.loads(path.read_text())["results"]
    assert row["first_call_seconds"] > row["milliseconds"] / 1e3 and row["warm_first_call_seconds"] > 0
    cold, warm = (f"{row[name]:.1f}" for name in ("first_call_seconds", "warm_first_call_seconds"))
    assert f"{cold} ({warm})" in path.with_suffix(".md").read_text()


@pytest.mark.slow
def test_peers_have_the_same_weights(run):
    rows = [row for row in run["results"] if row["work"] != CACHE]
    own = {"zoo", "zoo, int8", "zoo, w8a8"}
    if not run["peers"]:
        assert {row["name"] for row in rows} == own
        return
    ratios = {(row["cell"], row["name"]): row["ratio"] for row in rows}
    assert {name for _, name in ratios} == own | {"torch eager"}
    assert all(ratio == 1 for (_, name), ratio in ratios.items() if name == "torch eager")


def test_what_is_wrong_is_refused():
    cell = Cell(model="gpt2-toy", work=FORWARD, dtype="float32", batch=1, length=2)
    right = {"output": np.ones((1, 2, 3))}
    assert model_report.check(cell, right, expecting(right)) == 0
    with pytest.raises(Failed, match="WRONG"):
        model_report.check(cell, {"output": right["output"] * 1.001}, expecting(right))
    decode = Cell(model="gpt2-toy", work=DECODE, dtype="float32", batch=1, length=1, new_tokens=2)
    right, other = ({"tokens": np.array([[1, 2, last]])} for last in (4, 3))
    with pytest.raises(Failed, match="WRONG"):
        model_report.check(decode, other, expecting(right))
    # Whose weights are rounded may write other tokens, as long as the model holds them nearly as likely.
    for nats, accepted in ((0.01, True), (0.3, False), (float("nan"), False)):
        expected = expecting(right, nats=lambda tokens, nats=nats: 2 + nats * (tokens[0, -1] == 3))
        with contextlib.nullcontext() if accepted else pytest.raises(Failed, match="WRONG"):
            assert model_report.check(decode, other, expected, exact=False) == pytest.approx(nats)
    # Of two beams that are worth the same, either may win.
    beams = dataclasses.replace(decode, num_beams=4)
    assert model_report.check(beams, other, expecting(right, nats=lambda _: 2.0)) == 0
    with pytest.raises(Failed, match="WRONG"):
        model_report.check(beams, other, expecting(right, nats=lambda tokens: 2 + 1e-4 * (tokens[0, -1] == 3)))


def expecting(results, nats=None):
    return types.SimpleNamespace(results=results, nats=nats)


def test_a_worker_that_ends_or_fails_is_named():
    cell = Cell(model="gpt2-toy", work=FORWARD, dtype="float32", batch=1, length=4)
    with pytest.raises(Failed, match="KeyError: 'another'"):
        Worker(cell, "another", apart=True)
    with Worker(cell, "zoo", apart=True) as worker:
        assert worker.ask("peak") > 0 and worker.first_call_seconds > worker.ask("sample", 1) > 0
        os.kill(worker._process.pid, signal.SIGKILL)
        with pytest.raises(Failed, match="its process ended, code -9"):
            worker.ask("results")


@pytest.mark.slow
def test_contenders_in_one_process_give_the_same():
    """As on an accelerator, whose memory is not the host's."""
    cell = Cell(model="gpt2-toy", work=FORWARD, dtype="float32", batch=1, length=4)
    with Worker(cell, "zoo", apart=True) as apart, Worker(cell, "zoo", apart=False) as together:
        found, other = apart.ask("results")["output"], together.ask("results")["output"]
        np.testing.assert_allclose(found, other, rtol=1e-4, atol=1e-5)
        assert together.ask("sample", 1) > 0 and together.first_call_seconds > 0
    with pytest.raises(Failed, match="KeyError: 'another'"):
        Worker(cell, "another", apart=False)


def test_padding_is_neither_read_nor_compared():
    cell = Cell(model="bert-toy", work=FORWARD, dtype="float32", batch=4, length=8, padded=True)
    problem = Problem(cell)
    assert problem.num_tokens == problem.inputs["attention_mask"].sum() == 2 + 4 + 6 + 8
    output = np.ones((4, 8, 3))
    other = np.where(problem.inputs["attention_mask"][..., None] == 1, output, 7)
    assert model_report.check(cell, {"output": other}, expecting({"output": output})) == 0


def test_flops_of_a_training_step_are_three_forward_passes():
    cells = {
        work: Cell(model="gpt2-toy", work=work, dtype="float32", batch=1, length=4) for work in (FORWARD, TRAINING)
    }
    flops = {work: Problem(cell).flops for work, cell in cells.items()}
    assert flops[TRAINING] == 3 * flops[FORWARD] > 0


def test_a_resumed_run_leaves_out_what_it_has(tmp_path):
    cells = [cell for grid in SUITES["small"] for cell in grid.cells()]
    record = model_report.Record(tmp_path, resume=False)
    record.results.append({"cell": str(cells[0])})
    record.write()
    again = model_report.Record(tmp_path, resume=True)
    assert [again.has(cell) for cell in cells] == [True] + [False] * (len(cells) - 1)
    assert again.ceilings.record() == record.ceilings.record()
    assert not model_report.Record(tmp_path, resume=False).has(cells[0])


def test_figures_of_two_processors_do_not_mix(tmp_path):
    path = model_report.Record(tmp_path, resume=False).path
    path.write_text(json.dumps({"environment": {"processor": "Another, family 6"}, "ceilings": {}, "results": []}))
    with pytest.raises(SystemExit, match=r"another processor \(Another, family 6; this is .+\); go on there, or give"):
        model_report.Record(tmp_path, resume=True)
    path.write_text(json.dumps({"environment": {}, "ceilings": {}, "results": []}))
    with pytest.raises(SystemExit, match="an unknown one"):
        model_report.Record(tmp_path, resume=True)
    assert not model_report.Record(tmp_path, resume=False).results


def test_suites_have_every_family():
    for name in ("default", "small"):
        types = {Problem(cell).fields["model_type"] for grid in SUITES[name] for cell in grid.cells()}
        assert types == {"bert", "gpt2", "t5", "vit", "llama"}
