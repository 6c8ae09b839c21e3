"""Which architecture of the reference a model is, for models that came from no checkpoint.

An architecture fits where its config.json, written and read again, describes exactly the model, and its table has a
row for every parameter: then what the reference computes from the file is what zoo does. What training drops is no
part of that. Attention's scale may move into the kernels of the queries, for families that have none (T5).
"""

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from zoo.architectures import find_architecture, list_architectures
from zoo.architectures.architecture import Architecture, Fields, label_fields
from zoo.config import AttentionConfig, ModelConfig, TransformerConfig
from zoo.weights import CheckpointError, export_params, flatten, unflatten

_UNTRANSLATABLE = (AttributeError, TypeError, ValueError, LookupError, AssertionError, ArithmeticError)
"""What translating a configuration may raise that an architecture was not made for."""


@dataclass(frozen=True, kw_only=True)
class Fit:
    """A model in the reference's words."""

    architecture: Architecture
    head: str
    fields: dict[str, Any]
    """config.json."""
    config: ModelConfig
    """The model's, or one that says the same in the architecture's way."""
    params: Any
    """Those of `config`."""


class WrittenTensors:
    """The tensors that a model's file would have."""

    def __init__(
        self, architecture: Architecture, head: str, config: ModelConfig, params: Any, origin: str = "this model"
    ):
        """Nothing is made before it is read."""
        self.origin = origin
        rows = architecture.weights(config, head)
        self.is_whole = flatten(params).keys() <= {path for row in rows for path in row.ours}
        entries = [(architecture.name_in_file(name, head), *rest) for name, *rest in export_params(rows, params)]
        self.shapes = {name: shape for name, shape, *_ in entries}
        self._makers = {name: make for name, *_, make in entries}

    def read(self, name: str) -> Any:
        """One tensor."""
        return self._makers[name]()


def find_fitting(config: ModelConfig, params: Any, ids: Mapping[str, int]) -> Fit:
    """The first architecture, by name, that describes this model; `ids` are special tokens by the reference's fields.

    Raises:
        CheckpointError: none does; the message says what the nearest one has otherwise.
    """
    fit = _find(config, params, ids)
    if isinstance(fit, str) and isinstance(config, TransformerConfig):
        unscaled = _find(*_without_scales(config, params), ids)
        fit = unscaled if isinstance(unscaled, Fit) else fit
    if isinstance(fit, str):
        raise CheckpointError(
            f"no architecture that zoo knows of the reference describes this model{fit}; layout='zoo' saves any"
        )
    return fit


def _find(config: ModelConfig, params: Any, ids: Mapping[str, int]) -> Fit | str:
    """What fits as it is, or what the nearest architecture has otherwise."""
    nearest: tuple[int, str] | None = None
    for architecture in filter(None, map(find_architecture, list_architectures())):
        for head, name in architecture.classes.items():
            try:
                fields = _write(architecture, head, config, ids)
                tensors = WrittenTensors(architecture, head, config, params)
                again = architecture.config_from_hf(Fields(fields, name, tensors), head)
            except _UNTRANSLATABLE:
                continue
            found = list(_differences("", _plain(config), _plain(again)))
            if not found and tensors.is_whole:
                return Fit(architecture=architecture, head=head, fields=fields, config=config, params=params)
            distance = sum(count for _, count in found)
            if nearest is None or distance < nearest[0]:
                nearest = (distance, f"{name}, differs in {', '.join(text for text, _ in found)}")
    return "" if nearest is None else f": the nearest, {nearest[1]}"


def _without_scales(config: TransformerConfig, params: Any) -> tuple[TransformerConfig, Any]:
    """The same model with unscaled attention scores: its queries are smaller by as much."""
    leaves = flatten(params)
    for stack in ("encoder", "decoder"):
        for kind in ("attention", "cross_attention"):
            attention = getattr(getattr(config, stack), kind, None)
            if attention is None or attention.qk_norm is not None or attention.disentangled is not None:
                continue
            scale = attention.head_size**-0.5 if attention.scale is None else attention.scale
            own = dataclasses.replace(getattr(config, stack), **{kind: dataclasses.replace(attention, scale=1.0)})
            config = dataclasses.replace(config, **{stack: own})
            queries = [path for path in leaves if path.startswith(f"{stack}/{kind}/query/")]
            leaves |= {path: leaves[path] * scale for path in queries}
    return config, unflatten(leaves)


def _write(architecture: Architecture, head: str, config: ModelConfig, ids: Mapping[str, int]) -> dict[str, Any]:
    """config.json, whole."""
    # What nobody knows is null, for the reference's defaults are of its own vocabularies.
    unknown = dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id"))
    fields = unknown | dict(architecture.defaults) | dict(ids) | architecture.config_to_hf(config)
    count = getattr(getattr(config, "head", None), "num_classes", None)
    if count is not None:
        fields |= label_fields([f"LABEL_{index}" for index in range(count)])
    return fields | {"model_type": architecture.model_type, "architectures": [architecture.classes[head]]}


def _plain(value: Any) -> Any:
    """A configuration without what it may say in two ways, and what only training reads."""
    if not dataclasses.is_dataclass(value) or isinstance(value, type):
        return value
    parts = {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    value = dataclasses.replace(value, **parts | ({"dropout": 0.0} if "dropout" in parts else {}))
    if isinstance(value, AttentionConfig):
        grouped = value.kv_heads != value.num_heads
        scaled = value.scale != value.head_size**-0.5
        return dataclasses.replace(
            value, num_kv_heads=value.num_kv_heads if grouped else None, scale=value.scale if scaled else None
        )
    return value


def _differences(path: str, ours: Any, theirs: Any) -> Iterator[tuple[str, int]]:
    """What differs, and how much: a part that one of the two lacks is as many differences as it has fields."""
    parts = [value for value in (ours, theirs) if dataclasses.is_dataclass(value)]
    if type(ours) is type(theirs) and parts:
        for field in dataclasses.fields(ours):
            inner = f"{path}.{field.name}" if path else field.name
            yield from _differences(inner, getattr(ours, field.name), getattr(theirs, field.name))
    elif ours != theirs:
        one, other = (type(value).__name__ if value in parts else repr(value) for value in (ours, theirs))
        yield f"{path} ({one}, and not {other})", max([1, *(len(dataclasses.fields(part)) for part in parts)])
