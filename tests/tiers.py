"""Two tiers of one suite: the default tier has every mechanism and promise once, the slow tier the rest of products.

`pytest` runs the default tier, `pytest -m slow` the rest, `pytest -m ""` both. tests/README.md tells what is where.
"""

from collections.abc import Callable, Iterable
from typing import Any

import pytest


def tiered(cases: Iterable[Any], default: Callable[..., bool] | Iterable[Any]) -> list[Any]:
    """Make parameters of which all but some run in the slow tier alone.

    Args:
        cases: values for `pytest.mark.parametrize`, tuples for several arguments.
        default: the cases of the default tier, or a function of a case's arguments that says whether it is one.

    Raises:
        ValueError: a default case that is no case, or none at all.
    """
    cases = [case if isinstance(case, tuple) else (case,) for case in cases]
    if callable(default):
        chosen = [case for case in cases if default(*case)]
    else:
        chosen = [case if isinstance(case, tuple) else (case,) for case in default]
    unknown = [case for case in chosen if case not in cases]
    if unknown or not chosen:
        raise ValueError(f"the default tier has {unknown or 'no case'}; the cases are {cases}")
    return [case_or_slow(case, case in chosen) for case in cases]


def case_or_slow(case: tuple, in_default: bool) -> Any:
    """Make one parameter, of both tiers or of the slow one."""
    return pytest.param(*case, marks=() if in_default else pytest.mark.slow)
