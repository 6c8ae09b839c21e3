"""Every decoder: decoding over the cache, from prompts padded on the left, is whole passes over each row alone."""

import json

import jax
import numpy as np
import pytest
import small
from tiers import tiered

import zoo
from zoo.config import DynamicScaling, LongRopeScaling

DECODERS = [model_type for model_type, head in small.CASES if head == "causal_lm"]
NUM_NEW = 8


def load_recorded(model_type: str, folder):
    """The small model of a recorded case."""
    with np.load(small.RECORDED / f"{model_type}-causal_lm.npz") as file:
        manifest = json.loads(file["manifest"].tobytes())
    shapes = {name: tuple(shape) for name, shape in manifest["shapes"].items()}
    return zoo.load(small.write_folder(folder, manifest["config"], shapes))


def write_greedily(bundle, prompt, width: int) -> list[int]:
    """Greedy decoding by definition: the whole sequence again for every token."""
    row = list(prompt)
    forward = jax.jit(lambda **inputs: bundle.model.apply({"params": bundle.params}, **inputs).logits)
    for _ in range(NUM_NEW):
        ids = np.array([row + [small.PAD_ID] * (width - len(row))], np.int32)
        # What comes later is not seen, and no position lies past the last token's: lengths decide some rotations.
        positions = np.minimum(np.arange(width), len(row) - 1)[None]
        row.append(int(forward(input_ids=ids, position_ids=positions)[0, len(row) - 1].argmax()))
    return row[len(prompt) :]


@pytest.mark.parametrize("model_type", tiered(DECODERS, ["bloom", "gemma3_text", "gpt2"]))
def test_cached_decoding_of_padded_prompts_equals_whole_passes_over_each_row(model_type, tmp_path):
    bundle = load_recorded(model_type, tmp_path)
    rotary = bundle.config.output_stack.attention.rotary
    if rotary is not None and isinstance(rotary.scaling, DynamicScaling | LongRopeScaling):
        pytest.skip("its rotation depends on the length, and cached keys keep that of their time")
    prompts = [
        row[: 11 - 5 * index] for index, row in enumerate(small.make_ids(bundle.config.target_vocab_size, 2, 11))
    ]
    width = max(map(len, prompts))
    ids = np.array([[small.PAD_ID] * (width - len(row)) + list(row) for row in prompts], np.int32)
    mask = np.array([[0] * (width - len(row)) + [1] * len(row) for row in prompts], np.int32)
    out = bundle.generate(ids, mask, max_new_tokens=NUM_NEW)
    for row, length, prompt in zip(np.asarray(out.sequences), np.asarray(out.lengths), prompts, strict=True):
        assert row[width : width + length].tolist() == write_greedily(bundle, prompt, width + NUM_NEW)[:length]
