"""How sequences are written: the names, meaning and defaults of the reference's generation_config.json."""

import dataclasses
import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True, kw_only=True)
class GenerationConfig:
    """How `generate` continues a prompt. Token ids are tuples, so that a configuration can be compiled on."""

    max_length: int | None = None
    """Tokens of a sequence at the most, those of the prompt included; with an encoder, the decoder's sequence."""
    max_new_tokens: int | None = None
    """Tokens after the prompt at the most; goes before `max_length`. Without either: 20."""
    min_length: int = 0
    """A sequence does not end before this many tokens, those of the prompt included."""
    min_new_tokens: int | None = None
    """A sequence does not end before this many tokens after the prompt."""
    do_sample: bool = False
    """Draw tokens by their probability; otherwise take the likeliest, one by one or by beams."""
    num_beams: int = 1
    """Sequences of each row that are followed side by side."""
    num_return_sequences: int = 1
    """Sequences returned for each row, best first; at most `num_beams`, except in sampling without beams."""
    early_stopping: bool | Literal["never"] = False
    """True: beams end when `num_beams` sequences have; False: when better ones are unlikely; "never": impossible."""
    length_penalty: float = 1.0
    """Beams are compared by the sum of their log-probabilities over length ** length_penalty."""
    temperature: float = 1.0
    """Divides the logits, in sampling."""
    top_k: int | None = 50
    """Draw among this many likeliest tokens; None or 0: among all."""
    top_p: float | None = 1.0
    """Draw among the likeliest tokens that together reach this probability (Holtzman et al. 2020)."""
    min_p: float | None = None
    """Draw among tokens of at least this share of the likeliest one's probability (Nguyen et al. 2024)."""
    guidance_scale: float = 1.0
    """Logits are led away from those of `negative_prompt_ids`, u, to u + scale · (c - u) (Ho and Salimans 2022)."""
    repetition_penalty: float = 1.0
    """Divides positive and multiplies negative logits of tokens that are there already (Keskar et al. 2019)."""
    no_repeat_ngram_size: int = 0
    """No sequence of this many tokens comes twice; 0: all may."""
    encoder_no_repeat_ngram_size: int = 0
    """No sequence of this many tokens of the encoder's input is written."""
    bad_words_ids: tuple[tuple[int, ...], ...] = ()
    """Sequences of tokens that are not written."""
    sequence_bias: tuple[tuple[tuple[int, ...], float], ...] = ()
    """Sequences of tokens, and what is added to the logit of the last where the others stand before it."""
    suppress_tokens: tuple[int, ...] = ()
    """Tokens that are never written."""
    begin_suppress_tokens: tuple[int, ...] = ()
    """Tokens that are not written first."""
    forced_bos_token_id: int | None = None
    """The token after the first, where the prompt is one token."""
    forced_eos_token_id: tuple[int, ...] = ()
    """The last token of a sequence of `max_length`."""
    forced_decoder_ids: tuple[tuple[int, int], ...] = ()
    """Places from 1 on, and the tokens there: what a decoder's prompt goes on with (Whisper)."""
    exponential_decay_length_penalty: tuple[int, float] | None = None
    """From this many new tokens on, the end token's logit grows by this factor a token."""
    remove_invalid_values: bool = False
    """Take NaN among the logits for 0 and infinities for the largest float."""
    renormalize_logits: bool = False
    """Make processed logits log-probabilities again, which beams then add up."""
    eos_token_id: tuple[int, ...] = ()
    """Tokens that end a sequence."""
    pad_token_id: int | None = None
    """Fills a row after its end; None: the first of `eos_token_id`."""
    decoder_start_token_id: int | None = None
    """The first token of an encoder-decoder's output; None for a decoder-only model."""

    def __post_init__(self):
        for name in ("num_beams", "num_return_sequences", "max_new_tokens", "temperature", "repetition_penalty"):
            value = getattr(self, name)
            if value is not None and not value > 0 and not (name == "temperature" and not self.do_sample):
                mend = "; for the likeliest token each time give do_sample=False" if name == "temperature" else ""
                raise ValueError(f"{name} is {value}; give a number above zero{mend}")
        for name in ("min_length", "no_repeat_ngram_size", "encoder_no_repeat_ngram_size", "top_k"):
            value = getattr(self, name)
            if value is not None and value < 0:
                raise ValueError(f"{name} is {value}; give at least 0")
        for name in ("top_p", "min_p"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise ValueError(f"{name} is {value}; give a probability in [0, 1], or None")
        if self.early_stopping not in (True, False, "never"):
            raise ValueError(f"early_stopping is {self.early_stopping!r}; give True, False or 'never'")
        most = self.num_beams if self.num_beams > 1 or not self.do_sample else self.num_return_sequences
        if self.num_return_sequences > most:
            raise ValueError(
                f"num_return_sequences is {self.num_return_sequences} and num_beams {self.num_beams}; "
                "give at least as many beams, or do_sample=True without beams"
            )

    @property
    def padding(self) -> int:
        """The token after a row's end."""
        return self.pad_token_id if self.pad_token_id is not None else (*self.eos_token_id, 0)[0]


FIELDS = {field.name: field.default for field in dataclasses.fields(GenerationConfig)}
SAMPLING = ("temperature", "top_k", "top_p", "min_p")
"""Fields that sampling alone reads."""
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "constraints": (None,),
    "diversity_penalty": (None, 0),
    "dola_layers": (None,),
    "encoder_repetition_penalty": (None, 1),
    "epsilon_cutoff": (None, 0),
    "eta_cutoff": (None, 0),
    "force_words_ids": (None,),
    "max_time": (None,),
    "num_beam_groups": (None, 1),
    "penalty_alpha": (None, 0),
    "prefix_allowed_tokens_fn": (None,),
    "stop_strings": (None,),
    "token_healing": (None, False),
    "top_h": (None,),
    "typical_p": (None, 1),
    "watermarking_config": (None,),
}
"""Options of the reference that zoo lacks, with the values at which they do nothing."""
_WITHOUT_EFFECT = (
    "use_cache", "cache_implementation", "return_dict_in_generate", "output_scores", "output_logits",
    "output_attentions", "output_hidden_states", "trace",
)  # fmt: skip
"""Options of the reference that change no token: zoo always keeps a cache and returns an object."""


def read_config(options: Mapping[str, Any], also: Iterable[str] = ()) -> GenerationConfig:
    """The configuration that options by the reference's names describe.

    Args:
        options: ids as numbers or lists; None is the default, and no limit for `top_k` and `top_p`.
        also: other names that the caller takes, for the message about a misspelt one.

    Raises:
        ValueError: a name that does not exist, with the nearest that does; or a value that zoo cannot follow.
    """
    for name, value in options.items():
        if name in _NEUTRAL:
            if value not in _NEUTRAL[name]:
                raise ValueError(f"{name} is {value!r}, which zoo does not have; pass {name}={_NEUTRAL[name][-1]!r}")
        elif name not in FIELDS and name not in _WITHOUT_EFFECT:
            close = difflib.get_close_matches(name, [*FIELDS, *also, *_NEUTRAL], n=1, cutoff=0.5)
            raise ValueError(f"unknown option {name!r}" + (f"; did you mean {close[0]}?" if close else ""))
    values = {name: _normal(name, value) for name, value in options.items() if name in FIELDS}
    return GenerationConfig(**values)


def _normal(name: str, value: Any) -> Any:
    """A value as `GenerationConfig` holds it."""
    if value is None:
        return None if name in ("top_k", "top_p") else FIELDS[name]
    if name in ("eos_token_id", "forced_eos_token_id") and not hasattr(value, "__len__"):
        return (int(value),)
    if name == "sequence_bias" and isinstance(value, Mapping):
        value = value.items()
    return _tuples(value)


def _tuples(value: Any) -> Any:
    if isinstance(value, (str, bool)) or value is None:
        return value
    if hasattr(value, "tolist"):
        value = value.tolist()
    return value if isinstance(value, (int, float)) else tuple(map(_tuples, value))


def stored_options(config: Mapping[str, Any], generation: Mapping[str, Any] | None) -> dict[str, Any]:
    """The options of a checkpoint: those of generation_config.json where there is one, else of config.json.

    Configurations of before that file hold them among the model's fields, some in a nested decoder's. What
    `task_specific_params` holds is for the caller to apply.
    """
    known = [*FIELDS, *_NEUTRAL, "bos_token_id"]
    if generation:
        return {name: generation[name] for name in known if generation.get(name) is not None}
    nested = next((config[name] for name in ("decoder", "generator", "text_config") if config.get(name)), {})
    fields = {**nested, **{name: value for name, value in config.items() if value is not None}}
    found = {name: fields[name] for name in known if fields.get(name) is not None}
    if config.get("force_bos_token_to_be_generated") and "bos_token_id" in found:
        found["forced_bos_token_id"] = found["bos_token_id"]
    return found
