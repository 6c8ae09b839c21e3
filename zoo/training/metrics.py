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

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self._columns: list[str] = list(FIRST_COLUMNS)
        self._row: dict[str, str] | None = None
        self._file: io.TextIOWrapper | None = None

    def open(self, step: int) -> None:
        """Keep the rows up to a step, drop the later ones, and append from there."""
        rows = [row for row in read_metrics(self.path) if int(row["step"]) <= step]
        for row in rows:
            self._columns += [name for name in row if name not in self._columns]
        self._row = rows.pop() if rows and int(rows[-1]["step"]) == step else None
        self._rewrite(rows)

    def write(self, step: int, values: dict[str, Any]) -> None:
        """Add a step's values, to its row if it is the newest one."""
        if self._row is None or int(self._row["step"]) != step:
            self._append()
            self._row = {"step": str(step)}
        self._row |= {name: _format(value) for name, value in values.items()}
        new = [name for name in values if name not in self._columns]
        if new:
            self._columns += new
            if self._file is not None:
                self._file.flush()
            self._rewrite([row for row in read_metrics(self.path) if row["step"] != str(step)])

    def has(self, step: int, prefix: str) -> bool:
        """Return whether the newest row is of this step and has a column that begins with a prefix."""
        row = self._row
        return row is not None and row["step"] == str(step) and any(name.startswith(prefix) for name in row)

    def flush(self) -> None:
        """Put every row on the disk, the newest too; it can still grow."""
        if self._file is None:
            return
        position = self._file.tell()
        row = self._row
        self._append()
        self._file.flush()
        os.fsync(self._file.fileno())
        self._row = row
        if row is not None:  # the next write starts over the row just written
            self._file.seek(position)

    def close(self) -> None:
        """Write what is left."""
        if self._file is not None:
            self._append()
            self._file.truncate()
            self._file.close()
            self._file = None

    def _append(self) -> None:
        if self._row is not None and self._file is not None:
            self._file.write(self._lines([self._row]))
        self._row = None

    def _lines(self, rows: list[dict[str, str]]) -> str:
        text = io.StringIO()
        writer = csv.DictWriter(text, self._columns, restval="", lineterminator="\n")
        writer.writerows(rows)
        return text.getvalue()

    def _rewrite(self, rows: list[dict[str, str]]) -> None:
        if self._file is not None:
            self._file.close()
        write_text(self.path, ",".join(self._columns) + "\n" + self._lines(rows))
        self._file = open(self.path, "r+", encoding="utf-8", newline="", buffering=1)  # noqa: SIM115
        self._file.seek(0, os.SEEK_END)


def read_metrics(path: str | Path) -> list[dict[str, str]]:
    """Return the rows of a metrics.csv as text, empty cells left out; a torn last line is left out too."""
    path = Path(path)
    if not path.is_file():
        return []
    text = path.read_text(encoding="utf-8")
    whole = text[: text.rfind("\n") + 1]
    rows = csv.DictReader(io.StringIO(whole))
    return [
        {name: value for name, value in row.items() if name and value}
        for row in rows
        if row["step"].isdigit()
    ]
