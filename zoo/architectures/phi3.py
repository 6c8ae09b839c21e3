"""Phi-3 and Phi-4 (Abdin et al. 2024): Llama's plan with fused projections, LongRoPE and, in small ones, a window."""

from typing import Any

from zoo.architectures.architecture import Architecture, Fields
from zoo.architectures.heads import decoder_head_weights
from zoo.architectures.llama import (
    CHECKPOINT_BUFFERS,
    TINY,
    attention_from_hf,
    decoder_classes,
    decoder_from_hf,
    decoder_to_hf,
    rms_norm,
    window_from_hf,
    window_to_hf,
)
from zoo.config import LongRopeScaling, TransformerConfig
from zoo.weights import LINEAR_OF_HEADS, Rule, fused, linear, norm, rule


def config_from_hf(fields: Fields, head: str) -> TransformerConfig:
    """Translate a Phi3Config."""
    # Where older files have the length before scaling beside the scaling, the newer ones have both; 4096 if neither.
    fields = Fields({"original_max_position_embeddings": 4096} | fields.values, fields.origin)
    attention = attention_from_hf(fields, max_length=4096)
    window, local = fields.get("sliding_window"), {}
    if window is not None:
        local = {"pattern": ("local",), "local": window_from_hf(window, attention)}
    dropout = fields.get("resid_pdrop", 0.0)
    return decoder_from_hf(fields, head, attention, rms_norm(fields, 1e-5), padding_id=32_000, dropout=dropout, **local)


def config_to_hf(config: TransformerConfig) -> dict[str, Any]:
    """Write a Phi3Config."""
    stack = config.output_stack
    fields = decoder_to_hf(config) | {"resid_pdrop": stack.dropout, "sliding_window": window_to_hf(stack)}
    scaling = None if stack.attention.rotary is None else stack.attention.rotary.scaling
    if isinstance(scaling, LongRopeScaling):
        fields["original_max_position_embeddings"] = scaling.original_length
    return fields


def weights(config: TransformerConfig, head: str) -> list[Rule]:
    """The table."""
    layer = "model.layers.{layer}"
    projections = tuple(f"decoder/attention/{name}/kernel" for name in ("query", "key", "value"))
    return [
        *decoder_head_weights(config, head, "model.embed_tokens"),
        *norm(f"{layer}.input_layernorm", "decoder/attention_input_norm"),
        rule(f"{layer}.self_attn.qkv_proj.weight", projections, fused()),
        *linear(f"{layer}.self_attn.o_proj", "decoder/attention/output", LINEAR_OF_HEADS),
        *norm(f"{layer}.post_attention_layernorm", "decoder/mlp_input_norm"),
        rule(f"{layer}.mlp.gate_up_proj.weight", ("decoder/mlp/gate/kernel", "decoder/mlp/up/kernel"), fused()),
        *linear(f"{layer}.mlp.down_proj", "decoder/mlp/down"),
        *norm("model.norm", "decoder/final_norm"),
    ]


ARCHITECTURES = [
    Architecture(
        model_type="phi3",
        classes=decoder_classes("Phi3", "question_answering"),
        config_from_hf=config_from_hf,
        config_to_hf=config_to_hf,
        weights=weights,
        prefix="model.",
        ignored=CHECKPOINT_BUFFERS,
        tiny=TINY
        | {
            "hidden_size": 32,
            "sliding_window": 20,
            "partial_rotary_factor": 0.75,
            "original_max_position_embeddings": 30,
            "rope_scaling": {"type": "longrope", "short_factor": [1.0, 1.5, 2.0], "long_factor": [2.0, 5.0, 9.0]},
        },
    )
]
