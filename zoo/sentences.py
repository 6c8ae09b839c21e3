"""Folders of sentence-transformers (Reimers & Gurevych 2019): what follows the transformer, as an `EmbeddingHead`.

modules.json lists the transformer, pooling, perhaps one or two dense layers, and perhaps normalisation, each in a
subfolder. Reads and writes them; the transformer itself is loaded like any other. Other modules are refused by name.
"""

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from zoo.architectures import Architecture, Fields
from zoo.config import Activation, EmbeddingHead, ModelConfig, TransformerConfig
from zoo.formats.folder import open_weights
from zoo.formats.safetensors import read_json, read_list, write_folder
from zoo.weights import CheckpointError, Rule, Shape, Tensors, linear

POOLINGS: dict[str, Literal["first", "last", "mean", "max"]] = {
    "cls": "first",
    "cls_token": "first",
    "lasttoken": "last",
    "mean": "mean",
    "mean_tokens": "mean",
    "max": "max",
    "max_tokens": "max",
}
"""Their modes, in one field in new files and in one field each in old ones, and ours."""
_ACTIVATIONS: dict[str, Activation | None] = {
    "Identity": None,
    "Tanh": "tanh",
    "ReLU": "relu",
    "GELU": "gelu",
    "SiLU": "silu",
}
_ENDINGS = [["Dense"] * dense + ["Normalize"] * normalize for dense in range(3) for normalize in range(2)]
"""What may follow the pooling."""
_SETTINGS = ("sentence_bert_config.json", "config_sentence_transformers.json")


@dataclass(frozen=True, kw_only=True)
class Module:
    """An entry of modules.json."""

    entry: Mapping[str, Any]
    """As in the file."""
    kind: str
    """The class's own name."""
    path: str
    """Its subfolder; empty for the folder itself."""
    fields: Fields
    """The subfolder's config.json."""


@dataclass(frozen=True, kw_only=True)
class Modules:
    """What a folder has around its transformer."""

    folder: Path
    modules: tuple[Module, ...]
    settings: Mapping[str, Any]
    """Contents of the other files, by name, which zoo keeps and does not read."""

    @property
    def transformer(self) -> Path:
        """The transformer's folder."""
        return self.folder / self.modules[0].path

    @property
    def pooling(self) -> Fields:
        """The configuration of what follows the transformer."""
        return self.modules[1].fields

    @property
    def dense(self) -> list[Module]:
        """The linear maps, at most two."""
        return [module for module in self.modules if module.kind == "Dense"]


def read_modules(folder: Path) -> Modules | None:
    """The modules of a folder; None where it has no modules.json.

    Raises:
        CheckpointError: a module that zoo does not know, in an order that it does not follow, or in another place.
    """
    if not (folder / "modules.json").exists():
        return None
    modules = tuple(_read_module(folder, entry) for entry in read_list(folder / "modules.json"))
    kinds = [module.kind for module in modules]
    if kinds[:2] != ["Transformer", "Pooling"] or kinds[2:] not in _ENDINGS:
        raise CheckpointError(
            f"{folder / 'modules.json'} lists {', '.join(kinds)}; zoo computes Transformer, Pooling, at most two Dense "
            'and at most one Normalize, in this order. zoo.load(…, head="base") gives the transformer alone'
        )
    settings = {name: read_json(folder / name) for name in _SETTINGS if (folder / name).exists()}
    return Modules(folder=folder, modules=modules, settings=settings)


def _read_module(folder: Path, entry: Any) -> Module:
    origin = folder / "modules.json"
    kind, path = (entry.get("type"), entry.get("path")) if isinstance(entry, dict) else (None, None)
    if not isinstance(kind, str) or not kind.startswith("sentence_transformers."):
        raise CheckpointError(f"{origin} names the class {kind!r}; zoo knows those of sentence_transformers alone")
    if not isinstance(path, str) or (path and (Path(path).name != path or path in (".", "..") or "\\" in path)):
        raise CheckpointError(f"{origin} names the folder {path!r}; modules lie in subfolders beside it")
    config = folder / path / "config.json"
    fields = read_json(config) if config.exists() else {}
    return Module(entry=entry, kind=kind.rpartition(".")[2], path=path, fields=Fields(fields, str(config)))


def with_embedding(architecture: Architecture, modules: Modules) -> Architecture:
    """The architecture with one more head, "embedding": the base model, and what `modules` do with its states.

    Of an encoder-decoder it is the encoder alone (T5).
    """
    own = "encoder" if "encoder" in architecture.classes else "base"

    def config_from_hf(fields: Fields, head: str) -> ModelConfig:
        if head != "embedding":
            return architecture.config_from_hf(fields, head)
        base = architecture.config_from_hf(fields, own)
        if not isinstance(base, TransformerConfig) or base.family == "encoder-decoder":
            raise CheckpointError(f"{fields.origin}: zoo makes sentence vectors with an encoder or a decoder, not both")
        return dataclasses.replace(base, head=_head(modules))

    def weights(config: TransformerConfig, head: str) -> Sequence[Rule]:
        if head != "embedding":
            return architecture.weights(config, head)
        rows = [row for row in architecture.weights(config, own) if not row.ours[0].startswith("head/")]
        for module, ours in zip(reversed(modules.dense), ("projection", "inner_projection"), strict=False):
            rows += linear(f"{module.path}/linear", f"head/{ours}")
        return rows

    return dataclasses.replace(
        architecture,
        classes={**architecture.classes, "embedding": architecture.classes[own]},
        config_from_hf=config_from_hf,
        weights=weights,
    )


def _head(modules: Modules) -> EmbeddingHead:
    projection: dict[str, Any] = {}
    *inner, last = [_dense(module.fields) for module in modules.dense] or [{}]
    for fields in inner:
        if fields["projection_bias"] or fields["activation"] is not None:
            raise CheckpointError(
                f"{modules.folder / 'modules.json'} lists two Dense; zoo has the first without bias and activation"
            )
        projection["inner_projection"] = fields["projection"]
    normalize = modules.modules[-1].kind == "Normalize"
    return EmbeddingHead(pooling=_pooling(modules.pooling), normalize=normalize, **(projection | last))


def _dense(fields: Fields) -> dict[str, Any]:
    """Width, bias and activation of a linear map."""
    fields.expect(module_input_name="sentence_embedding", module_output_name="sentence_embedding")
    name = str(fields.get("activation_function", "torch.nn.modules.activation.Tanh")).rpartition(".")[2]
    if name not in _ACTIVATIONS:
        raise CheckpointError(f"{fields.origin}: activation_function is {name}; zoo knows {', '.join(_ACTIVATIONS)}")
    return {
        "projection": fields["out_features"],
        "projection_bias": fields.get("bias", True),
        "activation": _ACTIVATIONS[name],
    }


def _pooling(fields: Fields) -> Literal["first", "last", "mean", "max"]:
    fields.expect(include_prompt=True)
    modes = fields.get("pooling_mode")
    if modes is None:
        named = [name for name, value in fields.values.items() if name.startswith("pooling_mode_") and value is True]
        modes = [name.removeprefix("pooling_mode_") for name in named]
    modes = modes if isinstance(modes, list) else [modes]
    if len(modes) != 1 or modes[0] not in POOLINGS:
        raise CheckpointError(
            f"{fields.origin}: the pooling modes are {modes}; zoo has one of {', '.join(sorted(POOLINGS))}"
        )
    return POOLINGS[modes[0]]


class ModuleTensors:
    """The transformer's tensors, and those of the dense layers under their paths: `2_Dense/linear.weight`."""

    def __init__(self, modules: Modules):
        """Raises CheckpointError where a file is missing or broken."""
        self._parts: dict[str, Tensors] = {"": open_weights(modules.transformer)}
        for dense in modules.dense:
            self._parts[f"{dense.path}/"] = open_weights(modules.folder / dense.path)
        self.origin = str(modules.folder)
        self.shapes: Mapping[str, Shape] = {
            prefix + name: shape for prefix, part in self._parts.items() for name, shape in part.shapes.items()
        }

    def read(self, name: str) -> np.ndarray:
        """One tensor."""
        folder, slash, own = name.rpartition("/")
        return self._parts[folder + slash].read(own)


def write_modules(modules: Modules, folder: Path, entries: Iterable[tuple], max_shard_bytes: int) -> None:
    """Write modules.json, the modules' folders, and `entries` as `export_params` gives them."""
    entries = list(entries)
    write_folder(folder, [entry for entry in entries if "/" not in entry[0]], max_shard_bytes)
    first, *rest = modules.modules
    listed = [{**first.entry, "path": ""}, *(module.entry for module in rest)]
    (folder / "modules.json").write_text(json.dumps(listed, indent=2) + "\n")
    for name, content in modules.settings.items():
        (folder / name).write_text(json.dumps(content, indent=2) + "\n")
    for module in rest:
        (folder / module.path).mkdir(exist_ok=True)
        if module.fields.values:
            (folder / module.path / "config.json").write_text(json.dumps(module.fields.values, indent=2) + "\n")
    for dense in modules.dense:
        own = [(name.rpartition("/")[2], *rest) for name, *rest in entries if name.startswith(f"{dense.path}/")]
        write_folder(folder / dense.path, own, max_shard_bytes)
