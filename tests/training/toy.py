"""A language model and a task small enough to compile in a second, with the real parameter names."""

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

VOCAB, WIDTH, HEADS, LAYERS, LENGTH = 16, 16, 4, 2, 12


@flax.struct.dataclass
class Output:
    logits: jax.Array


class Projection(nn.Module):
    shape: tuple
    axes: int = 1

    @nn.compact
    def __call__(self, x):
        kernel = self.param("kernel", nn.initializers.normal(0.2), self.shape)
        return jnp.tensordot(x, kernel, self.axes)


class Attention(nn.Module):
    @nn.compact
    def __call__(self, x):
        size = WIDTH // HEADS
        q, k, v = (Projection((WIDTH, HEADS, size), name=name)(x) for name in ("query", "key", "value"))
        scores = jnp.einsum("btnh,bsnh->bnts", q, k) / size**0.5
        length = x.shape[1]
        causal = jnp.arange(length)[:, None] >= jnp.arange(length)[None]
        weights = jax.nn.softmax(jnp.where(causal, scores, -1e9))
        mixed = jnp.einsum("bnts,bsnh->btnh", weights, v)
        return Projection((HEADS, size, WIDTH), axes=2, name="output")(mixed)


class Mlp(nn.Module):
    @nn.compact
    def __call__(self, x):
        hidden = jax.nn.gelu(Projection((WIDTH, 4 * WIDTH), name="up")(x))
        return Projection((4 * WIDTH, WIDTH), name="down")(hidden)


class Layer(nn.Module):
    dropout: float

    @nn.compact
    def __call__(self, x, rng):
        x = x + Attention(name="attention")(nn.RMSNorm(name="attention_norm")(x))
        hidden = Mlp(name="mlp")(nn.RMSNorm(name="mlp_norm")(x))
        if rng is not None and self.dropout:
            keep = jax.random.bernoulli(jax.random.fold_in(rng, 7), 1 - self.dropout, hidden.shape)
            hidden = hidden * keep / (1 - self.dropout)
        return x + hidden, None


class Embedder(nn.Module):
    @nn.compact
    def __call__(self, ids):
        return nn.Embed(VOCAB, WIDTH, name="token")(ids)


class Decoder(nn.Module):
    dropout: float

    @nn.compact
    def __call__(self, x, rng):
        stack = nn.scan(
            Layer,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=nn.broadcast,
            length=LAYERS,
        )
        return stack(self.dropout, name="layers")(x, rng)[0]


class Toy(nn.Module):
    dropout: float = 0.0

    @nn.compact
    def __call__(self, input_ids, dropout_rng=None):
        x = Embedder(name="embedder")(input_ids)
        x = Decoder(self.dropout, name="decoder")(x, dropout_rng)
        x = nn.RMSNorm(name="final_norm")(x)
        return Output(logits=Projection((WIDTH, VOCAB), name="head")(x))


class Batches:
    """Endless batches computed from their index alone; the state is the index."""

    def __init__(self, batch_size: int, seed: int):
        self.batch_size, self.seed, self.index = batch_size, seed, 0

    def __iter__(self):
        return self

    def __next__(self):
        batch = make_batch(self.batch_size, (self.seed, self.index))
        self.index += 1
        return batch

    def get_state(self):
        return {"index": self.index}

    def set_state(self, state):
        self.index = state["index"]


def make_batch(batch_size: int, seed) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    start, step = rng.integers(0, VOCAB, (batch_size, 1)), rng.integers(1, 4, (batch_size, 1))
    tokens = (start + step * np.arange(LENGTH + 1)) % VOCAB
    lengths = rng.integers(3, LENGTH + 1, (batch_size, 1))
    weights = (np.arange(LENGTH) < lengths).astype(np.float32)
    return {"tokens": tokens.astype(np.int32), "weights": weights}


class Counting:
    """Predict the next number of an arithmetic sequence; rows score different numbers of tokens."""

    def __init__(self, batch_size: int = 8, seed: int = 0):
        self.batch_size, self.seed = batch_size, seed

    def batches(self, split):
        return Batches(self.batch_size, self.seed if split == "train" else self.seed + 1000)

    def loss(self, apply, params, batch, rng):
        out = apply(params, input_ids=batch["tokens"][:, :-1], dropout_rng=rng)
        targets, weights = batch["tokens"][:, 1:], batch["weights"]
        logits = out.logits.astype(jnp.float32)
        losses = jax.nn.logsumexp(logits, -1) - jnp.take_along_axis(logits, targets[..., None], -1)[..., 0]
        weight = weights.sum()
        right = (logits.argmax(-1) == targets) * weights
        return (losses * weights).sum() / weight, {"weight": weight, "accuracy": right.sum() / weight}

    def evaluate(self, apply, params):
        batch = next(self.batches("validation"))
        loss, metrics = jax.jit(lambda p, b: self.loss(apply, p, b, None))(params, batch)
        return {"loss": float(loss), "accuracy": float(metrics["accuracy"])}
