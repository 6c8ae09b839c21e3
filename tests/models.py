"""Tiny configurations that together use every mechanism of the core, and inputs for them."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from zoo.config import (
    AlibiConfig,
    AttentionConfig,
    AttentionPoolConfig,
    AudioConfig,
    ClassifierHead,
    ConvolutionConfig,
    DenseConfig,
    DisentangledConfig,
    DynamicScaling,
    EmbeddingConfig,
    EmbeddingHead,
    ExpertsConfig,
    GridBiasConfig,
    LanguageModelHead,
    LearnedPositions,
    LinearScaling,
    Llama3Scaling,
    LocalConfig,
    LongRopeScaling,
    MlpConfig,
    NormConfig,
    PatchConfig,
    RecurrentConfig,
    RelativeBiasConfig,
    RotaryConfig,
    SinusoidalPositions,
    StackConfig,
    TokenHead,
    TransformerConfig,
    YarnScaling,
)
from zoo.recurrent import Recurrent
from zoo.transformer import Transformer

VOCAB, WIDTH = 61, 16
RMS = NormConfig(kind="rms", epsilon=1e-6, bias=False)
ALL_BIASES = ("query", "key", "value", "output")


def attention(**fields) -> AttentionConfig:
    return AttentionConfig(**({"num_heads": 4, "head_size": 4} | fields))


def stack(**fields) -> StackConfig:
    defaults = {
        "num_layers": 2,
        "width": WIDTH,
        "attention": attention(),
        "mlp": MlpConfig(hidden_size=24),
    }
    return StackConfig(**(defaults | fields))


def tokens(**fields) -> EmbeddingConfig:
    return EmbeddingConfig(**({"width": WIDTH, "vocab_size": VOCAB} | fields))


BERT = TransformerConfig(
    embedding=tokens(positions=LearnedPositions(max_length=40), num_token_types=2, norm=NormConfig(), dropout=0.1),
    encoder=stack(
        attention=attention(biases=ALL_BIASES, dropout=0.1),
        mlp=MlpConfig(hidden_size=24, bias=True),
        norm_slots=("residual",),
        final_norm=False,
        dropout=0.1,
    ),
    head=LanguageModelHead(bias=True, transform="gelu"),
)
ALBERT = TransformerConfig(
    embedding=tokens(width=8, positions=LearnedPositions(max_length=40)),
    encoder=stack(num_layers=4, num_unique_layers=2, norm_slots=("residual",), final_norm=False),
    head=ClassifierHead(num_classes=3, pooler="tanh"),
)
SENTENCES = TransformerConfig(
    embedding=tokens(positions=LearnedPositions(max_length=40, offset=2, padding_id=1)),
    encoder=stack(pattern=("local", "global"), local=LocalConfig(window=(3, 3), rotary=RotaryConfig())),
    head=EmbeddingHead(also_pooled=("max",), inner=(DenseConfig(width=20, activation="tanh"),), projection=6),
)
VIT = TransformerConfig(
    embedding=EmbeddingConfig(
        width=WIDTH,
        patches=PatchConfig(image_size=12, patch_size=4),
        positions=LearnedPositions(max_length=10),
    ),
    encoder=stack(layer_scale=0.1, norm=NormConfig(epsilon=1e-6)),
    head=ClassifierHead(num_classes=5),
)
DEIT = TransformerConfig(
    embedding=EmbeddingConfig(
        width=WIDTH,
        patches=PatchConfig(image_size=14, patch_size=4, distillation_token=True),
        positions=LearnedPositions(max_length=11),
    ),
    encoder=stack(),
    head=ClassifierHead(num_classes=5, distilled=True),
)
BEIT = TransformerConfig(
    embedding=EmbeddingConfig(width=WIDTH, patches=PatchConfig(image_size=12, patch_size=4, mask_token=True)),
    encoder=stack(position_bias=GridBiasConfig(rows=3, columns=3), final_norm=False),
    head=ClassifierHead(num_classes=5, pooling="patch_mean", norm=NormConfig()),
)
VISUAL_TOKENS = dataclasses.replace(BEIT, head=TokenHead(num_classes=7, norm=NormConfig(), patches_only=True))
SIGLIP = TransformerConfig(
    embedding=EmbeddingConfig(
        width=WIDTH,
        patches=PatchConfig(image_size=12, patch_size=4, class_token=False, bias=False),
        positions=LearnedPositions(max_length=9),
    ),
    encoder=stack(),
    head=EmbeddingHead(
        pooling="attention",
        attention_pool=AttentionPoolConfig(attention=attention(biases=ALL_BIASES), mlp=MlpConfig(hidden_size=24)),
        norm=RMS,
        projection=6,
    ),
)
CLIP = TransformerConfig(
    embedding=tokens(positions=LearnedPositions(max_length=40)),
    encoder=stack(causal=True),
    head=EmbeddingHead(pooling="token", projection=6),
)
TAGGER = TransformerConfig(
    embedding=tokens(), encoder=stack(position_bias=AlibiConfig()), head=TokenHead(num_classes=2)
)
ENDS = TransformerConfig(
    embedding=tokens(), encoder=stack(), head=ClassifierHead(num_classes=3, pooling="last", end_id=17)
)
MODERNBERT = TransformerConfig(
    embedding=tokens(norm=NormConfig(bias=False)),
    encoder=stack(
        num_layers=5,
        pattern=("global", "local"),
        local=LocalConfig(window=(3, 3), rotary=RotaryConfig()),
        attention=attention(rotary=RotaryConfig(base=160_000.0)),
        mlp=MlpConfig(hidden_size=24, gated=True),
        norm=NormConfig(bias=False),
        first_norm=False,
    ),
    head=ClassifierHead(
        num_classes=3, pooling="mean", pooler="gelu", pooler_bias=False, pooler_norm=NormConfig(bias=False)
    ),
)
LABELS = dataclasses.replace(MODERNBERT, head=TokenHead(num_classes=3, transform="gelu", transform_bias=False))
DEBERTA = TransformerConfig(
    embedding=tokens(norm=NormConfig()),
    encoder=stack(
        num_layers=3,
        attention=attention(
            biases=ALL_BIASES,
            scale=12**-0.5,
            disentangled=DisentangledConfig(span=4, max_distance=9, shared=True, norm=NormConfig()),
        ),
        convolution=ConvolutionConfig(window=3),
        norm_slots=("residual",),
        final_norm=False,
        dropout=0.1,
    ),
    head=TokenHead(num_classes=3),
)
DISTANCES = TransformerConfig(
    embedding=tokens(),
    encoder=stack(attention=attention(disentangled=DisentangledConfig(span=4, terms=("content_to_position",)))),
    head=TokenHead(num_classes=3),
)
GPT2 = TransformerConfig(
    embedding=tokens(positions=LearnedPositions(max_length=40)),
    decoder=stack(
        causal=True,
        attention=attention(biases=ALL_BIASES),
        mlp=MlpConfig(hidden_size=24, activation="gelu_tanh", bias=True),
    ),
    head=LanguageModelHead(),
)
MISTRAL = dataclasses.replace(GPT2, decoder=dataclasses.replace(GPT2.decoder, num_layers=3, scores_over_depth=True))
REVIEWS = dataclasses.replace(GPT2, head=ClassifierHead(num_classes=3, pooling="last", padding_id=7, bias=False))
OPT = TransformerConfig(
    embedding=tokens(width=12, positions=LearnedPositions(max_length=40, offset=2, over_mask=True), projected="tokens"),
    decoder=stack(causal=True, norm=NormConfig(scale=False, bias=False)),
    output_width=12,
    head=LanguageModelHead(),
)
LLAMA = TransformerConfig(
    embedding=tokens(),
    decoder=stack(
        causal=True,
        norm=RMS,
        attention=attention(
            num_kv_heads=2,
            rotary=RotaryConfig(base=500.0, scaling=Llama3Scaling(factor=8.0, original_length=32)),
        ),
        mlp=MlpConfig(hidden_size=24, activation="silu", gated=True),
    ),
    head=LanguageModelHead(tied=False),
)
SMOLLM3 = TransformerConfig(
    embedding=tokens(),
    decoder=stack(
        num_layers=3,
        causal=True,
        pattern=("global", "local"),
        local=LocalConfig(rotary=None),
        norm=RMS,
        attention=attention(rotary=RotaryConfig()),
    ),
    head=LanguageModelHead(),
)
GEMMA = TransformerConfig(
    embedding=tokens(scale=4.0),
    decoder=stack(
        num_layers=5,
        causal=True,
        pattern=("local", "local", "global"),
        local=LocalConfig(window=(5, 0), rotary=RotaryConfig()),
        norm=dataclasses.replace(RMS, unit_offset=True),
        norm_slots=("input", "output"),
        attention=attention(
            num_kv_heads=1,
            scale=0.3,
            softcap=20.0,
            qk_norm=dataclasses.replace(RMS, unit_offset=True),
            rotary=RotaryConfig(base=1e6, scaling=LinearScaling(factor=8.0)),
        ),
        mlp=MlpConfig(hidden_size=24, activation="gelu_tanh", gated=True),
    ),
    head=LanguageModelHead(softcap=30.0),
)
NEOX = TransformerConfig(
    embedding=tokens(),
    decoder=stack(
        causal=True,
        branches="parallel",
        attention=attention(
            biases=ALL_BIASES,
            head_size=8,
            rotary=RotaryConfig(size=4, scaling=DynamicScaling(factor=2.0, original_length=8)),
        ),
        mlp=MlpConfig(hidden_size=24, bias=True),
    ),
    head=LanguageModelHead(tied=False, bias=True),
)
GPTJ = TransformerConfig(
    embedding=tokens(),
    decoder=stack(
        causal=True,
        branches="parallel_shared_norm",
        attention=attention(
            num_heads=2,
            head_size=16,
            rotary=RotaryConfig(
                pairing="interleaved",
                scaling=YarnScaling(factor=4.0, original_length=16, attention_factor=1.1, beta_fast=4.0, beta_slow=0.5),
            ),
        ),
    ),
    head=LanguageModelHead(tied=False),
)
OLMO2 = TransformerConfig(
    embedding=tokens(),
    decoder=stack(
        causal=True,
        norm=RMS,
        norm_slots=("output",),
        attention=attention(
            qk_norm=RMS,
            qk_norm_over="projection",
            rotary=RotaryConfig(
                scaling=LongRopeScaling(
                    short_factors=(1.0, 1.5),
                    long_factors=(2.0, 4.0),
                    original_length=10,
                    attention_factor=1.2,
                )
            ),
        ),
    ),
    head=LanguageModelHead(tied=False),
)
BLOOM = TransformerConfig(
    embedding=tokens(norm=NormConfig()),
    decoder=stack(causal=True, position_bias=AlibiConfig(), attention=attention(num_heads=3)),
    head=LanguageModelHead(),
)
MIXTRAL = TransformerConfig(
    embedding=tokens(),
    decoder=stack(
        causal=True,
        norm=RMS,
        pattern=("local", "global"),
        local=LocalConfig(chunk=6, rotary=RotaryConfig()),
        attention=attention(sinks=True, rotary=RotaryConfig()),
        mlp=MlpConfig(
            hidden_size=24,
            activation="silu",
            gated=True,
            clamp=0.5,
            bias=True,
            experts=ExpertsConfig(num_experts=4, router_bias=True),
        ),
    ),
    head=LanguageModelHead(tied=False),
)
T5 = TransformerConfig(
    embedding=tokens(),
    encoder=stack(
        norm=RMS,
        attention=attention(scale=1.0),
        mlp=MlpConfig(hidden_size=24, activation="relu"),
        position_bias=RelativeBiasConfig(num_buckets=8, max_distance=16),
    ),
    decoder=stack(
        causal=True,
        norm=RMS,
        attention=attention(scale=1.0),
        cross_attention=attention(scale=1.0),
        mlp=MlpConfig(hidden_size=24, activation="relu"),
        position_bias=RelativeBiasConfig(num_buckets=8, max_distance=16),
    ),
    head=LanguageModelHead(scale=WIDTH**-0.5),
)
VERDICT = dataclasses.replace(T5, head=ClassifierHead(num_classes=3, pooling="last", padding_id=7))
BART = TransformerConfig(
    embedding=tokens(positions=LearnedPositions(max_length=40, offset=2), norm=NormConfig()),
    decoder_embedding=EmbeddingConfig(
        width=WIDTH, positions=LearnedPositions(max_length=40, offset=2), norm=NormConfig()
    ),
    encoder=stack(norm_slots=("residual",), final_norm=False),
    decoder=stack(causal=True, cross_attention=attention(num_heads=2), norm_slots=("residual",), final_norm=False),
    head=LanguageModelHead(bias=True),
)
MARIAN = TransformerConfig(
    embedding=tokens(positions=SinusoidalPositions(layout="halves", max_length=40), scale=4.0),
    decoder_embedding=tokens(
        vocab_size=53, positions=SinusoidalPositions(longest="last", offset=2, padding_id=1), scale=4.0
    ),
    encoder=stack(width=20),
    decoder=stack(causal=True, cross_attention=attention()),
    head=LanguageModelHead(),
)
CAPTIONER = TransformerConfig(
    embedding=VIT.embedding,
    decoder_embedding=tokens(positions=LearnedPositions(max_length=40)),
    encoder=VIT.encoder,
    memory_width=12,
    decoder=stack(
        causal=True,
        cross_attention=attention(),
        position_bias=RelativeBiasConfig(num_buckets=8, max_distance=16, per_layer=True),
    ),
    head=LanguageModelHead(),
)

WHISPER = TransformerConfig(
    embedding=EmbeddingConfig(
        width=WIDTH, audio=AudioConfig(num_mels=5, max_length=9), positions=LearnedPositions(max_length=9)
    ),
    decoder_embedding=tokens(positions=LearnedPositions(max_length=40)),
    encoder=stack(attention=attention(biases=("query", "value", "output"))),
    decoder=stack(causal=True, cross_attention=attention()),
    head=LanguageModelHead(),
)
LANGUAGES = dataclasses.replace(
    WHISPER,
    decoder=None,
    decoder_embedding=None,
    head=ClassifierHead(num_classes=3, pooling="mean_with_padding", projection=6),
)

CONFIGS = {
    "bert": BERT,
    "albert": ALBERT,
    "sentences": SENTENCES,
    "vit": VIT,
    "deit": DEIT,
    "beit": BEIT,
    "visual_tokens": VISUAL_TOKENS,
    "siglip": SIGLIP,
    "clip": CLIP,
    "tagger": TAGGER,
    "ends": ENDS,
    "modernbert": MODERNBERT,
    "labels": LABELS,
    "deberta": DEBERTA,
    "distances": DISTANCES,
    "gpt2": GPT2,
    "mistral": MISTRAL,
    "reviews": REVIEWS,
    "opt": OPT,
    "llama": LLAMA,
    "smollm3": SMOLLM3,
    "gemma": GEMMA,
    "neox": NEOX,
    "gptj": GPTJ,
    "olmo2": OLMO2,
    "bloom": BLOOM,
    "mixtral": MIXTRAL,
    "t5": T5,
    "verdict": VERDICT,
    "bart": BART,
    "marian": MARIAN,
    "captioner": CAPTIONER,
    "whisper": WHISPER,
    "languages": LANGUAGES,
}
MECHANISMS = ("bert", "deberta", "gemma", "gpt2", "mixtral", "t5", "vit", "whisper")
"""Of CONFIGS those that have every kind of layer between them: the default tier, where all would take long."""
DECODERS = [name for name, config in CONFIGS.items() if config.decoder and isinstance(config.head, LanguageModelHead)]


RECURRENT = {
    "lstm": RecurrentConfig(
        embedding=tokens(dropout=0.1), cell="lstm", num_layers=2, width=WIDTH, direction="backward", dropout=0.2
    ),
    "gru": RecurrentConfig(
        embedding=tokens(norm=NormConfig()),
        decoder_embedding=tokens(vocab_size=53, width=12),
        cell="gru",
        width=WIDTH,
        head=LanguageModelHead(tied=False, bias=True),
    ),
    "attention": RecurrentConfig(
        embedding=tokens(width=12),
        decoder_embedding=tokens(vocab_size=53, width=10, scale=2.0),
        cell="gru",
        num_layers=2,
        width=WIDTH,
        direction="both",
        attention="additive",
    ),
    "attention_lstm": RecurrentConfig(
        embedding=tokens(), cell="lstm", width=8, direction="both", attention="additive", dropout=0.1
    ),
}


def inputs(
    config: TransformerConfig | RecurrentConfig, batch: int = 2, length: int = 12, seed: int = 0
) -> dict[str, np.ndarray]:
    """Random inputs without padding, by the names of `Transformer.__call__`."""
    rng = np.random.default_rng(seed)
    arrays: dict[str, np.ndarray] = {}
    if config.embedding.patches is not None:
        size, channels = config.embedding.patches.image_size, config.embedding.patches.num_channels
        arrays["pixel_values"] = rng.normal(size=(batch, channels, size, size)).astype(np.float32)
    elif config.embedding.audio is not None:
        audio = config.embedding.audio
        arrays["input_features"] = rng.normal(size=(batch, audio.num_mels, 2 * audio.max_length)).astype(np.float32)
    else:
        arrays["input_ids"] = rng.integers(1, config.embedding.vocab_size, (batch, length)).astype(np.int32)
    if config.embedding.num_token_types:
        kinds = np.arange(length) * config.embedding.num_token_types // length
        arrays["token_type_ids"] = kinds.astype(np.int32)[None].repeat(batch, 0)
    if config.is_encoder_decoder:
        ids = rng.integers(1, config.target_vocab_size, (batch, length - 3))
        arrays["decoder_input_ids"] = ids.astype(np.int32)
    return arrays


@functools.cache
def build(name: str):
    """A model in float32, and random parameters."""
    model = Recurrent(RECURRENT[name]) if name in RECURRENT else Transformer(CONFIGS[name])
    return model, draw_parameters(model, inputs(model.config))


def draw_parameters(model, given: dict[str, np.ndarray]):
    """Random parameters of which none stands at its zero or one, so that every one matters."""
    shapes = jax.eval_shape(model.init, jax.random.key(0), **given)["params"]
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        start = 0.7 if path[-1].key == "scale" else 0.0
        return jnp.asarray(start + 0.2 * rng.standard_normal(leaf.shape), jnp.float32)

    return jax.tree_util.tree_map_with_path(draw, shapes)
