"""`load`: from a checkpoint to a model ready for use.

It takes a folder in the layout of transformers, a name on the hub, a single file, or a run that `train.py` wrote. No
code from a checkpoint is run, and no pickle is opened.
"""

import contextlib
import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from zoo.architectures import Architecture, Fields, find_architecture, g2p, list_architectures
from zoo.architectures.architecture import keep_activation_names, label_fields, merge_fields
from zoo.architectures.fitting import WrittenTensors
from zoo.bundle import OWN, START, Bundle, Origin
from zoo.compilation import keep_compiled_programs
from zoo.config import DualConfig, ModelConfig, RecurrentConfig, TransformerConfig
from zoo.dual import DualEncoder
from zoo.formats.folder import open_weights
from zoo.formats.gguf import GgufFile
from zoo.formats.hub import download
from zoo.formats.language_part import LanguagePart
from zoo.formats.mxfp4 import Mxfp4Tensors
from zoo.formats.npz import NpzFile
from zoo.formats.safetensors import read_json
from zoo.quantization import Quantization, check_quantization, is_quantized, make_quantizer, quantize_params
from zoo.recurrent import Recurrent
from zoo.sentences import Modules, ModuleTensors, plain_modules, read_modules, with_embedding
from zoo.serialization import from_dict
from zoo.tokenization import (
    PretrainedTokenizer,
    SymbolTokenizer,
    UnreadTokenizer,
    gguf_tokenizer,
    load_tokenizer,
    symbols,
)
from zoo.training.checkpoint import load_params, mean_params, newest_steps
from zoo.training.manifest import list_steps
from zoo.training.run_record import read_run
from zoo.training.sharding import shard_parameters
from zoo.training.state import activation_dtype
from zoo.training.tuning import merge
from zoo.transformer import Transformer, example_inputs, parameter_shapes
from zoo.weights import CheckpointError, Rule, Tensors, flatten, import_params, unflatten

MAX_SHARED_LAYERS = 1000
"""Layers of a model whose layers share their tensors, at the most."""
LABEL_PARAMETERS = ("head/logits/*", "head/distilled_logits/*", "head/kernel", "head/bias")
"""Those of a classifier that belong to its classes."""


@dataclass(frozen=True, kw_only=True)
class _Wanted:
    """What the caller of `load` asks for."""

    head: str | None = None
    labels: tuple[str, ...] | None = None
    dtype: Any = None
    param_dtype: Any = jnp.float32
    mesh: Mesh | None = None
    layers: Any = None
    quantize: Quantization | None = None


def load(
    name: str | Path,
    *,
    head: str | None = None,
    labels: Sequence[str] | None = None,
    dtype: Any = None,
    param_dtype: Any = jnp.float32,
    mesh: Mesh | None = None,
    revision: str | None = None,
    step: int | None = None,
    average: int | None = None,
    layers: str | None = None,
    quantize: Quantization | None = None,
) -> Bundle:
    """Load a model, its parameters and its tokenizer.

    This turns on JAX's persistent compilation cache for the process, where nobody has set it: a second process finds
    what the first compiled. The environment's ZOO_COMPILE_CACHE=off prevents it; `zoo.compilation` has the rules.

    Args:
        name: a checkpoint folder in the layout of transformers or sentence-transformers, a GGUF file, g2p_en's .npz, a
            run folder of `train.py`, what `save` wrote, or a name on the hub.
        head: "base", "masked_lm", "causal_lm", "sequence_classification", ...; None is what config.json says. A head
            that the checkpoint lacks is initialised, and named in `bundle.origin.fresh`.
        labels: names of a classifier's classes, with `head`. The logits of a checkpoint that has others are
            initialised, as are those that it lacks; names such as LABEL_0 stand for any.
        dtype: of activations and products; None is float32, or the run's own.
        param_dtype: of the parameters.
        mesh: to shard the parameters over, as in training; None puts them on the first device.
        revision: branch, tag or commit on the hub.
        step: of a run's checkpoint; None is the newest.
        average: the mean of so many of a run's newest checkpoints, in the place of one.
        layers: "scanned" or "unrolled"; None is unrolled, or the run's own.
        quantize: "int8" keeps kernels as 8-bit integers with a scale for each output; "w8a8" multiplies them by
            activations in 8 bits. A checkpoint is quantised as it is read, a parameter at a time, a run once it is
            restored. None keeps floats, and what was saved quantised as it is.

    Raises:
        CheckpointError: what is there is not a checkpoint that zoo can load; the message names the file and the mend.
        ValueError: not a run folder, no such checkpoint, or a run of another version of zoo.
    """
    keep_compiled_programs()
    check_quantization(quantize)
    wanted = _Wanted(
        head=head,
        labels=_checked(labels, head),
        dtype=dtype,
        param_dtype=param_dtype,
        mesh=mesh,
        layers=layers,
        quantize=quantize,
    )
    bundle = _load(name, wanted, revision, step, average)
    if quantize is None:
        return bundle
    return dataclasses.replace(bundle, params=quantize_params(bundle.params, quantize, bundle.config, mesh))


def _load(name: str | Path, wanted: _Wanted, revision: str | None, step: int | None, average: int | None) -> Bundle:
    """As `load`, by what is there; where that is not a checkpoint, nothing is quantised yet."""
    folder = Path(name)
    if folder.suffix == ".npz" and folder.is_file():
        return _with_head(_load_npz(folder, wanted), wanted)
    if folder.is_file():
        return _load_gguf(folder, wanted)
    if (folder / "run.json").exists():
        return _with_head(_load_run(folder, step, average, wanted), wanted)
    if average is not None:
        raise ValueError(f"average is {average}, and {name} is no run of train.py, which alone has several checkpoints")
    if (folder / OWN).exists():
        return _with_head(_load_own(folder, wanted), wanted)
    if not folder.exists():
        folder = download(str(name), revision)
    return _load_pretrained(folder, wanted)


def load_run_params(
    folder: Path, step: int | None = None, average: int | None = None, mesh: Mesh | None = None
) -> tuple[Any, int]:
    """The model's parameters at a run's step, or the mean of so many newest checkpoints, and the newest step of them.

    What is frozen is among them.
    """
    frozen = load_frozen(folder / START, mesh)
    if average is None:
        params, step = load_params(folder, step, mesh)
        return merge(params, frozen), step
    if step is not None:
        raise ValueError(
            f"step is {step} and average is {average}, which takes the newest checkpoints; give one of the two"
        )
    steps = newest_steps(folder, average)
    # Merged first: the mean of low-rank updates is not the update of their means.
    return mean_params(merge(load_params(folder, one, mesh)[0], frozen) for one in steps), steps[-1]


def _load_run(folder: Path, step: int | None, average: int | None, wanted: _Wanted) -> Bundle:
    from zoo.data import Tokenizer

    record = read_run(folder)
    fields = dict(record["model"])
    kind = _KINDS.get(fields.pop("kind", TransformerConfig.__name__))
    if kind is None:
        raise ValueError(f"{folder} holds an image tokenizer; open it with zoo.recipes.companions")
    config = from_dict(kind, fields, f"{folder}/run.json")
    params, step = load_run_params(folder, step, average, wanted.mesh)
    model = _module(config, wanted, record)
    if (folder / START).exists():
        start, _ = load_start(folder / START)
        return dataclasses.replace(start, model=model, params=params, config=config, step=step)
    path = folder / "tokenizer.model"
    tokenizer = Tokenizer.load(path) if path.exists() else None  # pictures alone need none
    return Bundle(model=model, params=params, config=config, tokenizer=tokenizer, step=step)


def load_start(folder: Path) -> tuple[Bundle, tuple[str, ...]]:
    """What `zoo.saving.save_start` wrote, but for the frozen parameters, and the paths of those that were fresh."""
    bundle, record = _read_own(folder, _Wanted())
    return bundle, tuple(record.get("fresh", ()))


def load_frozen(folder: Path, mesh: Mesh | None = None) -> Any:
    """The frozen parameters that `zoo.saving.save_start` wrote; an empty dict where everything trains."""
    return load_params(folder, mesh=mesh)[0] if list_steps(folder) else {}


def _load_own(folder: Path, wanted: _Wanted) -> Bundle:
    """A folder that `save` wrote in zoo's own layout."""
    bundle, _ = _read_own(folder, wanted)
    params, _ = load_params(folder, mesh=wanted.mesh)
    if not is_quantized(params):
        params = jax.tree.map(lambda leaf: leaf.astype(wanted.param_dtype), params)
    return dataclasses.replace(bundle, params=params)


def _read_own(folder: Path, wanted: _Wanted) -> tuple[Bundle, Fields]:
    """The same without parameters, and the record of it."""
    from zoo.data import Tokenizer

    file = folder / OWN
    record = Fields(read_json(file), str(file))
    if record["kind"] not in _KINDS:
        raise CheckpointError(f"{file}: kind is {record['kind']!r}; zoo has {', '.join(_KINDS)}")
    config = from_dict(_KINDS[record["kind"]], record["config"], str(file))
    origin, tokenizer = None, None
    if record.get("head") is not None:
        origin, tokenizer = _read_origin(folder, record)
    elif (folder / "tokenizer.model").exists():
        tokenizer = Tokenizer.load(folder / "tokenizer.model")
    elif (folder / "tokenizer.json").exists():
        tokenizer = load_tokenizer(folder, {})
    elif (folder / symbols.FILE).exists():
        tokenizer = SymbolTokenizer.load(folder)
    model = _module(config, wanted, record)
    return Bundle(model=model, params={}, config=config, tokenizer=tokenizer, origin=origin), record


def _read_origin(folder: Path, record: Fields) -> tuple[Origin, PretrainedTokenizer | UnreadTokenizer | None]:
    """Where the model of a folder in zoo's own layout came from, and its tokenizer."""
    fields = Fields(read_json(folder / "config.json"), str(folder / "config.json"))
    modules, architecture = read_modules(folder), _find(fields)
    origin = Origin(
        architecture=architecture if modules is None else with_embedding(architecture, modules),
        head=record["head"],
        fields=fields.values,
        generation=_generation_fields(folder),
        folder=folder,
        modules=modules,
    )
    return origin, _sentence_tokenizer(folder, fields, modules)


def with_head(bundle: Bundle, head: str, labels: Sequence[str] | None = None) -> Bundle:
    """The same model with another head of its architecture, and the classes of `labels`; as `load` takes them.

    Raises:
        ValueError: a model that zoo made from scratch, which is of no architecture, or an unknown head.
    """
    mesh = getattr(next(iter(jax.tree.leaves(bundle.params))).sharding, "mesh", None)
    return _with_head(bundle, _Wanted(head=head, labels=_checked(labels, head), mesh=mesh))


def _checked(labels: Sequence[str] | None, head: str | None) -> tuple[str, ...] | None:
    if labels is not None and not (head or "").endswith("classification"):
        raise ValueError(f"labels are given and head is {head!r}; give the head of a classifier with them")
    return None if labels is None else tuple(labels)


def _with_head(bundle: Bundle, wanted: _Wanted) -> Bundle:
    origin = bundle.origin
    if wanted.head is None:
        return bundle
    if origin is None:
        raise ValueError(f"head is {wanted.head!r}, and this model was made from scratch: it has its own head alone")
    if wanted.head == origin.head and _are_labels(wanted.labels, origin.fields):
        return bundle
    if is_quantized(bundle.params):
        raise ValueError(
            f"head is {wanted.head!r}, and this model is quantised with the head {origin.head!r}; load the checkpoint "
            "that it was made from with that head, and quantise then"
        )
    own, head = origin.architecture, origin.head
    file = str(origin.folder / "config.json")
    fields = Fields(merge_fields(origin.fields, own.config_to_hf(bundle.config)), file)
    architecture = _find(fields)
    tensors = WrittenTensors(own, head, bundle.config, bundle.params, str(origin.folder))
    origin = dataclasses.replace(
        origin,
        architecture=architecture,
        head=_choose_head(architecture, fields, wanted.head),
        fields=keep_activation_names(fields.values, origin.fields),
        modules=None,
    )
    model = bundle.model
    wanted = dataclasses.replace(wanted, dtype=wanted.dtype or model.dtype, layers=wanted.layers or model.layers)
    return _build(origin, tensors, fields, bundle.tokenizer, wanted)


def _load_pretrained(folder: Path, wanted: _Wanted) -> Bundle:
    head = wanted.head
    modules = read_modules(folder) if head in (None, "embedding") else None
    modules = _plain_modules(folder) if head == "embedding" and modules is None else modules
    if modules is not None:
        return _load_sentences(modules, wanted)
    fields = Fields(read_json(folder / "config.json"), str(folder / "config.json"))
    whole, fields = fields, _language_part(fields)
    inside = fields is not whole
    architecture = _find(fields)
    if head in architecture.parts:
        part = architecture.parts[head]
        architecture, fields, head = find_architecture(part.model_type), part.fields(fields), part.head
    fields = Fields(merge_fields(dict(architecture.defaults), fields.values), fields.origin)
    origin = Origin(
        architecture=architecture,
        head=_choose_head(architecture, fields, head),
        fields=fields.values,
        generation=_generation_fields(folder),
        folder=folder,
    )
    tensors = _unpacked(open_weights(folder), whole)
    tensors = LanguagePart(tensors) if inside else tensors
    return _build(origin, tensors, fields, load_tokenizer(folder, fields.values), wanted)


def _are_labels(labels: tuple[str, ...] | None, fields: Mapping[str, Any]) -> bool:
    """Whether a checkpoint's classes are these, by name, or by number where its names say nothing."""
    if labels is None:
        return True
    named = fields.get("id2label")
    own = [str(label) for label in named.values()] if isinstance(named, dict) else []
    return own in (list(labels), [f"LABEL_{number}" for number in range(len(labels))])


def _with_labels(fields: Fields, labels: tuple[str, ...]) -> Fields:
    """config.json with the names of other classes."""
    kept = {name: value for name, value in fields.values.items() if name != "num_labels"}
    return Fields(kept | label_fields(labels), fields.origin)


def _generation_fields(folder: Path) -> dict[str, Any]:
    """generation_config.json; nothing where there is none."""
    file = folder / "generation_config.json"
    return read_json(file) if file.exists() else {}


_KINDS: dict[str, type[ModelConfig]] = {
    kind.__name__: kind for kind in (TransformerConfig, RecurrentConfig, DualConfig)
}


def _module(
    config: ModelConfig, wanted: _Wanted, record: Mapping[str, Any] | Fields | None = None
) -> Transformer | Recurrent | DualEncoder:
    """The module of a configuration, run as the caller of `load` asks, else as it was before."""
    before = {"compute_dtype": "float32", "layers": "unrolled"} if record is None else record
    dtype = activation_dtype(wanted.dtype or before["compute_dtype"])
    if isinstance(config, RecurrentConfig):
        return Recurrent(config, dtype=dtype)
    kind = DualEncoder if isinstance(config, DualConfig) else Transformer
    return kind(config, dtype=dtype, layers=wanted.layers or before["layers"])


def _language_part(fields: Fields) -> Fields:
    """The language model's config.json, where a multimodal one that zoo does not know has one that it does."""
    inner = fields.get("text_config")
    kinds = fields.get("model_type"), inner.get("model_type") if isinstance(inner, dict) else None
    known = [find_architecture(kind) if isinstance(kind, str) else None for kind in kinds]
    if known[0] is not None or known[1] is None or "causal_lm" not in known[1].classes:
        return fields
    shared = ("bos_token_id", "eos_token_id", "pad_token_id", "tie_word_embeddings")
    outer = {name: fields.values[name] for name in shared if fields.get(name) is not None}
    own = {"architectures": [known[1].classes["causal_lm"]]}
    return Fields(outer | inner | own, f"{fields.origin}: text_config")


def _unpacked(tensors: Tensors, fields: Fields) -> Tensors:
    """The tensors as plain numbers; CheckpointError for a quantisation that zoo does not undo."""
    quantization = fields.fields("quantization_config")
    if not quantization.values:
        return tensors
    method = quantization.get("quant_method")
    if method == "mxfp4":
        return Mxfp4Tensors(tensors)
    raise CheckpointError(
        f"{fields.origin}: the weights are quantised ({method or quantization.values}), which zoo undoes for mxfp4 "
        "alone. Take an unquantised version, or dequantise it with transformers (model.dequantize()) and save that"
    )


def _load_gguf(file: Path, wanted: _Wanted) -> Bundle:
    tensors = GgufFile(file)
    fields = Fields(tensors.config_fields(), str(file))
    architecture = _find(fields)
    chosen = _choose_head(architecture, fields, wanted.head)
    origin = Origin(architecture=architecture, head=chosen, fields=fields.values, generation={}, folder=file.parent)
    tokenizer = gguf_tokenizer(tensors.tokenizer_metadata(), str(file))
    return _build(origin, tensors, fields, tokenizer, wanted)


def _load_npz(file: Path, wanted: _Wanted) -> Bundle:
    tensors = NpzFile(file)
    config = g2p.read_config(tensors.shapes, tensors.origin)
    model = _module(config, wanted)
    shapes = parameter_shapes(model)
    shardings = None if wanted.mesh is None else shard_parameters(shapes, wanted.mesh)
    imported = import_params(g2p.WEIGHTS, tensors, shapes, shardings=shardings, dtype=np.dtype(wanted.param_dtype))
    tokenizer = SymbolTokenizer(letters=g2p.GRAPHEMES, symbols=g2p.PHONEMES)
    return Bundle(model=model, params=imported.params, config=config, tokenizer=tokenizer)


def _plain_modules(folder: Path) -> Modules | None:
    """For vectors from a folder of a transformer alone; None where its classes have an embedding of their own."""
    fields = Fields(read_json(folder / "config.json"), str(folder / "config.json"))
    if "embedding" in _find(fields).classes:
        return None
    sizes = (fields.get(name) for name in ("hidden_size", "d_model", "dim", "n_embd"))
    return plain_modules(folder, next((size for size in sizes if isinstance(size, int)), 0))


def _load_sentences(modules: Modules, wanted: _Wanted) -> Bundle:
    config = modules.transformer / "config.json"
    fields = Fields(read_json(config), str(config))
    origin = Origin(
        architecture=with_embedding(_find(fields), modules),
        head="embedding",
        fields=fields.values,
        generation={},
        folder=modules.transformer,
        modules=modules,
    )
    tokenizer = _sentence_tokenizer(modules.transformer, fields, modules)
    return _build(origin, ModuleTensors(modules), fields, tokenizer, wanted)


def _sentence_tokenizer(
    folder: Path, fields: Fields, modules: Modules | None
) -> PretrainedTokenizer | UnreadTokenizer | None:
    """The tokenizer of a folder; what `modules` say of the longest text goes before its own word."""
    tokenizer = load_tokenizer(folder, fields.values)
    if isinstance(tokenizer, PretrainedTokenizer) and modules is not None and modules.max_length is not None:
        return dataclasses.replace(tokenizer, max_length=modules.max_length)
    return tokenizer


def _build(
    origin: Origin,
    tensors: Tensors,
    fields: Fields,
    tokenizer: Any,
    wanted: _Wanted,
) -> Bundle:
    architecture, head, head_given = origin.architecture, origin.head, wanted.head is not None
    renewed = () if _are_labels(wanted.labels, fields.values) else LABEL_PARAMETERS
    if wanted.labels is not None:
        fields = _with_labels(fields, wanted.labels)
        origin = dataclasses.replace(origin, fields=fields.values)
    _check_depth(fields, tensors)
    fields = Fields(fields.values, fields.origin, tensors)
    config = _translate(architecture, fields, head)
    _check_sizes(config, fields, tensors)
    _check_tokenizer(tokenizer, config.embedding.vocab_size, fields.origin)
    if head == "base" and not head_given and not _has_head(architecture.weights(config, head), tensors, architecture):
        config = dataclasses.replace(config, head=None)
    model = _module(config, wanted)
    shapes = _shapes(model, fields)
    imported = import_params(
        architecture.weights(config, head),
        tensors,
        shapes,
        shardings=None if wanted.mesh is None else shard_parameters(shapes, wanted.mesh),
        dtype=np.dtype(wanted.param_dtype),
        prefix=architecture.prefix,
        other_prefixes=tuple(architecture.other_prefixes.values()),
        ignored=architecture.ignored,
        other_heads=lambda: _all_heads(architecture, fields),
        head_may_be_fresh=head_given,
        renewed=renewed,
        convert=None if wanted.quantize is None else make_quantizer(wanted.quantize, config, wanted.mesh),
    )
    params = initialise_fresh(model, imported.params, imported.fresh)
    origin = dataclasses.replace(origin, left_out=imported.left_out, fresh=imported.fresh)
    return Bundle(
        model=model,
        params=params,
        config=config,
        tokenizer=tokenizer,
        origin=origin,
    )


def _has_head(rows: Sequence[Rule], tensors: Tensors, architecture: Architecture) -> bool:
    """Whether a base model's file has the pooler, which some were saved without; then there is no pooled output."""
    names = {name for row in rows for path in row.ours if path.startswith("head/") for name in row.theirs}
    return not names or any(
        name in tensors.shapes or name.removeprefix(architecture.prefix) in tensors.shapes for name in names
    )


def _shapes(model: Any, fields: Fields) -> dict:
    """Shapes of the parameters; sizes that no array can have are the checkpoint's error."""
    try:
        return parameter_shapes(model)
    except (ValueError, TypeError, ArithmeticError, MemoryError) as error:
        raise CheckpointError(f"{fields.origin} describes no model that can be built: {str(error)[:200]}") from None


def _check_depth(fields: Fields, tensors: Tensors) -> None:
    """Raise CheckpointError for more layers than there are tensors, before anything is made for each of them."""
    most = max(MAX_SHARED_LAYERS, len(tensors.shapes))
    for part in (fields, *(fields.fields(name) for name, value in fields.values.items() if isinstance(value, dict))):
        for name, value in part.values.items():
            if name.endswith(("layers", "layer")) and isinstance(value, int | float) and value > most:
                raise CheckpointError(
                    f"{part.origin}: {name} is {value}, and {tensors.origin} has {len(tensors.shapes)} tensors"
                )


def _check_sizes(config: Any, fields: Fields, tensors: Tensors) -> None:
    """Raise CheckpointError for a size that no tensor here can have, before anything of that size is made."""
    largest = max((math.prod(shape) for shape in tensors.shapes.values()), default=0)
    for part in _parts(config):
        for name in ("width", "hidden_size", "max_length"):
            size = getattr(part, name, None)
            if isinstance(size, int) and size > largest:
                raise CheckpointError(
                    f"{fields.origin} describes a {name.replace('_', ' ')} of {size}; "
                    f"the largest tensor of {tensors.origin} has {largest} numbers"
                )


def _parts(config: Any) -> Iterator[Any]:
    """A configuration and all within it."""
    yield config
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            yield from _parts(value)


def _check_tokenizer(
    tokenizer: PretrainedTokenizer | UnreadTokenizer | None, vocab_size: int | None, origin: str
) -> None:
    """Raise CheckpointError where the tokenizer has ids that the model does not know."""
    if isinstance(tokenizer, PretrainedTokenizer) and vocab_size is not None:
        token, last = tokenizer.coder.last()
        if last >= vocab_size:
            raise CheckpointError(
                f"{origin}: vocab_size is {vocab_size}, and the tokenizer gives {token!r} the id {last}; "
                "they belong to different models, or the table was not resized after tokens were added"
            )


def _find(fields: Fields) -> Architecture:
    model_type = fields.get("model_type")
    if model_type is None:
        raise CheckpointError(f"{fields.origin} has no model_type: {_guess(fields)}")
    found = find_architecture(model_type) if isinstance(model_type, str) else None
    if found is None:
        raise CheckpointError(
            f"{fields.origin}: model_type is {model_type!r}; zoo loads {', '.join(list_architectures())}"
        )
    hooks = fields.get("auto_map", {})
    hooks = hooks if isinstance(hooks, dict) else {"AutoModel": hooks}
    # Those of tokenizers and configurations do not change what the weights mean.
    names = [str(hook).rpartition(".")[2] for kind, hook in hooks.items() if kind.startswith("AutoModel")]
    foreign = [name for name in names if found.head_of(name) is None]
    if foreign:
        raise CheckpointError(
            f"{fields.origin}: auto_map asks for the code of {foreign[0]}, and zoo runs no code from a checkpoint. "
            f"If the weights are those of a plain {model_type}, delete auto_map"
        )
    return found if found.compose is None else found.compose(fields)


def _guess(fields: Fields) -> str:
    """What to add where the model type is missing: that of the class that config.json names, or of the folder's name.

    The reference takes the folder's name on trust; here somebody has to say so.
    """
    names = fields.get("architectures")
    classes = {str(name) for name in names} if isinstance(names, list) else set()
    folder = Path(fields.origin).parent.name.lower()
    known = [find_architecture(name) for name in list_architectures()]
    likely = [found.model_type for found in known if any(found.head_of(name) is not None for name in classes)]
    named = [found.model_type for found in known if found.model_type in folder]
    likely = likely or sorted(named, key=len)[-1:]
    if likely:
        return f'add "model_type": "{likely[0]}", if that is what it is'
    return f'add "model_type": "...", one of {", ".join(list_architectures())}'


def _choose_head(architecture: Architecture, fields: Fields, head: str | None) -> str:
    """The head asked for, or the one that config.json names."""
    if head is not None:
        if head not in architecture.classes:
            known = ", ".join((*architecture.classes, *architecture.parts))
            raise ValueError(f"head is {head!r}; {architecture.model_type} has {known}")
        return head
    names = fields.get("architectures") or [next(iter(architecture.classes.values()))]
    for name in names if isinstance(names, list) else [names]:
        found = architecture.head_of(str(name))
        if found is not None:
            return found
    raise CheckpointError(
        f"{fields.origin}: architectures is {names!r}; zoo knows {', '.join(architecture.classes.values())}. "
        f"Name a head: zoo.load(…, head={next(iter(architecture.classes))!r})"
    )


def _translate(architecture: Architecture, fields: Fields, head: str) -> ModelConfig:
    try:
        return architecture.config_from_hf(fields, head)
    except CheckpointError:
        raise
    except (ValueError, TypeError, KeyError, AttributeError, ArithmeticError, MemoryError) as error:
        raise CheckpointError(f"{fields.origin} does not describe a {architecture.model_type}: {error}") from None


def _all_heads(
    architecture: Architecture, fields: Fields
) -> Iterator[tuple[Sequence[Rule], Callable[[], dict[str, Any]]]]:
    """The weight map with each head, and what makes the parameters' shapes."""
    for head in architecture.classes:
        # Another head's may fail: the one that was asked for was translated before.
        with contextlib.suppress(CheckpointError):
            config = _translate(architecture, fields, head)
            yield architecture.weights(config, head), functools.partial(_shapes, _module(config, _Wanted()), fields)


def initialise_fresh(model: Any, params: dict, fresh: tuple[str, ...]) -> dict:
    """Random values for the parameters that the checkpoint lacks."""
    if not fresh:
        return params
    leaves = flatten(params)
    drawn = jax.jit(lambda rng: {
        path: leaf
        for path, leaf in flatten(model.init(rng, **example_inputs(model.config))["params"]).items()
        if path in fresh
    })(jax.random.key(0))  # fmt: skip
    for path in fresh:
        leaves[path] = jax.device_put(drawn[path].astype(leaves[path].dtype), leaves[path].sharding)
    return unflatten(leaves)
