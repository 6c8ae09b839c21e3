"""Checkpoints by their name on the Hugging Face Hub, through huggingface_hub and its cache."""

from pathlib import Path

from zoo.weights import CheckpointError

FILES = (
    "*.json", "*.safetensors", "flax_model*.msgpack", "*.model", "*.spm", "*.txt", "*.jinja", "*/config.json",
    "*/model.safetensors",
)  # fmt: skip
"""What a checkpoint's folder may be read for; pickles and code are not even fetched."""
COPIES = ("original/*", "metal/*", "onnx/*", "openvino/*", "consolidated*.safetensors")
"""The same weights in the layouts of other programs, as large again."""


def download(name: str, revision: str | None) -> Path:
    """The folder in the cache with a repository's files; CheckpointError where it cannot be had."""
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        patterns = {"allow_patterns": list(FILES), "ignore_patterns": list(COPIES)}
        return Path(huggingface_hub.snapshot_download(name, revision=revision, **patterns))
    except HFValidationError:
        raise CheckpointError(f"{name!r} is neither a folder, nor a file, nor a name on the hub") from None
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise CheckpointError(
            f"{name!r} is no folder here, and the hub did not give it"
            f"{'' if revision is None else f' at revision {revision!r}'}: {str(error).splitlines()[0]}"
        ) from None
