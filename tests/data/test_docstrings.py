"""What a docstring's summary and prose are."""

from zoo.data.builders.docstrings import describe, is_held_out, versions

NUMPY = """
    Clip (limit) the values
    in an array.

    Given an interval, values outside the interval are clipped to
    the interval edges.

        >>> not_prose(1)

    Equivalent to but faster than the ufuncs of the same name, as is well known.

    Parameters
    ----------
    a : array_like
        Array containing elements to clip.

    Nothing that stands after a section is prose of the whole.
"""
GOOGLE = """Returns the sum of things.

  Longer words about that sum and what it is.

  Args:
    x: a thing.
"""


def test_summary_and_prose():
    found = describe(NUMPY, "clip(a)")
    assert found["summary"] == "Clip (limit) the values in an array."
    assert found["body"].split("\n") == [
        "Given an interval, values outside the interval are clipped to the interval edges.",
        "Equivalent to but faster than the ufuncs of the same name, as is well known.",
    ]
    assert found["text"].startswith("Clip (limit) the values\nin an array.\n\nGiven")
    assert found["entry"].startswith("clip(a)\n\nGiven an interval") and found["summary"] not in found["entry"]
    assert describe(GOOGLE, "total(x)")["body"] == "Longer words about that sum and what it is."


def test_what_has_no_summary_is_left_out():
    assert describe("Parameters\n----------\nx : int", "f(x)") is None
    assert describe("Too short", "f()") is None
    assert describe("", "f()") is None


def test_the_split_is_by_module():
    names = [f"package/module{n}.py" for n in range(1000)]
    assert 60 < sum(map(is_held_out, names)) < 140


def test_what_is_read_says_its_version():
    assert {"python", "jax", "numpy"} <= versions().keys()
