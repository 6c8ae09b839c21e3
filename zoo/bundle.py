"""`Bundle`: a model with its parameters and tokenizer, ready to be called, generated with and saved."""

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from zoo.architectures import Architecture
from zoo.config import EmbeddingHead, LongRopeScaling, TransformerConfig
from zoo.decoder_prompt import decoder_prompt
from zoo.dual import DualEncoder, DualOutput
from zoo.generate import Generated, generate, stream
from zoo.generation_config import FIELDS, SAMPLING, stored_options
from zoo.recurrent import Recurrent
from zoo.sentences import Modules
from zoo.training.state import bind_apply
from zoo.transformer import Output, Transformer

if TYPE_CHECKING:
    from zoo.data.images import ImageProcessor

OWN = "model.json"
"""The file that a folder in zoo's own layout is known by."""
START = "start"
"""The folder in a run's, in that layout, of the pretrained model that it started from: what no step changes."""


@dataclass(frozen=True, kw_only=True)
class Origin:
    """Where a model came from, for `save`."""

    architecture: Architecture
    head: str
    """Name of the head, as in `Architecture.classes`."""
    fields: dict[str, Any]
    """config.json."""
    generation: dict[str, Any]
    """generation_config.json."""
    folder: Path
    left_out: tuple[str, ...] = ()
    """Tensors of heads that were not asked for."""
    fresh: tuple[str, ...] = ()
    """Parameters of the head that the checkpoint lacks, newly initialised."""
    modules: Modules | None = None
    """What follows the transformer in a folder of sentence-transformers."""


@dataclass(frozen=True, kw_only=True)
class Bundle:
    """A model ready for use: call it on arrays, or let it generate."""

    model: Transformer | Recurrent | DualEncoder
    params: Any
    config: Any
    """A `TransformerConfig`, a `RecurrentConfig`, or a `DualConfig`."""
    tokenizer: Any = None
    """A checkpoint's `PretrainedTokenizer`, `SymbolTokenizer` or `UnreadTokenizer`, or None; `zoo.data.Tokenizer` of a
    run."""
    step: int | None = None
    """The training step that a run's parameters are from."""
    origin: Origin | None = None
    """What a pretrained checkpoint was; None for a run."""

    def __call__(self, *, output_hidden_states: bool = False, **inputs: Any) -> Output | DualOutput:
        """Run the model, jitted; `Transformer.__call__` (or `DualEncoder`'s) names the inputs, NumPy or JAX arrays.

        Raises:
            ValueError: an id outside the vocabulary.
        """
        return self._forward(self._forward_params, self.prepare(**inputs), output_hidden_states)

    def prepare(self, **inputs: Any) -> dict[str, Array]:
        """The model's inputs as JAX arrays, ids checked, those of a decoder made where the reference makes them."""
        if self.origin is not None and getattr(self.config, "decoder", None) is not None:
            architecture = self.origin.architecture
            for name, source, makers in (
                ("decoder_input_ids", "input_ids", architecture.decoder_inputs),
                ("decoder_attention_mask", "decoder_input_ids", architecture.decoder_masks),
            ):
                make = makers.get(self.origin.head)
                if make is not None and inputs.get(name) is None and inputs.get(source) is not None:
                    inputs[name] = make(np.asarray(inputs[source]), self.origin.fields)
        for name, config in (
            ("input_ids", self.config.embedding),
            ("decoder_input_ids", self.config.target_embedding),
        ):
            if inputs.get(name) is not None and config.vocab_size is not None:
                _check_ids(inputs[name], config.vocab_size, name)
        return {name: jnp.asarray(value) for name, value in inputs.items() if value is not None}

    def generate(
        self,
        input_ids: Int[Array, "B P"] | None = None,
        attention_mask: Int[Array, "B P"] | None = None,
        **options: Any,
    ) -> Generated:
        """Continue prompts, or decode what the encoder reads.

        What is not said is what generation_config.json says, or config.json where there is none; then 20 new tokens
        at the most, and 64 of a run of `train.py`. As in the reference, `max_new_tokens` goes before `max_length`,
        whichever of the two was said where.

        Args:
            input_ids: prompts, padded on the left; for an encoder-decoder, its encoder's input.
            attention_mask: 1 for tokens, 0 for padding.
            options: arguments of `zoo.generate.generate` (`pixel_values`, `decoder_input_ids`, `seed`, ...) and fields
                of `zoo.generation_config.GenerationConfig` (`max_new_tokens`, `num_beams`, `do_sample`, ...); with
                `input_features` also `language` and `task`, of which the language is heard where nothing says it.

        Raises:
            ValueError: an unknown option, an id outside the vocabulary, or more tokens than there are positions.
        """
        return generate(self._apply, self.params, input_ids, attention_mask, **self._options(input_ids, options))

    def stream(
        self,
        input_ids: Int[Array, "B P"] | None = None,
        attention_mask: Int[Array, "B P"] | None = None,
        **options: Any,
    ) -> Iterator[Int[np.ndarray, " B"]]:
        """The tokens that `generate` writes with the same arguments, one of each row at a time, as they come."""
        return stream(self._apply, self.params, input_ids, attention_mask, **self._options(input_ids, options))

    def _options(self, input_ids: Any, given: dict[str, Any]) -> dict[str, Any]:
        """What the caller asked for, over what the checkpoint says."""
        if not self.config.generates:
            raise ValueError("this model has no decoder with a language-model head, so it generates nothing")
        for name, value, size in (
            ("input_ids", input_ids, self.config.embedding.vocab_size),
            ("decoder_input_ids", given.get("decoder_input_ids"), self.config.target_vocab_size),
        ):
            if value is not None and size is not None:
                _check_ids(value, size, name)
        stored = self._stored_options(given)
        unused = [name for name in SAMPLING if given.get(name) is not None and given[name] != FIELDS[name]]
        if unused and not (stored | given).get("do_sample") and "do_sample" not in given:
            raise ValueError(f"{unused[0]} is given and do_sample is not; give do_sample=True to draw tokens")
        options = stored | given
        first = options.pop("bos_token_id", None)
        if not self.config.is_encoder_decoder:
            options.pop("decoder_start_token_id", None)
        elif options.get("decoder_start_token_id") is None:
            if first is None:
                raise ValueError("neither the checkpoint nor the caller says decoder_start_token_id; give it")
            options["decoder_start_token_id"] = first
        if self.config.is_encoder_decoder:
            options = self._prompted(options)
        positions = self.config.target_embedding.positions
        if positions is not None and positions.max_length is not None:
            options["max_positions"] = positions.max_length
        rotary = self.config.output_stack.attention.rotary if isinstance(self.config, TransformerConfig) else None
        if rotary is not None and isinstance(rotary.scaling, LongRopeScaling):
            options["reread_past"] = rotary.scaling.original_length
        return options

    def _prompted(self, options: dict[str, Any]) -> dict[str, Any]:
        """The options with a decoder's prompt that tells language and task, for models of speech that are told."""
        features, origin = options.get("input_features"), self.origin
        if features is None or origin is None or "decoder_input_ids" in options:
            return options
        known = origin.generation or origin.fields
        told = {name: options.pop(name, None) or known.get(name) for name in ("language", "task")}
        forced = options.pop("forced_decoder_ids", None) or origin.fields.get("forced_decoder_ids")
        start = options["decoder_start_token_id"]
        prompt = decoder_prompt(start, {**known, "forced_decoder_ids": forced}, **told)
        ids = np.array([[start if token is None else token for token in prompt]] * len(features), np.int32)
        if None in prompt:
            heard = self(input_features=features, decoder_input_ids=ids[:, :1]).logits
            languages = np.array(sorted(known["lang_to_id"].values()))
            ids[:, 1] = languages[np.asarray(heard)[:, -1, languages].argmax(-1)]
        return options | {"decoder_input_ids": ids}

    def _stored_options(self, given: dict[str, Any]) -> dict[str, Any]:
        if self.origin is not None:
            return stored_options(self.origin.fields, self.origin.generation)
        return {
            "eos_token_id": self.tokenizer.eos_id,
            "pad_token_id": self.tokenizer.pad_id,
            "bos_token_id": self.tokenizer.bos_id,
        } | ({} if "max_length" in given else {"max_new_tokens": 64})

    def embed(
        self, texts: str | Sequence[str], *, prompt: str | None = None, batch_size: int = 32
    ) -> Float[np.ndarray, "B D"]:
        """Vectors of texts, of a checkpoint with the head "embedding", or of a run that was trained to embed.

        Args:
            texts: cut where they are longer than the model takes.
            prompt: name of one of the checkpoint's prompts, to stand before each text; None is its default, if any.
            batch_size: texts at a time; they are sorted by length.

        Raises:
            ValueError: a model that makes no vectors of texts, or has no such prompt.
        """
        whole = self._prompted_texts([texts] if isinstance(texts, str) else list(texts), prompt)
        order = sorted(range(len(whole)), key=lambda place: len(whole[place]))
        vectors: dict[int, np.ndarray] = {}
        for start in range(0, len(order), batch_size):
            places = order[start : start + batch_size]
            batch = self._text_batch([whole[place] for place in places])
            vectors |= zip(places, np.asarray(self(**batch).pooler_output), strict=True)
        return np.stack([vectors[place] for place in range(len(whole))])

    def _prompted_texts(self, texts: list[str], prompt: str | None) -> list[str]:
        modules = None if self.origin is None else self.origin.modules
        if modules is not None and self.tokenizer is not None:
            return modules.prepare(texts, prompt)
        if self.origin is not None or not isinstance(getattr(self.config, "head", None), EmbeddingHead):
            raise ValueError('this model makes no vectors of texts; load it with head="embedding", and a tokenizer')
        if prompt is not None:
            raise ValueError(f"{prompt!r} is no prompt of this model: a run of train.py has none")
        return texts

    def _text_batch(self, texts: list[str]) -> dict[str, np.ndarray]:
        if self.origin is not None:
            return self.tokenizer(texts, truncation=True)
        length = 2 + max(len(self.tokenizer.encode(text)) for text in texts)
        positions = self.config.embedding.positions
        if positions is not None and positions.max_length is not None:
            length = min(length, positions.max_length)
        rows = [self.tokenizer.encode_row([text], length) for text in texts]
        return {name: np.stack([row[name] for row in rows]) for name in ("input_ids", "attention_mask")}

    @functools.cached_property
    def processor(self) -> "ImageProcessor":
        """Turns pictures into inputs, as the checkpoint's preprocessor_config.json says; read at first use."""
        from zoo.data.images import ImageProcessor

        if self.origin is None:
            raise ValueError("this model was trained from scratch and has no preprocessor_config.json")
        return ImageProcessor.from_folder(self.origin.folder)

    @functools.cached_property
    def _apply(self):
        return bind_apply(self.model)

    @functools.cached_property
    def _forward_params(self):
        """The parameters, those of each layer apart where that takes no copy: on one CPU."""
        leaves = jax.tree.leaves(self.params)
        apart = all(isinstance(leaf, jax.Array) and len(leaf.devices()) == 1 for leaf in leaves)
        if not apart or not isinstance(self.model, Transformer):
            return self.params
        return self._apply(self.params, method="for_calls")

    @functools.cached_property
    def _forward(self):
        def forward(params, inputs, output_hidden_states):
            output = self._apply(params, **inputs, output_hidden_states=output_hidden_states)
            return output.replace(keys_values=None) if isinstance(output, Output) else output

        return jax.jit(forward, static_argnums=2)


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
