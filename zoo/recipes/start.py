"""What a run starts from: nothing, or a pretrained checkpoint, whose model takes the place of the recipe's.

The checkpoint gives its configuration, parameters and tokenizer, and how it reads pictures; the recipe keeps its task,
data, optimizer and schedule. The head is the one of the checkpoint's architecture for the task, with the data's
classes, or the recipe's own where the checkpoint is a model that zoo made. Of a checkpoint for text to image only the
encoder of texts is taken, and the recipe's decoder stays, unless the checkpoint draws pictures itself. Parameters that
the checkpoint lacks are initialised and named; anything else that is missing or left over is refused, as by `zoo.load`.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from zoo.bundle import OWN, START, Bundle
from zoo.config import ClassifierHead, DualConfig, Head, TransformerConfig
from zoo.data import Dataset
from zoo.pretrained import LABEL_PARAMETERS, initialise_fresh, load, load_frozen, load_start, with_head
from zoo.recipes.run import Run
from zoo.saving import save_start
from zoo.tasks.image_classification import ImageClassificationConfig
from zoo.tasks.text_to_image import TextToImageConfig
from zoo.tokenization import PretrainedTokenizer
from zoo.tokenization.tokenizer import FastCoder
from zoo.training.manifest import list_steps
from zoo.training.sharding import make_mesh
from zoo.training.state import count_parameters
from zoo.training.tuning import split
from zoo.transformer import parameter_shapes
from zoo.weights import flatten, unflatten


@dataclass(frozen=True, kw_only=True)
class Start:
    """A run as it is trained, and the parameters it begins with."""

    run: Run
    """With the checkpoint's model, or with as many classes as the data has."""
    params: Any = None
    """What trains. None: initialised, or restored from the run's folder."""
    frozen: Any = field(default_factory=dict)
    """What does not."""
    bundle: Bundle | None = None
    """The checkpoint; None from scratch, and where the run's folder has it already."""
    fresh: tuple[str, ...] = ()
    """Paths of the parameters that the checkpoint lacked."""

    def save(self) -> None:
        """Keep in the run's folder what later steps, evaluation and export need of the checkpoint."""
        if self.bundle is not None:
            frozen = replace(self.bundle, params=self.frozen)
            save_start(frozen, Path(self.run.folder) / START, self.fresh)

    def describe(self) -> Iterator[str]:
        """Lines about the checkpoint, for the terminal and the model card; none from scratch."""
        init = self.run.init
        if init.checkpoint is None:
            return
        yield f"starts from {init.checkpoint}" + ("" if init.revision is None else f" at {init.revision}")
        modules: dict[str, list[str]] = {}
        for path in self.fresh:
            module, _, name = path.rpartition("/")
            modules.setdefault(module, []).append(name)
        for module, names in modules.items():
            yield f"newly initialised: {module} ({', '.join(names)})"
        if self.params is not None:
            trained, frozen = count_parameters(self.params), count_parameters(self.frozen)
            yield f"trains {trained:,} parameters" + (f" beside {frozen:,} frozen ones" if frozen else "")


def begin(run: Run, dataset: Dataset) -> Start:
    """Resolve what a run starts from; nothing is written.

    Raises:
        ValueError: no such checkpoint, one that the task cannot use, or nothing that would train.
    """
    head = getattr(run.task, "head", None)
    if run.init.checkpoint is not None and head is None:
        raise ValueError(f"{type(run.task).__name__} trains models of its own alone; leave out --init")
    labels = dataset.classes(run.data.label_key) if head is not None and head.endswith("classification") else None
    if labels is not None and isinstance(run.model.head, ClassifierHead):
        run = replace(run, model=replace(run.model, head=replace(run.model.head, num_classes=len(labels))))
    if run.init.checkpoint is None:
        return Start(run=run)
    mesh, folder = make_mesh(run.mesh), Path(run.folder) / START
    if list_steps(run.folder) and folder.exists():
        bundle, fresh = load_start(folder)
        return Start(run=_adopt(run, bundle), frozen=load_frozen(folder, mesh), fresh=fresh)
    bundle, fresh = _open(run, labels, mesh)
    run = _adopt(run, bundle)
    params, frozen = split(bundle.params, fresh, run.init, run.training.seed)
    return Start(run=run, params=params, frozen=frozen, bundle=bundle, fresh=fresh)


def _open(run: Run, labels: tuple[str, ...] | None, mesh: Any) -> tuple[Bundle, tuple[str, ...]]:
    """The checkpoint with a head for the task, and the paths of its fresh parameters."""
    name, head = run.init.checkpoint, run.task.head
    assert name is not None
    if not any((Path(name) / file).exists() for file in ("run.json", OWN)):
        bundle = load(name, head=head, labels=labels, revision=run.init.revision, mesh=mesh)
    else:
        bundle = load(name, mesh=mesh)
        if bundle.origin is None and not isinstance(run.task, TextToImageConfig):
            return _with_recipe_head(bundle, run.model.head)
        if bundle.origin is not None:
            bundle = with_head(bundle, head, labels)
    if isinstance(run.task, TextToImageConfig):
        return _with_recipe_decoder(bundle, run)
    return bundle, () if bundle.origin is None else bundle.origin.fresh


def _with_recipe_head(bundle: Bundle, head: Head | None) -> tuple[Bundle, tuple[str, ...]]:
    """A model that zoo made, with its own head where it is of the same kind, else the recipe's."""
    own = bundle.config.head
    same_kind = type(own) is type(head)
    if same_kind and isinstance(head, ClassifierHead):
        head = replace(own, num_classes=head.num_classes)
    elif same_kind:
        head = own
    if head == own:
        return bundle, ()
    return _rebuild(bundle, replace(bundle.config, head=head), LABEL_PARAMETERS if same_kind else ("head/*",))


def _with_recipe_decoder(bundle: Bundle, run: Run) -> tuple[Bundle, tuple[str, ...]]:
    """The checkpoint's encoder of texts, and the recipe's decoder; all of a run that draws pictures."""
    config, recipe, name = bundle.config, run.model, run.init.checkpoint
    if not isinstance(config, TransformerConfig) or config.encoder is None or config.embedding.vocab_size is None:
        raise ValueError(f"{name} has no encoder of texts; take an encoder or an encoder-decoder, such as BERT or T5")
    if bundle.origin is None and config.decoder_embedding is not None:
        return bundle, ()
    if isinstance(bundle.tokenizer, PretrainedTokenizer):
        if not isinstance(bundle.tokenizer.coder, FastCoder):
            raise ValueError(f"{name} has two vocabularies; take a checkpoint with a tokenizer.json")
        # Written anew, and not copied: the files of some checkpoints mean nothing without their config.json.
        bundle = replace(bundle, tokenizer=replace(bundle.tokenizer, files=()))
    width = recipe.decoder.width
    memory_width = None if config.encoder.width == width else width
    joined = replace(recipe, embedding=config.embedding, encoder=config.encoder, memory_width=memory_width)
    decoder = ("decoder/*", "decoder_embedder/*", "memory_projection/*", "head/*")
    return _rebuild(replace(bundle, origin=None), joined, decoder)


def _rebuild(bundle: Bundle, config: TransformerConfig, fresh: Sequence[str]) -> tuple[Bundle, tuple[str, ...]]:
    """The model as `config` says, and the paths of its new parameters: those that the patterns `fresh` match."""
    model = bundle.model.clone(config=config)
    shapes, given = flatten(parameter_shapes(model)), flatten(bundle.params)
    paths = tuple(path for path in shapes if any(fnmatchcase(path, pattern) for pattern in fresh))
    anywhere = _replicated(jax.tree.leaves(bundle.params)[0].sharding)
    leaves = {
        path: jnp.zeros(shape.shape, shape.dtype, device=anywhere) if path in paths else given[path]
        for path, shape in shapes.items()
    }
    params = initialise_fresh(model, unflatten(leaves), paths)
    return replace(bundle, model=model, config=config, params=params), paths


def _replicated(sharding: Any) -> Any:
    """The same devices, with a copy on each."""
    return jax.sharding.NamedSharding(sharding.mesh, jax.P()) if hasattr(sharding, "mesh") else sharding


def _adopt(run: Run, bundle: Bundle) -> Run:
    """The run with the checkpoint's model, and its pictures as the checkpoint reads them."""
    config, task = bundle.config, run.task
    if isinstance(config, DualConfig):
        raise ValueError(f"{run.init.checkpoint} is two encoders of one space; this task trains one model")
    if config.is_encoder_decoder and task.head not in ("seq2seq_lm", TextToImageConfig.head):
        raise ValueError(
            f"{run.init.checkpoint} is an encoder-decoder and this task reads texts with one stack; take an encoder or "
            "a decoder, or the recipe of a task that writes one text from another"
        )
    if task.head == "causal_lm" and isinstance(config, TransformerConfig) and config.decoder is None:
        raise ValueError(
            f"{run.init.checkpoint} is an encoder, in which each token sees the one that it is to guess here; take a "
            "decoder, such as GPT-2 or Llama, or the recipe of a masked language model"
        )
    if isinstance(task, ImageClassificationConfig):
        if config.embedding.patches is None:
            raise ValueError(f"{run.init.checkpoint} reads no pictures by patches; take a vision transformer")
        task = _read_pictures(task, bundle, config.embedding.patches)
    return replace(run, model=config, task=task, data=replace(run.data, tokenizer=None))


def _read_pictures(task: ImageClassificationConfig, bundle: Bundle, patches: Any) -> ImageClassificationConfig:
    told = bundle.origin is not None and any(
        (bundle.origin.folder / file).exists() for file in ("preprocessor_config.json", "processor_config.json")
    )
    if told:
        return task.read_like(bundle.processor, patches.num_channels)
    return replace(task, image_size=patches.image_size, channels=patches.num_channels)
