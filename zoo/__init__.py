"""zoo: every transformer family in JAX and Flax on one core and one attention op.

The names below load on first use, so `import zoo` costs nothing beyond the interpreter: JAX itself is
imported only when something that needs it is touched.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from zoo.architectures import list_architectures
    from zoo.config import RecurrentConfig, TransformerConfig
    from zoo.kernels.attention import attention
    from zoo.pretrained import load
    from zoo.recurrent import Recurrent
    from zoo.saving import save
    from zoo.transformer import Transformer
    from zoo.weights import CheckpointError

_HOME = {
    "attention": "zoo.kernels.attention",
    "CheckpointError": "zoo.weights",
    "list_architectures": "zoo.architectures",
    "load": "zoo.pretrained",
    "Recurrent": "zoo.recurrent",
    "RecurrentConfig": "zoo.config",
    "save": "zoo.saving",
    "Transformer": "zoo.transformer",
    "TransformerConfig": "zoo.config",
}
__all__ = [
    "CheckpointError",
    "Recurrent",
    "RecurrentConfig",
    "Transformer",
    "TransformerConfig",
    "attention",
    "list_architectures",
    "load",
    "save",
]
__version__ = "0.1.0"


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(f"module 'zoo' has no attribute {name!r}; it has {', '.join(sorted(_HOME))}")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__():
    return sorted({*globals(), *_HOME})
