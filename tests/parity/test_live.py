"""Every architecture and head against the reference library, run here; needs torch and transformers."""

import jax
import pytest
import small

pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

import reference  # noqa: E402

import zoo  # noqa: E402


@pytest.mark.parametrize(("model_type", "head"), small.CASES)
def test_equals_the_reference(model_type, head, tmp_path):
    bundle, inputs, theirs = reference.make(model_type, head, tmp_path / "checkpoint")
    with jax.default_matmul_precision("highest"):
        ours = small.measure(bundle, inputs)
    small.compare(f"{model_type}-{head}", ours, theirs, small.padding_masks(inputs, bundle))

    zoo.save(bundle, tmp_path / "saved")
    cls = getattr(transformers, bundle.origin.architecture.classes[head])
    model, info = cls.from_pretrained(tmp_path / "saved", output_loading_info=True, attn_implementation="eager")
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")), info
    again = reference.measure(model.eval(), head, inputs, tmp_path / "checkpoint")
    assert all((again[name] == theirs[name]).all() for name in again if not name.startswith("gradient/"))
