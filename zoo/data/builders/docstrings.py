"""zoo_docstrings: what the packages that every installation of zoo has say of their functions and classes, in English:
{"name", "package", "summary", "body", "entry", "text"}.

`summary` is a docstring's first paragraph, `body` the paragraphs of prose that follow, `entry` the signature and all
that follows the summary, `text` the whole docstring, dedented. Sources are parsed and never run. Left out: names that
begin with an underscore, tests, vendored packages, and docstrings without a summary of a few words. A text that several
names share counts once.

The split is by module: what is held out comes from files that train has not seen.
"""

import ast
import functools
import hashlib
import importlib.metadata
import inspect
import re
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import tensorflow_datasets as tfds

from zoo.data.builders.embedded import EmbeddedBuilder

PACKAGES = ("jax", "numpy", "scipy", "matplotlib", "flax", "optax", "grain", "babel", "rich", "huggingface_hub")
"""Packages that zoo needs, by their import names; the standard library is beside them as "python"."""
HELD_OUT = 0.1
FIELDS = ("name", "package", "summary", "body", "entry", "text")

_SKIPPED = re.compile(r"(^|/)(_?tests?|testing|conftest|_vendor|vendored|externals?|idlelib|site-packages)(/|$)")
_PROSE = re.compile(r"[A-Za-z][^\n]*[a-z][^\n]*[.:?!)`'\"]?\s*$")
_SECTION = re.compile(
    r"^(?:\.\. |:param|:return|\w[\w ]*\n[-=~]{3,}|(?:Args|Arguments|Returns?|Raises|Yields|Examples?|References|"
    r"Notes?|See Also|Attributes|Parameters|Warnings?):)",
)


def is_held_out(module: str) -> bool:
    """Whether the module, a path with slashes that begins with its package, is in the validation split."""
    return int(hashlib.sha256(module.encode()).hexdigest()[:8], 16) < HELD_OUT * 2**32


def versions() -> dict[str, str]:
    """The packages that are read, with their versions."""
    found = {"python": ".".join(map(str, sys.version_info[:3]))}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


@functools.cache
def read_documents() -> tuple[tuple[str, dict[str, str]], ...]:
    """Every docstring once, after the module that it stands in, in a fixed order. A minute of parsing."""
    return tuple(_read_documents())


def _read_documents() -> Iterator[tuple[str, dict[str, str]]]:
    seen: set[str] = set()
    for package in versions():
        for module, path in _modules(package):
            for name, arguments, docstring in _docstrings(path):
                document = describe(docstring, name + arguments)
                if document is not None and document["text"] not in seen:
                    seen.add(document["text"])
                    dotted = module.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
                    yield module, {"name": f"{dotted}.{name}", "package": package, **document}


def describe(docstring: str, signature: str) -> dict[str, str] | None:
    """A docstring's summary, prose, entry and whole text; None without a summary of three words."""
    text = inspect.cleandoc(docstring).strip()
    paragraphs = [part.strip() for part in re.split(r"\n\s*\n", text) if part.strip()]
    if not paragraphs or _SECTION.match(paragraphs[0]):
        return None
    summary = " ".join(paragraphs[0].split())
    if len(summary.split()) < 3 or len(summary) > 300 or not summary.isascii():
        return None
    body = []
    for paragraph in paragraphs[1:]:
        if _SECTION.match(paragraph):
            break
        if paragraph.startswith(">>>") or not _PROSE.search(paragraph) or len(paragraph.split()) < 5:
            continue
        body.append(" ".join(paragraph.split()))
    entry = "\n\n".join([signature, *paragraphs[1:]])
    return {"summary": summary, "body": "\n".join(body), "entry": entry, "text": text}


def _modules(package: str) -> Iterator[tuple[str, Path]]:
    """Source files of a package by their paths from it, sorted."""
    if package == "python":
        root = Path(sysconfig.get_path("stdlib"))
        names = sys.stdlib_module_names
        paths = [path for path in root.rglob("*.py") if path.relative_to(root).parts[0].removesuffix(".py") in names]
        prefix = ""
    else:
        distribution = importlib.metadata.distribution(package)
        root = Path(str(distribution.locate_file(package)))
        paths, prefix = list(root.rglob("*.py")), f"{package}/"
    for path in sorted(paths):
        module = prefix + path.relative_to(root).as_posix()
        if not _SKIPPED.search(module):
            yield module, path


def _docstrings(path: Path) -> Iterator[tuple[str, str, str]]:
    """Public functions, classes and methods of a file: names, arguments in parentheses, and docstrings."""
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):
        return
    yield from _inside(tree, "")


def _inside(node: ast.AST, prefix: str) -> Iterator[tuple[str, str, str]]:
    for child in getattr(node, "body", ()):
        if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and not child.name.startswith("_"):
            docstring = ast.get_docstring(child, clean=False)
            if docstring:
                arguments = "" if isinstance(child, ast.ClassDef) else f"({ast.unparse(child.args)})"
                yield prefix + child.name, arguments, docstring
            if isinstance(child, ast.ClassDef):
                yield from _inside(child, f"{prefix}{child.name}.")


class ZooDocstrings(EmbeddedBuilder):
    """What installed packages say of their functions and classes."""

    VERSION = tfds.core.Version(".".join(map(str, sys.version_info[:3])))
    # Another release of any package makes another set.
    BUILDER_CONFIGS: ClassVar = [
        tfds.core.BuilderConfig(
            name="edition_2_" + hashlib.sha256(repr(versions()).encode()).hexdigest()[:8], version=VERSION
        )
    ]
    FEATURES: ClassVar = {field: tfds.features.Text() for field in FIELDS}

    def _generate_examples(self, split):
        for index, (module, document) in enumerate(read_documents()):
            if is_held_out(module) == (split == "validation"):
                yield index, document
