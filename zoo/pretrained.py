"""`zoo.load`: a folder to a model with its parameters and tokenizer.

It reads the run folders that `train.py` writes. Checkpoints of other libraries (safetensors, GGUF, hub ids) and
`zoo.save` come with the architectures.
"""

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from zoo.config import TransformerConfig
from zoo.data import Tokenizer
from zoo.generate import Generated, generate
from zoo.serialization import from_dict
from zoo.training.checkpoint import load_params
from zoo.training.run_record import read_run
from zoo.training.state import bind_apply
from zoo.transformer import Output, Transformer


@dataclass(frozen=True, kw_only=True)
class Bundle:
    """A model ready for use: call it on arrays, or let it generate."""

    model: Transformer
    params: Any
    config: TransformerConfig
    tokenizer: Tokenizer
    step: int
    """The training step that the parameters are from."""

    def __call__(self, **inputs: Any) -> Output:
        """Run the model, jitted; `Transformer.__call__` names the inputs, NumPy or JAX arrays.

        Raises:
            ValueError: an id outside the vocabulary.
        """
        for name, config in (
            ("input_ids", self.config.embedding),
            ("decoder_input_ids", self.config.target_embedding),
        ):
            if inputs.get(name) is not None and config.vocab_size is not None:
                _check_ids(inputs[name], config.vocab_size, name)
        return self._forward(self.params, {name: jnp.asarray(value) for name, value in inputs.items()})

    def generate(
        self, input_ids: Int[Array, "B P"], attention_mask: Int[Array, "B P"] | None = None, **options: Any
    ) -> Generated:
        """Continue prompts, or decode what the encoder reads; `zoo.generate.generate` names the options."""
        if self.config.embedding.vocab_size is not None:
            _check_ids(input_ids, self.config.embedding.vocab_size, "input_ids")
        special: dict[str, Any] = {
            "eos_token_id": self.tokenizer.eos_id,
            "pad_token_id": self.tokenizer.pad_id,
        }
        if self.config.encoder is not None:
            special["decoder_start_token_id"] = self.tokenizer.bos_id
        return generate(self._apply, self.params, input_ids, attention_mask, **(special | options))

    @functools.cached_property
    def _apply(self):
        return bind_apply(self.model)

    @functools.cached_property
    def _forward(self):
        return jax.jit(lambda params, inputs: self._apply(params, **inputs))


def load(folder: str | Path, *, step: int | None = None, dtype: Any = None) -> Bundle:
    """Load a run folder.

    Args:
        folder: what `train.py` wrote.
        step: of the checkpoint; None is the newest.
        dtype: of activations and products; None is the run's own.

    Raises:
        ValueError: not a run folder, no such checkpoint, or a run of another version of zoo.
    """
    record = read_run(folder)
    config = from_dict(TransformerConfig, record["model"], f"{folder}/run.json")
    tokenizer = Tokenizer.load(Path(folder) / "tokenizer.model")
    params, step = load_params(folder, step)
    dtype = jnp.dtype(record["compute_dtype"] if dtype is None else dtype)
    model = Transformer(config, dtype=dtype, layers=record["layers"])
    return Bundle(model=model, params=params, config=config, tokenizer=tokenizer, step=step)


def _check_ids(ids: Any, vocab_size: int, name: str) -> None:
    """Raise ValueError naming the first id outside the vocabulary."""
    ids = np.asarray(ids)
    bad = (ids < 0) | (ids >= vocab_size)
    if bad.any():
        place = tuple(int(i) for i in np.argwhere(bad)[0])
        raise ValueError(
            f"{name}{list(place)} is {int(ids[place])}; this model knows ids 0 to {vocab_size - 1}: "
            "use the tokenizer it was trained with"
        )
