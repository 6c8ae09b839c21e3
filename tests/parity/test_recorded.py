"""Every architecture and head against what the reference library computed (`record.py`); needs no torch.

Default tier: the busiest head of each model type, each head once, and the sequences of one model for each way to keep
and read a cache: generation knows no architecture.
The slow tier has the rest.
"""

import jax
import numpy as np
import pytest
import small
from tiers import tiered

import zoo


@pytest.mark.parametrize(("model_type", "head"), tiered(small.CASES, small.DEFAULT))
def test_equals_the_recorded_reference(model_type, head, tmp_path):
    fields, shapes, recorded = small.read_recorded(model_type, head)
    recorded = {name: value for name, value in recorded.items() if not name.startswith("generated/")}
    bundle = zoo.load(small.write_folder(tmp_path / "checkpoint", fields, shapes))
    assert bundle.origin.head == head
    assert not bundle.origin.left_out
    inputs = small.make_inputs(bundle)
    with jax.default_matmul_precision("highest"):
        ours = small.measure(bundle, inputs, [])
    small.compare(f"{model_type}-{head}", ours, recorded, small.padding_masks(inputs, bundle))
    check_saving(bundle, tmp_path)


def check_saving(bundle, tmp_path):
    """What `save` writes has the tensors that were read, bit by bit, and loads as the same model."""
    zoo.save(bundle, tmp_path / "saved")
    before, after = (small.SafetensorsFile(tmp_path / name / "model.safetensors") for name in ("checkpoint", "saved"))
    unwritten = before.shapes.keys() - after.shapes.keys()
    assert unwritten <= small.unread(bundle.origin.architecture, before.shapes)
    assert {name: shape for name, shape in before.shapes.items() if name not in unwritten} == dict(after.shapes)
    for name in after.shapes:
        assert np.array_equal(before.read(name), after.read(name)), name
    again = zoo.load(tmp_path / "saved")
    assert again.config == bundle.config
    assert all(map(np.array_equal, jax.tree.leaves(again.params), jax.tree.leaves(bundle.params)))


GENERATING = [case for case in small.CASES if case[1] in small.GENERATING]
WRITING = [(name, "causal_lm") for name in ("gpt2", "mistral", "bloom", "gemma3_text", "gpt_oss")]
WRITING += [(name, "seq2seq_lm") for name in ("t5", "bart", "whisper", "encoder-decoder")]


@pytest.mark.parametrize(("model_type", "head"), tiered(GENERATING, lambda name, head: (name, head) in WRITING))
def test_sequences_equal_the_recorded_reference(model_type, head, tmp_path):
    fields, shapes, recorded = small.read_recorded(model_type, head)
    recorded = {name: value for name, value in recorded.items() if name.startswith("generated/")}
    bundle = zoo.load(small.write_folder(tmp_path, fields, shapes))
    with jax.default_matmul_precision("highest"):
        ours = small.generate(bundle, small.make_inputs(bundle)["prompt"], small.GENERATION)
    assert ours.keys() == recorded.keys()
    small.compare(f"{model_type}-{head}", ours, recorded, {})
