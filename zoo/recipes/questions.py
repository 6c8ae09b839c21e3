"""Question answering: a small run for a laptop, and BERT on SQuAD for accelerators."""

from zoo.config import (
    AttentionConfig,
    EmbeddingConfig,
    MlpConfig,
    NormConfig,
    RotaryConfig,
    StackConfig,
    TokenHead,
    TransformerConfig,
)
from zoo.data import DataConfig, TokenizerConfig
from zoo.recipes.run import Run, fast_dtype, fast_layers
from zoo.tasks.question_answering import QuestionAnsweringConfig
from zoo.training.config import OptimizerConfig, ScheduleConfig, TrainingConfig


def answer_tiny() -> Run:
    """An encoder that answers questions about API documentation, by a span of it, from scratch.

    Not yet measured.
    """
    vocab_size, width = 2048, 160
    return Run(
        model=TransformerConfig(
            embedding=EmbeddingConfig(width=width, vocab_size=vocab_size, num_token_types=2),
            encoder=StackConfig(
                num_layers=4,
                width=width,
                attention=AttentionConfig(num_heads=5, head_size=32, rotary=RotaryConfig()),
                mlp=MlpConfig(hidden_size=4 * width, activation="gelu"),
                norm=NormConfig(kind="rms", epsilon=1e-6, bias=False),
            ),
            head=TokenHead(num_classes=2),
        ),
        task=QuestionAnsweringConfig(
            sequence_length=256, question_length=32, answer_length=40, stride=160, batch_size=32
        ),
        data=DataConfig(
            name="zoo_questions",
            tokenizer=TokenizerConfig(vocab_size=vocab_size, cross_words=False, training_bytes=2_000_000),
        ),
        optimizer=OptimizerConfig(name="muon", learning_rate=0.01, weight_decay=0.1),
        schedule=ScheduleConfig(name="linear", warmup_steps=50, final_fraction=0.02),
        training=TrainingConfig(num_steps=800, evaluate_every=400, checkpoint_every=400),
        compute_dtype=fast_dtype(),
        layers=fast_layers(),
        folder="runs/answer-tiny",
    )
