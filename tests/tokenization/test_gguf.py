"""Tokenizers from a GGUF file's metadata give the ids of the files that the metadata was made from."""

import json

import pytest
import sentencepiece
import vocabularies

from zoo.tokenization import gguf_tokenizer, load_tokenizer
from zoo.weights import CheckpointError


def byte_bpe(folder, **more) -> dict:
    vocabularies.write(folder, "GPT2")
    ids = json.loads((folder / "vocab.json").read_text())
    tokens = [token for token, _ in sorted(ids.items(), key=lambda entry: entry[1])]
    merges = [line for line in (folder / "merges.txt").read_text().splitlines() if not line.startswith("#version")]
    return {"model": "gpt2", "tokens": tokens, "merges": merges, "token_type": [3] + [1] * (len(tokens) - 1),
            "bos_token_id": 0, "eos_token_id": 0} | more  # fmt: skip


def test_byte_level_bpe(tmp_path):
    ours = gguf_tokenizer(byte_bpe(tmp_path, pre="gpt-2", chat_template="{{ messages }}"), "a.gguf")
    theirs = load_tokenizer(tmp_path, {})
    for text in (*vocabularies.SAMPLES, "<|endoftext|> a"):
        assert ours.encode(text) == theirs.encode(text)
    assert ours.eos_id == 0 and ours.chat_template == "{{ messages }}"
    framed = gguf_tokenizer(byte_bpe(tmp_path, pre="gpt-2", add_bos_token=True), "a.gguf")
    assert framed.encode("a") == [0, *theirs.encode("a")]


@pytest.mark.parametrize(("pre", "digits"), [("smollm", ["1", "2", "3", "4"]), ("qwen2", ["1", "2", "3", "4"]),
                                             ("llama-bpe", ["123", "4"])])  # fmt: skip
def test_cuts(pre, digits, tmp_path):
    tokenizer = gguf_tokenizer(byte_bpe(tmp_path, pre=pre), "a.gguf").coder.tokenizer
    assert [piece for piece, _ in tokenizer.pre_tokenizer.pre_tokenize_str("1234")] == digits


def test_sentencepiece(tmp_path):
    settings = vocabularies.write(tmp_path, "Llama")
    processor = sentencepiece.SentencePieceProcessor(model_proto=(tmp_path / "tokenizer.model").read_bytes())
    size = range(processor.get_piece_size())
    metadata = {
        "model": "llama",
        "tokens": [processor.id_to_piece(i) for i in size],
        "scores": [processor.get_score(i) for i in size],
        "token_type": [2, 3, 3] + [1] * (len(size) - 3),
        "bos_token_id": 1,
        "eos_token_id": 2,
        "unknown_token_id": 0,
    }
    ours, theirs = gguf_tokenizer(metadata, "a.gguf"), load_tokenizer(tmp_path, settings)
    for text in vocabularies.SAMPLES:
        assert ours.encode(text) == theirs.encode(text)
        assert ours.decode(ours.encode(text)) == text


def test_saved_as_files(tmp_path):
    ours = gguf_tokenizer(byte_bpe(tmp_path / "a", pre="gpt-2", chat_template="{{ messages }}"), "a.gguf")
    (tmp_path / "b").mkdir()
    ours.save(tmp_path / "b")
    again = load_tokenizer(tmp_path / "b", {})
    assert again.encode("a b") == ours.encode("a b")
    assert (again.eos_id, again.padding_side, again.chat_template) == (0, "left", "{{ messages }}")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pre": "unheard"}, "cut by 'unheard'"),
        ({"model": "bert"}, "is 'bert'"),
        ({"tokens": 3}, "no list of texts"),
        ({"merges": ["zz yy"]}, "does not fit together"),
    ],
)
def test_what_does_not_fit_is_named(change, message, tmp_path):
    with pytest.raises(CheckpointError, match=message):
        gguf_tokenizer(byte_bpe(tmp_path) | change, "a.gguf")
