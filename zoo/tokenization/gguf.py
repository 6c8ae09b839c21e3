"""The tokenizer inside a GGUF file: byte-level BPE ("gpt2") or SentencePiece's BPE ("llama"), from its metadata."""

from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors

from zoo.tokenization.builders import LLAMA_3, QWEN_2, by_words, scored_bpe
from zoo.tokenization.templates import around
from zoo.tokenization.tokenizer import FastCoder, PretrainedTokenizer
from zoo.weights import CheckpointError

_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED = 1, 2, 3, 4


def _by_digits() -> Any:
    return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(False)])


CUTS = {
    "default": lambda: pre_tokenizers.ByteLevel(False),
    "gpt-2": lambda: pre_tokenizers.ByteLevel(False),
    "olmo": lambda: pre_tokenizers.ByteLevel(False),
    "smollm": _by_digits,
    "llama-bpe": lambda: by_words(LLAMA_3),
    "llama3": lambda: by_words(LLAMA_3),
    "dbrx": lambda: by_words(LLAMA_3),
    "qwen2": lambda: by_words(QWEN_2),
}
"""How text is cut before the merges, by `tokenizer.ggml.pre`."""


def gguf_tokenizer(metadata: dict[str, Any], origin: str) -> PretrainedTokenizer | None:
    """The tokenizer that `GgufFile.tokenizer_metadata` describes; None where the file has none.

    Raises CheckpointError for a kind that zoo does not read, and for metadata that does not fit together.
    """
    kind = metadata.get("model")
    if kind is None:
        return None
    tokens = metadata.get("tokens")
    if not isinstance(tokens, list) or not all(isinstance(token, str) for token in tokens):
        raise CheckpointError(f"{origin}: tokenizer.ggml.tokens is no list of texts")
    try:
        tokenizer = _build(str(kind), tokens, metadata, origin)
    except CheckpointError:
        raise
    except Exception as error:
        raise CheckpointError(f"{origin} has a tokenizer that does not fit together: {str(error)[:200]}") from None
    _add_special(tokenizer, tokens, metadata)
    special = {}
    for role, name in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding"), ("sep", "seperator")):
        token_id = metadata.get(f"{name}_token_id")
        if isinstance(token_id, int) and token_id < len(tokens):
            special[role] = tokens[token_id]
    _frame(tokenizer, metadata, special, kind == "llama")
    template = metadata.get("chat_template")
    return PretrainedTokenizer(
        coder=FastCoder(tokenizer),
        special=special,
        padding_side="left",
        chat_template=template if isinstance(template, str) else None,
    )


def _build(kind: str, tokens: list[str], metadata: dict[str, Any], origin: str) -> Tokenizer:
    if kind == "llama":
        scores = metadata.get("scores") or []
        prefix = bool(metadata.get("add_space_prefix", True))
        return scored_bpe(list(zip(tokens, map(float, scores), strict=True)), prefix=prefix)
    cut = metadata.get("pre", "default")
    if kind != "gpt2" or cut not in CUTS:
        known = f"'llama', and 'gpt2' cut by {', '.join(CUTS)}"
        raise CheckpointError(f"{origin}: its tokenizer is {kind!r} cut by {cut!r}; zoo reads {known}")
    merges = [tuple(merge.split(" ", 1)) for merge in metadata.get("merges") or []]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, ignore_merges=cut in ("llama-bpe", "llama3")))
    tokenizer.pre_tokenizer = CUTS[cut]()
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    return tokenizer


def _add_special(tokenizer: Tokenizer, tokens: list[str], metadata: dict[str, Any]) -> None:
    kinds = metadata.get("token_type") or [_NORMAL] * len(tokens)
    pairs = list(zip(tokens, kinds, strict=False))
    tokenizer.add_special_tokens([token for token, kind in pairs if kind in (_UNKNOWN, _CONTROL)])
    tokenizer.add_tokens([AddedToken(t, normalized=False) for t, kind in pairs if kind == _USER_DEFINED])


def _frame(tokenizer: Tokenizer, metadata: dict[str, Any], special: dict[str, str], by_default: bool) -> None:
    """Put the begin and end tokens around a text, where the file says so or its kind does."""
    before = f"{special['bos']} " if "bos" in special and metadata.get("add_bos_token", by_default) else ""
    after = f" {special['eos']}" if "eos" in special and metadata.get("add_eos_token", False) else ""
    if before or after:
        used = {special[role] for role, text in (("bos", before), ("eos", after)) if text}
        around(tokenizer, f"{before}$A{after}", f"{before}$A{after} {before}$B:1{after}", *sorted(used))
