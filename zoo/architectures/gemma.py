"""Gemma 1, 2 and 3 (Gemma Team 2024, 2024b, 2025): scaled embeddings, norms stored as their difference from one.

Gemma 2 normalises both ends of a branch, caps scores and logits, and alternates windows with full sight; Gemma 3 norms
queries and keys instead of capping, and rotates local layers at a base of their own. EmbeddingGemma is a Gemma 3 that
sees both ways, an encoder here. The vision tower of Gemma 3 is left out.
"""

from typing import Any

from zoo.architectures.architecture import Architecture, Fields, activation_name
from zoo.architectures.heads import decoder_head_weights
from zoo.architectures.llama import (
    ALL_BIASES,
    CHECKPOINT_BUFFERS,
    TINY,
    attention_from_hf,
    attention_weights,
    decoder_classes,
    decoder_from_hf,
    decoder_to_hf,
    gated_mlp,
    mlp_weights,
    rms_norm,
    spans_from_hf,
    spans_to_hf,
    weights,
    window_from_hf,
    window_to_hf,
)
from zoo.architectures.rotary import rope_parameters_to_hf, rotary_from_hf
from zoo.config import LanguageModelHead, LocalConfig, NormConfig, TransformerConfig, replace
from zoo.weights import Rule, norm


def _norms(fields: Fields) -> NormConfig:
    return rms_norm(fields, 1e-6, unit_offset=True)


def _decoder(fields: Fields, head: str, attention, **options: Any) -> TransformerConfig:
    scale = fields["hidden_size"] ** 0.5
    return decoder_from_hf(fields, head, attention, _norms(fields), tied=True, padding_id=0, scale=scale, **options)


def _biases(fields: Fields) -> dict[str, Any]:
    return {"biases": ALL_BIASES if fields.get("attention_bias", False) else ()}


def gemma_from_hf(fields: Fields, head: str) -> TransformerConfig:
    """Translate a GemmaConfig."""
    fields.expect(use_bidirectional_attention=False)
    attention = attention_from_hf(fields, max_length=8192, head_size=256, kv_heads=16, **_biases(fields))
    activation = fields.activation("hidden_act", "gelu_pytorch_tanh")
    # The first release says "gelu" and was trained with its approximation.
    mlp = gated_mlp(fields, activation="gelu_tanh" if activation == "gelu" else activation, bias=False)
    return _decoder(fields, head, attention, mlp=mlp)


def gemma_to_hf(config: TransformerConfig) -> dict[str, Any]:
    """Write a GemmaConfig."""
    stack = config.output_stack
    return decoder_to_hf(config) | {
        "attention_bias": bool(stack.attention.biases),
        "hidden_activation": activation_name(stack.mlp.activation),
    }


def gemma2_from_hf(fields: Fields, head: str) -> TransformerConfig:
    """Translate a Gemma2Config."""
    fields.expect(use_bidirectional_attention=False)
    count = fields["num_hidden_layers"]
    pattern = spans_from_hf(fields, [("sliding_attention", "full_attention")[n % 2] for n in range(count)])
    attention = attention_from_hf(
        fields,
        max_length=8192,
        head_size=256,
        kv_heads=4,
        scale=fields.get("query_pre_attn_scalar", 256) ** -0.5,
        softcap=fields.nullable("attn_logit_softcapping", 50.0),
        **_biases(fields),
    )
    window = fields.get("sliding_window", 4096)
    return _decoder(
        fields,
        head,
        attention,
        mlp=_mlp(fields),
        softcap=fields.nullable("final_logit_softcapping", 30.0),
        norm_slots=("input", "output"),
        pattern=pattern,
        local=window_from_hf(window, attention) if "local" in pattern else None,
    )


def _mlp(fields: Fields):
    return gated_mlp(fields, activation=fields.activation("hidden_activation", "gelu_pytorch_tanh"), bias=False)


def gemma2_to_hf(config: TransformerConfig) -> dict[str, Any]:
    """Write a Gemma2Config."""
    stack = config.output_stack
    attention = stack.attention
    assert attention.scale is not None  # gemma2_from_hf gives it
    capped = {}
    if isinstance(config.head, LanguageModelHead):
        capped = {"final_logit_softcapping": config.head.softcap}
    window = {} if stack.local is None else {"sliding_window": window_to_hf(stack)}
    return gemma_to_hf(config) | capped | window | {
        "query_pre_attn_scalar": round(attention.scale**-2),
        "attn_logit_softcapping": attention.softcap,
        "layer_types": spans_to_hf(stack),
    }  # fmt: skip


_GEMMA3 = {"vocab_size": 262_208, "hidden_size": 2304, "num_hidden_layers": 26, "num_attention_heads": 8}
_GEMMA3 |= {"intermediate_size": 9216}


def gemma3_from_hf(fields: Fields, head: str) -> TransformerConfig:
    """Translate a Gemma3TextConfig; nested in a multimodal config.json it leaves out what equals the 4B's default."""
    fields = Fields(_GEMMA3 | fields.values, fields.origin)
    count, every = fields["num_hidden_layers"], fields.get("sliding_window_pattern", 6)
    kinds = ["sliding_attention" if (n + 1) % every else "full_attention" for n in range(count)]
    pattern = spans_from_hf(fields, kinds)
    max_length, size = fields.get("max_position_embeddings", 131_072), fields.get("head_dim", 256)
    rotary = rotary_from_hf(fields, size, max_length=max_length, base=1_000_000.0, layer_type="full_attention")
    attention = attention_from_hf(
        fields,
        max_length=max_length,
        head_size=size,
        kv_heads=4,
        rotary=rotary,
        scale=fields.get("query_pre_attn_scalar", 256) ** -0.5,
        softcap=fields.get("attn_logit_softcapping"),
        qk_norm=_norms(fields),
        **_biases(fields),
    )
    slow = rotary_from_hf(
        fields, size, max_length=max_length, layer_type="sliding_attention", base_field="rope_local_base_freq"
    )
    both_ways, window = fields.get("use_bidirectional_attention", False), fields.get("sliding_window", 4096)
    reach = (window // 2, window // 2) if both_ways else (window - 1, 0)
    config = _decoder(
        fields,
        head,
        attention,
        mlp=_mlp(fields),
        softcap=fields.get("final_logit_softcapping"),
        norm_slots=("input", "output"),
        pattern=pattern,
        local=LocalConfig(window=reach, rotary=slow) if "local" in pattern else None,
    )
    if both_ways:
        return replace(config, encoder=replace(config.output_stack, causal=False), decoder=None)
    return config


def gemma3_to_hf(config: TransformerConfig) -> dict[str, Any]:
    """Write a Gemma3TextConfig."""
    stack = config.output_stack
    size, rotary = stack.attention.head_size, stack.attention.rotary
    assert rotary is not None  # gemma3_from_hf gives it
    nested = {"full_attention": rope_parameters_to_hf(rotary, size)}
    fields = gemma2_to_hf(config) | {"use_bidirectional_attention": not stack.causal, "rope_parameters": nested}
    if stack.local is not None and stack.local.rotary is not None and stack.local.window is not None:
        nested["sliding_attention"] = rope_parameters_to_hf(stack.local.rotary, size)
        fields["rope_local_base_freq"] = stack.local.rotary.base
        fields["sliding_window"] = stack.local.window[0] + 1 if stack.causal else 2 * stack.local.window[0]
    return fields


def sandwich_weights(config: TransformerConfig, head: str) -> list[Rule]:
    """The table of Gemma 2 and 3."""
    layer, stack = "model.layers.{layer}", "decoder" if config.encoder is None else "encoder"
    return [
        *decoder_head_weights(config, head, "model.embed_tokens"),
        *norm(f"{layer}.input_layernorm", f"{stack}/attention_input_norm"),
        *attention_weights(layer, stack),
        *norm(f"{layer}.post_attention_layernorm", f"{stack}/attention_output_norm"),
        *norm(f"{layer}.pre_feedforward_layernorm", f"{stack}/mlp_input_norm"),
        *mlp_weights(layer, stack),
        *norm(f"{layer}.post_feedforward_layernorm", f"{stack}/mlp_output_norm"),
        *norm("model.norm", f"{stack}/final_norm"),
    ]


ARCHITECTURES = [
    Architecture(
        model_type="gemma",
        classes=decoder_classes("Gemma", "question_answering"),
        config_from_hf=gemma_from_hf,
        config_to_hf=gemma_to_hf,
        weights=weights,
        prefix="model.",
        ignored=CHECKPOINT_BUFFERS,
        tiny=TINY | {"num_key_value_heads": 1, "head_dim": 8, "hidden_act": "gelu"},
    ),
    Architecture(
        model_type="gemma2",
        classes=decoder_classes("Gemma2", "question_answering"),
        config_from_hf=gemma2_from_hf,
        config_to_hf=gemma2_to_hf,
        weights=sandwich_weights,
        prefix="model.",
        ignored=CHECKPOINT_BUFFERS,
        tiny=TINY
        | {
            "num_hidden_layers": 3,
            "head_dim": 8,
            "query_pre_attn_scalar": 10,
            "sliding_window": 6,
            "attn_logit_softcapping": 2.0,
            "final_logit_softcapping": 3.0,
        },
    ),
    Architecture(
        model_type="gemma3_text",
        classes={
            "base": "Gemma3TextModel",
            "causal_lm": "Gemma3ForCausalLM",
            "sequence_classification": "Gemma3TextForSequenceClassification",
        },
        config_from_hf=gemma3_from_hf,
        config_to_hf=gemma3_to_hf,
        weights=sandwich_weights,
        prefix="model.",
        ignored=CHECKPOINT_BUFFERS,
        tiny=TINY
        | {
            "num_hidden_layers": 3,
            "head_dim": 8,
            "query_pre_attn_scalar": 10,
            "sliding_window": 6,
            "sliding_window_pattern": 2,
            "rope_theta": 1_000_000.0,
            "rope_local_base_freq": 100.0,
            "rope_scaling": {"rope_type": "linear", "factor": 8.0},
        },
    ),
]
