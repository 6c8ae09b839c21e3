"""Block and Stack: the layers of a transformer, run scanned or unrolled over the same parameters; the decoding cache.

Parameters are stacked on a leading layer axis (`decoder/attention/query/kernel` is [L, D, N, H]). A block is one
screen; its parts are in `zoo.layers`.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import struct
from jax import lax
from jax.tree_util import DictKey
from jaxtyping import Array, Float, Int

from zoo.config import AlibiConfig, GridBiasConfig, RelativeBiasConfig, Span, StackConfig
from zoo.embeddings import TokenEmbedding
from zoo.kernels import ALiBi, Causal, Chunked, Full, Lengths, RelativeBias, Segments, Window
from zoo.kernels.bias import alibi_slopes
from zoo.kernels.order import zero_after
from zoo.kernels.product import layer_kernels
from zoo.layers import Attention, Convolution, GridBias, KeysValues, Mlp, Norm, Sight, dropout
from zoo.remat import Remat, name_branch, rematerialise
from zoo.rotary import Rotation

Layers: TypeAlias = Literal["scanned", "unrolled"]
"""Scanned layers are compiled once, and each copies its parameters out of those of all; unrolled ones, one by one."""


@struct.dataclass
class Cache:
    """What decoding keeps between steps. Entries at and past `length` are not yet written."""

    layers: KeysValues
    """Keys and values of the decoder's self-attention, [L, B, S, K, H]; or apart, as `split` makes them."""
    segment_ids: Int[Array, "B S"]
    """1 where a cached key may be seen, 0 for padding in the prompt."""
    length: Int[Array, ""]
    """Entries written so far."""
    memory: KeysValues | None = None
    """Keys and values of cross-attention, [L, B, S, K, H]; or apart."""
    memory_segment_ids: Int[Array, "B S"] | None = None

    def append(self, fresh: KeysValues, segment_ids: Int[Array, "B T"], last: Float[Array, "B T D"]) -> "Cache":
        """Write the keys and values [L, B, T, K, H] of T new positions, all layers at once; `last` are their states.

        Apart, a layer's are written in place where XLA sees that all who read them are done: after the last states.
        """
        apart = self._is_apart
        place = self.length + zero_after(last) if apart else self.length

        def write(old, new):
            return lax.dynamic_update_slice_in_dim(old, new.astype(old.dtype), place, 1 if apart else 2)

        return self.replace(
            layers=jax.tree.map(write, self.layers, _apart(fresh) if apart else fresh),
            segment_ids=lax.dynamic_update_slice_in_dim(self.segment_ids, segment_ids, place, 1),
            length=self.length + segment_ids.shape[1],
        )

    def select(self, rows: Int[Array, " R"]) -> "Cache":
        """These rows of the batch, in this order. The memory stays: rows of one input lie together and share it."""
        apart = self._is_apart
        layers = jax.tree.map(lambda leaf: leaf[rows] if apart else leaf[:, rows], self.layers)
        return self.replace(layers=layers, segment_ids=self.segment_ids[rows])

    def split(self) -> "Cache":
        """Each layer's keys and values [B, S, K, H] as arrays of their own, which unrolled layers read uncopied."""
        return self.replace(layers=_apart(self.layers), memory=_apart(self.memory))

    @property
    def _is_apart(self) -> bool:
        return isinstance(self.layers.key, tuple)

    @classmethod
    def start(cls, fresh: KeysValues, segment_ids: Int[Array, "B T"], capacity: int, **memory: Any) -> "Cache":
        """A cache of `capacity` positions that begins with a prompt's T; zeros where there is padding."""
        room = capacity - segment_ids.shape[1]
        fresh = _without_padding(fresh, segment_ids)
        if memory.get("memory_segment_ids") is not None:
            memory["memory"] = _without_padding(memory["memory"], memory["memory_segment_ids"])
        layers = jax.tree.map(lambda leaf: jnp.pad(leaf, ((0, 0), (0, 0), (0, room), (0, 0), (0, 0))), fresh)
        length = jnp.int32(segment_ids.shape[1])
        return cls(layers, jnp.pad(segment_ids, ((0, 0), (0, room))), length, **memory)


def _without_padding(keys_values: KeysValues, segment_ids: Int[Array, "B T"]) -> KeysValues:
    """Keys and values [L, B, T, K, H] with zeros where the id is 0."""
    padding = (segment_ids == 0)[None, :, :, None, None]
    return jax.tree.map(lambda leaf: jnp.where(padding, jnp.zeros((), leaf.dtype), leaf), keys_values)


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
            depth = index + 1 if config.scores_over_depth else None
            return attention(x, fresh, sight, rotation=rotation, cached=cached, depth=depth, dropout_rng=rngs[0])

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
        y = self._normed(name_branch(y), name, "output")
        if self.config.layer_scale is not None:
            start = nn.initializers.constant(self.config.layer_scale)
            scale = self.param(f"{name}_scale", start, (self.config.width,)).astype(y.dtype)
            y = y * scale[None, None]
        return dropout(y, self.config.dropout, rng)

    def _normed(self, x: Array, name: str, slot: Literal["input", "output", "residual"]) -> Array:
        if slot not in self.config.norm_slots:
            return x
        return Norm(self.config.norm, name=f"{name}_{slot}_norm")(x)


_SHARED = ("final_norm", "position_bias", "distances", "distances_norm", "convolution")
"""Parameters of a stack that are no layer's."""


class Stack(nn.Module):
    """Blocks over stacked parameters, run scanned over whole pattern periods or unrolled, with the same results."""

    config: StackConfig
    dtype: Any
    layers: Layers
    remat: Remat

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B T D"],
        positions: Int[Array, "B T"],
        segment_ids: tuple[Int[Array, "B T"], Int[Array, "B T"]] | None,
        *,
        memory: Float[Array, "B S M"] | None = None,
        memory_segment_ids: tuple[Int[Array, "B T"], Int[Array, "B S"]] | None = None,
        cache: Cache | None = None,
        grid: tuple[int, int] | None = None,
        dropout_rng: Array | None = None,
        output_hidden_states: bool = False,
        layers: Layers | None = None,
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
            layers: how this call runs them; None is as the stack does.

        Returns:
            The last states, and what the layers did on the way.
        """
        bias, distances = self._position_bias(grid), self._distances(dropout_rng)
        own_bias = isinstance(self.config.position_bias, GridBiasConfig) and self.config.position_bias.per_layer
        around = Surroundings(
            sights={span: self._sight(span, segment_ids, bias, distances, cache) for span in ("global", "local")},
            rotations={span: self._rotation(span, positions) for span in ("global", "local")},
            memory=memory,
            memory_sight=Sight(
                Segments(*memory_segment_ids) if memory_segment_ids else Full(), hides_zeros=cache is not None
            ),
            grid=grid if own_bias else None,
        )
        parameters = self._parameters(x[:1] if own_bias else x[:1, :1], around)
        mix = self._convolution(x, segment_ids)
        run = self._scan if (layers or self.layers) == "scanned" else self._unroll
        last, (fresh, balance, states) = self._run(
            run, parameters, x, around, mix, cache, dropout_rng, output_hidden_states
        )
        if self.config.final_norm:
            last = Norm(self.config.norm, name="final_norm")(last)
        states = (x, *jnp.unstack(states)) if output_hidden_states else None
        return last, Trace(fresh, balance.sum(), states)

    def memory_keys_values(self, memory: Float[Array, "B S D"]) -> KeysValues:
        """Keys and values of every layer's cross-attention, [L, B, S, K, H], made once a sequence."""
        config = self.config
        attention = Attention(config.cross_attention, config.width, self.dtype, parent=None)
        parameters = self.variables["params"]["cross_attention"]
        stacked = jax.vmap(lambda layer: attention.apply({"params": layer}, memory, method="keys_values"))(parameters)
        repeats = config.num_layers // config.unique_layers
        return jax.tree.map(lambda leaf: jnp.repeat(leaf, repeats, axis=0), stacked)

    def _block(self, span: Span) -> Block:
        return Block(self.config, span, self.dtype, parent=None)

    def _parameters(self, x: Array, around: Surroundings) -> dict:
        """The blocks' parameters, each with a leading axis of unique layers."""
        if not self.is_initializing():
            return {name: leaf for name, leaf in self.variables["params"].items() if name not in _SHARED}
        block = self._block(self.config.pattern[0])
        memory = None if around.memory is None else around.memory[:1, :1]
        sight, rotation = Sight(Full()), around.rotations[self.config.pattern[0]]
        sight = sight.replace(distances=around.sights[block.span].distances)
        if rotation is not None:
            rotation = rotation.replace(cosine=rotation.cosine[:1, :1], sine=rotation.sine[:1, :1])
        one = Surroundings({block.span: sight}, {block.span: rotation}, memory, sight, around.grid)
        # Jitted, so that it is traced once for all names.
        make = jax.jit(lambda rng: block.init(rng, x, one)["params"])
        names = jax.eval_shape(make, jax.random.key(0))

        def draw(rng, name):
            keys = jax.random.split(rng, self.config.unique_layers)
            return lax.map(lambda key: make(key)[name], keys)

        # One call a name: under jit, what a name does not need is dropped.
        return {name: self.param(name, draw, name) for name in names}

    def _run(
        self,
        run: Callable[..., Any],
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

        layer = rematerialise(layer, self.remat, static_argnums=(5,))

        unique, period = config.unique_layers, len(config.pattern)
        caches = (None, None) if cache is None else (cache.layers, cache.memory)
        indices = jnp.arange(config.num_layers) * unique // config.num_layers
        return run(layer, x, parameters, indices, caches, period)

    def _unroll(self, layer, x, parameters, indices, caches, period):
        # `unstack` because its gradient is one concatenation, where indexing's is a padded copy a layer.
        per_layer = _layers_of(_cut_kernels(parameters))
        repeats = self.config.num_layers // self.config.unique_layers
        outputs = []
        nothing = [None] * self.config.num_layers
        cached, memory = (nothing if part is None else _layers_of(part) for part in caches)
        for index in range(self.config.num_layers):
            span = self.config.pattern[index % period]
            x, output = layer(x, per_layer[index // repeats], index, cached[index], memory[index], span)
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
        if period == 1:
            # No axis of a period: XLA for CPUs would copy all parameters before the loop.
            return lax.scan(lambda x, inputs: one(x, inputs, pattern[0]), x, inputs)
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
        # Of the tokens before, a window hides some; and of several new ones, the later are hidden from the earlier.
        hides_zeros = (span == "global" or local is None) and seen.q_ids.shape[1] == 1
        return Sight(fresh, bias, cache.length, mask & seen & Lengths(kv=cache.length), hides_zeros=hides_zeros)

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


def fast_layers() -> Layers:
    """Unrolled on CPU, where scanning cost 10 to 40 % forward and 2x in bfloat16 training; scanned elsewhere."""
    return "unrolled" if jax.default_backend() == "cpu" else "scanned"


def split_layers(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """A stack's parameters with a tuple of arrays, one a layer, in the place of each array that all layers share.

    Outside of `jit`, on one CPU, they are views of it where they are aligned: neither a copy nor a program is made.
    """
    return {name: part if name in _SHARED else _apart(part) for name, part in parameters.items()}


def _apart(tree: Any) -> Any:
    """The tree with a tuple of arrays, one a layer, in the place of each array with a leading layer axis."""
    return jax.tree.map(lambda leaf: tuple(_rows(leaf)), tree)


def _rows(leaf: Array) -> Iterable[Array]:
    concrete = isinstance(leaf, jax.Array) and not isinstance(leaf, jax.core.Tracer)
    if not concrete or len(leaf.devices()) > 1 or jax.default_backend() != "cpu":
        return jnp.unstack(leaf)
    (device,) = leaf.devices()
    return (jax.device_put(row, device) for row in np.asarray(leaf))


def _cut_kernels(parameters: Any) -> Any:
    """A stack's parameters with a tuple of kernels, one a layer, in the place of each stack of them that is whole."""

    def cut(path, leaf):
        return tuple(layer_kernels(leaf)) if path[-1] == DictKey("kernel") and not _is_split(leaf) else leaf

    return jax.tree_util.tree_map_with_path(cut, parameters, is_leaf=_is_split)


def _is_split(leaf: Any) -> bool:
    return isinstance(leaf, tuple)


def _layers_of(tree: Any) -> list:
    """One tree a layer from arrays of all layers, split or not."""
    leaves, structure = jax.tree.flatten(tree, is_leaf=_is_split)
    leaves = [leaf if _is_split(leaf) else jnp.unstack(leaf) for leaf in leaves]
    return [jax.tree.unflatten(structure, layer) for layer in zip(*leaves, strict=True)]
