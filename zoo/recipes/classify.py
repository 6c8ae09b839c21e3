"""Classes of texts: a small run for a laptop, and GLUE."""

from zoo.config import (
    AttentionConfig,
    ClassifierHead,
    EmbeddingConfig,
    LearnedPositions,
    MlpConfig,
    NormConfig,
    StackConfig,
    TransformerConfig,
)
from zoo.data import DataConfig, TokenizerConfig
from zoo.recipes.run import Run, fast_dtype, fast_layers
from zoo.tasks.text_classification import TextClassificationConfig
from zoo.training.config import OptimizerConfig, ScheduleConfig, TrainingConfig


def classify_tiny() -> Run:
    """A BERT that tells which package a docstring is from, of eleven: not yet measured."""
    vocab_size, width, length = 8192, 128, 96
    return Run(
        model=TransformerConfig(
            embedding=EmbeddingConfig(
                width=width,
                vocab_size=vocab_size,
                positions=LearnedPositions(max_length=length),
                norm=NormConfig(),
                dropout=0.2,
            ),
            encoder=StackConfig(
                num_layers=2,
                width=width,
                attention=AttentionConfig(num_heads=2, head_size=64, biases=("query", "key", "value", "output")),
                mlp=MlpConfig(hidden_size=4 * width, activation="gelu", bias=True),
                norm=NormConfig(),
                dropout=0.2,
            ),
            head=ClassifierHead(num_classes=11, pooling="mean"),
        ),
        task=TextClassificationConfig(sequence_length=length, batch_size=32, label_smoothing=0.1),
        data=DataConfig(
            name="zoo_docstrings",
            text_key="summary",
            label_key="package",
            tokenizer=TokenizerConfig(vocab_size=vocab_size, cross_words=False),
        ),
        optimizer=OptimizerConfig(name="adamw", learning_rate=1e-3, weight_decay=0.1),
        schedule=ScheduleConfig(name="linear", warmup_steps=50, final_fraction=0.02),
        training=TrainingConfig(num_steps=800, evaluate_every=200, checkpoint_every=400),
        compute_dtype=fast_dtype(),
        layers=fast_layers(),
        folder="runs/classify-tiny",
    )
