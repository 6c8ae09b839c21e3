"""Images to text by two models joined: ViT, DeiT, BEiT or DINOv2, and a decoder that attends to it (Li et al. 2021).

Each half keeps its own config.json and names of tensors, under `encoder` and `decoder`, and is described by its own
file. The encoder's pooler, which nothing here reads, is neither read nor written.
"""

import dataclasses
import functools
from typing import Any

from zoo.architectures import find_architecture
from zoo.architectures.architecture import Architecture, Fields
from zoo.architectures.memory_decoders import MEMORY_DECODERS, Decoding
from zoo.architectures.vit import TINY as VIT_TINY
from zoo.config import TransformerConfig
from zoo.weights import CheckpointError, Rule, linear

ENCODERS = ("beit", "deit", "dinov2", "vit")


def compose(fields: Fields) -> Architecture:
    """The architecture of the two models that a config.json names."""
    kinds = {}
    for side, known in (("encoder", ENCODERS), ("decoder", tuple(MEMORY_DECODERS))):
        kinds[side] = fields.fields(side)["model_type"]
        if kinds[side] not in known:
            raise CheckpointError(
                f"{fields.origin}: {side}.model_type is {kinds[side]!r}; zoo joins {', '.join(sorted(known))}"
            )
    return dataclasses.replace(
        ARCHITECTURES[0],
        config_from_hf=functools.partial(config_from_hf, **kinds),
        config_to_hf=functools.partial(config_to_hf, **kinds),
        weights=functools.partial(weights, **kinds),
        compose=None,
    )


def config_from_hf(fields: Fields, head: str, *, encoder: str, decoder: str) -> TransformerConfig:
    """Translate a VisionEncoderDecoderConfig, `encoder` and `decoder` being the model types."""
    del head
    images = _architecture(encoder).config_from_hf(fields.fields("encoder"), "base")
    own = fields.fields("decoder")
    text = MEMORY_DECODERS[decoder].from_hf(own)
    if text.head.tied and not fields.are_tied(*_tied_names(decoder, text)):
        text = text._replace(head=dataclasses.replace(text.head, tied=False))
    width = text.stack.width
    same = images.output_stack.width == width or own.get("cross_attention_hidden_size") is not None
    return TransformerConfig(
        embedding=images.embedding,
        encoder=images.encoder,
        decoder_embedding=text.embedding,
        decoder=text.stack,
        memory_width=None if same else width,
        head=text.head,
    )


def _architecture(model_type: str) -> Architecture:
    found = find_architecture(model_type)
    assert found is not None  # `compose` has seen that it is one of ENCODERS
    return found


def _tied_names(decoder: str, text: Decoding) -> tuple[str, str]:
    """The names of the token table and of the output layer that files may keep beside it."""
    row = next(row for row in MEMORY_DECODERS[decoder].weights(text) if row.ours == ("embedder/token/embedding",))
    return f"decoder.{row.theirs[0]}", f"decoder.{row.aliases[0]}"


def _decoding(config: TransformerConfig) -> Decoding:
    assert config.decoder is not None
    return Decoding(config.target_embedding, config.decoder, config.head)


def config_to_hf(config: TransformerConfig, *, encoder: str, decoder: str) -> dict[str, Any]:
    """Write a VisionEncoderDecoderConfig."""
    images = TransformerConfig(embedding=config.embedding, encoder=config.encoder)
    text = MEMORY_DECODERS[decoder].to_hf(_decoding(config))
    width = config.encoder.width
    if config.memory_width is None and width != config.output_stack.width:
        text["cross_attention_hidden_size"] = width
    return {
        "encoder": _architecture(encoder).config_to_hf(images) | {"model_type": encoder},
        "decoder": text | {"model_type": decoder, "is_decoder": True, "add_cross_attention": True},
    }


def weights(config: TransformerConfig, head: str, *, encoder: str, decoder: str) -> list[Rule]:
    """The tables of both, under their names."""
    del head
    architecture = _architecture(encoder)
    images = TransformerConfig(embedding=config.embedding, encoder=config.encoder)
    rows = [row for row in architecture.weights(images, "base") if not row.ours[0].startswith("head/")]
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


_SPECIAL_IDS = {"bos_token_id": 3, "eos_token_id": 2, "pad_token_id": 1}

ARCHITECTURES = [
    Architecture(
        model_type="vision-encoder-decoder",
        classes={"seq2seq_lm": "VisionEncoderDecoderModel"},
        config_from_hf=functools.partial(config_from_hf, encoder="vit", decoder="gpt2"),
        config_to_hf=functools.partial(config_to_hf, encoder="vit", decoder="gpt2"),
        weights=functools.partial(weights, encoder="vit", decoder="gpt2"),
        compose=compose,
        ignored=(
            r"^encoder\.pooler\.",
            r"^encoder\.embeddings\.mask_token$",
            r"relative_position_index$",
            r"embeddings\.position_ids$",
            r"\.attn\.(masked_)?bias$",
            r"crossattention\.(masked_)?bias$",
            r"embed_positions\.(_float_tensor|weights)$",
            r"\.version$",
        ),
        tiny={
            "encoder": {name: value for name, value in VIT_TINY.items() if name != "id2label"} | {"model_type": "vit"},
            "decoder": {
                "model_type": "gpt2",
                "vocab_size": 71,
                "n_positions": 48,
                "n_embd": 16,
                "n_layer": 3,
                "n_head": 4,
                "n_inner": 40,
                "activation_function": "gelu_new",
                "is_decoder": True,
                "add_cross_attention": True,
                **_SPECIAL_IDS,
            },
            **_SPECIAL_IDS,
            "decoder_start_token_id": 3,
        },
    )
]
