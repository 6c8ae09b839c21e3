"""The logit lens (nostalgebraist 2020): what the model would answer if it stopped after each layer.

The states after a layer go through the stack's final norm, where it has one, and through the model's own head, by an
interceptor that returns them in place of the last stack's result. So it works for whatever head the model has: next
tokens of a decoder, tokens behind masks, classes of a text or a picture. States in the middle were never trained to be
read so; what the lens shows early on is a hint, and in its last row the model's answer itself.
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import lax
from jaxtyping import Array, Float, Int

from zoo.bundle import Bundle
from zoo.layers import Norm
from zoo.stack import Stack, Trace
from zoo.transformer import Transformer


@dataclass(frozen=True, kw_only=True)
class Lens:
    """The likeliest answers after the embeddings (row 0) and after each layer; [L + 1, B, T, k], or without T."""

    ids: Int[np.ndarray, "L+1 B *T k"]
    """Token ids, or classes; likeliest first."""
    probabilities: Float[np.ndarray, "L+1 B *T k"]


def logit_lens(bundle: Bundle, *, num_shown: int = 5, **inputs: Any) -> Lens:
    """The `num_shown` likeliest answers after each layer; inputs as `Bundle.__call__` takes them.

    Raises:
        ValueError: a model without logits.
    """

    def likeliest(logits):
        probabilities, ids = lax.top_k(jax.nn.softmax(logits), min(num_shown, logits.shape[-1]))
        return ids.astype(jnp.int32), probabilities

    ids, probabilities = _after_each_layer(bundle, inputs, likeliest)
    return Lens(ids=np.asarray(ids), probabilities=np.asarray(probabilities))


def layer_logits(bundle: Bundle, **inputs: Any) -> Float[np.ndarray, "L+1 B ..."]:
    """All logits after the embeddings and after each layer: L + 1 times the size of the model's own.

    Raises:
        ValueError: a model without logits.
    """
    return np.asarray(_after_each_layer(bundle, inputs, lambda logits: logits))


def _after_each_layer(bundle: Bundle, inputs: dict[str, Any], summarise: Any) -> Any:
    model = bundle.model
    if not isinstance(model, Transformer) or bundle.config.head is None:
        raise ValueError("this model has no head with logits to read its layers by; load it with another head")

    def forward(params, inputs):
        output = model.apply({"params": params}, **inputs, output_hidden_states=True)
        if output.logits is None:
            raise ValueError("this model's head gives vectors and no logits; load it with another head")

        def read(states):
            with nn.intercept_methods(_returning(states, "encoder" if bundle.config.decoder is None else "decoder")):
                return summarise(model.apply({"params": params}, **inputs).logits)

        return lax.map(read, jnp.stack(output.hidden_states))

    return jax.jit(forward)(bundle.params, bundle.prepare(**inputs))


def _returning(states: Float[Array, "B T D"], name: str) -> Any:
    """An interceptor that puts `states` in the place of what the layers of one stack make."""

    def see(proceed, arguments, options, context):
        stack = context.module
        if not (isinstance(stack, Stack) and stack.name == name and context.method_name == "__call__"):
            return proceed(*arguments, **options)
        normed = states
        if stack.config.final_norm:
            parameters = stack.variables["params"].get("final_norm", {})  # a norm may have none
            normed = Norm(stack.config.norm, parent=None).apply({"params": parameters}, states)
        return normed, Trace(None, jnp.float32(0), None)

    return see
