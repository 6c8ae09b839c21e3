"""evaluate.py on pretrained checkpoints: an answer for each kind of head, and one clear line for what does not fit."""

import io
import json
import sys
import wave
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiers import tiered
from tokenizers import Tokenizer, models, pre_tokenizers, processors

import zoo
from zoo import cli

sys.path.append(str(Path(__file__).parent / "parity"))
import small

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WORDS = [*SPECIAL, "the", "cat", "sat", "on", "a", "mat", "where", "is", "dog", "it", "was", "in", "paris", "france"]


def checkpoint(folder: Path, model_type: str, head: str) -> Path:
    """A tiny model with drawn weights, and a tokenizer of whole words."""
    with np.load(small.RECORDED / f"{model_type}-{head}.npz") as file:
        manifest = json.loads(file["manifest"].tobytes())
    small.write_folder(folder, manifest["config"], {name: tuple(shape) for name, shape in manifest["shapes"].items()})
    words = [*WORDS, *(f"word{i}" for i in range(manifest["config"].get("vocab_size", 0) - len(WORDS)))]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(SPECIAL)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    roles = {f"{role}_token": f"[{role.upper()}]" for role in ("pad", "unk", "cls", "sep", "mask")}
    (folder / "tokenizer_config.json").write_text(json.dumps(roles | {"model_max_length": 40}))
    return folder


ANSWERS = {
    "bert-masked_lm": (["--prompt", "the cat <mask> on a <mask>"], "the cat", 11),
    "bert-sequence_classification": (["--prompt", "the cat", "--pair", "sat on"], " %  b", 3),
    "bert-token_classification": (["--prompt", "the cat sat"], "cat", 3),
    "bert-question_answering": (["--prompt", "where is it", "--context", "it was in paris"], "in", 5),
    "bert-base": (["--prompt", "the cat", "--candidates", "the cat", "a dog in france"], "1.0000  the cat", 2),
    "gpt2-causal_lm": (["--prompt", "the cat", "--max-new-tokens", "4", "--temperature", "0"], "the cat", 1),
    "llama-causal_lm": (["--prompt", "a dog", "--max-new-tokens", "4", "--num-beams", "2"], "a dog", 1),
    "vit-image_classification": (["--image", "picture.png"], " %  a", 3),
    "clip-base": (["--image", "picture.png", "--candidates", "a cat", "a dog"], " %  a dog", 2),
    "t5-seq2seq_lm": (["--prompt", "the cat sat", "--num-beams", "2", "--max-new-tokens", "4"], "sat", 1),
    "bart-seq2seq_lm": (["--prompt", "the cat sat"], "(the model wrote nothing)", 1),
    "whisper-seq2seq_lm": (["--audio", "speech.wav", "--max-new-tokens", "4"], "", 1),
}


BY_DEFAULT = [name for name in ANSWERS if not name.startswith(("llama", "bart", "whisper"))]


@pytest.mark.parametrize("name", tiered(ANSWERS, BY_DEFAULT))
def test_each_head_answers(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Image.fromarray(np.arange(30 * 40 * 3, dtype=np.uint8).reshape(30, 40, 3)).save("picture.png")
    with wave.open("speech.wav", "wb") as file:
        file.setparams((2, 2, 380, 0, "NONE", ""))
        file.writeframes(np.arange(-9000, 9000, 30, dtype="<i2").tobytes())
    folder = checkpoint(tmp_path / "model", *name.split("-"))
    if name.startswith("whisper"):
        sound = {"feature_size": 7, "sampling_rate": 380, "hop_length": 10, "chunk_length": 1}
        (folder / "preprocessor_config.json").write_text(json.dumps(sound))
    arguments, expected, lines = ANSWERS[name]
    cli.evaluate([str(folder), *arguments])
    said = capsys.readouterr().out
    assert expected in said and len(said.strip().splitlines()) == lines, said


def test_chat(tmp_path, monkeypatch, capsys):
    """One message, and line by line, each answer in the light of all that was said."""
    folder = checkpoint(tmp_path / "model", "llama", "causal_lm")
    options = [str(folder), "--chat", "--max-new-tokens", "3", "--temperature", "0"]
    with pytest.raises(SystemExit):
        cli.evaluate([*options, "--prompt", "the cat"])
    assert "this checkpoint has no chat template" in capsys.readouterr().err
    template = "{% for m in messages %}{{ ('where ' if m.role == 'user' else 'is ') ~ m.content }} {% endfor %}sat"
    (folder / "chat_template.jinja").write_text(template)
    cli.evaluate([*options, "--prompt", "the cat"])
    answer = capsys.readouterr().out.strip()
    monkeypatch.setattr(sys, "stdin", io.StringIO("the cat\non a mat\n\n"))
    cli.evaluate(options)
    _, first, second = capsys.readouterr().out.strip().splitlines()
    assert first == answer and second
    bundle = zoo.load(folder)
    text = f"where the cat is {first} where on a mat sat"
    ids = bundle.tokenizer([text], add_special_tokens=False)["input_ids"]
    expected = bundle.generate(ids, max_new_tokens=3, do_sample=False).sequences[0, ids.shape[1] :]
    assert bundle.tokenizer.decode(expected) == second


def test_help_for_a_model_that_nothing_is_asked(tmp_path, capsys):
    cli.evaluate([str(checkpoint(tmp_path / "model", "clip_vision_model", "base"))])
    assert "call zoo.load" in capsys.readouterr().out


MISTAKES = {
    "another head's option": (["--prompt", "the", "--context", "cat"], "--context is of no use here"),
    "nothing to fill": (["--prompt", "the cat"], "write <mask> where a token is missing"),
    "a run's option": (["--step", "3"], "--step is of no use here"),
    "misspelt": (["--promt", "the cat"], "did you mean --prompt?"),
    "unknown head": (["--head", "seq2seq_lm"], "head is 'seq2seq_lm'"),
    "wrong value": (["--prompt", "the", "--top-p", "2"], "top_p is 2"),
    "no beam": (["--num-beams", "0"], "num_beams is 0"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_one_line(mistake, tmp_path, capsys):
    folder = checkpoint(tmp_path / "model", "bert", "masked_lm")
    arguments, expected = MISTAKES[mistake]
    with pytest.raises(SystemExit) as stop:
        cli.evaluate([str(folder), *arguments])
    said = capsys.readouterr().err
    assert stop.value.code == 1 and expected in said and len(said.strip().splitlines()) == 1, said


def test_without_a_prompt_it_says_what_it_is(tmp_path, capsys):
    cli.evaluate([str(checkpoint(tmp_path / "model", "bert", "masked_lm"))])
    said = capsys.readouterr().out
    assert "BertForMaskedLM" in said and "parameters" in said and "--prompt" in said
