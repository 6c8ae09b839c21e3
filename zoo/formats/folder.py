"""A checkpoint folder: which of its files has the weights, and what its configuration says."""

from pathlib import Path

from zoo.formats.msgpack import FlaxFile, torch_name
from zoo.formats.safetensors import SafetensorsFile
from zoo.formats.shards import Shards
from zoo.weights import CheckpointError, Tensors

PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json", "tf_model.h5")


def open_weights(folder: Path) -> Tensors:
    """The weights of a transformers folder: safetensors or the deleted Flax classes', in one file or in shards.

    Raises CheckpointError where there are none, or none that can be read without running code.
    """
    if (folder / "model.safetensors").exists():
        return SafetensorsFile(folder / "model.safetensors")
    if (folder / "model.safetensors.index.json").exists():
        return Shards(folder / "model.safetensors.index.json", "safetensors", SafetensorsFile)
    if (folder / "flax_model.msgpack").exists():
        return FlaxFile(folder / "flax_model.msgpack")
    if (folder / "flax_model.msgpack.index.json").exists():
        return Shards(folder / "flax_model.msgpack.index.json", "msgpack", FlaxFile, torch_name)
    pickle = next((name for name in PICKLES if (folder / name).exists()), None)
    if pickle is not None:
        raise CheckpointError(
            f"{folder / pickle} is the only weight file; zoo does not open it, because unpickling it can run any code. "
            "Convert it to safetensors where you trust it (transformers: model.save_pretrained(folder))"
        )
    raise CheckpointError(
        f"{folder} has no weights; it needs model.safetensors, or shards with an index, or flax_model.msgpack"
    )
