"""zoo_stdlib: the running Python's own standard library as text, English documentation and source code.

One document a module, and one for each topic of `help()`; files are decoded as they declare, with line feeds
for line ends. Left out: tests, tables of characters, what depends on the platform, and the packages that
distributions split off (tkinter, idlelib, venv, …), so that two installations of one Python agree.

The split is by file. All topics come from one file, and repeat one another, so they go to train together.
"""

import hashlib
import sys
import sysconfig
import tokenize
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import tensorflow_datasets as tfds

from zoo.data.builders.embedded import EmbeddedBuilder

# The expected share of the files. Of the bytes it is 5 to 7 %, by the Python: 0.45 MB of 8.3 in 3.11.
HELD_OUT = 0.07
TOPICS = "pydoc_data/topics.py"

_SKIPPED_FOLDERS = frozenset({"test", "tests", "idle_test", "__pycache__", "site-packages", "dist-packages"})
_SKIPPED_PACKAGES = frozenset(
    {
        # Split off by distributions, or gone in the next Python.
        *("distutils", "ensurepip", "idlelib", "lib2to3", "tkinter", "turtledemo", "venv"),
        "encodings",  # mostly tables: 1.4 MB of which the text is a few kB
        "__phello__",
    }
)


def is_held_out(name: str) -> bool:
    """Whether the file `name` (relative to the library, with slashes) is in the validation split."""
    return name != TOPICS and int(hashlib.sha256(name.encode()).hexdigest()[:8], 16) < HELD_OUT * 2**32


def list_modules(library: Path) -> list[str]:
    """Every module source that belongs to the set, by its path relative to `library`, sorted."""
    names = []
    for path in library.rglob("*.py"):
        parts = path.relative_to(library).parts
        top = parts[0].removesuffix(".py")
        if top in _SKIPPED_PACKAGES or _SKIPPED_FOLDERS.intersection(parts):
            continue
        # Whatever else is in the folder, the build's configuration for instance, is not the library.
        if top in sys.stdlib_module_names:
            names.append("/".join(parts))
    return sorted(names)


def read_documents(library: Path) -> Iterator[dict[str, str]]:
    """All documents, in a fixed order. No empty one, and no text twice."""
    seen = set()
    for document in _read_all(library):
        if document["text"].strip() and document["text"] not in seen:
            seen.add(document["text"])
            yield document


def _read_all(library: Path) -> Iterator[dict[str, str]]:
    for name in list_modules(library):
        if name == TOPICS:
            yield from _read_topics()
        else:
            with tokenize.open(library / name) as file:
                yield {"name": name, "text": file.read()}


def _read_topics() -> Iterator[dict[str, str]]:
    from pydoc_data.topics import topics

    kept = []
    # A long topic often contains shorter ones whole ("compound" has "if", "while", …).
    for topic, text in sorted(topics.items(), key=lambda item: (-len(item[1]), item[0])):
        if not any(text.strip() in other for other in kept):
            kept.append(text)
            yield {"name": f"{TOPICS}:{topic}", "text": text}


class ZooStdlib(EmbeddedBuilder):
    """The running Python's standard library: {"text", "name"}."""

    VERSION = tfds.core.Version(".".join(map(str, sys.version_info[:3])))
    BUILDER_CONFIGS: ClassVar = [tfds.core.BuilderConfig(name="edition_1", version=VERSION)]
    FEATURES: ClassVar = {field: tfds.features.Text() for field in ("text", "name")}

    def _generate_examples(self, split):
        library = Path(sysconfig.get_path("stdlib"))
        for index, document in enumerate(read_documents(library)):
            file = document["name"].partition(":")[0]
            if is_held_out(file) == (split == "validation"):
                yield index, document
