"""One door: prepared TFDS sets and local files open alike, and whatever is wrong is named with its mend."""

import json
import random
import subprocess
import sys

import pytest
import tensorflow_datasets as tfds

from zoo.data import DataConfig, open_dataset, packed_batches, pair_batches


def examples(source):
    return [source[i] for i in range(len(source))]


def open_path(path, **options):
    return open_dataset(DataConfig(path=str(path), **options))


class PublicToy(tfds.core.GeneratorBasedBuilder):
    """A set as others prepare it: with a config and a label, and without a validation split."""

    VERSION = tfds.core.Version("2.1.0")
    BUILDER_CONFIGS = [tfds.core.BuilderConfig(name="plain")]  # noqa: RUF012
    code_path = None

    def _info(self):
        features = {"text": tfds.features.Text(), "label": tfds.features.ClassLabel(num_classes=3)}
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(50), "test": self._generate_examples(7)}

    def _generate_examples(self, number):
        for i in range(number):
            yield i, {"text": f"é {number} {i}\n", "label": i % 3}


@pytest.fixture(scope="module")
def public(tmp_path_factory):
    directory = tmp_path_factory.mktemp("public")
    builder = PublicToy(data_dir=directory, file_format="array_record")
    builder.download_and_prepare(download_config=tfds.download.DownloadConfig(try_download_gcs=False))
    return str(directory)


LABELS = {
    "missing": ([{"text": "x"}], "line 61 has 'label': None; give the name of its class, or a number from 0"),
    "null": ([{"text": "x", "label": None}], "line 61 has 'label': None; give the name"),
    "a list": ([{"text": "x", "label": ["a"]}], r"line 61 has 'label': \['a'\]; give the name"),
    "not a number": ([{"text": "x", "label": float("nan")}], "line 61 has 'label': nan; give the name"),
    "a truth": ([{"text": "x", "label": True}], "line 61 has 'label': True; give the name"),
    "another kind": ([{"text": "x", "label": 1}], "give one kind"),
    "one thousand more": (
        [{"text": f"y {i}", "label": f"n {i}"} for i in range(1200)],
        "has 1,.* different classes in",
    ),
}


@pytest.mark.parametrize("case", LABELS)
def test_a_row_whose_class_cannot_be_read_is_named_by_its_line(tmp_path, case):
    rows, message = LABELS[case]
    rows = [{"text": f"text {i}", "label": "ab"[i % 2]} for i in range(60)] + rows
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(ValueError, match=message):
        open_path(tmp_path / "a.jsonl").classes("label")


@pytest.mark.parametrize(
    ("held_out", "message"),
    [
        ("c", "validation.jsonl' line 1 is held out and has 'label': 'c', a class that no row of train has"),
        (0, "validation.jsonl' line 1 has 'label': 0, and .*train.jsonl' line 1 has 'a': give one kind"),
    ],
)
def test_classes_of_held_out_rows_are_those_of_train(tmp_path, held_out, message):
    (tmp_path / "train.jsonl").write_text("\n".join(json.dumps({"text": c, "label": c}) for c in "abab"))
    (tmp_path / "validation.jsonl").write_text(json.dumps({"text": "x", "label": held_out}))
    with pytest.raises(ValueError, match=message):
        open_path(tmp_path).classes("label")


def test_numbers_that_do_not_begin_at_0_are_named(tmp_path):
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps({"text": f"{i}", "label": 1 + i % 5}) for i in range(60)))
    with pytest.raises(ValueError, match="'label' has 5 numbers from 1 to 5: number classes from 0, or name them"):
        open_path(tmp_path / "a.jsonl").classes("label")


class TestNames:
    @pytest.mark.parametrize("name", ["public_toy", "public_toy/plain", "public_toy/plain:2.1.0", "public_toy:2.*.*"])
    def test_a_prepared_set_opens_by_name(self, public, name):
        dataset = open_dataset(DataConfig(name=name, directory=public, validation_split="test"))
        assert sorted(e["text"] for e in examples(dataset.split("validation"))) == [f"é 7 {i}\n" for i in range(7)]
        train = examples(dataset.split("train"))
        assert {(e["text"], int(e["label"])) for e in train} == {(f"é 50 {i}\n", i % 3) for i in range(50)}

    def test_splits_may_be_slices(self, public):
        config = DataConfig(
            name="public_toy", directory=public, train_split="train[:80%]", validation_split="train[80%:]"
        )
        dataset = open_dataset(config)
        train, validation = ({e["text"] for e in examples(dataset.split(s))} for s in ("train", "validation"))
        assert (len(train), len(validation)) == (40, 10)
        assert not train & validation

    def test_a_large_split_is_read_record_by_record(self, public, monkeypatch):
        config = DataConfig(name="public_toy", directory=public, validation_split="test")
        held = examples(open_dataset(config).split("train"))
        monkeypatch.setattr("zoo.data.sources._HELD_BYTES", 0)
        source = open_dataset(config).split("train")
        assert examples(source) == held
        assert source[-1] == held[-1]
        with pytest.raises(IndexError):
            source[50]

    def test_texts_are_decoded_as_tfds_decodes_them(self, stdlib):
        source = stdlib.split("validation")
        slow = source._builder.as_data_source(split="validation")
        for fast, decoded in zip(examples(source), slow, strict=True):
            assert fast == {name: value.decode() for name, value in decoded.items()}

    def test_a_missing_split_is_named_with_those_there_are(self, public):
        with pytest.raises(ValueError, match=r"no split 'validation'; it has train, test: set data\.validation_split"):
            open_dataset(DataConfig(name="public_toy", directory=public))
        with pytest.raises(ValueError, match=r"no split 'learn'.*set data\.train_split"):
            open_dataset(DataConfig(name="public_toy", directory=public, train_split="learn"))
        dataset = open_dataset(DataConfig(name="public_toy", directory=public, validation_split="test"))
        with pytest.raises(ValueError, match="no split 'dev'; it has train, validation"):
            dataset.split("dev")

    def test_an_empty_split_is_named(self, public):
        config = DataConfig(name="public_toy", directory=public, validation_split="test[:1%]")
        with pytest.raises(ValueError, match=r"split 'test\[:1%\]' of dataset 'public_toy' is empty"):
            open_dataset(config)

    def test_an_unknown_name_gets_the_nearest(self, public):
        for wrong, right in (
            ("zoo_stdlb", "zoo_stdlib"),
            ("public_toi", "public_toy"),
            ("imdb_review", "imdb_reviews"),
        ):
            with pytest.raises(ValueError, match=f"unknown dataset {wrong!r}.*Nearest: .*{right}"):
                open_dataset(DataConfig(name=wrong, directory=public))

    def test_a_set_that_is_not_prepared_gets_the_command(self, public):
        with pytest.raises(FileNotFoundError) as error:
            open_dataset(DataConfig(name="imdb_reviews/plain_text", directory=public))
        message = str(error.value)
        assert f"'imdb_reviews/plain_text' is not prepared in {public!r}" in message
        # The command is the mend, so it has to be Python.
        code = message.partition('python -c "')[2].removesuffix('"')
        compile(code, "<mend>", "exec")
        assert "file_format='array_record').download_and_prepare()" in code

    def test_a_set_written_as_tfrecord_is_refused(self, public, tmp_path):
        import shutil

        shutil.copytree(public, tmp_path / "copy")
        (info,) = (tmp_path / "copy").rglob("dataset_info.json")
        info.write_text(json.dumps({**json.loads(info.read_text()), "fileFormat": "tfrecord"}))
        with pytest.raises(ValueError, match="written as tfrecord, which cannot be read at random"):
            open_dataset(DataConfig(name="public_toy", directory=str(tmp_path / "copy")))

    def test_the_folder_may_come_from_the_environment(self, public, monkeypatch):
        monkeypatch.setenv("ZOO_DATA_DIR", public)
        assert len(open_dataset(DataConfig(name="public_toy", validation_split="test")).split("train")) == 50


class TestFiles:
    def test_text_is_cut_into_documents_without_loss(self, tmp_path):
        lines = "".join(f"line {i} of a text — with signs\r\n" for i in range(4000))
        (tmp_path / "a.txt").write_bytes(lines.encode())
        dataset = open_path(tmp_path / "a.txt", validation_fraction=0.2)
        train, validation = (examples(dataset.split(split)) for split in ("train", "validation"))
        pieces = sorted(train + validation, key=lambda e: int(e["name"].partition(":")[2]))
        assert "".join(e["text"] for e in pieces) == lines
        assert all(e["text"].endswith("\n") and len(e["text"]) < 5000 for e in pieces)
        assert 0.08 < len(validation) / len(pieces) < 0.35

    def test_text_without_line_ends_is_cut_too(self, tmp_path):
        (tmp_path / "a.txt").write_text("word " * 50_000)
        dataset = open_path(tmp_path / "a.txt")
        pieces = examples(dataset.split("train")) + examples(dataset.split("validation"))
        assert sum(len(e["text"]) for e in pieces) == 250_000
        assert max(len(e["text"]) for e in pieces) <= 8192 + 1

    def test_jsonl_keeps_all_fields(self, tmp_path):
        rows = [{"body": f"text\u2028 {i}", "n": i} for i in range(100)]
        (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n\n")
        dataset = open_path(tmp_path / "a.jsonl", text_key="body")
        found = examples(dataset.split("train")) + examples(dataset.split("validation"))
        assert sorted(found, key=lambda e: e["n"]) == rows

    def test_pairs_from_tsv_and_jsonl_make_batches(self, tmp_path, tokenizer):
        pairs = [(f"in {i}", f"out {i}") for i in range(60)]
        (tmp_path / "a.tsv").write_text("".join(f"{a}\t{b}\n" for a, b in pairs))
        (tmp_path / "b.jsonl").write_text("".join(json.dumps({"de": a, "en": b}) + "\n" for a, b in pairs))
        for file in ("a.tsv", "b.jsonl"):
            dataset = open_path(tmp_path / file, source_key="de", target_key="en")
            found = examples(dataset.split("train")) + examples(dataset.split("validation"))
            assert sorted((e["de"], e["en"]) for e in found) == sorted(pairs)
            options = {"source_length": 12, "target_length": 12, "batch_size": 2, "seed": None}
            batch = next(pair_batches(dataset.split("train"), tokenizer, source_key="de", target_key="en", **options))
            assert tokenizer.decode(batch["inputs"][0]).replace("in", "out") == tokenizer.decode(batch["targets"][0])

    def test_a_folder_is_a_document_a_file(self, tmp_path, tokenizer):
        texts = {f"part/{i}.txt": f"file {i}\n" for i in range(30)}
        for name, text in {
            **texts,
            ".hidden/x.txt": "no",
            "part/.swp": "no",
            "part/blank.txt": " \n",
        }.items():
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).write_text(text)
        dataset = open_path(tmp_path, text_key="body")
        found = examples(dataset.split("train")) + examples(dataset.split("validation"))
        assert {e["name"]: e["body"] for e in found} == texts
        options = {"sequence_length": 8, "batch_size": 2, "seed": 0, "text_key": "body"}
        assert next(packed_batches(dataset.split("train"), tokenizer, **options))["tokens"].shape == (2, 9)

    def test_a_folder_that_is_split_already_is_left_so(self, tmp_path):
        (tmp_path / "train.jsonl").write_text('{"text": "a"}\n{"text": "b"}\n')
        (tmp_path / "validation.txt").write_text("c\n")
        dataset = open_path(tmp_path)
        assert [e["text"] for e in dataset.split("train")] == ["a", "b"]
        assert [e["text"] for e in dataset.split("validation")] == ["c\n"]

    @pytest.mark.parametrize("kind", ["txt", "jsonl"])
    def test_split_folders_stay_apart(self, tmp_path, kind):
        for split in ("train", "validation", "test"):
            (tmp_path / split).mkdir()
            for part in range(3):
                text = f"{split} {part}"
                content = text if kind == "txt" else "".join(json.dumps({"text": f"{text} {i}"}) + "\n" for i in "ab")
                (tmp_path / split / f"part-{part}.{kind}").write_text(content)
        dataset = open_path(tmp_path)
        for split in ("train", "validation"):
            found = [e["text"] for e in examples(dataset.split(split))]
            parts = [f"{split} {part}" for part in range(3)]
            assert sorted(found) == (parts if kind == "txt" else [f"{part} {i}" for part in parts for i in "ab"])
        (tmp_path / "validation").rename(tmp_path / "val")
        with pytest.raises(ValueError, match="holds the folders train and val and test: call what is held out"):
            open_path(tmp_path)

    def test_a_folder_of_tables_is_their_lines(self, tmp_path):
        for part in range(4):
            rows = [json.dumps({"text": f"{part} {i}"}) for i in range(10)]
            (tmp_path / f"part-{part}.JSONL").write_text("\n".join(rows))
        dataset = open_path(tmp_path)
        found = examples(dataset.split("train")) + examples(dataset.split("validation"))
        assert sorted(e["text"] for e in found) == sorted(f"{part} {i}" for part in range(4) for i in range(10))
        (tmp_path / "notes.txt").write_text("what these are")
        with pytest.raises(ValueError, match=r"holds both part-0.JSONL, whose lines are examples, and notes.txt"):
            open_path(tmp_path)

    def test_a_program_s_source_may_hold_json_and_folders_of_any_name(self, tmp_path):
        for name in ("test/a.py", "package.json", "src/b.py"):
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).write_text(f'{{"name": "{name}"}}')
        dataset = open_path(tmp_path)
        found = examples(dataset.split("train")) + examples(dataset.split("validation"))
        assert sorted(e["name"] for e in found) == ["package.json", "src/b.py", "test/a.py"]

    def test_the_split_is_by_the_text_alone(self, tmp_path):
        rows = [json.dumps({"text": f"document {i % 80}", "n": i}) for i in range(200)]
        splits = []
        for seed in (0, 1):
            random.Random(seed).shuffle(rows)
            (tmp_path / "a.jsonl").write_text("\n".join(rows))
            dataset = open_path(tmp_path / "a.jsonl", validation_fraction=0.3)
            splits.append([{e["text"] for e in dataset.split(s)} for s in ("train", "validation")])
        assert splits[0] == splits[1]
        assert not splits[0][0] & splits[0][1]
        assert 0.1 < len(splits[0][1]) / 80 < 0.5

    @pytest.mark.parametrize("fraction", [1e-9, 1 - 1e-9])
    def test_neither_split_is_ever_empty(self, tmp_path, fraction):
        (tmp_path / "a.jsonl").write_text("".join(f'{{"text": "{i}"}}\n' for i in range(5)))
        dataset = open_path(tmp_path / "a.jsonl", validation_fraction=fraction)
        assert sorted(len(dataset.split(s)) for s in ("train", "validation")) == [1, 4]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"", r"a\.txt' is empty"),
        ("a.txt", b" \n\n", r"a\.txt' is empty"),
        ("a.txt", b"short", "holds a single document: nothing is left to hold out"),
        ("a.txt", b"abc\xffdef", r"a\.txt' is not UTF-8 text \(byte 3 is 0xff\)"),
        ("a.csv", b"a,b\n", r"a\.csv' is a \.csv file; give a \.txt, \.jsonl, \.tsv or \.json"),
        (
            "a.jsonl",
            b'{"text": "x"}\n{"text": \n',
            r"a\.jsonl' line 2 is not JSON: Expecting value at column",
        ),
        ("a.jsonl", b'{"text": "x"}\n\n["text"]\n', r"a\.jsonl' line 3 is a JSON list, not an object"),
        (
            "a.jsonl",
            b'{"text": "x"}\n{"txt": "y", "n": 1}\n',
            r"line 2 has no text field 'text', .*; it has txt: set",
        ),
        ("a.jsonl", b'{"text": 5}\n', r"line 1 has no text field 'text', .*; it has none"),
        ("a.tsv", b"a\tb\nc d\n", r"a\.tsv' line 2 is 'c d', not an input, one tab and its output"),
        ("a.tsv", b"a\tb\tc\n", r"a\.tsv' line 1 is 'a\\tb\\tc'"),
        ("a.tsv", b"a\t\n", r"a\.tsv' line 1 is"),
    ],
)
def test_a_file_that_cannot_be_used_is_named(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        open_path(tmp_path / name)


def test_missing_files_and_empty_folders_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"data\.path='.*absent\.txt' does not exist; give a \.txt"):
        open_path(tmp_path / "absent.txt")
    with pytest.raises(ValueError, match="holds no text files"):
        open_path(tmp_path)
    (tmp_path / "train.txt").write_text("x\n")
    with pytest.raises(ValueError, match=r"holds train\.txt but no validation\.\*"):
        open_path(tmp_path)
    (tmp_path / "train.tsv").write_text("x\ty\n")
    with pytest.raises(ValueError, match=r"holds both train\.txt and train\.tsv"):
        open_path(tmp_path)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"name": ""}, r"data\.name is empty"),
        ({"validation_fraction": 0.0}, r"validation_fraction=0\.0 must lie between"),
        ({"validation_fraction": 1.0}, r"validation_fraction=1\.0 must lie between"),
        ({"text_key": ""}, r"data\.text_key is empty"),
        ({"source_key": "a", "target_key": "a"}, "both 'a'"),
        ({"path": "x.txt", "validation_split": "test"}, "name TFDS splits, but data.path='x.txt'"),
    ],
)
def test_impossible_settings_are_named(fields, message):
    with pytest.raises(ValueError, match=message):
        DataConfig(**fields)


def test_the_whole_path_runs_without_tensorflow_and_describing_it_is_light(data_directory, stdlib):
    assert len(stdlib.split("train"))
    code = f"""
import sys
from zoo.data import DataConfig, TokenizerConfig, open_dataset, fit_tokenizer, packed_batches
config = DataConfig(directory={data_directory!r})
assert "tensorflow_datasets" not in sys.modules
train = open_dataset(config).split("train")
tokenizer = fit_tokenizer(train, TokenizerConfig(vocab_size=400, training_bytes=50_000))
next(packed_batches(train, tokenizer, sequence_length=8, batch_size=1, seed=0))
assert "tensorflow_datasets" in sys.modules
assert "tensorflow" not in sys.modules and "torch" not in sys.modules
"""
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)
    light = """
import sys
from zoo.data import DataConfig, TokenizerConfig
DataConfig(tokenizer=TokenizerConfig())
assert not {"grain", "jax", "numpy", "sentencepiece", "tensorflow_datasets"} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-W", "error", "-c", light], check=True)
