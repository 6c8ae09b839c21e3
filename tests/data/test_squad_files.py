"""Questions from SQuAD's files, JSON lines and TFDS; what is wrong in them is named with its place."""

import json

import numpy as np
import pytest
import tensorflow_datasets as tfds

from zoo.data import DataConfig, open_dataset

CONTEXT = "Élan 😀 was\n first in Zürich, in 1999."


def question(number, text="Zürich", **fields):
    answers = [{"text": text, "answer_start": CONTEXT.index(text)}] if text else []
    return {"id": f"q{number}", "question": f"Which place, {number}?", "answers": answers, **fields}


def write(path, *questions, contexts=3):
    paragraphs = [
        {"context": f"{CONTEXT}{n}", "qas": [{**one, "id": f"{one['id']}-{n}"} for one in questions]}
        for n in range(contexts)
    ]
    path.write_text(json.dumps({"version": "v2.0", "data": [{"title": "A", "paragraphs": paragraphs}]}, indent=1))
    return path


def read(path):
    dataset = open_dataset(DataConfig(path=str(path)))
    return {split: [source[i] for i in range(len(source))] for split, source in dataset.splits.items()}


def test_the_layout_of_the_releases(tmp_path):
    impossible = question(1, "", is_impossible=True, plausible_answers=[{"text": "Élan", "answer_start": 0}])
    splits = read(write(tmp_path / "a.json", question(0, is_impossible=False), impossible, contexts=20))
    assert len(splits["train"]) + len(splits["validation"]) == 40
    assert not {e["context"] for e in splits["train"]} & {e["context"] for e in splits["validation"]}
    for example in splits["train"]:
        wanted = {"text": ["Zürich"], "answer_start": [CONTEXT.index("Zürich")]}
        assert example["answers"] == (wanted if example["id"].startswith("q0") else {"text": [], "answer_start": []})
        assert example["title"] == "A"


def test_lines_and_files_that_are_split_already(tmp_path):
    rows = [{**question(n), "context": CONTEXT} for n in range(3)]
    columns = {"text": ["Élan"], "answer_start": [0]}
    rows.append({"question": "Who?", "context": CONTEXT, "answers": columns})
    (tmp_path / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))
    write(tmp_path / "validation.json", question(7))
    splits = read(tmp_path)
    assert splits["train"][0]["answers"] == {"text": ["Zürich"], "answer_start": [CONTEXT.index("Zürich")]}
    assert splits["train"][3]["answers"] == columns and splits["train"][3]["id"] == "4"
    assert [example["id"] for example in splits["validation"]] == ["q7-0", "q7-1", "q7-2"]


BAD = {
    "is moved": (
        question(1, answers=[{"text": "Zürich", "answer_start": 3}]),
        r"qas\[1\] \(id 'q1-0', line \d+\) has the answer 'Zürich' with answer_start 3, where .* has 'n 😀 wa'",
    ),
    "starts at nothing": (question(1, answers=[{"text": "Zürich"}]), "answer has no 'answer_start'; give a whole numb"),
    "is blank": (
        question(1, question=" "),
        r"\[0\]\.qas\[1\] \(id 'q1-0', line \d+\) has a blank 'question'",
    ),
    "has no answers": (
        {"id": "q1", "question": "Where?", "answer": "Zürich"},
        "has no 'answers'; give a list of .*or 'is_impossible': true",
    ),
    "says no": (question(1, is_impossible=True), "has is_impossible=True and 1 answers; one of them is wrong"),
    "says yes": (question(1, "", is_impossible=False), "has is_impossible=False and 0 answers"),
    "is there twice": (question(0), r"data\[0\]\.paragraphs\[0\]\.qas\[1\].* has the id of .*qas\[0\]"),
    "has words": (question(1, answers="Zürich"), "has 'answers': 'Zürich'; give a list or an object"),
}


@pytest.mark.parametrize("bad", BAD)
def test_what_is_wrong_is_named(tmp_path, bad):
    fields, message = BAD[bad]
    with pytest.raises(ValueError, match=message) as error:
        read(write(tmp_path / "a.json", question(0), fields))
    assert str(tmp_path / "a.json") in str(error.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"data": [\n{"paragraphs": ]}', "a.json' line 2 is not JSON"),
        ("[1]", "is a JSON list; SQuAD's layout is an object with a list 'data'"),
        ('{"data": [{"title": "x"}]}', r"data\[0\] has no 'paragraphs'; give a list"),
        ('{"data": [{"paragraphs": [{"context": "c", "qas": [{"id": 3}]}]}]}', r"qas\[0\] has 'id': '3'; give text"),
        ('{"data": []}', "holds no questions"),
    ],
)
def test_what_is_not_squad_is_named(tmp_path, content, message):
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        read(tmp_path / "a.json")


def test_a_bad_line_is_named(tmp_path):
    good = {**question(0), "context": CONTEXT}
    bad = {**good, "id": "q1", "answers": [{"text": "zürich", "answer_start": 22}]}
    (tmp_path / "a.jsonl").write_text(f"{json.dumps(good)}\n\n{json.dumps(bad)}\n")
    with pytest.raises(ValueError, match=r"a.jsonl' line 3 has the answer 'zürich' with answer_start 22"):
        read(tmp_path / "a.jsonl")


class PublicSquad(tfds.core.GeneratorBasedBuilder):
    """Questions as TFDS lays out SQuAD 2.0."""

    VERSION = tfds.core.Version("3.0.0")
    code_path = None

    def _info(self):
        answers = tfds.features.Sequence(
            {"text": tfds.features.Text(), "answer_start": tfds.features.Scalar(dtype=np.int32)}
        )
        features = {name: tfds.features.Text() for name in ("id", "title", "context", "question")}
        features |= {"answers": answers, "plausible_answers": answers, "is_impossible": np.bool_}
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(3), "validation": self._generate_examples(2)}

    def _generate_examples(self, count):
        texts = ["Zürich", "in Zürich"]
        start = [CONTEXT.index(text) for text in texts]
        some, none = {"text": texts, "answer_start": start}, {"text": [], "answer_start": []}
        for number in range(count):
            given, other = (some, none) if number else (none, some)
            yield number, {"id": str(number), "title": "A", "context": CONTEXT, "question": "Où ?", "answers": given,
                           "plausible_answers": other, "is_impossible": not number}  # fmt: skip


def test_squad_of_tfds(tmp_path):
    builder = PublicSquad(data_dir=tmp_path, file_format="array_record")
    builder.download_and_prepare(download_config=tfds.download.DownloadConfig(try_download_gcs=False))
    source = open_dataset(DataConfig(name="public_squad", directory=str(tmp_path))).split("train")
    examples = sorted((source[index] for index in range(3)), key=lambda example: example["id"])
    assert [example["question"] for example in examples] == ["Où ?"] * 3
    assert examples[0]["answers"]["text"] == [] and len(examples[0]["answers"]["answer_start"]) == 0
    for example in examples[1:]:
        assert example["answers"]["text"] == ["Zürich", "in Zürich"]
        answers = example["answers"]
        for text, start in zip(answers["text"], answers["answer_start"], strict=True):
            assert example["context"][start:].startswith(text)
