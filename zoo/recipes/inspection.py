"""`evaluate.py MODEL --inspect`: what a run or a checkpoint does with one text, picture or sound, as a page to look at.

Here inputs and labels are made of what was asked, with defaults where a run has them; the values, the analyses and the
page are `zoo.inspection`'s.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.console import Console

from zoo.bundle import Bundle
from zoo.config import DualConfig, RecurrentConfig, TransformerConfig
from zoo.data import TextTokenizer
from zoo.data.pictures import open_picture
from zoo.inspection import ablate_heads, inspect, logit_lens
from zoo.inspection.capture import require_attention
from zoo.inspection.losses import Loss, own_loss
from zoo.inspection.report import Ablation, Picture, Shown, write_report
from zoo.pretrained import load
from zoo.recipes.ask import MASK, read_pixels, read_sound
from zoo.recipes.preparation import Prepared, prepare, task_tokenizer
from zoo.recipes.run import Run
from zoo.tasks.picture_attributes import PictureAttributesConfig
from zoo.tasks.question_answering import QuestionAnsweringConfig
from zoo.training.state import bind_apply, count_parameters
from zoo.transformer import Transformer

FILE = "inspection.html"
ROWS = 8
"""Held-out rows that the loss without a head is measured on."""
WRITTEN = 48
"""Tokens that an encoder-decoder writes to be looked at, at the most, where no `--prefix` says what it writes."""
BEGINS = 4
"""Tokens that a decoder begins with, at the most: those of speech say language, task, and that no times are told."""
NAMED = 3
"""Heads that the command line names."""
CHARACTERS = 160
"""Of a held-out document that a language model's run is shown by, where no prompt is given."""


@dataclass(frozen=True, kw_only=True)
class Subject:
    """What is looked at."""

    inputs: Mapping[str, np.ndarray]
    """One row, by the names of the model's inputs."""
    tokens: Mapping[str, Sequence[str]]
    """What stands at each position, by stack."""
    picture: Picture | None = None


def inspect_run(run: Run, wanted: Any, console: Console) -> None:
    """Write the page for a run; the options are a `zoo.cli.Evaluation`'s."""
    require_attention(run.model)
    prepared = prepare(run)
    bundle = load(run.folder, step=wanted.step, average=wanted.average)
    subject = make_subject(bundle, _with_defaults(wanted, prepared), prepared.tokenizer, console, prepared)
    loss, measure = _held_out_loss(prepared)
    page = _Page(
        path=Path(wanted.output or Path(run.folder) / FILE),
        title=f"{run.folder}, step {bundle.step}",
        loss=loss,
        measure=measure,
        tokenizer=None if _codec(prepared) is not None else prepared.tokenizer,
        one_choice=not isinstance(run.task, QuestionAnsweringConfig | PictureAttributesConfig),
        classes=classes if isinstance(classes := getattr(prepared.task, "classes", ()), tuple) else (),
    )
    page.write(bundle, subject, console)


def inspect_checkpoint(bundle: Bundle, wanted: Any, console: Console) -> None:
    """Write the page for a pretrained checkpoint, into the working directory unless `--output` says where."""
    if wanted.source_language is not None:
        bundle = replace(bundle, tokenizer=bundle.tokenizer.for_language(wanted.source_language))
    tokenizer = None if bundle.tokenizer is None else task_tokenizer(bundle)
    subject = make_subject(bundle, wanted, tokenizer, console)
    mask_id = None if tokenizer is None else tokenizer.mask_id
    loss, measure = own_loss(bundle, mask_id=mask_id, **subject.inputs)
    labels = {} if bundle.origin is None else bundle.origin.fields.get("id2label") or {}
    page = _Page(
        path=Path(wanted.output or FILE),
        title=wanted.model,
        loss=loss,
        measure=measure,
        tokenizer=tokenizer,
        one_choice=bundle.origin is None or bundle.origin.head != "question_answering",
        classes=tuple(str(labels.get(str(place), place)) for place in range(len(labels))),
    )
    page.write(bundle, subject, console)


def make_subject(
    bundle: Bundle, wanted: Any, tokenizer: TextTokenizer | None, console: Console, prepared: Prepared | None = None
) -> Subject:
    """The inputs that the options ask for, and what stands at each of their positions.

    Raises:
        ValueError: an option that the model needs is missing, or a text is too long for it.
    """
    config = bundle.config
    if isinstance(config, RecurrentConfig):
        source = _text(bundle, config, wanted, tokenizer, "encoder")
        return _together(source, _written(bundle, source, wanted, tokenizer, prepared))
    if isinstance(config, DualConfig):
        parts = [_text(bundle, config.text, wanted, tokenizer, "text/encoder")] if wanted.prompt else []
        parts += [_picture(bundle, config.image, wanted, "image/encoder", prepared)] if wanted.image else []
        if not parts:
            raise ValueError("--prompt and --image are missing; this model reads texts and pictures: give one or both")
        return _together(*parts)
    if config.encoder is None:
        return _text(bundle, config, wanted, tokenizer, "decoder")
    if config.embedding.patches is not None:
        source = _picture(bundle, config, wanted, "encoder", prepared)
    elif config.embedding.audio is not None:
        source = _sound(bundle, wanted, console)
    else:
        source = _text(bundle, config, wanted, tokenizer, "encoder")
    return (
        source if config.decoder is None else _together(source, _written(bundle, source, wanted, tokenizer, prepared))
    )


def token_labels(tokenizer: TextTokenizer | None, ids: Sequence[int] | np.ndarray) -> list[str]:
    """Each token as text for a reader, special ones by their names; numbers where there is no tokenizer."""
    ids = [int(token) for token in ids]
    if tokenizer is None:
        return [str(token) for token in ids]
    if hasattr(tokenizer, "piece"):
        return [tokenizer.piece(token) if token < tokenizer.vocab_size else str(token) for token in ids]
    return [tokenizer.pretrained.decode([token], skip_special_tokens=False) for token in ids]


@dataclass(frozen=True, kw_only=True)
class _Page:
    """What a page says beside what is seen."""

    path: Path
    title: str
    loss: Loss
    measure: str
    tokenizer: TextTokenizer | None
    """Of what the model answers."""
    one_choice: bool
    """Whether logits are those of one choice, and not of an answer's two ends, or of several attributes."""
    classes: Sequence[str]
    """Names of what a classifier chooses among; numbers stand for those that have none."""

    def write(self, bundle: Bundle, subject: Subject, console: Console) -> None:
        """Look inside, write the page, and say which heads matter most."""
        seen = inspect(bundle, **subject.inputs)
        effects, ablation, lens, answers = ablate_heads(self.loss, bundle.params), None, None, ()
        if effects:
            whole = float(jax.jit(self.loss)(bundle.params))
            ablation = Ablation(effects=effects, measure=self.measure, whole=whole)
        if self.one_choice and _chooses(bundle, seen.output):
            lens = logit_lens(bundle, **subject.inputs)
            answers = _answers(bundle, lens.ids[:, 0], self.tokenizer, self.classes)
        facts = (
            getattr(bundle.config, "family", "two encoders"),
            f"{count_parameters(bundle.params):,} parameters",
            *(f"{name}: {len(labels)} positions" for name, labels in subject.tokens.items()),
        )
        shown = Shown(
            title=self.title,
            tokens=subject.tokens,
            facts=facts,
            picture=subject.picture,
            ablation=ablation,
            lens=lens,
            answers=answers,
        )
        path = write_report(self.path, seen, shown)
        for name, layer, head, effect in _worth(effects)[:NAMED]:
            said = f"{name}, layer {layer + 1}, head {head + 1}: without it {effect:+.4f} {self.measure}"
            console.print(said, soft_wrap=True, highlight=False)
        console.print(f"open {path} in a browser", soft_wrap=True, highlight=False)


def _chooses(bundle: Bundle, output: Any) -> bool:
    """Whether the model is a transformer that chooses among tokens or classes."""
    classes = getattr(getattr(bundle.config, "head", None), "num_classes", 2)
    return isinstance(bundle.model, Transformer) and output.logits is not None and (classes or 0) > 1


def _worth(effects: Mapping[str, np.ndarray]) -> list[tuple[str, int, int, float]]:
    """All heads, what the model misses most first."""
    heads = [
        (path, layer, head, float(effect))
        for path, found in effects.items()
        for (layer, head), effect in np.ndenumerate(found)
    ]
    return sorted(heads, key=lambda head: -head[-1])


def _answers(
    bundle: Bundle, ids: np.ndarray, tokenizer: TextTokenizer | None, classes: Sequence[str]
) -> list[list[list[str]]]:
    """What the ids [L + 1, (T,) k] of a lens stand for."""
    head = bundle.config.head
    known: list[int] = np.unique(ids).tolist()
    if getattr(head, "num_classes", None) is None:
        names = dict(zip(known, token_labels(tokenizer, known), strict=True))
    else:
        names = {place: classes[place] if place < len(classes) else str(place) for place in known}
    cells = ids if ids.ndim == 3 else ids[:, None]
    return [[[names[answer] for answer in cell] for cell in layer] for layer in cells.tolist()]


def _with_defaults(wanted: Any, prepared: Prepared) -> Any:
    """The options of an `Evaluation`, with a held-out text or the task's own example where nothing was asked."""
    task = prepared.task
    if getattr(wanted, task.option) is not None or task.option == "image":
        return wanted
    if hasattr(task, "text_key"):
        text = prepared.dataset.split("validation")[0][task.text_key]
        return replace(wanted, prompt=text[:CHARACTERS])
    return replace(wanted, prompt=task.example, **getattr(task, "beside", {}))


def _held_out_loss(prepared: Prepared) -> tuple[Loss, str]:
    task, apply = prepared.task, bind_apply(prepared.model)
    batch = {name: value[:ROWS] for name, value in next(iter(task.batches("validation"))).items()}
    unit = getattr(task, "unit", "tokens").removesuffix("s")
    return lambda params: task.loss(apply, params, batch, None)[0], f"held-out loss, nats per {unit}, of {ROWS} rows"


def _text(
    bundle: Bundle,
    config: TransformerConfig | RecurrentConfig,
    wanted: Any,
    tokenizer: TextTokenizer | None,
    stack: str,
) -> Subject:
    if tokenizer is None:
        raise ValueError("this model has no tokenizer that zoo can read, so it takes no text")
    if not wanted.prompt:
        raise ValueError('--prompt is missing: give a text to look at, --prompt "..."')
    second = wanted.pair or wanted.context
    if config.is_encoder_decoder:
        inputs = {"input_ids": np.array([tokenizer.sequence(wanted.prompt)], np.int32)}
    elif config.generates:
        ids = [*tokenizer.begin_ids, *tokenizer.encode(wanted.prompt)]
        inputs = {"input_ids": np.array([ids], np.int32)}
    elif MASK in wanted.prompt:
        inputs = {"input_ids": np.array([_masked(tokenizer, wanted.prompt)], np.int32)}
    else:
        texts = [wanted.prompt, second] if second else [wanted.prompt]
        row = tokenizer.encode_row(texts, 3 + sum(3 + len(tokenizer.encode(text)) for text in texts))
        kept = row.pop("attention_mask") != 0
        inputs = {name: value[None, kept] for name, value in row.items()}
        if not config.embedding.num_token_types:
            inputs.pop("token_type_ids", None)
    length = inputs["input_ids"].shape[1]
    positions = config.embedding.positions
    if positions is not None and positions.max_length is not None and length > positions.max_length:
        raise ValueError(f"the text has {length} tokens and this model reads {positions.max_length}; shorten it")
    return Subject(inputs=inputs, tokens={stack: token_labels(tokenizer, inputs["input_ids"][0])})


def _masked(tokenizer: TextTokenizer, prompt: str) -> list[int]:
    """Ids of a text with masks."""
    if tokenizer.mask_id is None:
        raise ValueError("this model's tokenizer has no mask token")
    first, *rest = (tokenizer.encode(part) for part in prompt.split(MASK))
    inside = [token for part in rest for token in (tokenizer.mask_id, *part)]
    return [*tokenizer.begin_ids, *first, *inside, tokenizer.eos_id]


def _picture(bundle: Bundle, config: TransformerConfig, wanted: Any, stack: str, prepared: Prepared | None) -> Subject:
    patches = config.embedding.patches
    assert patches is not None  # the caller has looked
    if prepared is not None:
        pixels = _run_pixels(prepared, wanted.image)
    elif wanted.image is None:
        raise ValueError("--image is missing: give a picture to look at, --image FILE")
    else:
        pixels = read_pixels(bundle, wanted.image)
    pixels = np.asarray(pixels, np.float32)
    rows, columns = patches.grid(*pixels.shape[2:])
    special = ["class", "distillation"][: patches.num_tokens]
    labels = [*special, *(f"{row + 1},{column + 1}" for row in range(rows) for column in range(columns))]
    picture = Picture(pixels=pixels[0], grid=(rows, columns), first=patches.num_tokens, stack=stack)
    return Subject(inputs={"pixel_values": pixels}, tokens={stack: labels}, picture=picture)


def _run_pixels(prepared: Prepared, path: str | None) -> np.ndarray:
    """A picture as a run's task reads it; without a path, the first one that was held out."""
    task = prepared.task
    example = prepared.dataset.split("validation")[0] if path is None else {task.image_key: open_picture(path)}
    pixels = task.pixels(example)[None]
    return pixels if pixels.dtype != np.uint8 else pixels.astype(np.float32) / 127.5 - 1


def _sound(bundle: Bundle, wanted: Any, console: Console) -> Subject:
    if wanted.audio is None:
        raise ValueError("--audio is missing: give speech to look at, --audio FILE.wav")
    return Subject(inputs={"input_features": read_sound(bundle, wanted.audio, console)}, tokens={})


def _written(
    bundle: Bundle, source: Subject, wanted: Any, tokenizer: TextTokenizer | None, prepared: Prepared | None
) -> Subject:
    """What the decoder of an encoder-decoder reads: `--prefix`, what the model writes, or makes of its source."""
    codec = _codec(prepared)
    if codec is not None:
        options = dict(max_new_tokens=codec.num_tokens, eos_token_id=None, decoder_start_token_id=codec.num_codes)
        ids = np.asarray(bundle.generate(**source.inputs, **options, num_beams=1, do_sample=False).sequences)[:1, :-1]
        return Subject(inputs={"decoder_input_ids": ids}, tokens={"decoder": token_labels(None, ids[0])})
    if wanted.prefix is not None and tokenizer is not None:
        ids = np.array([[tokenizer.start_id, *tokenizer.encode(wanted.prefix)]], np.int32)
    elif bundle.config.generates:
        ids = _generated(bundle, source.inputs, tokenizer)
    elif (made := bundle.prepare(**source.inputs).get("decoder_input_ids")) is not None:
        ids = np.asarray(made)
    else:
        raise ValueError('--prefix is missing: this model writes nothing; say what its decoder reads, --prefix "..."')
    return Subject(inputs={"decoder_input_ids": ids}, tokens={"decoder": token_labels(tokenizer, ids[0])})


def _codec(prepared: Prepared | None) -> Any:
    """What turns the tokens that a run writes into a picture; None for one that writes no picture."""
    return getattr(prepared and prepared.task, "codec", None)


def _generated(bundle: Bundle, inputs: Mapping[str, np.ndarray], tokenizer: TextTokenizer | None) -> np.ndarray:
    """What the model writes of itself, [1, T], up to the end token: that is written, and read by nobody."""
    inputs = {name: value for name, value in inputs.items() if name != "token_type_ids"}
    positions = bundle.config.target_embedding.positions
    room = WRITTEN if positions is None or positions.max_length is None else positions.max_length - BEGINS
    written = bundle.generate(**inputs, max_new_tokens=min(WRITTEN, room), num_beams=1, do_sample=False)
    ids = np.asarray(written.sequences)[:1]
    ends = np.flatnonzero(ids[0, 1:] == getattr(tokenizer, "eos_id", -1))
    return ids[:, : ends[0] + 1] if len(ends) else ids


def _together(*parts: Subject) -> Subject:
    return Subject(
        inputs={name: value for part in parts for name, value in part.inputs.items()},
        tokens={name: labels for part in parts for name, labels in part.tokens.items()},
        picture=next((part.picture for part in parts if part.picture is not None), None),
    )
