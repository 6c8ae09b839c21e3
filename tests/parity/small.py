"""Small random models of every architecture: their configurations, weights and inputs, the same with and without torch.

Weights are drawn from each tensor's name, so a recording holds names and shapes and no weights. What a model
computes is measured as a flat dict of arrays, by zoo here and by the reference library in `reference.py`.
"""

import functools
import json
import re
import zlib
from collections.abc import Iterable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from zoo.architectures import Fields, find_architecture, list_architectures
from zoo.formats.safetensors import SafetensorsFile, write_file
from zoo.weights import export_params

RECORDED = Path(__file__).parent / "recorded"
CASES = [(name, head) for name in list_architectures() for head in find_architecture(name).classes]
"""Every architecture with every head."""
GENERATING = ("causal_lm", "seq2seq_lm")
BUSIEST = (*GENERATING, "masked_lm", "image_classification", "audio_classification", "embedding", "base", "encoder")
"""Heads, the one that has most to do first."""


def busiest_head(model_type: str) -> str:
    """Choose the head of a model type that has most to do."""
    classes = find_architecture(model_type).classes
    return next(head for head in BUSIEST if head in classes)


DEFAULT = sorted(
    {(name, busiest_head(name)) for name in list_architectures()}
    | set({head: (name, head) for name, head in reversed(CASES)}.values())
)
"""Cases of the default tier: the busiest head of each model type, which holds its base model, and every head once."""


def config_fields(model_type: str, head: str) -> dict:
    """config.json of a case; `tiny` may hold fields of its own for a head under the head's name with a star before."""
    architecture = find_architecture(model_type)
    fields = {name: value for name, value in architecture.tiny.items() if not name.startswith("*")}
    fields |= {"id2label": {"0": "start", "1": "end"}} if head == "question_answering" else {}
    fields |= architecture.tiny.get(f"*{head}", {})
    return fields | {"model_type": model_type, "architectures": [architecture.classes[head]]}


def draw(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """A tensor's values: none at its zero or one, and large enough that attention has something to choose."""
    values = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape).astype(np.float32)
    if len(shape) >= 2:
        return values * np.float32(min(0.6, 1.2 / np.sqrt(np.prod(shape[1:]))))
    if name.endswith(("weight", "scale")) or "layer_scale" in name or "lambda" in name:
        return 1 + values * np.float32(0.2)
    return values * np.float32(0.2)


def write_folder(folder: Path, fields: dict, shapes: dict[str, tuple[int, ...]]) -> Path:
    """A checkpoint folder with drawn weights."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(fields))
    dtype, known = np.dtype(np.float32), constants(fields)
    makers = {name: functools.partial(draw, name, shape) for name, shape in shapes.items()}
    makers |= {name: functools.partial(np.asarray, known[name]) for name in shapes if name in known}
    entries = [(name, shape, dtype, makers[name]) for name, shape in sorted(shapes.items())]
    write_file(folder / "model.safetensors", entries)
    return folder


def constants(fields: dict) -> dict[str, np.ndarray]:
    """Tensors that the configuration determines, by the file's names; none of a type that zoo does not know."""
    architecture = find_architecture(fields["model_type"])
    if architecture is None:
        return {}
    head = architecture.head_of(fields["architectures"][0])
    if architecture.compose is not None:
        architecture = architecture.compose(Fields(fields, "config.json"))
    config = architecture.config_from_hf(Fields(dict(architecture.defaults) | fields, "config.json"), head)
    prefix = architecture.prefix if head == "base" else ""
    rows = [row for row in architecture.weights(config, head) if not row.ours]
    return {row.theirs[0].removeprefix(prefix): row.transform.to_theirs([])[0] for row in rows}


def read_recorded(model_type: str, head: str) -> tuple[dict, dict[str, tuple[int, ...]], dict[str, np.ndarray]]:
    """config.json, the tensors' shapes, and what the reference computed, as `record.py` wrote them."""
    with np.load(RECORDED / f"{model_type}-{head}.npz") as file:
        recorded = dict(file)
    manifest = json.loads(recorded.pop("manifest").tobytes())
    names, values = manifest.get("digests", ()), recorded.pop("digests", ())
    recorded |= {f"digest/{name}": value for name, value in zip(names, values, strict=True)}
    return manifest["config"], {name: tuple(shape) for name, shape in manifest["shapes"].items()}, recorded


def tensor_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Names and shapes in a checkpoint folder."""
    return dict(SafetensorsFile(folder / "model.safetensors").shapes)


def unread(architecture, names) -> set[str]:
    """Tensors that no output depends on, which zoo neither reads nor writes: a pooler behind cross-attention."""
    return {name for name in names if any(re.search(pattern, name) for pattern in architecture.ignored)}


def make_inputs(bundle) -> dict[str, dict[str, np.ndarray]]:
    """Make batches by name.

    `plain` has no masks. `padded` has rows of several lengths, the longest past every window and bucket of the small
    models. `shifted` is `padded` where zoo makes the decoder's inputs. `prompt` is what is generated from.
    """
    config, head = bundle.config, bundle.origin.head
    if hasattr(config, "text"):
        text, image = make_text(config.text, 2, 9), make_pixels(config.image)
        return {"plain": text | image, "padded": pad(text, (9, 4)) | image}
    encoder_decoder = config.encoder is not None and config.decoder is not None
    if config.embedding.vocab_size is None and not encoder_decoder:
        return {"plain": make_source(bundle, (11, 11))}
    batches = {"plain": make_source(bundle, (11, 11)), "padded": make_source(bundle, LENGTHS)}
    if encoder_decoder and head != "sequence_classification":
        if head in bundle.origin.architecture.decoder_inputs and bundle.origin.architecture.model_type not in UNSHIFTED:
            batches["shifted"] = batches["padded"]
        vocab_size = config.target_vocab_size
        batches["plain"] = batches["plain"] | {"decoder_input_ids": make_ids(vocab_size, 2, 8, seed=1)}
        target = make_ids(vocab_size, len(LENGTHS), LENGTHS[0], seed=1)
        mask = (np.arange(LENGTHS[0]) < np.array(TARGET_LENGTHS)[:, None]).astype(np.int32)
        batches["padded"] = batches["padded"] | {"decoder_input_ids": target, "decoder_attention_mask": mask}
    if head in GENERATING:
        batches["prompt"] = make_source(bundle, (14, 9))
        if not encoder_decoder:  # padded on the left
            batches["prompt"] = {name: np.ascontiguousarray(x[:, ::-1]) for name, x in batches["prompt"].items()}
    return batches


LENGTHS = (37, 32, 14)
"""Tokens of the padded batch's rows."""
TARGET_LENGTHS = (37, 33, 9)
"""Tokens of what the decoder reads with them."""


def make_source(bundle, lengths: tuple[int, ...]) -> dict[str, np.ndarray]:
    """Make what the first stack reads: images, spectrograms, or texts of these lengths, masked where they differ."""
    config, embedding = bundle.config, bundle.config.embedding
    if embedding.patches is not None:
        return make_pixels(config, len(lengths))
    if getattr(embedding, "audio", None) is not None:
        return make_features(config, len(lengths))
    batch = make_text(config, len(lengths), max(lengths))
    if config.is_encoder_decoder and bundle.origin.head == "sequence_classification":
        # Pooled at the end token of what the decoder reads, which is made from `input_ids`.
        batch["input_ids"][np.arange(len(lengths)), np.array(lengths) - 6] = bundle.origin.fields["eos_token_id"]
    return batch if len({*lengths}) == 1 else pad(batch, lengths)


UNSHIFTED = ("marian", "pegasus")
"""Model types whose classes in torch ask for `decoder_input_ids`, where those in Flax made them."""


def make_ids(vocab_size: int, batch: int, length: int, seed: int = 0) -> np.ndarray:
    """Ids above the special ones."""
    return np.random.default_rng(seed).integers(5, vocab_size, (batch, length)).astype(np.int32)


def make_text(config, batch: int, length: int) -> dict[str, np.ndarray]:
    """Ids, with token types where the model has them."""
    inputs = {"input_ids": make_ids(config.embedding.vocab_size, batch, length)}
    if config.embedding.num_token_types > 1:
        inputs["token_type_ids"] = np.repeat((np.arange(length) >= length // 2)[None].astype(np.int32), batch, 0)
    return inputs


def pad(batch: dict[str, np.ndarray], lengths: tuple[int, ...]) -> dict[str, np.ndarray]:
    """End each row after so many tokens."""
    mask = (np.arange(batch["input_ids"].shape[1]) < np.array(lengths)[:, None]).astype(np.int32)
    return batch | {"input_ids": np.where(mask, batch["input_ids"], PAD_ID), "attention_mask": mask}


PAD_ID = 1
"""`pad_token_id` of every small model."""


def make_pixels(config, batch: int = 2) -> dict[str, np.ndarray]:
    """Images."""
    patches = config.embedding.patches
    shape = (batch, patches.num_channels, patches.image_size, patches.image_size)
    return {"pixel_values": np.random.default_rng(2).standard_normal(shape).astype(np.float32)}


def make_features(config, batch: int) -> dict[str, np.ndarray]:
    """Log-mel spectrograms."""
    audio = config.embedding.audio
    shape = (batch, audio.num_mels, 2 * audio.max_length)
    return {"input_features": np.random.default_rng(2).standard_normal(shape).astype(np.float32)}


OUTPUTS = (
    "logits", "last_hidden_state", "pooler_output", "encoder_last_hidden_state", "start_logits", "end_logits",
    "text_embeds", "image_embeds", "logits_per_text", "logits_per_image",
)  # fmt: skip


def measure(bundle, inputs: dict[str, dict[str, np.ndarray]], generation=None) -> dict[str, np.ndarray]:
    """Compute with zoo, by name: `batch/output`, `gradient/tensor`, `generated/greedy`, ...

    Compiling is most of a case's time, so it is two programs, and one for each way to generate: `plain` gives outputs
    and gradients from scanned layers, the other batches run in one program with layers unrolled. `generation` names
    some of GENERATION; None is all.
    """
    plain, grads = outputs_and_gradients(bundle, inputs["plain"])
    outputs = {"plain": plain}
    if "padded" in inputs:
        outputs["padded"] = bundle(**inputs["padded"])
    if "shifted" in inputs:
        made = bundle.prepare(**inputs["shifted"])
        outputs["shifted"] = bundle(**{"decoder_attention_mask": np.ones_like(made["decoder_input_ids"])} | made)
    found = {
        f"{name}/{key}": np.asarray(value)
        for name, output in outputs.items()
        for key in OUTPUTS
        if (value := getattr(output, key, None)) is not None
    }
    found |= {f"gradient/{name}": value for name, value in grads.items()}
    if "prompt" in inputs:
        found |= generate(bundle, inputs["prompt"], GENERATION if generation is None else generation)
    return found


def outputs_and_gradients(bundle, batch: dict[str, np.ndarray]):
    """The outputs, and the gradients of the main one's sum times `cotangent` by the checkpoint's names."""

    model = bundle.model.clone(layers="scanned")

    def loss(params):
        output = model.apply({"params": params}, **bundle.prepare(**batch))
        value = main_output(output, bundle.origin.head)
        return jnp.sum(value * cotangent(value.shape)), output

    grads, output = jax.device_get(jax.jit(jax.grad(loss, has_aux=True))(bundle.params))
    origin = bundle.origin
    rows = origin.architecture.weights(bundle.config, origin.head)
    name_in_file = origin.architecture.name_in_file
    named = {name_in_file(name, origin.head): make() for name, _, _, make in export_params(rows, grads)}
    return output, named


def main_output(output, head: str):
    """The head's result; of two that point at an answer, the start."""
    if head == "question_answering":
        return output.start_logits
    names = ("logits_per_text", "logits", "pooler_output", "text_embeds", "image_embeds", "last_hidden_state")
    return next(value for name in names if (value := getattr(output, name, None)) is not None)


def cotangent(shape: tuple[int, ...]) -> np.ndarray:
    """The direction in which gradients are taken."""
    return np.random.default_rng(3).standard_normal(shape).astype(np.float32)


def generate(bundle, prompt: dict[str, np.ndarray], names: Iterable[str]) -> dict[str, np.ndarray]:
    """Sequences that continue the prompt, or answer it, each way of `GENERATION` that is named."""
    sequences = {name: bundle.generate(**prompt, **GENERATION[name]).sequences for name in names}
    return {f"generated/{name}": np.asarray(value) for name, value in sequences.items()}


GENERATION = {
    "greedy": {"max_new_tokens": 12},
    "beam": {"max_new_tokens": 12, "num_beams": 3, "length_penalty": 2.0, "no_repeat_ngram_size": 2},
}
"""Every other option is compared with the reference's in test_generation.py: it knows no architecture."""


def digest(name: str, value: np.ndarray) -> np.ndarray:
    """A gradient as its norm and its products with two random directions, to be recorded in a few bytes."""
    directions = np.random.default_rng(zlib.crc32(name.encode()) + 1).standard_normal((2, value.size))
    flat = value.astype(np.float64).reshape(-1)
    return np.array([np.linalg.norm(flat), *(directions @ flat)], np.float32)


def compare(case: str, ours: dict[str, np.ndarray], theirs: dict[str, np.ndarray], masks: dict) -> dict[str, float]:
    """Raise AssertionError where zoo and the reference differ; returns the largest error of each kind for the ledger.

    Outputs: 1e-4, relative to the largest value where that is above 10, at positions that are not padding, with equal
    argmax of the logits. Gradients: 1e-3 relative. Sequences: equal.
    """
    errors: dict[str, float] = {}
    # Some gradients are nothing but rounding: a key's bias moves all scores of a row alike.
    largest = max(
        (float(np.abs(value).max()) for name, value in theirs.items() if name.startswith(("gradient/", "digest/"))),
        default=0,
    )
    for name, wanted in theirs.items():
        kind, _, key = name.partition("/")
        name = f"gradient/{key}" if kind == "digest" else name
        assert name in ours, f"{case}: zoo does not give {name}"
        found = ours[name]
        if kind == "generated":
            width = max(found.shape[1], wanted.shape[1])
            found, wanted = (
                np.pad(x, ((0, 0), (0, width - x.shape[1])), constant_values=PAD_ID) for x in (found, wanted)
            )
            assert (found == wanted).all(), f"{case}: {name} is {found.tolist()}, the reference gives {wanted.tolist()}"
            errors["generated"] = 0.0
            continue
        if kind in ("gradient", "digest"):
            found = digest(key, found) if kind == "digest" else found
            error = float(np.abs(found - wanted).max() / max(np.abs(wanted).max(), 1e-3 * largest))
            assert error <= 1e-3, f"{case}: the gradient of {key} is off by {error:.2g} of its largest value"
        else:
            assert found.shape == wanted.shape, f"{case}: {name} has shape {found.shape}, the reference {wanted.shape}"
            kept = masks.get((kind, key), np.ones(1, bool))
            found, wanted = (x[kept] if kept.size > 1 else x for x in (found, wanted))
            error = float(np.abs(found - wanted).max() / max(1.0, np.abs(wanted).max() / 10))
            assert error <= 1e-4, f"{case}: {name} is off by {error:.2g}"
            if key == "logits" and wanted.ndim > 1:
                assert (found.argmax(-1) == wanted.argmax(-1)).all(), f"{case}: {name} has another argmax"
            kind = key
        errors[kind] = max(error, errors.get(kind, 0.0))
    return errors


def padding_masks(inputs: dict[str, dict[str, np.ndarray]], bundle) -> dict[tuple[str, str], np.ndarray]:
    """Where each output means something: [B, T] for outputs with a row a position, of batches with padding."""
    found = {}
    for name in inputs.keys() & {"padded", "shifted"}:
        source, target = inputs[name].get("attention_mask"), inputs[name].get("decoder_attention_mask")
        last = source if target is None else target
        of_sequences = bundle.origin.head.endswith("classification") and bundle.origin.head != "token_classification"
        for key in ("logits", "last_hidden_state", "start_logits", "end_logits"):
            if last is not None and not (key == "logits" and of_sequences):
                found[name, key] = last == 1
        if source is not None:
            found[name, "encoder_last_hidden_state"] = source == 1
    return found
