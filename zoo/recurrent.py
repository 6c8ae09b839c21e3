"""Recurrent: LSTM and GRU encoder-decoders, with or without attention, behind the interface of `Transformer`.

Inputs, outputs and the three methods of generation (`encode`, `prefill`, `step`) have the names and meanings that they
have in `zoo.transformer`, so tasks, training, generation and checkpoints do not know the two apart. Layers, cells and
additive attention are in `zoo.recurrence`.

Left out: rows that several pairs share (`segment_ids`); a state is of one sequence.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct
from jaxtyping import Array, Float, Int

from zoo.config import NormConfig, RecurrentConfig
from zoo.embeddings import Embedder
from zoo.heads import LanguageModelLogits
from zoo.layers import Projection, dropout
from zoo.recurrence import Memory, Recurrence, RecurrentStack, State, dropout_at
from zoo.remat import Remat
from zoo.transformer import Output


@struct.dataclass
class RecurrentCache:
    """What decoding keeps between steps; it does not grow."""

    states: tuple[State, ...]
    """Of the decoder's layers, R rows."""
    memory: Memory | None = None
    """With attention: the encoder's states."""

    def select(self, rows: Int[Array, " R"]) -> "RecurrentCache":
        """These rows of the batch, in this order. The memory stays: rows of one input lie together and share it."""
        return self.replace(states=jax.tree.map(lambda leaf: leaf[rows], self.states))


@struct.dataclass
class Decoded:
    """What the layers of a decoder have made of its inputs."""

    hidden_states: tuple[Float[Array, "B T D"], ...]
    """The embeddings and what each layer gave, L + 1 arrays."""
    states: tuple[State, ...]
    """The layers' last."""
    context: Float[Array, "B T M"] | None
    alignment: Float[Array, "B T S"] | None


class Bridge(nn.Module):
    """The last states of an encoder that reads both ways, as a decoder's first: one linear map a layer.

    tanh follows it, but for an LSTM's cell, which knows no bounds. Both directions count; in Bahdanau et al. 2015,
    A.2.2, the backward one alone does.
    """

    width: int

    @nn.compact
    def __call__(self, states: list[list[State]]) -> tuple[State, ...]:
        """For each layer the two directions' states to one."""
        bridged = []
        for depth, sides in enumerate(states):
            both = jax.tree.map(lambda *leaves: jnp.concatenate(leaves, -1), *sides)

            def project(kind: str, x: Array, depth: int = depth) -> Array:
                return Projection((self.width,), jnp.float32, bias=True, name=f"layer_{depth}_{kind}")(x)

            cell = None if both.cell is None else project("cell", both.cell)
            bridged.append(State(jnp.tanh(project("hidden", both.hidden)), cell))
        return tuple(bridged)


class Decoder(nn.Module):
    """Layers that read from the first token on, the first of them with attention to a memory where there is one."""

    config: RecurrentConfig
    dtype: Any
    remat: Remat

    def setup(self):
        """Make the layers."""
        config = self.config
        widths = [config.target_embedding.width] + [config.width] * (config.num_layers - 1)
        memory = [None if config.attention is None else config.memory_width] + [None] * (config.num_layers - 1)
        self.layer = [
            Recurrence(config.cell, width, config.width, self.dtype, attended, self.remat)
            for width, attended in zip(widths, memory, strict=True)
        ]

    def remember(self, states: Float[Array, "B S M"], seen: Int[Array, "B S"] | None) -> Memory | None:
        """What the first layer attends to."""
        return None if self.config.attention is None else self.layer[0].remember(states, seen)

    def __call__(
        self,
        embedded: Float[Array, "B T E"],
        seen: Int[Array, "B T"] | None,
        states: tuple[State, ...],
        memory: Memory | None,
        dropout_rng: Array | None = None,
    ) -> Decoded:
        """Read `embedded` from `states` on."""
        hidden, last, read = [embedded], [], None
        for depth, (layer, state) in enumerate(zip(self.layer, states, strict=True)):
            x = dropout_at(hidden[-1], self.config.dropout, dropout_rng, depth)
            steps, state = layer(x, state, seen, memory if depth == 0 else None)
            read = steps if depth == 0 else read
            hidden.append(steps.hidden)
            last.append(state)
        assert read is not None  # there is at least one layer
        return Decoded(tuple(hidden), tuple(last), read.context, read.alignment)


class Recurrent(nn.Module):
    """An encoder-decoder of recurrent layers, as `config` says.

    Attributes:
        config: what the network is.
        dtype: of activations and products; parameters, gates and states are float32.
        remat: what the backward pass recomputes of each time step: nothing, what lies between products, or all. With
            additive attention, "dots" keeps memory from growing by source times target times width.
    """

    config: RecurrentConfig
    dtype: Any = jnp.float32
    remat: Remat = "none"

    def setup(self):
        """Make the tables, the two stacks, and what joins them with each other and with the head."""
        config = self.config
        self.embedder = Embedder(config.embedding, config.embedding.width, self.dtype)
        if config.decoder_embedding is not None:
            self.decoder_embedder = Embedder(config.decoder_embedding, config.decoder_embedding.width, self.dtype)
        self.encoder = RecurrentStack(
            config.cell,
            config.num_layers,
            config.embedding.width,
            config.width,
            config.direction,
            self.dtype,
            config.dropout,
            self.remat,
        )
        if config.direction == "both":
            self.bridge = Bridge(config.width)
        self.decoder = Decoder(config, self.dtype, self.remat)
        if config.attention is not None:
            self.readout = Projection((config.output_width, 2), self.dtype, bias=True)
        num_ids = config.head.num_ids or config.target_vocab_size or 0
        self.head = LanguageModelLogits(config.head, num_ids, NormConfig(), self.dtype)

    def __call__(
        self,
        input_ids: Int[Array, "B S"],
        attention_mask: Int[Array, "B S"] | None = None,
        decoder_input_ids: Int[Array, "B T"] | None = None,
        decoder_attention_mask: Int[Array, "B T"] | None = None,
        dropout_rng: Array | None = None,
        output_hidden_states: bool = False,
    ) -> Output:
        """Run the whole model; arguments as `Transformer`'s.

        The output's `alignment` holds the weights of additive attention.
        """
        rngs = (None, None) if dropout_rng is None else jax.random.split(dropout_rng)
        encoded = self.encode(input_ids, attention_mask, rngs[0], output_hidden_states)
        return self.decode(
            decoder_input_ids,
            decoder_attention_mask,
            encoded.last_hidden_state,
            attention_mask,
            encoded.decoder_states,
            rngs[1],
            output_hidden_states,
        ).replace(encoder_last_hidden_state=encoded.last_hidden_state, encoder_hidden_states=encoded.hidden_states)

    def encode(
        self,
        input_ids: Int[Array, "B S"],
        attention_mask: Int[Array, "B S"] | None = None,
        dropout_rng: Array | None = None,
        output_hidden_states: bool = False,
        layers: str | None = None,
    ) -> Output:
        """Run the encoder; the output's `decoder_states` are what the decoder begins with; `layers` says nothing."""
        del layers
        rngs = (None, None) if dropout_rng is None else jax.random.split(dropout_rng)
        x = self.embedder(input_ids, jnp.zeros_like(input_ids), dropout_rng=rngs[0])
        outputs, states = self.encoder(x, attention_mask, rngs[1])
        first = self.bridge(states) if self.config.direction == "both" else tuple(state for (state,) in states)
        hidden = (x, *outputs) if output_hidden_states else None
        return Output(last_hidden_state=outputs[-1], hidden_states=hidden, decoder_states=first)

    def decode(
        self,
        input_ids: Int[Array, "B T"] | None,
        attention_mask: Int[Array, "B T"] | None = None,
        encoder_hidden_states: Float[Array, "B S M"] | None = None,
        encoder_attention_mask: Int[Array, "B S"] | None = None,
        decoder_states: tuple[State, ...] | None = None,
        dropout_rng: Array | None = None,
        output_hidden_states: bool = False,
    ) -> Output:
        """Run the decoder over a whole sequence, from what `encode` gave."""
        if input_ids is None or decoder_states is None:
            name = "decoder_input_ids" if input_ids is None else "decoder_states"
            raise ValueError(f"{name} is missing; this model's decoder reads it")
        memory = self._remember(encoder_hidden_states, encoder_attention_mask)
        x, decoded = self._read(input_ids, attention_mask, decoder_states, memory, dropout_rng)
        return Output(
            last_hidden_state=x,
            logits=self.logits_of(x),
            hidden_states=decoded.hidden_states if output_hidden_states else None,
            alignment=decoded.alignment,
        )

    def prefill(
        self,
        input_ids: Int[Array, "B T"],
        attention_mask: Int[Array, "B T"],
        capacity: int,
        encoder_hidden_states: Float[Array, "B S M"] | None = None,
        encoder_attention_mask: Int[Array, "B S"] | None = None,
        decoder_states: tuple[State, ...] | None = None,
    ) -> tuple[Float[Array, "B V"], RecurrentCache]:
        """Read a prompt, padded on the left; the cache needs no `capacity`.

        Returns:
            Logits of the token that follows the prompt, and the cache.
        """
        del capacity
        if decoder_states is None:
            raise ValueError("decoder_states is missing; this model's decoder begins with the encoder's last states")
        memory = self._remember(encoder_hidden_states, encoder_attention_mask)
        x, decoded = self._read(input_ids, attention_mask, decoder_states, memory)
        return self.logits_of(x[:, -1:])[:, 0], RecurrentCache(decoded.states, memory)

    def step(self, token: Int[Array, " R"], cache: RecurrentCache) -> tuple[Float[Array, "R V"], RecurrentCache]:
        """Logits of the token that follows `token`, and the cache with `token` in it."""
        x, decoded = self._read(token[:, None], None, cache.states, cache.memory)
        return self.logits_of(x[:, -1:])[:, 0], cache.replace(states=decoded.states)

    def logits_of(self, states: Float[Array, "B T E"]) -> Float[Array, "B T V"]:
        """Logits from `Output.last_hidden_state`, or a part of it: float32."""
        return self.head(states, self._target_embedder.table())

    def for_steps(self) -> dict[str, Any]:
        """The parameters as a loop of `step` reads them: as they are."""
        return dict(self.variables["params"])

    @property
    def _target_embedder(self) -> Embedder:
        return self.embedder if self.config.decoder_embedding is None else self.decoder_embedder

    def _remember(self, states: Float[Array, "B S M"] | None, seen: Int[Array, "B S"] | None) -> Memory | None:
        if self.config.attention is None:
            return None
        if states is None:
            raise ValueError("encoder_hidden_states is missing; this model's decoder attends to it")
        return self.decoder.remember(states, seen)

    def _read(
        self,
        ids: Int[Array, "B T"],
        seen: Int[Array, "B T"] | None,
        states: tuple[State, ...],
        memory: Memory | None,
        dropout_rng: Array | None = None,
    ) -> tuple[Float[Array, "B T E"], Decoded]:
        """What the head reads, and what the layers gave."""
        rngs = (None, None, None) if dropout_rng is None else jax.random.split(dropout_rng, 3)
        embedded = self._target_embedder(ids, jnp.zeros_like(ids), dropout_rng=rngs[0])
        decoded = self.decoder(embedded, seen, states, memory, rngs[1])
        x = decoded.hidden_states[-1]
        if decoded.context is not None:
            # A deep output of maxout units; the state is the new one, where the paper has the one before.
            x = self.readout(jnp.concatenate([x, decoded.context, embedded], -1)).max(-1)
        return dropout(x, self.config.dropout, rngs[2]), decoded
