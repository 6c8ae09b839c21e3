"""The resolved run as JSON: what a folder was trained with, and whether a command may go on with it.

Compared field by field before anything compiles. Fields that do not change the mathematics may differ.
"""

import json
import math
import os
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

# Where, how fast and how visibly a run happens, not what it computes (up to rounding).
FREE_FIELDS = (
    "mesh",
    "mesh.*",
    "folder",
    "layers",
    "remat",
    "training.accumulate",
    "training.max_skipped",
    "training.log_every",
    "training.evaluate_every",
    "training.checkpoint_every",
    "training.keep",
    "training.prefetch",
    "training.workers",
    "training.tensorboard",
    "training.loggers",
    "training.profile_steps",
)
_ABSENT = "absent"


def as_json(value: Any) -> Any:
    """Return a value as it reads back from JSON: tuples become lists, what JSON lacks becomes its string."""
    return json.loads(json.dumps(value, default=str))


def _fields(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict) and value:
        for key, part in value.items():
            yield from _fields(part, f"{name}.{key}" if name else str(key))
    else:
        yield name, value


def _equal(left: Any, right: Any) -> bool:
    both_nan = all(isinstance(x, float) and math.isnan(x) for x in (left, right))
    return both_nan or (left == right and isinstance(left, bool) == isinstance(right, bool))


def find_difference(saved: Any, wanted: Any, free: tuple[str, ...] = ()) -> tuple[str, Any, Any] | None:
    """Return (field, saved value, wanted value) of the first field that differs and is not free, or None."""
    old, new = dict(_fields(as_json(saved))), dict(_fields(as_json(wanted)))
    patterns = FREE_FIELDS + free
    if old.get("schedule.name") == new.get("schedule.name") == "constant":
        patterns += ("training.num_steps",)  # a constant schedule can simply go on
    for field in [*new, *(field for field in old if field not in new)]:
        if any(fnmatchcase(field, pattern) for pattern in patterns):
            continue
        if field not in old and new[field] is None:
            continue  # None is absent: a setting that is younger than the run
        if not _equal(old.get(field, _ABSENT), new.get(field, _ABSENT)):
            return field, old.get(field, _ABSENT), new.get(field, _ABSENT)
    return None


def check_same_run(saved: Any, wanted: Any, folder: Path, free: tuple[str, ...] = ()) -> None:
    """Raise ValueError naming the first field in which the folder's run differs from the one asked for."""
    difference = find_difference(saved, wanted, free)
    if difference is not None:
        field, old, new = difference
        raise ValueError(
            f"{folder} was trained with {field} = {old!r}, this run has {field} = {new!r}: set it back to go "
            f"on with the old run, or choose another folder (or remove that one) to start anew"
        )


def write_text(path: Path, text: str) -> None:
    """Replace a file at once and durably: a reader sees the old or the new text, never a part."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Replace a file at once and durably."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_run(folder: Path, resolved: Any) -> None:
    """Write the resolved run to `run.json` in its folder."""
    write_text(folder / "run.json", json.dumps(as_json(resolved), indent=2) + "\n")


def read_run(folder: str | Path) -> Any:
    """Return the resolved run of a folder; raise ValueError if it holds none."""
    path = Path(folder) / "run.json"
    if not path.is_file():
        raise ValueError(f"{folder} is not a run folder: it has no run.json; name the folder that training wrote to")
    try:
        return json.loads(path.read_bytes())
    except ValueError as error:
        mend = "the command that trained the run writes it anew"
        raise ValueError(f"{path} is damaged ({error}): {mend}") from None
