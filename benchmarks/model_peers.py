"""transformers on torch on the same weights: as it comes, and compiled."""

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from benchmarks.contenders import Contender, Refused
from benchmarks.model_cells import CACHE, DECODE, FORWARD
from benchmarks.model_contenders import (
    BETAS,
    CLIP_NORM,
    EPSILON,
    LEARNING_RATE,
    first_losses,
    generation_options,
)  # fmt: skip
from benchmarks.model_problems import Problem
from benchmarks.torch_peers import import_torch

EAGER, COMPILED = "torch eager", "torch.compile"


def contenders(problem: Problem) -> dict[str, Callable[[], Contender]]:
    """What makes each peer, by name."""
    if problem.cell.work == CACHE:
        return {}
    return {EAGER: lambda: make(problem, compiled=False), COMPILED: lambda: make(problem, compiled=True)}


def import_libraries() -> tuple[Any, Any]:
    """Torch and transformers; Refused where one is missing."""
    torch = import_torch()
    try:
        import transformers
    except ImportError as error:
        raise Refused("transformers is not installed") from error
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    return torch, transformers


def make(problem: Problem, *, compiled: bool) -> Contender:
    """A contender for a problem of any kind."""
    torch, _ = import_libraries()
    model = make_model(problem)
    device = model.device
    inputs = {name: torch.from_numpy(x).to(device) for name, x in problem.inputs.items()}
    inputs = {name: x if x.is_floating_point() else x.long() for name, x in inputs.items()}
    work = {FORWARD: _forward, DECODE: _decode}.get(problem.cell.work, _training)
    call, results = work(torch, problem, model, inputs, compiled)
    on_gpu = device.type == "cuda"

    def wait(_=None):
        if on_gpu:
            torch.cuda.synchronize()

    start = time.perf_counter()
    call()
    wait()
    seconds = time.perf_counter() - start
    return Contender(name=COMPILED if compiled else EAGER, kind="peer", start=call, wait=wait, results=results,
                     compile_seconds=seconds)  # fmt: skip


def make_model(problem: Problem) -> Any:
    """The reference's model with the problem's weights, on JAX's device; float32 in training, else the cell's dtype."""
    torch, transformers = import_libraries()
    training = problem.cell.work not in (FORWARD, DECODE)
    with tempfile.TemporaryDirectory() as folder:
        problem.write(Path(folder))
        cls = getattr(transformers, problem.fields["architectures"][0])
        dtype = torch.float32 if training else getattr(torch, problem.cell.dtype)
        model, info = cls.from_pretrained(folder, dtype=dtype, output_loading_info=True)
    # BERT's base model has a pooler here, which its first output does not depend on.
    wrong = {*info["unexpected_keys"], *info["mismatched_keys"], *info["missing_keys"]}
    wrong = {name for name in wrong if not name.startswith("pooler.")}
    if wrong:
        raise ValueError(f"the weights do not fit: {sorted(wrong)[:3]}")
    device = "cuda" if jax.default_backend() == "gpu" else "cpu"
    model = model.to(device)
    return model.train() if training else model.eval()


def _forward(torch: Any, problem: Problem, model: Any, inputs: dict, compiled: bool):
    inputs = {name: x.to(model.dtype) if x.is_floating_point() else x for name, x in inputs.items()}
    run = torch.compile(model) if compiled else model

    def call():
        with torch.inference_mode():
            output = run(**inputs)
            return output.last_hidden_state if problem.head == "base" else output.logits

    return call, lambda: {"output": call().float().cpu().numpy()}


def _decode(torch: Any, problem: Problem, model: Any, inputs: dict, compiled: bool):
    model.generation_config.eos_token_id = None
    options = generation_options(problem)
    if compiled:
        # As the library's own guide has it: a cache of fixed size, and the forward pass compiled.
        options["cache_implementation"] = "static"
        model.forward = torch.compile(model.forward)
    mask = inputs.get("attention_mask", torch.ones_like(inputs["input_ids"]))

    def call():
        with torch.inference_mode():
            return model.generate(**(inputs | {"attention_mask": mask}), **options)

    return call, lambda: {"tokens": call().cpu().numpy()}


def _training(torch: Any, problem: Problem, model: Any, inputs: dict, compiled: bool):
    labels = torch.from_numpy(np.array(problem.labels)).long().to(model.device)
    half, device = problem.cell.dtype == "bfloat16", model.device.type
    # Compiled as users do it: the model, called as a function; the optimizer has its own fused kernel.
    run = torch.compile(model) if compiled else model
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=LEARNING_RATE, betas=BETAS, eps=EPSILON, weight_decay=0.0, fused=True
    )
    losses: list[Any] = []

    def call():
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device, torch.bfloat16, enabled=half):
            loss = run(**inputs, labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP_NORM)
        optimizer.step()
        losses.append(loss.detach())
        return losses[-1]

    return call, lambda: {"losses": first_losses(losses, call)}
