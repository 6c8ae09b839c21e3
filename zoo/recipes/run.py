"""`Run`, the whole of one training run as data.

A recipe returns a `Run`; the command line overrides its fields; every checkpoint holds the result, so a run's folder
alone is enough to go on, evaluate or sample.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import jax

from zoo.config import ImageTokenizerConfig, LearnedPositions, RecurrentConfig, TransformerConfig
from zoo.data import DataConfig
from zoo.image_tokens import ImageTokenizer
from zoo.recurrent import Recurrent
from zoo.remat import Remat
from zoo.serialization import from_dict
from zoo.tasks.causal_lm import CausalLMConfig
from zoo.tasks.image_classification import ImageClassificationConfig
from zoo.tasks.image_tokens import ImageTokensConfig
from zoo.tasks.masked_lm import MaskedLMConfig
from zoo.tasks.picture_attributes import PictureAttributesConfig
from zoo.tasks.question_answering import QuestionAnsweringConfig
from zoo.tasks.sentence_embedding import SentenceEmbeddingConfig
from zoo.tasks.sequence_to_sequence import SequenceToSequenceConfig
from zoo.tasks.text_classification import TextClassificationConfig
from zoo.tasks.text_to_image import TextToImageConfig
from zoo.training.config import InitConfig, MeshConfig, OptimizerConfig, ScheduleConfig, TrainingConfig
from zoo.training.run_record import read_run
from zoo.training.state import activation_dtype
from zoo.transformer import Transformer

ModelConfig = TransformerConfig | RecurrentConfig | ImageTokenizerConfig
TaskConfig = (
    CausalLMConfig
    | MaskedLMConfig
    | SequenceToSequenceConfig
    | TextClassificationConfig
    | QuestionAnsweringConfig
    | ImageClassificationConfig
    | SentenceEmbeddingConfig
    | PictureAttributesConfig
    | ImageTokensConfig
    | TextToImageConfig
)


@dataclass(frozen=True, kw_only=True)
class Run:
    """Everything that decides what a training run does."""

    model: ModelConfig
    """The network; that of `init.checkpoint` takes its place."""
    init: InitConfig = InitConfig()
    task: TaskConfig
    """What it learns, and the shape of a batch."""
    data: DataConfig
    """Where the text comes from, and its tokenizer."""
    optimizer: OptimizerConfig
    schedule: ScheduleConfig
    mesh: MeshConfig = MeshConfig()
    training: TrainingConfig
    compute_dtype: Literal["float32", "bfloat16", "float8"] = "float32"
    """Of activations and products; parameters, norms, softmax and loss are float32. float8: the products of blocks in
    8 bits, e4m3 forward and e5m2 backward, activations in bfloat16."""
    layers: Literal["scanned", "unrolled"] = "unrolled"
    """Scanned compiles one layer and loops: for accelerators and deep models. Unrolled runs faster on CPU."""
    remat: Remat = "none"
    """What the backward pass computes again to save memory, from nothing to whole blocks: docs/scaling.md."""
    folder: str
    """Where checkpoints, metrics.csv, loss.png and the model card go."""

    def __post_init__(self):
        if isinstance(self.model, ImageTokenizerConfig) != isinstance(self.task, ImageTokensConfig):
            raise ValueError(f"a model of {type(self.model).__name__} does not learn {type(self.task).__name__}")
        if self.compute_dtype == "float8" and not isinstance(self.model, TransformerConfig):
            raise ValueError(
                f"compute_dtype is 'float8' and the model is of {type(self.model).__name__}; give bfloat16 or float32"
            )
        if isinstance(self.model, ImageTokenizerConfig):
            return
        if isinstance(self.model, RecurrentConfig):
            self._check_recurrent()
        if self.init.checkpoint is not None and self.data.tokenizer is not None:
            return  # the network is still the recipe's: zoo.recipes.start puts the checkpoint's in its place
        for name, embedding in (
            ("embedding", self.model.embedding),
            ("decoder_embedding", self.model.decoder_embedding),
        ):
            if embedding is None:
                continue
            ours, tokenizer = embedding.vocab_size, self.data.tokenizer
            # A picture's tokens have a table of their own, which fits once their tokenizer is known.
            is_text = name == "embedding" or not isinstance(self.task, TextToImageConfig)
            if None not in (ours, tokenizer) and ours != tokenizer.vocab_size and is_text:
                raise ValueError(
                    f"model.{name}.vocab_size is {ours} and data.tokenizer.vocab_size is {tokenizer.vocab_size}; "
                    "give both the same value"
                )
            positions = embedding.positions
            longest = self.task.longest()
            need = longest[name] if self.model.decoder_embedding is not None else max(longest.values())
            if isinstance(positions, LearnedPositions) and positions.max_length < need:
                raise ValueError(
                    f"model.{name}.positions.max_length is {positions.max_length} and the task's rows are "
                    f"{need} long; give max_length at least that, or shorter rows"
                )

    def _check_recurrent(self) -> None:
        """What a recurrent model cannot do."""
        if not isinstance(self.task, SequenceToSequenceConfig):
            raise ValueError(
                f"a model of RecurrentConfig does not learn {type(self.task).__name__}; give it a task that writes one "
                "text from another, SequenceToSequenceConfig"
            )
        if self.task.packed:
            raise ValueError(
                "task.packed is True and the model is recurrent: it would carry its state from one pair of a row into "
                "the next; give task.packed=False"
            )
        if self.layers != "unrolled":
            raise ValueError(f"layers is {self.layers!r} and the model is recurrent: it has 'unrolled' layers alone")

    @classmethod
    def load(cls, folder: str | Path) -> "Run":
        """The run that a folder was trained with, wherever the folder is now.

        Raises:
            ValueError: no run folder, or one written by another version of zoo.
        """
        return replace(from_dict(cls, read_run(folder), f"{folder}/run.json"), folder=str(folder))

    def make_model(self) -> Transformer | Recurrent | ImageTokenizer:
        """The module, with this run's dtype and execution."""
        dtype = activation_dtype(self.compute_dtype)
        if isinstance(self.model, ImageTokenizerConfig):
            return ImageTokenizer(self.model, dtype=dtype)
        if isinstance(self.model, RecurrentConfig):
            return Recurrent(self.model, dtype=dtype, remat=self.remat)
        return Transformer(self.model, dtype=dtype, layers=self.layers, remat=self.remat)


def fast_dtype() -> Literal["float32", "bfloat16"]:
    """bfloat16 where this machine multiplies it in hardware: TPUs, GPUs, CPUs with AMX or AVX512-BF16; else float32.

    A step of gpt-tiny takes 0.6 of the time in float32 on an EPYC with AVX512-BF16.
    """
    if jax.default_backend() != "cpu":
        return "bfloat16"
    cpuinfo = Path("/proc/cpuinfo")
    flags = cpuinfo.read_text().split() if cpuinfo.exists() else []
    return "bfloat16" if {"amx_bf16", "avx512_bf16"} & {*flags} else "float32"


Recipe = Callable[[], Run]
