"""Special tokens around a text: the templates of the older tokenizers, and of languages."""

from typing import Any

from tokenizers import Tokenizer, processors


def around(tokenizer: Tokenizer, single: str, pair: str, *tokens: str) -> None:
    """Set the template; `$A` and `$B` are the texts."""
    known = [(token, tokenizer.token_to_id(token)) for token in tokens]
    tokenizer.post_processor = processors.TemplateProcessing(single=single, pair=pair, special_tokens=known)


def mark_language(tokenizer: Tokenizer, language_id: int, code: str) -> Tokenizer:
    """A copy whose texts carry a language where the original's template carries one: before it, or after its end."""
    marked = Tokenizer.from_str(tokenizer.to_str())
    before = tokenizer.encode("a").ids
    end = tokenizer.token_to_id("</s>")
    first = before[0] == language_id or before[-1] == end
    special: list[tuple[str, Any]] = [("</s>", end), (code, language_id)]
    single, pair = (f"{code} $A </s>", f"{code} $A $B </s>") if first else (f"$A </s> {code}", f"$A $B </s> {code}")
    marked.post_processor = processors.TemplateProcessing(single=single, pair=pair, special_tokens=special)
    return marked
