"""Training steps of all systems side by side at growing lengths: tokens a second, memory, and memory in decoding."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import timing
from benchmarks.contenders import Contender
from benchmarks.lineage_systems import System
from benchmarks.lineage_training import Budget, Trainer, make_trainer, one_device
from zoo.tasks.sequence_to_sequence import SequenceToSequence


def random_batch(vocab_size: int, length: int, tokens: int) -> dict[str, np.ndarray]:
    """Full rows of `length` source and `length` target tokens, `tokens` of each a batch, at least one row."""
    batch = max(1, tokens // length)
    drawn = np.random.default_rng(0)
    found: dict[str, np.ndarray] = {}
    for name, size in (("inputs", length), ("targets", length + 1)):
        found[name] = drawn.integers(3, vocab_size, (batch, size)).astype(np.int32)
        found[f"{name}_segment_ids"] = np.ones((batch, size), np.int32)
    return found


def _contender(system: System, trainer: Trainer, batch: dict[str, np.ndarray]) -> Contender:
    def start():
        trainer.state, metrics = trainer.step(trainer.state, batch)
        return metrics["loss"]

    return Contender(
        name=system.name,
        kind="system",
        start=start,
        wait=jax.block_until_ready,
        results=lambda reference: {},
        compile_seconds=trainer.compile_seconds,
        temp_bytes=trainer.temp_bytes,
    )


def measure_length(
    systems: list[System], task: SequenceToSequence, length: int, *, tokens: int, dtype: str, budget_seconds: float
) -> list[dict[str, Any]]:
    """Time a training step of each system at one length, in turn, compilation left out.

    Returns:
        A row a system; of one that was too slow to be timed within the budget, without the rate.
    """
    batch = random_batch(task.tokenizer.vocab_size, length, tokens)
    num_rows, used = batch["inputs"].shape[0], Budget(num_steps=10_000, batch_size=len(batch["inputs"]), num_scorings=1)
    with jax.set_mesh(one_device()):
        trainers = {system.name: make_trainer(system, task, batch, used, dtype) for system in systems}
        contenders = [_contender(system, trainers[system.name], batch) for system in systems]
        timing.measure(contenders, budget_seconds)
        rows = []
        for system, contender in zip(systems, contenders, strict=True):
            trainer = trainers[system.name]
            row: dict[str, Any] = {
                "system": system.name,
                "length": length,
                "batch": num_rows,
                "dtype": dtype,
                "parameters": trainer.num_parameters,
                "temp_bytes": contender.temp_bytes,
                "compile_seconds": contender.compile_seconds,
                "decoding_bytes": decoding_bytes(trainer.apply, trainer.state.params, length),
            }
            if contender.samples:
                low, median, high = timing.quartiles(contender.samples)
                row["milliseconds"], row["milliseconds_quartiles"] = 1e3 * median, [1e3 * low, 1e3 * high]
                row["rounds"], row["tokens_per_second"] = len(contender.samples), 2 * num_rows * length / median
            rows.append(row)
    return rows


def decoding_bytes(apply: Callable[..., Any], params: Any, length: int) -> int:
    """Bytes that decoding keeps for one sequence of `length` source tokens and as many written ones.

    Nothing is computed: `params` may be shapes.
    """

    def prefill(params, ids, mask):
        encoded = apply(params, input_ids=ids, attention_mask=mask, method="encode")
        states = {} if encoded.decoder_states is None else {"decoder_states": encoded.decoder_states}
        prompt = jnp.ones((1, 1), jnp.int32)
        return apply(
            params,
            input_ids=prompt,
            attention_mask=prompt,
            capacity=length,
            encoder_hidden_states=encoded.last_hidden_state,
            encoder_attention_mask=mask,
            method="prefill",
            **states,
        )[1]

    row = jax.ShapeDtypeStruct((1, length), jnp.int32)
    cache = jax.eval_shape(prefill, params, row, row)
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(cache))
