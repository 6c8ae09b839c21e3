"""The reference library's side: builds the small models of `small.py` and measures the same things with torch."""

import json
import tempfile
from pathlib import Path

import numpy as np
import small
import torch
import transformers

import zoo
from zoo.architectures import find_architecture


def make_model(model_type: str, head: str, folder: Path):
    """The reference's model with drawn weights, from a folder that it leaves for zoo to load."""
    architecture = find_architecture(model_type)
    cls = getattr(transformers, architecture.classes[head])
    fields = small.config_fields(model_type, head)
    config = cls.config_class(**{name: value for name, value in fields.items() if name != "model_type"})
    config._attn_implementation = "eager"
    with tempfile.TemporaryDirectory() as first:
        cls(config).save_pretrained(first)
        shapes = small.tensor_shapes(Path(first))
        written = json.loads((Path(first) / "config.json").read_text())
    small.write_folder(folder, written, shapes)
    model, info = cls.from_pretrained(folder, output_loading_info=True, attn_implementation="eager")
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")), info
    model.generation_config = transformers.GenerationConfig.from_model_config(model.config)
    return model.eval().float()


def measure(model, head: str, inputs: dict, folder: Path) -> dict[str, np.ndarray]:
    """The counterpart of `small.measure`."""
    found = {}
    for name, batch in inputs.items():
        if name == "prompt":
            continue
        with torch.no_grad():
            output = model(**tensors(batch))
        for key in small.OUTPUTS:
            value = getattr(output, key, None)
            if value is not None:
                found[f"{name}/{key}"] = value.numpy()
    found |= {f"gradient/{name}": value for name, value in gradients(model, head, inputs["plain"], folder).items()}
    if "prompt" in inputs:
        for name, options in small.GENERATION.items():
            sequences = model.generate(**tensors(inputs["prompt"]), **options, do_sample=False)
            # The reference's own loop for speech leaves the start token out.
            bare = model.config.model_type == "whisper"
            start = torch.full_like(sequences[:, :1], model.config.decoder_start_token_id) if bare else sequences[:, :0]
            found[f"generated/{name}"] = torch.cat([start, sequences], 1).numpy()
    return found


def tensors(batch: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
    """Arrays to tensors; ids are 64-bit there."""
    return {n: torch.tensor(v if v.dtype == np.float32 else v.astype(np.int64)) for n, v in batch.items()}


def gradients(model, head: str, batch: dict[str, np.ndarray], folder: Path) -> dict[str, np.ndarray]:
    """By the names in the checkpoint; those that the library splits or fuses on loading are left out, and constants."""
    model.zero_grad()
    value = small.main_output(model(**tensors(batch)), head)
    (value * torch.tensor(small.cotangent(tuple(value.shape)))).sum().backward()
    names = small.tensor_shapes(folder)
    fixed = small.constants(json.loads((folder / "config.json").read_text()))  # some versions call them trainable
    return {
        name: parameter.grad.numpy().copy()
        for name, parameter in model.named_parameters()
        if name in names and name not in fixed and parameter.grad is not None and tuple(parameter.shape) == names[name]
    }


def make(model_type: str, head: str, folder: Path):
    """A case: zoo's bundle, the inputs, and what the reference measures."""
    model = make_model(model_type, head, folder)
    bundle = zoo.load(folder)
    inputs = small.make_inputs(bundle)
    return bundle, inputs, measure(model, head, inputs, folder)
