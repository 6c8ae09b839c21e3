"""Runs of real size: TFDS has the fields they read, their loss fits their model, and the command line takes them."""

import dataclasses
import importlib
import re

import jax
import numpy as np
import pytest
import tensorflow_datasets as tfds
from tiers import tiered

from zoo import cli
from zoo.data import DataConfig, Dataset, open_dataset
from zoo.data.tokenizer import Tokenizer
from zoo.recipes import RECIPES, full
from zoo.training.state import bind_apply
from zoo.transformer import parameter_shapes

FULL = [name for name, recipe in RECIPES.items() if recipe.__module__ == full.__name__]
# Sets that TFDS finds by name only where TensorFlow is installed.
LEGACY = {
    "c4": ("text.c4", "C4"),
    "cnn_dailymail": ("summarization.cnn_dailymail", "CnnDailymail"),
    "wikipedia": ("text.wikipedia", "Wikipedia"),
    "wmt14_translate": ("translate.wmt14", "Wmt14Translate"),
    "xsum": ("summarization.xsum", "Xsum"),
}


def features(name, folder):
    """What a public set's examples hold, as its builder says, offline."""
    base, _, config = name.partition("/")
    if base in LEGACY:
        module, kind = LEGACY[base]
        kind = getattr(importlib.import_module(f"tensorflow_datasets.{module}"), kind)
    else:
        kind = tfds.builder_cls(base)
    return kind(data_dir=folder, **({"config": config} if config else {})).info.features


@pytest.mark.parametrize("name", FULL)
def test_tfds_has_the_fields(name, tmp_path):
    run = RECIPES[name]()
    found = features(run.data.name, tmp_path)
    for key in run.task.text_keys(run.data):
        assert type(found[key]) is tfds.features.Text, f"{run.data.name} has {list(found)}"
    if not run.task.text_keys(run.data):
        assert isinstance(found[run.data.image_key], tfds.features.Image)
        assert found[run.data.label_key].num_classes == run.model.head.num_classes


def test_xsum_has_the_fields_that_are_named(tmp_path):
    assert {"document", "summary"} <= set(features("xsum", tmp_path))
    for word in ("xsum", "document", "summary"):
        assert word in RECIPES["summarize-cnn"].__doc__


class Words(Tokenizer):
    """A tokenizer of a run's size that was never trained: each word is one id."""

    def __init__(self, vocab_size):
        self.vocab_size, self._model = vocab_size, b"words"

    def encode(self, text):
        return [5 + hash(word) % (self.vocab_size - 5) for word in text.split()]

    def encode_with_offsets(self, text):
        return self.encode(text), np.array([match.span() for match in re.finditer(r"\S+", text)])


def abstract_batch(run):
    """The shapes of a batch, which are those of a few real rows, as many as the run has."""
    rng = np.random.default_rng(0)
    text = " ".join(map(str, rng.integers(0, 9999, 700)))
    keys = run.task.text_keys(run.data)
    image = {run.data.image_key: rng.integers(0, 255, (40, 50, 3)).astype(np.uint8), run.data.label_key: 3}
    answers = {"answers": {"text": [text[5:9]], "answer_start": [5]}}
    examples = [dict.fromkeys(keys, text) | (answers if keys else image)] * 8
    classes = tuple(map(str, range(getattr(run.model.head, "num_classes", 0))))
    dataset = Dataset(name="few", splits={"train": examples}, labels={run.data.label_key: classes})
    tokenizer = Words(run.data.tokenizer.vocab_size) if keys else None
    task = dataclasses.replace(run.task, batch_size=4).bind(dataset, tokenizer, seed=0, data=run.data)
    batch = next(task.batches("train"))
    rows = run.task.batch_size
    return task, jax.tree.map(lambda x: jax.ShapeDtypeStruct((rows, *x.shape[1:]), x.dtype), batch)


@pytest.mark.parametrize("name", tiered(FULL, [*FULL][::3]))
def test_the_loss_fits_the_model(name):
    run = RECIPES[name]()
    task, batch = abstract_batch(run)
    model = run.make_model()
    params = parameter_shapes(model)

    def learn(params, batch):
        key = jax.random.key(0)
        return jax.value_and_grad(lambda p: task.loss(bind_apply(model), p, batch, key), has_aux=True)(params)

    (loss, metrics), gradients = jax.eval_shape(learn, params, batch)
    assert loss.shape == () and loss.dtype == np.float32 and "weight" in metrics
    assert jax.tree.map(lambda x: x.shape, gradients) == jax.tree.map(lambda x: x.shape, params)
    lengths = [getattr(run.task, name, 0) for name in ("sequence_length", "source_length", "target_length")]
    assert all(any(x.shape[1:2] in ((n,), (n + 1,)) for x in jax.tree.leaves(batch)) for n in lengths if n)


@pytest.mark.parametrize("name", FULL)
def test_the_command_line_takes_it(name, capsys):
    assert cli.parse_run([name]) == (RECIPES[name](), None)
    with pytest.raises(SystemExit) as stop:
        cli.train([name, "--help"])
    said = " ".join(capsys.readouterr().out.split())
    assert stop.value.code == 0 and "Not yet measured" in said and "--training.accumulate" in said


class TwoLanguages(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """As the translation sets of TFDS are: one feature that holds a text a language."""

    VERSION = tfds.core.Version("1.0.0")
    code_path = None

    def _info(self):
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.Translation(languages=("de", "en")))

    def _split_generators(self, dl_manager):
        return {split: self._generate_examples() for split in ("train", "validation")}

    def _generate_examples(self):
        yield from enumerate([{"de": "zwei Hunde", "en": "two dogs"}, {"de": "Käse", "en": "cheese"}])


def test_translation_sets_are_read_by_language(tmp_path):
    builder = TwoLanguages(data_dir=tmp_path, file_format="array_record")
    builder.download_and_prepare(download_config=tfds.download.DownloadConfig(try_download_gcs=False))
    dataset = open_dataset(DataConfig(name="two_languages", directory=str(tmp_path), source_key="de", target_key="en"))
    found = {(pair["de"], pair["en"]) for pair in (dataset.split("train")[i] for i in range(2))}
    assert found == {("zwei Hunde", "two dogs"), ("Käse", "cheese")}
