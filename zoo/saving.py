"""`save`: a bundle as a folder that transformers opens."""

import json
import shutil
from pathlib import Path
from typing import Any

import jax

from zoo.architectures.architecture import keep_activation_names, merge_fields
from zoo.architectures.fitting import find_fitting
from zoo.bundle import Bundle, Origin
from zoo.config import ModelConfig
from zoo.formats.safetensors import write_folder
from zoo.sentences import write_modules
from zoo.tokenization import PretrainedTokenizer
from zoo.weights import export_params

_ROLES = ("pad", "bos", "eos")


def save(bundle: Bundle, folder: str | Path, *, max_shard_bytes: int = 5_000_000_000) -> Path:
    """Write a folder that transformers and `load` open: config.json, safetensors, tokenizer files.

    Args:
        bundle: what `load` gave, with parameters of any training since. A model that zoo trained from scratch is
            written as the architecture that describes it exactly.
        folder: made where it is missing.
        max_shard_bytes: more than this goes into several files with an index.

    Raises:
        CheckpointError: a model that no architecture of the reference describes; the message names the nearest one,
            and what it has otherwise.
    """
    folder = Path(folder)
    origin = bundle.origin or _fitting_origin(bundle, folder)
    folder.mkdir(parents=True, exist_ok=True)
    architecture = origin.architecture
    fields = keep_activation_names(architecture.config_to_hf(bundle.config), origin.fields)
    fields = merge_fields(origin.fields, fields)
    fields |= {"model_type": architecture.model_type, "architectures": [architecture.classes[origin.head]]}
    for name in ("auto_map", "quantization_config"):
        fields.pop(name, None)
    fields["torch_dtype"] = str(next(iter(jax.tree.leaves(bundle.params))).dtype)
    (folder / "config.json").write_text(json.dumps(fields, indent=2, sort_keys=True) + "\n")
    if origin.generation:
        (folder / "generation_config.json").write_text(json.dumps(origin.generation, indent=2) + "\n")
    entries = export_params(architecture.weights(bundle.config, origin.head), bundle.params)
    entries = ((architecture.name_in_file(name, origin.head), *rest) for name, *rest in entries)
    if origin.modules is not None:
        write_modules(origin.modules, folder, entries, max_shard_bytes)
    else:
        write_folder(folder, entries, max_shard_bytes)
    if bundle.tokenizer is not None:
        _as_pretrained(bundle.tokenizer, bundle.config).save(folder)
    processor = origin.folder / "preprocessor_config.json"
    if processor.exists() and processor.parent.resolve() != folder.resolve():
        shutil.copyfile(processor, folder / processor.name)
    return folder


def _fitting_origin(bundle: Bundle, folder: Path) -> Origin:
    """What a model that zoo trained would have come from."""
    tokenizer, config = bundle.tokenizer, bundle.config
    ids = {} if tokenizer is None else {f"{role}_token_id": getattr(tokenizer, f"{role}_id") for role in _ROLES}
    ids = {name: value for name, value in ids.items() if value is not None}
    if "bos_token_id" in ids and getattr(config, "decoder", None) is not None and config.encoder is not None:
        ids["decoder_start_token_id"] = ids["bos_token_id"]
    fit = find_fitting(config, bundle.params, ids)
    return Origin(architecture=fit.architecture, head=fit.head, fields=fit.fields, generation={}, folder=folder)


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
