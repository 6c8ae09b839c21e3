"""What a transcription begins with, by what the checkpoint and the caller say."""

import pytest

from zoo.decoder_prompt import decoder_prompt

KNOWN = {
    "lang_to_id": {"<|en|>": 10, "<|fr|>": 11},
    "task_to_id": {"transcribe": 20, "translate": 21},
    "no_timestamps_token_id": 30,
    "forced_decoder_ids": [[1, None], [2, 20]],
}


@pytest.mark.parametrize(
    ("known", "language", "task", "expected"),
    [
        (KNOWN, None, None, [9, None, 20, 30]),
        (KNOWN, "fr", None, [9, 11, 20, 30]),
        (KNOWN, "French", "translate", [9, 11, 21, 30]),
        (KNOWN, "<|en|>", "transcribe", [9, 10, 20, 30]),
        (KNOWN, None, "translate", [9, None, 21, 30]),
        (KNOWN | {"forced_decoder_ids": [[1, 11], [2, 21], [3, 30]]}, None, None, [9, 11, 21, 30]),
        ({"no_timestamps_token_id": 30, "forced_decoder_ids": [[1, 30]]}, None, None, [9, 30]),
        ({"no_timestamps_token_id": 30}, None, None, [9, 30]),
        ({}, None, None, [9]),
    ],
)
def test_prompts(known, language, task, expected):
    assert decoder_prompt(9, known, language, task) == expected


@pytest.mark.parametrize(
    ("known", "language", "task", "message"),
    [
        (KNOWN, "klingon", None, "knows en, fr"),
        ({}, "en", None, "one language only"),
        (KNOWN, "en", "sing", "this checkpoint has transcribe, translate"),
        ({"forced_decoder_ids": [[2, 5]]}, None, None, "a token for each place from 1"),
    ],
)
def test_mistakes_are_named(known, language, task, message):
    with pytest.raises(ValueError, match=message):
        decoder_prompt(9, known, language, task)
