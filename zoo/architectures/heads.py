"""The heads that the reference puts on decoders, which are alike for most families."""

from typing import Any

from zoo.architectures.architecture import Fields
from zoo.config import ClassifierHead, Head, LanguageModelHead, TokenHead, TransformerConfig
from zoo.weights import LINEAR, Rule, linear, rule, table


def decoder_head(
    fields: Fields, head: str, *, tied: bool, padding_id: int | None = None, **language_model: Any
) -> Head | None:
    """A decoder's head by its name; None for "base".

    Args:
        fields: config.json.
        head: as in `Architecture.classes`.
        tied: the reference's default of `tie_word_embeddings` for this model type.
        padding_id: its default of `pad_token_id`, by which its sequence classifiers find the last token.
        language_model: further fields of `LanguageModelHead`.
    """
    match head:
        case "causal_lm":
            return LanguageModelHead(tied=fields.get("tie_word_embeddings", tied), **language_model)
        case "sequence_classification":
            # A null there is an answer, and not the default.
            padding_id = fields.values.get("pad_token_id", padding_id)
            return ClassifierHead(num_classes=fields.num_labels(), pooling="last", padding_id=padding_id, bias=False)
        case "token_classification":
            return TokenHead(num_classes=fields.num_labels())
        case "question_answering":
            return TokenHead(num_classes=2)
        case _:
            return None


def label_weights(head: str) -> list[Rule]:
    """The rows of the heads that label positions, by the names that nearly all files give them; none for others."""
    match head:
        case "token_classification":
            return linear("classifier", "head")
        case "question_answering":
            return linear("qa_outputs", "head")
        case _:
            return []


def decoder_head_weights(
    config: TransformerConfig, head: str, tokens: str, *, labels: str = "score", logits: str = "lm_head"
) -> list[Rule]:
    """The rows of the token table `tokens`, which the logits may be tied to, and of a decoder's head.

    `labels` names the token classifier, `logits` the language model's map; files may always call that one lm_head.
    """
    tied = isinstance(config.head, LanguageModelHead) and config.head.tied
    names = tuple(dict.fromkeys([f"{logits}.weight", "lm_head.weight"]))
    rows = table(tokens, "embedder/token", aliases=names if tied else ())
    match head:
        case "causal_lm":
            kernel = rule(names[0], "head/kernel", LINEAR, aliases=names[1:])
            return [*rows, kernel, rule(f"{logits}.bias", "head/bias")]
        case "sequence_classification":
            return [*rows, *linear("score", "head/logits")]
        case "token_classification":
            return [*rows, *linear(labels, "head")]
        case "question_answering":
            return [*rows, *linear("qa_outputs", "head")]
        case _:
            return rows


def head_to_hf(config: TransformerConfig) -> dict[str, Any]:
    """The fields of config.json that `decoder_head` reads."""
    match config.head:
        case LanguageModelHead(tied=tied):
            return {"tie_word_embeddings": tied}
        case ClassifierHead(padding_id=padding_id):
            return {"pad_token_id": padding_id}
        case _:
            return {}
