"""Runs that make pictures of captions, and what they stand on: an image tokenizer, and a judge of what was drawn."""

from dataclasses import replace

from zoo.config import (
    AttentionConfig,
    ClassifierHead,
    EmbeddingConfig,
    ImageTokenizerConfig,
    LanguageModelHead,
    LearnedPositions,
    MlpConfig,
    NormConfig,
    PatchConfig,
    StackConfig,
    TransformerConfig,
)
from zoo.data import DataConfig, TokenizerConfig
from zoo.recipes.run import Run, fast_dtype, fast_layers
from zoo.tasks.image_tokens import ImageTokensConfig
from zoo.tasks.picture_attributes import PictureAttributesConfig
from zoo.tasks.text_to_image import TextToImageConfig
from zoo.training.config import OptimizerConfig, ScheduleConfig, TrainingConfig


def image_tokens_tiny() -> Run:
    """An autoencoder that writes pictures of 32 by 32 pixels as 64 tokens of 1,000 kinds.

    Not yet measured.
    """
    return Run(
        model=ImageTokenizerConfig(image_size=32, patch_size=4, width=128, num_blocks=2, levels=(8, 5, 5, 5)),
        task=ImageTokensConfig(image_size=32, batch_size=32),
        data=DataConfig(name="zoo_pictures"),
        optimizer=OptimizerConfig(name="adamw", learning_rate=3e-3, weight_decay=0.01),
        schedule=ScheduleConfig(name="cosine", warmup_steps=50, final_fraction=0.01),
        training=TrainingConfig(num_steps=1500, evaluate_every=500, checkpoint_every=500),
        compute_dtype=fast_dtype(),
        layers=fast_layers(),
        folder="runs/image-tokens-tiny",
    )


def picture_judge_tiny() -> Run:
    """A vision transformer that reads what pictures show, to judge those that other models draw.

    Not yet measured.
    """
    width = 96
    return Run(
        model=TransformerConfig(
            embedding=EmbeddingConfig(
                width=width,
                patches=PatchConfig(image_size=32, patch_size=4),
                positions=LearnedPositions(max_length=65),
            ),
            encoder=StackConfig(
                num_layers=3,
                width=width,
                attention=AttentionConfig(num_heads=3, head_size=32, biases=("query", "key", "value", "output")),
                mlp=MlpConfig(hidden_size=4 * width, activation="gelu_tanh", bias=True),
                norm=NormConfig(),
            ),
            head=ClassifierHead(num_classes=81),
        ),
        task=PictureAttributesConfig(image_size=32, batch_size=48, part_key="part"),
        data=DataConfig(name="zoo_pictures"),
        optimizer=OptimizerConfig(name="adamw", learning_rate=3e-3, weight_decay=0.05),
        schedule=ScheduleConfig(name="cosine", warmup_steps=50, final_fraction=0.01),
        training=TrainingConfig(num_steps=1500, evaluate_every=500, checkpoint_every=500),
        compute_dtype=fast_dtype(),
        layers=fast_layers(),
        folder="runs/picture-judge-tiny",
    )


def text_to_image_tiny() -> Run:
    """Pictures from captions, 64 learned tokens each: "a large red A at the top left", in colours and letters apart.

    Trains image-tokens-tiny and picture-judge-tiny first, where their runs are not there yet. Not yet measured.
    """
    return Run(
        model=_text_to_image(vocab_size=384, num_codes=1000, num_tokens=64, width=128, num_layers=3),
        task=TextToImageConfig(image_size=32, caption_length=32, batch_size=64),
        data=DataConfig(name="zoo_pictures", tokenizer=TokenizerConfig(vocab_size=384, cross_words=False)),
        optimizer=OptimizerConfig(name="adamw", learning_rate=3e-3, weight_decay=0.05),
        schedule=ScheduleConfig(name="cosine", warmup_steps=50, final_fraction=0.01),
        training=TrainingConfig(num_steps=1200, evaluate_every=1200, checkpoint_every=300),
        compute_dtype=fast_dtype(),
        layers=fast_layers(),
        folder="runs/text-to-image-tiny",
    )


def _text_to_image(
    *, vocab_size: int, num_codes: int, num_tokens: int, width: int, num_layers: int
) -> TransformerConfig:
    """An encoder of captions, and a decoder over a picture's tokens, one of which starts it and is never written."""
    attention = AttentionConfig(num_heads=width // 64, head_size=64)
    encoder = StackConfig(
        num_layers=2,
        width=width,
        attention=attention,
        mlp=MlpConfig(hidden_size=4 * width, activation="gelu_tanh"),
        norm=NormConfig(kind="rms", epsilon=1e-6, bias=False),
    )
    return TransformerConfig(
        embedding=EmbeddingConfig(width=width, vocab_size=vocab_size, positions=LearnedPositions(max_length=32)),
        encoder=encoder,
        decoder=replace(encoder, num_layers=num_layers, causal=True, cross_attention=attention),
        decoder_embedding=EmbeddingConfig(
            width=width, vocab_size=num_codes + 1, positions=LearnedPositions(max_length=num_tokens)
        ),
        head=LanguageModelHead(tied=False, num_ids=num_codes),
    )
