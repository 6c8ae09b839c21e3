"""What a pretrained checkpoint makes of a prompt: one function for each kind of head.

Masks are filled, texts continued, chats answered, sources translated or summarised, texts and pictures classified,
answers found in a context, and texts ranked by similarity.
"""

import sys
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from zoo.bundle import Bundle
from zoo.config import DualConfig, EmbeddingHead, LanguageModelHead, LearnedPositions, TransformerConfig
from zoo.data.audio import AudioFeatures
from zoo.data.pictures import open_picture, stretch
from zoo.generation_config import stored_options
from zoo.recipes.speech import read_wave
from zoo.tasks.report import spell
from zoo.tasks.retrieval import nearest
from zoo.tasks.spans import ANSWER_LENGTH, span_scores
from zoo.training.state import count_parameters

MASK = "<mask>"
"""What a prompt may write where a token is hidden, whatever the checkpoint's own mask is called."""
NEW_TOKENS = 200
"""Written at the most where neither the caller nor the checkpoint says."""
SHOWN = 5
"""Candidates shown for each choice."""


def ask(bundle: Bundle, wanted: Any, console: Console) -> None:
    """Print what a checkpoint makes of the options of a `zoo.cli.Evaluation`.

    Raises:
        ValueError: an option that this model's head cannot use, or none where it needs one.
    """
    if bundle.origin is None:
        raise ValueError(
            f"{wanted.model} has no config.json, by which evaluate.py knows what to ask; call zoo.load(…) in Python"
        )
    if not any(getattr(wanted, name) for name in _EXAMPLES):
        return describe(bundle, console)
    answer, uses = _way(bundle)
    if wanted.chat and wanted.prompt is None and "chat" in uses:
        return converse(bundle, wanted, console)
    if wanted.chat and answer is continue_text and "chat" not in uses:
        raise ValueError("this checkpoint has no chat template; give --prompt without --chat, and it is continued")
    needs = [name for name in _EXAMPLES if name != "prompt" and getattr(wanted, name)]
    unused = next((name for name in needs if name not in uses), None)
    if unused is not None:
        raise ValueError(f"{_flag(unused)} is of no use here: {_kind(bundle)} takes {', '.join(map(_flag, uses))}")
    missing = next((name for name in uses if name not in OPTIONAL and not getattr(wanted, name)), None)
    if missing is not None:
        raise ValueError(f"{_flag(missing)} is missing: {_kind(bundle)} takes {', '.join(map(_flag, uses))}")
    if "prompt" in uses and bundle.tokenizer is None:
        raise ValueError("this checkpoint has no tokenizer that zoo can read, so it takes no text")
    answer(bundle, wanted, console)


def describe(bundle: Bundle, console: Console) -> None:
    """Print what a checkpoint is, and what to ask it."""
    origin = bundle.origin
    assert origin is not None  # a pretrained checkpoint has one
    console.print(
        f"{origin.folder}: {_kind(bundle)}, {getattr(bundle.config, 'family', 'two encoders')}, "
        f"{count_parameters(bundle.params):,} parameters",
        soft_wrap=True,
        highlight=False,
    )
    for said, names in (("not loaded", origin.left_out), ("newly initialised", origin.fresh)):
        if names:
            more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
            console.print(f"{said}: {', '.join(names[:SHOWN])}{more}", soft_wrap=True, highlight=False)
    try:
        _, uses = _way(bundle)
    except ValueError as error:
        return console.print(Text(str(error)), soft_wrap=True)
    shown = [f"{_flag(name)} {_EXAMPLES[name]}".strip() for name in uses]
    shown = [f"[{said}]" if name in OPTIONAL else said for name, said in zip(uses, shown, strict=True)]
    console.print(Text(f"next  {' '.join(shown)}"), soft_wrap=True)


_EXAMPLES = {
    "prompt": '"..."',
    "image": "FILE",
    "audio": "FILE.wav",
    "context": '"..."',
    "candidates": '"..." "..."',
    "chat": "",
    "pair": '"..."',
    "source_language": "en",
    "target_language": "fr",
    "prefix": '"..."',
}
OPTIONAL = ("chat", "pair", "source_language", "target_language", "prefix")


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _kind(bundle: Bundle) -> str:
    origin = bundle.origin
    assert origin is not None
    return origin.architecture.classes[origin.head]


def _way(bundle: Bundle) -> tuple[Callable[[Bundle, Any, Console], None], tuple[str, ...]]:
    """How this model answers, and the options that it reads."""
    config, origin = bundle.config, bundle.origin
    assert origin is not None
    embedding = getattr(config, "embedding", None)
    head, sees = origin.head, getattr(embedding, "patches", None) is not None
    if isinstance(config, DualConfig):
        return match_picture, ("image", "candidates")
    if head == "question_answering":
        return find_answer, ("prompt", "context")
    if head == "token_classification":
        return label_tokens, ("prompt",)
    if head.endswith("classification"):
        return (classify_picture, ("image",)) if sees else (classify_text, ("prompt", "pair"))
    if isinstance(config, TransformerConfig) and isinstance(config.head, LanguageModelHead):
        if config.decoder is None:
            return fill_masks, ("prompt",)
        if config.encoder is None:
            chats = getattr(bundle.tokenizer, "chat_template", None) is not None
            return continue_text, ("prompt", "chat") if chats else ("prompt",)
        if embedding.audio is not None:
            return rewrite, ("audio", "source_language")
        return (rewrite, ("image",)) if sees else (rewrite, ("prompt", "source_language", "target_language", "prefix"))
    if not sees and isinstance(config, TransformerConfig):
        return rank_texts, ("prompt", "candidates")
    raise ValueError(f"evaluate.py has no question for {_kind(bundle)} yet; call zoo.load(…)(…) in Python")


def fill_masks(bundle: Bundle, wanted: Any, console: Console) -> None:
    """The likeliest tokens of each mask, and the text with the likeliest of all."""
    tokenizer = bundle.tokenizer
    if tokenizer.mask_id is None:
        raise ValueError("this checkpoint's tokenizer has no mask token")
    mask = tokenizer.special["mask"]
    batch = tokenizer([wanted.prompt.replace(MASK, mask)])
    places = np.flatnonzero(batch["input_ids"][0] == tokenizer.mask_id)
    if not places.size:
        raise ValueError(f"the prompt {wanted.prompt!r} has nothing to fill; write {MASK} where a token is missing")
    probability = jax.nn.softmax(np.asarray(bundle(**batch).logits)[0, places])
    probability = np.asarray(probability)
    ids = batch["input_ids"][0].copy()
    ids[places] = probability.argmax(-1)
    console.print(Text(tokenizer.decode(ids).strip()), soft_wrap=True)
    for row in probability:
        best = np.argsort(-row)[:SHOWN]
        console.print(
            _shares([tokenizer.decode([token], skip_special_tokens=False).strip() for token in best], row[best])
        )


def continue_text(bundle: Bundle, wanted: Any, console: Console) -> None:
    """The prompt and its continuation, or the answer to it, printed as it comes."""
    if wanted.chat:
        write(bundle, wanted, console, _chat(bundle, [{"role": "user", "content": wanted.prompt}]), 0)
        return
    batch = bundle.tokenizer([wanted.prompt], padding_side="left")
    # A token that ends a text would end the continuation before it begins.
    while batch["input_ids"].shape[1] > 1 and batch["input_ids"][0, -1] == bundle.tokenizer.eos_id:
        batch = {name: value[:, :-1] for name, value in batch.items()}
    write(bundle, wanted, console, batch, batch["input_ids"].shape[1])


def converse(bundle: Bundle, wanted: Any, console: Console) -> None:
    """A chat: a line of standard input is a message, and each is answered in the light of all before."""
    messages: list[dict[str, str]] = []
    console.print(Text("a message a line; an empty one ends the chat", style="dim"))
    while line := console.input("> ").strip() if sys.stdin.isatty() else sys.stdin.readline().strip():
        messages.append({"role": "user", "content": line})
        answer = write(bundle, wanted, console, _chat(bundle, messages), 0)
        messages.append({"role": "assistant", "content": answer})


def _chat(bundle: Bundle, messages: list[dict[str, str]]) -> dict[str, np.ndarray]:
    """The ids of a conversation, where the model's answer begins."""
    text = bundle.tokenizer.apply_chat_template(messages)
    return bundle.tokenizer([text], padding_side="left", add_special_tokens=False)


def write(bundle: Bundle, wanted: Any, console: Console, batch: dict[str, np.ndarray], num_shown: int) -> str:
    """Continue ids, print the last `num_shown` of them and what follows, as it comes; returns the printed text."""
    tokenizer, inputs = bundle.tokenizer, {name: batch[name] for name in ("input_ids", "attention_mask")}
    length = inputs["input_ids"].shape[1]
    options = _options(bundle, wanted, length)
    if _beams(bundle, options) > 1:
        written = np.asarray(bundle.generate(**inputs, **options).sequences)[0]
        text = tokenizer.decode(written[length - num_shown :])
        console.print(_said(text), soft_wrap=True)
        return text
    text = ""
    for piece in spell(
        bundle.stream(**inputs, **options), tokenizer.decode, inputs["input_ids"][0, length - num_shown :]
    ):
        console.out(piece, end="", highlight=False)
        text += piece
    console.out()
    return text


def _said(text: str) -> Text:
    return Text(text.strip()) if text.strip() else Text("(the model wrote nothing)", style="dim")


def rewrite(bundle: Bundle, wanted: Any, console: Console) -> None:
    """What an encoder-decoder writes for a text, a picture or speech."""
    options = _options(bundle, wanted)
    if wanted.audio is not None:
        told = {} if wanted.source_language is None else {"language": wanted.source_language}
        generated = bundle.generate(input_features=read_sound(bundle, wanted.audio, console), **told, **options)
    elif wanted.image is not None:
        generated = bundle.generate(pixel_values=read_pixels(bundle, wanted.image), **options)
    else:
        tokenizer = bundle.tokenizer
        if wanted.source_language is not None:
            tokenizer = tokenizer.for_language(wanted.source_language)
        batch = tokenizer([wanted.prompt])
        if wanted.prefix is not None:
            begin = tokenizer([wanted.prefix], add_special_tokens=False)
            options["decoder_input_ids"] = begin["input_ids"]
        generated = bundle.generate(**{name: batch[name] for name in ("input_ids", "attention_mask")}, **options)
    for row in np.asarray(generated.sequences):
        console.print(_said(bundle.tokenizer.decode(row)), soft_wrap=True)


def classify_text(bundle: Bundle, wanted: Any, console: Console) -> None:
    """Each class and its probability."""
    batch = bundle.tokenizer([wanted.prompt], None if wanted.pair is None else [wanted.pair])
    _show_classes(bundle, bundle(**batch).logits, console)


def classify_picture(bundle: Bundle, wanted: Any, console: Console) -> None:
    """The likeliest classes of a picture."""
    _show_classes(bundle, bundle(pixel_values=read_pixels(bundle, wanted.image)).logits, console)


def match_picture(bundle: Bundle, wanted: Any, console: Console) -> None:
    """The candidates by how well they describe a picture, as shares among them."""
    batch = bundle.tokenizer(list(wanted.candidates))
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    scores = np.asarray(bundle(**inputs, pixel_values=read_pixels(bundle, wanted.image)).logits_per_image)[0]
    shares = np.asarray(jax.nn.sigmoid(scores) if bundle.config.bias else jax.nn.softmax(scores))
    best = np.argsort(-shares)
    console.print(_shares([wanted.candidates[place] for place in best], shares[best]))


def label_tokens(bundle: Bundle, wanted: Any, console: Console) -> None:
    """Each token of a text that is not special, and its likeliest label."""
    encoding = bundle.tokenizer.offsets(wanted.prompt)
    labels = np.asarray(bundle(**bundle.tokenizer([wanted.prompt])).logits)[0].argmax(-1)
    table = _table()
    for label, sequence, (begin, end) in zip(labels, encoding.sequence_ids, encoding.offsets, strict=True):
        if sequence is not None:
            table.add_row(Text(wanted.prompt[begin:end]), Text(_label(bundle, int(label))))
    console.print(table)


def find_answer(bundle: Bundle, wanted: Any, console: Console) -> None:
    """The spans of the context that answer the prompt, by the product of their ends' probabilities."""
    tokenizer = bundle.tokenizer
    output = bundle(**tokenizer([wanted.prompt], [wanted.context]))
    encoding = tokenizer.offsets(wanted.prompt, wanted.context)
    inside = np.array([sequence == 1 for sequence in encoding.sequence_ids])
    start, end = (
        jax.nn.log_softmax(np.where(inside, np.asarray(logits)[0], -np.inf))
        for logits in (output.start_logits, output.end_logits)
    )
    spans = np.exp(np.asarray(span_scores(start, end, ANSWER_LENGTH)))
    best = np.argsort(-spans, axis=None)[:SHOWN]
    texts, shares = [], []
    for first, last in zip(*np.unravel_index(best, spans.shape), strict=True):
        if spans[first, last] > 0:
            texts.append(wanted.context[encoding.offsets[first][0] : encoding.offsets[last][1]])
            shares.append(spans[first, last])
    console.print(_shares(texts, np.array(shares)))


def rank_texts(bundle: Bundle, wanted: Any, console: Console) -> None:
    """The candidates by the cosine of their vectors and the prompt's, most similar first."""
    (asked,), vectors = _vectors(bundle, [wanted.prompt], "query"), _vectors(bundle, wanted.candidates, *_DOCUMENT)
    table = _table()
    for place, cosine in nearest(asked, vectors):
        table.add_row(f"{cosine:.4f}", Text(wanted.candidates[place]))
    console.print(table)


_DOCUMENT = ("document", "passage")
"""What checkpoints call the prompt of a text that is searched."""


def _vectors(bundle: Bundle, texts: Sequence[str], *prompts: str) -> np.ndarray:
    """One vector of length one a text: an embedding head's, or the mean of the last states over tokens.

    Behind the first of `prompts` that the checkpoint has.
    """
    modules = None if bundle.origin is None else bundle.origin.modules
    if modules is not None:
        prompt = next((name for name in prompts if name in modules.prompts), None)
        vectors = bundle.embed(texts, prompt=prompt).astype(np.float64)
        return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)
    batch = bundle.tokenizer(list(texts), padding_side="right")
    if bundle.config.decoder is not None and bundle.config.encoder is not None:
        raise ValueError(f"{_kind(bundle)} has no vector for a text; load a model that embeds")
    output = bundle(**batch)
    if bundle.origin is not None and bundle.origin.head != "base" and isinstance(bundle.config.head, EmbeddingHead):
        vectors = np.asarray(output.pooler_output, np.float64)
    else:
        weights = batch["attention_mask"][..., None]
        vectors = (np.asarray(output.last_hidden_state, np.float64) * weights).sum(1) / weights.sum(1)
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def _options(bundle: Bundle, wanted: Any, length: int = 1) -> dict[str, Any]:
    """The options of generation that were given, for a prompt of `length`; what was not is the checkpoint's own."""
    options = dict(wanted.options)
    assert bundle.origin is not None
    known = stored_options(bundle.origin.fields, bundle.origin.generation)
    if "max_new_tokens" not in options and not {"max_length", "max_new_tokens"} & known.keys():
        positions = bundle.config.target_embedding.positions
        room = positions.max_length - length if isinstance(positions, LearnedPositions) else NEW_TOKENS
        options["max_new_tokens"] = max(1, min(NEW_TOKENS, room))
    if wanted.target_language is not None:
        options["forced_bos_token_id"] = _language(bundle, wanted.target_language)
    return options | {"seed": wanted.seed}


def _beams(bundle: Bundle, options: dict[str, Any]) -> int:
    """Beams that generation will follow."""
    assert bundle.origin is not None
    return (stored_options(bundle.origin.fields, bundle.origin.generation) | options).get("num_beams", 1)


def _language(bundle: Bundle, code: str) -> int:
    """The token of a language: its code, or that between two underscores (M2M100)."""
    try:
        return bundle.tokenizer.token_id(code)
    except ValueError:
        return bundle.tokenizer.token_id(f"__{code}__")


def read_pixels(bundle: Bundle, path: str) -> np.ndarray:
    """A picture as the checkpoint's own processor makes it; without one, stretched to the model's size."""
    origin = bundle.origin
    assert origin is not None
    picture = open_picture(path)
    if any((origin.folder / name).exists() for name in ("preprocessor_config.json", "processor_config.json")):
        return bundle.processor(picture)["pixel_values"]
    return stretch(picture, getattr(bundle.config, "image", bundle.config).embedding.patches.image_size)


def read_sound(bundle: Bundle, path: str, console: Console) -> np.ndarray:
    """Speech in a WAV file as the model hears it."""
    assert bundle.origin is not None
    features = AudioFeatures.load(bundle.origin.folder)
    samples = read_wave(path, features.sampling_rate)
    if len(samples) > features.chunk_length * features.sampling_rate:
        console.print(Text(f"(the first {features.chunk_length} seconds)", style="dim"))
    return features(samples, features.sampling_rate)


def _show_classes(bundle: Bundle, logits: Any, console: Console) -> None:
    origin = bundle.origin
    assert origin is not None
    logits = np.asarray(logits)[0]
    if logits.size == 1:
        console.print(f"{_label(bundle, 0)}  {float(logits[0]):.4f}", highlight=False)
        return
    several = origin.fields.get("problem_type") == "multi_label_classification"
    shares = np.asarray(jax.nn.sigmoid(logits) if several else jax.nn.softmax(logits))
    best = np.argsort(-shares)[:SHOWN]
    console.print(_shares([_label(bundle, int(place)) for place in best], shares[best]))


def _label(bundle: Bundle, place: int) -> str:
    """The name that the checkpoint gives a class."""
    assert bundle.origin is not None
    return str((bundle.origin.fields.get("id2label") or {}).get(str(place), f"LABEL_{place}"))


def _shares(names: list[str], shares: np.ndarray) -> Table:
    table = _table()
    for name, share in zip(names, shares, strict=True):
        table.add_row(f"{100 * share:.1f} %", Text(name))
    return table


def _table() -> Table:
    table = Table(box=None, pad_edge=False, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(justify="right", style="dim")
    return table
