"""OLMo-2 (OLMo Team 2024): Llama with the norms after each branch, and norms over whole queries and keys."""

from zoo.architectures.architecture import Architecture, Fields
from zoo.architectures.heads import decoder_head_weights
from zoo.architectures.llama import (
    ALL_BIASES,
    TINY,
    attention_from_hf,
    attention_weights,
    decoder_classes,
    decoder_from_hf,
    llama_to_hf,
    mlp_weights,
    rms_norm,
)
from zoo.config import TransformerConfig
from zoo.weights import Rule, norm


def config_from_hf(fields: Fields, head: str) -> TransformerConfig:
    """Translate an Olmo2Config."""
    norms = rms_norm(fields, 1e-5)
    biases = ALL_BIASES if fields.get("attention_bias", False) else ()
    attention = attention_from_hf(fields, max_length=2048, biases=biases, qk_norm=norms, qk_norm_over="projection")
    return decoder_from_hf(fields, head, attention, norms, padding_id=1, norm_slots=("output",))


def weights(config: TransformerConfig, head: str) -> list[Rule]:
    """The table."""
    layer = "model.layers.{layer}"
    return [
        *decoder_head_weights(config, head, "model.embed_tokens"),
        *attention_weights(layer),
        *norm(f"{layer}.post_attention_layernorm", "decoder/attention_output_norm"),
        *mlp_weights(layer),
        *norm(f"{layer}.post_feedforward_layernorm", "decoder/mlp_output_norm"),
        *norm("model.norm", "decoder/final_norm"),
    ]


ARCHITECTURES = [
    Architecture(
        model_type="olmo2",
        classes=decoder_classes("Olmo2", "token_classification", "question_answering"),
        config_from_hf=config_from_hf,
        config_to_hf=llama_to_hf,
        weights=weights,
        prefix="model.",
        tiny=TINY | {"rope_theta": 500_000.0},
    )
]
