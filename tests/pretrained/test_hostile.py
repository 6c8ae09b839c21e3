"""Damaged and malicious checkpoints: one CheckpointError that names the file, soon, and nothing is executed."""

import json
import os
import pickle
import subprocess
import sys

import pytest
import small
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from timing import cpu_time

import zoo
from zoo.formats.safetensors import SafetensorsFile, write_file
from zoo.weights import CheckpointError


@pytest.fixture(scope="module", autouse=True)
def warm(tmp_path_factory):
    """Importing and starting JAX are not a file's doing: one sound checkpoint is loaded first."""
    zoo.load(small_checkpoint(tmp_path_factory.mktemp("warm"), "bert", "masked_lm"))


def small_checkpoint(folder, model_type: str, head: str):
    fields, shapes, _ = small.read_recorded(model_type, head)
    return small.write_folder(folder, fields, shapes)


def refused(folder, message: str | None = None) -> str:
    """The message of the refusal; it comes within a second, before anything is compiled or read at length."""
    with pytest.raises(CheckpointError, match=message) as caught:
        quickly(folder)
    assert str(folder) in str(caught.value)
    return str(caught.value)


def quickly(folder):
    """What `zoo.load` gives, or a refusal within a second of CPU."""
    try:
        with cpu_time() as timed:
            return zoo.load(folder)
    except CheckpointError as refusal:
        assert timed.seconds < 1, f"refused after {timed.seconds:.1f} s: {refusal}"
        raise


def rewrite_header(folder, change) -> None:
    path = folder / "model.safetensors"
    whole = path.read_bytes()
    length = int.from_bytes(whole[:8], "little")
    header = json.loads(whole[8 : 8 + length])
    change(header)
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + whole[8 + length :])


def tensors_of(folder) -> dict:
    file = SafetensorsFile(folder / "model.safetensors")
    return {name: file.read(name).copy() for name in file.shapes}


def write(folder, tensors) -> None:
    write_file(folder / "model.safetensors", [(n, t.shape, t.dtype, lambda t=t: t) for n, t in tensors.items()])


def test_truncated_file(checkpoint):
    path = checkpoint / "model.safetensors"
    whole = path.read_bytes()
    for size in (0, 7, 8, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        refused(checkpoint, "cut short or damaged")


NAME = "bert.encoder.layer.1.output.dense.weight"
HEADERS = {
    "overlap": lambda h: h[NAME].update(data_offsets=[0, 24 * 40 * 4]),
    "huge offset": lambda h: h[NAME].update(data_offsets=[2**62, 2**62 + 24 * 40 * 4]),
    "negative offset": lambda h: h[NAME].update(data_offsets=[-4, 24 * 40 * 4 - 4]),
    "reversed offsets": lambda h: h[NAME].update(data_offsets=h[NAME]["data_offsets"][::-1]),
    "wrong size": lambda h: h[NAME].update(shape=[24, 41]),
    "overflowing shape": lambda h: h[NAME].update(shape=[2**40, 2**40]),
    "negative shape": lambda h: h[NAME].update(shape=[-24, -40]),
    "shape of floats": lambda h: h[NAME].update(shape=[24.0, 40.0]),
    "unknown dtype": lambda h: h[NAME].update(dtype="O"),
    "dtype of another size": lambda h: h[NAME].update(dtype="F64"),
    "no entry": lambda h: h.update({NAME: None}),
}


@pytest.mark.parametrize("kind", HEADERS)
def test_lying_header(kind, checkpoint):
    rewrite_header(checkpoint, HEADERS[kind])
    message = refused(checkpoint)
    assert NAME in message


def test_header_with_a_tensor_twice(checkpoint):
    path = checkpoint / "model.safetensors"
    text = b'{"a": {"dtype": "F32", "shape": [], "data_offsets": [0, 4]}, "a": 1}'
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(4))
    refused(checkpoint, "'a' occurs twice")


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(places=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 7)), min_size=1, max_size=3))
def test_flipped_bits_in_the_header(places, checkpoint):
    """A header with flipped bits is refused, or says the same as before."""
    path = checkpoint / "model.safetensors"
    original = path.with_name("original")
    if not original.exists():
        original.write_bytes(path.read_bytes())
    whole = bytearray(original.read_bytes())
    length = 8 + int.from_bytes(whole[:8], "little")
    for place, bit in places:
        whole[int(place * (length - 1))] ^= 1 << bit
    path.write_bytes(bytes(whole))
    before = SafetensorsFile(original)
    try:
        after = SafetensorsFile(path)
    except CheckpointError as error:
        assert str(path) in str(error)
    else:
        # A letter of a name may have changed, which is for the weight map to find; no shape has.
        assert sorted(after.shapes.values()) == sorted(before.shapes.values())


def test_missing_extra_and_misshapen_tensors(checkpoint):
    tensors = tensors_of(checkpoint)
    write(checkpoint, {n: t for n, t in tensors.items() if n != NAME})
    assert NAME in refused(checkpoint, "it lacks")
    write(checkpoint, tensors | {"bert.encoder.layer.1.extra": tensors[NAME]})
    assert "bert.encoder.layer.1.extra" in refused(checkpoint, "zoo has no use for")
    write(checkpoint, tensors | {NAME: tensors[NAME].T.copy()})
    assert f"{NAME} has shape [40, 24]" in refused(checkpoint, r"needs \[24, 40\]")
    write(
        checkpoint, tensors | {"cls.predictions.decoder.weight": tensors["bert.embeddings.word_embeddings.weight"] + 1}
    )
    assert "cls.predictions.decoder.weight" in refused(checkpoint, "differ, and config.json ties them")


CONFIGS = {
    "unknown activation": ({"hidden_act": "exec"}, "hidden_act is 'exec'"),
    "positions that zoo lacks": ({"position_embedding_type": "relative_key"}, "position_embedding_type"),
    "no width": ({"hidden_size": None}, r"needs \[99, 768\]"),
    "text for a number": ({"hidden_size": "24"}, "does not describe a bert"),
    "negative": ({"num_hidden_layers": -1}, "num_layers is -1"),
    "no heads": ({"num_attention_heads": 0}, "does not describe a bert"),
    "too many layers": ({"num_hidden_layers": 10**9}, "num_hidden_layers is 1000000000"),
    "a huge vocabulary": ({"vocab_size": 10**9}, "word_embeddings"),
    "a vocabulary that is no size": ({"vocab_size": 10**15}, "no model that can be built"),
    "labels": ({"id2label": 3, "architectures": ["BertForSequenceClassification"]}, "does not describe a bert"),
    "unknown type": ({"model_type": "evil"}, "model_type is 'evil'"),
    "a list for a type": ({"model_type": ["bert"]}, "model_type is"),
    "unknown class": ({"architectures": ["Evil"]}, "architectures is"),
    "code": ({"auto_map": {"AutoModel": "evil.py--EvilModel"}}, "zoo runs no code"),
}


@pytest.mark.parametrize("kind", CONFIGS)
def test_hostile_config(kind, checkpoint):
    change, message = CONFIGS[kind]
    path = checkpoint / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    refused(checkpoint, message)


@pytest.mark.parametrize("text", [b"", b"[]", b"{", b'{"a": ' * 10_000, b"\x00", b'{"a": "\xff"}', b"9" * 5000])
def test_config_that_is_no_object(text, checkpoint):
    (checkpoint / "config.json").write_bytes(text)
    refused(checkpoint, "config.json")


def test_config_that_is_no_plain_file(checkpoint):
    (checkpoint / "config.json").unlink()
    os.mkfifo(checkpoint / "config.json")
    refused(checkpoint, "no plain file")
    (checkpoint / "config.json").unlink()
    (checkpoint / "config.json").symlink_to("config.json")
    refused(checkpoint, "config.json cannot be read")


def test_config_without_a_type_is_told_which(checkpoint):
    path = checkpoint / "config.json"
    fields = {name: value for name, value in json.loads(path.read_text()).items() if name != "model_type"}
    for classes in (["BertForMaskedLM"], None):  # the folder is called bert
        path.write_text(json.dumps(fields | {"architectures": classes}))
        refused(checkpoint, 'has no model_type: add "model_type": "bert"')


DEEP: list = []
for _ in range(60):
    DEEP = [DEEP]
NONSENSE = [
    10**12, 10**9, 2**63, -1, 0, 1.5, float("nan"), float("inf"), None, True, "24", "", [], {}, [1, 2], {"a": [{}]},
    DEEP,
]  # fmt: skip
FUZZED = ["bert-base", "t5-seq2seq_lm", "llama-causal_lm", "gemma3_text-causal_lm", "siglip-base", "marian-seq2seq_lm",
          "whisper-seq2seq_lm"]  # fmt: skip


@pytest.fixture(scope="module", params=FUZZED)
def fuzzed(request, tmp_path_factory):
    folder = small_checkpoint(tmp_path_factory.mktemp("checkpoint"), *request.param.split("-"))
    zoo.load(folder)
    return folder, json.loads((folder / "config.json").read_text())


@settings(max_examples=12, deadline=None, derandomize=True)
@given(data=st.data())
def test_nonsense_in_a_config(data, fuzzed):
    """Any field may hold anything: the model is loaded, or refused in a line that names the folder."""
    folder, config = fuzzed
    changed = config | {data.draw(st.sampled_from(sorted(config))): data.draw(st.sampled_from(NONSENSE))}
    (folder / "config.json").write_text(json.dumps(changed))
    try:
        quickly(folder)
    except CheckpointError as error:
        assert str(folder) in str(error)


@pytest.mark.parametrize(
    ("case", "name"),
    [
        ("siglip-base", "image_size"),
        ("marian-seq2seq_lm", "d_model"),
        ("marian-seq2seq_lm", "max_position_embeddings"),
        ("whisper-seq2seq_lm", "max_source_positions"),
        ("gemma3_text-causal_lm", "num_hidden_layers"),
    ],
)
def test_sizes_that_would_be_made_before_they_are_compared(case, name, tmp_path):
    folder = small_checkpoint(tmp_path / "huge", *case.split("-"))
    path = folder / "config.json"
    fields = json.loads(path.read_text())
    where = fields["vision_config"] if case == "siglip-base" else fields
    for size in (10**9, 10**12):
        where[name] = size
        path.write_text(json.dumps(fields))
        refused(folder)


def test_vocabulary_smaller_than_the_tokenizer(checkpoint):
    (checkpoint / "vocab.txt").write_text("\n".join(f"word{i}" for i in range(100)) + "\n[UNK]\n[CLS]\n[SEP]\n")
    assert "'[SEP]' the id 102" in refused(checkpoint, "vocab_size is 99")


@pytest.mark.parametrize("file", ["../model.safetensors", "/etc/passwd", "sub/a.safetensors", "..", "a.bin", 3, None])
def test_index_that_points_elsewhere(file, checkpoint):
    weight_map = dict.fromkeys(tensors_of(checkpoint), file)
    (checkpoint / "model.safetensors").rename(checkpoint.parent / "model.safetensors")
    (checkpoint / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    refused(checkpoint, "is said to be in")


def test_index_that_does_not_fit_its_shards(checkpoint):
    tensors = tensors_of(checkpoint)
    (checkpoint / "model.safetensors").rename(checkpoint / "a.safetensors")
    index = checkpoint / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": dict.fromkeys([*tensors, "more"], "a.safetensors")}))
    assert "more" in refused(checkpoint, "does not have it")
    index.write_text(json.dumps({"weight_map": dict.fromkeys([n for n in tensors if n != NAME], "a.safetensors")}))
    assert NAME in refused(checkpoint, "the index does not list")
    index.write_text(json.dumps({"weight_map": dict.fromkeys(tensors, "b.safetensors")}))
    refused(checkpoint, "b.safetensors is missing")
    index.write_text(json.dumps({"weight_map": dict.fromkeys(tensors, "model.safetensors.index.json")}))
    refused(checkpoint, "no safetensors file")
    (checkpoint / "round.safetensors").symlink_to("round.safetensors")
    index.write_text(json.dumps({"weight_map": dict.fromkeys(tensors, "round.safetensors")}))
    refused(checkpoint, "cannot be read")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("tokenizer.json", b'{"model": {"type": "BPE"}, "version": "1.0"'),
        ("tokenizer.json", b"\xff\xfe"),
        ("vocab.txt", b""),
        ("chat_template.jinja", b"\xff\xfe"),
        ("tokenizer_config.json", b'{"additional_special_tokens": 3}'),
        ("tokenizer_config.json", b'{"eos_token": 3, "model_max_length": "x"}'),
    ],
)
def test_damaged_tokenizers(name, content, checkpoint):
    if name in ("chat_template.jinja", "tokenizer_config.json"):
        (checkpoint / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\n")
    (checkpoint / name).write_bytes(content)
    assert name in refused(checkpoint)


class Evil:
    def __reduce__(self):
        return exec, ("import pathlib; pathlib.Path('ran').touch()",)


def test_pickles_are_refused_unopened(checkpoint):
    (checkpoint / "model.safetensors").unlink()
    (checkpoint / "pytorch_model.bin").write_bytes(pickle.dumps(Evil()))
    refused(checkpoint, "unpickling it can run any code")
    (checkpoint / "pytorch_model.bin").unlink()
    refused(checkpoint, "no weights")


def test_nothing_is_executed(checkpoint):
    """A folder with code in it is loaded; the interpreter's audit sees none of it opened, no pickle, no process."""
    (checkpoint / "modeling_bert.py").write_text("raise SystemExit('ran')")
    (checkpoint / "pytorch_model.bin").write_bytes(pickle.dumps(Evil()))
    config = json.loads((checkpoint / "config.json").read_text())
    config["auto_map"] = {"AutoModel": "modeling_bert.BertModel"}
    (checkpoint / "config.json").write_text(json.dumps(config))
    code = """
import sys, zoo
zoo.load(sys.argv[1])
seen = []
def hook(event, arguments):
    if event in ("pickle.find_class", "os.system", "subprocess.Popen", "os.exec", "os.posix_spawn", "marshal.loads"):
        seen.append(event)
    if event in ("compile", "open", "import") and any(str(a).startswith(sys.argv[1]) for a in arguments[:2]):
        if not str(arguments[0]).endswith((".json", ".safetensors")):
            seen.append((event, str(arguments[0])))
sys.addaudithook(hook)
zoo.load(sys.argv[1])
print(seen)
"""
    done = subprocess.run([sys.executable, "-c", code, str(checkpoint)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
