"""A stack of layers and its parts: attention, MLPs, experts, local layers."""

from dataclasses import dataclass
from typing import Literal

from zoo.config.norm import NormConfig
from zoo.config.positions import (
    AlibiConfig,
    DisentangledConfig,
    GridBiasConfig,
    LongRopeScaling,
    RelativeBiasConfig,
    RotaryConfig,
)
from zoo.config.validation import all_of, fraction, one_of, positive, require, subset

Activation = Literal["gelu", "gelu_tanh", "quick_gelu", "relu", "relu_squared", "silu", "tanh"]
NormSlot = Literal["input", "output", "residual"]
Span = Literal["global", "local"]
BiasSlot = Literal["query", "key", "value", "output"]


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
        positive(self, "num_heads", "head_size")
        fraction(self, "dropout")
        subset(self, "biases", BiasSlot)
        one_of(self, "qk_norm_over", Literal["head", "projection"])
        require(
            self.softcap is None or self.softcap > 0,
            f"AttentionConfig.softcap is {self.softcap}; give a number above zero, or None for no cap",
        )
        require(
            self.kv_heads > 0 and self.num_heads % self.kv_heads == 0,
            f"AttentionConfig.num_kv_heads is {self.num_kv_heads}; give a divisor of num_heads ({self.num_heads})",
        )
        require(
            self.qk_norm is not None or self.qk_norm_over == "head",
            "AttentionConfig.qk_norm_over is set without qk_norm; give a NormConfig or leave it at 'head'",
        )
        require(
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
    require(
        size <= head_size and size % 2 == 0,
        f"rotary size {size} does not fit heads of size {head_size}; give an even number of at most {head_size}",
    )
    if isinstance(rotary.scaling, LongRopeScaling):
        count = len(rotary.scaling.short_factors)
        require(
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
        require(
            self.window is None or self.chunk is None,
            f"LocalConfig has window={self.window} and chunk={self.chunk}; give at most one of the two",
        )
        if self.window is not None:
            require(
                min(self.window) >= 0,
                f"LocalConfig.window is {self.window}; give two numbers of at least zero",
            )
        if self.chunk is not None:
            positive(self, "chunk")


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
        positive(self, "num_experts", "num_selected")
        one_of(self, "weights", Literal["softmax_then_select", "select_then_softmax"])
        require(self.balance_loss >= 0, f"ExpertsConfig.balance_loss is {self.balance_loss}; give at least zero")
        require(
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
        positive(self, "hidden_size")
        one_of(self, "activation", Activation)
        require(
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
        require(
            self.window > 0 and self.window % 2 == 1,
            f"ConvolutionConfig.window is {self.window}; give an odd number above zero",
        )
        one_of(self, "activation", Activation)


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
        positive(self, "num_layers", "width")
        fraction(self, "dropout")
        subset(self, "norm_slots", NormSlot)
        all_of(self, "pattern", Span)
        one_of(self, "branches", Literal["sequential", "parallel", "parallel_shared_norm"])
        require(len(self.pattern) > 0, "StackConfig.pattern is empty; give at least ('global',)")
        require(
            len(self.pattern) <= self.num_layers,
            f"StackConfig.pattern has {len(self.pattern)} entries; give at most num_layers ({self.num_layers})",
        )
        require(
            ("local" in self.pattern) == (self.local is not None),
            f"StackConfig.pattern is {self.pattern} and local is {self.local}; "
            "give a LocalConfig exactly when the pattern has 'local' layers",
        )
        if self.local is not None:
            _rotary_fits(self.local.rotary, self.attention.head_size)
        unique = self.unique_layers
        require(
            0 < unique <= self.num_layers and self.num_layers % unique == 0,
            f"StackConfig.num_unique_layers is {self.num_unique_layers}; "
            f"give a divisor of num_layers ({self.num_layers})",
        )
        require(
            self.first_norm or "input" in self.norm_slots,
            f"StackConfig.first_norm with norm_slots={self.norm_slots}; there is no 'input' norm to leave out",
        )
        require(
            self.attention.disentangled is None or not (self.causal or self.position_bias or self.scores_over_depth),
            "AttentionConfig.disentangled in a causal stack, with a position_bias or scores_over_depth is no published "
            "architecture",
        )
        require(
            self.convolution is None or not self.causal,
            "StackConfig.convolution in a causal stack reads the future; leave it out",
        )
        require(
            self.cross_attention is None or self.cross_attention.disentangled is None,
            "StackConfig.cross_attention is disentangled; memory has no distance from a query",
        )
        if self.branches == "parallel_shared_norm":
            require(
                "input" in self.norm_slots,
                f"StackConfig.norm_slots is {self.norm_slots}; a shared norm needs the 'input' slot",
            )
        if self.branches != "sequential":
            require(
                "residual" not in self.norm_slots,
                "StackConfig.norm_slots has 'residual'; parallel branches share one sum: use 'input' or 'output' slots",
            )
            require(
                self.cross_attention is None,
                "StackConfig.cross_attention with parallel branches is no published "
                "architecture; use branches='sequential'",
            )

    @property
    def unique_layers(self) -> int:
        """Number of distinct parameter sets."""
        return self.num_layers if self.num_unique_layers is None else self.num_unique_layers
