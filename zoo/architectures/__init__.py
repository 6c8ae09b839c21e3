"""The architectures that zoo loads: one file a family, found by the `model_type` of a config.json.

A file has a configuration's translation and a weight map, both ways, and no modules: what it describes is built from
the core. docs/add-an-architecture.md shows how to write one.
"""

import importlib

from zoo.architectures.architecture import Architecture, Fields

FAMILIES = {
    "albert": "albert",
    "arcee": "llama",
    "beit": "beit",
    "bart": "bart",
    "bert": "bert",
    "bloom": "bloom",
    "camembert": "roberta",
    "clip": "clip",
    "clip_text_model": "clip",
    "clip_vision_model": "clip",
    "deberta-v2": "deberta",
    "deit": "vit",
    "dinov2": "dinov2",
    "distilbert": "distilbert",
    "electra": "electra",
    "encoder-decoder": "encoder_decoder",
    "gemma": "gemma",
    "gemma2": "gemma",
    "gemma3_text": "gemma",
    "gpt2": "gpt2",
    "gpt_neo": "gpt_neo",
    "gpt_neox": "gpt_neox",
    "gpt_oss": "gpt_oss",
    "gptj": "gptj",
    "imagegpt": "imagegpt",
    "llama": "llama",
    "m2m_100": "m2m_100",
    "marian": "marian",
    "mbart": "bart",
    "mistral": "llama",
    "mixtral": "mixtral",
    "modernbert": "modernbert",
    "mpnet": "mpnet",
    "mt5": "t5",
    "olmo2": "olmo2",
    "opt": "opt",
    "pegasus": "marian",
    "phi3": "phi3",
    "qwen2": "llama",
    "qwen3": "llama",
    "roberta": "roberta",
    "siglip": "siglip",
    "siglip_text_model": "siglip",
    "siglip_vision_model": "siglip",
    "smollm3": "llama",
    "t5": "t5",
    "t5gemma": "t5gemma",
    "umt5": "t5",
    "vision-encoder-decoder": "encoder_decoder",
    "vit": "vit",
    "whisper": "whisper",
    "xlm-roberta": "roberta",
}
"""The file of each model type: a family."""


def list_architectures() -> list[str]:
    """The model types that `zoo.load` knows."""
    return sorted(FAMILIES)


def find_architecture(model_type: str) -> Architecture | None:
    """The architecture of a model type; None for one that zoo does not know."""
    if model_type not in FAMILIES:
        return None
    module = importlib.import_module(f"zoo.architectures.{FAMILIES[model_type]}")
    return {found.model_type: found for found in module.ARCHITECTURES}[model_type]


__all__ = ["Architecture", "Fields", "find_architecture", "list_architectures"]
