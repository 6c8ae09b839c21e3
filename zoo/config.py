"""Frozen descriptions of a model: what the network is, never how it is run.

`TransformerConfig(embedding, encoder, decoder, head)` describes every family; which stacks exist decides whether
it is encoder-only, decoder-only or encoder-decoder. Variation is an optional sub-config or a `Literal`, and each
field exists because a published architecture needs it. `None` means absent. Compute dtype, rematerialisation and
scanning are arguments of `zoo.transformer.Transformer`, because they do not change the function.

This file needs the standard library only.
"""

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal, get_args

Activation = Literal["gelu", "gelu_tanh", "quick_gelu", "relu", "relu_squared", "silu", "tanh"]
NormSlot = Literal["input", "output", "residual"]
Span = Literal["global", "local"]
BiasSlot = Literal["query", "key", "value", "output"]
PositionTerm = Literal["content_to_position", "position_to_content"]
Pooling = Literal["first", "last", "end", "mean", "mean_with_padding", "max", "patch_mean", "first_and_patch_mean"]
"""What stands for a sequence: its first position; the last that is no padding; the last, padding or not (SigLIP); the
mean, padding left out or counted (ImageGPT); the largest values, padding left out; the mean of all positions after the
first; the first beside that mean (DINOv2)."""


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


def _positive(config: Any, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        _require(value > 0, f"{type(config).__name__}.{name} is {value}; give a number above zero")


def _fraction(config: Any, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        _require(0 <= value < 1, f"{type(config).__name__}.{name} is {value}; give a rate in [0, 1)")


def _one_of(config: Any, name: str, literal: Any) -> None:
    value, choices = getattr(config, name), get_args(literal)
    _require(
        value in choices,
        f"{type(config).__name__}.{name} is {value!r}; choose one of {', '.join(map(repr, choices))}",
    )


def _subset(config: Any, name: str, literal: Any) -> None:
    value, choices = getattr(config, name), get_args(literal)
    wrong = [item for item in value if item not in choices]
    _require(
        not wrong,
        f"{type(config).__name__}.{name} contains {wrong}; choose from {', '.join(map(repr, choices))}",
    )
    repeated = len(set(value)) != len(value) and literal is not Span
    _require(not repeated, f"{type(config).__name__}.{name} is {value}; name each slot once")


@dataclass(frozen=True, kw_only=True)
class NormConfig:
    """Layer norm (Ba et al. 2016) or RMS norm (Zhang & Sennrich 2019) over the last axis, computed in float32."""

    kind: Literal["layer", "rms"] = "layer"
    epsilon: float = 1e-5
    """Added to the variance (layer) or mean square (rms)."""
    scale: bool = True
    """Multiply by a learned scale; False also leaves the offset out (OLMo, Galactica)."""
    bias: bool = True
    """Add a learned offset after the scale."""
    unit_offset: bool = False
    """Store the scale as its difference from one, as Gemma does."""

    def __post_init__(self):
        _one_of(self, "kind", Literal["layer", "rms"])
        _positive(self, "epsilon")
        _require(
            self.scale or not (self.bias or self.unit_offset),
            f"NormConfig.scale is False with bias={self.bias} and unit_offset={self.unit_offset}; set them to False",
        )


@dataclass(frozen=True, kw_only=True)
class LinearScaling:
    """Position interpolation (Chen et al. 2023): positions divided by `factor`."""

    factor: float

    def __post_init__(self):
        _positive(self, "factor")


@dataclass(frozen=True, kw_only=True)
class DynamicScaling:
    """NTK-aware base change that grows with the sequence once it is longer than `original_length`."""

    factor: float
    original_length: int

    def __post_init__(self):
        _positive(self, "factor", "original_length")


@dataclass(frozen=True, kw_only=True)
class Llama3Scaling:
    """Llama 3.1: low frequencies divided by `factor`, high ones kept, a linear blend between the two."""

    factor: float
    low_frequency_factor: float = 1.0
    high_frequency_factor: float = 4.0
    original_length: int = 8192

    def __post_init__(self):
        _positive(self, "factor", "low_frequency_factor", "high_frequency_factor", "original_length")
        _require(
            self.high_frequency_factor > self.low_frequency_factor,
            f"Llama3Scaling.high_frequency_factor is {self.high_frequency_factor}; "
            f"give more than low_frequency_factor ({self.low_frequency_factor})",
        )


@dataclass(frozen=True, kw_only=True)
class YarnScaling:
    """YaRN (Peng et al. 2023): interpolation by frequency band, and a temperature on the rotated vectors."""

    factor: float
    original_length: int
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float
    """Multiplies cosine and sine; the paper's value is 0.1 ln(factor) + 1."""
    truncate: bool = True
    """Round the band's edges to whole dimensions."""

    def __post_init__(self):
        _positive(self, "factor", "original_length", "beta_fast", "beta_slow", "attention_factor")


@dataclass(frozen=True, kw_only=True)
class LongRopeScaling:
    """LongRoPE (Ding et al. 2024): one divisor a frequency, `long_factors` past `original_length`."""

    short_factors: tuple[float, ...]
    long_factors: tuple[float, ...]
    original_length: int
    attention_factor: float

    def __post_init__(self):
        _positive(self, "original_length", "attention_factor")
        _require(
            len(self.short_factors) == len(self.long_factors),
            f"LongRopeScaling has {len(self.short_factors)} short and {len(self.long_factors)} long factors; "
            "give one of each per rotated pair",
        )


RotaryScaling = LinearScaling | DynamicScaling | Llama3Scaling | YarnScaling | LongRopeScaling


@dataclass(frozen=True, kw_only=True)
class RotaryConfig:
    """Rotary position embedding (Su et al. 2021) of queries and keys."""

    base: float = 10_000.0
    size: int | None = None
    """Leading dimensions of each head that rotate; None rotates the whole head."""
    pairing: Literal["half", "interleaved"] = "half"
    """Rotate dimension i with i + size/2 (GPT-NeoX, Llama) or 2i with 2i + 1 (GPT-J)."""
    scaling: RotaryScaling | None = None

    def __post_init__(self):
        _positive(self, "base")
        _one_of(self, "pairing", Literal["half", "interleaved"])
        if self.size is not None:
            _require(
                self.size > 0 and self.size % 2 == 0,
                f"RotaryConfig.size is {self.size}; give an even number above zero",
            )


@dataclass(frozen=True, kw_only=True)
class RelativeBiasConfig:
    """T5's relative position bias (Raffel et al. 2020)."""

    num_buckets: int = 32
    max_distance: int = 128
    per_layer: bool = False
    """Each layer has a table of its own (UMT5); else one serves all layers of a stack."""

    def __post_init__(self):
        _require(
            self.num_buckets >= 4 and self.num_buckets % 2 == 0,
            f"RelativeBiasConfig.num_buckets is {self.num_buckets}; give an even number of at least 4",
        )
        _require(
            self.max_distance > self.num_buckets // 2,
            f"RelativeBiasConfig.max_distance is {self.max_distance}; give more than num_buckets / 2",
        )


@dataclass(frozen=True, kw_only=True)
class GridBiasConfig:
    """A bias for each vertical and horizontal distance of two patches, and three for the class token (BEiT)."""

    rows: int
    """Of patches, in the images that the table was learned on; it is resampled for others."""
    columns: int
    per_layer: bool = True
    """A table for each layer, or one for all."""

    def __post_init__(self):
        _positive(self, "rows", "columns")


@dataclass(frozen=True, kw_only=True)
class AlibiConfig:
    """Linear biases (Press et al. 2022) with the paper's slopes for the stack's number of heads."""

    scale: float = 1.0
    """Multiplies every slope."""

    def __post_init__(self):
        _positive(self, "scale")


@dataclass(frozen=True, kw_only=True)
class DisentangledConfig:
    """Scores between contents and distances (He et al. 2021), from one table of distances for all layers of a stack."""

    span: int
    """Rows of the table for distances to each side."""
    max_distance: int | None = None
    """The upper half of the span grows by a constant ratio up to this distance; None: one row a distance."""
    terms: tuple[PositionTerm, ...] = ("content_to_position", "position_to_content")
    shared: bool = False
    """Project distances with the maps of queries and keys, rather than with maps of their own."""
    norm: NormConfig | None = None
    """Normalise the table."""

    def __post_init__(self):
        _subset(self, "terms", PositionTerm)
        _require(len(self.terms) > 0, "DisentangledConfig.terms is empty; name one, or leave DisentangledConfig out")
        _require(
            self.span >= 4 and self.span % 2 == 0,
            f"DisentangledConfig.span is {self.span}; give an even number of at least 4",
        )
        _require(
            self.max_distance is None or self.max_distance > self.span // 2 + 1,
            f"DisentangledConfig.max_distance is {self.max_distance}; give more than span / 2 + 1",
        )


@dataclass(frozen=True, kw_only=True)
class AttentionConfig:
    """Multi-head attention with grouped key/value heads."""

    num_heads: int
    """Query heads, N."""
    head_size: int
    """Size of each head's queries, keys and values, H."""
    num_kv_heads: int | None = None
    """Key/value heads (grouped-query attention); None gives every query head its own."""
    biases: tuple[BiasSlot, ...] = ()
    """Which projections add a learned offset."""
    scale: float | None = None
    """Multiplies the scores; None is head_size ** -0.5."""
    softcap: float | None = None
    """Scores become softcap * tanh(score / softcap) (Gemma 2)."""
    qk_norm: NormConfig | None = None
    """Normalise queries and keys before rotating them."""
    qk_norm_over: Literal["head", "projection"] = "head"
    """Normalise each head (Qwen3, Gemma 3) or the whole projection (OLMo-2)."""
    sinks: bool = False
    """A learned logit per head that takes part in the softmax and has no value (GPT-OSS)."""
    rotary: RotaryConfig | None = None
    disentangled: DisentangledConfig | None = None
    dropout: float = 0.0
    """Rate at which attention weights are dropped in training."""

    def __post_init__(self):
        _positive(self, "num_heads", "head_size")
        _fraction(self, "dropout")
        _subset(self, "biases", BiasSlot)
        _one_of(self, "qk_norm_over", Literal["head", "projection"])
        _require(
            self.softcap is None or self.softcap > 0,
            f"AttentionConfig.softcap is {self.softcap}; give a number above zero, or None for no cap",
        )
        _require(
            self.kv_heads > 0 and self.num_heads % self.kv_heads == 0,
            f"AttentionConfig.num_kv_heads is {self.num_kv_heads}; give a divisor of num_heads ({self.num_heads})",
        )
        _require(
            self.qk_norm is not None or self.qk_norm_over == "head",
            "AttentionConfig.qk_norm_over is set without qk_norm; give a NormConfig or leave it at 'head'",
        )
        _require(
            self.disentangled is None or self.num_kv_heads is None,
            "AttentionConfig.disentangled with num_kv_heads; distances need a key head for each query head",
        )
        _rotary_fits(self.rotary, self.head_size)

    @property
    def kv_heads(self) -> int:
        """Number of key/value heads, K."""
        return self.num_heads if self.num_kv_heads is None else self.num_kv_heads


def _rotary_fits(rotary: RotaryConfig | None, head_size: int) -> None:
    if rotary is None:
        return
    size = head_size if rotary.size is None else rotary.size
    _require(
        size <= head_size and size % 2 == 0,
        f"rotary size {size} does not fit heads of size {head_size}; give an even number of at most {head_size}",
    )
    if isinstance(rotary.scaling, LongRopeScaling):
        count = len(rotary.scaling.short_factors)
        _require(
            count == size // 2,
            f"LongRopeScaling has {count} factors; give one per rotated pair ({size // 2})",
        )


@dataclass(frozen=True, kw_only=True)
class LocalConfig:
    """What layers marked "local" in a stack's pattern do differently from global ones.

    With neither window nor chunk they see as far as the others and differ in their rotation alone (SmolLM3).
    """

    window: tuple[int, int] | None = None
    """Keys visible to the left and to the right of the query; the query itself is always visible."""
    chunk: int | None = None
    """Keys are visible within the query's own chunk of this many positions (Llama 4)."""
    rotary: RotaryConfig | None = None
    """Rotation of local layers; it replaces the attention's own, so repeat that one where both are the same."""

    def __post_init__(self):
        _require(
            self.window is None or self.chunk is None,
            f"LocalConfig has window={self.window} and chunk={self.chunk}; give at most one of the two",
        )
        if self.window is not None:
            _require(
                min(self.window) >= 0,
                f"LocalConfig.window is {self.window}; give two numbers of at least zero",
            )
        if self.chunk is not None:
            _positive(self, "chunk")


@dataclass(frozen=True, kw_only=True)
class ExpertsConfig:
    """A mixture of experts (Shazeer et al. 2017): each token goes to `num_selected` of `num_experts`, none dropped."""

    num_experts: int
    num_selected: int = 2
    weights: Literal["softmax_then_select", "select_then_softmax"] = "select_then_softmax"
    """Whether the selected experts' weights sum to one (Mixtral) or keep their share of all experts."""
    router_bias: bool = False
    """Add a learned offset to the router's logits."""
    balance_loss: float = 0.01
    """Weight of the load-balancing loss (Fedus et al. 2022, eq. 4) in `Output.aux_loss`."""

    def __post_init__(self):
        _positive(self, "num_experts", "num_selected")
        _one_of(self, "weights", Literal["softmax_then_select", "select_then_softmax"])
        _require(self.balance_loss >= 0, f"ExpertsConfig.balance_loss is {self.balance_loss}; give at least zero")
        _require(
            self.num_selected <= self.num_experts,
            f"ExpertsConfig.num_selected is {self.num_selected}; give at most num_experts ({self.num_experts})",
        )


@dataclass(frozen=True, kw_only=True)
class MlpConfig:
    """The feed-forward branch: down(act(up(x))), or down(act(gate(x)) * up(x)) when gated (Shazeer 2020)."""

    hidden_size: int
    """Width between the two maps, F; each expert's, with experts."""
    activation: Activation = "gelu"
    gated: bool = False
    """Multiply by a second, activated map of the input."""
    clamp: float | None = None
    """The gate is at most this, and the other map within plus and minus this, and raised by one (GPT-OSS)."""
    bias: bool = False
    """Learned offsets in both maps."""
    experts: ExpertsConfig | None = None

    def __post_init__(self):
        _positive(self, "hidden_size")
        _one_of(self, "activation", Activation)
        _require(
            self.clamp is None or (self.gated and self.clamp > 0),
            f"MlpConfig.clamp is {self.clamp} with gated={self.gated}; give a number above zero to a gated MLP",
        )


@dataclass(frozen=True, kw_only=True)
class ConvolutionConfig:
    """A convolution of the embeddings, added to what the first layer returns and normalised (DeBERTa-v2 XL)."""

    window: int
    """Positions it reads, its own in the middle."""
    activation: Activation = "tanh"

    def __post_init__(self):
        _require(
            self.window > 0 and self.window % 2 == 1,
            f"ConvolutionConfig.window is {self.window}; give an odd number above zero",
        )
        _one_of(self, "activation", Activation)


@dataclass(frozen=True, kw_only=True)
class StackConfig:
    """A stack of blocks: attention, optional cross-attention, and an MLP, each with its residual and norms."""

    num_layers: int
    """Blocks, L."""
    width: int
    """Size of the hidden states between blocks, D."""
    attention: AttentionConfig
    mlp: MlpConfig
    cross_attention: AttentionConfig | None = None
    """Attention to the encoder's output; an encoder-decoder's decoder has it."""
    causal: bool = False
    """Position t sees positions up to t only. Always so in a decoder."""
    norm: NormConfig = NormConfig()
    norm_slots: tuple[NormSlot, ...] = ("input",)
    """Where a branch normalises: its input (pre-norm), its output (sandwich, OLMo-2), the sum (post-norm)."""
    final_norm: bool = True
    """Normalise the output of the last block."""
    first_norm: bool = True
    """False: the first layer's attention has no input norm, for the embeddings are normalised (ModernBERT)."""
    convolution: ConvolutionConfig | None = None
    branches: Literal["sequential", "parallel", "parallel_shared_norm"] = "sequential"
    """Attention, then MLP; or both from the same input, each with its norm (GPT-NeoX) or one norm (GPT-J)."""
    pattern: tuple[Span, ...] = ("global",)
    """Which layers are local, repeated over the depth: ("local", "global") alternates."""
    local: LocalConfig | None = None
    position_bias: RelativeBiasConfig | GridBiasConfig | AlibiConfig | None = None
    """Bias on self-attention scores by distance."""
    layer_scale: float | None = None
    """Initial value of a learned scale per channel on each branch (Touvron et al. 2021)."""
    num_unique_layers: int | None = None
    """Distinct parameter sets, each used by num_layers / num_unique_layers layers in a row (ALBERT); None: all."""
    scores_over_depth: bool = False
    """Divide the attention scores of layer i by i + 1, on top of their scale (GPT-2 as CRFM trained it)."""
    dropout: float = 0.0
    """Rate at which branch outputs are dropped in training."""

    def __post_init__(self):
        _positive(self, "num_layers", "width")
        _fraction(self, "dropout")
        _subset(self, "norm_slots", NormSlot)
        _subset(self, "pattern", Span)
        _one_of(self, "branches", Literal["sequential", "parallel", "parallel_shared_norm"])
        _require(len(self.pattern) > 0, "StackConfig.pattern is empty; give at least ('global',)")
        _require(
            len(self.pattern) <= self.num_layers,
            f"StackConfig.pattern has {len(self.pattern)} entries; give at most num_layers ({self.num_layers})",
        )
        _require(
            ("local" in self.pattern) == (self.local is not None),
            f"StackConfig.pattern is {self.pattern} and local is {self.local}; "
            "give a LocalConfig exactly when the pattern has 'local' layers",
        )
        if self.local is not None:
            _rotary_fits(self.local.rotary, self.attention.head_size)
        unique = self.unique_layers
        _require(
            0 < unique <= self.num_layers and self.num_layers % unique == 0,
            f"StackConfig.num_unique_layers is {self.num_unique_layers}; "
            f"give a divisor of num_layers ({self.num_layers})",
        )
        _require(
            self.first_norm or "input" in self.norm_slots,
            f"StackConfig.first_norm with norm_slots={self.norm_slots}; there is no 'input' norm to leave out",
        )
        _require(
            self.attention.disentangled is None or not (self.causal or self.position_bias or self.scores_over_depth),
            "AttentionConfig.disentangled in a causal stack, with a position_bias or scores_over_depth is no published "
            "architecture",
        )
        _require(
            self.convolution is None or not self.causal,
            "StackConfig.convolution in a causal stack reads the future; leave it out",
        )
        _require(
            self.cross_attention is None or self.cross_attention.disentangled is None,
            "StackConfig.cross_attention is disentangled; memory has no distance from a query",
        )
        if self.branches == "parallel_shared_norm":
            _require(
                "input" in self.norm_slots,
                f"StackConfig.norm_slots is {self.norm_slots}; a shared norm needs the 'input' slot",
            )
        if self.branches != "sequential":
            _require(
                "residual" not in self.norm_slots,
                "StackConfig.norm_slots has 'residual'; parallel branches share one sum: use 'input' or 'output' slots",
            )
            _require(
                self.cross_attention is None,
                "StackConfig.cross_attention with parallel branches is no published "
                "architecture; use branches='sequential'",
            )

    @property
    def unique_layers(self) -> int:
        """Number of distinct parameter sets."""
        return self.num_layers if self.num_unique_layers is None else self.num_unique_layers


@dataclass(frozen=True, kw_only=True)
class LearnedPositions:
    """A table of position vectors (BERT, GPT-2)."""

    max_length: int
    offset: int = 0
    """Position p reads row p + offset (2 in OPT and BART)."""
    over_mask: bool = False
    """Where no positions are given, they count what the attention mask shows, and padding stands at -1 (OPT)."""
    padding_id: int | None = None
    """Where no positions are given, they count the ids that are not this one; this id stands at -1 (RoBERTa)."""

    def __post_init__(self):
        _positive(self, "max_length")
        _require(self.offset >= 0, f"LearnedPositions.offset is {self.offset}; give at least zero")
        _require(
            self.offset > 0 or not (self.over_mask or self.padding_id is not None),
            "LearnedPositions.over_mask or padding_id without an offset; padding reads the row before the first",
        )
        _require(
            not self.over_mask or self.padding_id is None,
            "LearnedPositions has over_mask and padding_id; positions count by one of the two",
        )


@dataclass(frozen=True, kw_only=True)
class SinusoidalPositions:
    """Fixed sines and cosines (Vaswani et al. 2017, section 3.5)."""

    layout: Literal["interleaved", "halves"] = "interleaved"
    """Sine and cosine alternate (the paper), or all sines come first (Marian, Whisper)."""
    longest: Literal["past_last", "last"] = "past_last"
    """Wavelengths grow to 10000 turns of a circle just past the last pair (the paper) or at it (tensor2tensor)."""
    max_length: int | None = None
    """Positions from here on are NaN, as past a table's end (Marian's files hold one); None: there is no end."""
    offset: int = 0
    """Position p has the waves of p + offset (2 in M2M100)."""
    padding_id: int | None = None
    """Where no positions are given, they count the ids that are not this one; this id has no waves (M2M100)."""

    def __post_init__(self):
        _require(self.offset >= 0, f"SinusoidalPositions.offset is {self.offset}; give at least zero")
        _require(
            self.max_length is None or self.max_length > 0,
            f"SinusoidalPositions.max_length is {self.max_length}; give a number above zero, or None",
        )
        _one_of(self, "layout", Literal["interleaved", "halves"])
        _one_of(self, "longest", Literal["past_last", "last"])


@dataclass(frozen=True, kw_only=True)
class PatchConfig:
    """An image cut into square patches, each projected to one vector (Dosovitskiy et al. 2021)."""

    image_size: int
    """Height and width in pixels of the images that positions were learned on; what a patch does not fill is cut off.

    Images of other sizes are read too: tables of positions are resampled to their grid (DINOv2)."""
    patch_size: int
    num_channels: int = 3
    bias: bool = True
    """Add a learned offset to each patch's vector."""
    class_token: bool = True
    """Put a learned vector before the patches."""
    distillation_token: bool = False
    """And a second one after it (DeiT)."""
    mask_token: bool = False
    """A learned vector that stands for hidden patches in pre-training (BEiT, DINOv2)."""

    def __post_init__(self):
        _positive(self, "image_size", "patch_size", "num_channels")
        _require(
            self.image_size >= self.patch_size,
            f"PatchConfig.image_size is {self.image_size}; give at least patch_size ({self.patch_size})",
        )
        _require(
            self.class_token or not self.distillation_token,
            "PatchConfig.distillation_token without class_token is no published architecture",
        )

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of patches of an image."""
        return height // self.patch_size, width // self.patch_size

    @property
    def num_tokens(self) -> int:
        """Learned vectors before the patches."""
        return self.class_token + self.distillation_token

    @property
    def sequence_length(self) -> int:
        """Vectors an image becomes."""
        rows, columns = self.grid(self.image_size, self.image_size)
        return rows * columns + self.num_tokens


@dataclass(frozen=True, kw_only=True)
class AudioConfig:
    """A log-mel spectrogram read by two convolutions, of which the second halves the frames (Radford et al. 2022)."""

    num_mels: int
    max_length: int
    """Vectors that a spectrogram becomes: half its frames, whose number is fixed."""

    def __post_init__(self):
        _positive(self, "num_mels", "max_length")


@dataclass(frozen=True, kw_only=True)
class EmbeddingConfig:
    """Ids or pixels to vectors: table or patches, plus positions and token types, scaled and normalised."""

    width: int
    """Width of the tables; a projection follows where the stack is wider or narrower (ALBERT)."""
    vocab_size: int | None = None
    """Rows of the token table; None for images, and for a decoder that shares its encoder's table."""
    patches: PatchConfig | None = None
    audio: AudioConfig | None = None
    positions: LearnedPositions | SinusoidalPositions | None = None
    num_token_types: int = 0
    """Rows of the token type (segment) table of BERT; zero for none."""
    scale: float = 1.0
    """Multiplies token vectors (sqrt(width) in Gemma and Marian)."""
    projected: Literal["sum", "tokens"] = "sum"
    """What a projection to the stack's width maps: the sum (ALBERT), or tokens before positions, without bias (OPT)."""
    norm: NormConfig | None = None
    """Normalise the sum."""
    dropout: float = 0.0
    """Rate at which entries are dropped in training."""

    def __post_init__(self):
        _positive(self, "width", "scale")
        _fraction(self, "dropout")
        _one_of(self, "projected", Literal["sum", "tokens"])
        _require(
            self.num_token_types >= 0,
            f"EmbeddingConfig.num_token_types is {self.num_token_types}; give at least zero",
        )
        _require(
            self.vocab_size is None or self.vocab_size > 0,
            f"EmbeddingConfig.vocab_size is {self.vocab_size}; give a number above zero, or None",
        )
        _require(
            [self.vocab_size, self.patches, self.audio].count(None) >= 2,
            "EmbeddingConfig has both vocab_size and patches, or audio; give the one that the input is",
        )
        if self.patches is not None and self.positions is not None:
            _require(self.positions.padding_id is None, "positions.padding_id with patches; they have no ids")
        if self.patches is not None and isinstance(self.positions, LearnedPositions):
            need = self.patches.sequence_length
            _require(
                self.positions.max_length >= need,
                f"LearnedPositions.max_length is {self.positions.max_length}; the image needs {need}",
            )


@dataclass(frozen=True, kw_only=True)
class LanguageModelHead:
    """Logits over the vocabulary at every position."""

    tied: bool = True
    """Use the token table of the last stack's embedding."""
    num_ids: int | None = None
    """Untied: predict the first so many ids alone (ImageGPT leaves out its start token); None: all."""
    bias: bool = False
    transform: Activation | None = None
    """A dense layer, this activation and a norm before the logits (BERT's masked-LM head)."""
    transform_bias: bool = True
    """Add a learned offset in that dense layer."""
    scale: float = 1.0
    """Multiplies the hidden states first (T5 ties with width ** -0.5)."""
    softcap: float | None = None

    def __post_init__(self):
        _positive(self, "scale")
        _require(
            self.num_ids is None or (self.num_ids > 0 and not self.tied),
            f"LanguageModelHead.num_ids is {self.num_ids} with tied={self.tied}; give a number above zero, untied",
        )
        _require(
            self.transform is None or self.transform in get_args(Activation),
            f"LanguageModelHead.transform is {self.transform!r}; choose one of {get_args(Activation)}",
        )
        _require(
            self.transform is not None or self.transform_bias,
            "LanguageModelHead.transform_bias is False without a transform; give its activation",
        )
        _require(
            self.softcap is None or self.softcap > 0,
            f"LanguageModelHead.softcap is {self.softcap}; give a number above zero, or None for no cap",
        )


@dataclass(frozen=True, kw_only=True)
class ClassifierHead:
    """One vector of logits a sequence, from a pooled hidden state."""

    num_classes: int
    pooling: Pooling = "first"
    padding_id: int | None = None
    """With "last": padding is this id, whatever the attention mask says (classifiers on decoders); None: the mask.

    In an encoder-decoder it is padding of `input_ids`, which the decoder reads one position later (T5Gemma)."""
    end_id: int | None = None
    """With "last": the last position of this id among the `input_ids` stands for the sequence (BART, T5)."""
    norm: NormConfig | None = None
    """Normalise the pooled vector (BEiT)."""
    pooler: Activation | None = None
    """A dense layer and this activation between the pooled vector and the logits (BERT: tanh)."""
    pooler_bias: bool = True
    """Add a learned offset in that dense layer."""
    pooler_norm: NormConfig | None = None
    """Normalise after it (ModernBERT)."""
    bias: bool = True
    """Add a learned offset to the logits."""
    distilled: bool = False
    """A second classifier reads the second position, DeiT's distillation token; the logits are the mean of both."""

    def __post_init__(self):
        _positive(self, "num_classes")
        _one_of(self, "pooling", Pooling)
        for name in ("padding_id", "end_id"):
            _require(
                getattr(self, name) is None or self.pooling == "last",
                f"ClassifierHead.{name} is {getattr(self, name)} with pooling={self.pooling!r}; only 'last' reads it",
            )
        _require(
            self.padding_id is None or self.end_id is None,
            f"ClassifierHead has padding_id={self.padding_id} and end_id={self.end_id}; give one of the two",
        )
        _require(
            self.pooler is None or self.pooler in get_args(Activation),
            f"ClassifierHead.pooler is {self.pooler!r}; choose one of {get_args(Activation)}",
        )
        _require(
            self.pooler is not None or (self.pooler_bias and self.pooler_norm is None),
            f"ClassifierHead has pooler_bias={self.pooler_bias} and pooler_norm={self.pooler_norm} without a pooler; "
            "give its activation",
        )


@dataclass(frozen=True, kw_only=True)
class TokenHead:
    """Logits at every position over `num_classes` labels; two of them mark an answer's start and end."""

    num_classes: int | None
    """None: one logit a position, without an axis of classes (ELECTRA's discriminator)."""
    transform: Activation | None = None
    """A dense layer and this activation before the logits."""
    transform_bias: bool = True
    """Add a learned offset in that dense layer."""
    transform_norm: bool = True
    """Normalise after it, as in `LanguageModelHead` (ModernBERT)."""

    def __post_init__(self):
        _require(
            self.num_classes is None or self.num_classes > 0,
            f"TokenHead.num_classes is {self.num_classes}; give a number above zero, or None",
        )
        _require(
            self.transform is None or self.transform in get_args(Activation),
            f"TokenHead.transform is {self.transform!r}; choose one of {get_args(Activation)}",
        )
        _require(
            self.transform is not None or (self.transform_bias and self.transform_norm),
            f"TokenHead has transform_bias={self.transform_bias} and transform_norm={self.transform_norm} without a "
            "transform; give its activation",
        )


@dataclass(frozen=True, kw_only=True)
class AttentionPoolConfig:
    """A learned query attends to all positions, and an MLP adds to what it finds (SigLIP; Zhai et al. 2022)."""

    attention: AttentionConfig
    mlp: MlpConfig
    norm: NormConfig = NormConfig()
    """Of the MLP's input."""


@dataclass(frozen=True, kw_only=True)
class EmbeddingHead:
    """One vector a sequence, for similarity and search."""

    pooling: Literal[Pooling, "token", "attention"] = "mean"
    """The first position of an id, or what a learned query finds; else as in a classifier."""
    token_id: int | None = None
    """With "token": the id (CLIP's end of text); None: the highest in the sequence (CLIP's first release)."""
    attention_pool: AttentionPoolConfig | None = None
    """With "attention": the query's attention and MLP."""
    norm: NormConfig | None = None
    """Normalise the pooled vector, before any projection (CLIP's images)."""
    normalize: bool = True
    """Scale the vector to length one."""
    projection: int | None = None
    """Width of a linear map after pooling (CLIP)."""
    projection_bias: bool = False
    activation: Activation | None = None
    """Applied to the projection (BERT's pooler: tanh)."""

    def __post_init__(self):
        _one_of(self, "pooling", Literal[Pooling, "token", "attention"])
        _require(
            self.token_id is None or self.pooling == "token",
            f"EmbeddingHead.token_id is {self.token_id} with pooling={self.pooling!r}; only 'token' reads it",
        )
        _require(
            (self.attention_pool is not None) == (self.pooling == "attention"),
            f"EmbeddingHead.attention_pool is {self.attention_pool} with pooling={self.pooling!r}; "
            "give it exactly with 'attention'",
        )
        _require(
            self.projection is not None or not (self.projection_bias or self.activation),
            "EmbeddingHead has projection_bias or activation without a projection; give its width",
        )
        _require(
            self.activation is None or self.activation in get_args(Activation),
            f"EmbeddingHead.activation is {self.activation!r}; choose one of {get_args(Activation)}",
        )
        _require(
            self.projection is None or self.projection > 0,
            f"EmbeddingHead.projection is {self.projection}; give a width above zero, or None",
        )


Head = LanguageModelHead | ClassifierHead | TokenHead | EmbeddingHead


@dataclass(frozen=True, kw_only=True)
class TransformerConfig:
    """A whole model. The family follows from which stacks exist."""

    embedding: EmbeddingConfig
    """Input of the encoder, or of the only stack."""
    encoder: StackConfig | None = None
    decoder: StackConfig | None = None
    decoder_embedding: EmbeddingConfig | None = None
    """Input of an encoder-decoder's decoder; None: the encoder's embedding serves both (T5)."""
    output_width: int | None = None
    """Width of a linear map of the decoder's output, back to the token table's width (OPT); None for no map."""
    head: Head | None = None
    """None: the model ends with hidden states."""

    def __post_init__(self):
        _require(
            self.encoder is not None or self.decoder is not None,
            "TransformerConfig has neither encoder nor decoder; give at least one StackConfig",
        )
        both = self.encoder is not None and self.decoder is not None
        if self.encoder is not None:
            _require(
                self.encoder.cross_attention is None,
                "TransformerConfig.encoder has cross_attention; only a decoder attends to an encoder",
            )
        if self.decoder is not None:
            _require(
                self.decoder.causal,
                "TransformerConfig.decoder has causal=False; a decoder is causal (causal=True)",
            )
            _require(
                both == (self.decoder.cross_attention is not None),
                f"TransformerConfig.decoder has cross_attention={self.decoder.cross_attention}; "
                "give it exactly when there is an encoder",
            )
        if self.output_width is not None:
            _positive(self, "output_width")
            _require(self.decoder is not None, "TransformerConfig.output_width without a decoder; leave it at None")
        _require(
            both or self.decoder_embedding is None,
            "TransformerConfig.decoder_embedding without both stacks; use embedding",
        )
        _require(
            (self.embedding.vocab_size, self.embedding.patches, self.embedding.audio) != (None, None, None),
            "TransformerConfig.embedding has neither vocab_size nor patches nor audio; give the one that the input is",
        )
        target = self.target_embedding
        _require(
            not both or (target.patches is None and target.audio is None),
            "an encoder-decoder's decoder reads ids; give decoder_embedding",
        )
        _require(
            not both or self.target_vocab_size is not None,
            "no token table for the decoder: give decoder_embedding.vocab_size or embedding.vocab_size",
        )
        if self.decoder_embedding is not None and self.decoder_embedding.vocab_size is None:
            _require(
                self.decoder_embedding.width == self.embedding.width,
                f"decoder_embedding.width is {self.decoder_embedding.width}; a shared table has "
                f"embedding.width ({self.embedding.width})",
            )
        if isinstance(self.head, LanguageModelHead):
            _require(
                self.target_vocab_size is not None,
                "LanguageModelHead needs a vocabulary; give embedding.vocab_size",
            )
            tied = self.head.tied and self.head.transform is None
            _require(
                not tied or self.output_width in (None, target.width),
                f"TransformerConfig.output_width is {self.output_width}; logits tied to the token table need its width "
                f"({target.width})",
            )

    @property
    def target_embedding(self) -> EmbeddingConfig:
        """The embedding whose vocabulary the model predicts."""
        return self.embedding if self.decoder_embedding is None else self.decoder_embedding

    @property
    def target_vocab_size(self) -> int | None:
        """Number of ids the model predicts, V."""
        own = self.target_embedding.vocab_size
        return self.embedding.vocab_size if own is None else own

    @property
    def output_stack(self) -> StackConfig:
        """The stack that the head reads."""
        stack = self.decoder if self.decoder is not None else self.encoder
        assert stack is not None  # __post_init__ has seen one of the two
        return stack

    @property
    def family(self) -> Literal["encoder-only", "decoder-only", "encoder-decoder"]:
        """For messages and tables; no code branches on it."""
        if self.encoder is None:
            return "decoder-only"
        return "encoder-only" if self.decoder is None else "encoder-decoder"


@dataclass(frozen=True, kw_only=True)
class DualConfig:
    """Two models whose vectors are compared, texts and images (CLIP; Radford et al. 2021)."""

    text: TransformerConfig
    image: TransformerConfig
    bias: bool = False
    """Add a learned offset to every score (SigLIP)."""

    def __post_init__(self):
        for name, config in (("text", self.text), ("image", self.image)):
            _require(
                isinstance(config.head, EmbeddingHead) and config.head.normalize,
                f"DualConfig.{name} has head {config.head}; give an EmbeddingHead with normalize=True",
            )

    @property
    def embedding(self) -> EmbeddingConfig:
        """What reads `input_ids`: the text's."""
        return self.text.embedding

    @property
    def target_embedding(self) -> EmbeddingConfig:
        """The same: nothing is predicted."""
        return self.text.embedding


ModelConfig = TransformerConfig | DualConfig

replace = dataclasses.replace
