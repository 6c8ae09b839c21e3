"""GGUF files (llama.cpp): metadata and quantised tensors of decoders of Llama's plan, by the hub's names.

The header is read here and not by the `gguf` package, whose reader takes every count in a file for true; every count
and range is checked against the file's size before it is used. Numbers are dequantised by that package, one tensor at a
time, to float32. Experts are left out.
"""

import math
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from zoo.weights import CheckpointError, Shape

_NUMBERS = {
    0: "<u1", 1: "<i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4", 6: "<f4", 7: "?", 10: "<u8", 11: "<i8", 12: "<f8",
}  # fmt: skip
_STRING, _ARRAY = 8, 9
_MAX_DIMENSIONS = 4


@dataclass(frozen=True)
class _Family:
    """How a `general.architecture` differs from the others."""

    model_type: str
    reference_class: str
    pairs_interleaved: bool = False
    """Rows of queries and keys are ordered for rotation of neighbours."""
    norms_raised: bool = False
    """Norms hold one more than the hub's files."""
    names: Mapping[str, str] | None = None
    """Tensors whose names differ from `_LAYER`."""


_SANDWICH = {
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
_FAMILIES = {
    "llama": _Family("llama", "LlamaForCausalLM", pairs_interleaved=True),
    "qwen2": _Family("qwen2", "Qwen2ForCausalLM"),
    "qwen3": _Family("qwen3", "Qwen3ForCausalLM"),
    "phi3": _Family("phi3", "Phi3ForCausalLM", names={"ffn_up": "mlp.gate_up_proj"}),
    "gemma": _Family("gemma", "GemmaForCausalLM", norms_raised=True),
    "gemma2": _Family("gemma2", "Gemma2ForCausalLM", norms_raised=True, names=_SANDWICH),
    "gemma3": _Family("gemma3_text", "Gemma3ForCausalLM", norms_raised=True, names=_SANDWICH),
}
_TOP = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_qkv": "self_attn.qkv_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_FREQUENCIES = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")
"""Tensors that belong to config.json."""


@dataclass(frozen=True)
class _Entry:
    """A tensor in the file: shape with rows first, kind of number, and its bytes."""

    shape: Shape
    kind: int
    start: int
    stop: int


class GgufFile:
    """One file; `Tensors` of `zoo.weights`."""

    def __init__(self, path: Path):
        """Raises CheckpointError unless the header is whole, agrees with the file's size, and is of a known family."""
        self.origin = str(path)
        try:
            self.metadata, entries = _Header(path).read()
        except OSError as error:
            raise CheckpointError(f"{path} cannot be read: {error.strerror}") from None
        except (ValueError, OverflowError, MemoryError, struct.error) as error:
            raise CheckpointError(f"{path} is cut short, damaged, or no GGUF file: {str(error)[:200]}") from None
        self._name = str(self.metadata.get("general.architecture"))
        if self._name not in _FAMILIES:
            raise CheckpointError(
                f"{path}: general.architecture is {self._name[:80]!r}; zoo reads {', '.join(_FAMILIES)} from GGUF files"
            )
        self._family = _FAMILIES[self._name]
        self._frequencies = {name: entries.pop(name) for name in _FREQUENCIES if name in entries}
        self._entries = {self._name_on_hub(name): (name, entry) for name, entry in entries.items()}
        self.shapes: Mapping[str, Shape] = {name: entry.shape for name, (_, entry) in self._entries.items()}

    def read(self, name: str) -> np.ndarray:
        """One tensor, dequantised, in the hub's layout."""
        own, entry = self._entries[name]
        values = self._dequantise(own, entry)
        if self._family.pairs_interleaved and (".attn_q." in own or ".attn_k." in own):
            heads = self._number("attention.head_count")
            heads = self._number("attention.head_count_kv", heads) if ".attn_k." in own else heads
            # [N, H / 2, 2, ...]: neighbours become halves.
            pairs = values.reshape(heads, -1, 2, *values.shape[1:])
            return pairs.swapaxes(1, 2).reshape(values.shape)
        if self._family.norms_raised and own.endswith("norm.weight"):
            return values - 1
        return values

    def config_fields(self) -> dict[str, Any]:
        """config.json, as the hub's checkpoint of the same model would have it."""
        heads, width = self._number("attention.head_count"), self._number("embedding_length")
        rotated = self._number("rope.dimension_count", 0)
        size = self._number("attention.key_length", rotated if self._family.pairs_interleaved and rotated else 0)
        size = size or width // heads
        fields = {
            "model_type": self._family.model_type,
            "architectures": [self._family.reference_class],
            "vocab_size": self.shapes.get("model.embed_tokens.weight", (0,))[0],
            "hidden_size": width,
            "num_hidden_layers": self._number("block_count"),
            "num_attention_heads": heads,
            "num_key_value_heads": self._number("attention.head_count_kv", heads),
            "head_dim": size,
            "intermediate_size": self._number("feed_forward_length"),
            "max_position_embeddings": self._number("context_length"),
            "rms_norm_eps": self._number("attention.layer_norm_rms_epsilon"),
            "sliding_window": self._number("attention.sliding_window", 0) or None,
            "attention_bias": "model.layers.0.self_attn.q_proj.bias" in self.shapes,
            "mlp_bias": "model.layers.0.mlp.down_proj.bias" in self.shapes,
            "tie_word_embeddings": "lm_head.weight" not in self.shapes,
            "partial_rotary_factor": rotated / size if rotated else 1.0,
            "bos_token_id": self.metadata.get("tokenizer.ggml.bos_token_id"),
            "eos_token_id": self.metadata.get("tokenizer.ggml.eos_token_id"),
            "pad_token_id": self.metadata.get("tokenizer.ggml.padding_token_id"),
        }
        return fields | self._rotation() | self._caps(heads, width, size)

    def tokenizer_metadata(self) -> dict[str, Any]:
        """What the file says about its tokenizer, by the names after `tokenizer.ggml.`.

        `model` ("gpt2" is byte-level BPE, "llama" is SentencePiece), `pre`, `tokens`, `scores`, `token_type` (1 normal,
        2 unknown, 3 control, 4 user-defined, 6 byte), `merges`, `bos_token_id` and its like, `add_bos_token`, and
        `chat_template`; those that the file has.
        """
        found = {name: value for name, value in self.metadata.items() if name.startswith("tokenizer.")}
        return {name.removeprefix("tokenizer.").removeprefix("ggml."): value for name, value in found.items()}

    def _rotation(self) -> dict[str, Any]:
        """`rope_theta` and `rope_scaling`; divisors of frequencies given one by one are LongRoPE's."""
        fields: dict[str, Any] = {}
        if f"{self._name}.rope.freq_base" in self.metadata:
            fields["rope_theta"] = self._number("rope.freq_base")
        length = self._number("context_length")
        original = self._number("rope.scaling.original_context_length", length)
        divisors = {name: self._dequantise(name, entry).tolist() for name, entry in self._frequencies.items()}
        plain = divisors.get("rope_freqs.weight")
        short, long = divisors.get("rope_factors_short.weight", plain), divisors.get("rope_factors_long.weight", plain)
        kind, factor = (
            self.metadata.get(f"{self._name}.rope.scaling.type", "none"),
            self._number("rope.scaling.factor", 1),
        )
        if short is not None:
            scaling = {"rope_type": "longrope", "short_factor": short, "long_factor": long}
            temperature = 1.0 if plain is not None else self._number("rope.scaling.attn_factor", 0)
            scaling |= {"attention_factor": temperature} if temperature else {}
            fields |= {"rope_scaling": scaling, "original_max_position_embeddings": original}
        elif kind == "linear" or (kind == "yarn" and factor > 1):
            scaling = {"rope_type": kind, "factor": factor}
            scaling |= {"original_max_position_embeddings": original} if kind == "yarn" else {}
            fields["rope_scaling"] = scaling
        elif kind not in ("none", "yarn", "longrope"):
            raise CheckpointError(f"{self.origin}: rope.scaling.type is {str(kind)[:80]!r}; zoo has linear and yarn")
        return fields

    def _caps(self, heads: int, width: int, size: int) -> dict[str, Any]:
        """Gemma's soft caps, and the scale of scores, which the file does not have: the 27B models' is their own."""
        if not self._family.norms_raised:
            return {}
        largest = {"gemma2": 46, "gemma3": 62}.get(self._name) == self._number("block_count")
        fields = {"query_pre_attn_scalar": width // heads if largest else size}
        for ours in ("attn_logit_softcapping", "final_logit_softcapping"):
            if f"{self._name}.{ours}" in self.metadata:
                fields[ours] = self._number(ours)
        return fields

    def _number(self, name: str, default: float | None = None) -> Any:
        """A number of the metadata; CheckpointError where it is missing or none."""
        value = self.metadata.get(f"{self._name}.{name}", default)
        if not isinstance(value, int | float) or not math.isfinite(value) or value < 0:
            raise CheckpointError(f"{self.origin}: {self._name}.{name} is {str(value)[:80]}; it must be a number")
        return value

    def _name_on_hub(self, name: str) -> str:
        """The hub's name; an unknown one stays, so that the error shows it."""
        own = re.fullmatch(r"(?:blk\.(\d+)\.)?(\w+)\.(weight|bias)", name)
        if own is None:
            return name
        layer, part, kind = own.groups()
        known = _TOP if layer is None else _LAYER | dict(self._family.names or {})
        if part not in known:
            return name
        return f"{known[part]}.{kind}" if layer is None else f"model.layers.{layer}.{known[part]}.{kind}"

    def _dequantise(self, name: str, entry: _Entry) -> np.ndarray:
        import gguf

        data = np.memmap(self.origin, np.uint8, "r", entry.start, (entry.stop - entry.start,))
        kind = gguf.GGMLQuantizationType(entry.kind)
        plain = {"F32": "<f4", "F16": "<f2", "F64": "<f8", "I8": "<i1", "I16": "<i2", "I32": "<i4", "I64": "<i8"}
        if kind.name in plain:
            return data.view(plain[kind.name]).reshape(entry.shape)
        try:
            values = gguf.dequantize(data.reshape(*entry.shape[:-1], -1), kind)
        except NotImplementedError:
            raise CheckpointError(
                f"{self.origin}: {name} is quantised as {kind.name}, which the gguf package does not dequantise; "
                "take a file with another quantisation"
            ) from None
        return values.reshape(entry.shape)


class _Header:
    """The header, read from front to back; ValueError where the file cannot be what it says."""

    def __init__(self, path: Path):
        self.size = path.stat().st_size
        self.data = np.memmap(path, np.uint8, "r") if self.size else np.zeros(0, np.uint8)
        self.place = 0

    def read(self) -> tuple[dict[str, Any], dict[str, _Entry]]:
        """The metadata, and the tensors by their name in the file."""
        if self._take(4) != b"GGUF":
            raise ValueError("it does not begin with GGUF")
        version = self._integer("<u4")
        if version not in (2, 3):
            raise ValueError(f"its version is {version}; zoo reads 2 and 3")
        num_tensors, num_fields = self._count(24), self._count(13)
        metadata: dict[str, Any] = {}
        for _ in range(num_fields):
            name = self._string()
            if name in metadata:
                raise ValueError(f"{name[:80]} occurs twice")
            metadata[name] = self._value(self._integer("<u4"))
        infos = [self._info() for _ in range(num_tensors)]
        alignment = metadata.get("general.alignment", 32)
        if not isinstance(alignment, int) or alignment <= 0:
            raise ValueError(f"general.alignment is {alignment}")
        start = -(-self.place // alignment) * alignment
        entries = {name: self._entry(name, shape, kind, start + offset) for name, shape, kind, offset in infos}
        if len(entries) != num_tensors:
            raise ValueError("a tensor's name occurs twice")
        return metadata, entries

    def _take(self, count: int) -> bytes:
        if count > self.size - self.place:
            raise ValueError(f"{count} bytes are needed at byte {self.place} of {self.size}")
        self.place += count
        return self.data[self.place - count : self.place].tobytes()

    def _integer(self, kind: str) -> int:
        return int(np.frombuffer(self._take(np.dtype(kind).itemsize), kind)[0])

    def _count(self, least: int) -> int:
        """How many things follow, of at least so many bytes each."""
        count = self._integer("<u8")
        if count * least > self.size - self.place:
            raise ValueError(f"{count} entries are said to follow byte {self.place} of {self.size}")
        return count

    def _string(self) -> str:
        return self._take(self._integer("<u8")).decode("utf-8", "replace")

    def _value(self, kind: int) -> Any:
        if kind == _STRING:
            return self._string()
        if kind == _ARRAY:
            inner = self._integer("<u4")
            if inner == _STRING:
                return [self._string() for _ in range(self._count(8))]
            dtype = np.dtype(_number_kind(inner))
            return np.frombuffer(self._take(self._count(dtype.itemsize) * dtype.itemsize), dtype).tolist()
        return np.frombuffer(self._take(np.dtype(_number_kind(kind)).itemsize), _number_kind(kind))[0].item()

    def _info(self) -> tuple[str, Shape, int, int]:
        name, num_dimensions = self._string(), self._integer("<u4")
        if num_dimensions > _MAX_DIMENSIONS:
            raise ValueError(f"{name[:80]} has {num_dimensions} dimensions")
        # The last dimension in memory comes first.
        shape = tuple(self._integer("<u8") for _ in range(num_dimensions))[::-1]
        return name, shape, self._integer("<u4"), self._integer("<u8")

    def _entry(self, name: str, shape: Shape, kind: int, start: int) -> _Entry:
        import gguf

        block, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType(kind)]
        if not shape or math.prod(shape) == 0 or shape[-1] % block:
            raise ValueError(f"{name[:80]} has shape {list(shape)}, and its numbers come in blocks of {block}")
        stop = start + math.prod(shape) // block * size
        if stop > self.size:
            raise ValueError(f"{name[:80]} ends at byte {stop} of {self.size}")
        return _Entry(shape, kind, start, stop)


def _number_kind(kind: int) -> str:
    if kind not in _NUMBERS:
        raise ValueError(f"a value has kind {kind}")
    return _NUMBERS[kind]
