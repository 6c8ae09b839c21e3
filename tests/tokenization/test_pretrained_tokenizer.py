"""Tokenizers from every kind of vocabulary file, without torch; the reference's own are compared in tests/parity."""

import copy
import json

import numpy as np
import pytest
import sentencepiece
import vocabularies

from zoo.tokenization import load_tokenizer
from zoo.weights import CheckpointError

OF_SENTENCEPIECE = {
    "T5": "spiece.model",
    "XLMRoberta": "sentencepiece.bpe.model",
    "DebertaV2": "spm.model",
    "Pegasus": "spiece.model",
    "Llama": "tokenizer.model",
    "MBart": "sentencepiece.bpe.model",
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    made = {}

    def get(kind):
        if kind not in made:
            made[kind] = tmp_path_factory.mktemp(kind)
            vocabularies.write(made[kind], kind)
        return made[kind]

    return get


@pytest.fixture
def bert(folders):
    return load_tokenizer(folders("Bert"), {"type_vocab_size": 2, "max_position_embeddings": 16})


@pytest.mark.parametrize("kind", OF_SENTENCEPIECE)
def test_pieces_are_those_of_sentencepiece(kind, folders):
    tokenizer = load_tokenizer(folders(kind), {})
    model = (folders(kind) / OF_SENTENCEPIECE[kind]).read_bytes()
    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    for text in vocabularies.SAMPLES:
        ours = [tokenizer.coder.token(i) for i in tokenizer.encode(text, add_special_tokens=False)]
        theirs = processor.encode(text, out_type=str)
        unknown = tokenizer.special.get("unk")
        assert len(ours) == len(theirs)
        assert all(a in (b, unknown) for a, b in zip(ours, theirs, strict=True)), (ours, theirs)


@pytest.mark.parametrize("kind", ["GPT2", "Roberta", "Llama"])
def test_bytes_lose_nothing(kind, folders):
    tokenizer = load_tokenizer(folders(kind), {})
    for text in vocabularies.SAMPLES:
        assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.parametrize("kind", vocabularies.WRITERS)
def test_special_tokens_and_decoding(kind, folders):
    tokenizer = load_tokenizer(folders(kind), {})
    whole, bare = tokenizer.encode("the bank"), tokenizer.encode("the bank", add_special_tokens=False)
    assert (len(whole) > len(bare)) == (kind not in ("GPT2", "Qwen2"))
    assert tokenizer.decode(whole) == tokenizer.decode(bare) == "the bank"
    assert tokenizer.decode([]) == ""


def test_batches_are_padded_on_either_side(bert):
    batch = bert(["the bank of the river", "money"])
    assert {name: array.dtype for name, array in batch.items()} == dict.fromkeys(
        ("input_ids", "attention_mask", "token_type_ids"), np.dtype(np.int32)
    )
    left = bert(["the bank of the river", "money"], padding_side="left")
    count = int(batch["attention_mask"][1].sum())
    assert (batch["input_ids"][1, count:] == bert.pad_id).all()
    assert (left["input_ids"][1, -count:] == batch["input_ids"][1, :count]).all()
    assert (left["attention_mask"][1] == batch["attention_mask"][1, ::-1]).all()
    with pytest.raises(ValueError, match="differ in length"):
        bert(["the bank of the river", "money"], padding=False)
    with pytest.raises(ValueError, match="1 texts and 2 second texts"):
        bert(["a"], ["b", "c"])


def test_pairs_are_cut_at_the_longer(bert):
    pair = bert("money in the bank", "the bank of the river and more " * 4, truncation=True, max_length=24)
    ids, types = pair["input_ids"][0], pair["token_type_ids"][0]
    first = bert.encode("money in the bank", add_special_tokens=False)
    assert len(ids) == 24
    assert ids[0] == bert.special_id("cls") and ids[-1] == bert.special_id("sep")
    assert list(ids[1 : len(first) + 1]) == first
    assert types.tolist() == [0] * (len(first) + 2) + [1] * (22 - len(first))
    assert bert("the bank " * 20, truncation=True)["input_ids"].shape == (1, 16)
    with pytest.raises(ValueError, match="special tokens alone take 3"):
        bert("a", "b", truncation=True, max_length=2)


def test_offsets_point_into_the_text(bert):
    text = "Money, in the bank."
    found = bert.offsets("Where?", text)
    spans = [span for span, which in zip(found.offsets, found.sequence_ids, strict=True) if which == 1]
    assert "".join(text[a:b] for a, b in spans) == text.replace(" ", "")


@pytest.mark.parametrize("kind", ["MBart", "MBart50", "M2M100"])
def test_source_language(kind, folders):
    tokenizer = load_tokenizer(folders(kind), {})
    code = "de" if kind == "M2M100" else "de_DE"
    ids = tokenizer.for_language(code).encode("the bank")
    token = tokenizer.coder.token(ids[-1] if kind == "MBart" else ids[0])
    assert token.strip("_") == code
    assert [i for i in ids if i in tokenizer.encode("the bank")] == ids[1:] or kind == "MBart"
    with pytest.raises(ValueError, match="xx_YY"):
        tokenizer.for_language("xx_YY")


def test_chat_template_runs_in_a_sandbox(folders, tmp_path):
    vocabularies.write(tmp_path, "GPT2")
    turns = "{% for m in messages %}<{{ m['role'] }}>{{ m.content }}{% endfor %}"
    template = turns + "{% if add_generation_prompt %}<a>{% endif %}"
    (tmp_path / "chat_template.jinja").write_text(template)
    tokenizer = load_tokenizer(tmp_path, {})
    assert tokenizer.apply_chat_template([{"role": "user", "content": "hi"}]) == "<user>hi<a>"
    (tmp_path / "chat_template.jinja").write_text("{{ ().__class__.__bases__[0].__subclasses__() }}")
    with pytest.raises(ValueError, match="chat template cannot be used"):
        load_tokenizer(tmp_path, {}).apply_chat_template([])
    with pytest.raises(ValueError, match="no chat template"):
        load_tokenizer(folders("GPT2"), {}).apply_chat_template([])


def test_no_files_no_tokenizer(tmp_path):
    assert load_tokenizer(tmp_path, {}) is None


@pytest.mark.parametrize(
    ("kind", "name", "content", "message"),
    [
        ("GPT2", "merges.txt", b"a b c d\n", "do not fit"),
        ("GPT2", "vocab.json", b"[1, 2]", "do not fit"),
        ("T5", "spiece.model", b"\xff\x00garbage", "SentencePiece"),
        ("Marian", "vocab.json", b'{"a": 1}', "number the pieces"),
        ("Marian", "source.spm", b"nothing", "SentencePiece"),
        ("Bert", "tokenizer.json", b"{}", "no tokenizer that can be read from tokenizer.json"),
        ("Bert", "tokenizer_config.json", b"[]", "must be an object"),
    ],
)
def test_damaged_files_are_named(kind, name, content, message, tmp_path):
    vocabularies.write(tmp_path, kind)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=message) as caught:
        load_tokenizer(tmp_path, {})
    assert str(tmp_path) in str(caught.value)


def test_unknown_kind_is_named_where_it_is_used(tmp_path):
    """The model loads; a Japanese BERT's vocab.txt is not to be read as an English one's."""
    (tmp_path / "vocab.txt").write_text("[PAD]\n[UNK]\n")
    tokenizer = load_tokenizer(tmp_path, {"model_type": "bert", "tokenizer_class": "BertJapaneseTokenizer"})
    for use in (tokenizer, lambda text: tokenizer.encode(text), lambda text: tokenizer.eos_id):
        with pytest.raises(CheckpointError, match="'BertJapaneseTokenizer' is none that zoo builds"):
            use("a")
    (tmp_path / "saved").mkdir()
    tokenizer.save(tmp_path / "saved")
    assert (tmp_path / "saved" / "vocab.txt").exists()
    assert copy.copy(tokenizer) == tokenizer


def configure(folder, **settings):
    written = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(written | settings))


def test_either_file_may_name_the_class(tmp_path):
    vocabularies.write(tmp_path, "Bert")
    configure(tmp_path, tokenizer_class=None)
    tokenizer = load_tokenizer(tmp_path, {"model_type": "gpt2", "tokenizer_class": "BertTokenizerFast"})
    assert tokenizer.special["cls"] == "[CLS]"


def test_begin_and_end_where_the_settings_ask(tmp_path):
    """OPT's files call its tokenizer GPT-2's and ask for a first token."""
    vocabularies.write(tmp_path, "Roberta")
    special = {"bos_token": "</s>", "eos_token": "</s>", "unk_token": "</s>"}
    configure(tmp_path, tokenizer_class="GPT2Tokenizer", add_bos_token=True, **special)
    tokenizer = load_tokenizer(tmp_path, {"model_type": "opt"})
    plain = tokenizer.encode("The bank", add_special_tokens=False)
    assert tokenizer.encode("The bank") == [2, *plain]
    configure(tmp_path, add_bos_token=False, add_eos_token=True)
    assert load_tokenizer(tmp_path, {"model_type": "opt"}).encode("The bank") == [*plain, 2]


@pytest.mark.parametrize("name", ["added_tokens.json", "tokenizer_config.json"])
def test_tokens_behind_the_vocabulary(name, tmp_path):
    vocabularies.write(tmp_path, "Bert")
    last = len((tmp_path / "vocab.txt").read_text().splitlines())

    def add(token_id):
        if name == "added_tokens.json":
            (tmp_path / name).write_text(json.dumps({"<|turn|>": token_id}))
        else:
            configure(tmp_path, added_tokens_decoder={str(token_id): {"content": "<|turn|>", "special": True}})

    add(last)
    assert load_tokenizer(tmp_path, {}).encode("a<|turn|>", add_special_tokens=False)[-1] == last
    add(last + 1)
    with pytest.raises(CheckpointError, match="listed with the id"):
        load_tokenizer(tmp_path, {})
