"""Checks that the dataclasses of `zoo.config` share; each error names the field, its value and the mend."""

from typing import Any, get_args


def require(condition: bool, message: str) -> None:
    """ValueError with the message unless the condition holds."""
    if not condition:
        raise ValueError(message)


def positive(config: Any, *names: str) -> None:
    """Each field is above zero."""
    for name in names:
        value = getattr(config, name)
        require(value > 0, f"{type(config).__name__}.{name} is {value}; give a number above zero")


def fraction(config: Any, *names: str) -> None:
    """Each field is in [0, 1)."""
    for name in names:
        value = getattr(config, name)
        require(0 <= value < 1, f"{type(config).__name__}.{name} is {value}; give a rate in [0, 1)")


def one_of(config: Any, name: str, literal: Any) -> None:
    """The field is one of a `Literal`'s values."""
    value, choices = getattr(config, name), get_args(literal)
    require(
        value in choices,
        f"{type(config).__name__}.{name} is {value!r}; choose one of {', '.join(map(repr, choices))}",
    )


def all_of(config: Any, name: str, literal: Any) -> None:
    """Every item of the field is one of a `Literal`'s values."""
    value, choices = getattr(config, name), get_args(literal)
    wrong = [item for item in value if item not in choices]
    require(
        not wrong,
        f"{type(config).__name__}.{name} contains {wrong}; choose from {', '.join(map(repr, choices))}",
    )


def subset(config: Any, name: str, literal: Any) -> None:
    """The same, and none twice."""
    all_of(config, name, literal)
    value = getattr(config, name)
    require(len(set(value)) == len(value), f"{type(config).__name__}.{name} is {value}; name each slot once")
