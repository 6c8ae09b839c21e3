"""`Run`, the whole of one training run as data, and what it becomes: dataset, tokenizer, model and task.

A recipe returns a `Run`; the command line overrides its fields; every checkpoint holds the result, so a run's folder
alone is enough to go on, evaluate or sample.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp

from zoo.config import ImageTokenizerConfig, LearnedPositions, TransformerConfig
from zoo.data import DataConfig, Dataset, Tokenizer, fit_tokenizer, open_dataset
from zoo.image_tokens import ImageTokenizer
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
from zoo.training.config import MeshConfig, OptimizerConfig, ScheduleConfig, TrainingConfig
from zoo.training.run_record import read_run
from zoo.transformer import Remat, Transformer

ModelConfig = TransformerConfig | ImageTokenizerConfig
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
    """The network."""
    task: TaskConfig
    """What it learns, and the shape of a batch."""
    data: DataConfig
    """Where the text comes from, and its tokenizer."""
    optimizer: OptimizerConfig
    schedule: ScheduleConfig
    mesh: MeshConfig = MeshConfig()
    training: TrainingConfig
    compute_dtype: Literal["float32", "bfloat16"] = "float32"
    """Of activations and products; parameters, norms, softmax and loss are float32."""
    layers: Literal["scanned", "unrolled"] = "unrolled"
    """Scanned compiles one layer and loops: for accelerators and deep models. Unrolled runs faster on CPU."""
    remat: Remat = "none"
    """What the backward pass computes again to save memory: nothing, all but products, or whole blocks."""
    folder: str
    """Where checkpoints, metrics.csv, loss.png and the model card go."""

    def __post_init__(self):
        if isinstance(self.model, ImageTokenizerConfig) != isinstance(self.task, ImageTokensConfig):
            raise ValueError(f"a model of {type(self.model).__name__} does not learn {type(self.task).__name__}")
        if isinstance(self.model, ImageTokenizerConfig):
            return
        for name, embedding in (
            ("embedding", self.model.embedding),
            ("decoder_embedding", self.model.decoder_embedding),
        ):
            if embedding is None:
                continue
            ours, theirs = embedding.vocab_size, self.data.tokenizer.vocab_size
            # A picture's tokens have a table of their own, which fits once their tokenizer is known.
            is_text = name == "embedding" or not isinstance(self.task, TextToImageConfig)
            if ours is not None and ours != theirs and is_text:
                raise ValueError(
                    f"model.{name}.vocab_size is {ours} and data.tokenizer.vocab_size is {theirs}; "
                    "give both the same value"
                )
            positions = embedding.positions
            longest = self.task.longest()
            need = longest[name] if self.model.decoder_embedding is not None else max(longest.values())
            if isinstance(positions, LearnedPositions) and positions.max_length < need:
                raise ValueError(
                    f"model.{name}.positions.max_length is {positions.max_length} and the task's rows are "
                    f"{need} long; give max_length at least that"
                )

    @classmethod
    def load(cls, folder: str | Path) -> "Run":
        """The run that a folder was trained with, wherever the folder is now.

        Raises:
            ValueError: no run folder, or one written by another version of zoo.
        """
        return replace(from_dict(cls, read_run(folder), f"{folder}/run.json"), folder=str(folder))

    def make_model(self) -> Transformer | ImageTokenizer:
        """The module, with this run's dtype and execution."""
        dtype = jnp.dtype(self.compute_dtype)
        if isinstance(self.model, ImageTokenizerConfig):
            return ImageTokenizer(self.model, dtype=dtype)
        return Transformer(self.model, dtype=dtype, layers=self.layers, remat=self.remat)


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """What a run needs before its first step."""

    dataset: Dataset
    tokenizer: Tokenizer | None
    """None for tasks without text."""
    model: Transformer | ImageTokenizer
    task: Any


def prepare(run: Run) -> Prepared:
    """Open the data, load the folder's tokenizer or train it, and bind the task.

    Raises:
        ValueError, FileNotFoundError: data that is missing, empty or malformed, before anything compiles.
    """
    dataset = open_dataset(run.data)
    keys = run.task.text_keys(run.data)
    tokenizer = _prepare_tokenizer(run, dataset, keys) if keys else None
    others: dict[str, Any] = {}
    if isinstance(run.task, TextToImageConfig):
        from zoo.recipes.companions import open_companions  # they are runs themselves

        others = open_companions(run, dataset)
    task = run.task.bind(dataset, tokenizer, seed=run.training.seed, data=run.data, **others)
    return Prepared(dataset=dataset, tokenizer=tokenizer, model=run.make_model(), task=task)


def _prepare_tokenizer(run: Run, dataset: Dataset, keys: tuple[str, ...]) -> Tokenizer:
    path = Path(run.folder) / "tokenizer.model"
    if path.exists():
        tokenizer = Tokenizer.load(path)
    else:
        tokenizer = fit_tokenizer(dataset.split("train"), run.data.tokenizer, keys=keys)
        path.parent.mkdir(parents=True, exist_ok=True)
        tokenizer.save(path)
    known = run.model.embedding.vocab_size or run.model.target_vocab_size or 0
    if tokenizer.vocab_size > known:
        raise ValueError(
            f"{path} has {tokenizer.vocab_size} tokens and the model {known}; "
            "remove the folder to start anew, or use the vocabulary size it was made with"
        )
    return tokenizer


def fast_dtype() -> Literal["float32", "bfloat16"]:
    """bfloat16 where this machine multiplies it in hardware: TPUs, GPUs, and CPUs with AMX; else float32."""
    if jax.default_backend() != "cpu":
        return "bfloat16"
    cpuinfo = Path("/proc/cpuinfo")
    return "bfloat16" if cpuinfo.exists() and "amx_bf16" in cpuinfo.read_text() else "float32"


def fast_layers() -> Literal["scanned", "unrolled"]:
    """Unrolled on CPU, where scanning cost 10 to 40 % forward and 2x in bfloat16 training; scanned elsewhere."""
    return "unrolled" if jax.default_backend() == "cpu" else "scanned"


Recipe = Callable[[], Run]
