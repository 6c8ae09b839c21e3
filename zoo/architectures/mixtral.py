"""Mixtral (Jiang et al. 2024): Mistral with eight expert MLPs a layer, of which each token uses two."""

from typing import Any

from zoo.architectures.architecture import Architecture, Fields
from zoo.architectures.heads import decoder_head_weights
from zoo.architectures.llama import (
    CHECKPOINT_BUFFERS,
    TINY,
    attention_from_hf,
    attention_weights,
    decoder_classes,
    decoder_from_hf,
    decoder_to_hf,
    gated_mlp,
    rms_norm,
    window_from_hf,
    window_to_hf,
)
from zoo.config import ExpertsConfig, TransformerConfig
from zoo.weights import LINEAR, Rule, linear, norm, rule


def config_from_hf(fields: Fields, head: str) -> TransformerConfig:
    """Translate a MixtralConfig."""
    attention = attention_from_hf(fields, max_length=131_072, base=1_000_000.0, kv_heads=8)
    window, local = fields.get("sliding_window"), {}
    if window is not None:
        local = {"pattern": ("local",), "local": window_from_hf(window, attention)}
    return decoder_from_hf(
        fields, head, attention, rms_norm(fields, 1e-5), mlp=gated_mlp(fields, experts=experts(fields, 8, 2)), **local
    )


def experts(fields: Fields, count: int, selected: int, **options: Any) -> ExpertsConfig:
    """The experts, with the architecture's default numbers."""
    return ExpertsConfig(
        num_experts=fields.get("num_local_experts", count),
        num_selected=fields.get("num_experts_per_tok", selected),
        balance_loss=fields.get("router_aux_loss_coef", 0.001),
        **options,
    )


def config_to_hf(config: TransformerConfig) -> dict[str, Any]:
    """Write a MixtralConfig."""
    return decoder_to_hf(config) | experts_to_hf(config) | {"sliding_window": window_to_hf(config.output_stack)}


def experts_to_hf(config: TransformerConfig) -> dict[str, Any]:
    """The fields that `experts` reads."""
    found = config.output_stack.mlp.experts
    assert found is not None  # config_from_hf gives them
    return {
        "num_local_experts": found.num_experts,
        "num_experts_per_tok": found.num_selected,
        "router_aux_loss_coef": found.balance_loss,
    }


def weights(config: TransformerConfig, head: str) -> list[Rule]:
    """The table."""
    layer = "model.layers.{layer}"
    expert = f"{layer}.block_sparse_moe.experts.{{expert}}"
    return [
        *decoder_head_weights(config, head, "model.embed_tokens"),
        *norm(f"{layer}.input_layernorm", "decoder/attention_input_norm"),
        *attention_weights(layer),
        *norm(f"{layer}.post_attention_layernorm", "decoder/mlp_input_norm"),
        *linear(f"{layer}.block_sparse_moe.gate", "decoder/mlp/experts/router"),
        rule(f"{expert}.w1.weight", "decoder/mlp/experts/gate_kernel", LINEAR),
        rule(f"{expert}.w2.weight", "decoder/mlp/experts/down_kernel", LINEAR),
        rule(f"{expert}.w3.weight", "decoder/mlp/experts/up_kernel", LINEAR),
        *norm("model.norm", "decoder/final_norm"),
    ]


ARCHITECTURES = [
    Architecture(
        model_type="mixtral",
        classes=decoder_classes("Mixtral"),
        config_from_hf=config_from_hf,
        config_to_hf=config_to_hf,
        weights=weights,
        prefix="model.",
        ignored=CHECKPOINT_BUFFERS,
        tiny=TINY | {"num_local_experts": 4, "num_experts_per_tok": 2, "intermediate_size": 20},
    )
]
