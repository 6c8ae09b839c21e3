"""The recordings remade by the reference library, which opens what zoo saves; needs torch and transformers."""

import numpy as np
import pytest
import small

pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.peers

# It imports torch.
import reference

import zoo


@pytest.mark.parametrize(("model_type", "head"), small.CASES)
def test_recordings_are_what_the_reference_computes(model_type, head, tmp_path):
    """With zoo against the recordings (test_recorded.py), that is zoo against the reference."""
    _, shapes, recorded = small.read_recorded(model_type, head)
    bundle, inputs, theirs = reference.make(model_type, head, tmp_path / "checkpoint")
    assert small.tensor_shapes(tmp_path / "checkpoint") == shapes
    small.compare(f"{model_type}-{head}", theirs, recorded, small.padding_masks(inputs, bundle))

    zoo.save(bundle, tmp_path / "saved")
    cls = getattr(transformers, bundle.origin.architecture.classes[head])
    model, info = cls.from_pretrained(tmp_path / "saved", output_loading_info=True, attn_implementation="eager")
    info["missing_keys"] -= small.unread(bundle.origin.architecture, info["missing_keys"])
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")), info
    again = reference.measure(model.eval(), head, inputs, tmp_path / "checkpoint")
    for name in again:
        if not name.startswith("gradient/"):  # torch's own last bits depend on where the weights lie in memory
            np.testing.assert_allclose(again[name], theirs[name], rtol=0, atol=1e-6, err_msg=name)
