"""Two models joined, a decoder that attends to an encoder made apart (Rothe et al. 2020; of images, Li et al. 2021).

Each half keeps its own config.json and names of tensors, under `encoder` and `decoder`, and is described by its own
file. The encoder's pooler, which nothing here reads, is neither read nor written.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

from zoo.architectures import bert, find_architecture, roberta
from zoo.architectures.architecture import Architecture, Fields
from zoo.architectures.memory_decoders import MEMORY_DECODERS, Decoding
from zoo.architectures.vit import TINY as VIT_TINY
from zoo.config import TransformerConfig
from zoo.weights import CheckpointError, Rule, linear

ENCODERS = {
    "encoder-decoder": tuple(found.model_type for found in (*bert.ARCHITECTURES, *roberta.ARCHITECTURES)),
    "vision-encoder-decoder": ("beit", "deit", "dinov2", "vit"),
}
"""By the whole's `model_type`."""


def compose(fields: Fields) -> Architecture:
    """The architecture of the two models that a config.json names."""
    kinds, whole = {}, _architecture(fields["model_type"])
    for side, known in (("encoder", ENCODERS[whole.model_type]), ("decoder", tuple(MEMORY_DECODERS))):
        kinds[side] = fields.fields(side)["model_type"]
        if kinds[side] not in known:
            raise CheckpointError(
                f"{fields.origin}: {side}.model_type is {kinds[side]!r}; zoo joins {', '.join(sorted(known))}"
            )
    return dataclasses.replace(whole, **_functions(**kinds), compose=None)


def _functions(encoder: str, decoder: str) -> dict[str, Any]:
    return {
        name: functools.partial(function, encoder=encoder, decoder=decoder)
        for name, function in (
            ("config_from_hf", config_from_hf),
            ("config_to_hf", config_to_hf),
            ("weights", weights),
        )
    }


def config_from_hf(fields: Fields, head: str, *, encoder: str, decoder: str) -> TransformerConfig:
    """Translate the configuration of the whole; `encoder` and `decoder` are the model types."""
    del head
    fields.expect(tie_encoder_decoder=False)
    source = _architecture(encoder).config_from_hf(fields.fields("encoder"), "base")
    own = fields.fields("decoder")
    target = MEMORY_DECODERS[decoder].from_hf(own)
    if target.head.tied and not fields.are_tied(*_tied_names(decoder, target)):
        target = target._replace(head=dataclasses.replace(target.head, tied=False))
    width = target.stack.width
    same = source.output_stack.width == width or own.get("cross_attention_hidden_size") is not None
    return TransformerConfig(
        embedding=source.embedding,
        encoder=source.encoder,
        decoder_embedding=target.embedding,
        decoder=target.stack,
        memory_width=None if same else width,
        head=target.head,
    )


def _architecture(model_type: str) -> Architecture:
    found = find_architecture(model_type)
    assert found is not None  # it is one of ENCODERS
    return found


def _tied_names(decoder: str, target: Decoding) -> tuple[str, str]:
    """The names of the token table and of the output layer that files may keep beside it."""
    row = next(row for row in MEMORY_DECODERS[decoder].weights(target) if row.ours == ("embedder/token/embedding",))
    return f"decoder.{row.theirs[0]}", f"decoder.{row.aliases[0]}"


def _decoding(config: TransformerConfig) -> Decoding:
    assert config.decoder is not None
    return Decoding(config.target_embedding, config.decoder, config.head)


def config_to_hf(config: TransformerConfig, *, encoder: str, decoder: str) -> dict[str, Any]:
    """Write the configuration of the whole."""
    source = TransformerConfig(embedding=config.embedding, encoder=config.encoder)
    target = MEMORY_DECODERS[decoder].to_hf(_decoding(config))
    width = config.encoder.width
    if config.memory_width is None and width != config.output_stack.width:
        target["cross_attention_hidden_size"] = width
    return {
        "encoder": _architecture(encoder).config_to_hf(source) | {"model_type": encoder},
        "decoder": target | {"model_type": decoder, "is_decoder": True, "add_cross_attention": True},
    }


def weights(config: TransformerConfig, head: str, *, encoder: str, decoder: str) -> list[Rule]:
    """The tables of both, under their names."""
    del head
    architecture = _architecture(encoder)
    source = TransformerConfig(embedding=config.embedding, encoder=config.encoder)
    rows = [row for row in architecture.weights(source, "base") if not row.ours[0].startswith("head/")]
    return [
        *(_named(row, "encoder.", architecture.prefix) for row in rows),
        *(
            _named(row, "decoder.", "", "decoder_embedder/")
            for row in MEMORY_DECODERS[decoder].weights(_decoding(config))
        ),
        *linear("enc_to_dec_proj", "memory_projection"),
    ]


def _named(row: Rule, part: str, prefix: str, embedder: str = "embedder/") -> Rule:
    """A row with the tensors' names in the whole, where they lack `prefix`, and the embedder's name in it."""
    return dataclasses.replace(
        row,
        theirs=tuple(part + name.removeprefix(prefix) for name in row.theirs),
        aliases=tuple(part + name.removeprefix(prefix) for name in row.aliases),
        ours=tuple(
            embedder + path.removeprefix("embedder/") if path.startswith("embedder/") else path for path in row.ours
        ),
    )


_IGNORED = (
    r"^encoder\.pooler\.",
    r"^encoder\.embeddings\.mask_token$",
    r"relative_position_index$",
    r"embeddings\.position_ids$",
    r"\.attn\.(masked_)?bias$",
    r"crossattention\.(masked_)?bias$",
    r"embed_positions\.(_float_tensor|weights)$",
    r"\.version$",
)
_SPECIAL_IDS = {"bos_token_id": 3, "eos_token_id": 2, "pad_token_id": 1}


def _tiny(encoder: Mapping[str, Any], decoder: Mapping[str, Any]) -> dict[str, Any]:
    halves = {
        "encoder": dict(encoder),
        "decoder": dict(decoder) | {"is_decoder": True, "add_cross_attention": True} | _SPECIAL_IDS,
    }
    for half in halves.values():
        half.pop("id2label", None)
    return halves | _SPECIAL_IDS | {"decoder_start_token_id": 3}


ARCHITECTURES = [
    Architecture(
        model_type="encoder-decoder",
        classes={"seq2seq_lm": "EncoderDecoderModel"},
        **_functions("bert", "bert"),
        compose=compose,
        ignored=_IGNORED,
        tiny=_tiny(
            bert.TINY | {"model_type": "bert", "vocab_size": 53, "num_hidden_layers": 2},
            bert.TINY | {"model_type": "bert", "vocab_size": 41, "hidden_size": 16, "num_hidden_layers": 2},
        ),
    ),
    Architecture(
        model_type="vision-encoder-decoder",
        classes={"seq2seq_lm": "VisionEncoderDecoderModel"},
        **_functions("vit", "gpt2"),
        compose=compose,
        ignored=_IGNORED,
        tiny=_tiny(
            VIT_TINY | {"model_type": "vit"},
            {
                "model_type": "gpt2",
                "vocab_size": 71,
                "n_positions": 48,
                "n_embd": 16,
                "n_layer": 3,
                "n_head": 4,
                "n_inner": 40,
                "activation_function": "gelu_new",
            },
        ),
    ),
]
