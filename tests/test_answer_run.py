"""A question answering run as a user meets it: trained on a SQuAD file, asked, and its predictions written."""

import json

import pytest

from zoo import cli
from zoo.tasks.question_answering import NO_ANSWER

SMALL = [
    word
    for option in (
        "--model.embedding.width 32",
        "--model.embedding.vocab-size 330",
        "--model.encoder.width 32",
        "--model.encoder.num-layers 1",
        "--model.encoder.attention.num-heads 2",
        "--model.encoder.attention.head-size 16",
        "--model.encoder.mlp.hidden-size 48",
        "--data.tokenizer.vocab-size 330",
        "--task.sequence-length 48",
        "--task.question-length 16",
        "--task.answer-length 8",
        "--task.stride 16",
        "--task.batch-size 16",
        "--mesh.data 1",
        "--training.num-steps 3",
        "--training.tensorboard False",
        "--compute-dtype float32",
    )
    for word in option.split()
]
CONTEXT = "Number {0} lives in Zürich, {0} streets from the lake, and was born in {1}."


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run's folder, after three steps."""
    pytest.importorskip("sklearn")
    folder = tmp_path_factory.mktemp("answer")
    paragraphs = [
        {
            "context": (context := CONTEXT.format(n, 1900 + n)),
            "qas": [
                {"id": f"{n}-a", "question": f"When was {n} born?",
                 "answers": [{"text": str(1900 + n), "answer_start": context.index(str(1900 + n))}]},
                {"id": f"{n}-b", "question": f"Who knows {n}?", "answers": [], "is_impossible": True},
            ],
        }
        for n in range(100, 180)
    ]  # fmt: skip
    (folder / "squad.json").write_text(json.dumps({"data": [{"title": "Numbers", "paragraphs": paragraphs}]}))
    cli.train(["answer-tiny", *SMALL, "--data.path", str(folder / "squad.json"), "--folder", str(folder / "run")])
    return folder / "run"


def test_the_results_are_squads(run, capsys):
    cli.evaluate([str(run)])
    said = capsys.readouterr().out
    assert "has answer exact" in said and "no answer exact" in said and "SQuAD's scorer" in said


def test_a_prompt_is_answered_from_the_context(run, capsys):
    context = CONTEXT.format(7, 1907) * 5  # several windows
    cli.evaluate([str(run), "--prompt", "When was 7 born?", "--context", context])
    answer = capsys.readouterr().out.strip("\n")
    assert answer == NO_ANSWER or answer in context


def test_predictions_are_written_for_the_scorer(run, tmp_path, capsys):
    cli.evaluate([str(run), "--predictions", str(tmp_path / "said.json")])
    assert "said.na_prob.json" in capsys.readouterr().out.replace("\n", "")
    answers, odds = (json.loads((tmp_path / f"said{part}.json").read_text()) for part in ("", ".na_prob"))
    assert answers.keys() == odds.keys() and len(answers) >= 2
    assert all(0 <= value <= 1 and (value > 0.5) == (answers[name] == "") for name, value in odds.items())


def test_mistakes_are_one_line(run, capsys):
    for arguments, expected in (
        (["--prompt", "x"], "--context is missing"),
        (["--prompt", "x", "--context", "y", "--pair", "z"], "this run answers --prompt and --context"),
        (["--predictions", "no/such/folder.json"], "no/such"),
    ):
        with pytest.raises(SystemExit):
            cli.evaluate([str(run), *arguments])
        said = capsys.readouterr().err
        assert expected in said and len(said.strip().splitlines()) == 1, said
