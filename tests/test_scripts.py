"""The two scripts as a user meets them: train, kill, go on, score, sample; and every mistake in one line."""

import json
from pathlib import Path

import numpy as np
import processes
import pytest
import small_run

import zoo
from zoo import cli
from zoo.recipes import DEFAULT, RECIPES
from zoo.recipes.run import Run
from zoo.serialization import as_dict, from_dict


@pytest.fixture(scope="module")
def environment() -> dict[str, str]:
    return small_run.environment()


def script(name: str, *arguments: str, env: dict[str, str], code: int = 0) -> str:
    """Run a script to its end; return what it printed."""
    done = processes.run([name, *arguments], environment=env)
    assert done.returncode == code, f"exit {done.returncode}: {done.stdout[-2000:]}{done.stderr[-3000:]}"
    return done.stdout if code == 0 else done.stderr


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> tuple[Path, str]:
    """A finished small run of the default recipe, and what training printed."""
    return small_run.whole(tmp_path_factory)


def test_training_reports_and_leaves_everything(trained):
    folder, said = trained
    for expected in ("bits per byte", "5-gram", "xz -9", "sample", "evaluate.py"):
        assert expected in said
    for name in (
        "run.json",
        "metrics.csv",
        "loss.png",
        "README.md",
        "tokenizer.model",
        "checkpoints",
        "tensorboard",
    ):
        assert (folder / name).exists(), name
    assert Run.load(folder).training.num_steps == small_run.NUM_STEPS


def test_evaluate_scores_and_samples(trained, environment):
    folder, _ = trained
    said = script("evaluate.py", str(folder), env=environment)
    last = (folder / "metrics.csv").read_text().splitlines()
    column = last[0].split(",").index("validation_bits_per_byte")
    assert f"{float(last[-1].split(',')[column]):.4f}" in said
    assert "tokens scored" in said and "perplexity" in said and "sample" in said


def test_evaluate_continues_a_prompt(trained, environment):
    folder, _ = trained
    arguments = (str(folder), "--prompt", "Return a", "--max-new-tokens", "12")
    first = script("evaluate.py", *arguments, "--seed", "1", env=environment)
    assert first.startswith("Return a")
    assert script("evaluate.py", *arguments, "--seed", "1", env=environment) == first
    others = script("evaluate.py", *arguments, "--seed", "2", "--temperature", "1.5", env=environment)
    assert others != first


def test_zoo_load_opens_a_run(trained):
    folder, _ = trained
    bundle = zoo.load(folder)
    ids = np.array([[bundle.tokenizer.bos_id, *bundle.tokenizer.encode("Return the")]], np.int32)
    out = bundle(input_ids=ids)
    assert out.logits.shape == (*ids.shape, 400)
    generated = bundle.generate(ids, max_new_tokens=5)
    assert int(generated.sequences[0, ids.shape[1]]) == int(out.logits[0, -1].argmax())
    quantized = zoo.load(folder, quantize="int8")(input_ids=ids).logits
    error = np.abs(quantized - out.logits).max() / np.abs(out.logits).max()
    assert 1e-4 < error < 0.05
    with pytest.raises(ValueError, match=r"input_ids\[0, 0\] is 400; this model knows ids 0 to 399"):
        bundle(input_ids=np.array([[400]]))
    with pytest.raises(ValueError, match=r"input_ids\[0, 1\] is -1"):
        bundle.generate(np.array([[3, -1]]))


def test_another_configuration_is_refused(trained, environment, tmp_path_factory):
    folder, _ = trained
    before = sorted(path.name for path in (folder / "checkpoints").iterdir())
    given = ("--data.path", str(small_run.text(tmp_path_factory)), "--folder", str(folder), *small_run.SMALL)
    said = script("train.py", *given, "--optimizer.learning-rate", "0.5", env=environment, code=1)
    assert "optimizer.learning_rate" in said and "0.5" in said
    assert len(said.strip().splitlines()) == 1
    assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == before


MISTAKES = {
    "unknown recipe": (["gpt-tny"], "did you mean gpt-tiny?"),
    "unknown field": (["--optimizer.learning-rat", "1"], "did you mean --optimizer.learning-rate?"),
    "wrong type": (["--training.num-steps", "many"], "'many'"),
    "wrong choice": (["--optimizer.name", "sgd"], "'sgd'"),
    "wrong value": (["--model.decoder.num-layers", "0"], "num_layers is 0"),
    "two vocabularies": (["--data.tokenizer.vocab-size", "500"], "give both the same value"),
    "missing file": (["--data.path", "no/such/file.txt"], "no/such/file.txt"),
    "unknown dataset": (["--data.name", "zoo_stdlb"], "zoo_stdlib"),
    "too many devices": (["--mesh.data", "1000"], "1000"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_one_line(mistake, capsys, tmp_path):
    arguments, expected = MISTAKES[mistake]
    with pytest.raises(SystemExit) as stop:
        cli.train([*arguments, *([] if mistake == "unknown recipe" else ["--folder", str(tmp_path / "run")])])
    said = capsys.readouterr().err
    assert stop.value.code not in (0, None)
    assert expected in said and len(said.strip().splitlines()) == 1, said
    assert not (tmp_path / "run" / "checkpoints").exists()


@pytest.mark.parametrize("content", ["", "\n\n"])
def test_empty_file_is_named(content, capsys, tmp_path):
    path = tmp_path / "empty.jsonl"
    path.write_text(content)
    with pytest.raises(SystemExit) as stop:
        cli.train(["--data.path", str(path), "--folder", str(tmp_path / "run")])
    said = capsys.readouterr().err
    assert stop.value.code == 1 and str(path) in said and len(said.strip().splitlines()) == 1


def test_evaluate_names_a_folder_without_a_run(capsys, tmp_path):
    with pytest.raises(SystemExit) as stop:
        cli.evaluate([str(tmp_path)])
    assert stop.value.code == 1
    assert "is not a run folder" in capsys.readouterr().err
    (tmp_path / "model.json").write_text("{}")
    with pytest.raises(SystemExit):
        cli.evaluate([str(tmp_path)])
    assert "use zoo.load" in capsys.readouterr().err


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_survive_json(name):
    run = RECIPES[name]()
    assert from_dict(Run, json.loads(json.dumps(as_dict(run))), "x") == run


def test_a_run_from_before_models_had_kinds_opens():
    fields = as_dict(RECIPES["bert-tiny"]())
    del fields["model"]["kind"]
    assert from_dict(Run, fields, "x").model == RECIPES["bert-tiny"]().model


def test_help_lists_recipes_and_fields(capsys):
    cli.train(["--help"])
    said = capsys.readouterr().out
    assert all(name in said for name in RECIPES)
    with pytest.raises(SystemExit) as stop:
        cli.train([DEFAULT, "--help"])
    assert stop.value.code == 0
    assert "--optimizer.learning-rate" in capsys.readouterr().out
