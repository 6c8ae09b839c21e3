"""A language model and a task that compile in seconds, with the parameter paths and shapes of the real ones.

The model is plain JAX: training asks for `init_with_output` and `apply` and nothing else.
"""

import dataclasses
import math

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from zoo.training.config import MeshConfig, OptimizerConfig, ScheduleConfig, TrainingConfig
from zoo.training.loop import train

VOCAB, WIDTH, HIDDEN, HEADS, LAYERS, LENGTH = 16, 16, 32, 4, 2, 12
SHAPES = {
    "embedder": {"token": {"embedding": (VOCAB, WIDTH)}},
    "decoder": {
        "attention_norm": {"scale": (LAYERS, WIDTH)},
        "attention": {
            "query": {"kernel": (LAYERS, WIDTH, HEADS, WIDTH // HEADS)},
            "key": {"kernel": (LAYERS, WIDTH, HEADS // 2, WIDTH // HEADS)},
            "value": {"kernel": (LAYERS, WIDTH, HEADS // 2, WIDTH // HEADS)},
            "output": {"kernel": (LAYERS, HEADS, WIDTH // HEADS, WIDTH)},
        },
        "mlp": {
            "up": {"kernel": (LAYERS, WIDTH, HIDDEN), "bias": (LAYERS, HIDDEN)},
            "down": {"kernel": (LAYERS, HIDDEN, WIDTH)},
        },
    },
    "final_norm": {"scale": (WIDTH,)},
    "head": {"kernel": (WIDTH, VOCAB)},
}


@flax.struct.dataclass
class Output:
    logits: jax.Array


def rms_norm(x, scale):
    return x * jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + 1e-6) * (1 + scale)[None, None]


def attend(x, p):
    q, k, v = (jnp.einsum("btd,dnh->btnh", x, p[name]["kernel"]) for name in ("query", "key", "value"))
    k, v = (jnp.repeat(y, HEADS // y.shape[2], axis=2) for y in (k, v))
    scores = jnp.einsum("btnh,bsnh->bnts", q, k) / math.sqrt(q.shape[-1])
    causal = jnp.arange(x.shape[1])[:, None] >= jnp.arange(x.shape[1])[None]
    weights = jax.nn.softmax(jnp.where(causal, scores, -1e9))
    return jnp.einsum("bnts,bsnh,nhd->btd", weights, v, p["output"]["kernel"])


@dataclasses.dataclass(frozen=True)
class Toy:
    dropout: float = 0.0

    def init_with_output(self, rng, **inputs):
        shapes, structure = jax.tree.flatten(SHAPES, is_leaf=lambda x: isinstance(x, tuple))
        sizes = [math.prod(shape) for shape in shapes]
        flat = jnp.split(0.2 * jax.random.normal(rng, (sum(sizes),)), np.cumsum(sizes)[:-1])
        params = structure.unflatten([x.reshape(shape) for x, shape in zip(flat, shapes, strict=True)])
        variables = {"params": params}
        return self.apply(variables, **inputs), variables

    def apply(self, variables, input_ids, dropout_rng=None):
        params = variables["params"]

        def layer(x, p):
            x = x + attend(rms_norm(x, p["attention_norm"]["scale"]), p["attention"])
            hidden = jax.nn.relu(x @ p["mlp"]["up"]["kernel"] + p["mlp"]["up"]["bias"][None, None])
            if dropout_rng is not None and self.dropout:
                hidden = hidden * jax.random.bernoulli(dropout_rng, 1 - self.dropout, hidden.shape).astype(hidden.dtype)
            return x + hidden @ p["mlp"]["down"]["kernel"], None

        x, _ = jax.lax.scan(layer, params["embedder"]["token"]["embedding"][input_ids], params["decoder"])
        return Output(logits=rms_norm(x, params["final_norm"]["scale"]) @ params["head"]["kernel"])


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
        right = jnp.where(logits.argmax(-1) == targets, weights, 0.0)
        return (losses * weights).sum() / weight, {"weight": weight, "accuracy": right.sum() / weight}

    def evaluate(self, apply, params):
        batch = next(self.batches("validation"))
        loss, metrics = jax.jit(lambda p, b: self.loss(apply, p, b, None))(params, batch)
        return {"loss": float(loss), "accuracy": float(metrics["accuracy"])}


def run_toy(folder, *, mesh=None, optimizer=None, schedule=None, model=None, task=None, resolved=None, **training):
    """Call `train` with small settings; keyword arguments that are left are TrainingConfig's.

    The defaults make one program for all tests: a constant schedule does not depend on num_steps.
    """
    settings = {"num_steps": 12, "evaluate_every": 5, "checkpoint_every": 4, "tensorboard": False, **training}
    return train(
        model or Toy(dropout=0.1),
        task or Counting(),
        folder,
        optimizer=OptimizerConfig(**{"learning_rate": 1e-2, **(optimizer or {})}),
        schedule=ScheduleConfig(**{"name": "constant", "warmup_steps": 3, **(schedule or {})}),
        mesh=MeshConfig(**(mesh or {"data": 1, "fsdp": 2})),
        training=TrainingConfig(**settings),
        resolved=resolved,
        compute_dtype="float32",
    )


def assert_same_bits(left, right):
    left, right = (jax.tree_util.tree_leaves_with_path(tree) for tree in (left, right))
    assert [path for path, _ in left] == [path for path, _ in right]
    for (path, x), (_, y) in zip(left, right, strict=True):
        assert np.array_equal(np.asarray(x), np.asarray(y)), jax.tree_util.keystr(path)
