"""Transformer: ids, pixels or sound to logits, for every family.

It wires embedders (`zoo.embeddings`), stacks (`zoo.stack`) and a head (`zoo.heads`) together, and knows no architecture
by name. Generation is in `zoo.generate`, losses are in `zoo.tasks`.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from zoo.config import (
    ClassifierHead,
    DualConfig,
    EmbeddingConfig,
    EmbeddingHead,
    LanguageModelHead,
    LearnedPositions,
    ModelConfig,
    RecurrentConfig,
    SinusoidalPositions,
    TokenHead,
    TransformerConfig,
)
from zoo.embeddings import Embedder
from zoo.heads import LanguageModelLogits, PooledHead, TransformedLabels
from zoo.layers import KeysValues, Projection
from zoo.remat import Remat
from zoo.stack import Cache, Layers, Stack, split_layers


@struct.dataclass
class Output:
    """What a forward pass gives; under `jit`, what is not used is not computed."""

    last_hidden_state: Float[Array, "B T D"]
    logits: Float[Array, "B ..."] | None = None
    """Float32: [B, T, V] for language models and token heads, [B, classes] for classifiers, [B, T] for detectors."""
    pooler_output: Float[Array, "B D"] | None = None
    """One vector a sequence, from an `EmbeddingHead`."""
    hidden_states: tuple[Float[Array, "B T D"], ...] | None = None
    """The embeddings and what each layer returned, L + 1 arrays, where asked for; the last stack's."""
    encoder_last_hidden_state: Float[Array, "B S D"] | None = None
    encoder_hidden_states: tuple[Float[Array, "B S D"], ...] | None = None
    """The same of an encoder-decoder's encoder."""
    aux_loss: Float[Array, ""] | float = 0.0
    """Load-balancing loss of the experts, summed over layers; zero without experts."""
    keys_values: KeysValues | None = None
    """The decoder's keys and values of this call's positions, [L, B, T, K, H], for `Cache`."""
    alignment: Float[Array, "B T S"] | None = None
    """Of a recurrent decoder with additive attention: the weights of the encoder's positions."""
    decoder_states: Any = None
    """Of a recurrent encoder: what its decoder begins with, a state a layer."""

    @property
    def text_embeds(self) -> Float[Array, "B D"] | None:
        """The pooled vector, by the name that towers of a dual encoder give it."""
        return self.pooler_output

    @property
    def image_embeds(self) -> Float[Array, "B D"] | None:
        """The same of an image."""
        return self.pooler_output

    @property
    def start_logits(self) -> Float[Array, "B T"] | None:
        """Of an answer's first token: the first label of a token head."""
        return None if self.logits is None else self.logits[..., 0]

    @property
    def end_logits(self) -> Float[Array, "B T"] | None:
        """Of an answer's last token: the second label of a token head."""
        return None if self.logits is None else self.logits[..., 1]


class Transformer(nn.Module):
    """Encoder-only, decoder-only or encoder-decoder, as `config` says.

    Attributes:
        config: what the network is.
        dtype: of activations and products; parameters are float32.
        layers: "scanned" compiles one pattern period and loops (accelerators, deep models); "unrolled" compiles all
            layers, which runs faster on CPU.
        remat: what the backward pass recomputes: from nothing to whole blocks, as `zoo.remat` says.
    """

    config: TransformerConfig
    dtype: Any = jnp.float32
    layers: Layers = "unrolled"
    remat: Remat = "none"

    def setup(self):
        """Make the embedders, stacks and head that the config names."""
        config = self.config
        first = config.encoder if config.encoder is not None else config.output_stack
        self.embedder = Embedder(config.embedding, first.width, self.dtype)
        if config.encoder is not None:
            self.encoder = Stack(config.encoder, self.dtype, self.layers, self.remat)
        if config.decoder is not None:
            self.decoder = Stack(config.decoder, self.dtype, self.layers, self.remat)
        if config.memory_width is not None:
            self.memory_projection = Projection((config.memory_width,), self.dtype, bias=True)
        if config.output_width is not None:
            self.output_projection = Projection((config.output_width,), self.dtype)
        if config.decoder_embedding is not None:
            self.decoder_embedder = Embedder(config.decoder_embedding, config.output_stack.width, self.dtype)
        norm = config.output_stack.norm
        match config.head:
            case LanguageModelHead(num_ids=num_ids):
                num_ids = num_ids or config.target_vocab_size or 0
                self.head = LanguageModelLogits(config.head, num_ids, norm, self.dtype)
            case TokenHead(transform=None, norm=None):
                self.head = Projection((config.head.num_classes or 1,), self.dtype, bias=True)
            case TokenHead():
                self.head = TransformedLabels(config.head, norm, self.dtype)
            case ClassifierHead() | EmbeddingHead():
                self.head = PooledHead(config.head, self.dtype)

    def __call__(
        self,
        input_ids: Int[Array, "B S"] | None = None,
        attention_mask: Int[Array, "B S"] | None = None,
        token_type_ids: Int[Array, "B S"] | None = None,
        position_ids: Int[Array, "B S"] | None = None,
        segment_ids: Int[Array, "B S"] | None = None,
        pixel_values: Float[Array, "B C height width"] | None = None,
        bool_masked_pos: Bool[Array, "B patches"] | None = None,
        input_features: Float[Array, "B mels frames"] | None = None,
        decoder_input_ids: Int[Array, "B T"] | None = None,
        decoder_attention_mask: Int[Array, "B T"] | None = None,
        decoder_position_ids: Int[Array, "B T"] | None = None,
        decoder_segment_ids: Int[Array, "B T"] | None = None,
        dropout_rng: Array | None = None,
        output_hidden_states: bool = False,
    ) -> Output:
        """Run the whole model.

        Args:
            input_ids: ids for the encoder, or for the decoder of a decoder-only model.
            attention_mask: 1 for tokens, 0 for padding, which nothing attends to.
            token_type_ids: BERT's segment A or B.
            position_ids: default 0, 1, 2, ...
            segment_ids: documents packed into one row; tokens attend within equal ids only. Replaces attention_mask.
            pixel_values: an image, for models that read patches.
            input_features: a log-mel spectrogram, for models that read audio.
            bool_masked_pos: patches that a mask token stands for, in pre-training.
            decoder_input_ids: ids for an encoder-decoder's decoder, shifted right.
            decoder_attention_mask: as attention_mask.
            decoder_position_ids: as position_ids.
            decoder_segment_ids: as segment_ids; a target attends to the memory of its own segment.
            dropout_rng: key, in training; None is evaluation.
            output_hidden_states: whether the output holds what each layer returned; static under `jit`.
        """
        rngs = (None, None) if dropout_rng is None else jax.random.split(dropout_rng)
        source: dict[str, Any] = dict(
            attention_mask=attention_mask,
            token_type_ids=token_type_ids,
            position_ids=position_ids,
            segment_ids=segment_ids,
            output_hidden_states=output_hidden_states,
        )
        if self.config.encoder is None:
            return self.decode(input_ids, **source, dropout_rng=dropout_rng)
        other = dict(pixel_values=pixel_values, bool_masked_pos=bool_masked_pos, input_features=input_features)
        encoded = self.encode(input_ids, **other, **source, dropout_rng=rngs[0])
        if self.config.decoder is None:
            return encoded
        decoded = self.decode(
            decoder_input_ids,
            attention_mask=decoder_attention_mask,
            position_ids=decoder_position_ids,
            segment_ids=decoder_segment_ids,
            encoder_hidden_states=encoded.last_hidden_state,
            encoder_attention_mask=attention_mask if segment_ids is None else segment_ids,
            dropout_rng=rngs[1],
            output_hidden_states=output_hidden_states,
            with_head=False,
        ).replace(encoder_last_hidden_state=encoded.last_hidden_state, encoder_hidden_states=encoded.hidden_states)
        # An end token is looked for in what the encoder read, whose copy, shifted, the decoder reads (BART).
        return self._with_head(decoded, decoder_attention_mask, input_ids)

    def encode(
        self,
        input_ids: Int[Array, "B T"] | None = None,
        attention_mask: Int[Array, "B T"] | None = None,
        token_type_ids: Int[Array, "B T"] | None = None,
        position_ids: Int[Array, "B T"] | None = None,
        segment_ids: Int[Array, "B T"] | None = None,
        pixel_values: Float[Array, "B C height width"] | None = None,
        bool_masked_pos: Bool[Array, "B patches"] | None = None,
        input_features: Float[Array, "B mels frames"] | None = None,
        dropout_rng: Array | None = None,
        output_hidden_states: bool = False,
        layers: Layers | None = None,
    ) -> Output:
        """Run the encoder; an encoder-only model's output carries its head's result.

        `layers` is how this call runs them; None is as the model does.
        """
        patches, audio, grid = self.config.embedding.patches, self.config.embedding.audio, None
        name = "pixel_values" if patches is not None else "input_ids" if audio is None else "input_features"
        inputs = {"pixel_values": pixel_values, "input_ids": input_ids, "input_features": input_features}[name]
        if inputs is None:
            raise ValueError(f"{name} is missing; this model's encoder reads it")
        length = inputs.shape[1] if audio is None else audio.max_length
        if patches is not None:
            grid = patches.grid(*inputs.shape[2:])
            length = grid[0] * grid[1] + patches.num_tokens
        counted = _counted(self.config.embedding, input_ids, attention_mask)
        positions = _positions(position_ids, inputs.shape[0], length, counted=counted)
        rngs = (None, None) if dropout_rng is None else jax.random.split(dropout_rng)
        x = self.embedder(inputs, positions, token_type_ids, bool_masked_pos=bool_masked_pos, dropout_rng=rngs[0])
        segments = _segments(attention_mask, segment_ids)
        options = dict(grid=grid, dropout_rng=rngs[1], output_hidden_states=output_hidden_states, layers=layers)
        x, trace = self.encoder(x, positions, segments, **options)
        output = Output(last_hidden_state=x, aux_loss=trace.balance, hidden_states=trace.hidden_states)
        return output if self.config.decoder is not None else self._with_head(output, attention_mask, input_ids)

    def decode(
        self,
        input_ids: Int[Array, "B T"] | None,
        attention_mask: Int[Array, "B T"] | None = None,
        token_type_ids: Int[Array, "B T"] | None = None,
        position_ids: Int[Array, "B T"] | None = None,
        segment_ids: Int[Array, "B T"] | None = None,
        encoder_hidden_states: Float[Array, "B S D"] | None = None,
        encoder_attention_mask: Int[Array, "B S"] | None = None,
        cache: Cache | None = None,
        dropout_rng: Array | None = None,
        output_hidden_states: bool = False,
        with_head: bool = True,
        layers: Layers | None = None,
    ) -> Output:
        """Run the decoder over a whole sequence, or over the positions that follow `cache`.

        With a cache, `attention_mask` speaks of the new positions and cross-attention reads the cache's memory.
        `with_head=False` leaves the logits out, which at most one position needs in decoding. `layers` is how this call
        runs them; None is as the model does.
        """
        if input_ids is None:
            name = "input_ids" if self.config.encoder is None else "decoder_input_ids"
            raise ValueError(f"{name} is missing; this model's decoder reads it")
        start = 0 if cache is None else cache.length
        counted = _counted(self.config.target_embedding, input_ids, attention_mask)
        positions = _positions(position_ids, *input_ids.shape, start, counted)
        rngs = (None, None) if dropout_rng is None else jax.random.split(dropout_rng)
        embedder = self.embedder if self.config.decoder_embedding is None else self.decoder_embedder
        shared = self.config.target_embedding.vocab_size is None
        table = self.embedder.table() if shared else None
        x = embedder(input_ids, positions, token_type_ids, table=table, dropout_rng=rngs[0])
        memory_mask = encoder_attention_mask if cache is None else cache.memory_segment_ids
        queries = jnp.ones_like(input_ids) if segment_ids is None else segment_ids
        memory_segments = None if memory_mask is None else (queries.reshape(len(memory_mask), -1), memory_mask)
        x, trace = self.decoder(
            x,
            positions,
            _segments(attention_mask, segment_ids),
            memory=self._memory(encoder_hidden_states),
            memory_segment_ids=memory_segments,
            cache=cache,
            dropout_rng=rngs[1],
            output_hidden_states=output_hidden_states,
            layers=layers,
        )
        if self.config.output_width is not None:
            x = self.output_projection(x)
        output = Output(
            last_hidden_state=x,
            aux_loss=trace.balance,
            hidden_states=trace.hidden_states,
            keys_values=trace.keys_values,
        )
        return self._with_head(output, attention_mask, input_ids) if with_head else output

    def prefill(
        self,
        input_ids: Int[Array, "B T"],
        attention_mask: Int[Array, "B T"],
        capacity: int,
        encoder_hidden_states: Float[Array, "B S D"] | None = None,
        encoder_attention_mask: Int[Array, "B S"] | None = None,
        length: Int[Array, ""] | None = None,
    ) -> tuple[Float[Array, "B V"], Cache]:
        """Read a prompt, padded on the left, and start a cache of `capacity` positions.

        The layers are scanned: this runs once a sequence, and compiling them one by one takes longer than it saves.

        With `length`, which may be traced, the prompt is only that much of `input_ids`.

        Returns:
            Logits of the token that follows the prompt, and the cache.
        """
        if length is not None:
            attention_mask = jnp.where(jnp.arange(input_ids.shape[1]) < length, attention_mask, 0)
        positions = jnp.maximum(jnp.cumsum(attention_mask, -1) - 1, 0)
        output = self.decode(
            input_ids,
            attention_mask,
            position_ids=positions,
            encoder_hidden_states=encoder_hidden_states,
            encoder_attention_mask=encoder_attention_mask,
            with_head=False,
            layers="scanned",
        )
        memory: dict[str, Any] = {}
        if encoder_hidden_states is not None:
            memory["memory"] = self.decoder.memory_keys_values(self._memory(encoder_hidden_states))
            memory["memory_segment_ids"] = encoder_attention_mask
        cache = Cache.start(output.keys_values, attention_mask, capacity, **memory)
        cache = cache.split() if self._splits_layers else cache
        if length is None:
            return self.logits_of(output.last_hidden_state[:, -1:])[:, 0], cache
        last = lax.dynamic_slice_in_dim(output.last_hidden_state, length - 1, 1, 1)
        return self.logits_of(last)[:, 0], cache.replace(length=length)

    def step(self, token: Int[Array, " B"], cache: Cache) -> tuple[Float[Array, "B V"], Cache]:
        """Logits of the token that follows `token`, and the cache with `token` in it."""
        ids, seen = token[:, None], jnp.ones((token.shape[0], 1), jnp.int32)
        positions = cache.segment_ids.sum(-1, keepdims=True)
        output = self.decode(ids, position_ids=positions, cache=cache, with_head=False)
        cache = cache.append(output.keys_values, seen, output.last_hidden_state)
        return self.logits_of(output.last_hidden_state)[:, 0], cache

    @property
    def _splits_layers(self) -> bool:
        """Whether a loop of steps reads parameters and caches of each layer apart."""
        return self.layers == "unrolled" and jax.default_backend() == "cpu"

    def for_steps(self) -> dict[str, Any]:
        """The parameters as a loop of `step` reads them at the least cost.

        Unrolled layers slice their parameters out of arrays of all layers, which on a CPU copies all of them a token:
        there they are split once, before the loop; under `jit`, for as much memory again.
        """
        parameters = dict(self.variables["params"])
        if self._splits_layers:
            parameters["decoder"] = split_layers(parameters["decoder"])
        return parameters

    def for_calls(self) -> dict[str, Any]:
        """The parameters as unrolled layers of a forward pass read them at the least cost on a CPU: split as well."""
        parameters = dict(self.variables["params"])
        for name in {"encoder", "decoder"} & parameters.keys() if self._splits_layers else ():
            parameters[name] = split_layers(parameters[name])
        return parameters

    def _memory(self, encoded: Float[Array, "B S E"] | None) -> Float[Array, "B S D"] | None:
        """What cross-attention reads of an encoder's output."""
        return encoded if encoded is None or self.config.memory_width is None else self.memory_projection(encoded)

    def logits_of(self, states: Float[Array, "B T D"]) -> Float[Array, "B T V"]:
        """A language model's logits from `Output.last_hidden_state`, or a part of it: float32."""
        shared = self.config.decoder_embedding is None or self.config.decoder_embedding.vocab_size is None
        return self.head(states, self.embedder.table() if shared else self.decoder_embedder.table())

    def _with_head(
        self, output: Output, attention_mask: Int[Array, "B T"] | None, input_ids: Int[Array, "B T"] | None
    ) -> Output:
        x = output.last_hidden_state
        match self.config.head:
            case None:
                return output
            case LanguageModelHead():
                return output.replace(logits=self.logits_of(x))
            case TokenHead():
                patches = self.config.embedding.patches if self.config.head.patches_only else None
                logits = self.head(x if patches is None else x[:, patches.num_tokens :]).astype(jnp.float32)
                return output.replace(logits=logits if self.config.head.num_classes else logits[..., 0])
            case ClassifierHead():
                length = None if self.config.encoder is None or self.config.decoder is None else x.shape[1]
                pooled = _pooled(self.config.head, attention_mask, input_ids, length)
                return output.replace(logits=self.head(x, pooled))
            case EmbeddingHead():
                return output.replace(pooler_output=self.head(x, attention_mask, input_ids))


def example_inputs(config: ModelConfig) -> dict[str, Array]:
    """The smallest inputs that a model of this configuration takes, for `init`."""
    if isinstance(config, RecurrentConfig):
        return {name: jnp.zeros((1, 1), jnp.int32) for name in ("input_ids", "decoder_input_ids")}
    if isinstance(config, DualConfig):
        return example_inputs(config.text) | example_inputs(config.image)
    inputs: dict[str, Array] = {}
    if config.embedding.patches is not None:
        patches = config.embedding.patches
        inputs["pixel_values"] = jnp.zeros((1, patches.num_channels, patches.image_size, patches.image_size))
    elif config.embedding.audio is not None:
        audio = config.embedding.audio
        inputs["input_features"] = jnp.zeros((1, audio.num_mels, 2 * audio.max_length))
    else:
        inputs["input_ids"] = jnp.zeros((1, 1), jnp.int32)
    if config.encoder is not None and config.decoder is not None:
        inputs["decoder_input_ids"] = jnp.zeros((1, 1), jnp.int32)
    return inputs


def parameter_shapes(model: Any) -> dict:
    """Tree of the parameters' shapes; nothing is allocated, and the time does not grow with the depth."""
    scanned = model.clone(layers="scanned") if hasattr(model, "layers") else model
    return jax.eval_shape(lambda: scanned.init(jax.random.key(0), **example_inputs(model.config)))["params"]


def _pooled(
    head: ClassifierHead, attention_mask: Array | None, input_ids: Array | None, length: int | None
) -> Array | None:
    """Where a sequence's last position may be, as a mask; `length` is a decoder's that reads `input_ids` shifted."""
    if head.padding_id is None:
        return attention_mask if head.end_id is None else input_ids == head.end_id
    seen = jnp.asarray(input_ids != head.padding_id)
    if length is None:
        return seen
    later = jnp.pad(seen, ((0, 0), (1, max(0, length - seen.shape[1] - 1))))
    return later[:, :length].at[:, -1].set(later[:, length - 1 :].any(1))


def _counted(config: EmbeddingConfig, ids: Array | None, attention_mask: Array | None) -> Array | None:
    """Which inputs the positions count; None is all."""
    match config.positions:
        case LearnedPositions(padding_id=int(padding_id)) | SinusoidalPositions(padding_id=int(padding_id)):
            return ids != padding_id
        case LearnedPositions(over_mask=True):
            return attention_mask
        case _:
            return None


def _positions(
    given: Array | None, batch: int, length: int, start: Array | int = 0, counted: Array | None = None
) -> Int[Array, "B T"]:
    if given is not None:
        return jnp.asarray(given)
    if counted is not None:
        counted = jnp.asarray(counted).astype(bool)
        return jnp.where(counted, start + jnp.cumsum(counted, -1) - 1, -1)
    return jnp.broadcast_to(start + jnp.arange(length, dtype=jnp.int32), (batch, length))


def _segments(attention_mask: Array | None, segment_ids: Array | None) -> tuple[Array, Array] | None:
    """Ids of queries and keys. A mask hides padded keys from every query, padded or not."""
    if segment_ids is not None:
        return segment_ids, segment_ids
    if attention_mask is not None:
        return jnp.ones_like(attention_mask), attention_mask
    return None
