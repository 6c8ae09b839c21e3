"""The embedded datasets: TFDS builders that make themselves from what every installation has.

Nothing is downloaded. A builder's version is the version of what it reads (the Python, the Babel), its
config the edition of the rules below it, so a change of either makes a new folder and never mixes two.

`prepare` writes into a folder of its own and renames it into place when it is complete: a process that is
killed leaves nothing half-made behind, and of two processes that build at once the second finds the first's
work, which holds the same examples, and drops its own.
"""

import contextlib
import importlib
import io
import os
import shutil
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import tensorflow_datasets as tfds

EMBEDDED = {
    "zoo_dates": ("zoo.data.builders.dates", "ZooDates"),
    "zoo_docstrings": ("zoo.data.builders.docstrings", "ZooDocstrings"),
    "zoo_digits": ("zoo.data.builders.digits", "ZooDigits"),
    "zoo_parallel": ("zoo.data.builders.parallel", "ZooParallel"),
    "zoo_phrases": ("zoo.data.builders.phrases", "ZooPhrases"),
    "zoo_pictures": ("zoo.data.builders.pictures", "ZooPictures"),
    "zoo_questions": ("zoo.data.builders.questions", "ZooQuestions"),
    "zoo_stdlib": ("zoo.data.builders.stdlib", "ZooStdlib"),
}

_STAGING = ".building-"
_STALE_SECONDS = 24 * 3600


def prepare(name: str, directory: Path) -> "tfds.core.DatasetBuilder":
    """The builder of the embedded set `name`, its array_record files present under `directory`."""
    module, class_name = EMBEDDED[name]
    builder_class = getattr(importlib.import_module(module), class_name)
    builder = builder_class(data_dir=directory, file_format="array_record")
    if not _is_complete(builder):
        directory.mkdir(parents=True, exist_ok=True)
        _remove_stale(directory)
        with tempfile.TemporaryDirectory(dir=directory, prefix=_STAGING) as staging:
            _build(builder_class, Path(staging), Path(builder.data_path))
        builder = builder_class(data_dir=directory, file_format="array_record")
    return builder


def _is_complete(builder: "tfds.core.DatasetBuilder") -> bool:
    # TFDS writes this file last, and the whole folder appears by one rename.
    return (Path(builder.data_path) / "dataset_info.json").exists()


def _build(builder_class: type, staging: Path, destination: Path) -> None:
    import tensorflow_datasets as tfds

    staged = builder_class(data_dir=staging, file_format="array_record")
    # TFDS reports through progress bars and prints; a run's output is its own.
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        staged.download_and_prepare(download_config=tfds.download.DownloadConfig(try_download_gcs=False))
    destination.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.rename(staged.data_path, destination)
    except OSError:
        if not (destination / "dataset_info.json").exists():
            raise


def _remove_stale(directory: Path) -> None:
    """Drop what killed builds left, once it is too old to belong to a running one."""
    for staging in directory.glob(f"{_STAGING}*"):
        with contextlib.suppress(OSError):
            if time.time() - staging.stat().st_mtime > _STALE_SECONDS:
                shutil.rmtree(staging, ignore_errors=True)
