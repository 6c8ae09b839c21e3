"""Values taken out of a forward pass: queries, keys, values, scores, weights and context vectors of every head.

The model is traced once more, unrolled, with an interceptor (`flax.linen.intercept_methods`) around its attention. The
interceptor hands on what it gets and returns what comes back, so the model computes what it always does; beside it, the
scores and the weights that the fused op never keeps are made densely, from the same arguments, by the kernels' own
reference. They take B N T S numbers a layer: `inspect` refuses what would not fit. A recurrent model returns its
alignment by itself.

Left out: attention over a decoding cache (inspect the whole sequence instead), and dropout.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float

from zoo.bundle import Bundle
from zoo.config import ImageTokenizerConfig, RecurrentConfig
from zoo.kernels.attention import prepare
from zoo.kernels.call import LOWEST
from zoo.kernels.dense import masked_logits, softmax
from zoo.kernels.masks import Full
from zoo.layers import Attention
from zoo.recurrent import Recurrent
from zoo.stack import Stack

MAX_WEIGHTS = 2**28
"""Weights that `inspect` takes out at the most, of all layers together: a gibibyte, and the scores are another."""


@dataclass(frozen=True, kw_only=True)
class Attended:
    """What the attention of one kind did in all layers of a stack, float32. None: what this attention does not have.

    Keys and values are those of K heads; query head n reads key head n // (N / K). Queries and keys are as they are
    compared: normalised, rotated.
    """

    weights: Float[np.ndarray, "L B N T S"]
    """What each query takes of each key. Rows sum to 1; to less where a sink takes the rest; to 0 if all is masked."""
    scores: Float[np.ndarray, "L B N T S"] | None = None
    """What the softmax is taken of: scaled products, with bias and soft cap; -inf where a key is masked."""
    query: Float[np.ndarray, "L B T N H"] | None = None
    key: Float[np.ndarray, "L B S K H"] | None = None
    value: Float[np.ndarray, "L B S K Hv"] | None = None
    context: Float[np.ndarray, "L B T N Hv"] | None = None
    """What the op returned: each head's weighted sum of values, before the output projection."""

    def __post_init__(self):
        if self.weights.ndim != 5:
            raise ValueError(
                f"weights have shape {self.weights.shape}; give [layers, batch, heads, queries, keys]: alignments "
                "[B, T, S] of one layer and one head are Attended.of_alignment(weights)"
            )

    @classmethod
    def of_alignment(cls, weights: Float[Any, "B T S"]) -> "Attended":
        """Weights that are no dot product's, such as the additive attention's of a recurrent decoder."""
        return cls(weights=np.asarray(weights, np.float32)[None, :, None])

    @property
    def num_layers(self) -> int:
        """L."""
        return self.weights.shape[0]

    @property
    def num_heads(self) -> int:
        """N."""
        return self.weights.shape[2]


@dataclass(frozen=True, kw_only=True)
class Inspection:
    """What one forward pass did, as NumPy arrays."""

    attentions: Mapping[str, Attended]
    """By the path of their parameters: "encoder/attention", "decoder/attention", "decoder/cross_attention", of dual
    encoders "text/encoder/attention", and of pooling heads "head/pool/attention". A recurrent decoder's alone is
    "decoder/alignment", whatever layer makes it."""
    hidden_states: Mapping[str, Float[np.ndarray, "L+1 B T D"]]
    """Of each stack ("encoder", "decoder"): the embeddings, and what each layer returned, before the final norm. None
    of recurrent models, whose layers differ in width: the output has them."""
    output: Any
    """The model's own output, a `zoo.transformer.Output` or a `zoo.dual.DualOutput` of NumPy arrays."""


def inspect(bundle: Bundle, **inputs: Any) -> Inspection:
    """Run a model and take out what its attention did.

    Args:
        bundle: what `zoo.load` gives for a run or a checkpoint; or `Bundle(model=…, params=…, config=…)`.
        inputs: as `Bundle.__call__` takes them.

    Raises:
        ValueError: a model without attention, an id outside the vocabulary, or more weights than `MAX_WEIGHTS`.
    """
    require_attention(bundle.config)
    if isinstance(bundle.model, Recurrent):
        output = jax.tree.map(_to_numpy, bundle(**inputs, output_hidden_states=True))
        alignment = Attended.of_alignment(output.alignment)
        return Inspection(attentions={"decoder/alignment": alignment}, hidden_states={}, output=output)
    # Unrolled: what a scan's body makes cannot leave it. The parameters are the same, and so are the results.
    model = bundle.model.clone(layers="unrolled", remat="none")

    order: list[str] = []

    def forward(params, inputs):
        with _recording() as recorder:
            output = model.apply({"params": params}, **inputs, output_hidden_states=True)
        output = output.replace(keys_values=None) if hasattr(output, "keys_values") else output
        order[:] = recorder.attentions  # JAX sorts what it returns
        return output, recorder.attentions, recorder.states

    arguments = bundle.params, bundle.prepare(**inputs)
    _check_size(jax.eval_shape(forward, *arguments)[1])
    output, attentions, states = jax.tree.map(_to_numpy, jax.jit(forward)(*arguments))
    return Inspection(
        attentions={path: _stacked(attentions[path]) for path in order},
        hidden_states={path: np.stack(layers) for path, layers in states.items()},
        output=output,
    )


def require_attention(config: Any) -> None:
    """ValueError for a model that has none, before anything compiles."""
    if isinstance(config, ImageTokenizerConfig):
        raise ValueError("an image tokenizer has no attention to look at; inspect a run that draws with it")
    if isinstance(config, RecurrentConfig) and config.attention is None:
        raise ValueError(
            "this recurrent model has no attention to look at: its decoder begins with the encoder's last states, and "
            "they are all that it knows of the source; train one with --model.attention additive"
        )


def attention_weights(
    query: Float[Array, "B T N H"],
    key: Float[Array, "B S K H"],
    value: Float[Array, "B S K Hv"],
    *,
    mask: Any = Full(),  # noqa: B008  (frozen and without fields)
    bias: Any = None,
    sinks: Float[Array, " N"] | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    q_offset: Any = 0,
    kv_positions: Any = None,
    hidden_is_finite: bool = False,
) -> tuple[Float[Array, "B N T S"], Float[Array, "B N T S"]]:
    """Scores and weights of a call of `zoo.attention` with these arguments, whose output is weights times values."""
    call, _ = prepare(
        query, key, value, mask, bias, sinks, scale, softcap, q_offset, kv_positions, None, 0.0, hidden_is_finite
    )
    keys = jnp.repeat(key, query.shape[2] // key.shape[2], axis=2)
    products = jnp.einsum("btnh,bsnh->bnts", query, keys, preferred_element_type=call.accumulator)
    scores = masked_logits(products, call)
    weights, _ = softmax(scores, call)
    return jnp.where(scores <= LOWEST, -jnp.inf, scores), weights


class _recording:
    """A context in which the attention of every module that is applied is recorded, layer by layer."""

    def __init__(self):
        self.attentions: dict[str, list[Any]] = {}
        self.states: dict[str, tuple[Array, ...]] = {}
        self._stack: str | None = None
        self._interception = nn.intercept_methods(self._see)

    def __enter__(self) -> "_recording":
        self._interception.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._interception.__exit__(*error)

    def _see(self, proceed, arguments, options, context):
        module, method = context.module, context.method_name
        if isinstance(module, Stack) and method == "__call__":
            # Blocks are applied apart and know no path: the stack's own stands before theirs.
            self._stack = "/".join(module.path)
            last, trace = proceed(*arguments, **options)
            self.states[self._stack], self._stack = trace.hidden_states, None
            return last, trace
        out = proceed(*arguments, **options)
        if isinstance(module, Attention) and method == "attend":
            path = "/".join(module.path if self._stack is None else (self._stack, *module.path))
            query, keys_values = arguments
            scores, weights = attention_weights(query, keys_values.key, keys_values.value, **options)
            seen = dict(query=query, key=keys_values.key, value=keys_values.value)
            self.attentions.setdefault(path, []).append(seen | dict(scores=scores, weights=weights, context=out))
        return out


def _stacked(layers: list[dict[str, np.ndarray]]) -> Attended:
    return Attended(**{name: np.stack([layer[name] for layer in layers]) for name in layers[0]})


def _to_numpy(leaf: Any) -> np.ndarray:
    leaf = np.asarray(leaf)
    return leaf if leaf.dtype.kind in "iub" else leaf.astype(np.float32)


def _check_size(attentions: dict[str, list[dict[str, Any]]]) -> None:
    count = sum(math.prod(layer["weights"].shape) for layers in attentions.values() for layer in layers)
    if count > MAX_WEIGHTS:
        raise ValueError(
            f"these inputs have {count:,} attention weights in all layers, and inspection takes out {MAX_WEIGHTS:,} at "
            "the most; give a shorter text or fewer rows"
        )


def of_row(seen: Attended, row: int) -> Attended:
    """The same of one row of the batch, which stays as an axis of length one."""
    arrays = {name: value for name, value in vars(seen).items() if value is not None}
    return replace(seen, **{name: value[:, row : row + 1] for name, value in arrays.items()})
