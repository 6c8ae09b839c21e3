"""CLIP (Radford et al. 2021): a text and an image encoder whose vectors are compared, together and apart."""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from zoo.architectures.architecture import Architecture, Fields, Part, activation_name
from zoo.architectures.vit import patches_from_hf
from zoo.config import (
    AttentionConfig,
    ClassifierHead,
    DualConfig,
    EmbeddingConfig,
    EmbeddingHead,
    LearnedPositions,
    MlpConfig,
    ModelConfig,
    NormConfig,
    StackConfig,
    TransformerConfig,
)
from zoo.weights import LINEAR_OF_HEADS, Rule, linear, norm, patches, rule, table, under

TEXT_DEFAULTS = {
    "vocab_size": 49408,
    "hidden_size": 512,
    "intermediate_size": 2048,
    "num_hidden_layers": 12,
    "num_attention_heads": 8,
    "max_position_embeddings": 77,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
    "eos_token_id": 49407,
    "projection_dim": 512,
}
IMAGE_DEFAULTS = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
    "projection_dim": 512,
}
LEGACY_EOS_TOKEN_ID = 2
"""What the first release's files say; the id that ends a text is the highest of all."""


def tower_fields(fields: Fields, name: str) -> Fields:
    """The configuration of one tower: `name` is "text_config" or "vision_config".

    Old files have it twice, and the reference believes "text_config_dict".
    """
    own = fields.fields(name if fields.get(f"{name}_dict") is None else f"{name}_dict")
    shared = {name: fields.get(name) for name in ("id2label", "num_labels")}
    return own.replaced(projection_dim=fields.get("projection_dim", 512), **shared)


def text_from_hf(fields: Fields, head: str) -> TransformerConfig:
    """Translate a CLIPTextConfig; `head` is "base", "embedding", or "dual" for a vector to be compared."""
    fields = fields.with_defaults(TEXT_DEFAULTS)
    end = fields["eos_token_id"]
    return TransformerConfig(
        embedding=text_embedding(fields),
        encoder=tower_stack(fields, causal=True),
        head=EmbeddingHead(
            pooling="token",
            token_id=None if end == LEGACY_EOS_TOKEN_ID else end,
            normalize=head == "dual",
            projection=None if head == "base" else fields["projection_dim"],
        ),
    )


def text_embedding(fields: Fields) -> EmbeddingConfig:
    """Tokens and positions."""
    positions = LearnedPositions(max_length=fields["max_position_embeddings"])
    return EmbeddingConfig(width=fields["hidden_size"], vocab_size=fields["vocab_size"], positions=positions)


def image_from_hf(fields: Fields, head: str) -> TransformerConfig:
    """Translate a CLIPVisionConfig; `head` as for texts, or "image_classification"."""
    fields = fields.with_defaults(IMAGE_DEFAULTS)
    patch = patches_from_hf(fields, patch_size=32, bias=False)
    stack = tower_stack(fields, final_norm=False)
    if head == "image_classification":
        result = ClassifierHead(num_classes=fields.num_labels(), pooling="patch_mean")
    else:
        result = EmbeddingHead(
            pooling="first",
            norm=stack.norm,
            normalize=head == "dual",
            projection=None if head == "base" else fields["projection_dim"],
        )
    return TransformerConfig(
        embedding=EmbeddingConfig(
            width=stack.width,
            patches=patch,
            positions=LearnedPositions(max_length=patch.sequence_length),
            norm=stack.norm,
        ),
        encoder=stack,
        head=result,
    )


def tower_stack(fields: Fields, **options: Any) -> StackConfig:
    """The encoder of either tower."""
    width, heads = fields["hidden_size"], fields["num_attention_heads"]
    return StackConfig(
        num_layers=fields["num_hidden_layers"],
        width=width,
        attention=AttentionConfig(
            num_heads=heads,
            head_size=width // heads,
            biases=("query", "key", "value", "output"),
            dropout=fields.get("attention_dropout", 0.0),
        ),
        mlp=MlpConfig(
            hidden_size=fields["intermediate_size"], activation=fields.activation("hidden_act", "gelu"), bias=True
        ),
        norm=NormConfig(epsilon=fields["layer_norm_eps"]),
        **options,
    )


def text_to_hf(config: TransformerConfig) -> dict[str, Any]:
    """Write a CLIPTextConfig."""
    end = config.head.token_id
    return _projection_to_hf(config) | text_stack_to_hf(config) | {
        "eos_token_id": LEGACY_EOS_TOKEN_ID if end is None else end
    }  # fmt: skip


def text_stack_to_hf(config: TransformerConfig) -> dict[str, Any]:
    """The fields of a text tower."""
    embedding = config.embedding
    return tower_to_hf(config) | {
        "vocab_size": embedding.vocab_size,
        "max_position_embeddings": embedding.positions.max_length,
    }


def image_to_hf(config: TransformerConfig) -> dict[str, Any]:
    """Write a CLIPVisionConfig."""
    return _projection_to_hf(config) | image_stack_to_hf(config)


def image_stack_to_hf(config: TransformerConfig) -> dict[str, Any]:
    """The fields of an image tower."""
    patch = config.embedding.patches
    return tower_to_hf(config) | {
        "image_size": patch.image_size,
        "patch_size": patch.patch_size,
        "num_channels": patch.num_channels,
    }


def tower_to_hf(config: TransformerConfig) -> dict[str, Any]:
    """The fields that both towers have."""
    stack = config.output_stack
    return {
        "hidden_size": stack.width,
        "intermediate_size": stack.mlp.hidden_size,
        "num_hidden_layers": stack.num_layers,
        "num_attention_heads": stack.attention.num_heads,
        "hidden_act": activation_name(stack.mlp.activation),
        "layer_norm_eps": stack.norm.epsilon,
        "attention_dropout": stack.attention.dropout,
    }


def _projection_to_hf(config: TransformerConfig) -> dict[str, Any]:
    width = config.head.projection if isinstance(config.head, EmbeddingHead) else None
    return {} if width is None else {"projection_dim": width}


def text_weights(config: TransformerConfig, head: str) -> list[Rule]:
    """The table of the text tower."""
    del config
    return [
        *text_rules(),
        *([] if head == "base" else linear("text_projection", "head/projection")),
    ]


def text_rules() -> list[Rule]:
    """The rows of a text tower without its head."""
    return [
        *table("text_model.embeddings.token_embedding", "embedder/token"),
        *table("text_model.embeddings.position_embedding", "embedder/position"),
        *layer_rules("text_model.encoder.layers.{layer}"),
        *norm("text_model.final_layer_norm", "encoder/final_norm"),
    ]


def image_weights(config: TransformerConfig, head: str) -> list[Rule]:
    """The table of the image tower."""
    return [
        rule("vision_model.embeddings.class_embedding", "embedder/patch/class_token"),
        *image_rules(config),
        *norm("vision_model.pre_layrnorm", "embedder/norm"),
        *norm("vision_model.post_layernorm", "head/norm"),
        *linear("visual_projection", "head/projection"),
        *(linear("classifier", "head/logits") if head == "image_classification" else []),
    ]


def image_rules(config: TransformerConfig) -> list[Rule]:
    """The rows of an image tower without norms around it."""
    patch = config.embedding.patches
    cut = patches(patch.patch_size, patch.num_channels)
    return [
        *linear("vision_model.embeddings.patch_embedding", "embedder/patch/projection", cut),
        *table("vision_model.embeddings.position_embedding", "embedder/position"),
        *layer_rules("vision_model.encoder.layers.{layer}"),
    ]


def layer_rules(layer: str) -> list[Rule]:
    """The rows of a layer."""
    return [
        *linear(f"{layer}.self_attn.q_proj", "encoder/attention/query"),
        *linear(f"{layer}.self_attn.k_proj", "encoder/attention/key"),
        *linear(f"{layer}.self_attn.v_proj", "encoder/attention/value"),
        *linear(f"{layer}.self_attn.out_proj", "encoder/attention/output", LINEAR_OF_HEADS),
        *norm(f"{layer}.layer_norm1", "encoder/attention_input_norm"),
        *norm(f"{layer}.layer_norm2", "encoder/mlp_input_norm"),
        *linear(f"{layer}.mlp.fc1", "encoder/mlp/up"),
        *linear(f"{layer}.mlp.fc2", "encoder/mlp/down"),
    ]


TINY_TOWER = {
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
TINY_TEXT = TINY_TOWER | {"vocab_size": 99, "max_position_embeddings": 40, "eos_token_id": 16, "pad_token_id": 1}
TINY_IMAGE = TINY_TOWER | {"image_size": 16, "patch_size": 4}
POSITION_IDS = r"embeddings\.position_ids$"
SCORES = r"^logit_(scale|bias)$"


class Tower(NamedTuple):
    """How one of the two models is described, by itself and as a part."""

    from_hf: Callable[[Fields, str], TransformerConfig]
    to_hf: Callable[[TransformerConfig], dict[str, Any]]
    weights: Callable[[TransformerConfig, str], Sequence[Rule]]
    tiny: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Dual:
    """Two towers: together, and each by itself as the reference has it too."""

    model_type: str
    name: str
    """With which the reference's names of classes begin."""
    text: Tower
    image: Tower
    scores: Sequence[Rule]
    """The rows of what scales the scores, and of their offset."""
    projected: bool
    """Whether vectors to be compared are a projection of what a tower gives by itself."""
    unread: str
    """A pattern of the image tower's tensors that its classifier has no use for."""
    tiny: Mapping[str, Any]

    def from_hf(self, fields: Fields, head: str) -> ModelConfig:
        """Translate the configuration of both; "image_classification" is of the image tower alone."""
        images = tower_fields(fields, "vision_config")
        if head == "image_classification":
            return self.image.from_hf(images, head)
        texts = self.text.from_hf(tower_fields(fields, "text_config"), "dual")
        return DualConfig(text=texts, image=self.image.from_hf(images, "dual"), bias=len(self.scores) > 1)

    def to_hf(self, config: ModelConfig) -> dict[str, Any]:
        """Write the configuration of both."""
        if isinstance(config, TransformerConfig):
            return {"vision_config": self.image.to_hf(config)}
        projection = {"projection_dim": config.text.head.projection} if self.projected else {}
        return {
            "text_config": self.text.to_hf(config.text),
            "vision_config": self.image.to_hf(config.image),
            **projection,
        }

    def weights(self, config: ModelConfig, head: str) -> Sequence[Rule]:
        """The table of both."""
        if isinstance(config, TransformerConfig):
            return self.image.weights(config, head)
        texts, images = self.text.weights(config.text, "dual"), self.image.weights(config.image, "dual")
        return [*under("text", texts), *under("image", images), *self.scores]

    def architectures(self) -> list[Architecture]:
        """The whole, the texts' tower and the images'."""
        heads = {"": "base"} | ({"_embedding": "embedding"} if self.projected else {})
        kinds = {"text": "text", "image": "vision"}
        whole = Architecture(
            model_type=self.model_type,
            classes={"base": f"{self.name}Model", "image_classification": f"{self.name}ForImageClassification"},
            config_from_hf=self.from_hf,
            config_to_hf=self.to_hf,
            weights=self.weights,
            ignored=(POSITION_IDS, self.unread),
            parts={side + end: self._part(kind, head) for end, head in heads.items() for side, kind in kinds.items()},
            tiny=dict(self.tiny) | {"*image_classification": {"id2label": {"0": "a", "1": "b", "2": "c"}}},
        )
        texts = self._alone("text", self.text, r"^(vision_model|visual_projection)\.")
        return [whole, texts, self._alone("vision", self.image, r"^(text_model|text_projection)\.")]

    def _part(self, kind: str, head: str) -> Part:
        fields = functools.partial(tower_fields, name=f"{kind}_config")
        return Part(model_type=f"{self.model_type}_{kind}_model", head=head, fields=fields)

    def _alone(self, kind: str, tower: Tower, others: str) -> Architecture:
        name = f"{self.name}{kind.title()}Model"
        return Architecture(
            model_type=f"{self.model_type}_{kind}_model",
            classes={"base": name} | ({"embedding": f"{name}WithProjection"} if self.projected else {}),
            config_from_hf=tower.from_hf,
            config_to_hf=tower.to_hf,
            weights=tower.weights,
            prefix=f"{kind}_model.",
            ignored=(POSITION_IDS, SCORES, others),
            tiny=tower.tiny,
        )


ARCHITECTURES = Dual(
    model_type="clip",
    name="CLIP",
    text=Tower(
        text_from_hf,
        text_to_hf,
        text_weights,
        TINY_TEXT | {"projection_dim": 20, "*embedding": {"eos_token_id": LEGACY_EOS_TOKEN_ID}},
    ),
    image=Tower(image_from_hf, image_to_hf, image_weights, TINY_IMAGE | {"projection_dim": 20}),
    scores=[rule("logit_scale", "logit_scale")],
    projected=True,
    unread=r"^vision_model\.post_layernorm\.",
    tiny={"text_config": TINY_TEXT, "vision_config": TINY_IMAGE | {"hidden_size": 32}, "projection_dim": 20},
).architectures()
