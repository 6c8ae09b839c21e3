"""DeBERTa's masked-LM head under its newer names, and tensors that the reference leaves unread."""

import json

import numpy as np
from parity import small

import zoo
from zoo.formats.safetensors import SafetensorsFile, write_file


def test_newer_head_and_unread_tensors(tmp_path):
    with np.load(small.RECORDED / "deberta-v2-masked_lm.npz") as file:
        manifest = json.loads(file["manifest"].tobytes())
    folder = small.write_folder(tmp_path / "checkpoint", manifest["config"], manifest["shapes"])
    expected = zoo.load(folder)
    inputs = small.make_inputs(expected)["plain"]
    file = SafetensorsFile(folder / "model.safetensors")
    newer = {"cls.predictions.transform.": "lm_predictions.lm_head.", "cls.predictions.": "lm_predictions.lm_head."}
    tensors = {}
    for name in file.shapes:
        old = next((prefix for prefix in newer if name.startswith(prefix)), "")
        tensors[newer.get(old, "") + name.removeprefix(old)] = file.read(name)
    tensors["deberta.embeddings.position_embeddings.weight"] = np.zeros((40, 24), np.float32)
    tensors["mask_predictions.classifier.weight"] = np.zeros((1, 24), np.float32)
    write_file(folder / "model.safetensors", [(n, x.shape, x.dtype, lambda x=x: x) for n, x in tensors.items()])
    fields = json.loads((folder / "config.json").read_text()) | {"legacy": False}
    (folder / "config.json").write_text(json.dumps(fields))
    np.testing.assert_array_equal(zoo.load(folder)(**inputs).logits, expected(**inputs).logits)
    assert zoo.load(folder, head="base").origin.left_out
