"""`save`: a bundle as a folder that transformers opens, or in zoo's own layout."""

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp

import zoo
from zoo.architectures.architecture import keep_activation_names, label_fields, merge_fields
from zoo.architectures.fitting import find_fitting
from zoo.bundle import OWN, Bundle, Origin
from zoo.config import ModelConfig
from zoo.formats.safetensors import write_folder
from zoo.quantization import is_quantized
from zoo.sentences import write_modules, write_settings
from zoo.serialization import as_dict
from zoo.tokenization import PretrainedTokenizer
from zoo.training.card import parameter_table
from zoo.training.checkpoint import save_params
from zoo.training.hosts import is_first, synchronise
from zoo.training.manifest import list_steps
from zoo.training.state import count_parameters
from zoo.weights import export_params

_ROLES = ("pad", "bos", "eos")


def save(
    bundle: Bundle,
    folder: str | Path,
    *,
    layout: Literal["transformers", "zoo"] = "transformers",
    labels: Sequence[str] | None = None,
    max_shard_bytes: int = 5_000_000_000,
) -> Path:
    """Write a folder that `load` opens: weights, configuration, tokenizer, and a model card where there is none.

    Args:
        bundle: what `load` gave, with parameters of any training since.
        folder: made where it is missing.
        layout: "transformers" is config.json and safetensors, which transformers opens; a model that zoo trained from
            scratch is written as the architecture that describes it exactly. "zoo" is model.json and parameters by
            their own paths in an Orbax checkpoint: for any model, and restored shard by shard.
        labels: names of a classifier's classes, for a model that zoo trained from scratch; a checkpoint's own are kept.
        max_shard_bytes: more than this goes into several safetensors files with an index.

    Raises:
        CheckpointError: a model that no architecture of the reference describes; the message names the nearest one,
            and what it has otherwise.
        ValueError: another layout, or one that cannot hold a quantised model; or a folder that holds a run, or zoo's
            layout, already.
    """
    if layout not in ("transformers", "zoo"):
        raise ValueError(f"layout is {layout!r}; choose 'transformers' or 'zoo'")
    folder = Path(folder)
    for name in ("run.json", OWN):
        if (folder / name).exists():
            raise ValueError(f"{folder} has a {name}, and `load` would read that; choose another folder")
    if layout == "transformers" and is_quantized(bundle.params):
        raise ValueError("the model is quantised, which layout='zoo' alone holds; or save what it was loaded from")
    if layout == "zoo":
        return _save_own(bundle, folder)
    bundle = bundle if bundle.origin is not None else _fitted(bundle, folder, labels)
    origin = bundle.origin
    assert origin is not None  # just fitted
    folder.mkdir(parents=True, exist_ok=True)
    _write_fields(bundle, origin, folder)
    architecture = origin.architecture
    entries = export_params(architecture.weights(bundle.config, origin.head), bundle.params)
    entries = ((architecture.name_in_file(name, origin.head), *rest) for name, *rest in entries)
    if origin.modules is not None:
        write_modules(origin.modules, folder, entries, max_shard_bytes)
    else:
        write_folder(folder, entries, max_shard_bytes)
    if bundle.tokenizer is not None:
        _as_pretrained(bundle.tokenizer, bundle.config).save(folder)
    _write_card(bundle, origin, folder, layout)
    return folder


def _save_own(bundle: Bundle, folder: Path) -> Path:
    if list_steps(folder):
        raise ValueError(f"{folder} has checkpoints; choose another folder")
    _write_own(bundle, folder)
    save_params(folder, bundle.params)
    _write_card(bundle, bundle.origin, folder, "zoo")
    return folder


def save_start(bundle: Bundle, folder: Path, fresh: Sequence[str]) -> None:
    """Write what a run starts from, for `zoo.pretrained.load_start`: `bundle.params` are what is frozen, or nothing.

    `fresh` are the paths of the parameters that the checkpoint lacked.
    """
    if is_first():
        shutil.rmtree(folder, ignore_errors=True)
        _write_own(bundle, folder, fresh)
    synchronise("the start is written")
    if bundle.params:
        save_params(folder, bundle.params)


def _write_own(bundle: Bundle, folder: Path, fresh: Sequence[str] = ()) -> None:
    """What zoo's own layout has beside the parameters: configuration, tokenizer, and what images need."""
    from zoo.data.tokenizer import Tokenizer

    origin, tokenizer = bundle.origin, bundle.tokenizer
    folder.mkdir(parents=True, exist_ok=True)
    if origin is not None:
        _write_fields(bundle, origin, folder)
        if origin.modules is not None:
            write_settings(origin.modules, folder)
    record = {
        "kind": type(bundle.config).__name__,
        "config": as_dict(bundle.config),
        "head": None if origin is None else origin.head,
        "fresh": list(fresh),
        "compute_dtype": str(jnp.dtype(bundle.model.dtype)),
        "layers": getattr(bundle.model, "layers", "unrolled"),
    }
    (folder / OWN).write_text(json.dumps(record, indent=2) + "\n")
    if isinstance(tokenizer, Tokenizer):
        tokenizer.save(folder / "tokenizer.model")
    elif tokenizer is not None:
        tokenizer.save(folder)


def _write_fields(bundle: Bundle, origin: Origin, folder: Path) -> None:
    """config.json, and what generation and images need."""
    architecture = origin.architecture
    fields = keep_activation_names(architecture.config_to_hf(bundle.config), origin.fields)
    fields = merge_fields(origin.fields, fields)
    fields |= {"model_type": architecture.model_type, "architectures": [architecture.classes[origin.head]]}
    for name in ("auto_map", "quantization_config"):
        fields.pop(name, None)
    fields["torch_dtype"] = _dtypes(bundle.params)[0] if bundle.params else "float32"
    (folder / "config.json").write_text(json.dumps(fields, indent=2, sort_keys=True) + "\n")
    if origin.generation:
        (folder / "generation_config.json").write_text(json.dumps(origin.generation, indent=2) + "\n")
    processor = origin.folder / "preprocessor_config.json"
    if processor.exists() and processor.parent.resolve() != folder.resolve():
        shutil.copyfile(processor, folder / processor.name)


def _write_card(bundle: Bundle, origin: Origin | None, folder: Path, layout: str) -> None:
    """README.md: what the folder holds and how to open it. One that is there already is somebody's own words."""
    path = folder / "README.md"
    if path.exists():
        return
    opened = ["import zoo", "", 'bundle = zoo.load("...")    # the path of this folder']
    if layout == "transformers":
        name = origin.architecture.classes[origin.head]
        kind = f"`{name}` ({origin.architecture.model_type})"
        opened += ["", f"from transformers import {name}", "", f'model = {name}.from_pretrained("...")']
    else:
        kind = f"`{bundle.config.__class__.__name__}` in zoo's own layout (`{OWN}`, Orbax)"
    dtypes = " and ".join(_dtypes(bundle.params))
    library = "transformers" if layout == "transformers" else "zoo"
    sections = [
        f"---\nlibrary_name: {library}\ntags: [zoo, jax, flax]\n---",
        f"# {folder.resolve().name}",
        f"{kind} with {count_parameters(bundle.params):,} parameters in {dtypes}, written by zoo {zoo.__version__}.",
        "```python\n" + "\n".join(opened) + "\n```",
        "\n".join(parameter_table(bundle.params)),
    ]
    path.write_text("\n\n".join(sections) + "\n")


def _dtypes(params: Any) -> list[str]:
    """Those of the parameters, floats first."""
    found = {str(leaf.dtype) for leaf in jax.tree.leaves(params)}
    return sorted(found, key=lambda name: (name.startswith("int"), name))


def _fitted(bundle: Bundle, folder: Path, labels: Sequence[str] | None) -> Bundle:
    """A model that zoo trained, with what it would have come from."""
    tokenizer, config = bundle.tokenizer, bundle.config
    ids = {} if tokenizer is None else {f"{role}_token_id": getattr(tokenizer, f"{role}_id") for role in _ROLES}
    ids = {name: value for name, value in ids.items() if value is not None}
    if "bos_token_id" in ids and config.is_encoder_decoder:
        ids["decoder_start_token_id"] = ids["bos_token_id"]
    fit = find_fitting(config, bundle.params, ids)
    fields = fit.fields if labels is None else fit.fields | label_fields(labels)
    origin = Origin(architecture=fit.architecture, head=fit.head, fields=fields, generation={}, folder=folder)
    return replace(bundle, origin=origin, config=fit.config, params=fit.params)


def _as_pretrained(tokenizer: Any, config: ModelConfig) -> PretrainedTokenizer:
    """A run's tokenizer, with the special tokens that its task puts around a text."""
    from zoo.data.tokenizer import REWRITTEN, Tokenizer
    from zoo.tokenization.trained import trained_tokenizer

    if not isinstance(tokenizer, Tokenizer):
        return tokenizer
    encodes, decodes = (getattr(config, name, None) is not None for name in ("encoder", "decoder"))
    return trained_tokenizer(
        tokenizer.to_bytes(),
        REWRITTEN,
        begins=not (encodes and decodes),
        ends=encodes,
        padding_side="right" if encodes else "left",
    )
