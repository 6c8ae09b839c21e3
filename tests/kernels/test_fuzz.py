"""Random calls against the oracle; `fuzz.py` runs as many as are asked for."""

import fuzz
import pytest


@pytest.mark.parametrize("seed", range(4))
def test_a_random_structure(seed):
    assert fuzz.check(fuzz.make_structure(seed), range(10))["compared"] == 10


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(100, 160))
def test_more_random_structures(seed):
    fuzz.check(fuzz.make_structure(seed), range(20))
