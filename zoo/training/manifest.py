"""The manifest of a checkpoint: a sha256 of each of its files, written before the checkpoint is committed.

A step whose files are not those of its manifest, byte by byte and no more and no fewer, is damaged, and is named with
the file at fault. The manifest has the format of `sha256sum`, which checks it too, and ends with a hash of itself.
Standard library alone: a run is verified without JAX.
"""

import hashlib
import json
import os
from collections.abc import Collection, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

MANIFEST = "manifest.sha256"
CHECKPOINTS = "checkpoints"
MARK = {"manifest": MANIFEST}
"""Kept by Orbax in the step's metadata: a manifest that is not there was there once, and is missing."""
METADATA = "_CHECKPOINT_METADATA"
THREADS = 8
"""Files hashed at once: hashing leaves Python to the training thread, and disks answer faster to several."""


class DamagedError(ValueError):
    """A checkpoint is not what was written."""


def write_manifest(folder: Path) -> None:
    """Hash every file of a folder, and write the manifest to the disk."""
    text = _as_text(_hash_files(folder, _list_files(folder)))
    with open(folder / MANIFEST, "w", encoding="utf-8", newline="") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def sync_files(folder: Path) -> None:
    """See that every file of a folder is on the disk: what is committed outlives a power cut."""

    def sync(name: str) -> None:
        with open(folder / name, "rb") as file:
            os.fsync(file.fileno())

    with ThreadPoolExecutor(THREADS, "sync") as pool:
        list(pool.map(sync, _list_files(folder)))


def find_damage(folder: Path, items: Collection[str] | None = None) -> str | None:
    """Return what is wrong with a step's folder, or with some of its items, in words; None if nothing is.

    What no manifest covers, being older than manifests, is not found wrong: `has_manifest` tells.
    """
    if not has_manifest(folder):
        return f"{MANIFEST} is missing" if _lost_manifest(folder) else None
    try:
        expected = _parse((folder / MANIFEST).read_text(encoding="utf-8"))
    except (ValueError, OSError):
        return f"{MANIFEST} has changed"
    wanted = [name for name in expected if _is_of(name, items)]
    present = {name for name in _list_files(folder) if _is_of(name, items)}
    for name in wanted:
        if name not in present:
            return f"{name} is missing"
    extra = sorted(present.difference(wanted))
    if extra:
        return f"{extra[0]} was added"
    try:
        found = _hash_files(folder, wanted)
    except OSError as error:
        return f"{Path(error.filename or folder).name} cannot be read: {error.strerror}"
    return next((f"{name} has changed" for name in wanted if found[name] != expected[name]), None)


def has_manifest(folder: Path) -> bool:
    """Return whether a step can be verified."""
    return (folder / MANIFEST).is_file()


def list_steps(folder: str | Path) -> list[int]:
    """Return the steps of a run folder's committed checkpoints, oldest first, from their names alone."""
    return sorted(int(path.name) for path in (Path(folder) / CHECKPOINTS).glob("*") if path.name.isdigit())


def describe_steps(folder: Path) -> Iterator[tuple[str, str, bool]]:
    """Yield (name, state in words, whether it is damaged) of every checkpoint of a run folder, oldest first.

    Those of the models that the run brings along, in folders of its own, come after its own, with the folder's name.
    """
    yield from _describe_steps(folder)
    for inner in sorted(folder.glob(f"*/{CHECKPOINTS}")):
        for name, state, damaged in _describe_steps(inner.parent):
            yield f"{inner.parent.name}: {name}", state, damaged


def _describe_steps(folder: Path) -> Iterator[tuple[str, str, bool]]:
    for step in list_steps(folder):
        path = folder / CHECKPOINTS / str(step)
        damage = find_damage(path)
        if damage is not None:
            yield f"step {step}", f"damaged: {damage}", True
        elif has_manifest(path):
            yield f"step {step}", "whole", False
        else:
            yield f"step {step}", "cannot be verified: it was written before checkpoints had manifests", False
    for path in sorted((folder / CHECKPOINTS).glob("damaged-*")):
        yield path.name, "set aside earlier, and not used", False


def leave_out(folder: Path, item: str) -> None:
    """Take an item that a copy of a step lacks out of its manifest; what else is said of the files stays."""
    if has_manifest(folder):
        digests = _parse((folder / MANIFEST).read_text(encoding="utf-8"))
        kept = {name: digest for name, digest in digests.items() if not _is_of(name, (item,))}
        (folder / MANIFEST).write_text(_as_text(kept), encoding="utf-8", newline="")


def set_aside(path: Path) -> Path:
    """Rename a damaged step's folder so that it is kept and no longer used; return its new name."""
    name = f"damaged-{int(path.name):06d}"
    others = len([*path.parent.glob(name + "*")])
    return path.rename(path.with_name(name if not others else f"{name}-{others + 1}"))


def _is_of(name: str, items: Collection[str] | None) -> bool:
    return items is None or name.split("/", 1)[0] in items


def _lost_manifest(folder: Path) -> bool:
    """Return whether the step was written with a manifest, as far as its metadata can still tell."""
    try:
        metadata = json.loads((folder / METADATA).read_bytes())
        return metadata.get("custom_metadata") == MARK
    except (ValueError, OSError, AttributeError):
        return True  # every step had readable metadata


def _list_files(folder: Path) -> Iterator[str]:
    """Yield the names of all files but the manifest, relative and with slashes, in a fixed order."""
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if name != MANIFEST and not path.is_dir():
            yield name


def _hash_files(folder: Path, names: Iterable[str]) -> dict[str, str]:
    def digest(name: str) -> str:
        with open(folder / name, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    names = list(names)
    with ThreadPoolExecutor(THREADS, "manifest") as pool:
        return dict(zip(names, pool.map(digest, names), strict=True))


def _as_text(digests: dict[str, str]) -> str:
    lines = "".join(f"{digest}  {name}\n" for name, digest in digests.items())
    return f"{lines}# {hashlib.sha256(lines.encode()).hexdigest()} of the lines above\n"


def _parse(text: str) -> dict[str, str]:
    """Invert `_as_text`; ValueError for anything that it did not write."""
    lines = [line.split("  ", 1) for line in text.splitlines()[:-1]]
    digests = {name: digest for digest, name in lines}
    if _as_text(digests) != text:
        raise ValueError("not a manifest")
    return digests
