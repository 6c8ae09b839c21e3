"""GPT-OSS (OpenAI 2025): experts with clamped gates, attention sinks, YaRN, and windows on every other layer.

The published weights of the experts are in MXFP4, which `zoo.formats.mxfp4` unpacks.
"""

from typing import Any

from zoo.architectures.architecture import Architecture, Fields
from zoo.architectures.heads import decoder_head_weights
from zoo.architectures.llama import (
    ALL_BIASES,
    TINY,
    attention_from_hf,
    attention_weights,
    decoder_classes,
    decoder_from_hf,
    decoder_to_hf,
    gated_mlp,
    rms_norm,
    spans_from_hf,
    spans_to_hf,
    window_from_hf,
    window_to_hf,
)
from zoo.architectures.mixtral import experts, experts_to_hf
from zoo.config import TransformerConfig
from zoo.weights import INTERLEAVED, Rule, linear, norm, rule

_YARN = {
    "rope_type": "yarn",
    "factor": 32.0,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "truncate": False,
    "original_max_position_embeddings": 4096,
}


def config_from_hf(fields: Fields, head: str) -> TransformerConfig:
    """Translate a GptOssConfig."""
    # The activation's gain is quick_gelu's own.
    fields.expect(hidden_act="silu", swiglu_alpha=1.702)
    if not (fields.get("rope_scaling") or fields.get("rope_parameters")):
        fields = Fields(fields.values | {"rope_parameters": _YARN}, fields.origin)
    attention = attention_from_hf(
        fields,
        max_length=131_072,
        base=150_000.0,
        head_size=64,
        kv_heads=8,
        biases=ALL_BIASES if fields.get("attention_bias", True) else (),
        sinks=True,
    )
    count = fields["num_hidden_layers"]
    pattern = spans_from_hf(fields, [("sliding_attention", "full_attention")[n % 2] for n in range(count)])
    mlp = gated_mlp(
        fields,
        activation="quick_gelu",
        clamp=fields.get("swiglu_limit", 7.0),
        bias=True,
        experts=experts(fields, 128, 4, router_bias=True),
    )
    local = window_from_hf(fields.get("sliding_window", 128), attention) if "local" in pattern else None
    return decoder_from_hf(fields, head, attention, rms_norm(fields, 1e-5), mlp=mlp, pattern=pattern, local=local)


def config_to_hf(config: TransformerConfig) -> dict[str, Any]:
    """Write a GptOssConfig."""
    stack = config.output_stack
    own = {
        "hidden_act": "silu",
        "swiglu_limit": stack.mlp.clamp,
        "attention_bias": bool(stack.attention.biases),
        "layer_types": spans_to_hf(stack),
    }
    window = {} if stack.local is None else {"sliding_window": window_to_hf(stack)}
    return decoder_to_hf(config) | experts_to_hf(config) | own | window


def weights(config: TransformerConfig, head: str) -> list[Rule]:
    """The table."""
    layer, ours = "model.layers.{layer}", "decoder/mlp/experts"
    theirs = f"{layer}.mlp.experts"
    return [
        *decoder_head_weights(config, head, "model.embed_tokens"),
        *norm(f"{layer}.input_layernorm", "decoder/attention_input_norm"),
        *attention_weights(layer),
        rule(f"{layer}.self_attn.sinks", "decoder/attention/sinks"),
        *norm(f"{layer}.post_attention_layernorm", "decoder/mlp_input_norm"),
        *linear(f"{layer}.mlp.router", f"{ours}/router"),
        rule(f"{theirs}.gate_up_proj", (f"{ours}/gate_kernel", f"{ours}/up_kernel"), INTERLEAVED),
        rule(f"{theirs}.gate_up_proj_bias", (f"{ours}/gate_bias", f"{ours}/up_bias"), INTERLEAVED),
        rule(f"{theirs}.down_proj", f"{ours}/down_kernel"),
        rule(f"{theirs}.down_proj_bias", f"{ours}/down_bias"),
        *norm("model.norm", "decoder/final_norm"),
    ]


ARCHITECTURES = [
    Architecture(
        model_type="gpt_oss",
        classes=decoder_classes("GptOss", "question_answering"),
        config_from_hf=config_from_hf,
        config_to_hf=config_to_hf,
        weights=weights,
        prefix="model.",
        tiny=TINY
        | {
            "vocab_size": 59,
            "hidden_size": 32,
            "num_hidden_layers": 3,
            "intermediate_size": 32,
            "head_dim": 8,
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "sliding_window": 6,
            "swiglu_limit": 0.4,
            "rope_scaling": {
                "rope_type": "yarn",
                "factor": 4.0,
                "beta_fast": 32.0,
                "beta_slow": 1.0,
                "truncate": False,
                "original_max_position_embeddings": 16,
            },
        },
    )
]
