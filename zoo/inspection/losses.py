"""A loss for a model that comes without a task: how well it does on the very inputs that are looked at.

A decoder is asked for the tokens that stand there, a masked language model for each token with a mask in its place
(pseudo-likelihood, Salazar et al. 2020), any other head for what the whole model answered. It is made to compare a
model with itself, a head taken out; it says nothing of how good the model is.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from zoo.bundle import Bundle
from zoo.config import LanguageModelHead
from zoo.dual import DualOutput

Loss = Callable[[Any], Float[Array, ""]]
"""Parameters to a scalar."""


def own_loss(bundle: Bundle, *, mask_id: int | None = None, **inputs: Any) -> tuple[Loss, str]:
    """A loss of the parameters on these inputs, and what it measures, for a reader.

    Args:
        bundle: any model.
        mask_id: of a masked language model.
        inputs: one row, without padding, as `Bundle.__call__` takes them.
    """
    given = bundle.prepare(**inputs)

    def apply(params: Any, **changed: Array) -> Any:
        return bundle.model.apply({"params": params}, **(given | changed))

    head = getattr(bundle.config, "head", None)
    generates = isinstance(head, LanguageModelHead)
    if generates and bundle.config.decoder is not None:
        ids = given["decoder_input_ids" if bundle.config.encoder is not None else "input_ids"]
        if ids.shape[1] > 1:
            return lambda params: _nats(apply(params).logits[:, :-1], ids[:, 1:]), "nats per token of this text"
    elif generates and mask_id is not None and "input_ids" in given:
        return _pseudo_loss(apply, given, mask_id), "nats per token of this text, each masked in turn"
    whole = jax.jit(lambda params: _answer(apply(params)))(bundle.params)
    if generates or getattr(head, "num_classes", 0) > 1:
        answer = whole.argmax(-1)
        return lambda params: _nats(_answer(apply(params)), answer), "nats of what the whole model answers"
    return lambda params: _turned(_answer(apply(params)), whole), "1 - cosine with the whole model's vector"


def _pseudo_loss(apply: Callable[..., Any], given: dict[str, Array], mask_id: int) -> Loss:
    ids = given["input_ids"][0]
    places = jnp.arange(len(ids))
    masked = jnp.where(places[:, None] == places[None], mask_id, ids)
    rows = {name: jnp.repeat(value[:1], len(ids), 0) for name, value in given.items()} | {"input_ids": masked}
    return lambda params: _nats(apply(params, **rows).logits[places, places], ids)


def _nats(logits: Float[Array, "*R V"], ids: Array) -> Float[Array, ""]:
    return -jnp.take_along_axis(jax.nn.log_softmax(logits), ids[..., None], -1).mean()


def _turned(vectors: Float[Array, "*R D"], others: Float[Array, "*R D"]) -> Float[Array, ""]:
    length = jnp.linalg.norm(vectors, axis=-1) * jnp.linalg.norm(others, axis=-1)
    return 1 - ((vectors * others).sum(-1) / jnp.maximum(length, 1e-12)).mean()


def _answer(output: Any) -> Array:
    """What a model gives: logits, else a vector for each text or picture, else its last states."""
    if isinstance(output, DualOutput):
        return jnp.concatenate([side for side in (output.text_embeds, output.image_embeds) if side is not None])
    return next(x for x in (output.logits, output.pooler_output, output.last_hidden_state) if x is not None)
