"""Runs of real size, after the papers they name, for accelerators; none of them is measured yet.

Their data is public. It is prepared once, where there is a network: `python train.py NAME` says with which command as
long as it is missing. All devices share the batch; `--mesh.fsdp -1 --mesh.data 1` shares the parameters too, and
`--training.accumulate 8` takes a step in eight parts where memory is short.
"""

from dataclasses import replace

from zoo.config import (
    AttentionConfig,
    ClassifierHead,
    EmbeddingConfig,
    EmbeddingHead,
    Head,
    LanguageModelHead,
    LearnedPositions,
    MlpConfig,
    NormConfig,
    PatchConfig,
    RotaryConfig,
    StackConfig,
    TokenHead,
    TransformerConfig,
)
from zoo.data import DataConfig, TokenizerConfig
from zoo.recipes.lineage import transformer, transformer_optimizer
from zoo.recipes.run import Run
from zoo.tasks.causal_lm import CausalLMConfig
from zoo.tasks.image_classification import ImageClassificationConfig
from zoo.tasks.masked_lm import MaskedLMConfig
from zoo.tasks.question_answering import QuestionAnsweringConfig
from zoo.tasks.sentence_embedding import SentenceEmbeddingConfig
from zoo.tasks.sequence_to_sequence import SequenceToSequenceConfig
from zoo.training.config import MeshConfig, OptimizerConfig, ScheduleConfig, TrainingConfig

_ALL_BIASES = ("query", "key", "value", "output")
_WIKIPEDIA = DataConfig(name="wikipedia/20230601.en", train_split="train[:-2000]", validation_split="train[-2000:]")
"""Articles; the last 2,000 are held out."""


def gpt2() -> Run:
    """GPT-2 of 124 million parameters (Radford et al. 2019) on the English Wikipedia, with GPT-3's learning rate.

    Not yet measured. For 8 GPUs or TPU chips of 16 GiB: half a million tokens a step, ten thousand million in all.
    Data: wikipedia/20230601.en.
    """
    vocab_size, width, length = 50_304, 768, 1024
    return Run(
        model=TransformerConfig(
            embedding=EmbeddingConfig(
                width=width, vocab_size=vocab_size, positions=LearnedPositions(max_length=length)
            ),
            decoder=StackConfig(
                num_layers=12,
                width=width,
                causal=True,
                attention=AttentionConfig(num_heads=12, head_size=64, biases=_ALL_BIASES),
                mlp=MlpConfig(hidden_size=4 * width, activation="gelu_tanh", bias=True),
            ),
            head=LanguageModelHead(),
        ),
        task=CausalLMConfig(sequence_length=length, batch_size=512, stride=512),
        data=replace(_WIKIPEDIA, tokenizer=_tokenizer(vocab_size)),
        optimizer=OptimizerConfig(learning_rate=6e-4),
        schedule=ScheduleConfig(warmup_steps=700),
        training=TrainingConfig(num_steps=20_000, evaluate_every=2000, checkpoint_every=1000),
        compute_dtype="bfloat16",
        layers="scanned",
        remat="dots",
        folder="runs/gpt2",
    )


def llama_1b() -> Run:
    """A Llama of a thousand million parameters (Touvron et al. 2023), grouped queries, on C4 (Raffel et al. 2020).

    Not yet measured. For 8 GPUs of 80 GiB or 32 TPU chips, which share parameters and moments: a million tokens a step,
    twenty thousand million in all, 20 a parameter (Hoffmann et al. 2022). Data: c4/en.
    """
    vocab_size, width = 32_000, 2048
    return Run(
        model=TransformerConfig(
            embedding=EmbeddingConfig(width=width, vocab_size=vocab_size),
            decoder=StackConfig(
                num_layers=18,
                width=width,
                causal=True,
                attention=AttentionConfig(
                    num_heads=16, head_size=128, num_kv_heads=4, rotary=RotaryConfig(base=500_000.0)
                ),
                mlp=MlpConfig(hidden_size=7168, activation="silu", gated=True),
                norm=NormConfig(kind="rms", epsilon=1e-5, bias=False),
            ),
            head=LanguageModelHead(tied=False),
        ),
        task=CausalLMConfig(sequence_length=2048, batch_size=512, stride=1024),
        data=DataConfig(name="c4/en", validation_split="validation[:2000]", tokenizer=_tokenizer(vocab_size)),
        optimizer=OptimizerConfig(learning_rate=3e-4),
        schedule=ScheduleConfig(warmup_steps=1000),
        mesh=MeshConfig(data=1, fsdp=-1),
        training=TrainingConfig(num_steps=20_000, evaluate_every=2000, checkpoint_every=1000),
        compute_dtype="bfloat16",
        layers="scanned",
        remat="full",
        folder="runs/llama-1b",
    )


def bert_base() -> Run:
    """BERT-base (Devlin et al. 2019) on the English Wikipedia, masked tokens alone, without pairs of sentences.

    Not yet measured. For 8 GPUs or TPU chips of 16 GiB: the paper's 131,072 tokens a step and its million steps.
    Data: wikipedia/20230601.en.
    """
    vocab_size, length = 30_528, 512
    return Run(
        model=_bert(vocab_size, length, LanguageModelHead(bias=True, transform="gelu")),
        task=MaskedLMConfig(sequence_length=length, batch_size=256),
        data=replace(_WIKIPEDIA, tokenizer=_tokenizer(vocab_size)),
        optimizer=OptimizerConfig(learning_rate=1e-4, betas=(0.9, 0.999), epsilon=1e-6, weight_decay=0.01),
        schedule=ScheduleConfig(name="linear", warmup_steps=10_000, final_fraction=0.0),
        training=TrainingConfig(num_steps=1_000_000, evaluate_every=20_000, checkpoint_every=5000, log_every=10),
        compute_dtype="bfloat16",
        layers="scanned",
        remat="dots",
        folder="runs/bert-base",
    )


def transformer_base() -> Run:
    """The base Transformer (Vaswani et al. 2017), English to German, on WMT 2014.

    Not yet measured; the paper has 27.3 BLEU, of the mean of the last five checkpoints: `evaluate.py
    runs/transformer-base --average 5`. For 8 GPUs: up to 25,000 tokens a side and step, the paper's 100,000 steps. Held
    out is newstest2014, scored once, at the end. Data: wmt14_translate/de-en.
    """
    vocab_size, width, warmup = 37_000, 512, 4000
    return Run(
        model=transformer(vocab_size, width=width, num_layers=6, head_size=64),
        task=SequenceToSequenceConfig(
            source_length=128,
            target_length=128,
            batch_size=192,
            label_smoothing=0.1,
            scores=("bleu", "chrf"),
            num_beams=4,
        ),
        data=DataConfig(
            name="wmt14_translate/de-en",
            validation_split="test",
            source_key="en",
            target_key="de",
            tokenizer=_tokenizer(vocab_size),
        ),
        optimizer=transformer_optimizer(width, warmup),
        schedule=ScheduleConfig(name="inverse_sqrt", warmup_steps=warmup - 1),
        training=TrainingConfig(num_steps=100_000, checkpoint_every=2000, keep=5, log_every=10),
        compute_dtype="bfloat16",
        layers="scanned",
        folder="runs/transformer-base",
    )


def summarize_cnn() -> Run:
    """An encoder-decoder of BART-base's size (Lewis et al. 2020) that writes the highlights of news, CNN/DailyMail.

    Not yet measured. For 8 GPUs of 40 GiB. From scratch, or from a model that was pretrained: `--init
    facebook/bart-base --optimizer.learning-rate 3e-5`. Of XSum: `--data.name xsum
    --data.source-key document --data.target-key summary --task.target-length 64`. Data: cnn_dailymail.
    """
    vocab_size, width, length = 50_304, 768, 1024
    attention = AttentionConfig(num_heads=12, head_size=64, biases=_ALL_BIASES, dropout=0.1)
    encoder = StackConfig(
        num_layers=6,
        width=width,
        attention=attention,
        mlp=MlpConfig(hidden_size=4 * width, activation="gelu", bias=True),
        norm_slots=("residual",),
        final_norm=False,
        dropout=0.1,
    )
    embedding = EmbeddingConfig(
        width=width,
        vocab_size=vocab_size,
        positions=LearnedPositions(max_length=length),
        norm=NormConfig(),
        dropout=0.1,
    )
    return Run(
        model=TransformerConfig(
            embedding=embedding,
            decoder_embedding=replace(embedding, vocab_size=None),
            encoder=encoder,
            decoder=replace(encoder, causal=True, cross_attention=attention),
            head=LanguageModelHead(),
        ),
        task=SequenceToSequenceConfig(
            source_length=length,
            target_length=128,
            batch_size=128,
            scores=("rouge",),
            baselines=("lead",),
            num_beams=4,
        ),
        data=DataConfig(
            name="cnn_dailymail",
            source_key="article",
            target_key="highlights",
            tokenizer=_tokenizer(vocab_size),
        ),
        optimizer=OptimizerConfig(learning_rate=3e-4, betas=(0.9, 0.999), weight_decay=0.01, clip_norm=0.1),
        schedule=ScheduleConfig(name="linear", warmup_steps=500, final_fraction=0.0),
        training=TrainingConfig(num_steps=20_000, evaluate_every=10_000, checkpoint_every=1000),
        compute_dtype="bfloat16",
        layers="scanned",
        remat="dots",
        folder="runs/summarize-cnn",
    )


def search_msmarco() -> Run:
    """A sentence encoder of BERT-base's size that finds the passage which answers a question, on MS MARCO.

    Not yet measured. For 8 GPUs of 40 GiB: a thousand negatives a question. Its learning rate is for a model that was
    pretrained, `--init google-bert/bert-base-uncased` (Reimers & Gurevych 2019). Data: beir/msmarco; or your own pairs,
    `--data.path pairs.tsv`.
    """
    vocab_size, length = 30_528, 256
    return Run(
        model=_bert(vocab_size, length, EmbeddingHead(pooling="mean")),
        task=SentenceEmbeddingConfig(source_length=48, target_length=length, batch_size=1024),
        data=DataConfig(
            name="beir/msmarco", source_key="query", target_key="passage", tokenizer=_tokenizer(vocab_size)
        ),
        optimizer=OptimizerConfig(learning_rate=2e-5, betas=(0.9, 0.999), weight_decay=0.01),
        schedule=ScheduleConfig(name="linear", warmup_steps=500, final_fraction=0.0),
        training=TrainingConfig(num_steps=5000, evaluate_every=1000, checkpoint_every=500),
        compute_dtype="bfloat16",
        layers="scanned",
        remat="dots",
        folder="runs/search-msmarco",
    )


def answer_squad() -> Run:
    """BERT-base on SQuAD 2.0 as its paper fine-tunes it (Devlin et al. 2019, section 4.3).

    Not yet measured. For 1 GPU of 16 GiB, from a pretrained model: `--init google-bert/bert-base-uncased`; from scratch
    its learning rate is too low and its questions are too few. Data: squad/v2.0; or your own in the same layout,
    `--data.path squad.json`. For SQuAD 1.1, whose questions all have an answer: `--data.name squad
    --task.no-answer-threshold None`.
    """
    vocab_size = 30_528
    model = _bert(vocab_size, 512, TokenHead(num_classes=2))
    return Run(
        model=replace(model, embedding=replace(model.embedding, num_token_types=2)),
        task=QuestionAnsweringConfig(sequence_length=384, question_length=64, stride=128, batch_size=48),
        data=DataConfig(name="squad/v2.0", tokenizer=_tokenizer(vocab_size)),
        optimizer=OptimizerConfig(learning_rate=5e-5, betas=(0.9, 0.999), epsilon=1e-6, weight_decay=0.01),
        schedule=ScheduleConfig(name="linear", warmup_steps=550, final_fraction=0.0),
        training=TrainingConfig(num_steps=5500, evaluate_every=5500, checkpoint_every=500, log_every=10),
        compute_dtype="bfloat16",
        layers="scanned",
        folder="runs/answer-squad",
    )


def vit_imagenet() -> Run:
    """ViT-S/16 on ImageNet in 90 epochs, after Beyer, Zhai & Kolesnikov 2022 (big_vision).

    Not yet measured; the paper has 76.5 % with RandAugment and random crops, which this leaves out for smaller moves
    and mirroring. For 8 GPUs or TPU chips: 1,024 pictures a step. Data: imagenet2012, whose archives TFDS wants in its
    folder for manual downloads.
    """
    return Run(
        model=_vit(image_size=224, patch_size=16, width=384, num_layers=12, num_heads=6, num_classes=1000),
        task=ImageClassificationConfig(image_size=224, batch_size=1024, zoom=0.2, shift=0.1, flip=True, mixup=0.2),
        data=DataConfig(name="imagenet2012"),
        # The paper's decay of 1e-4 a step does not depend on the learning rate; here it is multiplied by it.
        optimizer=OptimizerConfig(learning_rate=1e-3, betas=(0.9, 0.999), weight_decay=0.1),
        schedule=ScheduleConfig(warmup_steps=10_000, final_fraction=0.0),
        training=TrainingConfig(num_steps=112_600, evaluate_every=5000, checkpoint_every=2500, log_every=10),
        compute_dtype="bfloat16",
        layers="scanned",
        folder="runs/vit-imagenet",
    )


def vit_cifar10() -> Run:
    """A small ViT with patches of 4 by 4 pixels, from scratch on CIFAR-10 in 100 epochs (Lee, Lee & Song 2021).

    Not yet measured. For one GPU. Data: cifar10, whose test split is held out.
    """
    return Run(
        model=_vit(image_size=32, patch_size=4, width=192, num_layers=9, num_heads=12, num_classes=10, dropout=0.1),
        task=ImageClassificationConfig(
            image_size=32, batch_size=128, zoom=0.2, shift=0.125, flip=True, mixup=0.2, label_smoothing=0.1
        ),
        data=DataConfig(name="cifar10", validation_split="test"),
        optimizer=OptimizerConfig(learning_rate=1e-3, betas=(0.9, 0.999), weight_decay=0.05),
        schedule=ScheduleConfig(warmup_steps=3900, final_fraction=0.0),
        training=TrainingConfig(num_steps=39_000, evaluate_every=3900, checkpoint_every=3900, log_every=10),
        compute_dtype="bfloat16",
        layers="scanned",
        folder="runs/vit-cifar10",
    )


def _tokenizer(vocab_size: int) -> TokenizerConfig:
    """Whole words at the most, learned from a hundred megabytes."""
    return TokenizerConfig(vocab_size=vocab_size, cross_words=False, training_bytes=100_000_000)


def _bert(vocab_size: int, max_length: int, head: Head) -> TransformerConfig:
    """BERT-base with a head."""
    width = 768
    return TransformerConfig(
        embedding=EmbeddingConfig(
            width=width,
            vocab_size=vocab_size,
            positions=LearnedPositions(max_length=max_length),
            norm=NormConfig(),
            dropout=0.1,
        ),
        encoder=StackConfig(
            num_layers=12,
            width=width,
            attention=AttentionConfig(num_heads=12, head_size=64, biases=_ALL_BIASES, dropout=0.1),
            mlp=MlpConfig(hidden_size=4 * width, activation="gelu", bias=True),
            norm_slots=("residual",),
            final_norm=False,
            dropout=0.1,
        ),
        head=head,
    )


def _vit(
    *, image_size: int, patch_size: int, width: int, num_layers: int, num_heads: int, num_classes: int, dropout=0.0
) -> TransformerConfig:
    """A vision transformer whose patches' mean is classified."""
    patches = PatchConfig(image_size=image_size, patch_size=patch_size, class_token=False)
    return TransformerConfig(
        embedding=EmbeddingConfig(
            width=width, patches=patches, positions=LearnedPositions(max_length=patches.sequence_length)
        ),
        encoder=StackConfig(
            num_layers=num_layers,
            width=width,
            attention=AttentionConfig(num_heads=num_heads, head_size=width // num_heads, biases=_ALL_BIASES),
            mlp=MlpConfig(hidden_size=4 * width, activation="gelu", bias=True),
            dropout=dropout,
        ),
        head=ClassifierHead(num_classes=num_classes, pooling="mean"),
    )
