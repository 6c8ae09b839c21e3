"""metrics.csv: one row a logged step, the same bytes however often the run was interrupted.

Only what a step computes is written, never a time: a row holds that step's own values, no running mean that a
resume would lose. The newest row waits in memory until the next one, so that an evaluation can join it.
"""

import csv
import io
import os
from pathlib import Path
from typing import Any

import numpy as np

from zoo.training.run_record import write_text

FIRST_COLUMNS = ("step", "tokens", "loss", "grad_norm", "learning_rate")


def _format(value: Any) -> str:
    """Return the shortest text that reads back as the same number in its own precision."""
    return str(value) if isinstance(value, (str, int, np.float32)) else repr(float(value))


class MetricsFile:
    """Appends rows to a CSV; columns appear when first seen, and then the file is rewritten at once."""

    def __init__(self, path: str | Path | None):
        """None writes nowhere: of several processes one has the file."""
        self.path = None if path is None else Path(path)
        self._columns: list[str] = list(FIRST_COLUMNS)
        self._row: dict[str, str] | None = None
        self._file: io.FileIO | None = None

    def open(self, step: int) -> None:
        """Keep the rows up to a step, drop the later ones, and append from there."""
        if self.path is None:
            return
        rows = [row for row in read_metrics(self.path) if int(row["step"]) <= step]
        for row in rows:
            self._columns += [name for name in row if name not in self._columns]
        self._row = rows.pop() if rows and int(rows[-1]["step"]) == step else None
        self._rewrite(rows)

    def write(self, step: int, values: dict[str, Any]) -> None:
        """Add a step's values, to its row if it is the newest one."""
        if self.path is None:
            return
        if self._row is None or int(self._row["step"]) != step:
            self._append()
            self._row = {"step": str(step)}
        self._row |= {name: _format(value) for name, value in values.items()}
        new = [name for name in values if name not in self._columns]
        if new:
            self._columns += new
            self._rewrite([row for row in read_metrics(self.path) if row["step"] != str(step)])

    def has(self, step: int, prefix: str) -> bool:
        """Return whether the newest row is of this step and has a column that begins with a prefix."""
        row = self._row
        return row is not None and row["step"] == str(step) and any(name.startswith(prefix) for name in row)

    @property
    def newest(self) -> dict[str, float]:
        """The values of the newest row, which can still grow."""
        return {name: float(value) for name, value in (self._row or {}).items() if name != "step"}

    def flush(self) -> None:
        """Put every row on the disk, the newest too; it can still grow."""
        if self._file is not None:
            position = self._file.tell()
            self._put([self._row] if self._row else [])
            os.fsync(self._file.fileno())
            self._file.seek(position)  # the newest row is written again when it is complete

    def close(self) -> None:
        """Write what is left."""
        file, self._file = self._file, None
        if file is not None:
            with file:
                _write_all(file, self._encode([self._row] if self._row else []))
                file.truncate()

    def _append(self) -> None:
        if self._row is not None:
            self._put([self._row])
        self._row = None

    def _put(self, rows: list[dict[str, str]]) -> None:
        if self._file is not None:
            _write_all(self._file, self._encode(rows))

    def _encode(self, rows: list[dict[str, str]]) -> bytes:
        text = io.StringIO()
        writer = csv.DictWriter(text, self._columns, restval="", lineterminator="\n")
        writer.writerows(rows)
        return text.getvalue().encode()

    def _rewrite(self, rows: list[dict[str, str]]) -> None:
        file, self._file = self._file, None
        if file is not None:
            file.close()
        head = (",".join(self._columns) + "\n").encode() + self._encode(rows)
        # The newest row too: its checkpoint may be committed, and then nobody writes the row again.
        newest = self._encode([self._row] if self._row else [])
        write_text(self.path, (head + newest).decode())
        # Unbuffered: a full disk is met where a row is written, not when Python tidies up.
        self._file = open(self.path, "r+b", buffering=0)  # noqa: SIM115
        self._file.seek(len(head))  # the newest row is written again when it is complete


def _write_all(file: io.FileIO, data: bytes) -> None:
    while data:
        data = data[file.write(data) :]


def read_metrics(path: str | Path) -> list[dict[str, str]]:
    """Return the rows of a metrics.csv as text, empty cells left out; a torn last line is left out too."""
    path = Path(path)
    if not path.is_file():
        return []
    text = path.read_text(encoding="utf-8")
    whole = text[: text.rfind("\n") + 1]
    rows = csv.DictReader(io.StringIO(whole))
    return [{name: value for name, value in row.items() if name and value} for row in rows if row["step"].isdigit()]
