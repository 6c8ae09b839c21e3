"""Embedder, Block, Stack, heads and Transformer: ids or pixels to logits, for every family.

A block is one screen; a stack runs its blocks scanned or unrolled over the same parameters, which are stacked on a
leading layer axis (`decoder/attention/query/kernel` is [L, D, N, H]); `Transformer` wires embedders, stacks and head
together, and knows no architecture by name. Generation is in `zoo.generate`, losses are in `zoo.tasks`.
"""

from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from zoo.config import (
    Activation,
    AlibiConfig,
    AttentionPoolConfig,
    ClassifierHead,
    DualConfig,
    EmbeddingConfig,
    EmbeddingHead,
    GridBiasConfig,
    LanguageModelHead,
    LearnedPositions,
    ModelConfig,
    NormConfig,
    Pooling,
    RelativeBiasConfig,
    SinusoidalPositions,
    Span,
    StackConfig,
    TokenHead,
    TransformerConfig,
)
from zoo.kernels import ALiBi, Causal, Chunked, Full, Lengths, RelativeBias, Segments, Window
from zoo.kernels.bias import alibi_slopes
from zoo.kernels.product import accumulate
from zoo.layers import (
    ACTIVATIONS,
    Attention,
    AudioEmbedding,
    Convolution,
    GridBias,
    KeysValues,
    Mlp,
    Norm,
    PatchEmbedding,
    PositionTable,
    Projection,
    Rotation,
    Sight,
    TokenEmbedding,
    dropout,
    rows,
    sinusoids,
)

Remat = Literal["none", "dots", "full"]
_REMAT_POLICIES: dict[Remat, Callable | None] = {
    # Keep the products' results, recompute what is cheap between them.
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    # Keep the blocks' inputs only.
    "full": jax.checkpoint_policies.nothing_saveable,
}


@struct.dataclass
class Cache:
    """What decoding keeps between steps. Entries at and past `length` are not yet written."""

    layers: KeysValues
    """Keys and values of the decoder's self-attention, [L, B, S, K, H]."""
    segment_ids: Int[Array, "B S"]
    """1 where a cached key may be seen, 0 for padding in the prompt."""
    length: Int[Array, ""]
    """Entries written so far."""
    memory: KeysValues | None = None
    """Keys and values of cross-attention, [L, B, S, K, H]."""
    memory_segment_ids: Int[Array, "B S"] | None = None

    def append(self, fresh: KeysValues, segment_ids: Int[Array, "B T"]) -> "Cache":
        """Write the keys and values [L, B, T, K, H] of T new positions, all layers at once."""
        write = lambda old, new: lax.dynamic_update_slice_in_dim(old, new.astype(old.dtype), self.length, 2)  # noqa: E731
        return self.replace(
            layers=jax.tree.map(write, self.layers, fresh),
            segment_ids=lax.dynamic_update_slice_in_dim(self.segment_ids, segment_ids, self.length, 1),
            length=self.length + segment_ids.shape[1],
        )

    def select(self, rows: Int[Array, " R"]) -> "Cache":
        """These rows of the batch, in this order. The memory stays: rows of one input lie together and share it."""
        layers = jax.tree.map(lambda leaf: leaf[:, rows], self.layers)
        return self.replace(layers=layers, segment_ids=self.segment_ids[rows])

    @classmethod
    def start(cls, fresh: KeysValues, segment_ids: Int[Array, "B T"], capacity: int, **memory: Any) -> "Cache":
        """A cache of `capacity` positions that begins with a prompt's T."""
        room = capacity - segment_ids.shape[1]
        layers = jax.tree.map(lambda leaf: jnp.pad(leaf, ((0, 0), (0, 0), (0, room), (0, 0), (0, 0))), fresh)
        length = jnp.int32(segment_ids.shape[1])
        return cls(layers, jnp.pad(segment_ids, ((0, 0), (0, room))), length, **memory)


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


@struct.dataclass
class Surroundings:
    """All that the blocks of a stack share in one forward pass, by span where local layers differ."""

    sights: dict[Span, Sight]
    rotations: dict[Span, Rotation | None]
    memory: Float[Array, "B S D"] | None = None
    """The encoder's output."""
    memory_sight: Sight | None = None
    grid: tuple[int, int] | None = struct.field(pytree_node=False, default=None)
    """Rows and columns of an image's patches, where layers have a bias of their own over them."""


@struct.dataclass
class Trace:
    """What the layers of a stack did on the way to its last states."""

    keys_values: KeysValues
    """Fresh keys and values of all layers, [L, B, T, K, H]."""
    balance: Float[Array, ""]
    """The experts' balance losses, summed."""
    hidden_states: tuple[Float[Array, "B T D"], ...] | None


class Block(nn.Module):
    """One layer: attention, cross-attention where there is memory, and an MLP, each with its residual and norms."""

    config: StackConfig
    span: Span
    dtype: Any

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B T D"],
        around: Surroundings,
        cached: KeysValues | None = None,
        memory: KeysValues | None = None,
        dropout_rng: Array | None = None,
        index: Int[Array, ""] | int = 0,
    ) -> tuple[Float[Array, "B T D"], tuple[KeysValues, Float[Array, ""]]]:
        """Return the new states of layer `index`, with its fresh keys and values and the experts' balance loss."""
        config, balance, states = self.config, jnp.float32(0), x
        fresh: Any = None
        rngs = [None] * 6 if dropout_rng is None else jax.random.split(dropout_rng, 6)

        def attend(x):
            nonlocal fresh
            x = x if config.first_norm else jnp.where(index == 0, states, x)
            attention = Attention(config.attention, config.width, self.dtype, name="attention")
            rotation = around.rotations[self.span]
            fresh = attention.keys_values(x, rotation)
            sight = around.sights[self.span]
            if around.grid is not None:
                bias = GridBias(config.position_bias, config.attention.num_heads, name="relative_bias")(around.grid)
                sight = sight.replace(bias=bias)
            elif isinstance(config.position_bias, RelativeBiasConfig) and config.position_bias.per_layer:
                sight = sight.replace(bias=_relative_bias(config, config.position_bias, "relative_position_bias"))
            return attention(x, fresh, sight, rotation=rotation, cached=cached, dropout_rng=rngs[0])

        def attend_to_memory(x):
            attention = Attention(config.cross_attention, config.width, self.dtype, name="cross_attention")
            keys_values = attention.keys_values(around.memory) if memory is None else memory
            # Rows that share a memory, the beams of one input, are queries of one row: no copy of it for each.
            queries = x.reshape(keys_values.key.shape[0], -1, config.width)
            return attention(queries, keys_values, around.memory_sight, dropout_rng=rngs[1]).reshape(x.shape)

        def transform(x):
            nonlocal balance
            x, balance = Mlp(config.mlp, self.dtype, name="mlp")(x)
            return x

        if config.branches == "sequential":
            x = self._residual(x, attend, "attention", rngs[2])
            if config.cross_attention is not None:
                x = self._residual(x, attend_to_memory, "cross_attention", rngs[3])
            x = self._residual(x, transform, "mlp", rngs[4])
        else:
            shared = config.branches == "parallel_shared_norm"
            attention_input = self._normed(x, "attention", "input")
            mlp_input = attention_input if shared else self._normed(x, "mlp", "input")
            attended = self._branch(attend(attention_input), "attention", rngs[2])
            x = x + attended + self._branch(transform(mlp_input), "mlp", rngs[4])
        return x, (fresh, balance)

    def _residual(self, x: Array, branch: Callable[[Array], Array], name: str, rng: Array | None) -> Array:
        y = self._branch(branch(self._normed(x, name, "input")), name, rng)
        return self._normed(x + y, name, "residual")

    def _branch(self, y: Array, name: str, rng: Array | None) -> Array:
        y = self._normed(y, name, "output")
        if self.config.layer_scale is not None:
            start = nn.initializers.constant(self.config.layer_scale)
            y = y * self.param(f"{name}_scale", start, (self.config.width,)).astype(y.dtype)
        return dropout(y, self.config.dropout, rng)

    def _normed(self, x: Array, name: str, slot: Literal["input", "output", "residual"]) -> Array:
        if slot not in self.config.norm_slots:
            return x
        return Norm(self.config.norm, name=f"{name}_{slot}_norm")(x)


class Stack(nn.Module):
    """Blocks over stacked parameters, run scanned over whole pattern periods or unrolled, with the same results."""

    config: StackConfig
    dtype: Any
    layers: Literal["scanned", "unrolled"]
    remat: Remat

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B T D"],
        positions: Int[Array, "B T"],
        segment_ids: tuple[Int[Array, "B T"], Int[Array, "B T"]] | None,
        *,
        memory: Float[Array, "B S D"] | None = None,
        memory_segment_ids: tuple[Int[Array, "B T"], Int[Array, "B S"]] | None = None,
        cache: Cache | None = None,
        grid: tuple[int, int] | None = None,
        dropout_rng: Array | None = None,
        output_hidden_states: bool = False,
    ) -> tuple[Float[Array, "B T D"], "Trace"]:
        """Run all layers.

        Args:
            x: embedded inputs.
            positions: of each input, for rotation.
            segment_ids: of queries and keys; a query sees keys of equal id. None: all see all.
            memory: the encoder's output, for cross-attention.
            memory_segment_ids: the same for queries and memory.
            cache: keys and values of earlier positions.
            grid: rows and columns of patches, where `x` is an image.
            dropout_rng: key, in training; None is evaluation.
            output_hidden_states: whether to keep what each layer returns.

        Returns:
            The last states, and what the layers did on the way.
        """
        bias, distances = self._position_bias(grid), self._distances(dropout_rng)
        own_bias = isinstance(self.config.position_bias, GridBiasConfig) and self.config.position_bias.per_layer
        around = Surroundings(
            sights={span: self._sight(span, segment_ids, bias, distances, cache) for span in ("global", "local")},
            rotations={span: self._rotation(span, positions) for span in ("global", "local")},
            memory=memory,
            memory_sight=Sight(Segments(*memory_segment_ids) if memory_segment_ids else Full()),
            grid=grid if own_bias else None,
        )
        parameters = self._parameters(x[:1] if own_bias else x[:1, :1], around)
        mix = self._convolution(x, segment_ids)
        last, (fresh, balance, states) = self._run(parameters, x, around, mix, cache, dropout_rng, output_hidden_states)
        if self.config.final_norm:
            last = Norm(self.config.norm, name="final_norm")(last)
        states = (x, *jnp.unstack(states)) if output_hidden_states else None
        return last, Trace(fresh, balance.sum(), states)

    def memory_keys_values(self, memory: Float[Array, "B S D"]) -> KeysValues:
        """Keys and values of every layer's cross-attention, [L, B, S, K, H], made once a sequence."""
        config = self.config
        attention = Attention(config.cross_attention, config.width, self.dtype, parent=None)
        parameters = self.variables["params"]["cross_attention"]
        project = lambda layer: attention.apply({"params": layer}, memory, method="keys_values")  # noqa: E731
        stacked = jax.vmap(project)(parameters)
        repeats = config.num_layers // config.unique_layers
        return jax.tree.map(lambda leaf: jnp.repeat(leaf, repeats, axis=0), stacked)

    def _block(self, span: Span) -> Block:
        return Block(self.config, span, self.dtype, parent=None)

    def _parameters(self, x: Array, around: Surroundings) -> dict:
        """The blocks' parameters, each with a leading axis of unique layers."""
        if not self.is_initializing():
            own = ("final_norm", "position_bias", "distances", "distances_norm", "convolution")
            return {name: leaf for name, leaf in self.variables["params"].items() if name not in own}
        block = self._block(self.config.pattern[0])
        memory = None if around.memory is None else around.memory[:1, :1]
        sight, rotation = Sight(Full()), around.rotations[self.config.pattern[0]]
        sight = sight.replace(distances=around.sights[block.span].distances)
        if rotation is not None:
            rotation = rotation.replace(cosine=rotation.cosine[:1, :1], sine=rotation.sine[:1, :1])
        one = Surroundings({block.span: sight}, {block.span: rotation}, memory, sight, around.grid)
        make = lambda rng: block.init(rng, x, one)["params"]  # noqa: E731
        names = jax.eval_shape(make, jax.random.key(0))
        split = lambda rng: jax.random.split(rng, self.config.unique_layers)  # noqa: E731
        # One call a name: under jit, what a name does not need is dropped.
        return {
            name: self.param(name, lambda rng, n=name: jax.vmap(lambda r: make(r)[n])(split(rng))) for name in names
        }

    def _run(
        self,
        parameters: dict,
        x: Array,
        around: Surroundings,
        mix: Callable[[Array, Array | None], Any] | None,
        cache: Cache | None,
        dropout_rng: Array | None,
        output_hidden_states: bool,
    ):
        """The last states; and of all layers, stacked: keys and values, balance losses, states where asked for."""
        config = self.config

        def layer(x, parameters, index, cached, memory, span):
            rng = None if dropout_rng is None else jax.random.fold_in(dropout_rng, index)
            x, (fresh, balance) = self._block(span).apply({"params": parameters}, x, around, cached, memory, rng, index)
            if mix is not None:
                x = lax.cond(index == 0, mix, lambda x, _: x, x, rng)
            return x, (fresh, balance, x if output_hidden_states else None)

        if self.remat != "none":
            layer = jax.checkpoint(layer, policy=_REMAT_POLICIES[self.remat], static_argnums=(5,))

        unique, period = config.unique_layers, len(config.pattern)
        caches = (None, None) if cache is None else (cache.layers, cache.memory)
        run = self._scan if self.layers == "scanned" else self._unroll
        indices = jnp.arange(config.num_layers) * unique // config.num_layers
        return run(layer, x, parameters, indices, caches, period)

    def _unroll(self, layer, x, parameters, indices, caches, period):
        # `unstack` because its gradient is one concatenation, where indexing's is a padded copy a layer.
        per_layer, repeats = _unstack(parameters), self.config.num_layers // self.config.unique_layers
        outputs = []
        caches = _unstack(caches) if jax.tree.leaves(caches) else [(None, None)] * self.config.num_layers
        for index in range(self.config.num_layers):
            span = self.config.pattern[index % period]
            x, output = layer(x, per_layer[index // repeats], index, *caches[index], span)
            outputs.append(output)
        return x, jax.tree.map(lambda *leaves: jnp.stack(leaves), *outputs)

    def _scan(self, layer, x, parameters, indices, caches, period):
        pattern, num_layers = self.config.pattern, self.config.num_layers
        shared = self.config.unique_layers != num_layers

        def one(x, inputs, span):
            index, group, own, (cached, memory) = inputs
            if shared:
                own = jax.tree.map(lambda leaf: leaf[group], parameters)
            return layer(x, own, index, cached, memory, span)

        def body(x, inputs):
            outputs = []
            for place in range(period):
                x, output = one(x, jax.tree.map(lambda leaf, place=place: leaf[place], inputs), pattern[place])
                outputs.append(output)
            return x, jax.tree.map(lambda *leaves: jnp.stack(leaves), *outputs)

        inputs = (jnp.arange(num_layers), indices, None if shared else parameters, caches)
        whole = num_layers // period * period
        periods = jax.tree.map(lambda leaf: leaf[:whole].reshape(-1, period, *leaf.shape[1:]), inputs)
        x, outputs = lax.scan(body, x, periods)
        outputs = [jax.tree.map(lambda leaf: leaf.reshape(whole, *leaf.shape[2:]), outputs)]
        for index in range(whole, num_layers):
            last = jax.tree.map(lambda leaf, index=index: leaf[index], inputs)
            x, output = one(x, last, pattern[index % period])
            outputs.append(jax.tree.map(lambda leaf: leaf[None], output))
        return x, jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *outputs)

    def _sight(self, span: Span, segment_ids, bias, distances, cache: Cache | None) -> Sight:
        mask = Causal() if self.config.causal else Full()
        local = self.config.local
        if span == "local" and local is not None:
            mask = mask if local.window is None else mask & Window(*local.window)
            mask = mask if local.chunk is None else mask & Chunked(local.chunk)
        fresh = mask if segment_ids is None else mask & Segments(*segment_ids)
        if cache is None:
            return Sight(fresh, bias, distances=distances)
        seen = Segments(
            jnp.ones_like(cache.segment_ids[:, :1]) if segment_ids is None else segment_ids[0],
            cache.segment_ids,
        )
        return Sight(fresh, bias, cache.length, mask & seen & Lengths(kv=cache.length))

    def _rotation(self, span: Span, positions: Int[Array, "B T"]) -> Rotation | None:
        local = self.config.local
        rotary = local.rotary if span == "local" and local is not None else self.config.attention.rotary
        return None if rotary is None else Rotation.at(rotary, self.config.attention.head_size, positions)

    def _distances(self, dropout_rng: Array | None) -> Float[Array, "R D"] | None:
        """The table of disentangled attention, dropped from alike in all layers."""
        config = self.config.attention.disentangled
        if config is None:
            return None
        table = TokenEmbedding(2 * config.span, self.config.width, name="distances").table()
        if config.norm is not None:
            table = Norm(config.norm, name="distances_norm")(table)
        rng = None if dropout_rng is None else jax.random.fold_in(dropout_rng, self.config.num_layers)
        return dropout(table, self.config.dropout, rng)

    def _convolution(self, embedded: Array, segment_ids) -> Callable[[Array, Array | None], Any] | None:
        """What the first layer's states go through after it; None: nothing."""
        config = self.config
        if config.convolution is None:
            return None
        module = Convolution(config.convolution, config.norm, config.dropout, self.dtype, parent=None)
        one = embedded[:1, :1]
        parameters = self.param("convolution", lambda rng: module.init(rng, one, one, None)["params"])
        return lambda states, rng: module.apply({"params": parameters}, embedded, states, segment_ids, rng)

    def _position_bias(self, grid: tuple[int, int] | None):
        config, num_heads = self.config.position_bias, self.config.attention.num_heads
        if config is None:
            return None
        if isinstance(config, AlibiConfig):
            return ALiBi(config.scale * alibi_slopes(num_heads))
        if isinstance(config, GridBiasConfig):
            return None if config.per_layer else GridBias(config, num_heads, name="position_bias")(grid)
        return None if config.per_layer else _relative_bias(self.config, config, "position_bias")


def _relative_bias(stack: StackConfig, config: RelativeBiasConfig, name: str) -> RelativeBias:
    """A bias with a table of this name in the module that calls."""
    table = TokenEmbedding(config.num_buckets, stack.attention.num_heads, name=name).table()
    return RelativeBias(table, bidirectional=not stack.causal, max_distance=config.max_distance)


def _unstack(tree: Any) -> list:
    """One tree a layer from leaves with a leading layer axis."""
    leaves, structure = jax.tree.flatten(tree)
    return [jax.tree.unflatten(structure, layer) for layer in zip(*map(jnp.unstack, leaves), strict=True)]


class Embedder(nn.Module):
    """Ids or pixels to the stack's input vectors."""

    config: EmbeddingConfig
    width: int
    """Width of the stack, D."""
    dtype: Any

    def setup(self):
        """Name the tables."""
        config = self.config
        if config.vocab_size is not None:
            self.token = TokenEmbedding(config.vocab_size, config.width)
        if config.patches is not None:
            self.patch = PatchEmbedding(config.patches, config.width, self.dtype)
        if config.audio is not None:
            self.audio = AudioEmbedding(config.audio, config.width, self.dtype)
        if isinstance(config.positions, LearnedPositions):
            width = config.width if config.projected == "sum" else self.width
            self.position = PositionTable(config.positions, width)
        if config.num_token_types:
            self.token_type = TokenEmbedding(config.num_token_types, config.width)
        if config.norm is not None:
            self.norm = Norm(config.norm)
        if config.width != self.width:
            self.projection = Projection((self.width,), self.dtype, bias=config.projected == "sum")

    def table(self) -> Float[Array, "V E"]:
        """The token table."""
        return self.token.table()

    def __call__(
        self,
        inputs: Int[Array, "B T"] | Float[Array, "B C height width"] | Float[Array, "B mels frames"],
        positions: Int[Array, "B T"],
        token_type_ids: Int[Array, "B T"] | None = None,
        *,
        table: Float[Array, "V E"] | None = None,
        bool_masked_pos: Bool[Array, "B patches"] | None = None,
        dropout_rng: Array | None = None,
    ) -> Float[Array, "B T D"]:
        """Embed ids (or pixels, or audio), add positions and token types, normalise, and project to the stack's width.

        `table` stands in for a token table of its own where two embedders share one.
        """
        config, grid = self.config, None
        if config.patches is not None:
            x, grid = self.patch(inputs, bool_masked_pos), config.patches.grid(*inputs.shape[2:])
        elif config.audio is not None:
            x = self.audio(inputs)
        else:
            table = self.table() if table is None else table
            # Gemma's scale is rounded to the compute dtype, in which it was trained; 1 and powers of two never change.
            x = rows(table, inputs) * jnp.asarray(config.scale, self.dtype).astype(table.dtype)
        projects = config.width != self.width
        if projects and config.projected == "tokens":
            x = self.projection(x)
        if isinstance(config.positions, LearnedPositions):
            x = x + self.position(positions, config.patches, grid)
        elif isinstance(config.positions, SinusoidalPositions):
            x = x + sinusoids(config.positions, positions, config.width)
        if config.num_token_types:
            x = x + self.token_type(jnp.zeros_like(positions) if token_type_ids is None else token_type_ids)
        elif token_type_ids is not None:
            raise ValueError("token_type_ids were given, and this model has no token types; leave them out")
        if config.norm is not None:
            x = self.norm(x)
        x = dropout(x, config.dropout, dropout_rng).astype(self.dtype)
        return self.projection(x) if projects and config.projected == "sum" else x


class LanguageModelLogits(nn.Module):
    """Logits over the vocabulary: a product with the token table, or with a kernel of its own."""

    config: LanguageModelHead
    vocab_size: int
    norm: Any
    dtype: Any

    @nn.compact
    def __call__(self, x: Float[Array, "B T D"], table: Float[Array, "V E"]) -> Float[Array, "B T V"]:
        """Float32 logits."""
        config = self.config
        if config.transform is not None:
            x = Projection((table.shape[-1],), self.dtype, config.transform_bias, name="transform")(x)
            x = Norm(self.norm, name="norm")(ACTIVATIONS[config.transform](x))
        x = (x * config.scale).astype(self.dtype)
        if config.tied:
            kernel = table.T
        else:
            start = nn.initializers.variance_scaling(1.0, "fan_in", "truncated_normal")
            kernel = self.param("kernel", start, (x.shape[-1], self.vocab_size))
        logits = accumulate(x, kernel)
        if config.bias:
            logits = logits + self.param("bias", nn.initializers.zeros, (self.vocab_size,))
        return logits if config.softcap is None else config.softcap * jnp.tanh(logits / config.softcap)


class TransformedLabels(nn.Module):
    """Logits over labels at every position, after a dense layer, an activation and perhaps a norm."""

    config: TokenHead
    activation: Activation
    norm: NormConfig
    dtype: Any

    @nn.compact
    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T O"]:
        """Transform and project."""
        x = Projection((x.shape[-1],), self.dtype, self.config.transform_bias, name="transform")(x)
        x = ACTIVATIONS[self.activation](x)
        if self.config.transform_norm:
            x = Norm(self.norm, name="norm")(x)
        return Projection((self.config.num_classes or 1,), self.dtype, bias=True, name="logits")(x)


class PooledHead(nn.Module):
    """One vector a sequence, then class logits or an embedding."""

    config: ClassifierHead | EmbeddingHead
    dtype: Any

    @nn.compact
    def __call__(
        self, x: Float[Array, "B T D"], mask: Int[Array, "B T"] | None, ids: Int[Array, "B T"] | None = None
    ) -> Float[Array, "B O"]:
        """Pool over the positions where `mask` is not zero and project, in float32 at the end."""
        config = self.config
        if config.pooling == "attention":
            pooled = AttentionPool(config.attention_pool, self.dtype, name="pool")(x)
        elif config.pooling == "token":
            marked = ids if config.token_id is None else ids == config.token_id
            pooled = jnp.take_along_axis(x, jnp.argmax(marked, 1)[:, None, None], axis=1)[:, 0]
        else:
            pooled = pool(x, mask, config.pooling)
        if config.norm is not None:
            pooled = Norm(config.norm, name="norm")(pooled)
        if isinstance(config, ClassifierHead):
            if config.pooler is not None:
                pooled = Projection((x.shape[-1],), self.dtype, config.pooler_bias, name="pooler")(pooled)
                pooled = ACTIVATIONS[config.pooler](pooled)
            if config.pooler_norm is not None:
                pooled = Norm(config.pooler_norm, name="pooler_norm")(pooled)
            logits = Projection((config.num_classes,), self.dtype, config.bias, name="logits")(pooled)
            if config.distilled:
                second = Projection((config.num_classes,), self.dtype, config.bias, name="distilled_logits")(x[:, 1])
                logits = (logits + second) / 2
            return logits.astype(jnp.float32)
        if config.projection is not None:
            project = Projection((config.projection,), self.dtype, config.projection_bias, name="projection")
            pooled = project(pooled)
        if config.activation is not None:
            pooled = ACTIVATIONS[config.activation](pooled)
        pooled = pooled.astype(jnp.float32)
        if config.normalize:
            pooled = pooled * lax.rsqrt(jnp.maximum(jnp.square(pooled).sum(-1, keepdims=True), 1e-24))
        return pooled


class AttentionPool(nn.Module):
    """What a learned query finds in a sequence, plus an MLP of it."""

    config: AttentionPoolConfig
    dtype: Any

    @nn.compact
    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B D"]:
        """Attend once, over all positions."""
        config, (batch, _, width) = self.config, x.shape
        probe = self.param("probe", nn.initializers.normal(0.02), (width,)).astype(self.dtype)
        attention = Attention(config.attention, width, self.dtype, name="attention")
        query = jnp.broadcast_to(probe, (batch, 1, width))
        found = attention(query, attention.keys_values(x), Sight(Full()))[:, 0]
        return found + Mlp(config.mlp, self.dtype, name="mlp")(Norm(config.norm, name="norm")(found))[0]


def pool(x: Float[Array, "B T D"], mask: Int[Array, "B T"] | None, how: Pooling) -> Float[Array, "B D"]:
    """One vector a sequence, as the config's `Pooling` says."""
    match how:
        case "first":
            return x[:, 0]
        case "end":
            return x[:, -1]
        case "mean_with_padding":
            return x.astype(jnp.float32).mean(1).astype(x.dtype)
        case "patch_mean":
            return x[:, 1:].astype(jnp.float32).mean(1).astype(x.dtype)
        case "first_and_patch_mean":
            return jnp.concatenate([x[:, 0], pool(x, mask, "patch_mean")], -1)
    mask = jnp.ones(x.shape[:2], jnp.int32) if mask is None else (mask != 0).astype(jnp.int32)
    if how == "last":
        last = jnp.max(mask * jnp.arange(x.shape[1]), axis=1)
        return jnp.take_along_axis(x, last[:, None, None], axis=1)[:, 0]
    if how == "max":
        return jnp.where(mask[..., None] != 0, x, -1e9).max(1).astype(x.dtype)
    weights = mask[..., None].astype(jnp.float32)
    mean = (x * weights).sum(1) / jnp.maximum(weights.sum(1), 1e-9)
    return mean.astype(x.dtype)


class Transformer(nn.Module):
    """Encoder-only, decoder-only or encoder-decoder, as `config` says.

    Attributes:
        config: what the network is.
        dtype: of activations and products; parameters are float32.
        layers: "scanned" compiles one pattern period and loops (accelerators, deep models); "unrolled" compiles all
            layers, which runs faster on CPU.
        remat: what the backward pass recomputes: nothing, what lies between products, or whole blocks.
    """

    config: TransformerConfig
    dtype: Any = jnp.float32
    layers: Literal["scanned", "unrolled"] = "unrolled"
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
        if config.output_width is not None:
            self.output_projection = Projection((config.output_width,), self.dtype)
        if config.decoder_embedding is not None:
            self.decoder_embedder = Embedder(config.decoder_embedding, config.output_stack.width, self.dtype)
        norm = config.output_stack.norm
        match config.head:
            case LanguageModelHead(num_ids=num_ids):
                num_ids = num_ids or config.target_vocab_size or 0
                self.head = LanguageModelLogits(config.head, num_ids, norm, self.dtype)
            case TokenHead(transform=None):
                self.head = Projection((config.head.num_classes or 1,), self.dtype, bias=True)
            case TokenHead(transform=activation):
                self.head = TransformedLabels(config.head, activation, norm, self.dtype)
            case ClassifierHead() | EmbeddingHead():
                self.head = PooledHead(config.head, self.dtype)

    def __call__(
        self,
        input_ids: Int[Array, "B T"] | None = None,
        attention_mask: Int[Array, "B T"] | None = None,
        token_type_ids: Int[Array, "B T"] | None = None,
        position_ids: Int[Array, "B T"] | None = None,
        segment_ids: Int[Array, "B T"] | None = None,
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
    ) -> Output:
        """Run the encoder; an encoder-only model's output carries its head's result."""
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
        options = dict(grid=grid, dropout_rng=rngs[1], output_hidden_states=output_hidden_states)
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
    ) -> Output:
        """Run the decoder over a whole sequence, or over the positions that follow `cache`.

        With a cache, `attention_mask` speaks of the new positions and cross-attention reads the cache's memory.
        `with_head=False` leaves the logits out, which at most one position needs in decoding.
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
            memory=encoder_hidden_states,
            memory_segment_ids=memory_segments,
            cache=cache,
            dropout_rng=rngs[1],
            output_hidden_states=output_hidden_states,
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
    ) -> tuple[Float[Array, "B V"], Cache]:
        """Read a prompt, padded on the left, and start a cache of `capacity` positions.

        Returns:
            Logits of the token that follows the prompt, and the cache.
        """
        positions = jnp.maximum(jnp.cumsum(attention_mask, -1) - 1, 0)
        output = self.decode(
            input_ids,
            attention_mask,
            position_ids=positions,
            encoder_hidden_states=encoder_hidden_states,
            encoder_attention_mask=encoder_attention_mask,
            with_head=False,
        )
        memory: dict[str, Any] = {}
        if encoder_hidden_states is not None:
            memory["memory"] = self.decoder.memory_keys_values(encoder_hidden_states)
            memory["memory_segment_ids"] = encoder_attention_mask
        cache = Cache.start(output.keys_values, attention_mask, capacity, **memory)
        return self._logits(output.last_hidden_state[:, -1:])[:, 0], cache

    def step(self, token: Int[Array, " B"], cache: Cache) -> tuple[Float[Array, "B V"], Cache]:
        """Logits of the token that follows `token`, and the cache with `token` in it."""
        ids, seen = token[:, None], jnp.ones((token.shape[0], 1), jnp.int32)
        positions = cache.segment_ids.sum(-1, keepdims=True)
        output = self.decode(ids, position_ids=positions, cache=cache, with_head=False)
        return self._logits(output.last_hidden_state)[:, 0], cache.append(output.keys_values, seen)

    def _logits(self, x: Float[Array, "B T D"]) -> Float[Array, "B T V"]:
        shared = self.config.decoder_embedding is None or self.config.decoder_embedding.vocab_size is None
        return self.head(x, self.embedder.table() if shared else self.decoder_embedder.table())

    def _with_head(
        self, output: Output, attention_mask: Int[Array, "B T"] | None, input_ids: Int[Array, "B T"] | None
    ) -> Output:
        x = output.last_hidden_state
        match self.config.head:
            case None:
                return output
            case LanguageModelHead():
                return output.replace(logits=self._logits(x))
            case TokenHead():
                logits = self.head(x).astype(jnp.float32)
                return output.replace(logits=logits if self.config.head.num_classes else logits[..., 0])
            case ClassifierHead():
                length = None if self.config.encoder is None or self.config.decoder is None else x.shape[1]
                pooled = _pooled(self.config.head, attention_mask, input_ids, length)
                return output.replace(logits=self.head(x, pooled))
            case EmbeddingHead():
                return output.replace(pooler_output=self.head(x, attention_mask, input_ids))


def example_inputs(config: ModelConfig) -> dict[str, Array]:
    """The smallest inputs that a model of this configuration takes, for `init`."""
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
    scanned = model.clone(layers="scanned")
    return jax.eval_shape(scanned.init, jax.random.key(0), **example_inputs(model.config))["params"]


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
        return jnp.where(counted != 0, start + jnp.cumsum(counted != 0, -1) - 1, -1)
    return jnp.broadcast_to(start + jnp.arange(length, dtype=jnp.int32), (batch, length))


def _segments(attention_mask: Array | None, segment_ids: Array | None) -> tuple[Array, Array] | None:
    """Ids of queries and keys. A mask hides padded keys from every query, padded or not."""
    if segment_ids is not None:
        return segment_ids, segment_ids
    if attention_mask is not None:
        return jnp.ones_like(attention_mask), attention_mask
    return None
