"""Runs that start from a checkpoint: what is fresh, what trains, what stays to the bit, and what is refused."""

import io
import json
import shutil
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest
from checkpoints import write_checkpoint, write_words
from rich.console import Console

import zoo
from zoo import cli
from zoo.config import ClassifierHead
from zoo.data import DataConfig, TokenizerConfig, open_dataset
from zoo.recipes.classify import classify_tiny
from zoo.recipes.job import train_and_report
from zoo.recipes.preparation import prepare
from zoo.recipes.run import Run
from zoo.recipes.start import begin
from zoo.recipes.tiny import gpt_tiny
from zoo.tasks.text_classification import TextClassificationConfig
from zoo.training.checkpoint import load_params
from zoo.training.config import InitConfig, MeshConfig, OptimizerConfig, ScheduleConfig, TrainingConfig
from zoo.training.flops import count_flops
from zoo.training.metrics import read_metrics
from zoo.training.tuning import merge, split
from zoo.weights import CheckpointError, flatten, unflatten


@pytest.fixture(scope="module")
def bert(tmp_path_factory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("checkpoints") / "bert", "bert", "base", num_hidden_layers=2)


@pytest.fixture(scope="module")
def words(tmp_path_factory) -> Path:
    return write_words(tmp_path_factory.mktemp("data") / "words.jsonl")


def plan(folder: Path, words: Path, steps: int = 4, mesh: int = 1, model=None, **init) -> Run:
    return replace(
        classify_tiny(),
        **({} if model is None else {"model": model}),
        init=InitConfig(**init),
        task=TextClassificationConfig(sequence_length=16, batch_size=8),
        data=DataConfig(path=str(words), validation_fraction=0.3, tokenizer=TokenizerConfig(vocab_size=300)),
        optimizer=OptimizerConfig(learning_rate=1e-2),
        schedule=ScheduleConfig(name="constant", warmup_steps=1),
        mesh=MeshConfig(data=mesh),
        training=TrainingConfig(num_steps=steps, checkpoint_every=2, tensorboard=False),
        compute_dtype="float32",
        layers="unrolled",
        folder=str(folder),
    )


def train(run: Run) -> str:
    console = Console(file=io.StringIO(), width=200)
    train_and_report(run, console)
    return console.file.getvalue()


@pytest.fixture(scope="module")
def runs(bert, words, tmp_path_factory):
    """A run of each kind: its folder and what it said."""
    folder = tmp_path_factory.mktemp("runs")
    tunes = ("full", "frozen", "lora")
    some = {"rank": 2, "alpha": 6.0, "targets": ("query", "value")}
    said = {t: train(plan(folder / t, words, checkpoint=str(bert), tune=t, **some)) for t in tunes}
    return {tune: (folder / tune, said[tune]) for tune in tunes}


def start(bert):
    """The parameters that runs start from, but for the fresh ones."""
    return flatten(zoo.load(bert, head="sequence_classification", labels=("no", "yes")).params)


def test_fresh_parameters_are_named_and_the_rest_is_the_checkpoint_s(runs, bert):
    for folder, said in runs.values():
        assert said.count("newly initialised: head/logits (bias, kernel)") == 1 and f"starts from {bert}" in said
        assert "newly initialised: head/logits (bias, kernel)" in (folder / "README.md").read_text()
        bundle = zoo.load(folder)
        assert bundle.origin.head == "sequence_classification" and bundle.tokenizer.mask_id is not None
        assert bundle.origin.fields["id2label"] == {"0": "no", "1": "yes"}
        assert bundle.config.head == ClassifierHead(num_classes=2, pooler="tanh")
    assert set(flatten(load_params(runs["frozen"][0])[0])) == {
        "head/logits/bias", "head/logits/kernel", "head/pooler/bias", "head/pooler/kernel",
    }  # fmt: skip


def test_what_is_frozen_stays_to_the_bit(runs, bert):
    before = start(bert)
    after = {tune: flatten(zoo.load(folder).params) for tune, (folder, _) in runs.items()}
    for tune, moved in (
        ("frozen", lambda path: path.startswith("head/")),
        ("lora", lambda path: path.startswith("head/") or path.endswith(("query/kernel", "value/kernel"))),
    ):
        for path, leaf in after[tune].items():
            assert np.array_equal(leaf, before[path]) != moved(path), (tune, path)
    assert not np.array_equal(after["full"]["embedder/norm/scale"], before["embedder/norm/scale"])


def test_the_optimizer_knows_what_trains_alone(runs):
    sizes = {tune: sum(f.stat().st_size for f in folder.glob("checkpoints/4/optimizer/**/*") if f.is_file())
             for tune, (folder, _) in runs.items()}  # fmt: skip
    assert sizes["frozen"] < sizes["full"] / 3 and sizes["lora"] < sizes["full"] / 3


def test_loading_a_run_merges_what_it_learned(runs, bert):
    folder, _ = runs["lora"]
    learned, whole, before = flatten(load_params(folder)[0]), flatten(zoo.load(folder).params), start(bert)
    path = "encoder/attention/query"
    a, b = learned[f"{path}/lora_a"], learned[f"{path}/lora_b"]
    assert a.shape == (2, 24, 2) and b.shape == (2, 2, 4, 6) and np.abs(b).max() > 0
    wanted = before[f"{path}/kernel"] + 6.0 / 2 * np.einsum("lir,lrnh->linh", a, b)
    np.testing.assert_allclose(whole[f"{path}/kernel"], wanted, rtol=0, atol=1e-6)


@pytest.mark.parametrize("targets", [("query",), ("output", "up", "down"), ("all",)])
def test_lora_starts_at_the_checkpoint_and_adds_a_product(bert, targets):
    bundle = zoo.load(bert, head="sequence_classification", labels=("no", "yes"))
    config = InitConfig(checkpoint="x", tune="lora", rank=3, alpha=1.5, targets=targets)
    trained, frozen = split(bundle.params, bundle.origin.fresh, config, seed=1)
    jax.tree.map(np.testing.assert_array_equal, merge(trained, frozen), bundle.params)
    adapters = {path: leaf for path, leaf in flatten(trained).items() if "lora" in path}
    every = {"query", "key", "value", "output", "up", "down"}
    assert {path.split("/")[-2] for path in adapters} == (every if targets == ("all",) else set(targets))

    # x (W + s A B) = x W + s (x A) B, layer by layer, whichever axes the kernel contracts.
    moved = unflatten({path: leaf + float(path.endswith("lora_b")) for path, leaf in flatten(trained).items()})
    kernels, merged = flatten(frozen), flatten(merge(moved, frozen))
    for module in {path.rpartition("/")[0] for path in adapters}:
        kernel, found = kernels[f"{module}/kernel"][1], merged[f"{module}/kernel"][1]
        a, b = adapters[f"{module}/lora_a"][1], 1 + adapters[f"{module}/lora_b"][1]
        x, count = np.random.default_rng(0).standard_normal(a.shape[:-1]).astype(np.float32), a.ndim - 1
        apart = np.tensordot(x, kernel, count) + 0.5 * np.tensordot(np.tensordot(x, a, count), b, 1)
        np.testing.assert_allclose(np.tensordot(x, found, count), apart, atol=1e-5)


def test_frozen_parameters_are_not_differentiated(bert):
    bundle = zoo.load(bert, head="sequence_classification", labels=("no", "yes"))
    ids = np.ones((8, 16), np.int32)

    def flops(**init):
        trained, frozen = split(bundle.params, bundle.origin.fresh, InitConfig(checkpoint="x", **init), 0)

        def loss(trained):
            return bundle.model.apply({"params": merge(trained, frozen)}, input_ids=ids).logits.sum()

        return count_flops(loss, trained), count_flops(jax.grad(loss), trained)

    forward, full = flops()
    assert flops(tune="frozen")[1] < 1.05 * forward < full / 2
    # Back through every layer, and to the two targets of each; not to the other kernels.
    assert flops(tune="lora", rank=1, targets=("query", "value"))[1] < 0.85 * full


@pytest.mark.slow
def test_a_run_goes_on_without_its_checkpoint(bert, words, tmp_path):
    copy = shutil.copytree(bert, tmp_path / "bert")
    options = dict(checkpoint=str(copy), tune="lora", rank=2)
    train(plan(tmp_path / "whole", words, steps=6, **options))
    train(plan(tmp_path / "halves", words, steps=2, **options))
    shutil.rmtree(copy)
    train(plan(tmp_path / "halves", words, steps=6, **options))
    whole, halves = (zoo.load(tmp_path / name) for name in ("whole", "halves"))
    jax.tree.map(np.testing.assert_array_equal, whole.params, halves.params)


@pytest.mark.slow
def test_eight_devices_do_what_one_does(runs, bert, words, tmp_path):
    one, eight = runs["lora"][0], tmp_path / "eight"
    some = {"rank": 2, "alpha": 6.0, "targets": ("query", "value")}
    train(plan(eight, words, mesh=8, checkpoint=str(bert), tune="lora", **some))
    losses = [[float(row["loss"]) for row in read_metrics(folder / "metrics.csv") if row.get("loss")]
              for folder in (one, eight)]  # fmt: skip
    assert len(losses[0]) == 4
    np.testing.assert_allclose(*losses, rtol=1e-5)


BATCH = {"input_ids": np.array([[5, 9, 11, 8]]), "attention_mask": np.array([[1, 1, 1, 0]])}


def test_a_run_exports_as_its_architecture(runs, tmp_path):
    for tune, (folder, _) in runs.items():
        run = zoo.load(folder)
        cli.evaluate([str(folder), "--export", str(tmp_path / tune)])
        again = zoo.load(tmp_path / tune)
        np.testing.assert_array_equal(again(**BATCH).logits, run(**BATCH).logits)
        assert again.tokenizer.encode("good thing") == run.tokenizer.encode("good thing")


@pytest.mark.peers
def test_the_reference_opens_what_a_run_exports(runs, tmp_path):
    transformers, torch = pytest.importorskip("transformers"), pytest.importorskip("torch")
    folder, _ = runs["lora"]
    cli.evaluate([str(folder), "--export", str(tmp_path / "lora")])
    model = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "lora")
    assert model.config.id2label == {0: "no", 1: "yes"}
    with torch.no_grad():
        theirs = model.eval()(**{name: torch.tensor(value) for name, value in BATCH.items()}).logits.numpy()
    np.testing.assert_allclose(theirs, zoo.load(tmp_path / "lora")(**BATCH).logits, atol=1e-5)


@pytest.mark.slow
def test_a_run_of_zoo_s_own_is_a_checkpoint_too(words, tmp_path):
    """From scratch, then with other classes: the same encoder, another head."""
    small = classify_tiny().model
    small = replace(
        small,
        embedding=replace(small.embedding, vocab_size=300, width=16),
        encoder=replace(
            small.encoder,
            num_layers=1,
            width=16,
            attention=replace(small.encoder.attention, num_heads=2, head_size=8),
            mlp=replace(small.encoder.mlp, hidden_size=32),
        ),
    )
    said = train(plan(tmp_path / "first", words, steps=2, model=small))
    assert "starts from" not in said and zoo.load(tmp_path / "first").config.head.num_classes == 2
    other = tmp_path / "other.jsonl"
    other.write_text(words.read_text().replace('"no"', '"never"', 4))
    run = plan(tmp_path / "second", other, steps=2, checkpoint=str(tmp_path / "first"), tune="frozen")
    assert "newly initialised: head/logits (bias, kernel)" in train(run)
    first, second = (flatten(zoo.load(tmp_path / name).params) for name in ("first", "second"))
    assert second["head/logits/kernel"].shape == (16, 3)
    assert all(np.array_equal(first[path], second[path]) for path in first if not path.startswith("head/"))
    assert zoo.load(tmp_path / "first").tokenizer == zoo.load(tmp_path / "second").tokenizer
    # A run that came from a checkpoint has its architecture's head for another task, or other classes.
    with pytest.raises(ValueError, match="made from scratch"):
        zoo.load(tmp_path / "first", head="masked_lm")


def test_runs_of_checkpoints_change_heads(runs):
    folder, _ = runs["lora"]
    own, other = zoo.load(folder), zoo.load(folder, head="sequence_classification", labels=("a", "b", "c"))
    assert other.origin.fresh == ("head/logits/bias", "head/logits/kernel") and other.config.head.num_classes == 3
    one, two = flatten(own.params), flatten(other.params)
    assert all(np.array_equal(one[path], two[path]) for path in one if "logits" not in path)
    assert "head/transform/kernel" in zoo.load(folder, head="masked_lm").origin.fresh


REFUSED = {
    "nothing would train": dict(tune="frozen"),
    "init.targets has 'quarry', which is no projection of this model; it has down, key": dict(
        tune="lora", targets=("quarry",)
    ),
}


@pytest.mark.parametrize("message", REFUSED)
def test_what_cannot_train_is_refused(message, bert, words, tmp_path):
    head = zoo.load(bert, head="sequence_classification", labels=("no", "yes"))
    zoo.save(head, tmp_path / "classifier")
    run = plan(tmp_path / "run", words, checkpoint=str(tmp_path / "classifier"), **REFUSED[message])
    with pytest.raises(ValueError, match=message):
        train(run)
    assert not (tmp_path / "run").exists()


def test_other_checkpoints_are_refused(words, bert, tmp_path):
    t5 = write_checkpoint(tmp_path / "t5", "t5", "seq2seq_lm")
    for checkpoint, message in (
        (t5, "is an encoder-decoder and this task reads"),
        (tmp_path / "nowhere", "nowhere"),
    ):
        run = plan(tmp_path / "run", words, checkpoint=str(checkpoint))
        with pytest.raises((ValueError, OSError), match=message):
            begin(run, open_dataset(run.data))
    (bert / "extra").mkdir()
    broken = shutil.copytree(bert, tmp_path / "broken")
    fields = (broken / "config.json").read_text().replace('"num_hidden_layers": 2', '"num_hidden_layers": 1')
    (broken / "config.json").write_text(fields)
    run = plan(tmp_path / "run", words, checkpoint=str(broken))
    with pytest.raises(CheckpointError, match="zoo has no use for"):
        begin(run, open_dataset(run.data))


def test_an_encoder_is_no_start_of_next_token_training(words, tmp_path):
    """Each token would see the one that it is to guess: a perplexity near 1 that means nothing."""
    bert = write_checkpoint(tmp_path / "bert", "bert", "masked_lm")
    run = replace(gpt_tiny(), init=InitConfig(checkpoint=str(bert)), data=DataConfig(path=str(words)))
    with pytest.raises(ValueError, match="is an encoder, in which each token sees the one that it is to guess"):
        begin(run, open_dataset(run.data))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--init", "x", "--model.encoder.num-layers", "3"], "are of no use with --init"),
        (["--init.tune", "lora"], "'full' without a checkpoint"),
        (["--init", "x", "--init.rank", "0"], "init.rank is 0"),
        (["--init", "no/such/model"], "no/such/model"),
    ],
)
def test_mistakes_on_the_command_line(arguments, message, words, capsys, tmp_path):
    with pytest.raises(SystemExit) as stop:
        data = ["--data.path", str(words), "--data.text-key", "text", "--data.label-key", "label"]
        cli.train(["classify-tiny", *arguments, *data, "--folder", str(tmp_path / "run")])
    said = capsys.readouterr().err
    assert stop.value.code == 1 and message in said and len(said.strip().splitlines()) == 1, said


@pytest.mark.slow
def test_pairs_with_numbered_classes_as_glue_has_them(bert, tmp_path):
    rows = [
        {
            "sentence1": f"good thing {number}",
            "sentence2": f"{'good' if number % 2 else 'bad'} thing",
            "label": number % 2,
        }
        for number in range(30)
    ]
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    run = plan(tmp_path / "run", path, steps=2, checkpoint=str(bert))
    run = replace(run, data=replace(run.data, text_key="sentence1", pair_key="sentence2"))
    assert "in 2 classes" in train(run)
    prepared = prepare(Run.load(tmp_path / "run"))
    tokenizer = zoo.load(bert).tokenizer
    wanted = tokenizer([rows[3]["sentence1"]], [rows[3]["sentence2"]])
    found = prepared.task.encode(rows[3])
    assert prepared.task.classes == ("0", "1") and found["token_type_ids"].any()
    for name, value in wanted.items():
        kept = min(value.shape[1], 16)
        assert found[name].shape == (16,)
        if value.shape[1] <= 16:
            assert found[name][:kept].tolist() == value[0].tolist()
