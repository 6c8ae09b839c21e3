"""Small pretrained checkpoints with tokenizers, of random parameters, written as `zoo.save` writes them."""

import json
import sys
from pathlib import Path

import jax
import vocabularies

sys.path.insert(0, str(Path(__file__).parent / "parity"))
import small

import zoo
from zoo.architectures import Fields, find_architecture
from zoo.bundle import Bundle, Origin
from zoo.tokenization import load_tokenizer
from zoo.transformer import Transformer, example_inputs

VOCABULARIES = {"bert": "Bert", "roberta": "Roberta", "gpt2": "GPT2", "t5": "T5", "distilbert": "Bert"}
IDS = {
    "t5": {"pad_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 0},
    "roberta": {"pad_token_id": 1, "max_position_embeddings": 66},
    "gpt2": {"n_positions": 64, "pad_token_id": None},
}
WORDS = [
    {"text": f"{'good' if number % 3 else 'bad'} thing number {number}", "label": "yes" if number % 3 else "no"}
    for number in range(40)
]
"""Texts of two classes."""


def write_checkpoint(folder: Path, model_type: str, head: str, **fields) -> Path:
    """A checkpoint of an architecture's tiny configuration, with a vocabulary that has letters and some words."""
    folder.mkdir(parents=True)
    if model_type in VOCABULARIES:
        vocabularies.write(folder, VOCABULARIES[model_type])
        fields = {"vocab_size": 420, "max_position_embeddings": 64} | IDS.get(model_type, {}) | fields
    architecture = find_architecture(model_type)
    fields = small.config_fields(model_type, head) | fields
    config = architecture.config_from_hf(Fields(fields, "config.json"), head)
    model = Transformer(config)
    params = jax.jit(lambda rng: model.init(rng, **example_inputs(config))["params"])(jax.random.key(7))
    origin = Origin(architecture=architecture, head=head, fields=fields, generation={}, folder=folder)
    tokenizer = load_tokenizer(folder, fields)
    return zoo.save(Bundle(model=model, params=params, config=config, tokenizer=tokenizer, origin=origin), folder)


def write_words(path: Path) -> Path:
    """`WORDS` as a file for data.path."""
    path.write_text("".join(json.dumps(example) + "\n" for example in WORDS))
    return path
