"""Rotary positions in config.json: `rope_parameters` (transformers 5) and `rope_theta` with `rope_scaling` (before it).

Both say the same: a base and, for longer contexts than those trained on, a scaling of the frequencies. A stack whose
local layers rotate otherwise has `rope_parameters` nested by layer type.
"""

import math
from typing import Any, Literal

from zoo.architectures.architecture import Fields
from zoo.config import (
    DynamicScaling,
    LinearScaling,
    Llama3Scaling,
    LongRopeScaling,
    RotaryConfig,
    RotaryScaling,
    YarnScaling,
)
from zoo.weights import CheckpointError

LayerType = Literal["full_attention", "sliding_attention"]
"""The reference's names of spans, under which it nests parameters."""


def rotary_from_hf(
    fields: Fields,
    head_size: int,
    *,
    max_length: int,
    base: float = 10_000.0,
    fraction: float = 1.0,
    layer_type: LayerType | None = None,
    base_field: str = "rope_theta",
    pairing: Literal["half", "interleaved"] = "half",
) -> RotaryConfig:
    """The rotation that a config.json describes.

    Args:
        fields: config.json.
        head_size: H.
        max_length: `max_position_embeddings`, or the architecture's default.
        base: the architecture's default.
        fraction: of each head that rotates, the architecture's default.
        layer_type: which entry to read where the architecture has one for each; None where it has one for all.
        base_field: where older files have the base.
        pairing: of the architecture.
    """
    parameters = rope_parameters(fields, layer_type)
    fraction = parameters.get("partial_rotary_factor", fields.get("partial_rotary_factor", fraction))
    size = int(head_size * fraction)
    return RotaryConfig(
        base=float(parameters.get("rope_theta", fields.get(base_field, base))),
        size=None if size == head_size else size,
        pairing=pairing,
        scaling=_scaling_from_hf(parameters, fields, max_length),
    )


def rope_parameters(fields: Fields, layer_type: LayerType | None = None) -> Fields:
    """The flat object with the kind of scaling and its numbers; empty where config.json has none."""
    older, newer = fields.fields("rope_scaling"), fields.fields("rope_parameters")
    if layer_type is None:
        return older if older.values else newer
    own = newer.fields(layer_type)
    # Where local layers rotate apart from the others, the older field speaks of the others only.
    return Fields(own.values | older.values, older.origin) if layer_type == "full_attention" else own


def _scaling_from_hf(parameters: Fields, fields: Fields, max_length: int) -> RotaryScaling | None:
    kind = parameters.get("rope_type", parameters.get("type", "default"))
    original = parameters.get("original_max_position_embeddings", max_length)
    original = fields.get("original_max_position_embeddings", original)
    match kind:
        case "default" | "mrope":
            return None
        case "linear":
            return LinearScaling(factor=parameters["factor"])
        case "dynamic":
            return DynamicScaling(factor=parameters["factor"], original_length=max_length)
        case "llama3":
            return Llama3Scaling(
                factor=parameters["factor"],
                low_frequency_factor=parameters["low_freq_factor"],
                high_frequency_factor=parameters["high_freq_factor"],
                original_length=original,
            )
        case "yarn":
            factor = parameters.get("factor", max_length / original)
            return YarnScaling(
                factor=factor,
                original_length=original,
                beta_fast=parameters.get("beta_fast") or 32.0,
                beta_slow=parameters.get("beta_slow") or 1.0,
                attention_factor=parameters.get("attention_factor", _yarn_temperature(parameters, factor)),
                truncate=parameters.get("truncate", True),
            )
        case "longrope" | "su":
            factor = parameters.get("factor", max_length / original)
            temperature = 1.0 if factor <= 1 else math.sqrt(1 + math.log(factor) / math.log(original))
            return LongRopeScaling(
                short_factors=tuple(parameters["short_factor"]),
                long_factors=tuple(parameters["long_factor"]),
                original_length=original,
                attention_factor=parameters.get("attention_factor", temperature),
            )
    raise CheckpointError(
        f"{parameters.origin}: rope_type is {kind!r}; zoo has default, linear, dynamic, llama3, yarn and longrope"
    )


def _yarn_temperature(parameters: Fields, factor: float) -> float:
    """The paper's 0.1 ln(factor) + 1, or the quotient of two such with DeepSeek's multipliers."""

    def temperature(multiplier: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * multiplier * math.log(factor) + 1.0

    over, under = parameters.get("mscale"), parameters.get("mscale_all_dim")
    return temperature(over) / temperature(under) if over and under else temperature(1.0)


def rotary_to_hf(rotary: RotaryConfig, head_size: int) -> dict[str, Any]:
    """The fields of config.json, for old and new readers alike."""
    parameters = rope_parameters_to_hf(rotary, head_size)
    fields = {
        "rope_theta": rotary.base,
        "rope_scaling": None if rotary.scaling is None else parameters,
        "rope_parameters": parameters,
    }
    if rotary.size is not None:
        fields["partial_rotary_factor"] = rotary.size / head_size
    if isinstance(rotary.scaling, DynamicScaling):
        fields["max_position_embeddings"] = rotary.scaling.original_length
    return fields


def rope_parameters_to_hf(rotary: RotaryConfig, head_size: int) -> dict[str, Any]:
    """`rope_parameters`, flat."""
    parameters: dict[str, Any] = {"rope_type": "default", "rope_theta": rotary.base}
    if rotary.size is not None:
        parameters["partial_rotary_factor"] = rotary.size / head_size
    match rotary.scaling:
        case None:
            return parameters
        case LinearScaling(factor=factor):
            return parameters | {"rope_type": "linear", "factor": factor}
        case DynamicScaling(factor=factor):
            return parameters | {"rope_type": "dynamic", "factor": factor}
        case Llama3Scaling() as scaling:
            own = {
                "rope_type": "llama3",
                "factor": scaling.factor,
                "low_freq_factor": scaling.low_frequency_factor,
                "high_freq_factor": scaling.high_frequency_factor,
            }
        case YarnScaling() as scaling:
            own = {
                "rope_type": "yarn",
                "factor": scaling.factor,
                "beta_fast": scaling.beta_fast,
                "beta_slow": scaling.beta_slow,
                "attention_factor": scaling.attention_factor,
                "truncate": scaling.truncate,
            }
        case LongRopeScaling() as scaling:
            own = {
                "rope_type": "longrope",
                "short_factor": list(scaling.short_factors),
                "long_factor": list(scaling.long_factors),
                "attention_factor": scaling.attention_factor,
            }
    return parameters | own | {"original_max_position_embeddings": scaling.original_length}
