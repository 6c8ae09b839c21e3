"""The comparison of LSTM, attention and Transformer: its data, measurements and sentences, and a whole small run."""

import copy
import dataclasses
import json
import re
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiers import tiered

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks import lineage, lineage_page
from benchmarks.lineage_data import Characters, join_pairs, make_recall, make_translation, recall_rows
from benchmarks.lineage_findings import Comparison, compare, order
from benchmarks.lineage_plots import FIGURES
from benchmarks.lineage_speed import decoding_bytes
from benchmarks.lineage_systems import DEFAULT, Widths, make_system
from benchmarks.lineage_training import Budget, input_gradients
from zoo.data import Dataset
from zoo.data.builders.dates import write_days
from zoo.training.state import bind_apply

TINY = Widths(lstm=8, attention=8, transformer=8, head_size=4)
BUDGET = Budget(num_steps=4, batch_size=4, num_scorings=2)
SETTINGS = lineage.Settings(
    name="quick",
    widths=TINY,
    vocab_size=320,
    num_rows=32,
    num_test_rows=4,
    pairs_trained=1,
    pairs_tested=(1, 2),
    translation=BUDGET,
    fractions=(0.25,),
    recall_rows=32,
    recall_trained=1,
    recall_tested=(1, 2),
    recall=BUDGET,
    lengths=(8,),
    tokens=16,
    speed_seconds=1.0,
)


def test_recall_is_what_it_says():
    rows = recall_rows([0, 3, 24], 300, "seed")
    for index, row in enumerate(rows):
        items, asked = row["source"].split("?")
        pairs = re.findall(r"([a-z])(\d)", items)
        assert "".join(map("".join, pairs)) == items
        assert len(dict(pairs)) == len(pairs) <= 26
        assert row["target"] == asked + dict(pairs)[asked]
        place = [key for key, _ in pairs].index(asked)
        assert len(pairs) - 1 - place == (0, 3, 24)[index % 3]
        assert 1 <= place <= 3
    assert rows == recall_rows([0, 3, 24], 300, "seed") != recall_rows([0, 3, 24], 300, "other")
    answers = {row["target"][1] for row in rows}
    assert len(answers) == 10


def test_recall_is_read_whole():
    problem = make_recall(trained=2, tests=(1, 5), num_rows=8, num_test_rows=6)
    task = problem.task(["1", "5"], batch_size=6)
    batch = next(iter(task.batches("5")))
    texts = [problem.tokenizer.decode(row) for row in batch["inputs"]]
    assert texts == [row["source"] for row in problem.rows("5")]
    assert [problem.tokenizer.decode(row) for row in batch["targets"]] == [row["target"] for row in problem.rows("5")]
    assert len(problem.task(["1"], 6, num_rows=3).dataset.split("train")) == 3


def test_characters_refuse_others():
    tokenizer = Characters(characters="ab")
    assert tokenizer.sequence("ba") == [4, 3, 1]
    with pytest.raises(ValueError, match="substring"):
        tokenizer.encode("c")


def dates(count: int) -> Dataset:
    days = [row for row in write_days("train") if row["locale"] in ("en", "de", "fr")][: 2 * count]
    return Dataset(name="days", splits={"train": days[:count], "validation": days[count:]})


def test_translation_is_joined_from_its_own_split():
    dataset = dates(120)
    problem = make_translation(
        dataset, ("source", "target"), score="exact_match", vocab_size=320, trained=2, tests=(1, 3), num_rows=40,
        num_test_rows=10,
    )  # fmt: skip
    for split, counts, allowed in (("train", {1, 2}, "train"), ("validation", {1, 2}, "validation"),
                                   ("3", {3}, "validation")):  # fmt: skip
        known = {row["source"]: row["target"] for row in dataset.split(allowed)}
        rows = problem.rows(split)
        assert {len(row["target"].split()) for row in rows} == counts
        for row in rows:
            assert [known[source] for source in row["source"].split("; ")] == row["target"].split()
    batch = next(iter(problem.task(["3"], 10).batches("3")))
    assert [problem.tokenizer.decode(row) for row in batch["targets"]] == [row["target"] for row in problem.rows("3")]


def test_joining_is_a_function_of_the_seed():
    pairs = [{"source": f"s{i}", "target": f"t{i}"} for i in range(50)]
    assert join_pairs(pairs, [2], 20, "a") == join_pairs(pairs, [2], 20, "a") != join_pairs(pairs, [2], 20, "b")


def test_parameters_are_similar():
    counts = {}
    for name in DEFAULT:
        model = make_system(name, 1024, Widths()).make_model("float32")
        ids = jnp.ones((1, 4), jnp.int32)
        shapes = jax.eval_shape(lambda model=model, ids=ids: model.init(jax.random.key(0), ids, decoder_input_ids=ids))
        counts[name] = sum(x.size for x in jax.tree.leaves(shapes))
    assert max(counts.values()) < 1.1 * min(counts.values()), counts


@pytest.mark.parametrize("name", tiered(DEFAULT, ["lstm"]))
def test_gradient_is_that_of_the_embedding(name):
    # A table that the encoder alone reads, and no token twice: the gradient of a token's row of the table is that of
    # the vector at its one place.
    system = make_system(name, 30, TINY)
    embedding = system.config.embedding
    config = dataclasses.replace(system.config, decoder_embedding=embedding)
    model = dataclasses.replace(system, config=config).make_model("float32")
    drawn = np.random.default_rng(0)
    lengths, outputs = np.array([9, 6]), np.array([4, 2])
    seen = np.arange(9) < lengths[:, None]
    batch = {"inputs": drawn.permutation(np.arange(3, 30))[:18].reshape(2, 9).astype(np.int32)}
    batch["inputs_segment_ids"] = seen.astype(np.int32)
    batch["targets"] = drawn.integers(3, 30, (2, 6)).astype(np.int32)
    batch["targets_segment_ids"] = (np.arange(6) < outputs[:, None] + 2).astype(np.int32)
    ids = {"input_ids": batch["inputs"], "decoder_input_ids": batch["targets"][:, :-1]}
    params = jax.jit(model.init)(jax.random.key(1), **ids)["params"]
    norms, last = jax.jit(input_gradients, static_argnums=0)(model, params, batch)
    assert last.tolist() == [3, 1]

    def loss(params):
        logits = model.apply({"params": params}, attention_mask=batch["inputs_segment_ids"], **ids).logits
        # Behind the start token stand the outputs: the last is predicted from the one before it.
        chosen = [jax.nn.log_softmax(logits[row, n - 1])[batch["targets"][row, n]] for row, n in enumerate(outputs)]
        return -sum(chosen)

    table = jax.jit(jax.grad(loss))(params)["embedder"]["token"]["embedding"]
    expected = np.linalg.norm(table[batch["inputs"]], axis=-1) / (embedding.scale or 1.0)
    assert ((expected > 0) == seen).all()
    np.testing.assert_allclose(norms, expected, rtol=2e-4, atol=1e-9)


def test_what_decoding_keeps():
    kept = {}
    for name in DEFAULT:
        model = make_system(name, 40, TINY).make_model("float32")
        ids = jnp.ones((1, 4), jnp.int32)
        shapes = jax.eval_shape(lambda model=model, ids=ids: model.init(jax.random.key(0), ids, decoder_input_ids=ids))
        kept[name] = [decoding_bytes(bind_apply(model), shapes["params"], length) for length in (8, 16, 32)]
    # Two layers with two vectors of 8 floats each.
    assert kept["lstm"] == [2 * 2 * 8 * 4] * 3
    for name, a_token in (
        ("attention", (2 * 8 + 8) * 4 + 1),  # both directions' states, their projection, the mask
        ("transformer", 2 * 2 * (2 * 8) * 4 + 2 * 4),  # two layers' keys and values, own and source's; two masks
    ):
        first, second, third = kept[name]
        assert (third - second) == 2 * (second - first) == 16 * a_token, name


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> tuple[Path, dict]:
    """A run of everything at the least size; two systems, for the sake of time."""
    folder = tmp_path_factory.mktemp("lineage")
    days = dates(150)
    for split in ("train", "validation"):
        lines = [json.dumps(row, ensure_ascii=False) for row in days.split(split)]
        (folder / f"{split}.jsonl").write_text("\n".join(lines), encoding="utf-8")
    argv = ["--path", str(folder), "--out", str(folder / "out"), "--systems", "lstm", "transformer"]
    assert lineage.main(argv, SETTINGS) == 0
    (path,) = (folder / "out").glob("lineage-*.json")
    return path, {"argv": argv, "content": json.loads(path.read_text())}


@pytest.mark.slow
def test_json_has_every_part(whole):
    content = whole[1]["content"]
    assert content["finished"] and not content["failures"]
    found = {}
    for row in content["results"]:
        found.setdefault(row["part"], set()).add(row.get("system"))
    both = {"lstm", "transformer"}
    assert found == {"baselines": {None}, "translation": both, "recall": both, "speed": both, "amount": both}
    assert set(found) == set(lineage.PARTS)
    assert {"device", "versions", "command"} <= content["environment"].keys()
    for row in content["results"]:
        if row["part"] in ("translation", "recall", "amount"):
            assert [at["step"] for at in row["curve"]] == [2, 4]
            assert 0 < row["curve"][0]["seconds"] < row["curve"][1]["seconds"] == row["training_seconds"]
            assert row["dtype"] == "float32" and row["batch"]["B"] == 4
        if row["part"] in ("translation", "recall"):
            assert [at["test"] for at in row["tests"]] == [1, 2]
            assert row["train_rows"] == 32
            for points in row["gradients"].values():
                assert all(point["norm"] > 0 for point in points)
        if row["part"] == "amount":
            assert row["train_rows"] == 8
        if row["part"] == "speed":
            assert (row["length"], row["batch"]) == (8, 2)
            assert row["tokens_per_second"] == pytest.approx(1e3 * 2 * 2 * 8 / row["milliseconds"])
            assert row["rounds"] >= 3 and row["temp_bytes"] > 0 and row["decoding_bytes"] > 0


@pytest.mark.slow
def test_page_shows_every_figure(whole):
    path, _ = whole
    page = path.with_suffix(".md").read_text()
    shown = re.findall(r"!\[(\w+)\]\((\S+)\)", page)
    assert [name for name, _ in shown] == list(FIGURES) == list(lineage_page.FIGURES)
    for _, file in shown:
        assert (path.parent / file).read_bytes().startswith(b"\x89PNG")
    for heading in ("Where the older systems win", "Where they are level", "Where the newest wins"):
        assert f"## {heading}" in page
    assert "--quick" in page  # such figures say so
    assert "failed" not in page


@pytest.mark.slow
def test_a_finished_run_is_not_done_again(whole):
    path, run = whole
    before = run["content"]
    assert lineage.main([*run["argv"], "--resume"], SETTINGS) == 0
    after = json.loads(path.read_text())
    assert (after["results"], after["done"]) == (before["results"], before["done"])
    assert lineage.main([*run["argv"], "--resume"], dataclasses.replace(SETTINGS, tokens=32)) == 2


def test_a_run_of_another_processor_is_not_gone_on_with(tmp_path):
    path = tmp_path / "lineage.json"
    path.write_text(json.dumps({"environment": {"processor": "Another"}, "settings": {}, "problems": {}}))
    with pytest.raises(SystemExit, match=r"another processor \(Another; this is .+\)"):
        lineage.Record(path, {}, {}, resume=True)
    assert lineage.Record(path, {}, {}, resume=False).done == []


def test_what_fails_is_noted_and_the_rest_goes_on(tmp_path):
    def fail():
        raise RuntimeError("no room")

    record = lineage.Record(tmp_path / "lineage.json", {"name": "small"}, {}, resume=False)
    work = [("bad", fail), ("good", lambda: [{"part": "speed", "system": "lstm"}])]
    lineage.run(work, record)
    content = json.loads(record.path.read_text())
    assert content["failures"] == {"bad": "RuntimeError: no room"}
    assert content["done"] == ["good"] and not content["finished"]
    # A second try does what failed alone, and clears it.
    record = lineage.Record(record.path, {"name": "small"}, {}, resume=True)
    lineage.run([("bad", lambda: [{"part": "speed", "system": "attention"}]), ("good", fail)], record)
    content = json.loads(record.path.read_text())
    assert [row["system"] for row in content["results"]] == ["lstm", "attention"]
    assert content["finished"] and not content["failures"]


def test_a_deadline_leaves_the_rest_out(tmp_path):
    record = lineage.Record(tmp_path / "lineage.json", {"name": "small"}, {}, resume=False)
    lineage.run([("late", lambda: [{"part": "speed"}])], record, deadline_seconds=1e-9)
    content = json.loads(record.path.read_text())
    assert not content["results"] and not content["finished"]


def test_data_that_is_missing_is_one_line(tmp_path, capsys):
    assert lineage.main(["--data", "zoo_datez", "--out", str(tmp_path)], SETTINGS) == 2
    assert "zoo_dates" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("values", "better", "unit", "verdict"),
    [
        ({"lstm": 10.0, "attention": 20.0, "transformer": 30.0}, "high", "BLEU", "newest"),
        ({"lstm": 40.0, "attention": 20.0, "transformer": 30.0}, "high", "BLEU", "older"),
        ({"lstm": 31.0, "attention": 20.0, "transformer": 30.0}, "high", "BLEU", "level"),
        ({"lstm": 10.0, "transformer": 30.0}, "low", "MB", "older"),
        ({"lstm": 100.0, "transformer": 96.0}, "high", "tokens a second", "level"),
        ({"lstm": 100.0, "transformer": 90.0}, "high", "tokens a second", "older"),
    ],
)
def test_the_verdict_follows_from_the_figures(values, better, unit, verdict):
    assert Comparison(topic="x", place="1", values=values, unit=unit, better=better).verdict == verdict


@pytest.mark.slow
def test_sentences_follow_from_the_results(whole):
    content = copy.deepcopy(whole[1]["content"])
    name = content["problems"]["translation"]["name"]
    (better, worse) = (row for row in content["results"] if row["part"] == "translation")
    for row, value in ((better, 90.0), (worse, 10.0)):
        row["tests"][1] |= {"score": value, "words_right": value}
    assert better["system"] == "lstm"
    verdicts = [
        found.verdict for found in compare(content) if found.topic.startswith(f"{name} by") and found.place == "2"
    ]
    assert verdicts == ["older", "older"]
    assert all("does not hold" in line for line in order(content))
    for row, value in ((better, 10.0), (worse, 90.0)):
        row["tests"][1] |= {"score": value, "words_right": value}
    lines = list(order(content))
    assert len(lines) == 2 and not any("does not" in line for line in lines)
    content["results"].remove(worse)  # the newest has no results yet: it neither wins nor loses
    assert not [found for found in compare(content) if found.topic.startswith(f"{name} by")]
