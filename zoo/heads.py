"""Heads: hidden states to logits over a vocabulary, labels of positions, classes of sequences, or one vector each."""

from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from zoo.config import (
    AttentionPoolConfig,
    ClassifierHead,
    EmbeddingHead,
    LanguageModelHead,
    NormConfig,
    Pooling,
    TokenHead,
)
from zoo.kernels import Full
from zoo.kernels.product import Kernel, accumulate, input_sizes, output_kernel
from zoo.layers import ACTIVATIONS, Attention, Mlp, Norm, Projection, Sight, kernel_of


class LanguageModelLogits(nn.Module):
    """Logits over the vocabulary: a product with the token table, or with a kernel of its own."""

    config: LanguageModelHead
    vocab_size: int
    norm: Any
    dtype: Any

    @nn.compact
    def __call__(self, x: Float[Array, "B T D"], table: Kernel) -> Float[Array, "B T V"]:
        """Float32 logits; `table` [V, E] is the embedder's."""
        config = self.config
        if config.transform is not None:
            width = input_sizes(output_kernel(table))
            x = Projection(width, self.dtype, config.transform_bias, name="transform")(x)
            x = Norm(self.norm, name="norm")(ACTIVATIONS[config.transform](x))
        x = (x * config.scale).astype(self.dtype)
        if config.tied:
            kernel = output_kernel(table)
        else:
            start = nn.initializers.variance_scaling(1.0, "fan_in", "truncated_normal")
            kernel = kernel_of(self, start, (x.shape[-1], self.vocab_size))
        logits = accumulate(x, kernel)
        if config.bias:
            bias = self.param("bias", nn.initializers.zeros, (self.vocab_size,))
            logits = logits + lax.broadcast_to_rank(bias.astype(logits.dtype), logits.ndim)
        return logits if config.softcap is None else config.softcap * jnp.tanh(logits / config.softcap)


class TransformedLabels(nn.Module):
    """Logits over labels at every position, after what `TokenHead` has between them and the hidden states."""

    config: TokenHead
    norm: NormConfig
    dtype: Any

    @nn.compact
    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T O"]:
        """Transform and project."""
        config = self.config
        if config.norm is not None:
            x = Norm(config.norm, name="input_norm")(x)
        if config.transform is not None:
            x = Projection((x.shape[-1],), self.dtype, config.transform_bias, name="transform")(x)
            x = ACTIVATIONS[config.transform](x)
            if config.transform_norm:
                x = Norm(self.norm, name="norm")(x)
        return Projection((config.num_classes or 1,), self.dtype, bias=True, name="logits")(x)


class PooledHead(nn.Module):
    """One vector a sequence, then class logits or an embedding."""

    config: ClassifierHead | EmbeddingHead
    dtype: Any

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B T D"],
        mask: Int[Array, "B T"] | Bool[Array, "B T"] | None,
        ids: Int[Array, "B T"] | None = None,
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
        if isinstance(config, EmbeddingHead) and config.also_pooled:
            pooled = jnp.concatenate([pooled, *(pool(x, mask, how) for how in config.also_pooled)], -1)
        if config.norm is not None:
            pooled = Norm(config.norm, name="norm")(pooled)
        if isinstance(config, ClassifierHead):
            if config.projection is not None:
                pooled = Projection((config.projection,), self.dtype, bias=True, name="projection")(pooled)
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
        for index, inner in enumerate(config.inner):
            pooled = Projection((inner.width,), self.dtype, inner.bias, name=f"inner_{index}")(pooled)
            pooled = pooled if inner.activation is None else ACTIVATIONS[inner.activation](pooled)
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


def pool(
    x: Float[Array, "B T D"], mask: Int[Array, "B T"] | Bool[Array, "B T"] | None, how: Pooling
) -> Float[Array, "B D"]:
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
    mask = jnp.ones(x.shape[:2], jnp.int32) if mask is None else mask.astype(bool).astype(jnp.int32)
    if how == "last":
        last = jnp.max(mask * jnp.arange(x.shape[1])[None], axis=1)
        return jnp.take_along_axis(x, last[:, None, None], axis=1)[:, 0]
    if how == "max":
        return jnp.where(mask[..., None] != 0, x, -1e9).max(1).astype(x.dtype)
    weights = mask[..., None].astype(jnp.float32)
    if how == "weighted_mean":
        weights = weights * jnp.arange(1, x.shape[1] + 1, dtype=jnp.float32)[None, :, None]
    length = jnp.maximum(weights.sum(1), 1e-9)
    mean = (x.astype(jnp.float32) * weights).sum(1) / (jnp.sqrt(length) if how == "mean_root_length" else length)
    return mean.astype(x.dtype)
