"""Captions to pictures: the loss from its definition, guidance and seeds, the judge's scores, and what a user sees."""

import dataclasses
import io
import json
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from checkpoints import write_checkpoint
from PIL import Image
from rich.console import Console

import zoo
from zoo.cli import evaluate, parse_run
from zoo.config import (
    AttentionConfig,
    EmbeddingConfig,
    LanguageModelHead,
    LearnedPositions,
    MlpConfig,
    StackConfig,
    TransformerConfig,
)
from zoo.data import DataConfig, Dataset, TokenizerConfig, train_tokenizer
from zoo.image_tokens import PaletteTokens
from zoo.recipes import RECIPES
from zoo.recipes.job import train_and_report
from zoo.recipes.run import Run
from zoo.tasks.picture_attributes import Judge, PictureAttributesConfig
from zoo.tasks.picture_scores import frechet_distance
from zoo.tasks.report import Question
from zoo.tasks.text_to_image import TextToImageConfig
from zoo.training.checkpoint import load_params
from zoo.training.config import InitConfig, OptimizerConfig, ScheduleConfig, TrainingConfig
from zoo.training.state import bind_apply
from zoo.transformer import Transformer
from zoo.weights import flatten

COLOURS = {"red": (250, 10, 10), "green": (10, 250, 10), "blue": (10, 10, 250)}
PALETTE = PaletteTokens(np.array([*COLOURS.values(), (255, 255, 255)], np.float32) / 127.5 - 1, 4)
SIDES = ("left", "right")


def examples(count: int) -> list[dict]:
    """White pictures, one half of a colour; green on the right is held out of train."""
    found = []
    for index in range(count):
        colour, side = index % 3, index // 3 % 2
        image = np.full((4, 4, 3), 255, np.uint8)
        image[:, slice(0, 2) if side == 0 else slice(2, 4)] = list(COLOURS.values())[colour]
        caption = f"{list(COLOURS)[colour]} on the {SIDES[side]}"
        part = int((colour, side) == (1, 1))
        found.append({"image": image, "caption": caption, "colour": colour, "side": side, "part": part})
    return found


def network(vocab_size: int) -> TransformerConfig:
    stack = StackConfig(
        num_layers=1,
        width=32,
        attention=AttentionConfig(num_heads=2, head_size=16),
        mlp=MlpConfig(hidden_size=64, activation="relu"),
    )
    return TransformerConfig(
        embedding=EmbeddingConfig(width=32, vocab_size=vocab_size, positions=LearnedPositions(max_length=32)),
        encoder=stack,
        decoder=dataclasses.replace(stack, causal=True, cross_attention=stack.attention),
        decoder_embedding=EmbeddingConfig(width=32, vocab_size=5, positions=LearnedPositions(max_length=16)),
        head=LanguageModelHead(tied=False, num_ids=4),
    )


def read_colours(params, pixel_values, dropout_rng=None):
    """A judge that measures: the colour of each half, where it is not white."""
    del params, dropout_rng
    halves = jnp.stack([pixel_values[..., :2].mean((2, 3)), pixel_values[..., 2:].mean((2, 3))], 1)
    ink = 1 - halves.mean(-1)
    colour = jnp.take_along_axis(halves, ink.argmax(1)[:, None, None], 1)[:, 0]
    features = jnp.concatenate([halves.reshape(len(halves), -1), ink], -1)
    return SimpleNamespace(logits=jnp.concatenate([colour, ink], -1), last_hidden_state=features[:, None])


def make(folder, *, judged=True, **options):
    train = [example for example in examples(60) if not example["part"]]
    labels = {"colour": tuple(COLOURS), "side": SIDES, "part": ("seen", "held_out")}
    dataset = Dataset(name="halves", splits={"train": train, "validation": examples(36)}, labels=labels)
    tokenizer = train_tokenizer([example["caption"] for example in train], TokenizerConfig(vocab_size=300))
    data, judge = DataConfig(name="halves"), None
    if judged:
        attributes = PictureAttributesConfig(attributes=("colour", "side"), image_size=4, part_key="part")
        judge = Judge(attributes.bind(dataset, None, seed=0, data=data), read_colours, {})
    given = {
        "image_size": 4,
        "caption_length": 32,
        "batch_size": 8,
        "image_tokens": None,
        "judge": None,
        "num_judged": 6,
    }
    config = TextToImageConfig(**(given | options))
    return config.bind(dataset, tokenizer, seed=0, data=data, codec=PALETTE, judge=judge, folder=folder)


def size_of(path) -> tuple[int, int]:
    with Image.open(path) as picture:
        return picture.size


@pytest.fixture(scope="module")
def model():
    network_ = Transformer(network(300))
    ids = jnp.ones((1, 4), jnp.int32)
    params = jax.jit(network_.init)(jax.random.key(0), input_ids=ids, decoder_input_ids=ids)["params"]
    return bind_apply(network_), jax.tree.map(lambda leaf: leaf * 3.0, params)


def test_the_loss_is_of_the_pictures_tokens_after_a_start(model, tmp_path):
    apply, params = model
    task, total = make(tmp_path, judged=False), 0.0
    forward = jax.jit(lambda ids, shifted: apply(params, input_ids=ids, decoder_input_ids=shifted).logits)
    batch = next(task.batches("validation"))
    for row in range(6):  # after six the examples repeat
        tokens = np.asarray(PALETTE.encode(batch["pixels"][row][None] / 127.5 - 1))[0]
        shifted = np.array([[4, *tokens[:-1]]])
        logits = forward(batch["input_ids"][row, : batch["attention_mask"][row].sum()][None], shifted)
        total -= float(np.take_along_axis(jax.nn.log_softmax(logits[0]), tokens[:, None], 1).sum())
    results = task.evaluate(apply, params)
    assert results["loss"] == pytest.approx(total / (6 * 16), rel=1e-5) and results["tokens"] == 36 * 16


def test_training_leaves_captions_out_at_the_rate_asked_for(tmp_path):
    task, seen = make(tmp_path, caption_dropout=0.25), []

    def apply(params, input_ids=None, attention_mask=None, decoder_input_ids=None, dropout_rng=None, **head):
        if head:
            return head["states"]
        seen.append((input_ids, attention_mask))
        return SimpleNamespace(last_hidden_state=jnp.zeros((*decoder_input_ids.shape, 4)), aux_loss=0.0)

    batch = next(task.batches("train"))
    batch = {name: np.repeat(value, 100, 0) for name, value in batch.items()}
    task.loss(apply, {}, batch, jax.random.key(0))
    task.loss(apply, {}, batch, None)
    (ids, mask), (whole, whole_mask) = seen
    nothing = task.tokenizer.encode_row([""], 32)
    left_out = np.asarray((ids == nothing["input_ids"][None]).all(1) & (mask == nothing["attention_mask"][None]).all(1))
    assert 0.2 < left_out.mean() < 0.3
    assert (np.asarray(ids)[~left_out] == batch["input_ids"][~left_out]).all()
    assert (whole == batch["input_ids"]).all() and (whole_mask == batch["attention_mask"]).all()


def test_seeds_vary_pictures_and_repeat_them(model, tmp_path):
    apply, params = model
    task = make(tmp_path)
    captions, wild = ["red on the left"] * 4, {"temperature": 5.0}
    first, again, other = (task.draw(apply, params, captions, seed=seed, options=wild) for seed in (1, 1, 2))
    assert first.shape == (4, 3, 4, 4) and first.dtype == np.uint8
    assert (first == again).all() and (first != other).any()
    assert len({picture.tobytes() for picture in [*first, *other]}) == 8


def test_drawing_is_guided_and_left_alone(model, tmp_path):
    """Greedy drawings with a scale are those of the formula, computed over whole sequences."""
    apply, params = model
    task = make(tmp_path)
    ids = [np.array(task.tokenizer.encode_row([caption], 32)["input_ids"]) for caption in ("blue on the left", "")]
    ids = [row[: np.flatnonzero(row)[-1] + 1][None] for row in ids]
    forward = jax.jit(lambda ids, shifted: apply(params, input_ids=ids, decoder_input_ids=shifted).logits)
    for scale in (1.0, 4.0):
        tokens = []
        for place in range(16):
            shifted = np.array([[4, *tokens, *[0] * (15 - place)]])
            led, away = (forward(row, shifted)[0, place] for row in ids)
            tokens.append(int((away + scale * (led - away)).argmax()))
        greedy = {"do_sample": False, "guidance_scale": scale}
        drawn = task.draw(apply, params, ["blue on the left"], options=greedy)
        assert (PALETTE.encode(drawn / 127.5 - 1)[0] == np.array(tokens)).all()


def test_the_judge_counts_pictures_with_all_attributes_right(tmp_path):
    task = make(tmp_path)
    scores = task.scores
    assert [len(scores.parts[name]) for name in ("seen", "held_out", "rest")] == [6, 6, 24]
    own, kept = task._redraw(scores.asked)
    assert np.abs(own.astype(int) - kept).max() < 1  # four colours are all there are
    drawn = own.copy()
    drawn[0] = drawn[1]  # another colour
    drawn[6:9] = drawn[6:9, :, :, ::-1]  # the other side
    results = scores.measure(drawn, task._redraw)
    assert results["real_seen"] == results["real_as_tokens_held_out"] == 100
    assert results["drawn_seen"] == pytest.approx(500 / 6) and results["drawn_held_out"] == 50
    worse = scores.measure(np.zeros_like(own), task._redraw)
    assert worse["drawn_held_out"] == 0 and worse["real_distance"] == results["real_distance"]
    assert worse["drawn_distance"] > 2 * results["drawn_distance"] > 0


def test_retrieval_fails_on_held_out_combinations(tmp_path):
    pytest.importorskip("sklearn")
    figures = {figure.name: figure.value for figure in make(tmp_path).baselines()}
    assert figures == {"retrieved, seen": "100.00 %", "retrieved, held out": "0.00 %"}


def test_the_distance_is_that_of_normal_distributions():
    rng = np.random.default_rng(0)
    first, second = rng.normal(size=(50_000, 2)), rng.normal(size=(50_000, 2)) * [3, 0.5] + [1, 0]
    assert frechet_distance(first, first) == pytest.approx(0, abs=1e-6)
    # Independent axes: the difference of the means, and of the standard deviations, squared.
    assert frechet_distance(first, second) == pytest.approx(1 + 2**2 + 0.5**2, rel=0.03)


def test_a_prompt_becomes_a_picture_of_variants(model, tmp_path):
    apply, params = model
    task = make(tmp_path)
    path = task.respond(apply, params, Question(prompt="Red, on the left!", variants=3, seed=5))
    assert path == str(tmp_path / "pictures" / "red-on-the-left-seed-5.png")
    assert size_of(path)[0] > 3 * 150 and size_of(path)[1] > 150
    chosen = str(tmp_path / "other" / "grid.png")
    assert task.respond(apply, params, Question(prompt="red", output=chosen)) == chosen
    with pytest.raises(ValueError, match=r"let it end in \.png"):
        task.respond(apply, params, Question(prompt="red", output=str(tmp_path / "grid.txt")))
    with pytest.raises(ValueError, match=r"the prompt has \d+ tokens and this model reads 32; shorten it"):
        task.respond(apply, params, Question(prompt="x" * 80))
    *shown, (label, grid) = task.samples(apply, params)
    assert len(shown) == 6 and all("on the" in caption for caption, _ in shown)
    assert label == "4 variants of each" and size_of(grid)[1] > 6 * 150


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """A folder of captioned pictures."""
    folder = tmp_path_factory.mktemp("pictures")
    rows = []
    for index, example in enumerate(examples(120)):
        Image.fromarray(example["image"]).save(folder / f"{index}.png")
        rows.append({"file_name": f"{index}.png", "caption": f"{example['caption']} {index % 7}"})
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


def plan(pictures, folder, *, steps: int, **init) -> Run:
    return Run(
        model=network(300),
        init=InitConfig(**init),
        task=TextToImageConfig(image_size=4, batch_size=16, image_tokens=None, palette_size=4, judge=None),
        data=DataConfig(path=str(pictures), tokenizer=TokenizerConfig(vocab_size=300)),
        optimizer=OptimizerConfig(learning_rate=1e-2),
        schedule=ScheduleConfig(warmup_steps=5),
        training=TrainingConfig(num_steps=steps, tensorboard=False),
        folder=str(folder),
    )


@pytest.fixture(scope="module")
def trained(pictures, tmp_path_factory):
    """A run on raw pixels from a folder of captioned pictures, as a user starts it, and what it printed."""
    run = plan(pictures, tmp_path_factory.mktemp("run") / "halves", steps=60)
    console = Console(record=True, width=120)
    train_and_report(run, console)
    return run.folder, console.export_text()


def test_a_folder_of_pictures_trains_and_answers(trained, capsys):
    folder, said = trained
    assert "nats per picture token" in said and "samples.png" in said and f"evaluate.py {folder} --prompt" in said
    path = f"{folder}/grid.png"
    evaluate([folder, "--prompt", "red on the left", "--seed", "3", "--variants", "2", "--output", path])
    assert path in capsys.readouterr().out and size_of(path)[0] > 2 * 150


@pytest.mark.slow
def test_a_run_that_draws_is_looked_into(trained, tmp_path):
    path = tmp_path / "look.html"
    evaluate([trained[0], "--inspect", "--prompt", "red on the left", "--output", str(path)])
    data = json.loads(path.read_text().split('id="data">')[1].split("</script>")[0])
    *_, drawn, read = data["maps"]
    codes = {str(code) for code in range(4)}  # a picture's tokens, and what begins it
    assert (drawn["path"], len(drawn["keys"]), drawn["keys"][0]) == ("decoder/attention", 16, "4")
    assert (read["path"], len(read["queries"]), read["keys"][-1]) == ("decoder/cross_attention", 16, "</s>")
    assert {*drawn["keys"][1:]} <= codes == {answer for cell in data["lens"]["answers"][-1] for answer in cell}


ENCODERS = [
    ("t5", "frozen", ()),
    ("bert", "lora", ("lora_a", "lora_b")),
    ("distilbert", "full", ("embedder", "encoder")),
]


@pytest.mark.slow
@pytest.mark.parametrize(("model_type", "tune", "trains"), ENCODERS)
def test_a_loaded_encoder_reads_the_captions(model_type, tune, trains, pictures, tmp_path, capsys):
    checkpoint = write_checkpoint(tmp_path / "checkpoint", model_type, "base")
    run = plan(pictures, tmp_path / "run", steps=2, checkpoint=str(checkpoint), tune=tune)
    console = Console(record=True, width=120)
    train_and_report(run, console)
    assert f"starts from {checkpoint}" in console.export_text()

    before, after = zoo.load(checkpoint), zoo.load(run.folder)
    assert after.config.encoder == before.config.encoder and after.config.decoder == run.model.decoder
    assert after.config.memory_width == 32 != after.config.encoder.width
    given, found = flatten(before.params), flatten(after.params)
    shared = {path for path in given if path.startswith(("embedder/", "encoder/"))}
    moved = {path for path in shared if not np.array_equal(given[path], found[path])}
    assert bool(moved) == bool(trains) and shared <= set(found)
    learned = flatten(load_params(run.folder)[0])
    encoders = {path for path in learned if path.startswith(("embedder/", "encoder/"))}
    assert all(path.startswith(trains) or path.endswith(trains) for path in encoders) and bool(encoders) == bool(trains)
    assert {"memory_projection/kernel", "head/kernel"} <= set(learned)

    # The tokenizer is the checkpoint's, in the run's folder, wherever the checkpoint goes.
    (tmp_path / "checkpoint").rename(tmp_path / "elsewhere")
    assert zoo.load(run.folder).tokenizer.encode("red") == before.tokenizer.encode("red")
    evaluate([run.folder, "--prompt", "red on the left", "--variants", "1", "--output", str(tmp_path / "grid.png")])
    assert str(tmp_path / "grid.png") in capsys.readouterr().out


@pytest.mark.slow
def test_a_run_that_draws_goes_on_with_other_pictures(trained, pictures, tmp_path):
    run = plan(pictures, tmp_path / "run", steps=1, checkpoint=trained[0])
    train_and_report(run, Console(file=io.StringIO()))
    before, after = zoo.load(trained[0]), zoo.load(run.folder)
    assert after.config == before.config
    for path, leaf in flatten(after.params).items():
        assert np.abs(leaf - flatten(before.params)[path]).max() < 0.05, path


def test_checkpoints_that_read_no_texts_are_refused(pictures, tmp_path):
    for model_type in ("vit", "gpt2"):
        checkpoint = write_checkpoint(tmp_path / model_type, model_type, "base")
        with pytest.raises(ValueError, match="has no encoder of texts; take an encoder"):
            train_and_report(plan(pictures, tmp_path / "run", steps=1, checkpoint=str(checkpoint)), Console())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--max-new-tokens", "5"], "--max-new-tokens is of no use here: a picture has 16 tokens"),
        (["--candidates", "a", "b"], "--prompt and --candidates: this run answers --prompt"),
        (["--variants", "0"], "variants is 0; give at least 1"),
    ],
)
def test_options_without_use_are_refused(trained, options, message, capsys):
    with pytest.raises(SystemExit):
        evaluate([trained[0], "--prompt", "red", *options])
    assert message in capsys.readouterr().err


def test_what_does_not_fit_is_named_before_anything_compiles(tmp_path):
    with pytest.raises(ValueError, match=r"caption_dropout 0, so that the model never learns"):
        TextToImageConfig(caption_dropout=0.0)
    run = RECIPES["text-to-image-tiny"]()
    with pytest.raises(ValueError, match=r"is 'runs/nothing', where no finished run is; train one first"):
        task = dataclasses.replace(run.task, image_tokens="runs/nothing")
        train_and_report(dataclasses.replace(run, task=task, folder=str(tmp_path)), Console())
    with pytest.raises(ValueError, match=r"positions\.max_length is 16 and the task's rows are 32 long"):
        parse_run(["text-to-image-tiny", "--model.embedding.positions.max-length", "16"])
    with pytest.raises(ValueError, match="a model of ImageTokenizerConfig does not learn TextToImageConfig"):
        dataclasses.replace(run, model=RECIPES["image-tokens-tiny"]().model)
