"""The page of parity has a row for every architecture and head."""

from ledger import PAGE
from small import CASES


def test_every_case_has_its_row():
    cells = [tuple(cell.strip() for cell in line.split("|")[1:3]) for line in PAGE.read_text().splitlines()]
    rows = [cell for cell in cells if len(cell) == 2]
    assert rows[2:] == CASES, "run python tests/parity/ledger.py"
