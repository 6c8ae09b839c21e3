"""`evaluate.py MODEL --inspect` as a user meets it: the page it writes for checkpoints and for a run."""

import json
import wave

import numpy as np
import pytest
from checkpoints import write_checkpoint
from PIL import Image
from test_ask import checkpoint
from test_report import Elements
from tiers import tiered

import zoo
from zoo import cli

PROMPT = "the cat sat"


def page_of(path) -> dict:
    return json.loads(Elements(path.read_text(encoding="utf-8")).data)


def inspected(tmp_path, model, *arguments) -> dict:
    cli.evaluate([str(model), "--inspect", "--output", str(tmp_path / "look.html"), *arguments])
    return page_of(tmp_path / "look.html")


@pytest.mark.parametrize(
    ("model_type", "head", "maps", "measure"),
    tiered(
        [
            ("bert", "masked_lm", ["encoder"], "nats per token of this text, each masked in turn"),
            ("bert", "sequence_classification", ["encoder"], "nats of what the whole model answers"),
            ("t5", "seq2seq_lm", ["encoder", "decoder", "decoder cross"], "nats per token of this text"),
        ],
        lambda model_type, head, *_: head == "masked_lm",
    ),
)
def test_checkpoints(model_type, head, maps, measure, tmp_path, capsys):
    folder = write_checkpoint(tmp_path / "checkpoint", model_type, head)
    more = ("--prefix", "a mat") if model_type == "t5" else ()
    data = inspected(tmp_path, folder, "--prompt", PROMPT, *more)
    assert "look.html in a browser" in capsys.readouterr().out
    bundle = zoo.load(folder)
    ids = bundle.tokenizer([PROMPT])["input_ids"][0]
    words = [bundle.tokenizer.decode([token], skip_special_tokens=False) for token in ids]
    assert data["maps"][0]["keys"] == words
    assert [entry["name"].removesuffix("-attention").removesuffix(" self") for entry in data["maps"]] == maps
    assert data["ablation"]["measure"] == measure and data["ablation"]["whole"] > 0
    effects = [np.array(found) for found in data["ablation"]["effects"].values()]
    assert len(effects) == len(maps) and all(np.abs(found).max() > 0 for found in effects)
    columns = data["maps"][-1]["queries"] if head != "sequence_classification" else ["the whole input"]
    assert data["lens"]["columns"] == columns
    assert np.array(data["lens"]["probabilities"]).shape == (
        data["maps"][-1]["layers"] + 1,
        len(columns),
        len(data["lens"]["answers"][0][0]),
    )


SEEING_AND_HEARING = {
    "clip-base": (
        ["--prompt", "the cat", "--image", "picture.png"],
        {"text/encoder/attention": (4, 4), "image/encoder/attention": (17, 17)},
    ),
    "vision-encoder-decoder-seq2seq_lm": (
        ["--image", "picture.png", "--prefix", "a dog"],
        {"encoder/attention": (17, 17), "decoder/attention": (3, 3), "decoder/cross_attention": (3, 17)},
    ),
    "whisper-seq2seq_lm": (
        ["--audio", "speech.wav"],
        {"encoder/attention": (19, 19), "decoder/attention": (41, 41), "decoder/cross_attention": (41, 19)},
    ),
    "bart-base": (
        ["--prompt", "the cat sat"],
        {"encoder/attention": (5, 5), "decoder/attention": (5, 5), "decoder/cross_attention": (5, 5)},
    ),
}
"""Queries and keys of each map."""


@pytest.mark.parametrize("name", tiered(SEEING_AND_HEARING, ["clip-base"]))
def test_pictures_sounds_and_two_towers(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Image.fromarray(np.arange(30 * 40 * 3, dtype=np.uint8).reshape(30, 40, 3)).save("picture.png")
    with wave.open("speech.wav", "wb") as file:
        file.setparams((1, 2, 380, 0, "NONE", ""))
        file.writeframes(np.arange(-9000, 9000, 50, dtype="<i2").tobytes())
    folder = checkpoint(tmp_path / "model", *name.rsplit("-", 1))
    if name.startswith("whisper"):
        sound = {"feature_size": 7, "sampling_rate": 380, "hop_length": 10, "chunk_length": 1}
        (folder / "preprocessor_config.json").write_text(json.dumps(sound))
    arguments, sizes = SEEING_AND_HEARING[name]
    data = inspected(tmp_path, folder, *arguments)
    assert {entry["path"]: (len(entry["queries"]), len(entry["keys"])) for entry in data["maps"]} == sizes
    assert {entry["path"] for entry in data["maps"] if entry["pictured"]} == (
        {path for path in sizes if "text" not in path and path != "decoder/attention"}
        if "--image" in arguments
        else set()
    )
    assert set(data["ablation"]["effects"]) == set(sizes) and (data["lens"] is None) == name.endswith("base")
    for entry in data["maps"]:
        rows = np.array(entry["weights"]["data"]).reshape(entry["weights"]["shape"]).sum(-1) * entry["weights"]["unit"]
        np.testing.assert_allclose(rows, 1, atol=5e-3)


def test_an_answers_two_ends_are_no_choice_to_read_layers_by(tmp_path):
    folder = write_checkpoint(tmp_path / "checkpoint", "bert", "question_answering")
    data = inspected(tmp_path, folder, "--prompt", "the cat", "--context", "sat on a mat")
    assert data["lens"] is None and data["maps"][0]["keys"].count("[SEP]") == 2


def test_masks_are_written_as_in_other_prompts(tmp_path):
    folder = write_checkpoint(tmp_path / "checkpoint", "bert", "masked_lm")
    data = inspected(tmp_path, folder, "--prompt", "the <mask> sat")
    tokenizer = zoo.load(folder).tokenizer
    assert data["maps"][0]["keys"].count(tokenizer.special["mask"]) == 1


def test_mistakes_are_one_line(tmp_path, capsys):
    folder = write_checkpoint(tmp_path / "checkpoint", "bert", "masked_lm")
    for arguments, expected in (
        ((), "--prompt is missing"),
        (("--prompt", "the " * 100), "this model reads 64"),
        (("--step", "3"), "--step is of no use here"),
    ):
        with pytest.raises(SystemExit) as stopped:
            cli.evaluate([str(folder), "--inspect", *arguments])
        error = capsys.readouterr().err
        assert stopped.value.code == 1 and expected in error and error.count("\n") == 1


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A language model's run, after two steps."""
    folder = tmp_path_factory.mktemp("run")
    (folder / "words.txt").write_text("\n\n".join(f"the cat {n} sat on the mat of {n * 7}" for n in range(400)))
    options = (
        "--model.embedding.width 32 --model.embedding.vocab-size 300 --model.decoder.width 32 "
        "--model.decoder.num-layers 2 --model.decoder.attention.num-heads 2 --model.decoder.attention.head-size 16 "
        "--model.decoder.mlp.hidden-size 48 --data.tokenizer.vocab-size 300 --task.sequence-length 64 "
        "--task.batch-size 8 --mesh.data 1 --training.num-steps 2 --training.tensorboard False --compute-dtype float32"
    )
    cli.train(["gpt-tiny", *options.split(), "--data.path", str(folder / "words.txt"), "--folder", str(folder / "run")])
    return folder / "run"


def test_a_run_is_shown_by_a_held_out_text_and_its_own_loss(run, capsys):
    cli.evaluate([str(run), "--inspect"])
    assert f"{run}/inspection.html" in capsys.readouterr().out
    data = page_of(run / "inspection.html")
    (entry,) = data["maps"]
    assert (entry["path"], entry["layers"], entry["heads"]) == ("decoder/attention", 2, 2)
    assert entry["queries"][0] == "<s>" and "cat" in "".join(entry["queries"])
    assert data["ablation"]["measure"].startswith("held-out loss, nats per token, of 8 rows")
    assert data["ablation"]["whole"] == pytest.approx(np.log(300), abs=1)
    assert np.array(data["ablation"]["effects"]["decoder/attention"]).shape == (2, 2)
