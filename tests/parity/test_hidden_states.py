"""States after each layer of base models against the reference library, run here; needs torch and transformers.

zoo's last entry is what the last layer returned. The reference's is that in some families (ViT) and has the final norm
in others (Llama, GPT-2, T5), where it is `last_hidden_state`; both count here.
"""

import jax
import numpy as np
import pytest
import small

pytest.importorskip("torch")
pytest.importorskip("transformers")
pytestmark = pytest.mark.peers

import reference
import torch

import zoo

CASES = [model_type for model_type, head in small.CASES if head == "base"]
FIELDS = {"hidden_states": "last_hidden_state", "decoder_hidden_states": "last_hidden_state",
          "encoder_hidden_states": "encoder_last_hidden_state"}  # fmt: skip


@pytest.mark.parametrize("model_type", CASES)
def test_states_after_each_layer(model_type, tmp_path):
    model = reference.make_model(model_type, "base", tmp_path)
    bundle = zoo.load(tmp_path)
    batch = small.make_inputs(bundle)["plain"]
    with torch.no_grad():
        theirs = model(**reference.tensors(batch), output_hidden_states=True)
    with jax.default_matmul_precision("highest"):
        ours = bundle(**batch, output_hidden_states=True)
    if hasattr(bundle.config, "text"):
        pairs = [
            (ours.text_model_output, theirs.text_model_output),
            (ours.vision_model_output, theirs.vision_model_output),
        ]
    else:
        pairs = [(ours, theirs)]
    compared = [compare(*pair, name) for pair in pairs for name in FIELDS if getattr(pair[1], name, None) is not None]
    assert compared


def compare(ours, theirs, name: str) -> None:
    found = getattr(ours, name.removeprefix("decoder_"))
    wanted = [value.numpy() for value in getattr(theirs, name)]
    assert len(found) == len(wanted)
    scale = max(1.0, max(np.abs(value).max() for value in wanted) / 10)
    *found, last = [np.asarray(value) for value in found]
    ends = [last, np.asarray(getattr(ours, FIELDS[name]))]
    errors = [np.abs(a - b).max() for a, b in zip(found, wanted[:-1], strict=True)]
    errors.append(min(np.abs(end - wanted[-1]).max() for end in ends if end.shape == wanted[-1].shape))
    assert max(errors) <= 1e-4 * scale, f"{name}: {[f'{error:.1e}' for error in errors]}"
