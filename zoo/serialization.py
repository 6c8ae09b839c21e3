"""Frozen configurations to JSON-able dicts and back, checked field by field on the way in."""

import functools
import types
from dataclasses import is_dataclass
from typing import Any, TypeVar, Union, get_args, get_origin

import cattrs

Config = TypeVar("Config")
KIND = "kind"
"""The key that names the class where a field may hold one of several."""


def as_dict(config: Any) -> dict[str, Any]:
    """Nested dicts of what JSON can hold; a choice between classes is tagged with the class's name."""
    return _converter().unstructure(config)


def from_dict(cls: type[Config], fields: dict[str, Any], origin: str) -> Config:
    """The configuration that `as_dict` gave.

    Raises:
        ValueError: a field that `cls` does not have, lacks or refuses; the message names `origin` and the field.
    """
    try:
        return _converter().structure(fields, cls)
    except (cattrs.BaseValidationError, ValueError, TypeError, KeyError) as error:
        reasons = "; ".join(cattrs.transform_error(error, path=cls.__name__, format_exception=_reason))
        raise ValueError(f"{origin} does not describe a {cls.__name__} of this version of zoo: {reasons}") from None


def _reason(error: BaseException, kind: Any) -> str:
    # The configurations' own messages name the value and the mend; cattrs would put "invalid value" instead.
    return str(error) if type(error) is ValueError else cattrs.v.format_exception(error, kind)


def _members(kind: Any) -> list[type]:
    """The classes of a union of two or more dataclasses, else nothing."""
    if get_origin(kind) not in (Union, types.UnionType):
        return []
    members = [member for member in get_args(kind) if member is not types.NoneType]
    return members if len(members) > 1 and all(map(is_dataclass, members)) else []


@functools.cache
def _converter() -> cattrs.Converter:
    converter = cattrs.Converter(forbid_extra_keys=True)

    def write_choice(kind: Any):
        return lambda value: None if value is None else {KIND: type(value).__name__, **converter.unstructure(value)}

    def read_choice(kind: Any):
        classes = {member.__name__: member for member in _members(kind)}
        # What was written while the field could hold one class alone has no tag; that class comes first.
        first = next(iter(classes))

        def read(value: Any, _: Any) -> Any:
            if value is None and types.NoneType in get_args(kind):
                return None
            name = value.get(KIND, first) if isinstance(value, dict) else None
            if name not in classes:
                raise ValueError(f"{KIND} is {name!r}; it must be one of {', '.join(classes)}")
            return converter.structure({k: v for k, v in value.items() if k != KIND}, classes[name])

        return read

    converter.register_unstructure_hook_factory(lambda kind: bool(_members(kind)), write_choice)
    converter.register_structure_hook_factory(lambda kind: bool(_members(kind)), read_choice)
    return converter
