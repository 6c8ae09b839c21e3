"""What a run becomes before its first step: dataset, tokenizer, model and task."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zoo.bundle import START, Bundle
from zoo.data import Dataset, TextTokenizer, Tokenizer, fit_tokenizer, open_dataset
from zoo.generation_config import stored_options
from zoo.image_tokens import ImageTokenizer
from zoo.pretrained import load_start
from zoo.recipes.run import Run
from zoo.recurrent import Recurrent
from zoo.tasks.text_to_image import TextToImageConfig
from zoo.tokenization import PretrainedTokenizer, TaskTokenizer
from zoo.transformer import Transformer


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """What a run needs before its first step."""

    dataset: Dataset
    tokenizer: TextTokenizer | None
    """None for tasks without text."""
    model: Transformer | Recurrent | ImageTokenizer
    task: Any


def prepare(run: Run, dataset: Dataset | None = None) -> Prepared:
    """Open the data (unless it is given), find or train the tokenizer, and bind the task.

    Raises:
        ValueError, FileNotFoundError: data that is missing, empty or malformed, before anything compiles.
    """
    dataset = open_dataset(run.data) if dataset is None else dataset
    keys = run.task.text_keys(run.data)
    tokenizer = _prepare_tokenizer(run, dataset, keys) if keys else None
    others: dict[str, Any] = {}
    if isinstance(run.task, TextToImageConfig):
        from zoo.recipes.companions import open_companions  # they are runs themselves

        others = open_companions(run, dataset)
    task = run.task.bind(dataset, tokenizer, seed=run.training.seed, data=run.data, **others)
    return Prepared(dataset=dataset, tokenizer=tokenizer, model=run.make_model(), task=task)


def _prepare_tokenizer(run: Run, dataset: Dataset, keys: tuple[str, ...]) -> TextTokenizer:
    """That of the model which the run started from, else the run's own, trained here if it is not there yet."""
    if run.init.checkpoint is not None:
        bundle, _ = load_start(Path(run.folder) / START)
        return task_tokenizer(bundle)
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


def task_tokenizer(bundle: Bundle) -> TextTokenizer:
    """A checkpoint's tokenizer as tasks use it. ValueError where it has none that zoo reads."""
    tokenizer, origin = bundle.tokenizer, bundle.origin
    if isinstance(tokenizer, Tokenizer):
        return tokenizer
    if not isinstance(tokenizer, PretrainedTokenizer):
        raise ValueError(getattr(tokenizer, "reason", "the checkpoint has no tokenizer, and this task reads texts"))
    stored = {} if origin is None else stored_options(origin.fields, origin.generation)
    starts = (stored.get("decoder_start_token_id"), tokenizer.bos_id, tokenizer.pad_id, 0)
    start_id = next(token for token in starts if token is not None)
    vocab_size = bundle.config.embedding.vocab_size or bundle.config.target_vocab_size
    return TaskTokenizer(pretrained=tokenizer, vocab_size=vocab_size, start_id=start_id)
