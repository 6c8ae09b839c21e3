"""From a checkpoint's folder to its tokenizer."""

import re
from pathlib import Path
from typing import Any

from zoo.formats.safetensors import read_json
from zoo.tokenization.tokenizer import SPECIAL, Coder, FastCoder, PretrainedTokenizer, UnreadTokenizer
from zoo.weights import CheckpointError

FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.txt",
    "vocab.json", "merges.txt", "spiece.model", "sentencepiece.bpe.model", "spm.model", "tokenizer.model",
    "source.spm", "target.spm", "target_vocab.json", "chat_template.jinja", "chat_template.json",
)  # fmt: skip
"""What a tokenizer is made of."""
_M2M100 = (
    "af am ar ast az ba be bg bn br bs ca ceb cs cy da de el en es et fa ff fi fr fy ga gd gl gu ha he hi hr ht hu "
    "hy id ig ilo is it ja jv ka kk km kn ko lb lg ln lo lt lv mg mk ml mn mr ms my ne nl no ns oc or pa pl ps pt "
    "ro ru sd si sk sl so sq sr ss su sv sw ta th tl tn tr uk ur uz vi wo xh yi yo zh zu"
)
"""Languages in the order of their ids (Fan et al. 2020)."""
_FRAMED = {"bos": "[CLS]", "eos": "[SEP]", "sep": "[SEP]", "cls": "[CLS]", "mask": "[MASK]"}
_ROLES = {
    "Bert": {"unk": "[UNK]", "sep": "[SEP]", "pad": "[PAD]", "cls": "[CLS]", "mask": "[MASK]"},
    "Roberta": {
        "bos": "<s>", "eos": "</s>", "sep": "</s>", "cls": "<s>", "unk": "<unk>", "pad": "<pad>", "mask": "<mask>",
    },
    "GPT2": {"bos": "<|endoftext|>", "eos": "<|endoftext|>", "unk": "<|endoftext|>"},
    "Albert": _FRAMED | {"unk": "<unk>", "pad": "<pad>"},
    "DebertaV2": _FRAMED | {"unk": "[UNK]", "pad": "[PAD]"},
    "CLIP": {"bos": "<|startoftext|>", "eos": "<|endoftext|>", "unk": "<|endoftext|>", "pad": "<|endoftext|>"},
    "Llama": {"bos": "<s>", "eos": "</s>", "unk": "<unk>"},
    "Gemma": {"bos": "<bos>", "eos": "<eos>", "unk": "<unk>", "pad": "<pad>"},
    "T5": {"eos": "</s>", "unk": "<unk>", "pad": "<pad>"},
    "Pegasus": {"eos": "</s>", "unk": "<unk>", "pad": "<pad>", "mask": "<mask_2>"},
    "Siglip": {"eos": "</s>", "unk": "<unk>", "pad": "</s>"},
    "Qwen2": {"eos": "<|endoftext|>", "unk": "<|endoftext|>", "pad": "<|endoftext|>"},
}  # fmt: skip
"""Special tokens of checkpoints that name none, by kind of tokenizer."""
_LIKE = {
    "Electra": "Bert", "DistilBert": "Bert", "MPNet": "Roberta", "Bart":
    "Roberta", "XLMRoberta": "Roberta", "MBart": "Roberta", "MBart50": "Roberta", "Nllb": "Roberta", "Camembert":
    "Roberta", "M2M100": "Roberta", "Marian": "T5", "Whisper": "GPT2", "GPTNeoX": "GPT2",
}  # fmt: skip


_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")
"""Of an added token."""


_ANY_KIND = ("", "PreTrained", "TokenizersBackend")
"""Class names that say nothing, without "Tokenizer" and "Fast"."""


def load_tokenizer(folder: Path, config: dict[str, Any]) -> PretrainedTokenizer | UnreadTokenizer | None:
    """The tokenizer in a checkpoint's folder; None where it has none, as image models.

    One of a kind that zoo does not read is an `UnreadTokenizer`: the model is there all the same.

    Args:
        folder: with any of `FILES`.
        config: config.json.

    Raises:
        CheckpointError: files that are damaged.
    """
    files = tuple(folder / name for name in FILES if (folder / name).exists())
    kinds = {path.name for path in files} - {"chat_template.jinja", "chat_template.json", "tokenizer_config.json"}
    if not kinds & {"tokenizer.json", "vocab.txt", "vocab.json"} and not any(
        name.endswith((".model", ".spm")) for name in kinds
    ):
        return None
    try:
        return _build(folder, files, config)
    except CheckpointError:
        raise
    except BaseException as error:
        # Parsers in Rust and C++ raise plain exceptions, or panic, which Python sees as no Exception.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        names = ", ".join(path.name for path in files)
        raise CheckpointError(f"{folder} has no tokenizer that can be read from {names}: {str(error)[:200]}") from None


def _build(folder: Path, files: tuple[Path, ...], config: dict[str, Any]) -> PretrainedTokenizer | UnreadTokenizer:
    from zoo.tokenization.builders import OF_MODEL

    settings = _settings(folder)
    kind = _kind(settings, config)
    coder = _coder(folder, settings, kind)
    if coder is None:
        return UnreadTokenizer(reason=_unread(folder, settings, config), files=files)
    coder.encode("a", None, True)  # a template may name tokens that are not there
    special = _roles(kind) or _roles(OF_MODEL.get(config.get("model_type"), ""))
    special |= {role: settings[f"{role}_token"] for role in SPECIAL if settings.get(f"{role}_token")}
    special = {role: token for role, token in special.items() if coder.token_id(token) is not None}
    if isinstance(coder, FastCoder):
        known = {token.content for token in coder.tokenizer.get_added_tokens_decoder().values()}
        coder.tokenizer.add_special_tokens([token for token in special.values() if token not in known])
    length = settings.get("model_max_length")
    return PretrainedTokenizer(
        coder=coder,
        special=special,
        padding_side=settings.get("padding_side") or "right",
        truncation_side=settings.get("truncation_side") or "right",
        max_length=int(length) if isinstance(length, int | float) and 0 < length < 1e9 else _length(config),
        token_types=int(config.get("type_vocab_size") or 0) > 1,
        chat_template=_chat_template(folder, settings),
        files=files,
    )


def _settings(folder: Path) -> dict[str, Any]:
    """tokenizer_config.json over special_tokens_map.json; tokens as plain strings."""
    settings: dict[str, Any] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        if (folder / name).exists():
            settings |= {k: v for k, v in read_json(folder / name).items() if v is not None or k not in settings}

    def plain(value: Any) -> Any:
        if isinstance(value, dict) and "content" in value:
            return value["content"]
        return [plain(item) for item in value] if isinstance(value, list) else value

    return {name: plain(value) for name, value in settings.items()}


def _roles(kind: str) -> dict[str, str]:
    return dict(_ROLES.get(_LIKE.get(kind, kind), {}))


def _kind(settings: dict[str, Any], config: dict[str, Any]) -> str:
    """What either file's tokenizer_class names, or else what the model_type has."""
    from zoo.tokenization.builders import OF_MODEL

    name = re.sub(r"Tokenizer(Fast)?$", "", _class_name(settings, config))
    return OF_MODEL.get(config.get("model_type"), name) if name in _ANY_KIND else name


def _class_name(settings: dict[str, Any], config: dict[str, Any]) -> str:
    return str(settings.get("tokenizer_class") or config.get("tokenizer_class") or "")


def _coder(folder: Path, settings: dict[str, Any], kind: str) -> Coder | None:
    """What the files say; None for a kind without a builder."""
    from tokenizers import Tokenizer

    from zoo.tokenization.builders import BUILDERS, word_ends
    from zoo.tokenization.pieces import m2m100, marian

    path = folder / "tokenizer.json"
    if path.exists():
        tokenizer = Tokenizer.from_str(path.read_text(encoding="utf-8"))
        if kind == "CLIP":
            tokenizer.decoder = word_ends()
        return FastCoder(tokenizer)
    if kind == "Marian":
        return marian(folder)
    if kind == "M2M100":
        languages = [f"__{code}__" for code in _M2M100.split()]
        return m2m100(folder, languages, settings.get("src_lang") or "en")
    if kind not in BUILDERS:
        return None
    tokenizer = BUILDERS[kind](folder, settings)
    _add_tokens(tokenizer, folder, settings)
    tokenizer.add_special_tokens([t for t in settings.get("additional_special_tokens") or [] if isinstance(t, str)])
    return FastCoder(tokenizer)


def _unread(folder: Path, settings: dict[str, Any], config: dict[str, Any]) -> str:
    from zoo.tokenization.builders import BUILDERS

    return (
        f"{folder} has no tokenizer.json, and its tokenizer_class {_class_name(settings, config)!r} is none "
        f"that zoo builds from older files: {', '.join(sorted(BUILDERS))}, Marian, M2M100"
    )


def _add_tokens(tokenizer: Any, folder: Path, settings: dict[str, Any]) -> None:
    """Add the tokens that were put behind the vocabulary's, as tokenizer_config.json or added_tokens.json lists them.

    Raises CheckpointError for one whose id is another than listed.
    """
    from tokenizers import AddedToken

    listed = settings.get("added_tokens_decoder")
    if listed:
        tokens = {int(i): AddedToken(t["content"], **{k: t[k] for k in _FLAGS if k in t}) for i, t in listed.items()}
    elif (folder / "added_tokens.json").exists():
        tokens = {i: AddedToken(token) for token, i in read_json(folder / "added_tokens.json").items()}
    else:
        return
    for token_id, token in sorted(tokens.items(), key=lambda entry: entry[0]):
        add = tokenizer.add_special_tokens if token.special else tokenizer.add_tokens
        add([token])
        found = tokenizer.token_to_id(token.content)
        if found != token_id:
            raise CheckpointError(f"{folder}: {token.content!r} is listed with the id {token_id}, and would be {found}")


def _length(config: dict[str, Any]) -> int | None:
    length = config.get("max_position_embeddings")
    return length if isinstance(length, int) else None


def _chat_template(folder: Path, settings: dict[str, Any]) -> str | None:
    """The template named "default" where there are several."""
    if (folder / "chat_template.jinja").exists():
        return (folder / "chat_template.jinja").read_text(encoding="utf-8")
    found = settings.get("chat_template")
    if found is None and (folder / "chat_template.json").exists():
        found = read_json(folder / "chat_template.json").get("chat_template")
    if isinstance(found, list):
        named = {entry.get("name"): entry.get("template") for entry in found if isinstance(entry, dict)}
        found = named.get("default", next(iter(named.values()), None))
    return found if isinstance(found, str) else None
