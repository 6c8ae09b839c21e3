"""Classes of texts and of pairs of texts: a small run for a laptop, and GLUE for accelerators."""

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
from zoo.recipes.run import Run, fast_dtype
from zoo.stack import fast_layers
from zoo.tasks.text_classification import TextClassificationConfig
from zoo.training.config import OptimizerConfig, ScheduleConfig, TrainingConfig


def classify_tiny() -> Run:
    """An encoder that tells which package a docstring's first line is from, of eleven; held out by module.

    Measured on 2 virtual CPU cores with AVX512-BF16, in under three minutes beside other jobs, on 1,908 held-out lines:
    66.72 % right, where a linear model of TF-IDF has 64.41 % and the commonest package 18.50 %. From a pretrained
    encoder instead, whole or by low-rank updates, such as sentence-transformers/all-MiniLM-L6-v2 on the hub for MODEL:

        python train.py classify-tiny --init MODEL --optimizer.learning-rate 2e-4
        python train.py classify-tiny --init MODEL --init.tune lora --optimizer.learning-rate 2e-3

    MiniLM has 69.23 % after as many steps, whole, and 69.13 % by LoRA, which trains 815,627 of 23 million parameters.
    """
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


def glue() -> Run:
    """BERT-base on a task of GLUE (Wang et al. 2019): MRPC, whether two sentences mean the same. Not yet measured.

        python train.py glue --init google-bert/bert-base-uncased
        python train.py glue --init roberta-base --data.name glue/rte

    Batch, rate and epochs are those of Devlin et al. 2019, section 4.1: one accelerator, minutes. Without --init it
    trains a BERT-base from scratch, which so few pairs do not teach.
    """
    vocab_size, width, length = 30_000, 768, 128
    return Run(
        model=TransformerConfig(
            embedding=EmbeddingConfig(
                width=width,
                vocab_size=vocab_size,
                positions=LearnedPositions(max_length=512),
                num_token_types=2,
                norm=NormConfig(epsilon=1e-12),
                dropout=0.1,
            ),
            encoder=StackConfig(
                num_layers=12,
                width=width,
                attention=AttentionConfig(
                    num_heads=12, head_size=64, biases=("query", "key", "value", "output"), dropout=0.1
                ),
                mlp=MlpConfig(hidden_size=4 * width, activation="gelu", bias=True),
                norm=NormConfig(epsilon=1e-12),
                norm_slots=("residual",),
                final_norm=False,
                dropout=0.1,
            ),
            head=ClassifierHead(num_classes=2, pooler="tanh"),
        ),
        task=TextClassificationConfig(sequence_length=length, batch_size=32, f1_class=1),
        data=DataConfig(
            name="glue/mrpc",
            text_key="sentence1",
            pair_key="sentence2",
            tokenizer=TokenizerConfig(vocab_size=vocab_size, cross_words=False),
        ),
        optimizer=OptimizerConfig(name="adamw", learning_rate=3e-5, betas=(0.9, 0.999), weight_decay=0.01),
        schedule=ScheduleConfig(name="linear", warmup_steps=35, final_fraction=0.0),
        training=TrainingConfig(num_steps=345, evaluate_every=115, checkpoint_every=115),
        compute_dtype=fast_dtype(),
        layers=fast_layers(),
        folder="runs/glue",
    )
