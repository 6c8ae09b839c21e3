"""A search run as a user meets it: trained on pairs in a file, asked, searched with, loaded."""

import numpy as np
import pytest

import zoo
from zoo import cli

SMALL = [
    word
    for option in (
        "--model.embedding.width 32",
        "--model.embedding.vocab-size 310",
        "--model.encoder.width 32",
        "--model.encoder.num-layers 1",
        "--model.encoder.attention.num-heads 2",
        "--model.encoder.attention.head-size 16",
        "--model.encoder.mlp.hidden-size 48",
        "--data.tokenizer.vocab-size 310",
        "--task.batch-size 16",
        "--mesh.data 1",
        "--training.num-steps 3",
        "--training.tensorboard False",
        "--compute-dtype float32",
    )
    for word in option.split()
]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run's folder, after three steps."""
    pytest.importorskip("sklearn")
    folder = tmp_path_factory.mktemp("search")
    pairs = [f"{n} and {n + 1} dogs\t{n} plus {n + 1} Hunde" for n in range(10, 210)]
    (folder / "pairs.tsv").write_text("\n".join(pairs) + "\n")
    cli.train(["search-tiny", *SMALL, "--data.path", str(folder / "pairs.tsv"), "--folder", str(folder / "run")])
    return folder / "run"


def test_the_card_says_how_to_use_the_vectors(run):
    card = (run / "README.md").read_text()
    assert "bundle.embed([" in card and "validation recall at 1" in card and "validation pool" in card


def test_a_prompt_is_searched_for(run, tmp_path, capsys):
    cli.evaluate([str(run), "--prompt", "10 and 11 dogs"])
    found = capsys.readouterr().out.splitlines()
    assert len(found) > 3 and all("Hunde" in line for line in found)
    (tmp_path / "texts.txt").write_text("cats\n\n10 and 11 dogs\n")
    cli.evaluate([str(run), "--prompt", "10 and 11 dogs", "--candidates", str(tmp_path / "texts.txt"), "mice"])
    first, *others = capsys.readouterr().out.splitlines()
    assert first == " 1.0000  10 and 11 dogs" and {line[9:] for line in others} == {"cats", "mice"}
    cosines = {line[9:]: float(line[:8]) for line in others}
    bundle = zoo.load(run)
    asked, cats, mice = bundle.embed(["10 and 11 dogs", "cats", "mice"])
    assert np.allclose([asked @ cats, asked @ mice], [cosines["cats"], cosines["mice"]], atol=1e-4)


def test_mistakes_are_one_line(run, capsys):
    for arguments, expected in (
        (["--prompt", "x", "--candidates", "missing.txt"], "missing.txt"),
        (["--image", "x.png"], "this run answers --prompt"),
        (["--prompt", "x", "--output", "x.png"], "--prompt and --output: this run answers --prompt"),
        (["--prompt", "x", "--context", "y"], "--context"),
    ):
        with pytest.raises(SystemExit):
            cli.evaluate([str(run), *arguments])
        said = capsys.readouterr().err
        assert expected in said and len(said.strip().splitlines()) == 1, said
