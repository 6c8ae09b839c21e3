"""Every bit flip, truncation, deletion and addition in a checkpoint is found and named, and the step before is used."""

import random
import shutil
from pathlib import Path

import attacks
import orbax.checkpoint as ocp
import processes
import pytest
from attacks import Training, steps
from small_run import NUM_STEPS

import zoo
from zoo import cli
from zoo.training.manifest import DamagedError

BEFORE = 18
"""The step of the checkpoint before the last."""


@pytest.fixture
def run(whole, tmp_path) -> Path:
    """A copy of a finished run, to be damaged."""
    return shutil.copytree(whole, tmp_path / "run")


def last(run: Path) -> Path:
    return run / "checkpoints" / str(NUM_STEPS)


def files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def flip(path: Path, chance: random.Random) -> None:
    data = bytearray(path.read_bytes())
    data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    path.write_bytes(data)


def truncate(path: Path, chance: random.Random) -> None:
    path.write_bytes(path.read_bytes()[: chance.randrange(path.stat().st_size)])


def delete(path: Path, _: random.Random) -> None:
    path.unlink()


def add(path: Path, _: random.Random) -> None:
    path.with_name("unasked").touch()


def verify(run: Path, capsys) -> tuple[int, str]:
    """What `evaluate.py --verify` says, and its exit code."""
    code = 0
    try:
        cli.evaluate([str(run), "--verify"])
    except SystemExit as stop:
        code = stop.code
    return code, capsys.readouterr().out


@pytest.mark.parametrize("damage", [flip, truncate, delete, add], ids=lambda x: x.__name__)
def test_damage_to_any_file_is_found_and_named(run, capsys, damage):
    chance = random.Random(0)
    assert verify(run, capsys) == (0, f"step {BEFORE}  whole\nstep {NUM_STEPS}  whole\n")
    assert len(files(last(run))) > 15
    for path in files(last(run)):
        content = path.read_bytes()
        damage(path, chance)
        code, said = verify(run, capsys)
        changed = path.with_name("unasked") if damage is add else path
        name = changed.relative_to(last(run)).as_posix()
        assert code == 1 and f"step {NUM_STEPS}  damaged: {name} " in said, (name, said)
        assert f"step {BEFORE}  whole" in said
        path.write_bytes(content)
        path.with_name("unasked").unlink(missing_ok=True)
    assert verify(run, capsys)[0] == 0


def largest(run: Path, item: str) -> Path:
    return max(files(last(run) / item), key=lambda path: path.stat().st_size)


MORE = [("optimizer", truncate), ("position", flip), ("run", flip)]


@pytest.mark.parametrize(
    ("item", "damage"),
    [("", delete), ("params", flip), *(pytest.param(*pair, marks=pytest.mark.slow) for pair in MORE)],
)
def test_training_goes_on_from_the_step_before(run, whole, arguments, environment, item, damage):
    target = largest(run, item) if item else last(run) / "manifest.sha256"
    damage(target, random.Random(1))
    left = {path.relative_to(last(run)): path.read_bytes() for path in files(last(run))}
    with Training(run, arguments, environment) as training:
        assert training.finish() == 0, training.said[-3000:]
    told = [line for line in training.lines if "damaged" in line]
    assert len(told) == 1, training.said
    for part in (f"step {NUM_STEPS} is damaged", target.name, f"damaged-{NUM_STEPS:06d}", f"step {BEFORE} is used"):
        assert part in told[0]
    assert training.says(f"step {BEFORE} is restored")
    aside = run / "checkpoints" / f"damaged-{NUM_STEPS:06d}"
    assert {path.relative_to(aside): path.read_bytes() for path in files(aside)} == left
    attacks.assert_same_end(whole, run)


def test_nothing_begins_anew_unasked(run, arguments, environment):
    for step in steps(run):
        flip(run / "checkpoints" / str(step) / "params" / "_METADATA", random.Random(step))
    before = {path: path.read_bytes() for path in files(run)}
    with Training(run, arguments, environment) as training:
        assert training.finish() == 1
    error = [line for line in training.lines if line.startswith("error: ")]
    assert len(error) == 1 and "every checkpoint" in error[0] and error[0].count("params/_METADATA has changed") == 2
    assert {path: path.read_bytes() for path in files(run)} == before


def test_evaluation_verifies_what_it_reads(run, environment):
    flip(largest(run, "optimizer"), random.Random(2))
    assert zoo.load(run).step == NUM_STEPS  # it reads no moments
    target = largest(run, "params")
    flip(target, random.Random(3))
    with pytest.raises(DamagedError, match=rf"step {NUM_STEPS} .* damaged \(.*{target.name} has changed\)"):
        zoo.load(run)
    assert zoo.load(run, step=BEFORE).step == BEFORE
    done = processes.run(["evaluate.py", str(run)], environment=environment)
    assert done.returncode == 1 and done.stderr.count("\n") == 1 and f"step {BEFORE} is whole" in done.stderr
    done = processes.run(["evaluate.py", str(run), "--verify"], environment=environment)
    assert done.returncode == 1 and f"step {NUM_STEPS}  damaged" in done.stdout


def test_verify_refuses_what_it_cannot_use(run, capsys, tmp_path):
    for arguments, message in (
        ([str(tmp_path / "elsewhere")], "has no checkpoint"),
        ([str(run), "--prompt", "x"], "--prompt is of no"),
    ):
        with pytest.raises(SystemExit) as stop:
            cli.evaluate([*arguments, "--verify"])
        assert stop.value.code == 1 and message in capsys.readouterr().err


def test_a_damaged_configuration_is_named_and_written_anew(run, arguments, environment):
    truncate(run / "run.json", random.Random(4))
    with pytest.raises(ValueError, match=r"run\.json is damaged \("):
        zoo.load(run)
    with Training(run, arguments, environment) as training:
        assert training.finish() == 0, training.said[-3000:]
    assert zoo.load(run).step == NUM_STEPS


def write_as_before_manifests(run: Path) -> None:
    """Write the last step anew, with Orbax's own manager, which zoo used then."""
    path = last(run)
    handlers = {name: ocp.StandardCheckpointHandler() for name in ("params", "optimizer")}
    handlers |= {name: ocp.JsonCheckpointHandler() for name in ("position", "run")}
    with ocp.CheckpointManager(run / "old", item_handlers=handlers) as manager:
        with ocp.Checkpointer(ocp.CompositeCheckpointHandler(**handlers)) as reader:
            read = {name: ocp.args.StandardRestore() for name in ("params", "optimizer")}
            read |= {name: ocp.args.JsonRestore() for name in ("position", "run")}
            restored = reader.restore(path, args=ocp.args.Composite(**read))
        save = {name: ocp.args.StandardSave(restored[name]) for name in ("params", "optimizer")}
        save |= {name: ocp.args.JsonSave(restored[name]) for name in ("position", "run")}
        manager.save(NUM_STEPS, args=ocp.args.Composite(**save))
    shutil.rmtree(path)
    (run / "old" / str(NUM_STEPS)).rename(path)
    shutil.rmtree(run / "old")


def test_runs_from_before_manifests_open(run, whole, arguments, environment, capsys):
    write_as_before_manifests(run)
    code, said = verify(run, capsys)
    assert code == 0 and f"step {NUM_STEPS}  cannot be verified: it was written before" in said
    with Training(run, arguments, environment) as training:
        assert training.finish() == 0, training.said[-3000:]
    assert training.says("was written before checkpoints had manifests: it is not verified")
    assert training.says(f"step {NUM_STEPS} is the last")
    assert (run / "metrics.csv").read_bytes() == (whole / "metrics.csv").read_bytes()
    assert zoo.load(run).step == NUM_STEPS
