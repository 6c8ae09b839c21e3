"""Runs for a laptop: at least one a family, minutes on two CPU cores, on data that every installation can make."""

from dataclasses import replace

from zoo.config import (
    AttentionConfig,
    ClassifierHead,
    EmbeddingConfig,
    EmbeddingHead,
    LanguageModelHead,
    LearnedPositions,
    MlpConfig,
    NormConfig,
    PatchConfig,
    RelativeBiasConfig,
    RotaryConfig,
    StackConfig,
    TokenHead,
    TransformerConfig,
)
from zoo.data import DataConfig, TokenizerConfig
from zoo.recipes.run import Run, fast_dtype
from zoo.stack import fast_layers
from zoo.tasks.causal_lm import CausalLMConfig
from zoo.tasks.image_classification import ImageClassificationConfig
from zoo.tasks.masked_lm import MaskedLMConfig
from zoo.tasks.question_answering import QuestionAnsweringConfig
from zoo.tasks.sentence_embedding import SentenceEmbeddingConfig
from zoo.tasks.sequence_to_sequence import SequenceToSequenceConfig
from zoo.training.config import OptimizerConfig, ScheduleConfig, TrainingConfig

_RMS = NormConfig(kind="rms", epsilon=1e-6, bias=False)


def gpt_tiny() -> Run:
    """A GPT that writes Python: next-token prediction on the standard library's sources and documentation.

    Measured on 2 virtual CPU cores with AMX, in six minutes: 1.605 bits per byte on held-out modules, where an
    interpolated 5-gram byte model of the same training split has 1.843. About 0.89 s a step.
    """
    vocab_size, width = 4096, 256
    return Run(
        model=TransformerConfig(
            embedding=EmbeddingConfig(width=width, vocab_size=vocab_size),
            decoder=StackConfig(
                num_layers=4,
                width=width,
                causal=True,
                # Two wide heads and short rows: on CPU, attention's time is in its scores, N · T² of them.
                attention=AttentionConfig(num_heads=2, head_size=128, rotary=RotaryConfig()),
                mlp=MlpConfig(hidden_size=4 * width, activation="relu_squared"),
                norm=_RMS,
            ),
            head=LanguageModelHead(),
        ),
        task=CausalLMConfig(sequence_length=128, batch_size=32, stride=64),
        data=DataConfig(name="zoo_stdlib", tokenizer=TokenizerConfig(vocab_size=vocab_size)),
        optimizer=OptimizerConfig(name="muon", learning_rate=0.02, weight_decay=0.1),
        schedule=ScheduleConfig(name="linear", warmup_steps=20, final_fraction=0.05),
        training=TrainingConfig(num_steps=300, evaluate_every=100, checkpoint_every=100),
        compute_dtype=fast_dtype(),
        layers=fast_layers(),
        folder="runs/gpt-tiny",
    )


def bert_tiny() -> Run:
    """A BERT that fills gaps: masked-token prediction on the standard library's sources and documentation.

    Measured on 2 virtual CPU cores with AMX, in six minutes beside other jobs: 6.555 nats per hidden token, where the
    token frequencies of the training split have 7.3150.
    """
    vocab_size, width, length = 4096, 192, 128
    return Run(
        model=TransformerConfig(
            embedding=EmbeddingConfig(
                width=width,
                vocab_size=vocab_size,
                positions=LearnedPositions(max_length=length),
                norm=NormConfig(),
            ),
            encoder=StackConfig(
                num_layers=4,
                width=width,
                attention=AttentionConfig(num_heads=3, head_size=64, biases=("query", "key", "value", "output")),
                mlp=MlpConfig(hidden_size=4 * width, activation="gelu", bias=True),
                norm=NormConfig(),
            ),
            head=LanguageModelHead(bias=True, transform="gelu"),
        ),
        task=MaskedLMConfig(sequence_length=length, batch_size=32),
        data=DataConfig(name="zoo_stdlib", tokenizer=TokenizerConfig(vocab_size=vocab_size)),
        optimizer=OptimizerConfig(name="muon", learning_rate=0.02, weight_decay=0.1),
        schedule=ScheduleConfig(name="linear", warmup_steps=20, final_fraction=0.05),
        training=TrainingConfig(num_steps=300, evaluate_every=100, checkpoint_every=100),
        compute_dtype=fast_dtype(),
        layers=fast_layers(),
        folder="runs/bert-tiny",
    )


def translate_dates() -> Run:
    """A T5 that reads dates: "samedi 21 novembre 2026" to "2026-11-21", from the locale data of Babel.

    Measured on 2 virtual CPU cores (EPYC), in 80 seconds beside other jobs: 99.96 % of 2,242 held-out dates exact.
    """
    vocab_size = 512
    return Run(
        model=_t5(vocab_size, width=128, num_layers=2),
        task=SequenceToSequenceConfig(source_length=32, target_length=12, batch_size=64),
        data=DataConfig(name="zoo_dates", tokenizer=TokenizerConfig(vocab_size=vocab_size)),
        optimizer=OptimizerConfig(name="muon", learning_rate=0.01, weight_decay=0.0),
        schedule=ScheduleConfig(name="linear", warmup_steps=50, final_fraction=0.02),
        training=TrainingConfig(num_steps=700, evaluate_every=350, checkpoint_every=350),
        compute_dtype="float32",
        layers=fast_layers(),
        folder="runs/translate-dates",
    )


def translate_tiny() -> Run:
    """A T5 of eight languages: measures, money, days, places, from any language into any other, from Babel's data.

    Measured on 2 virtual CPU cores with AVX512-BF16, in five minutes with scoring: BLEU 97.44, chrF 98.25 and 95.17 %
    exact on 4,890 held-out pairs, none of whose targets is in train. The nearest training source's target: BLEU 28.72.
    """
    vocab_size = 4096
    return Run(
        model=_t5(vocab_size, width=192, num_layers=3),
        task=SequenceToSequenceConfig(
            source_length=64,
            target_length=64,
            batch_size=32,
            scores=("bleu", "chrf", "exact_match"),
            baselines=("copy", "nearest"),
        ),
        data=DataConfig(name="zoo_phrases", tokenizer=TokenizerConfig(vocab_size=vocab_size, cross_words=False)),
        optimizer=OptimizerConfig(name="muon", learning_rate=0.01, weight_decay=0.0),
        schedule=ScheduleConfig(name="linear", warmup_steps=50, final_fraction=0.02),
        training=TrainingConfig(num_steps=800, evaluate_every=800, checkpoint_every=400),
        compute_dtype=fast_dtype(),
        layers=fast_layers(),
        folder="runs/translate-tiny",
    )


def summarize_tiny() -> Run:
    """A T5 that writes a docstring's first line from the signature and the rest, from the installed packages' sources.

    Measured on 2 virtual CPU cores with AVX512-BF16, in nine minutes beside other jobs, on 1,908 held-out docstrings:
    ROUGE-1, -2 and -L of 24.34, 7.34 and 23.03. The source's first ten words have 20.04, 2.90 and 16.86; the summary of
    the nearest training source, by TF-IDF of letters, 29.01, 13.54 and 27.34: what packages say, they often say twice.
    """
    vocab_size = 2048
    return Run(
        model=_t5(vocab_size, width=192, num_layers=3, dropout=0.2),
        task=SequenceToSequenceConfig(
            source_length=80,
            target_length=40,
            batch_size=48,
            scores=("rouge",),
            baselines=("lead", "nearest"),
        ),
        data=DataConfig(
            name="zoo_docstrings",
            source_key="entry",
            target_key="summary",
            tokenizer=TokenizerConfig(vocab_size=vocab_size, cross_words=False),
        ),
        optimizer=OptimizerConfig(name="muon", learning_rate=0.01, weight_decay=0.0),
        schedule=ScheduleConfig(name="linear", warmup_steps=50, final_fraction=0.02),
        training=TrainingConfig(num_steps=800, evaluate_every=800, checkpoint_every=400),
        compute_dtype=fast_dtype(),
        layers=fast_layers(),
        folder="runs/summarize-tiny",
    )


def search_tiny() -> Run:
    """A sentence encoder that finds what means the same in another of eight languages, from Babel's locale data.

    Measured on 2 virtual CPU cores with AVX512-BF16, in three and a half minutes beside other jobs: the right one of
    808 held-out texts is the first found for 99.26 % of 808 held-out ones and among the first five for all, where
    TF-IDF of words has it first for 47.15 % and TF-IDF of letters for 44.55 %.
    """
    vocab_size, width, length = 4096, 192, 32
    return Run(
        model=TransformerConfig(
            embedding=EmbeddingConfig(
                width=width, vocab_size=vocab_size, positions=LearnedPositions(max_length=length), norm=NormConfig()
            ),
            encoder=StackConfig(
                num_layers=3,
                width=width,
                attention=AttentionConfig(num_heads=3, head_size=64, biases=("query", "key", "value", "output")),
                mlp=MlpConfig(hidden_size=4 * width, activation="gelu", bias=True),
                norm=NormConfig(),
            ),
            head=EmbeddingHead(pooling="mean"),
        ),
        task=SentenceEmbeddingConfig(source_length=length, target_length=length, batch_size=256),
        data=DataConfig(name="zoo_parallel", tokenizer=TokenizerConfig(vocab_size=vocab_size, cross_words=False)),
        optimizer=OptimizerConfig(name="adamw", learning_rate=2e-3, weight_decay=0.1),
        schedule=ScheduleConfig(name="linear", warmup_steps=30, final_fraction=0.02),
        training=TrainingConfig(num_steps=200, evaluate_every=100, checkpoint_every=100),
        compute_dtype=fast_dtype(),
        layers=fast_layers(),
        folder="runs/search-tiny",
    )


def vit_tiny() -> Run:
    """A vision transformer that reads scanned digits of 8 by 8 pixels, from scratch, on 1,410 pictures.

    Measured on 2 virtual CPU cores with AMX, in five and a half minutes: 99.22 % of 387 held-out pictures, where a
    linear classifier of the pixels has 96.38 % and the three nearest neighbours 98.19 %.
    """
    width = 96
    return Run(
        model=TransformerConfig(
            embedding=EmbeddingConfig(
                width=width,
                patches=PatchConfig(image_size=8, patch_size=2, num_channels=1),
                positions=LearnedPositions(max_length=17),
            ),
            encoder=StackConfig(
                num_layers=4,
                width=width,
                attention=AttentionConfig(num_heads=3, head_size=32, biases=("query", "key", "value", "output")),
                mlp=MlpConfig(hidden_size=4 * width, activation="gelu", bias=True),
                norm=NormConfig(),
                dropout=0.1,
            ),
            head=ClassifierHead(num_classes=10),
        ),
        task=ImageClassificationConfig(
            image_size=8, channels=1, batch_size=128, zoom=0.15, shift=0.1, label_smoothing=0.1
        ),
        data=DataConfig(name="zoo_digits"),
        optimizer=OptimizerConfig(name="muon", learning_rate=0.01, weight_decay=0.1),
        schedule=ScheduleConfig(name="cosine", warmup_steps=50, final_fraction=0.01),
        training=TrainingConfig(num_steps=1500, evaluate_every=500, checkpoint_every=500),
        compute_dtype=fast_dtype(),
        layers=fast_layers(),
        folder="runs/vit-tiny",
    )


def answer_tiny() -> Run:
    """An encoder that answers questions about API documentation, by a span of it, from scratch.

    Measured on 2 virtual CPU cores with AVX512-BF16, in seven and a half minutes beside other jobs, on 2,680 held-out
    questions: F1 43.54 and 36.12 % exact. The sentence most like the question, by TF-IDF, has F1 24.12; to answer none,
    16.83.
    """
    vocab_size, width = 2048, 192
    return Run(
        model=TransformerConfig(
            embedding=EmbeddingConfig(width=width, vocab_size=vocab_size, num_token_types=2),
            encoder=StackConfig(
                num_layers=4,
                width=width,
                attention=AttentionConfig(num_heads=3, head_size=64, rotary=RotaryConfig()),
                mlp=MlpConfig(hidden_size=4 * width, activation="gelu"),
                norm=_RMS,
            ),
            head=TokenHead(num_classes=2),
        ),
        task=QuestionAnsweringConfig(
            sequence_length=256, question_length=32, answer_length=40, stride=160, batch_size=32, empty_windows=0.1
        ),
        data=DataConfig(
            name="zoo_questions",
            tokenizer=TokenizerConfig(vocab_size=vocab_size, cross_words=False, training_bytes=2_000_000),
        ),
        optimizer=OptimizerConfig(name="muon", learning_rate=0.01, weight_decay=0.1),
        schedule=ScheduleConfig(name="linear", warmup_steps=50, final_fraction=0.02),
        training=TrainingConfig(num_steps=400, evaluate_every=400, checkpoint_every=200),
        compute_dtype=fast_dtype(),
        layers=fast_layers(),
        folder="runs/answer-tiny",
    )


def _t5(vocab_size: int, *, width: int, num_layers: int, dropout: float = 0.0) -> TransformerConfig:
    """An encoder-decoder with relative positions and one table of tokens (Raffel et al. 2020)."""
    attention = AttentionConfig(num_heads=width // 32, head_size=32)
    encoder = StackConfig(
        num_layers=num_layers,
        width=width,
        attention=attention,
        mlp=MlpConfig(hidden_size=4 * width, activation="relu"),
        norm=_RMS,
        position_bias=RelativeBiasConfig(),
        dropout=dropout,
    )
    return TransformerConfig(
        embedding=EmbeddingConfig(width=width, vocab_size=vocab_size, dropout=dropout),
        encoder=encoder,
        decoder=replace(encoder, causal=True, cross_attention=attention),
        head=LanguageModelHead(),
    )
