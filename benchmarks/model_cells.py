"""What models.py measures: models by the fields of their config.json, and suites of cells."""

import dataclasses
import itertools
from collections.abc import Iterator
from typing import Any

FORWARD, TRAINING, DECODE, CACHE = "forward", "training", "decode", "cache"
WORKS = (FORWARD, TRAINING, DECODE, CACHE)
DTYPES = ("float32", "bfloat16")
NO_DROPOUT = dict.fromkeys(
    ("hidden_dropout_prob", "attention_probs_dropout_prob", "resid_pdrop", "embd_pdrop", "attn_pdrop", "dropout_rate"),
    0.0,
)
"""Random numbers differ between the libraries, so that outputs could not be compared with dropout."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shape:
    """A model of the reference library.

    Attributes:
      fields: of its config.json, without what has the library's default.
      heads: by kind of work, the head as zoo calls it.
      images: whether it reads pictures, in the place of ids.
    """

    fields: dict[str, Any]
    heads: dict[str, str]
    images: bool = False


_LANGUAGE_MODEL = {FORWARD: "causal_lm", TRAINING: "causal_lm", DECODE: "causal_lm", CACHE: "causal_lm"}
_SEQ2SEQ = {FORWARD: "seq2seq_lm", TRAINING: "seq2seq_lm", DECODE: "seq2seq_lm"}
_BERT = {FORWARD: "base", TRAINING: "masked_lm"}
_VIT = {FORWARD: "image_classification", TRAINING: "image_classification"}


def _gpt2(width: int, layers: int, heads: int, vocabulary: int, positions: int) -> dict[str, Any]:
    return {"model_type": "gpt2", "n_embd": width, "n_layer": layers, "n_head": heads, "vocab_size": vocabulary,
            "n_positions": positions}  # fmt: skip


def _bert(width: int, layers: int, heads: int, vocabulary: int) -> dict[str, Any]:
    return {"model_type": "bert", "hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": heads,
            "intermediate_size": 4 * width, "vocab_size": vocabulary}  # fmt: skip


def _t5(width: int, layers: int, heads: int, vocabulary: int, **others: Any) -> dict[str, Any]:
    return {"model_type": "t5", "d_model": width, "d_kv": 64, "d_ff": 4 * width, "num_layers": layers,
            "num_heads": heads, "vocab_size": vocabulary, "decoder_start_token_id": 0, "pad_token_id": 0,
            "eos_token_id": 1, **others}  # fmt: skip


def _llama(
    width: int, layers: int, heads: int, kv_heads: int, hidden: int, vocabulary: int, **others: Any
) -> dict[str, Any]:
    return {"model_type": "llama", "hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": heads,
            "num_key_value_heads": kv_heads, "intermediate_size": hidden, "vocab_size": vocabulary,
            "max_position_embeddings": 8192, "rms_norm_eps": 1e-5, **others}  # fmt: skip


def _vit(width: int, layers: int, heads: int, size: int, patch: int = 16) -> dict[str, Any]:
    return {"model_type": "vit", "hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": heads,
            "intermediate_size": 4 * width, "image_size": size, "patch_size": patch}  # fmt: skip


MODELS = {
    "bert-base": Shape(fields=_bert(768, 12, 12, 30522), heads=_BERT),
    "gpt2": Shape(fields=_gpt2(768, 12, 12, 50257, 4096), heads=_LANGUAGE_MODEL),
    "t5-small": Shape(fields=_t5(512, 6, 8, 32128), heads=_SEQ2SEQ),
    "t5-base": Shape(fields=_t5(768, 12, 12, 32128), heads=_SEQ2SEQ),
    "vit-b16": Shape(fields=_vit(768, 12, 12, 224), heads=_VIT, images=True),
    "smollm2-135m": Shape(
        fields=_llama(576, 30, 9, 3, 1536, 49152, tie_word_embeddings=True, rope_theta=100000.0), heads=_LANGUAGE_MODEL
    ),
    "llama-1b": Shape(
        fields=_llama(2048, 16, 32, 8, 8192, 128256, tie_word_embeddings=True, rope_theta=500000.0),
        heads=_LANGUAGE_MODEL,
    ),
    # Small checkpoints, whose first call is long beside what follows.
    "minilm-l6": Shape(fields=_bert(384, 6, 12, 30522), heads=_BERT),
    "flan-t5-small": Shape(
        fields=_t5(512, 8, 6, 32128, d_ff=1024, feed_forward_proj="gated-gelu", tie_word_embeddings=False),
        heads=_SEQ2SEQ,
    ),
    # In the sizes of train.py's recipes for two CPU cores.
    "gpt-tiny": Shape(fields=_gpt2(256, 4, 2, 4096, 128), heads=_LANGUAGE_MODEL),
    "bert-tiny": Shape(fields=_bert(192, 4, 3, 4096), heads=_BERT),
    "t5-tiny": Shape(fields=_t5(192, 3, 3, 4096), heads=_SEQ2SEQ),
    "vit-tiny": Shape(fields=_vit(96, 4, 3, 8, 2), heads=_VIT, images=True),
    # For trying the benchmark itself.
    "bert-toy": Shape(fields=_bert(64, 2, 2, 500), heads=_BERT),
    "gpt2-toy": Shape(fields=_gpt2(64, 2, 2, 500, 512), heads=_LANGUAGE_MODEL),
    "t5-toy": Shape(fields=_t5(64, 2, 2, 500), heads=_SEQ2SEQ),
    "vit-toy": Shape(fields=_vit(64, 2, 2, 64), heads=_VIT, images=True),
    "llama-toy": Shape(fields=_llama(64, 2, 4, 2, 128, 500, tie_word_embeddings=True), heads=_LANGUAGE_MODEL),
}
"""By name. GPT-2 has more positions than the published one, for long caches; nothing else depends on them."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cell:
    """One measurement: a model, what it does, and on how much.

    Attributes:
      dtype: of activations and products; in inference of the weights too. Training keeps float32 weights.
      batch: rows B.
      length: tokens a row T; of an encoder-decoder the source's and the target's; in decoding the prompt's; pictures
        have what their patches make. In the work "cache", the keys in the cache.
      padded: rows of many lengths, the shortest a quarter of the longest.
      new_tokens: that decoding writes.  num_beams: 1 is greedy.
    """

    model: str
    work: str
    dtype: str
    batch: int
    length: int
    padded: bool = False
    new_tokens: int = 0
    num_beams: int = 1

    def __str__(self) -> str:
        """As the tables and plots name it."""
        shape = f"{self.batch}x{self.length}" + (f"+{self.new_tokens}" if self.work == DECODE else "")
        extras = (", padded" if self.padded else "") + (f", beam {self.num_beams}" if self.num_beams > 1 else "")
        return f"{self.model} {self.work} {self.dtype} {shape}{extras}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Grid:
    """Cells of one model and kind of work: (batch, length) in all dtypes."""

    model: str
    work: str
    sizes: tuple[tuple[int, int], ...]
    dtypes: tuple[str, ...] = DTYPES
    padded: tuple[bool, ...] = (False,)
    new_tokens: int = 0
    beams: tuple[int, ...] = (1,)

    def cells(self) -> Iterator[Cell]:
        """All of them."""
        for dtype, (batch, length), padded, beams in itertools.product(
            self.dtypes, self.sizes, self.padded, self.beams
        ):
            yield Cell(model=self.model, work=self.work, dtype=dtype, batch=batch, length=length, padded=padded,
                       new_tokens=self.new_tokens, num_beams=beams)  # fmt: skip


FIRST_CALLS = "first-calls"
_BF16 = ("bfloat16",)
_F32 = ("float32",)
SUITES: dict[str, tuple[Grid, ...]] = {
    # Inference first: a training process asks its C library for more (zoo.training.host), and the rest would profit.
    "default": (
        Grid(model="bert-base", work=FORWARD, sizes=((8, 128), (8, 512))),
        Grid(model="bert-base", work=FORWARD, sizes=((8, 512),), padded=(True,)),
        Grid(model="gpt2", work=FORWARD, sizes=((1, 512),)),
        Grid(model="t5-small", work=FORWARD, sizes=((8, 128),)),
        Grid(model="t5-base", work=FORWARD, sizes=((8, 128),)),
        Grid(model="vit-b16", work=FORWARD, sizes=((8, 197),)),
        Grid(model="gpt2", work=DECODE, sizes=((1, 128), (8, 128)), new_tokens=128),
        Grid(model="smollm2-135m", work=DECODE, sizes=((1, 128),), new_tokens=128),
        Grid(model="t5-small", work=DECODE, sizes=((8, 64),), new_tokens=64, beams=(1, 4)),
        Grid(model="gpt2", work=CACHE, sizes=((1, 128),), dtypes=_F32),
        Grid(model="gpt2", work=TRAINING, sizes=((4, 256),)),
        Grid(model="bert-base", work=TRAINING, sizes=((8, 128), (8, 512))),
        Grid(model="t5-small", work=TRAINING, sizes=((8, 128),)),
        Grid(model="vit-b16", work=TRAINING, sizes=((8, 197),)),
        Grid(model="gpt-tiny", work=TRAINING, sizes=((32, 128),)),
        Grid(model="bert-tiny", work=TRAINING, sizes=((32, 128),)),
        Grid(model="t5-tiny", work=TRAINING, sizes=((32, 64),)),
        Grid(model="vit-tiny", work=TRAINING, sizes=((128, 17),)),
    ),
    "quick": (
        Grid(model="bert-base", work=FORWARD, sizes=((8, 128),)),
        Grid(model="smollm2-135m", work=DECODE, sizes=((1, 32),), new_tokens=32, dtypes=_F32),
        Grid(model="gpt2", work=TRAINING, sizes=((2, 128),)),
    ),
    FIRST_CALLS: (
        Grid(model="minilm-l6", work=FORWARD, sizes=((1, 16),), dtypes=_F32),
        Grid(model="flan-t5-small", work=DECODE, sizes=((1, 16),), new_tokens=16, dtypes=_F32),
        Grid(model="smollm2-135m", work=DECODE, sizes=((1, 16),), new_tokens=16, dtypes=_F32),
    ),
    "gpu": (
        Grid(model="gpt2", work=TRAINING, sizes=((32, 1024),), dtypes=_BF16),
        Grid(model="llama-1b", work=DECODE, sizes=((1, 128),), new_tokens=128, dtypes=_BF16),
        Grid(model="bert-base", work=TRAINING, sizes=((128, 512),), dtypes=_BF16),
        Grid(model="llama-1b", work=TRAINING, sizes=((8, 2048),), dtypes=_BF16),
        Grid(model="t5-base", work=TRAINING, sizes=((64, 512),), dtypes=_BF16),
        Grid(model="bert-base", work=FORWARD, sizes=((128, 512),), dtypes=_BF16, padded=(False, True)),
        Grid(model="gpt2", work=DECODE, sizes=((8, 128),), new_tokens=128, dtypes=_BF16),
        Grid(model="vit-b16", work=TRAINING, sizes=((128, 197),), dtypes=_BF16),
        Grid(model="t5-base", work=DECODE, sizes=((8, 64),), new_tokens=64, beams=(1, 4), dtypes=_BF16),
    ),
    "small": (
        Grid(model="bert-toy", work=FORWARD, sizes=((2, 32),), padded=(False, True)),
        Grid(model="vit-toy", work=FORWARD, sizes=((2, 17),), dtypes=_F32),
        Grid(model="gpt2-toy", work=DECODE, sizes=((2, 16),), new_tokens=16, dtypes=_F32),
        Grid(model="llama-toy", work=DECODE, sizes=((1, 16),), new_tokens=16, dtypes=_BF16),
        Grid(model="t5-toy", work=DECODE, sizes=((2, 16),), new_tokens=16, beams=(1, 4), dtypes=_F32),
        Grid(model="gpt2-toy", work=CACHE, sizes=((1, 32),), dtypes=_F32),
        Grid(model="gpt2-toy", work=TRAINING, sizes=((2, 32),)),
        Grid(model="bert-toy", work=TRAINING, sizes=((2, 32),), dtypes=_F32),
        Grid(model="t5-toy", work=TRAINING, sizes=((2, 32),), dtypes=_F32),
        Grid(model="vit-toy", work=TRAINING, sizes=((2, 17),), dtypes=_F32),
    ),
}
"""Suites by the name that --suite takes."""
