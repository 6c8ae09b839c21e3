"""Folders of sentence-transformers (Reimers & Gurevych 2019): what follows the transformer, as an `EmbeddingHead`.

modules.json lists the transformer, pooling, perhaps dense layers, and perhaps normalisation, each in a subfolder. Reads
and writes them; the transformer itself is loaded like any other. Other modules are refused by name. A folder without
modules.json is a transformer and the mean over its tokens, as there.
"""

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from zoo.architectures import Architecture, Fields
from zoo.config import Activation, DenseConfig, EmbeddingHead, ModelConfig, Pooling, TransformerConfig
from zoo.formats.folder import open_weights
from zoo.formats.safetensors import read_json, read_list, write_folder
from zoo.weights import CheckpointError, Rule, Shape, Tensors, linear

POOLINGS: dict[str, Pooling] = {
    "cls": "first",
    "max": "max",
    "mean": "mean",
    "mean_sqrt_len": "mean_root_length",
    "weightedmean": "weighted_mean",
    "lasttoken": "last",
}
"""Their modes and ours, in the order in which several are concatenated. New files have them in one field, old ones
have a field for each, `pooling_mode_mean_tokens`."""
_TRANSFORMERS = ("Transformer", "BERT", "RoBERTa", "DistilBERT", "ALBERT", "CamemBERT", "XLMRoBERTa")
"""What the first module is called, of late and in the first releases."""
_ACTIVATIONS: dict[str, Activation | None] = {
    "Identity": None,
    "Tanh": "tanh",
    "ReLU": "relu",
    "GELU": "gelu",
    "SiLU": "silu",
}
_SETTINGS = "config_sentence_transformers.json"


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
    """Contents of the other files, by name: prompts, the longest text."""

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
        """The linear maps, first to last."""
        return [module for module in self.modules if module.kind == "Dense"]

    @property
    def prompts(self) -> dict[str, str]:
        """What may stand before a text, by name."""
        found = self.settings.get(_SETTINGS, {}).get("prompts") or {}
        if not isinstance(found, dict) or not all(isinstance(text, str) for text in found.values()):
            raise CheckpointError(f"{self.folder / _SETTINGS}: prompts is {found!r}; it must name texts")
        return found

    @property
    def max_length(self) -> int | None:
        """Tokens of a text at the most, where the folder says."""
        found = self._transformer_setting("max_seq_length")
        return found if isinstance(found, int) and found > 0 else None

    def prepare(self, texts: Sequence[str], prompt: str | None) -> list[str]:
        """Texts as the tokenizer is to see them, behind the prompt of a name; None is the folder's own, if any.

        ValueError for an unknown name.
        """
        name = self.settings.get(_SETTINGS, {}).get("default_prompt_name") if prompt is None else prompt
        if name is not None and name not in self.prompts:
            raise ValueError(f"{name!r} is no prompt of this checkpoint; it has {', '.join(self.prompts) or 'none'}")
        whole = [(("" if name is None else self.prompts[name]) + text).strip() for text in texts]
        return [text.lower() for text in whole] if self._transformer_setting("do_lower_case") else whole

    def _transformer_setting(self, name: str) -> Any:
        return next((found[name] for file, found in self.settings.items() if file != _SETTINGS and name in found), None)


def read_modules(folder: Path) -> Modules | None:
    """The modules of a folder; None where it has no modules.json.

    Raises:
        CheckpointError: a module that zoo does not know, in an order that it does not follow, or in another place.
    """
    if not (folder / "modules.json").exists():
        return None
    modules = tuple(_read_module(folder, entry) for entry in read_list(folder / "modules.json"))
    kinds = [module.kind for module in modules]
    ending = [kind for kind in kinds[2:] if kind != "Dropout"]
    known = kinds and kinds[0] in _TRANSFORMERS and kinds[1:2] == ["Pooling"]
    if not known or ending not in (["Dense"] * ending.count("Dense") + end for end in ([], ["Normalize"])):
        inner = modules[0].path if modules and not known else ""
        there = f"zoo.load({str(folder / inner)!r})" if inner else 'zoo.load(…, head="base")'
        raise CheckpointError(
            f"{folder / 'modules.json'} lists {', '.join(kinds)}; zoo computes Transformer, Pooling, any Dense, "
            f"and at most one Normalize, in this order. {there} gives the first module alone"
        )
    return Modules(folder=folder, modules=modules, settings=_read_settings(folder, folder / modules[0].path))


def plain_modules(folder: Path, width: int) -> Modules:
    """A transformer and the mean over its tokens."""
    entries = [
        {"idx": number, "name": str(number), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for number, (path, kind) in enumerate((("", "Transformer"), ("1_Pooling", "Pooling")))
    ]
    pooling = Fields({"word_embedding_dimension": width, "pooling_mode_mean_tokens": True}, str(folder))
    modules = (
        Module(entry=entries[0], kind="Transformer", path="", fields=Fields({}, str(folder))),
        Module(entry=entries[1], kind="Pooling", path="1_Pooling", fields=pooling),
    )
    return Modules(folder=folder, modules=modules, settings=_read_settings(folder, folder))


def _read_settings(folder: Path, transformer: Path) -> dict[str, Any]:
    """Files beside the modules; the transformer's was named after its kind, sentence_roberta_config.json."""
    files = [folder / _SETTINGS, *sorted(transformer.glob("sentence_*_config.json"))]
    return {file.name: read_json(file) for file in files if file.exists()}


def _read_module(folder: Path, entry: Any) -> Module:
    origin = folder / "modules.json"
    kind, path = (entry.get("type"), entry.get("path")) if isinstance(entry, dict) else (None, None)
    if not isinstance(kind, str) or not kind.startswith("sentence_transformers."):
        raise CheckpointError(f"{origin} names the class {kind!r}; zoo knows those of sentence_transformers alone")
    if not isinstance(path, str) or "\\" in path or path.startswith("/") or ".." in Path(path).parts:
        raise CheckpointError(f"{origin} names the folder {path!r}; modules lie in subfolders beside it")
    path = path.rstrip("/")
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
        for index, module in enumerate(modules.dense):
            ours = "projection" if module is modules.dense[-1] else f"inner_{index}"
            rows += linear(f"{module.path}/linear", f"head/{ours}")
        return rows

    return dataclasses.replace(
        architecture,
        classes={**architecture.classes, "embedding": architecture.classes[own]},
        config_from_hf=config_from_hf,
        weights=weights,
    )


def _head(modules: Modules) -> EmbeddingHead:
    modes, dense = _poolings(modules), [_dense(module.fields) for module in modules.dense]
    last = dense[-1:] and {
        "projection": dense[-1].width,
        "projection_bias": dense[-1].bias,
        "activation": dense[-1].activation,
    }
    return EmbeddingHead(
        pooling=modes[0],
        also_pooled=tuple(modes[1:]),
        inner=tuple(dense[:-1]),
        normalize=modules.modules[-1].kind == "Normalize",
        **(last or {}),
    )


def _dense(fields: Fields) -> DenseConfig:
    fields.expect(module_input_name="sentence_embedding", module_output_name="sentence_embedding")
    name = str(fields.get("activation_function", "torch.nn.modules.activation.Tanh")).rpartition(".")[2]
    if name not in _ACTIVATIONS:
        raise CheckpointError(f"{fields.origin}: activation_function is {name}; zoo knows {', '.join(_ACTIVATIONS)}")
    return DenseConfig(width=fields["out_features"], bias=fields.get("bias", True), activation=_ACTIVATIONS[name])


def _poolings(modules: Modules) -> list[Pooling]:
    """What the vectors are made of, in order."""
    fields = modules.pooling
    if any(modules.prompts.values()):
        fields.expect(include_prompt=True)
    modes = fields.get("pooling_mode")
    if modes is None:
        named = [name for name, value in fields.values.items() if name.startswith("pooling_mode_") and value is True]
        modes = [name.removeprefix("pooling_mode_") for name in named]
    modes = [str(mode).removesuffix("_tokens").removesuffix("_token") for mode in _as_list(modes)]
    if not modes or not set(modes) <= set(POOLINGS):
        raise CheckpointError(f"{fields.origin}: the pooling modes are {modes}; zoo has {', '.join(POOLINGS)}")
    return [ours for theirs, ours in POOLINGS.items() if theirs in modes]


def _as_list(value: Any) -> list:
    return value if isinstance(value, list) else [value]


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
    write_settings(modules, folder)
    for dense in modules.dense:
        own = [(name.rpartition("/")[2], *rest) for name, *rest in entries if name.startswith(f"{dense.path}/")]
        write_folder(folder / dense.path, own, max_shard_bytes)


def write_settings(modules: Modules, folder: Path) -> None:
    """Write modules.json and what is in the modules' folders, but for tensors."""
    first, *rest = modules.modules
    listed = [{**first.entry, "path": ""}, *(module.entry for module in rest)]
    (folder / "modules.json").write_text(json.dumps(listed, indent=2) + "\n")
    for name, content in modules.settings.items():
        (folder / name).write_text(json.dumps(content, indent=2) + "\n")
    for module in rest:
        (folder / module.path).mkdir(parents=True, exist_ok=True)
        if module.fields.values:
            (folder / module.path / "config.json").write_text(json.dumps(module.fields.values, indent=2) + "\n")
