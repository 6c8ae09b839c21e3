"""Every task trains on eight devices as on one: same losses, same gradient norms, step by step.

A new task of `zoo.recipes.run.TaskConfig` needs a line in `SETTINGS`.
"""

import dataclasses
import functools
from typing import get_args

import jax
import numpy as np
import pytest
from models import BERT, GPT2, RECURRENT, T5, VIT
from tiers import tiered

from zoo.config import ClassifierHead, EmbeddingHead, ImageTokenizerConfig, RecurrentConfig, TokenHead
from zoo.data import DataConfig, Dataset, TokenizerConfig, fit_tokenizer
from zoo.image_tokens import ImageTokenizer, PaletteTokens
from zoo.recipes.run import TaskConfig
from zoo.recurrent import Recurrent
from zoo.tasks.causal_lm import CausalLMConfig
from zoo.tasks.image_classification import ImageClassificationConfig
from zoo.tasks.image_tokens import ImageTokensConfig
from zoo.tasks.masked_lm import MaskedLMConfig
from zoo.tasks.picture_attributes import PictureAttributesConfig
from zoo.tasks.question_answering import QuestionAnsweringConfig
from zoo.tasks.sentence_embedding import SentenceEmbeddingConfig
from zoo.tasks.sequence_to_sequence import SequenceToSequenceConfig
from zoo.tasks.text_classification import TextClassificationConfig
from zoo.tasks.text_to_image import TextToImageConfig
from zoo.training.config import MeshConfig, OptimizerConfig, ScheduleConfig
from zoo.training.optimizer import make_optimizer, make_schedule
from zoo.training.prefetch import place_batch
from zoo.training.sharding import make_mesh
from zoo.training.state import abstract_state, bind_apply, initialise_state
from zoo.training.step import make_train_step
from zoo.transformer import Transformer

MESHES = {"data": {"data": 8}, "fsdp": {"fsdp": 8}, "tensor": {"data": 4, "tensor": 2}}
NUM_STEPS, VOCAB, CLASSES = 3, 320, ("few", "some", "many")
VERDICT = ClassifierHead(num_classes=len(CLASSES))
LENGTHS = {"source_length": 24, "target_length": 24, "batch_size": 16}

# The task's tiny configuration, and a model of tests/models.py with the head that it needs; one kind has two.
SETTINGS = {
    CausalLMConfig: (CausalLMConfig(sequence_length=24, batch_size=16, stride=8), GPT2),
    MaskedLMConfig: (MaskedLMConfig(sequence_length=24, batch_size=16), BERT),
    SequenceToSequenceConfig: (SequenceToSequenceConfig(**LENGTHS), T5),
    "recurrent": (SequenceToSequenceConfig(**LENGTHS, packed=False, label_smoothing=0.1), RECURRENT["attention_lstm"]),
    TextClassificationConfig: (
        TextClassificationConfig(sequence_length=24, batch_size=16, label_smoothing=0.1),
        dataclasses.replace(GPT2, head=dataclasses.replace(VERDICT, pooling="last")),
    ),
    QuestionAnsweringConfig: (
        QuestionAnsweringConfig(sequence_length=40, question_length=16, answer_length=4, stride=12, batch_size=16),
        dataclasses.replace(BERT, head=TokenHead(num_classes=2)),
    ),
    ImageClassificationConfig: (
        ImageClassificationConfig(image_size=12, batch_size=16, zoom=0.1, shift=0.1, flip=True, mixup=0.2),
        dataclasses.replace(VIT, head=VERDICT),
    ),
    SentenceEmbeddingConfig: (SentenceEmbeddingConfig(**LENGTHS), dataclasses.replace(GPT2, head=EmbeddingHead())),
    PictureAttributesConfig: (
        PictureAttributesConfig(attributes=("label",), image_size=12, batch_size=16),
        dataclasses.replace(VIT, head=VERDICT),
    ),
    ImageTokensConfig: (
        ImageTokensConfig(image_size=12, batch_size=16),
        ImageTokenizerConfig(image_size=12, width=32, num_blocks=1, levels=(5, 5)),
    ),
    TextToImageConfig: (
        TextToImageConfig(image_size=6, caption_length=24, batch_size=16, image_tokens=None, judge=None),
        T5,
    ),
}
PALETTE = PaletteTokens(np.array([[-1, -1, -1], [1, 1, 1], [1, -1, 0]], np.float32), 6)
BESIDE = {TextToImageConfig: {"codec": PALETTE, "judge": None, "folder": None}}


@functools.cache
def tiny_data():
    """Examples that have every field which a task may read, and their tokenizer."""
    rng = np.random.default_rng(0)
    examples = [
        {
            "text": f"A text of {CLASSES[index % 3]} things, number {index}.",
            "source": f"{index} {CLASSES[index % 3]}",
            "target": f"number {index} of {CLASSES[index % 3]}",
            "image": rng.integers(0, 255, (12, 12, 3)).astype(np.uint8),
            "caption": f"{CLASSES[index % 3]} dots",
            "label": index % 3,
            "question": f"How many is {index}?",
            "context": f"We know that {index} is {CLASSES[index % 3]}.",
            "answers": {"text": [CLASSES[index % 3]], "answer_start": [len(f"We know that {index} is ")]},
        }
        for index in range(48)
    ]
    dataset = Dataset(name="tiny", splits={"train": examples, "validation": examples}, labels={"label": CLASSES})
    keys = ("text", "source", "target", "question", "context")
    return dataset, fit_tokenizer(examples, TokenizerConfig(vocab_size=VOCAB), keys=keys)


def small(config):
    """The model with one layer a stack, and the vocabulary of the data."""
    if isinstance(config, ImageTokenizerConfig):
        return ImageTokenizer(config)
    if isinstance(config, RecurrentConfig):
        embedding = dataclasses.replace(config.embedding, vocab_size=VOCAB)
        return Recurrent(dataclasses.replace(config, embedding=embedding))

    def shrink(part):
        name = "vocab_size" if hasattr(part, "vocab_size") else "num_layers"
        given = getattr(part, name, None)
        return part if given is None else dataclasses.replace(part, **{name: VOCAB if name == "vocab_size" else 1})

    parts = ("embedding", "decoder_embedding", "encoder", "decoder")
    return Transformer(dataclasses.replace(config, **{part: shrink(getattr(config, part)) for part in parts}))


def train(kind, axes):
    """Losses and gradient norms of a few steps, and the share of the parameters that one device holds."""
    chosen, config = SETTINGS[kind]
    task = chosen.bind(*tiny_data(), seed=0, data=DataConfig(name="tiny"), **BESIDE.get(kind, {}))
    model, mesh = small(config), make_mesh(MeshConfig(**axes))
    schedule = make_schedule(ScheduleConfig(warmup_steps=0), 1e-2, NUM_STEPS)
    optimizer = make_optimizer(OptimizerConfig(), schedule)
    batches, found = task.batches("train"), []
    with jax.set_mesh(mesh):
        batch = next(batches)
        target = abstract_state(model, task, optimizer, batch, mesh)
        if kind not in STARTS:  # compiled once, on the first mesh
            STARTS[kind] = jax.device_get(initialise_state(model, task, optimizer, batch, target, seed=0))
        state = jax.device_put(STARTS[kind], jax.tree.map(lambda leaf: leaf.sharding, target))
        step = make_train_step(task, bind_apply(model), optimizer, schedule, seed=0, accumulate=1, target=target)
        for _ in range(NUM_STEPS):
            state, metrics = step(state, place_batch(batch, mesh))
            found.append([float(metrics[name]) for name in ("loss", "grad_norm")])
            batch = next(batches)
    leaves = jax.tree.leaves(state.params)
    held = sum(leaf.addressable_shards[0].data.size for leaf in leaves) / sum(leaf.size for leaf in leaves)
    return np.array(found), held


STARTS = {}


@functools.cache
def alone(kind):
    return train(kind, {"data": 1})[0]


def test_every_task_has_a_setting():
    missing = [kind.__name__ for kind in get_args(TaskConfig) if kind not in SETTINGS]
    assert not missing, f"{missing} need a line in SETTINGS of {__file__}"


PAIRS = [(kind, mesh) for kind in SETTINGS for mesh in MESHES]
DEFAULT = [(kind, [*MESHES][place % len(MESHES)]) for place, kind in enumerate([*SETTINGS][::2])]
"""Every second task once, on one mesh after another; each task's loss and metrics have tests of their own."""


@pytest.mark.parametrize(
    ("kind", "mesh"),
    tiered(PAIRS, DEFAULT),
    ids=lambda name: getattr(name, "__name__", name).removesuffix("Config"),
)
def test_eight_devices_train_as_one(kind, mesh):
    axes = MESHES[mesh]
    found, held = train(kind, {"data": 1, **axes})
    np.testing.assert_allclose(found, alone(kind), rtol=2e-4)
    losses = found[:, 0]
    assert np.isfinite(found).all() and len(set(losses)) == NUM_STEPS
    # Split where the mesh splits parameters: by all eight devices, by two, or not at all.
    assert held == 1 if mesh == "data" else held < {"fsdp": 0.35, "tensor": 0.75}[mesh]
