"""Imports point one way, nothing heavy or foreign is imported, and `import zoo` is light."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ALLOWED = {
    "zoo": set(),
    "config": set(),
    "serialization": set(),
    "compilation": set(),
    "kernels": set(),
    "disentangled": {"config"},
    "remat": set(),
    "rotary": {"config"},
    "partition": {"kernels"},
    "experts": {"config", "kernels", "partition"},
    "layers": {"config", "disentangled", "experts", "kernels", "rotary"},
    "embeddings": {"config", "kernels", "layers", "partition"},
    "stack": {"config", "embeddings", "kernels", "layers", "remat", "rotary"},
    "heads": {"config", "kernels", "layers"},
    "transformer": {"config", "embeddings", "heads", "layers", "remat", "stack"},
    "recurrence": {"config", "kernels", "layers", "remat"},
    "recurrent": {"config", "embeddings", "heads", "layers", "recurrence", "remat", "transformer"},
    "image_tokens": {"config", "layers"},
    "generation_config": set(),
    "decoder_prompt": set(),
    "logits": {"generation_config"},
    "beam_search": {"generation_config"},
    "generate": {"beam_search", "generation_config", "logits"},
    "dual": {"config", "remat", "transformer"},
    "weights": set(),
    "formats": {"weights"},
    "tokenization": {"formats", "weights"},
    "architectures": {"config", "weights"},
    "data": set(),
    "static": {"data"},
    "tasks": {"data", "generate", "generation_config", "logits", "partition", "static"},
    "training": set(),
    "quantization": {"config", "training", "weights"},
    "sentences": {"architectures", "config", "formats", "weights"},
    "bundle": {
        "architectures",
        "config",
        "data",
        "decoder_prompt",
        "dual",
        "generate",
        "generation_config",
        "recurrent",
        "sentences",
        "training",
        "transformer",
    },
    "pretrained": {
        "architectures",
        "bundle",
        "compilation",
        "config",
        "data",
        "dual",
        "formats",
        "quantization",
        "recurrent",
        "sentences",
        "serialization",
        "tokenization",
        "training",
        "transformer",
        "weights",
    },
    "saving": {
        "architectures",
        "bundle",
        "config",
        "data",
        "formats",
        "quantization",
        "sentences",
        "serialization",
        "tokenization",
        "training",
        "weights",
    },
    "recipes": {
        "bundle",
        "config",
        "data",
        "generate",
        "generation_config",
        "image_tokens",
        "inspection",
        "kernels",
        "layers",
        "pretrained",
        "recurrent",
        "remat",
        "saving",
        "serialization",
        "stack",
        "tasks",
        "tokenization",
        "training",
        "transformer",
        "weights",
    },
    "inspection": {
        "bundle",
        "config",
        "data",
        "dual",
        "kernels",
        "layers",
        "pretrained",
        "recurrent",
        "stack",
        "static",
        "tokenization",
        "training",
        "transformer",
    },
    "lm_eval": {"bundle", "config", "pretrained", "recipes", "training"},
    "cli": {"compilation", "generation_config", "pretrained", "recipes", "serialization", "training"},
}
"""What each part of zoo may import, besides itself."""
FOREIGN = {"torch", "transformers", "tensorflow"}
KERNEL_LIBRARIES = {"jax", "numpy"}
OPTIONAL = {"mosaic.py": {"tokamax", "absl"}}
"""Extras of single backends, imported when they run."""


def imported(path: Path) -> set[str]:
    """Full names of the modules that a file imports, anywhere in it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def part_of(path: Path) -> str:
    parts = path.relative_to(ROOT / "zoo").with_suffix("").parts
    return "zoo" if parts == ("__init__",) else parts[0]


FILES = sorted((ROOT / "zoo").rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_one_way(path):
    part = part_of(path)
    assert part in ALLOWED, f"{part} is new: say in ALLOWED what it may import"
    if part == "zoo":
        return  # its imports are lazy; the test below runs them
    for name in imported(path):
        first, *rest = name.split(".")
        assert first not in FOREIGN, f"{path} imports {name}"
        if first == "zoo" and rest:
            assert rest[0] in ALLOWED[part] | {part}, f"{path} imports {name}: {part} may import {ALLOWED[part]}"
        elif part == "kernels" and first not in sys.stdlib_module_names:
            assert first in KERNEL_LIBRARIES | OPTIONAL.get(path.name, set()), (
                f"{path} imports {name}: kernels need JAX and NumPy alone"
            )


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    return done.stdout.strip()


def test_import_zoo_is_light():
    heavy = run("import sys, zoo; print(*sorted({m.split('.')[0] for m in sys.modules} & "
                "{'jax', 'flax', 'numpy', 'grain', 'orbax', 'tensorflow_datasets', 'matplotlib'}))")  # fmt: skip
    assert heavy == ""
    seconds = run("import time, jax; t = time.perf_counter(); import zoo; print(time.perf_counter() - t)")
    assert float(seconds) < 0.3


def test_attention_needs_jax_alone():
    found = run(
        "import sys, zoo; zoo.attention; print(*sorted({m.split('.')[0] for m in sys.modules} & "
        "{'flax', 'optax', 'grain', 'orbax', 'tensorflow_datasets', 'sentencepiece', 'matplotlib', 'cattrs', 'tyro'}))"
    )
    assert found == ""


def test_public_names_exist():
    assert (
        run("import zoo; [getattr(zoo, name) for name in zoo.__all__]; print(sorted(zoo.__all__) == zoo.__all__)")
        == "True"
    )
    done = subprocess.run([sys.executable, "-c", "import zoo; zoo.atention"], capture_output=True, text=True, cwd=ROOT)
    assert "has no attribute 'atention'" in done.stderr


def test_training_stack_has_no_tensorflow_or_torch():
    found = run(
        "import sys, zoo.cli, zoo.recipes.job, zoo.training.scalars; zoo.training.scalars._import_tensorboard(); "
        "print(*({'tensorflow', 'torch', 'transformers'} & set(sys.modules)))"
    )
    assert found == ""
