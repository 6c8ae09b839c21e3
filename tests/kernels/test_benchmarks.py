"""The benchmark as a user runs it: what it writes follows from what it did, and what is wrong is called wrong."""

import dataclasses
import json
import os
import subprocess
import sys
import types
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from bare import bare_python
from oracle import allowed_pairs
from oracle import attention as oracle

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks import check, options, problems, reference
from benchmarks.peers import PEERS
from benchmarks.problems import ALL_CASES, BOTH, DECODE, FORWARD, Cell, Problem
from benchmarks.report import Record
from zoo.kernels import Full, Window, dense
from zoo.kernels.attention import BACKENDS
from zoo.kernels.cases import Sizes

ROOT = Path(__file__).parents[2]
SMALL = Sizes(B=2, T=12, S=12, N=4, K=2, H=4, V=4)
GRID = (
    "--cases causal --directions forward forward+backward decode --dtypes float32 --lengths 16 32 "
    "--heads 2 --head-sizes 8 --batches 3 --tokens 32 --budget-seconds 0.02"
)


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> tuple[Path, dict, str]:
    """A tiny grid in a process of its own that sees few packages: folder, content of the file, what was printed."""
    folder = tmp_path_factory.mktemp("results")
    command = [*bare_python(), "benchmarks/attention.py", *GRID.split(), "--out", str(folder)]
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=ROOT, env=os.environ | {"XLA_FLAGS": ""}, timeout=300
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    (path,) = folder.glob("attention-*.json")
    return folder, json.loads(path.read_text()), done.stdout


@pytest.mark.slow
def test_a_run_leaves_its_results(run):
    folder, content, said = run
    assert content["finished"] and content["running"] is None
    assert {path.suffix for path in folder.iterdir()} == {".json", ".png"}
    assert len(list(folder.glob("*.png"))) == 3
    cells = {tuple(row[name] for name in ("case", "direction", "S")) for row in content["results"]}
    assert len(cells) == 6 and "[6 of 6" in said
    assert "torch is not installed" in said and "tokamax is not installed" in said
    assert "jax" in content["environment"]["versions"] and "benchmarks/attention.py" in said + str(content)
    assert {"auto", "dense", "blockwise", "decode", "split_k", "jax-xla"} == {row["name"] for row in content["results"]}
    for row in content["results"]:
        assert row["error"] < 1e-5 and row["worst_row_error"] < 1e-4, row
        assert row["queries_checked"] == row["B"] * row["T"] and row["temp_bytes"] > 0


@pytest.mark.slow
def test_figures_follow_from_times(run):
    _, content, _ = run
    ceilings = content["ceilings"]
    for row in content["results"]:
        batch, heads, length = row["B"], row["N"], row["S"]
        triangle = row["case"] == "causal" and row["direction"] != DECODE
        pairs = batch * heads * (length * (length + 1) // 2 if triangle else row["T"] * length)
        assert row["live_pairs"] == pairs
        flops = 4 * row["H"] * pairs * (3.5 if row["direction"] == BOTH else 1)
        seconds = row["milliseconds"] / 1e3
        assert row["tflops"] == pytest.approx(flops / seconds / 1e12)
        assert row["fraction_of_matmul"] == pytest.approx(row["tflops"] / ceilings["matmul_tflops"]["float32"])
        if row["direction"] == DECODE:
            assert row["gb_per_second"] == pytest.approx(2 * batch * heads * length * row["H"] * 4 / seconds / 1e9)
        assert row["quartile_milliseconds"][0] <= row["milliseconds"] <= row["quartile_milliseconds"][1]


@pytest.mark.slow
def test_derived_columns(run):
    _, content, _ = run
    by_key = {(r["case"], r["direction"], r["S"], r["name"]): r for r in content["results"]}
    for (case, direction, length, name), row in by_key.items():
        if direction == BOTH:
            forward = by_key[case, FORWARD, length, name]
            assert row["backward_milliseconds"] == pytest.approx(row["milliseconds"] - forward["milliseconds"])
        if name == "auto":
            own = [r for r in content["results"] if r["kind"] == "backend" and r["S"] == length
                   and (r["case"], r["direction"]) == (case, direction)]  # fmt: skip
            best = min(r["milliseconds"] for r in own)
            assert row["behind_percent"] == pytest.approx(100 * (row["milliseconds"] / best - 1), abs=1e-9)


@pytest.mark.parametrize("case", ALL_CASES)
def test_live_pairs_are_counted_exactly(case, monkeypatch):
    monkeypatch.setattr(problems, "MAX_PAIRS_AT_ONCE", 100)  # so that rows come in several parts
    problem = Problem(Cell(case=case, direction=FORWARD, dtype="float32", sizes=SMALL))
    call, z = problem.call(), SMALL
    rows, columns = (np.broadcast_to(x, (z.B, z.T)) for x in (call.frame().query, call.frame().key_positions))
    expected = allowed_pairs(call.mask if call.mask else Full(), (z.B, z.N, z.T, z.S), rows, columns)
    assert problem.live_pairs == expected.sum()


def test_decoding_counts_the_keys_it_sees():
    sizes = dataclasses.replace(SMALL, T=1, S=400)
    problem = Problem(Cell(case="window", direction=DECODE, dtype="bfloat16", sizes=sizes))
    assert problem.live_pairs == sizes.B * sizes.N * 101  # the window is a quarter of the keys, and the query's own
    assert problem.needed_bytes == sizes.B * 101 * sizes.K * (4 + 4) * 2


@pytest.mark.parametrize(
    "case", ["relative", "sinks_dropout", "dense_bias", "key_bias", "positions", "offset_array", "lengths", "packed"]
)
def test_reference_equals_the_oracle(case, monkeypatch):
    """The benchmark's own truth, sampled, against the tests' own."""
    monkeypatch.setattr(reference, "MAX_LOGITS", 2 * SMALL.N * SMALL.S * 5)
    problem = Problem(Cell(case=case, direction=BOTH, dtype="float32", sizes=SMALL))
    found = reference.make_reference(problem)
    assert 4 < len(found.rows) < SMALL.T
    zeros = np.zeros((SMALL.B, SMALL.T, SMALL.N))
    out, _, gradients = oracle(*problem.inputs, found.grad_out, zeros, **problem.arguments)
    truth = {"out": out} | {name: gradients[name] for name in ("q", "k", "v", *problem.trained)}
    error, worst_row = found.errors(truth)
    assert error < 1e-6 and worst_row < 1e-5
    assert found.errors(truth | {"k": -gradients["k"]})[0] > 1
    assert np.isnan(found.errors(truth | {"out": out * np.nan})[0])


@pytest.mark.parametrize(
    ("case", "direction"),
    [("relative", BOTH), ("packed", FORWARD), ("symmetric_window", FORWARD), ("padding", FORWARD), ("window", DECODE)],
)
def test_a_peer_gets_the_same_problem(case, direction):
    """Masks in jax.nn's words or as arrays, and a relative bias as an array whose gradient becomes the table's."""
    sizes = dataclasses.replace(SMALL, T=1) if direction == DECODE else SMALL
    problem = Problem(Cell(case=case, direction=direction, dtype="float32", sizes=sizes))
    truth = reference.make_reference(problem)
    error, worst_row = truth.errors(PEERS["jax-xla"](problem, 64).results(truth))
    assert error < 1e-6 and worst_row < 1e-5


def test_check_finds_the_traps(monkeypatch, tmp_path, capsys):
    """A window that lets in one key too many, and a bias whose gradient is lost."""

    def leaky(call):
        if isinstance(call.mask, Window):
            call = dataclasses.replace(call, mask=Window(call.mask.left, call.mask.right + 1))
        return dense.attend(call)

    def numb(call):
        return dense.attend(dataclasses.replace(call, bias=jax.lax.stop_gradient(call.bias)))

    for name, attend in (("leaky", leaky), ("numb", numb)):
        module = types.SimpleNamespace(attend=attend, supports=dense.supports, PLATFORM=None)
        monkeypatch.setitem(BACKENDS, name, module)
    monkeypatch.setattr(check, "SIZES", dataclasses.replace(check.SIZES, T=128, S=128, H=16, V=16))
    monkeypatch.setattr(check, "DECODING", dataclasses.replace(check.SIZES, T=1))
    arguments = ["--out", str(tmp_path), "--cases", "window", "--dtypes", "float32"]
    with pytest.raises(SystemExit) as stop:
        check.main([*arguments, "--backends", "dense", "leaky", "numb"])
    assert stop.value.code == 1
    wrong = {(row["backend"], row["check"]) for row in json.loads((tmp_path / "check.json").read_text())["results"]
             if row["wrong"]}  # fmt: skip
    assert wrong == {
        ("leaky", "Window(64, 0) hides the future"),
        ("leaky", "Window(64, 16) hides the future"),
        ("leaky", "window, T=128"),
        ("numb", "DenseBias has its gradient"),
        ("numb", "RelativeBias has its gradient"),
    }
    assert "WRONG" in capsys.readouterr().out


MISTAKES = {
    "unknown case": ("--cases causl", "causl"),
    "no length": ("--lengths 0", "'0' is no whole number above 0"),
    "no number": ("--budget-seconds fast", "'fast' is no number above 0"),
    "heads": ("--heads 8 --kv-heads 3", "3 key heads do not divide 8 query heads"),
    "unknown backend": ("--backends flash", "flash"),
    "nothing left": ("--cases packed --directions decode", "needs as many queries as keys"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_one_line(mistake, capsys):
    arguments, expected = MISTAKES[mistake]
    with pytest.raises(SystemExit) as stop:
        options.parse(arguments.split(), None)
    said = capsys.readouterr().err
    assert stop.value.code == 2 and expected in said and len(said.strip().splitlines()) == 1


def test_what_ended_the_process_is_not_tried_again(tmp_path):
    cell = Cell(case="causal", direction=FORWARD, dtype="float32", sizes=SMALL)
    other = dataclasses.replace(cell, case="full")
    first = Record(tmp_path / "results.json", resume=False)
    first.finish(other, [])
    first.begin(cell, "dense")
    again = Record(tmp_path / "results.json", resume=True)
    assert again.ended_process(cell, "dense") and not again.ended_process(cell, "blockwise")
    assert problems.Cell(**vars(other)) == other and len(again.done) == 1
    assert not jnp.isnan(again.ceilings.memory)
