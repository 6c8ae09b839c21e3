"""What a file of this folder says about an architecture, and how it reads the reference's config.json."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from zoo.config import Activation, ModelConfig
from zoo.weights import CheckpointError, Rule, Tensors

ACTIVATIONS: dict[str, Activation] = {
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_accurate": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "quick_gelu": "quick_gelu",
    "relu": "relu",
    "relu2": "relu_squared",
    "silu": "silu",
    "swish": "silu",
    "tanh": "tanh",
}
"""The reference's names of activations, and ours."""
_ACTIVATION_NAMES: dict[Activation, str] = {
    "gelu": "gelu",
    "gelu_tanh": "gelu_pytorch_tanh",
    "quick_gelu": "quick_gelu",
    "relu": "relu",
    "relu_squared": "relu2",
    "silu": "silu",
    "tanh": "tanh",
}


class Fields:
    """config.json, read field by field. Every error names the file and the field."""

    def __init__(self, values: Mapping[str, Any], origin: str, tensors: Tensors | None = None):
        """`origin` is the file, for messages; `tensors` are the weights beside it."""
        self.values, self.origin, self.tensors = dict(values), origin, tensors

    def __getitem__(self, name: str) -> Any:
        """A field that must be there."""
        if self.values.get(name) is None:
            raise CheckpointError(f"{self.origin} has no {name}; is it complete?")
        return self.values[name]

    def get(self, name: str, default: Any = None) -> Any:
        """A field, or the reference's default where it is absent or null; what is true or false must be just that."""
        value = self.values.get(name)
        if value is not None and isinstance(default, bool) and value not in (True, False):
            raise CheckpointError(f"{self.origin}: {name} is {value!r}; it must be true or false")
        return default if value is None else value

    def nullable(self, name: str, default: Any) -> Any:
        """A field whose null means that the model does without; the default only where it is absent."""
        return self.values.get(name, default)

    def with_second_names(self, **names: str) -> "Fields":
        """The same, with fields also read under other names: `n_head="num_attention_heads"`, the first one winning."""
        found = {own: self.get(own, self.get(other)) for own, other in names.items()}
        return Fields(self.values | found, self.origin)

    def fields(self, name: str) -> "Fields":
        """A nested object."""
        value = self.get(name, {})
        if not isinstance(value, dict):
            raise CheckpointError(f"{self.origin}: {name} is {value!r}; it must be an object")
        return Fields(value, f"{self.origin}: {name}")

    def with_defaults(self, defaults: Mapping[str, Any]) -> "Fields":
        """The same, with the reference's defaults in place of what is absent or null."""
        values = dict(defaults) | {k: v for k, v in self.values.items() if v is not None}
        return Fields(values, self.origin, self.tensors)

    def replaced(self, **values: Any) -> "Fields":
        """The same, with other values; None leaves a field as it is."""
        return Fields(self.values | {n: value for n, value in values.items() if value is not None}, self.origin)

    def activation(self, name: str, default: str) -> Activation:
        """An activation in our words."""
        value = self.get(name, default)
        if not isinstance(value, str) or value not in ACTIVATIONS:
            raise CheckpointError(f"{self.origin}: {name} is {value!r}; zoo knows {', '.join(ACTIVATIONS)}")
        return ACTIVATIONS[value]

    def expect(self, **values: Any) -> None:
        """Fields that change the mathematics in a way zoo does not follow: absent, null, or exactly this value."""
        for name, wanted in values.items():
            found = self.values.get(name)
            if found is not None and found != wanted:
                raise CheckpointError(f"{self.origin}: {name} is {found!r}; zoo has this architecture with {wanted!r}")

    def are_tied(self, first: str, second: str) -> bool:
        """Whether the weights have one tensor for both names: one is missing, or the two are equal.

        For families whose config.json may say otherwise.
        """
        if self.tensors is None or not {first, second} <= self.tensors.shapes.keys():
            return True
        same = self.tensors.shapes[first] == self.tensors.shapes[second]
        return same and np.array_equal(self.tensors.read(first), self.tensors.read(second))

    def num_labels(self, default: int = 2) -> int:
        """Classes of a classifier, as the reference counts them."""
        labels = self.get("id2label")
        return len(labels) if labels else int(self.get("num_labels", default))


def shift_right(ids: np.ndarray, fields: Mapping[str, Any]) -> np.ndarray:
    """`decoder_input_ids` from `input_ids`: the start token, then all but the last. config.json says the token."""
    start = np.full_like(ids[:, :1], fields["decoder_start_token_id"])
    return np.concatenate([start, ids[:, :-1]], 1)


def activation_name(activation: Activation) -> str:
    """The reference's name of an activation."""
    return _ACTIVATION_NAMES[activation]


def keep_activation_names(fields: Mapping[str, Any], before: Mapping[str, Any]) -> dict[str, Any]:
    """`fields` with the activations' names of `before` where these mean the same; the reference rounds them apart."""
    kept = dict(fields)
    for name, value in fields.items():
        old = before.get(name)
        if isinstance(value, dict) and isinstance(old, dict):
            kept[name] = keep_activation_names(value, old)
        elif isinstance(old, str) and old in ACTIVATIONS and ACTIVATIONS[old] == ACTIVATIONS.get(value):
            kept[name] = old
    return kept


@dataclass(frozen=True, kw_only=True)
class Part:
    """A model of its own inside another's checkpoint."""

    model_type: str
    head: str
    fields: Callable[[Fields], Fields]
    """Its configuration, from the whole's."""


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """One `model_type` of the reference library: its configuration and its weights, both ways."""

    model_type: str
    classes: Mapping[str, str]
    """The reference's class for each head: "base", "masked_lm", "causal_lm", "sequence_classification", ..."""
    config_from_hf: Callable[[Fields, str], ModelConfig]
    """config.json and a head's name to our configuration."""
    config_to_hf: Callable[[Any], dict[str, Any]]
    """The reverse: the fields that the mathematics depends on."""
    weights: Callable[[Any, str], Sequence[Rule]]
    """The table, for a head's name. Names are a head model's; files of a base model lack `prefix`."""
    prefix: str = ""
    """Of the base model's names in files with a head."""
    other_prefixes: Mapping[str, str] = field(default_factory=dict)
    """What stands for `prefix` in the files of some heads."""
    ignored: tuple[str, ...] = ()
    """Patterns of tensors that carry no parameter."""
    also_reads: Mapping[str, str] = field(default_factory=dict)
    """Other classes of the reference, and the head that zoo gives them."""
    decoder_inputs: Mapping[str, Callable[[np.ndarray, Mapping[str, Any]], np.ndarray]] = field(default_factory=dict)
    """For heads whose `decoder_input_ids` may be left out: how they are made from `input_ids` and config.json."""
    compose: Callable[[Fields], "Architecture"] | None = None
    """For models that are two joined: the architecture of those that a config.json names, in place of this one."""
    decoder_masks: Mapping[str, Callable[[np.ndarray, Mapping[str, Any]], np.ndarray]] = field(default_factory=dict)
    """For heads whose decoder hides padding where no mask is given: `decoder_attention_mask` from the ids it reads."""
    parts: Mapping[str, Part] = field(default_factory=dict)
    """Models inside this one, by the names that `load(head=...)` knows them under: a dual encoder's towers."""
    defaults: Mapping[str, Any] = field(default_factory=dict)
    """What the reference takes for fields that config.json lacks and generation reads: ids that begin, end and pad."""
    tiny: Mapping[str, Any] = field(default_factory=dict)
    """Fields of config.json of a small model that uses everything, for the parity tests."""

    def name_in_file(self, name: str, head: str) -> str:
        """A tensor's name in files of a head, for its name in the table."""
        of_base = self.classes[head] == self.classes.get("base")
        prefix = "" if of_base else self.other_prefixes.get(head, self.prefix)
        return prefix + name.removeprefix(self.prefix) if name.startswith(self.prefix) else name

    def head_of(self, class_name: str) -> str | None:
        """The head of a class of the reference; None for a class that zoo does not know."""
        own = {name: head for head, name in self.classes.items()} | dict(self.also_reads)
        return own.get(class_name)


def label_fields(labels: Sequence[str]) -> dict[str, Any]:
    """The fields of config.json that name classes."""
    numbered = {str(number): label for number, label in enumerate(labels)}
    return {"id2label": numbered, "label2id": {label: int(number) for number, label in numbered.items()}}


def merge_fields(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """Nested fields of two configurations, the new ones where both have them."""
    both = {name: merge_fields(old[name], value) for name, value in new.items() if isinstance(old.get(name), dict)}
    return old | new | both
