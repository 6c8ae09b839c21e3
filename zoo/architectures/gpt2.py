"""GPT-2 (Radford et al. 2019): a pre-norm decoder with learned positions, whose linear maps are stored input first."""

from typing import Any

from zoo.architectures.architecture import Architecture, Fields, activation_name
from zoo.architectures.heads import decoder_head, decoder_head_weights, head_to_hf
from zoo.config import (
    AttentionConfig,
    EmbeddingConfig,
    LearnedPositions,
    MlpConfig,
    NormConfig,
    StackConfig,
    TransformerConfig,
)
from zoo.weights import INPUT_FIRST, INPUT_FIRST_OF_HEADS, Rule, fused_linear, linear, norm, table

SECOND_NAMES = {
    "n_embd": "hidden_size",
    "n_head": "num_attention_heads",
    "n_layer": "num_hidden_layers",
    "n_positions": "max_position_embeddings",
}


def config_from_hf(fields: Fields, head: str) -> TransformerConfig:
    """Translate a GPT2Config."""
    # `reorder_and_upcast_attn` says in which precision to attend, and nothing of what is computed.
    fields.expect(add_cross_attention=False)
    fields = fields.with_second_names(**SECOND_NAMES)
    width, heads = fields["n_embd"], fields["n_head"]
    return TransformerConfig(
        embedding=EmbeddingConfig(
            width=width,
            vocab_size=fields["vocab_size"],
            positions=LearnedPositions(max_length=fields.get("n_positions", 1024)),
            dropout=fields.get("embd_pdrop", 0.1),
        ),
        decoder=StackConfig(
            num_layers=fields["n_layer"],
            width=width,
            attention=AttentionConfig(
                num_heads=heads,
                head_size=width // heads,
                biases=("query", "key", "value", "output"),
                scale=None if fields.get("scale_attn_weights", True) else 1.0,
                dropout=fields.get("attn_pdrop", 0.1),
            ),
            mlp=MlpConfig(
                hidden_size=fields.get("n_inner", 4 * width),
                activation=fields.activation("activation_function", "gelu_new"),
                bias=True,
            ),
            causal=True,
            norm=NormConfig(epsilon=fields.get("layer_norm_epsilon", 1e-5)),
            scores_over_depth=fields.get("scale_attn_by_inverse_layer_idx", False),
            dropout=fields.get("resid_pdrop", 0.1),
        ),
        head=decoder_head(fields, head, tied=True),
    )


def config_to_hf(config: TransformerConfig) -> dict[str, Any]:
    """Write a GPT2Config."""
    stack = config.output_stack
    return {
        "vocab_size": config.embedding.vocab_size,
        "n_positions": config.embedding.positions.max_length,
        "n_embd": stack.width,
        "n_layer": stack.num_layers,
        "n_head": stack.attention.num_heads,
        "n_inner": stack.mlp.hidden_size,
        "activation_function": activation_name(stack.mlp.activation),
        "scale_attn_weights": stack.attention.scale is None,
        "scale_attn_by_inverse_layer_idx": stack.scores_over_depth,
        "layer_norm_epsilon": stack.norm.epsilon,
        "embd_pdrop": config.embedding.dropout,
        "attn_pdrop": stack.attention.dropout,
        "resid_pdrop": stack.dropout,
        **head_to_hf(config),
    }


def weights(config: TransformerConfig, head: str) -> list[Rule]:
    """The table."""
    layer = "transformer.h.{layer}"
    projections = ["decoder/attention/query", "decoder/attention/key", "decoder/attention/value"]
    return [
        *decoder_head_weights(config, head, "transformer.wte", labels="classifier"),
        *table("transformer.wpe", "embedder/position"),
        *norm(f"{layer}.ln_1", "decoder/attention_input_norm"),
        *fused_linear(f"{layer}.attn.c_attn", projections, INPUT_FIRST),
        *linear(f"{layer}.attn.c_proj", "decoder/attention/output", INPUT_FIRST_OF_HEADS),
        *norm(f"{layer}.ln_2", "decoder/mlp_input_norm"),
        *linear(f"{layer}.mlp.c_fc", "decoder/mlp/up", INPUT_FIRST),
        *linear(f"{layer}.mlp.c_proj", "decoder/mlp/down", INPUT_FIRST),
        *norm("transformer.ln_f", "decoder/final_norm"),
    ]


ARCHITECTURES = [
    Architecture(
        model_type="gpt2",
        classes={
            "base": "GPT2Model",
            "causal_lm": "GPT2LMHeadModel",
            "sequence_classification": "GPT2ForSequenceClassification",
            "token_classification": "GPT2ForTokenClassification",
            "question_answering": "GPT2ForQuestionAnswering",
        },
        also_reads={"GPT2DoubleHeadsModel": "causal_lm"},
        config_from_hf=config_from_hf,
        config_to_hf=config_to_hf,
        weights=weights,
        prefix="transformer.",
        ignored=(r"\.attn\.(masked_)?bias$", r"^multiple_choice_head\."),
        tiny={
            "vocab_size": 71,
            "n_positions": 48,
            "n_embd": 24,
            "n_layer": 3,
            "n_head": 4,
            "n_inner": 40,
            "activation_function": "gelu_new",
            "pad_token_id": 1,
            "id2label": {"0": "a", "1": "b", "2": "c"},
            "*base": {"scale_attn_by_inverse_layer_idx": True, "reorder_and_upcast_attn": True},
        },
    )
]
