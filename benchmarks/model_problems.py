"""One cell made concrete: the model, its random weights, its inputs and its operations; the same for all contenders."""

import functools
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.model_cells import CACHE, DECODE, FORWARD, MODELS, NO_DROPOUT, TRAINING, Cell
from zoo.architectures import Architecture, Fields, find_architecture
from zoo.formats.safetensors import write_file
from zoo.training.flops import count_flops
from zoo.training.state import bind_apply
from zoo.transformer import Transformer, example_inputs
from zoo.weights import export_params

BACKWARD = 3
"""Operations of a training step as a multiple of the forward pass's."""
IGNORED = -100
"""A label that torch's losses do not count."""


class Problem:
    """A cell's model, weights and inputs; what is large is made at its first use."""

    def __init__(self, cell: Cell):
        self.cell, shape = cell, MODELS[cell.model]
        self.head = shape.heads[cell.work]
        self.architecture: Architecture = find_architecture(shape.fields["model_type"])
        class_name = self.architecture.classes[self.head]
        labels = {"num_labels": 1000} if shape.images else {}
        self.fields = {**NO_DROPOUT, **labels, **shape.fields, "architectures": [class_name]}
        self.config = self.architecture.config_from_hf(Fields(self.fields, "config.json"), self.head)

    @functools.cached_property
    def params(self) -> dict:
        """Float32, drawn as zoo initialises a model."""
        model = Transformer(self.config, layers="scanned")
        inputs = example_inputs(self.config)
        return jax.jit(lambda rng: model.init(rng, **inputs)["params"])(jax.random.key(0))

    def write(self, folder: Path) -> None:
        """The same weights as a checkpoint that the reference library opens."""
        (folder / "config.json").write_text(json.dumps(self.fields))
        rules = self.architecture.weights(self.config, self.head)
        entries = export_params(rules, self.params)
        entries = [(self.architecture.name_in_file(name, self.head), *rest) for name, *rest in entries]
        write_file(folder / "model.safetensors", entries)

    @functools.cached_property
    def inputs(self) -> dict[str, np.ndarray]:
        """What the model is called with; in decoding and training, what generation and the loss begin with."""
        cell, rng = self.cell, np.random.default_rng(0)
        if self.config.embedding.patches is not None:
            size = self.config.embedding.patches.image_size
            return {"pixel_values": rng.standard_normal((cell.batch, 3, size, size), dtype=np.float32)}
        ids = rng.integers(2, self.config.embedding.vocab_size, (cell.batch, cell.length)).astype(np.int32)
        lengths = np.full(cell.batch, cell.length)
        if cell.padded:
            lengths = np.linspace(cell.length // 4, cell.length, cell.batch).round().astype(int)
        inputs = {"input_ids": ids}
        # A mask of ones says nothing: whoever has no padding gives none, and both libraries are spared it.
        if cell.padded:
            inputs["attention_mask"] = (np.arange(cell.length) < lengths[:, None]).astype(np.int32)
        if self.config.is_encoder_decoder and cell.work != DECODE:
            inputs["decoder_input_ids"] = rng.integers(2, self.config.embedding.vocab_size, ids.shape).astype(np.int32)
        return inputs

    @functools.cached_property
    def labels(self) -> np.ndarray:
        """Of training, as torch's models take them: IGNORED where nothing is predicted."""
        rng, inputs = np.random.default_rng(1), self.inputs
        if self.config.embedding.patches is not None:
            return rng.integers(0, 1000, self.cell.batch).astype(np.int32)
        if self.config.is_encoder_decoder:
            return rng.integers(2, self.config.embedding.vocab_size, inputs["input_ids"].shape).astype(np.int32)
        if self.head == "causal_lm":
            return inputs["input_ids"]
        hidden = rng.random(inputs["input_ids"].shape) < 0.15
        return np.where(hidden, inputs["input_ids"], IGNORED)

    def model(self, dtype: Any, layers: str) -> Transformer:
        """The module, computing in a dtype."""
        return Transformer(self.config, dtype=dtype, layers=layers)

    @functools.cached_property
    def num_tokens(self) -> int:
        """That a call reads or, in decoding, writes."""
        cell = self.cell
        if cell.work in (DECODE, CACHE):
            return cell.batch * max(1, cell.new_tokens)
        if self.config.embedding.patches is not None:
            return cell.batch * cell.length
        read = self.inputs.get("attention_mask", self.inputs["input_ids"] >= 0).sum()
        return int(read) * (2 if self.config.is_encoder_decoder else 1)

    @functools.cached_property
    def flops(self) -> float | None:
        """Of the matrix products, as the model needs them, counted from zoo's program; None in decoding."""
        if self.cell.work not in (FORWARD, TRAINING):
            return None
        apply = bind_apply(self.model(jnp.float32, "scanned"))
        shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), (self.params, self.inputs))

        def forward(params, inputs):
            output = apply(params, **inputs)
            return output.last_hidden_state if output.logits is None else output.logits

        return count_flops(forward, *shapes) * (BACKWARD if self.cell.work == TRAINING else 1)

    @functools.cached_property
    def weight_bytes(self) -> int:
        """Of all weights, in the dtype that the cell computes in: what a decoded token reads."""
        size = jnp.dtype(self.cell.dtype).itemsize
        return sum(size * leaf.size for leaf in jax.tree.leaves(self.params))
