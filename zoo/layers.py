"""The parts of a block: projections, norms, MLPs, experts, convolution, attention.

Every module takes its sub-config from `zoo.config` and a compute dtype. Parameters are float32; products run in the
compute dtype with float32 accumulation, norms and softmax in float32. Rotary positions are in `zoo.rotary`, how the
parts are wired into a block in `zoo.stack`, what makes vectors of inputs in `zoo.embeddings`.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import struct
from jax import lax
from jax.nn.initializers import normal, variance_scaling
from jaxtyping import Array, Float, Int

from zoo.config import (
    Activation,
    AttentionConfig,
    ConvolutionConfig,
    ExpertsConfig,
    GridBiasConfig,
    MlpConfig,
    NormConfig,
    PositionTerm,
)
from zoo.disentangled import disentangled_bias, distance_rows
from zoo.experts import Mixture
from zoo.kernels import DenseBias, attention, merge
from zoo.kernels.norm import normalise
from zoo.kernels.product import Kernel, accumulate
from zoo.rotary import Rotation

# With `checkpoint` they are made again for the backward pass: of GELU, JAX would keep three times its input.
ACTIVATIONS: dict[Activation, Callable[[Array], Array]] = {
    "gelu": jax.checkpoint(lambda x: jax.nn.gelu(x, approximate=False)),
    "gelu_tanh": jax.checkpoint(lambda x: jax.nn.gelu(x, approximate=True)),
    "quick_gelu": jax.checkpoint(lambda x: x * jax.nn.sigmoid(1.702 * x)),
    "relu": jax.nn.relu,
    "relu_squared": lambda x: jnp.square(jax.nn.relu(x)),
    "silu": jax.checkpoint(jax.nn.silu),
    "tanh": jnp.tanh,
}

# Outputs start at about the size of the inputs, whatever the width (LeCun et al. 1998).
_KERNEL_INIT = variance_scaling(1.0, "fan_in", "truncated_normal")


def dropout(x: Array, rate: float, rng: Array | None) -> Array:
    """Zero entries of `x` at `rate` and scale the rest up; the identity where `rng` is None (evaluation)."""
    if rng is None or rate == 0.0:
        return x
    keep = jax.random.bernoulli(rng, 1.0 - rate, x.shape)
    return jnp.where(keep, x / (1.0 - rate), 0).astype(x.dtype)


def kernel_of(
    module: nn.Module, init: Callable[[Array, tuple[int, ...]], Array], shape: tuple[int, ...], name: str = "kernel"
) -> Kernel:
    """The calling module's parameter `name`, or the dict that stands for it in 8 bits (`zoo.kernels.product`)."""
    if module.has_variable("params", name) and isinstance(found := module.get_variable("params", name), Mapping):
        return found
    return module.param(name, init, shape)


class Projection(nn.Module):
    """A linear map over the last `num_contracted` axes of its input, to axes `features`."""

    features: tuple[int, ...]
    dtype: Any
    bias: bool = False
    num_contracted: int = 1
    gain: float = 1.0
    """Size of the outputs at the start, that of the inputs being 1."""

    @nn.compact
    def __call__(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        """Map [..., *I] to [..., *features]."""
        inputs = x.shape[x.ndim - self.num_contracted :]

        def init(rng, shape):
            kernel = _KERNEL_INIT(rng, (math.prod(inputs), math.prod(self.features)))
            return self.gain * kernel.reshape(shape)

        kernel = kernel_of(self, init, (*inputs, *self.features))
        y = accumulate(x.astype(self.dtype), kernel, num_contracted=self.num_contracted)
        if self.bias:  # before rounding, so that its gradient is a sum in float32
            bias = self.param("bias", nn.initializers.zeros, self.features)
            y = y + lax.broadcast_to_rank(bias.astype(y.dtype), y.ndim)
        return y.astype(self.dtype)


class Norm(nn.Module):
    """Layer norm or RMS norm of the last axis, in float32, returned in the input's dtype."""

    config: NormConfig

    @nn.compact
    def __call__(self, x: Float[Array, "... D"]) -> Float[Array, "... D"]:
        """Normalise, scale and shift."""
        config, width = self.config, x.shape[-1]
        start = nn.initializers.zeros if config.unit_offset else nn.initializers.ones
        scale = self.param("scale", start, (width,)) if config.scale else None
        scale = scale + 1.0 if config.unit_offset and scale is not None else scale
        bias = self.param("bias", nn.initializers.zeros, (width,)) if config.bias else None
        return normalise(x, scale, bias, config.kind == "layer", config.epsilon)


class Mlp(nn.Module):
    """The feed-forward branch, gated or not (Vaswani et al. 2017, section 3.3; Shazeer 2020)."""

    config: MlpConfig
    dtype: Any

    @nn.compact
    def __call__(self, x: Float[Array, "... D"]) -> tuple[Float[Array, "... D"], Float[Array, ""]]:
        """Return the branch's output and the experts' balance loss, zero without experts."""
        config = self.config
        if config.experts is not None:
            return Experts(config, config.experts, self.dtype, name="experts")(x)
        hidden = Projection((config.hidden_size,), self.dtype, config.bias, name="up")(x)
        if config.gated:
            gate = Projection((config.hidden_size,), self.dtype, config.bias, name="gate")(x)
            hidden = gated(config, gate, hidden)
        else:
            hidden = ACTIVATIONS[config.activation](hidden)
        return Projection((x.shape[-1],), self.dtype, config.bias, name="down")(hidden), jnp.float32(0)


def gated(config: MlpConfig, gate: Float[Array, "... F"], up: Float[Array, "... F"]) -> Float[Array, "... F"]:
    """The product of a gated MLP's two maps."""
    if config.clamp is not None:
        gate, up = jnp.minimum(gate, config.clamp), jnp.clip(up, -config.clamp, config.clamp) + 1
    return ACTIVATIONS[config.activation](gate) * up


class Experts(nn.Module):
    """Mixture of expert MLPs: the router's and the experts' parameters; what is done with them is `zoo.experts`."""

    mlp: MlpConfig
    config: ExpertsConfig
    dtype: Any

    @nn.compact
    def __call__(self, x: Float[Array, "B T D"]) -> tuple[Float[Array, "B T D"], Float[Array, ""]]:
        """Return the weighted sum of the selected experts' outputs, and the load-balancing loss."""
        mlp, count, width, hidden = self.mlp, self.config.num_experts, x.shape[-1], self.mlp.hidden_size
        # The router decides in float32: a rounding error there sends a token to another expert.
        logits = Projection((count,), jnp.float32, self.config.router_bias, name="router")(x)
        shapes = {"up": (width, hidden), "gate": (width, hidden), "down": (hidden, width)}
        parameters: dict[str, Kernel] = {}
        for name in ("up", "gate", "down") if mlp.gated else ("up", "down"):
            init = variance_scaling(1.0, "fan_in", "truncated_normal", batch_axis=(0,))
            parameters[f"{name}_kernel"] = kernel_of(self, init, (count, *shapes[name]), f"{name}_kernel")
            if mlp.bias:
                zeros = nn.initializers.zeros
                parameters[f"{name}_bias"] = self.param(f"{name}_bias", zeros, (count, shapes[name][1]))

        def activate(up: Array, gate: Array | None) -> Array:
            return ACTIVATIONS[mlp.activation](up) if gate is None else gated(mlp, gate, up)

        return Mixture(config=self.config, hidden_size=hidden, activation=activate, dtype=self.dtype)(
            x, logits, parameters
        )


@struct.dataclass
class KeysValues:
    """Projected keys and values of one layer, or of all layers with a leading axis."""

    key: Float[Array, "*L B S K H"]
    value: Float[Array, "*L B S K H"]


@struct.dataclass
class Sight:
    """What a layer's queries may look at and how: arguments of `zoo.attention` that all layers share."""

    mask: Any
    """A mask object over the keys that come with the call."""
    bias: Any = None
    offset: Int[Array, ""] | int = 0
    """Position of the first query, and of the first new key."""
    cached_mask: Any = None
    """A mask object over the cached keys; read only with a cache."""
    distances: Float[Array, "R D"] | None = None
    """The table of disentangled attention."""
    hides_zeros: bool = struct.field(pytree_node=False, default=False)
    """Whether all that the masks hide is padding and room, which a cache holds zeros for."""


class Convolution(nn.Module):
    """A convolution of the embeddings within each segment, added to the first layer's states and normalised."""

    config: ConvolutionConfig
    norm: NormConfig
    dropout: float
    dtype: Any

    @nn.compact
    def __call__(
        self,
        embedded: Float[Array, "B T D"],
        states: Float[Array, "B T D"],
        segment_ids: tuple[Int[Array, "B T"], Int[Array, "B T"]] | None,
        dropout_rng: Array | None = None,
    ) -> Float[Array, "B T D"]:
        """Return the new states; neighbours that a query may not attend to count as zero."""
        length, half = embedded.shape[1], self.config.window // 2
        own, others = (jnp.ones(embedded.shape[:2], jnp.int32),) * 2 if segment_ids is None else segment_ids
        windows = []
        for start in range(self.config.window):
            neighbours = jnp.pad(embedded, ((0, 0), (half, half), (0, 0)))[:, start : start + length]
            ids = jnp.pad(others, ((0, 0), (half, half)), constant_values=-1)[:, start : start + length]
            windows.append(jnp.where((own == ids)[..., None], neighbours, 0))
        project = Projection(embedded.shape[-1:], self.dtype, bias=True, num_contracted=2, name="projection")
        mixed = dropout(project(jnp.stack(windows, -2)), self.dropout, dropout_rng)
        return Norm(self.norm, name="norm")(states + ACTIVATIONS[self.config.activation](mixed))


class Attention(nn.Module):
    """Queries, keys and values, the attention op, and the output projection: self- and cross-attention alike."""

    config: AttentionConfig
    width: int
    dtype: Any

    def setup(self):
        """Name the projections: query, key, value and output."""
        config = self.config

        def projection(slot: str, heads: int, gain: float = 1.0) -> Projection:
            return Projection((heads, config.head_size), self.dtype, slot in config.biases, gain=gain)

        # Where scores are not scaled down, queries start small instead (Raffel et al. 2020): softmax starts soft.
        unscaled = 1.0 if config.scale is None else config.scale * config.head_size**0.5
        self.query = projection("query", config.num_heads, 1 / max(1.0, unscaled))
        self.key = projection("key", config.kv_heads)
        self.value = projection("value", config.kv_heads)
        self.output = Projection((self.width,), self.dtype, "output" in config.biases, num_contracted=2)
        if config.qk_norm is not None:
            self.query_norm, self.key_norm = Norm(config.qk_norm), Norm(config.qk_norm)
        if config.disentangled is not None and not config.disentangled.shared:
            if "position_to_content" in config.disentangled.terms:
                self.position_query = projection("query", config.num_heads)
            if "content_to_position" in config.disentangled.terms:
                self.position_key = projection("key", config.num_heads)
        if config.sinks:
            self.sinks = self.param("sinks", nn.initializers.zeros, (config.num_heads,))

    def keys_values(self, x: Float[Array, "B S D"], rotation: Rotation | None = None) -> KeysValues:
        """Project `x` to keys and values; a decoder keeps them between steps."""
        key = self._positioned(self.key(x), "key", rotation)
        return KeysValues(key, self.value(x))

    def __call__(
        self,
        x: Float[Array, "B T D"],
        fresh: KeysValues,
        sight: Sight,
        *,
        rotation: Rotation | None = None,
        cached: KeysValues | None = None,
        depth: Int[Array, ""] | int | None = None,
        dropout_rng: Array | None = None,
    ) -> Float[Array, "B T D"]:
        """Attend from `x` to `fresh` keys and values and, while decoding, to `cached` ones; `depth` divides the scores.

        The cache is read, never written: the two parts are attended to apart and merged by their log-sum-exp, which
        is exact, so the stack can write the new entries of all layers at once, without copying the cache.
        """
        config = self.config
        query = self._positioned(self.query(x), "query", rotation)
        query = query if depth is None else query / jnp.asarray(depth, query.dtype)
        options: dict[str, Any] = dict(
            bias=self._bias(query, fresh.key, sight),
            scale=config.scale,
            softcap=config.softcap,
            q_offset=sight.offset,
            hidden_is_finite=sight.hides_zeros,
        )
        if dropout_rng is not None and config.dropout > 0:
            options.update(dropout_rng=dropout_rng, dropout_rate=config.dropout)
        sinks = self.sinks if config.sinks else None
        if cached is None:
            out = self.attend(query, fresh, mask=sight.mask, sinks=sinks, **options)
        else:
            options["return_lse"] = True
            positions = sight.offset + jnp.arange(fresh.key.shape[1])
            # The sink belongs to one softmax, so it joins one of the two parts.
            old = self.attend(query, cached, mask=sight.cached_mask, sinks=sinks, **options)
            new = self.attend(query, fresh, mask=sight.mask, kv_positions=positions, **options)
            out, _ = merge(old, new)
        return self.output(out)

    def attend(self, query: Float[Array, "B T N H"], keys_values: KeysValues, **options: Any) -> Any:
        """The attention op on what the heads compare; a method, so that `zoo.inspection` can see what passes."""
        return attention(query, keys_values.key, keys_values.value, **options)

    def _bias(self, query: Float[Array, "B T N H"], key: Float[Array, "B S K H"], sight: Sight) -> Any:
        """The stack's bias, or the layer's own where it depends on content."""
        config = self.config.disentangled
        if config is None:
            return sight.bias

        def distances(term: PositionTerm, side: str) -> Float[Array, "R N H"] | None:
            project = getattr(self, side if config.shared else f"position_{side}", None)
            return project(sight.distances) if term in config.terms and project is not None else None

        bias = disentangled_bias(
            query,
            key,
            distances("position_to_content", "query"),
            distances("content_to_position", "key"),
            distance_rows(config, query.shape[1], key.shape[1]),
        )
        return DenseBias(bias * (self.config.head_size**-0.5 if self.config.scale is None else self.config.scale))

    def _positioned(self, x: Float[Array, "B T N H"], side: str, rotation: Rotation | None) -> Float[Array, "B T N H"]:
        """Normalise and rotate queries or keys, as the config says."""
        if self.config.qk_norm is not None:
            norm = self.query_norm if side == "query" else self.key_norm
            if self.config.qk_norm_over == "projection":
                x = norm(x.reshape(*x.shape[:-2], -1)).reshape(x.shape)
            else:
                x = norm(x)
        return x if rotation is None else rotation(x)


def resample_grid(
    grid: Float[Array, "R C D"], size: tuple[int, int], method: Literal["linear", "cubic"]
) -> Float[Array, "rows columns D"]:
    """Interpolate a grid of vectors at the centres of another: no smoothing, borders repeated, as vision models do."""
    down, across = (_resampling(old, new, method) for old, new in zip(grid.shape[:2], size, strict=True))
    grid = grid.astype(jnp.float32)
    return jnp.einsum("yr,xc,rcd->yxd", down, across, grid, precision=lax.Precision.HIGHEST)


def _resampling(old: int, new: int, method: Literal["linear", "cubic"]) -> np.ndarray:
    """Weights [new, old] of one axis."""
    centres = (np.arange(new)[:, None] + 0.5) * old / new - 0.5
    taps = np.floor(centres).astype(int) + np.arange(-1, 3)
    distance = np.abs(centres - taps)
    if method == "linear":
        weights = np.maximum(1 - distance, 0)
    else:  # Keys (1981) with a = -0.75, as most image libraries have it; jax.image has -0.5
        near = 1.25 * distance**3 - 2.25 * distance**2 + 1
        far = -0.75 * (distance**3 - 5 * distance**2 + 8 * distance - 4)
        weights = np.where(distance <= 1, near, np.where(distance < 2, far, 0))
    matrix = np.zeros((new, old))
    np.add.at(matrix, (np.arange(new)[:, None], taps.clip(0, old - 1)), weights)
    return matrix.astype(np.float32)


class GridBias(nn.Module):
    """A bias for each pair of patches by their distance down and across, and for the class token (Bao et al. 2022)."""

    config: GridBiasConfig
    num_heads: int

    @nn.compact
    def __call__(self, grid: tuple[int, int]) -> DenseBias:
        """The bias [1, N, T, T] of an image of `grid` patches; the class token comes first."""
        config, (rows, columns) = self.config, grid
        sides = (2 * config.rows - 1, 2 * config.columns - 1)
        table = self.param("embedding", normal(0.02), (math.prod(sides) + 3, self.num_heads))
        distances, ends = table[:-3].reshape(*sides, -1), table[-3:]
        if grid != (config.rows, config.columns):
            distances = resample_grid(distances, (2 * rows - 1, 2 * columns - 1), "linear")
        table = jnp.concatenate([distances.reshape(-1, self.num_heads), ends.astype(distances.dtype)])
        return DenseBias(jnp.moveaxis(table[grid_distances(rows, columns)], -1, 0)[None])


def grid_distances(rows: int, columns: int) -> Int[Array, "T T"]:
    """Row of `GridBias`'s table for each query and key: patches in reading order after the class token."""
    count = (2 * rows - 1) * (2 * columns - 1)
    y, x = jnp.divmod(jnp.arange(rows * columns), columns)
    down, across = (place[:, None] - place[None] for place in (y, x))
    between = (down + rows - 1) * (2 * columns - 1) + across + columns - 1
    whole = jnp.full((rows * columns + 1,) * 2, count + 1)  # from a patch to the class token
    return whole.at[0].set(count).at[0, 0].set(count + 2).at[1:, 1:].set(between)
