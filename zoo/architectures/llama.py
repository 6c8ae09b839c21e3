"""Llama 1 to 3 (Touvron et al. 2023; Grattafiori et al. 2024) and decoders of its plan: Arcee, Mistral, Qwen, SmolLM3.

Pre-norm blocks with RMS norms, rotary positions, grouped keys and values, and a gated MLP. What they share is in the
functions without a name of theirs, which the files of later decoders use too.
"""

from collections.abc import Sequence
from typing import Any

from zoo.architectures.architecture import Architecture, Fields, activation_name
from zoo.architectures.heads import decoder_head, decoder_head_weights, head_to_hf
from zoo.architectures.rotary import rotary_from_hf, rotary_to_hf
from zoo.config import (
    AttentionConfig,
    BiasSlot,
    EmbeddingConfig,
    LocalConfig,
    MlpConfig,
    NormConfig,
    Span,
    StackConfig,
    TransformerConfig,
)
from zoo.weights import LINEAR_OF_HEADS, Rule, linear, norm

ALL_BIASES: tuple[BiasSlot, ...] = ("query", "key", "value", "output")
ANSWERING_PREFIX = {"question_answering": "transformer."}
"""The reference's name of the base model under some heads that mark answers."""
CHECKPOINT_BUFFERS = (r"rotary_emb\.inv_freq$",)
"""Tensors of old files that are computed from config.json."""


def rms_norm(fields: Fields, epsilon: float, **options: Any) -> NormConfig:
    """The norm of every slot; `epsilon` is the architecture's default."""
    return NormConfig(kind="rms", epsilon=fields.get("rms_norm_eps", epsilon), bias=False, **options)


def attention_from_hf(
    fields: Fields,
    *,
    max_length: int,
    base: float = 10_000.0,
    head_size: int | None = None,
    kv_heads: int | None = None,
    **options: Any,
) -> AttentionConfig:
    """Grouped-query attention with rotation; the keywords are the architecture's defaults.

    `options` are further fields of `AttentionConfig`.
    """
    heads = fields["num_attention_heads"]
    head_size = fields.get("head_dim", head_size or fields["hidden_size"] // heads)
    max_length = fields.get("max_position_embeddings", max_length)
    return AttentionConfig(
        num_heads=heads,
        head_size=head_size,
        num_kv_heads=fields.nullable("num_key_value_heads", kv_heads) or heads,
        dropout=fields.get("attention_dropout", 0.0),
        **({"rotary": rotary_from_hf(fields, head_size, max_length=max_length, base=base)} | options),
    )


def decoder_from_hf(
    fields: Fields,
    head: str,
    attention: AttentionConfig,
    norms: NormConfig,
    *,
    mlp: MlpConfig | None = None,
    tied: bool = False,
    padding_id: int | None = None,
    scale: float = 1.0,
    softcap: float | None = None,
    **stack: Any,
) -> TransformerConfig:
    """The whole model around its attention.

    Args:
        fields: config.json.
        head: as in `Architecture.classes`.
        attention: of every layer.
        norms: of every slot.
        mlp: of every layer; None reads Llama's fields.
        tied: the architecture's default of `tie_word_embeddings`.
        padding_id: its default of `pad_token_id`.
        scale: of the embedding.
        softcap: of the logits.
        stack: further fields of `StackConfig`.
    """
    width = fields["hidden_size"]
    return TransformerConfig(
        embedding=EmbeddingConfig(width=width, vocab_size=fields["vocab_size"], scale=scale),
        decoder=StackConfig(
            num_layers=fields["num_hidden_layers"],
            width=width,
            attention=attention,
            mlp=gated_mlp(fields) if mlp is None else mlp,
            causal=True,
            norm=norms,
            **stack,
        ),
        head=decoder_head(fields, head, tied=tied, padding_id=padding_id, softcap=softcap),
    )


def gated_mlp(fields: Fields, **options: Any) -> MlpConfig:
    """The gated MLP of most decoders; `options` are further fields."""
    activation, bias = fields.activation("hidden_act", "silu"), fields.get("mlp_bias", False)
    plain = {"hidden_size": fields["intermediate_size"], "activation": activation, "gated": True, "bias": bias}
    return MlpConfig(**(plain | options))


def spans_from_hf(fields: Fields, default: Sequence[str]) -> tuple[Span, ...]:
    """`layer_types` as a pattern, its shortest period; `default` is what the architecture does without the field."""
    kinds: dict[str, Span] = {"full_attention": "global", "sliding_attention": "local"}
    names = fields.get("layer_types", default)
    if len(names) != fields["num_hidden_layers"]:
        raise ValueError(f"layer_types has {len(names)} entries for {fields['num_hidden_layers']} layers")
    return shortest_period(tuple(kinds[name] for name in names))


def shortest_period(spans: tuple[Span, ...]) -> tuple[Span, ...]:
    """The shortest prefix that, repeated, gives the whole."""
    count = len(spans)
    return next(spans[:n] for n in range(1, count + 1) if all(spans[i] == spans[i % n] for i in range(count)))


def spans_to_hf(stack: StackConfig) -> list[str]:
    """`layer_types`."""
    names: dict[Span, str] = {"global": "full_attention", "local": "sliding_attention"}
    return [names[stack.pattern[index % len(stack.pattern)]] for index in range(stack.num_layers)]


def window_from_hf(size: int, attention: AttentionConfig) -> LocalConfig:
    """A window of `size` keys, counting the query's own, with the rotation of all layers."""
    return LocalConfig(window=(size - 1, 0), rotary=attention.rotary)


def window_to_hf(stack: StackConfig) -> int | None:
    """`sliding_window`."""
    return None if stack.local is None or stack.local.window is None else stack.local.window[0] + 1


def decoder_to_hf(config: TransformerConfig) -> dict[str, Any]:
    """The fields that all these decoders have."""
    stack = config.output_stack
    attention = stack.attention
    return {
        "vocab_size": config.embedding.vocab_size,
        "hidden_size": stack.width,
        "num_hidden_layers": stack.num_layers,
        "num_attention_heads": attention.num_heads,
        "num_key_value_heads": attention.kv_heads,
        "head_dim": attention.head_size,
        "intermediate_size": stack.mlp.hidden_size,
        "hidden_act": activation_name(stack.mlp.activation),
        "rms_norm_eps": stack.norm.epsilon,
        "attention_dropout": attention.dropout,
        **({} if attention.rotary is None else rotary_to_hf(attention.rotary, attention.head_size)),
        **head_to_hf(config),
    }


def attention_weights(
    layer: str, stack: str = "decoder", theirs: str = "self_attn", ours: str = "attention"
) -> list[Rule]:
    """The rows of attention, with norms of queries and keys where there are any."""
    return [
        *linear(f"{layer}.{theirs}.q_proj", f"{stack}/{ours}/query"),
        *linear(f"{layer}.{theirs}.k_proj", f"{stack}/{ours}/key"),
        *linear(f"{layer}.{theirs}.v_proj", f"{stack}/{ours}/value"),
        *linear(f"{layer}.{theirs}.o_proj", f"{stack}/{ours}/output", LINEAR_OF_HEADS),
        *norm(f"{layer}.{theirs}.q_norm", f"{stack}/{ours}/query_norm"),
        *norm(f"{layer}.{theirs}.k_norm", f"{stack}/{ours}/key_norm"),
    ]


def mlp_weights(layer: str, stack: str = "decoder") -> list[Rule]:
    """The rows of the MLP, gated or not."""
    return [
        *linear(f"{layer}.mlp.gate_proj", f"{stack}/mlp/gate"),
        *linear(f"{layer}.mlp.up_proj", f"{stack}/mlp/up"),
        *linear(f"{layer}.mlp.down_proj", f"{stack}/mlp/down"),
    ]


def weights(config: TransformerConfig, head: str) -> list[Rule]:
    """The table."""
    layer = "model.layers.{layer}"
    return [
        *decoder_head_weights(config, head, "model.embed_tokens"),
        *norm(f"{layer}.input_layernorm", "decoder/attention_input_norm"),
        *attention_weights(layer),
        *norm(f"{layer}.post_attention_layernorm", "decoder/mlp_input_norm"),
        *mlp_weights(layer),
        *norm("model.norm", "decoder/final_norm"),
    ]


def llama_from_hf(fields: Fields, head: str) -> TransformerConfig:
    """Translate a LlamaConfig."""
    biases = ALL_BIASES if fields.get("attention_bias", False) else ()
    attention = attention_from_hf(fields, max_length=2048, biases=biases)
    return decoder_from_hf(fields, head, attention, rms_norm(fields, 1e-6))


def llama_to_hf(config: TransformerConfig) -> dict[str, Any]:
    """Write a LlamaConfig."""
    stack = config.output_stack
    biases = {"attention_bias": bool(stack.attention.biases), "mlp_bias": stack.mlp.bias}
    return decoder_to_hf(config) | biases


def arcee_from_hf(fields: Fields, head: str) -> TransformerConfig:
    """Translate an ArceeConfig: Llama without a gate."""
    biases = ALL_BIASES if fields.get("attention_bias", False) else ()
    mlp = gated_mlp(fields, activation=fields.activation("hidden_act", "relu2"), gated=False)
    attention = attention_from_hf(fields, max_length=4096, biases=biases)
    return decoder_from_hf(fields, head, attention, rms_norm(fields, 1e-5), mlp=mlp)


def mistral_from_hf(fields: Fields, head: str) -> TransformerConfig:
    """Translate a MistralConfig: all layers see a window, or none does."""
    attention = attention_from_hf(fields, max_length=131_072, kv_heads=8)
    window, local = fields.nullable("sliding_window", 4096), {}
    if window is not None:
        local = {"pattern": ("local",), "local": window_from_hf(window, attention)}
    return decoder_from_hf(fields, head, attention, rms_norm(fields, 1e-6), **local)


def mistral_to_hf(config: TransformerConfig) -> dict[str, Any]:
    """Write a MistralConfig."""
    return decoder_to_hf(config) | {"sliding_window": window_to_hf(config.output_stack)}


def _qwen_from_hf(fields: Fields, head: str, attention: AttentionConfig, norms: NormConfig) -> TransformerConfig:
    window = fields.nullable("sliding_window", 4096) if fields.get("use_sliding_window", False) else None
    first = fields["num_hidden_layers"] if window is None else fields.get("max_window_layers", 28)
    numbers = range(fields["num_hidden_layers"])
    pattern = spans_from_hf(fields, ["sliding_attention" if n >= first else "full_attention" for n in numbers])
    local = {}
    if "local" in pattern:
        local = {"pattern": pattern, "local": window_from_hf(fields["sliding_window"], attention)}
    return decoder_from_hf(fields, head, attention, norms, **local)


def _qwen_to_hf(config: TransformerConfig) -> dict[str, Any]:
    stack = config.output_stack
    window = {"use_sliding_window": stack.local is not None, "sliding_window": window_to_hf(stack)}
    return decoder_to_hf(config) | window | {"layer_types": spans_to_hf(stack)}


def qwen2_from_hf(fields: Fields, head: str) -> TransformerConfig:
    """Translate a Qwen2Config."""
    attention = attention_from_hf(fields, max_length=32_768, kv_heads=32, biases=("query", "key", "value"))
    return _qwen_from_hf(fields, head, attention, rms_norm(fields, 1e-6))


def qwen3_from_hf(fields: Fields, head: str) -> TransformerConfig:
    """Translate a Qwen3Config."""
    norms = rms_norm(fields, 1e-6)
    biases = ALL_BIASES if fields.get("attention_bias", False) else ()
    options = {"head_size": 128, "biases": biases, "qk_norm": norms}
    return _qwen_from_hf(fields, head, attention_from_hf(fields, max_length=32_768, kv_heads=32, **options), norms)


def qwen3_to_hf(config: TransformerConfig) -> dict[str, Any]:
    """Write a Qwen3Config."""
    return _qwen_to_hf(config) | {"attention_bias": bool(config.output_stack.attention.biases)}


def smollm3_from_hf(fields: Fields, head: str) -> TransformerConfig:
    """Translate a SmolLM3Config: every few layers one has no positions, and may see a window."""
    count, interval = fields["num_hidden_layers"], fields.get("no_rope_layer_interval", 4)
    rotated = fields.get("no_rope_layers", [(index + 1) % interval for index in range(count)])[:count]
    pattern = shortest_period(tuple("global" if rotates else "local" for rotates in rotated))
    window = fields["sliding_window"] if fields.get("use_sliding_window", False) else None
    kinds = ["full_attention" if rotates or window is None else "sliding_attention" for rotates in rotated]
    fields.expect(layer_types=kinds)
    biases = ALL_BIASES if fields.get("attention_bias", False) else ()
    attention = attention_from_hf(fields, max_length=32_768, base=2_000_000.0, kv_heads=4, biases=biases)
    local = LocalConfig(window=None if window is None else (window - 1, 0)) if "local" in pattern else None
    return decoder_from_hf(
        fields, head, attention, rms_norm(fields, 1e-6), tied=True, padding_id=128_004, pattern=pattern, local=local
    )


def smollm3_to_hf(config: TransformerConfig) -> dict[str, Any]:
    """Write a SmolLM3Config."""
    stack = config.output_stack
    window = window_to_hf(stack)
    return llama_to_hf(config) | {
        "no_rope_layers": [int(kind == "full_attention") for kind in spans_to_hf(stack)],
        "use_sliding_window": window is not None,
        "sliding_window": window,
        "layer_types": ["full_attention"] * stack.num_layers if window is None else spans_to_hf(stack),
    }


TINY = {
    "vocab_size": 67,
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 40,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "pad_token_id": 1,
    "bos_token_id": 2,
    "eos_token_id": 3,
    "id2label": {"0": "a", "1": "b", "2": "c"},
}


def decoder_classes(name: str, *without: str) -> dict[str, str]:
    """The reference's classes of a decoder, but for heads that it does not have."""
    classes = {
        "base": f"{name}Model",
        "causal_lm": f"{name}ForCausalLM",
        "sequence_classification": f"{name}ForSequenceClassification",
        "token_classification": f"{name}ForTokenClassification",
        "question_answering": f"{name}ForQuestionAnswering",
    }
    return {head: found for head, found in classes.items() if head not in without}


ARCHITECTURES = [
    Architecture(
        model_type="llama",
        classes=decoder_classes("Llama"),
        config_from_hf=llama_from_hf,
        config_to_hf=llama_to_hf,
        weights=weights,
        prefix="model.",
        other_prefixes=ANSWERING_PREFIX,
        ignored=CHECKPOINT_BUFFERS,
        tiny=TINY
        | {
            "head_dim": 8,
            "attention_bias": True,
            "mlp_bias": True,
            "rope_theta": 500.0,
            "rope_scaling": {
                "rope_type": "llama3",
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 16,
            },
        },
    ),
    Architecture(
        model_type="arcee",
        classes=decoder_classes("Arcee"),
        config_from_hf=arcee_from_hf,
        config_to_hf=llama_to_hf,
        weights=weights,
        prefix="model.",
        other_prefixes=ANSWERING_PREFIX,
        tiny=TINY | {"hidden_act": "relu2"},
    ),
    Architecture(
        model_type="mistral",
        classes=decoder_classes("Mistral"),
        config_from_hf=mistral_from_hf,
        config_to_hf=mistral_to_hf,
        weights=weights,
        prefix="model.",
        ignored=CHECKPOINT_BUFFERS,
        tiny=TINY | {"sliding_window": 7},
    ),
    Architecture(
        model_type="qwen2",
        classes=decoder_classes("Qwen2"),
        config_from_hf=qwen2_from_hf,
        config_to_hf=_qwen_to_hf,
        weights=weights,
        prefix="model.",
        other_prefixes=ANSWERING_PREFIX,
        ignored=CHECKPOINT_BUFFERS,
        tiny=TINY
        | {
            "num_hidden_layers": 3,
            "use_sliding_window": True,
            "sliding_window": 6,
            "max_window_layers": 1,
            "tie_word_embeddings": True,
            "rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16},
        },
    ),
    Architecture(
        model_type="qwen3",
        classes=decoder_classes("Qwen3"),
        config_from_hf=qwen3_from_hf,
        config_to_hf=qwen3_to_hf,
        weights=weights,
        prefix="model.",
        other_prefixes=ANSWERING_PREFIX,
        tiny=TINY | {"head_dim": 8, "rope_theta": 1_000_000.0},
    ),
    Architecture(
        model_type="smollm3",
        classes=decoder_classes("SmolLM3"),
        config_from_hf=smollm3_from_hf,
        config_to_hf=smollm3_to_hf,
        weights=weights,
        prefix="model.",
        other_prefixes=ANSWERING_PREFIX,
        tiny=TINY | {"num_hidden_layers": 3, "no_rope_layer_interval": 2},
    ),
]
