"""Training one system on one problem with the clock on it, scoring it by length, and the gradients at its inputs.

The task, the batches and the step are those of `zoo.tasks` and `zoo.training`; the loop is short because a benchmark
stops its clock for compilation and scoring, and keeps no checkpoints.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float, Int

from benchmarks.lineage_data import VALIDATION, Problem
from benchmarks.lineage_systems import System
from zoo.tasks.sequence_to_sequence import SequenceToSequence
from zoo.tasks.text_scores import score_texts
from zoo.training.config import MeshConfig, ScheduleConfig
from zoo.training.optimizer import make_optimizer, make_schedule
from zoo.training.sharding import make_mesh
from zoo.training.state import TrainState, abstract_state, bind_apply, count_parameters, initialise_state
from zoo.training.step import make_train_step


@dataclass(frozen=True, kw_only=True)
class Budget:
    """How long a system learns, and how often it is scored meanwhile."""

    num_steps: int
    batch_size: int
    num_scorings: int
    """Of held-out rows, evenly over the steps; the last is that of the trained system."""

    @property
    def schedule(self) -> ScheduleConfig:
        """Warm-up over a tenth of the steps, then linear decay to 2 % of the peak."""
        return ScheduleConfig(name="linear", warmup_steps=self.num_steps // 10, final_fraction=0.02)


@dataclass(kw_only=True)
class Trainer:
    """One system about to learn one task: its state, and the compiled step.

    Attributes:
        model, apply: the network, and it as tasks call it.
        state: parameters and optimizer, replaced by each step.
        step: (state, batch) -> (state, metrics), compiled for the task's batches; it takes its state's memory.
        compile_seconds: that compiling took.
        temp_bytes: memory of a step beyond its inputs and outputs, by the compiler's own analysis.
    """

    model: Any
    apply: Callable[..., Any]
    state: TrainState
    step: Callable[..., Any]
    compile_seconds: float
    temp_bytes: int | None

    @property
    def num_parameters(self) -> int:
        """Scalars."""
        return count_parameters(self.state.params)


def make_trainer(
    system: System, task: SequenceToSequence, batch: dict[str, Any], budget: Budget, dtype: str
) -> Trainer:
    """Initialise a system and compile its step for batches like `batch`; to be called on a mesh."""
    model = system.make_model(dtype)
    schedule = make_schedule(budget.schedule, system.learning_rate, budget.num_steps)
    optimizer = make_optimizer(system.optimizer, schedule)
    mesh = one_device()
    target = abstract_state(model, task, optimizer, batch, mesh)
    state = initialise_state(model, task, optimizer, batch, target, seed=0)
    apply = bind_apply(model)
    step = make_train_step(task, apply, optimizer, schedule, seed=0, accumulate=1, target=target)
    start = time.perf_counter()
    compiled = step.lower(state, batch).compile()
    seconds = time.perf_counter() - start
    analysis = compiled.memory_analysis()
    temp_bytes = None if analysis is None else analysis.temp_size_in_bytes
    return Trainer(model=model, apply=apply, state=state, step=compiled, compile_seconds=seconds, temp_bytes=temp_bytes)


def one_device():
    """A mesh of the first device: the comparison is of systems, not of how they are spread."""
    return make_mesh(MeshConfig(), jax.devices()[:1])


def learn(
    system: System,
    problem: Problem,
    budget: Budget,
    *,
    dtype: str = "float32",
    num_rows: int | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Train, and return all that was measured: the curve; where all rows are learnt from, scores by test too, and
    the gradients at the inputs of the longest test before training and after.

    `num_rows` of train are learnt from, all if None.
    """
    task = problem.task(("train", VALIDATION), budget.batch_size, num_rows)
    tested = problem.task(map(str, problem.tests), budget.batch_size) if num_rows is None else None
    with jax.set_mesh(one_device()):
        trainer = make_trainer(system, task, next(task.batches("train")), budget, dtype)
        longest, gradients = str(max(problem.tests)), {}
        if tested is not None:
            gradients["untrained"] = gradients_by_distance(system, trainer, tested, longest)
        curve = list(follow(trainer, task, problem, budget, say))
        found = {
            "parameters": trainer.num_parameters,
            "train_rows": len(task.dataset.split("train")),
            "batch": {"B": budget.batch_size, "S": task.config.source_length, "T": task.config.target_length},
            "num_steps": budget.num_steps,
            "learning_rate": system.learning_rate,
            "compile_seconds": trainer.compile_seconds,
            "training_seconds": curve[-1]["seconds"],
            "curve": curve,
        }
        if tested is not None:
            gradients["trained"] = gradients_by_distance(system, trainer, tested, longest)
            found |= {"tests": score_tests(trainer, tested, problem), "gradients": gradients}
        return found


def follow(
    trainer: Trainer, task: SequenceToSequence, problem: Problem, budget: Budget, say: Callable[[str], None]
) -> Iterator[dict[str, Any]]:
    """Train, and return a point of the curve at each scoring; its seconds are of steps and their batches alone."""
    batches, seconds, start, losses = task.batches("train"), 0.0, time.perf_counter(), []
    due = {budget.num_steps * number // budget.num_scorings for number in range(1, budget.num_scorings + 1)}
    for number in range(1, budget.num_steps + 1):
        trainer.state, metrics = trainer.step(trainer.state, next(batches))
        losses.append(metrics["loss"])
        if number in due:
            loss = float(np.mean(jax.device_get(losses)))  # waits for the steps
            seconds, losses = seconds + time.perf_counter() - start, []
            scores = score(trainer, task, problem, VALIDATION)
            say(f"step {number}, {seconds:.0f} s of training: loss {loss:.3f}, {problem.score} "
                f"{scores['score']:.1f}, words right {scores['words_right']:.1f}")  # fmt: skip
            yield {"step": number, "seconds": seconds, "training_loss": loss, **scores}
            start = time.perf_counter()


def score_tests(trainer: Trainer, task: SequenceToSequence, problem: Problem) -> list[dict[str, Any]]:
    """Scores of every test."""
    return [
        {"test": test, "source_tokens": problem.source_tokens(test), **score(trainer, task, problem, str(test))}
        for test in problem.tests
    ]


def score(trainer: Trainer, task: SequenceToSequence, problem: Problem, split: str) -> dict[str, float]:
    """What greedy decoding reaches on a split, from 0 to 100: the problem's score, and words right in their place."""
    wanted = [row["target"] for row in problem.rows(split)]
    written: list[str] = []
    for batch in task.batches(split):
        written += task.write(trainer.apply, trainer.state.params, batch["inputs"], batch["inputs_segment_ids"])
    return score_written(problem, written[: len(wanted)], wanted)


def score_written(problem: Problem, written: list[str], wanted: list[str]) -> dict[str, float]:
    """The problem's score as "score", and "words_right": the share of wanted words that stand in their place."""
    right = total = 0
    for text, target in zip(written, wanted, strict=True):
        right += sum(a == b for a, b in zip(text.split(), target.split(), strict=False))
        total += len(target.split())
    (value,) = score_texts((problem.score,), written, wanted).values()
    return {"score": value, "words_right": 100 * right / total}


def input_gradients(model: Any, params: Any, batch: dict[str, Any]) -> tuple[Float[Array, "B S"], Int[Array, " B"]]:
    """Norm of the gradient of the loss at the last output with respect to each vector that the encoder reads.

    The last output is the token before the end token. Each row's loss (nats) depends on its own inputs alone.

    Returns:
        The norms, and each row's place of the last output, from 0.
    """
    mask = batch["targets_segment_ids"]
    last = mask.sum(-1) - 3  # of a start token, outputs and the end token
    targets = jnp.take_along_axis(batch["targets"][:, 1:], last[:, None], 1)[:, 0]
    width = model.config.encoder.width if hasattr(model.config, "encoder") else model.config.embedding.width

    def loss(added):
        def add(next_fun, args, kwargs, context):
            if context.module.path == ("encoder",) and context.method_name == "__call__":
                args = (args[0] + added.astype(args[0].dtype), *args[1:])
            return next_fun(*args, **kwargs)

        with nn.intercept_methods(add):
            output = model.apply(
                {"params": params},
                input_ids=batch["inputs"],
                attention_mask=batch["inputs_segment_ids"],
                decoder_input_ids=batch["targets"][:, :-1],
                decoder_attention_mask=mask[:, :-1],
            )
        log_probs = jax.nn.log_softmax(output.logits.astype(jnp.float32))
        at_last = jnp.take_along_axis(log_probs, last[:, None, None], 1)[:, 0]
        return -jnp.take_along_axis(at_last, targets[:, None], 1).sum()

    gradient = jax.grad(loss)(jnp.zeros((*batch["inputs"].shape, width), jnp.float32))
    return jnp.linalg.norm(gradient, axis=-1), last


BIN = 8


def gradients_by_distance(
    system: System, trainer: Trainer, task: SequenceToSequence, split: str
) -> list[dict[str, float]]:
    """The median norm of `input_gradients` by distance, in bins of `BIN` tokens, over a split's first batch.

    The distance is the number of tokens read or written from the input to the last output, in the order in which the
    system reads: a reversed source is read from its end.
    """
    batch = next(iter(task.batches(split)))
    filled = batch["inputs_segment_ids"].any(-1)  # a short split's batch ends in blank rows
    batch = {name: array[filled] for name, array in batch.items()}
    norms, last = jax.jit(input_gradients, static_argnums=0)(trainer.model, trainer.state.params, batch)
    seen = np.asarray(batch["inputs_segment_ids"])
    places = np.broadcast_to(np.arange(seen.shape[1]), seen.shape)
    steps = places if system.reads_backward else seen.sum(-1, keepdims=True) - 1 - places
    distances = (steps + np.asarray(last)[:, None] + 1) // BIN
    norms, found = np.asarray(norms), []
    for number in np.unique(distances[seen > 0]):
        inside = norms[(distances == number) & (seen > 0)]
        middle = float(BIN * number + BIN / 2)
        found.append({"distance": middle, "norm": float(np.median(inside)), "inputs": inside.size})
    return found
