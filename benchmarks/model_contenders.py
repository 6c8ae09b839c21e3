"""zoo on a problem: the forward pass and generation through a `Bundle`, the training step that train.py takes."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.contenders import Contender
from benchmarks.model_cells import CACHE, DECODE, FORWARD, TRAINING
from benchmarks.model_problems import IGNORED, Problem
from zoo.bundle import Bundle, Origin
from zoo.quantization import Quantization, quantize_params
from zoo.stack import fast_layers
from zoo.tasks.losses import cross_entropy, language_loss
from zoo.training.config import MeshConfig, OptimizerConfig, ScheduleConfig
from zoo.training.optimizer import make_optimizer, make_schedule
from zoo.training.prefetch import place_batch
from zoo.training.sharding import make_mesh
from zoo.training.state import abstract_state, bind_apply, start_state
from zoo.training.step import compile_step, make_train_step

LEARNING_RATE, CLIP_NORM, BETAS, EPSILON = 1e-4, 1.0, (0.9, 0.95), 1e-8
CHECKED_STEPS = 3
"""Training steps whose losses are compared."""


def contenders(problem: Problem) -> dict[str, Callable[[], Contender]]:
    """What makes each of zoo's contenders, by name."""
    match problem.cell.work:
        case work if work == FORWARD:
            return {"zoo": lambda: _forward(problem)}
        case work if work == DECODE:
            return {"zoo": lambda: _decode(problem)} | {
                f"zoo, {form}": lambda form=form: _decode(problem, form) for form in get_args(Quantization)
            }
        case work if work == TRAINING:
            return {"zoo": lambda: _training(problem)}
        case work if work == CACHE:
            length = problem.cell.length
            return {f"zoo, capacity {n}": lambda n=n: _step(problem, n) for n in (2 * length, 8 * length)}
    raise AssertionError(problem.cell.work)


def make_contender(name: str, call: Callable[[], Any], results: Callable[..., dict], **others: Any) -> Contender:
    """A contender from a function that issues a call; its first call is timed as its compilation."""
    start = time.perf_counter()
    jax.block_until_ready(call())
    seconds = time.perf_counter() - start
    return Contender(name=name, kind="zoo", start=call, wait=jax.block_until_ready, results=results,
                     compile_seconds=seconds, **others)  # fmt: skip


def make_bundle(problem: Problem, quantize: Quantization | None = None) -> Bundle:
    """As `zoo.load(folder, dtype=..., param_dtype=..., quantize=...)` would give it."""
    dtype = jnp.dtype(problem.cell.dtype)
    origin = Origin(architecture=problem.architecture, head=problem.head, fields=problem.fields, generation={},
                    folder=Path())  # fmt: skip
    params = jax.tree.map(lambda x: x.astype(dtype), problem.params)
    if quantize is not None:
        params = quantize_params(params, quantize, problem.config)
    model = problem.model(dtype, fast_layers())
    return Bundle(model=model, params=params, config=problem.config, origin=origin)


def _forward(problem: Problem) -> Contender:
    bundle, inputs = make_bundle(problem), problem.inputs

    def call():
        output = bundle(**inputs)
        return output.last_hidden_state if output.logits is None else output.logits

    return make_contender("zoo", call, lambda: {"output": np.asarray(call(), np.float32)})


def generation_options(problem: Problem) -> dict[str, Any]:
    """What is asked of either library's `generate`; nothing ends a sequence early."""
    cell = problem.cell
    return {"max_new_tokens": cell.new_tokens, "num_beams": cell.num_beams, "do_sample": False, "pad_token_id": 0}


def _decode(problem: Problem, quantize: Quantization | None = None) -> Contender:
    bundle, options = make_bundle(problem, quantize), generation_options(problem) | {"eos_token_id": ()}
    name = "zoo" if quantize is None else f"zoo, {quantize}"
    weight_bytes = sum(leaf.nbytes for leaf in jax.tree.leaves(bundle.params))

    def call():
        return bundle.generate(**problem.inputs, **options).sequences

    return make_contender(name, call, lambda: {"tokens": np.asarray(call())}, weight_bytes=weight_bytes,
                          exact=quantize is None)  # fmt: skip


def nats_per_token(problem: Problem, tokens: np.ndarray) -> float:
    """What the written tokens cost under the model, in the mean: the same for all who write what it holds likely."""
    bundle, read = make_bundle(problem), jnp.asarray(tokens[:, :-1])
    inputs = problem.inputs | {"decoder_input_ids": read} if problem.config.is_encoder_decoder else {"input_ids": read}
    logits, written = bundle(**inputs).logits[:, -problem.cell.new_tokens :], tokens[:, -problem.cell.new_tokens :]
    return float(cross_entropy(logits, jnp.asarray(written), jnp.ones(written.shape))[0])


def _step(problem: Problem, capacity: int) -> Contender:
    """One token after `length` keys, in a cache of a capacity; weights and cache as generation's loop has them."""
    bundle = make_bundle(problem)
    apply, params = bind_apply(bundle.model), bundle.params
    looped = jax.jit(lambda params: apply(params, method="for_steps"))(params)
    ids = jnp.asarray(problem.inputs["input_ids"])
    prefill = jax.jit(lambda params: apply(params, input_ids=ids, attention_mask=jnp.ones_like(ids),
                                           capacity=capacity, method="prefill"))  # fmt: skip
    first, cache = prefill(params)
    length = cache.length + 0  # of its own, as the cache is given away

    def advance(params, token, cache, length):
        logits, cache = apply(params, token=token, cache=cache.replace(length=length), method="step")
        return logits, cache

    step = jax.jit(advance, donate_argnums=2)
    token, held = jnp.argmax(first, -1), [cache]

    def call():
        logits, held[0] = step(looped, token, held[0], length)
        return logits

    return make_contender(f"zoo, capacity {capacity}", call, lambda: {"output": np.asarray(call(), np.float32)})


class LabelledRows:
    """A `Task` as the step knows it: rows of inputs, and labels as torch's models take them."""

    def __init__(self, head: str):
        self.shift = int(head == "causal_lm")

    def loss(self, apply, params, batch, rng=None):
        """Mean nats per label that counts; a causal model's states speak of the next."""
        inputs = {name: x for name, x in batch.items() if name != "labels"}
        output, labels = apply(params, **inputs, dropout_rng=rng), batch["labels"]
        weights, labels = (labels != IGNORED).astype(jnp.float32), jnp.maximum(labels, 0)
        if labels.ndim == 1:
            return cross_entropy(output.logits[:, None], labels[:, None], weights[:, None])
        if self.shift:
            labels, weights = labels[:, 1:], weights[:, 1:]
            output = output.replace(last_hidden_state=output.last_hidden_state[:, :-1])
        return language_loss(apply, params, output, labels, weights)


def first_losses(losses: list, call: Callable[[], Any]) -> np.ndarray:
    """Of the first steps; of those that were not taken yet, after taking them."""
    while len(losses) < CHECKED_STEPS:
        call()
    return np.array([float(loss) for loss in losses[:CHECKED_STEPS]])


def _training(problem: Problem) -> Contender:
    model = problem.model(jnp.dtype(problem.cell.dtype), fast_layers())
    task, mesh = LabelledRows(problem.head), make_mesh(MeshConfig(data=1), jax.devices()[:1])
    schedule = make_schedule(ScheduleConfig(name="constant", warmup_steps=0), LEARNING_RATE, 1)
    optimizer = make_optimizer(
        OptimizerConfig(learning_rate=LEARNING_RATE, clip_norm=CLIP_NORM, betas=BETAS, epsilon=EPSILON, weight_decay=0),
        schedule,
    )
    rows = problem.inputs | {"labels": problem.labels}
    with jax.set_mesh(mesh):
        target = abstract_state(model, task, optimizer, rows, mesh)
        batch = place_batch(rows, mesh)
        step = make_train_step(task, bind_apply(model), optimizer, schedule, seed=0, accumulate=1, target=target)

    held, losses = [start_state(problem.params, optimizer, target)], []

    def call():
        with jax.set_mesh(mesh):
            if not losses:
                compile_step(step, held[0], batch)
            held[0], metrics = step(held[0], batch)
        losses.append(metrics["loss"])
        return metrics["loss"]

    return make_contender("zoo", call, lambda: {"losses": first_losses(losses, call)})
