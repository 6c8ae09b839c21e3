"""A recurrent run as a user meets it: trained, interrupted, scored, averaged, asked, loaded, saved."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest

import zoo
from zoo import cli
from zoo.recipes import RECIPES
from zoo.recipes.run import Run
from zoo.tasks.causal_lm import CausalLMConfig
from zoo.training.manifest import list_steps

SMALL = [
    word
    for option in (
        "--model.embedding.width 16",
        "--model.embedding.vocab-size 310",
        "--model.width 16",
        "--data.tokenizer.vocab-size 310",
        "--task.source-length 24",
        "--task.batch-size 16",
        "--mesh.data 1",
        "--training.num-steps 6",
        "--training.evaluate-every 6",
        "--training.checkpoint-every 2",
        "--training.keep 3",
        "--training.tensorboard False",
    )
    for word in option.split()
]


@pytest.fixture(scope="module")
def started(tmp_path_factory):
    """A run's folder after six steps, and its command."""
    folder = tmp_path_factory.mktemp("recurrent")
    pairs = [f"{n} and {n + 1} dogs\t{n} plus {n + 1} Hunde" for n in range(10, 210)]
    (folder / "pairs.tsv").write_text("\n".join(pairs) + "\n")
    command = ["translate-dates-attention", *SMALL, "--data.path", str(folder / "pairs.tsv")]
    command += ["--folder", str(folder / "run")]
    cli.train(command)
    return folder / "run", command


def leaves(bundle):
    return [np.asarray(leaf) for leaf in jax.tree.leaves(bundle.params)]


@pytest.mark.slow
def test_an_interrupted_run_ends_in_the_same_bits(started):
    run, command = started
    whole = leaves(zoo.load(run))
    shutil.rmtree(run / "checkpoints" / "6")
    assert list_steps(run) == [2, 4]
    cli.train(command)
    assert list_steps(run) == [2, 4, 6]
    for before, after in zip(whole, leaves(zoo.load(run)), strict=True):
        np.testing.assert_array_equal(before, after)


def test_it_is_loaded_as_any_other(started, tmp_path):
    run, _ = started
    bundle = zoo.load(run)
    assert bundle.config == Run.load(run).model and bundle.step == 6
    ids = [bundle.tokenizer.sequence("10 and 11 dogs")]
    written = bundle.generate(ids, max_new_tokens=5, num_beams=2).sequences
    output = bundle(input_ids=ids, decoder_input_ids=written)
    assert output.alignment.shape == (1, written.shape[1], len(ids[0]))
    np.testing.assert_allclose(output.alignment.sum(-1), 1, atol=1e-5)
    again = zoo.load(zoo.save(bundle, tmp_path / "own", layout="zoo"))
    np.testing.assert_array_equal(again.generate(ids, max_new_tokens=5, num_beams=2).sequences, written)
    with pytest.raises(zoo.CheckpointError, match="layout='zoo' saves any"):
        zoo.save(bundle, tmp_path / "transformers")


def test_the_mean_of_checkpoints_is_loaded_and_scored(started, capsys):
    run, _ = started
    each = [leaves(zoo.load(run, step=step)) for step in (4, 6)]
    mean = zoo.load(run, average=2)
    assert mean.step == 6
    for found, *parts in zip(leaves(mean), *each, strict=True):
        np.testing.assert_allclose(found, sum(parts) / 2, atol=1e-6)
    cli.evaluate([str(run), "--average", "2"])
    said = " ".join(capsys.readouterr().out.split())
    assert "step 6, the mean of 2 checkpoints: recurrent encoder-decoder" in said and "exact match" in said
    for arguments, expected in (
        (["--average", "4"], "average is 4 checkpoints and"),
        (["--average", "2", "--step", "4"], "give one of the two"),
    ):
        with pytest.raises(SystemExit):
            cli.evaluate([str(run), *arguments])
        said = capsys.readouterr().err
        assert expected in said and len(said.strip().splitlines()) == 1, said
    with pytest.raises(ValueError, match=r"no run of train\.py"):
        zoo.load(run / "checkpoints", average=2)


def test_a_run_starts_from_it(started, tmp_path, capsys):
    run, command = started
    data = command[command.index("--data.path") :][:2]
    small = [
        "--task.batch-size",
        "16",
        "--mesh.data",
        "1",
        "--training.num-steps",
        "1",
        "--training.tensorboard",
        "False",
    ]
    options = ["--init", str(run), *data, *small, "--folder", str(tmp_path / "next")]
    cli.train(["translate-dates-lstm", *options])
    assert zoo.load(tmp_path / "next").config == Run.load(run).model
    with pytest.raises(SystemExit):
        cli.train(["translate-dates", *options[:-1], str(tmp_path / "packed")])
    assert "task.packed is True and the model is recurrent" in capsys.readouterr().err


def test_it_answers(started, capsys):
    run, _ = started
    cli.evaluate([str(run), "--prompt", "10 and 11 dogs", "--num-beams", "2"])
    assert capsys.readouterr().out.endswith("\n")


def test_its_alignment_is_looked_at(started, tmp_path, capsys):
    run, _ = started
    path = tmp_path / "look.html"
    cli.evaluate([str(run), "--inspect", "--prompt", "10 and 11 dogs", "--prefix", "10 plus", "--output", str(path)])
    assert capsys.readouterr().out == f"open {path} in a browser\n"
    data = json.loads(path.read_text().split('id="data">')[1].split("</script>")[0])
    bundle = zoo.load(run)
    ids, written = (
        bundle.tokenizer.sequence("10 and 11 dogs"),
        [bundle.tokenizer.start_id, *bundle.tokenizer.encode("10 plus")],
    )
    alignment = bundle(input_ids=[ids], decoder_input_ids=[written]).alignment
    (shown,) = data["maps"]
    assert (shown["name"], shown["layers"], shown["heads"]) == ("decoder alignment", 1, 1)
    assert shown["keys"] == [bundle.tokenizer.piece(token) for token in ids] and len(shown["queries"]) == len(written)
    weights = np.array(shown["weights"]["data"]).reshape(alignment.shape) * shown["weights"]["unit"]
    np.testing.assert_allclose(weights, alignment, atol=1e-4)
    # What makes no sense without layers of heads is left out.
    assert (shown["rollout"], shown["distance"], shown["query"], data["lens"], data["ablation"]) == (None,) * 5


@pytest.mark.parametrize(
    ("change", "mend"),
    [
        ({"task": {"packed": True}}, "task.packed is True and the model is recurrent"),
        ({"layers": "scanned"}, "layers is 'scanned' and the model is recurrent"),
        ({"task": CausalLMConfig()}, "a model of RecurrentConfig does not learn CausalLMConfig"),
    ],
)
def test_what_a_recurrent_model_cannot_do_is_refused(change, mend):
    run = RECIPES["translate-dates-lstm"]()
    if isinstance(change.get("task"), dict):
        change = {"task": dataclasses.replace(run.task, **change["task"])}
    with pytest.raises(ValueError, match=mend):
        dataclasses.replace(run, **change)
