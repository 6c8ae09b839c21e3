"""GPT-J (Wang & Komatsuzaki 2021): attention and MLP side by side behind one norm, partly rotated heads."""

from typing import Any

from zoo.architectures.architecture import Architecture, Fields, activation_name
from zoo.architectures.gpt2 import SECOND_NAMES
from zoo.architectures.heads import decoder_head, decoder_head_weights, head_to_hf
from zoo.config import (
    AttentionConfig,
    EmbeddingConfig,
    MlpConfig,
    NormConfig,
    RotaryConfig,
    StackConfig,
    TransformerConfig,
)
from zoo.weights import LINEAR_OF_HEADS, Rule, linear, norm


def config_from_hf(fields: Fields, head: str) -> TransformerConfig:
    """Translate a GPTJConfig."""
    fields = fields.with_second_names(**SECOND_NAMES)
    width, heads = fields["n_embd"], fields["n_head"]
    return TransformerConfig(
        embedding=EmbeddingConfig(width=width, vocab_size=fields["vocab_size"], dropout=fields.get("embd_pdrop", 0.0)),
        decoder=StackConfig(
            num_layers=fields["n_layer"],
            width=width,
            attention=AttentionConfig(
                num_heads=heads,
                head_size=width // heads,
                rotary=RotaryConfig(size=fields.get("rotary_dim", 64), pairing="interleaved"),
                dropout=fields.get("attn_pdrop", 0.0),
            ),
            mlp=MlpConfig(
                hidden_size=fields.get("n_inner", 4 * width),
                activation=fields.activation("activation_function", "gelu_new"),
                bias=True,
            ),
            causal=True,
            norm=NormConfig(epsilon=fields.get("layer_norm_epsilon", 1e-5)),
            branches="parallel_shared_norm",
            dropout=fields.get("resid_pdrop", 0.0),
        ),
        head=decoder_head(fields, head, tied=False, bias=True),
    )


def config_to_hf(config: TransformerConfig) -> dict[str, Any]:
    """Write a GPTJConfig."""
    stack = config.output_stack
    return {
        "vocab_size": config.embedding.vocab_size,
        "n_embd": stack.width,
        "n_layer": stack.num_layers,
        "n_head": stack.attention.num_heads,
        "n_inner": stack.mlp.hidden_size,
        "rotary_dim": stack.attention.rotary.size,
        "activation_function": activation_name(stack.mlp.activation),
        "layer_norm_epsilon": stack.norm.epsilon,
        "embd_pdrop": config.embedding.dropout,
        "attn_pdrop": stack.attention.dropout,
        "resid_pdrop": stack.dropout,
        **head_to_hf(config),
    }


def weights(config: TransformerConfig, head: str) -> list[Rule]:
    """The table."""
    layer = "transformer.h.{layer}"
    return [
        *decoder_head_weights(config, head, "transformer.wte"),
        *norm(f"{layer}.ln_1", "decoder/attention_input_norm"),
        *linear(f"{layer}.attn.q_proj", "decoder/attention/query"),
        *linear(f"{layer}.attn.k_proj", "decoder/attention/key"),
        *linear(f"{layer}.attn.v_proj", "decoder/attention/value"),
        *linear(f"{layer}.attn.out_proj", "decoder/attention/output", LINEAR_OF_HEADS),
        *linear(f"{layer}.mlp.fc_in", "decoder/mlp/up"),
        *linear(f"{layer}.mlp.fc_out", "decoder/mlp/down"),
        *norm("transformer.ln_f", "decoder/final_norm"),
    ]


ARCHITECTURES = [
    Architecture(
        model_type="gptj",
        classes={
            "base": "GPTJModel",
            "causal_lm": "GPTJForCausalLM",
            "sequence_classification": "GPTJForSequenceClassification",
            "question_answering": "GPTJForQuestionAnswering",
        },
        config_from_hf=config_from_hf,
        config_to_hf=config_to_hf,
        weights=weights,
        prefix="transformer.",
        ignored=(r"\.attn\.((masked_)?bias|embed_positions)$",),
        tiny={
            "vocab_size": 79,
            "n_positions": 64,
            "n_embd": 32,
            "n_layer": 2,
            "n_head": 2,
            "n_inner": 40,
            "rotary_dim": 8,
            "activation_function": "gelu_new",
            "pad_token_id": 1,
            "id2label": {"0": "a", "1": "b", "2": "c"},
        },
    )
]
