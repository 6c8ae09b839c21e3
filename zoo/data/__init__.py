"""Data: a dataset's name or a file in, fixed-shape integer batches out.

    dataset = open_dataset(DataConfig(name="zoo_stdlib"))         # TFDS, built at first use; or a local file
    tokenizer = fit_tokenizer(dataset.split("train"), TokenizerConfig(vocab_size=4096))
    batches = packed_batches(dataset.split("train"), tokenizer, sequence_length=256, batch_size=32, seed=0)
    next(batches)["tokens"]                                       # [32, 257] int32

The names load on first use: describing a run needs neither TFDS, nor Grain, nor SentencePiece.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from zoo.data.baselines import ngram_bits_per_byte, unigram_cross_entropy, xz_bits_per_byte
    from zoo.data.batches import class_number, label_batches, packed_batches, pair_batches, row_batches, scored_windows
    from zoo.data.config import DataConfig, TokenizerConfig
    from zoo.data.sources import Dataset, open_dataset, read_texts
    from zoo.data.tokenizer import TextTokenizer, Tokenizer, fit_tokenizer, train_tokenizer
    from zoo.data.windows import window_batches

_HOME = {
    "DataConfig": "config",
    "Dataset": "sources",
    "TextTokenizer": "tokenizer",
    "Tokenizer": "tokenizer",
    "TokenizerConfig": "config",
    "fit_tokenizer": "tokenizer",
    "class_number": "batches",
    "label_batches": "batches",
    "ngram_bits_per_byte": "baselines",
    "open_dataset": "sources",
    "packed_batches": "batches",
    "pair_batches": "batches",
    "read_texts": "sources",
    "row_batches": "batches",
    "scored_windows": "batches",
    "train_tokenizer": "tokenizer",
    "unigram_cross_entropy": "baselines",
    "window_batches": "windows",
    "xz_bits_per_byte": "baselines",
}
__all__ = [
    "DataConfig",
    "Dataset",
    "TextTokenizer",
    "Tokenizer",
    "TokenizerConfig",
    "class_number",
    "fit_tokenizer",
    "label_batches",
    "ngram_bits_per_byte",
    "open_dataset",
    "packed_batches",
    "pair_batches",
    "read_texts",
    "row_batches",
    "scored_windows",
    "train_tokenizer",
    "unigram_cross_entropy",
    "window_batches",
    "xz_bits_per_byte",
]


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(f"module 'zoo.data' has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(importlib.import_module(f"zoo.data.{_HOME[name]}"), name)


def __dir__():
    return sorted({*globals(), *_HOME})
