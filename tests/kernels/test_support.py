"""The page of what each backend takes is up to date and leaves nothing out."""

import pytest
from comparison import ALL
from support import FEATURES, PAGE, SEQUENCES, STEPS, page

from zoo.kernels.attention import BACKENDS


@pytest.mark.slow  # half a minute: each case is traced for each backend, in each dtype
def test_page_is_up_to_date():
    assert PAGE.read_text() == page(), "run python tests/kernels/support.py"


def test_page_has_every_case_and_backend():
    assert set(FEATURES) == set(ALL)
    assert {*SEQUENCES, *STEPS} >= set(BACKENDS) - {"small_blocks"}
