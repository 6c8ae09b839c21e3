"""The decoder's prompt of models that are told language and task by tokens (Whisper, Radford et al. 2022)."""

from collections.abc import Mapping
from typing import Any


def decoder_prompt(start: int, known: Mapping[str, Any], language: str | None, task: str | None) -> list[int | None]:
    """Ids that a transcription begins with; None stands for the language, where that is to be heard first.

    Args:
        start: `decoder_start_token_id`.
        known: generation_config.json.
        language: a code ("fr"), a name ("French") or a token ("<|fr|>"); None: what the checkpoint says, or any.
        task: "transcribe" or "translate"; None: what the checkpoint says.

    Raises:
        ValueError: a language or task that the checkpoint has no token for.
    """
    languages: dict[str, int] = known.get("lang_to_id") or {}
    tasks: dict[str, int] = known.get("task_to_id") or {}
    prompt: list[int | None] = [start]
    if language is None and task is None:
        pairs: list[tuple[int, int | None]] = known.get("forced_decoder_ids") or []
        forced = sorted(pairs, key=lambda pair: pair[0])
        if [place for place, _ in forced] != list(range(1, len(forced) + 1)):
            raise ValueError(f"forced_decoder_ids is {forced}; give a token for each place from 1")
        prompt += [token for _, token in forced]
    if language is not None:
        prompt[1:2] = [_language_id(language, languages)]
    elif languages and (len(prompt) == 1 or prompt[1] is None):
        prompt[1:2] = [None]
    if task is not None:
        if task not in tasks:
            raise ValueError(f"task is {task!r}; this checkpoint has {', '.join(tasks) or 'one task only'}")
        prompt.append(tasks[task])
    elif language is not None and tasks and not set(tasks.values()) & set(prompt):
        prompt.append(tasks["transcribe"])
    silent = known.get("no_timestamps_token_id")
    if silent is not None and prompt[-1] != silent:
        prompt.append(silent)
    return prompt if languages else [token for token in prompt if token is not None]


def _language_id(language: str, languages: Mapping[str, int]) -> int:
    import babel

    names = {name.lower(): code for code, name in babel.Locale("en").languages.items()}
    for token in (language, f"<|{language.lower()}|>", f"<|{names.get(language.lower())}|>"):
        if token in languages:
            return languages[token]
    codes = ", ".join(token.strip("<|>") for token in languages)
    raise ValueError(f"language is {language!r}; this checkpoint knows {codes or 'one language only'}")
