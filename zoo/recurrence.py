"""LSTM and GRU layers over sequences, one way or both, with additive attention where a decoder has it.

Time runs in one `lax.scan` a layer and direction; whatever does not depend on the state is multiplied before it, for
all positions at once. Parameters, gates and states are float32; products run in the compute dtype with float32
accumulation. Padding never changes a state, wherever it stands. How these make an encoder-decoder is in
`zoo.recurrent`.

The cells are those of cuDNN and torch: gates in their order, and a GRU whose reset gate is applied after the recurrent
product, where Cho et al. 2014 have it before.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from zoo.config import Cell, Direction
from zoo.kernels.product import Kernel, accumulate
from zoo.layers import dropout, kernel_of
from zoo.remat import Remat, rematerialise

_KERNEL_INIT = nn.initializers.variance_scaling(1.0, "fan_in", "truncated_normal")
_UNSEEN = -1e30
"""The score of padding; finite, so that a row of nothing else has no NaN."""


@struct.dataclass
class State:
    """What one layer carries from step to step, float32."""

    hidden: Float[Array, "B D"]
    cell: Float[Array, "B D"] | None = None
    """Of an LSTM."""

    @classmethod
    def zeros(cls, cell: Cell, batch: int, width: int) -> "State":
        """Before anything is read."""
        blank = jnp.zeros((batch, width), jnp.float32)
        return cls(blank, blank if cell == "lstm" else None)

    def where(self, seen: Bool[Array, " B"] | None, other: "State") -> "State":
        """The state itself in the rows that are seen, `other` in the rest."""
        if seen is None:
            return self
        return jax.tree.map(lambda new, old: jnp.where(seen[:, None], new, old), self, other)


def lstm(inputs: Float[Array, "B 4 D"], recurrent: Float[Array, "B 4 D"], state: State) -> State:
    """One step; gates in the order input, forget, cell, output (Hochreiter & Schmidhuber 1997; Gers et al. 2000)."""
    enter, forget, new, leave = (gate[:, 0] for gate in jnp.split(inputs + recurrent, 4, axis=1))
    assert state.cell is not None  # an LSTM's state begins with one
    cell = nn.sigmoid(forget) * state.cell + nn.sigmoid(enter) * jnp.tanh(new)
    return State(nn.sigmoid(leave) * jnp.tanh(cell), cell)


def gru(inputs: Float[Array, "B 3 D"], recurrent: Float[Array, "B 3 D"], state: State) -> State:
    """One step; gates in the order reset, update, new (Cho et al. 2014)."""
    reset, update = (nn.sigmoid(inputs[:, gate] + recurrent[:, gate]) for gate in range(2))
    new = jnp.tanh(inputs[:, 2] + reset * recurrent[:, 2])
    return State(new + update * (state.hidden - new))


CELLS: dict[Cell, tuple[int, Callable[[Array, Array, State], State]]] = {"lstm": (4, lstm), "gru": (3, gru)}
"""Number of gates, G, and a step."""


@struct.dataclass
class Weights:
    """A linear map to gates, outside its module, as a loop needs it."""

    kernel: Kernel
    """[I, G, D]"""
    bias: Float[Array, "G D"] | None

    def __call__(self, x: Float[Array, "... I"], dtype: Any) -> Float[Array, "... G D"]:
        """Float32, from a product in `dtype`."""
        gates = accumulate(x.astype(dtype), self.kernel)
        if self.bias is None:
            return gates
        return gates + jax.lax.broadcast_to_rank(self.bias.astype(gates.dtype), gates.ndim)


class Gates(nn.Module):
    """The parameters of a linear map to the gates of a cell; `kernel_init` makes the matrix of one gate."""

    num_inputs: int
    num_gates: int
    width: int
    bias: bool = True
    kernel_init: Callable = _KERNEL_INIT
    bias_init: Callable = nn.initializers.zeros

    @nn.compact
    def __call__(self) -> Weights:
        """Give them."""

        def init(rng, shape):
            num_inputs, num_gates, width = shape
            drawn = [self.kernel_init(key, (num_inputs, width)) for key in jax.random.split(rng, num_gates)]
            return jnp.stack(drawn, 1)

        kernel = kernel_of(self, init, (self.num_inputs, self.num_gates, self.width))
        bias = self.param("bias", self.bias_init, (self.num_gates, self.width)) if self.bias else None
        return Weights(kernel, bias)


def _forget_little(rng: Array, shape: tuple[int, int]) -> Array:
    """Biases of an LSTM that keeps its cell at first (Jozefowicz et al. 2015)."""
    del rng
    return jnp.zeros(shape).at[1].set(1.0)


@struct.dataclass
class Memory:
    """What a decoder attends to: B rows, each of which serves R / B rows of queries that lie together."""

    values: Float[Array, "B S M"]
    keys: Float[Array, "B S A"]
    """Float32."""
    seen: Bool[Array, "B S"]


@struct.dataclass
class Alignment:
    """Additive attention outside its module: v · tanh(W s + U h) (Bahdanau et al. 2015, A.1.2)."""

    query: Float[Array, "D A"]
    score: Float[Array, " A"]

    def __call__(
        self, hidden: Float[Array, "R D"], memory: Memory, dtype: Any
    ) -> tuple[Float[Array, "R M"], Float[Array, "R S"]]:
        """The mean of the memory's values that fits each row's state, and its weights, which are 0 on padding."""
        batch = len(memory.keys)
        query = accumulate(hidden.astype(dtype), self.query).reshape(batch, -1, 1, self.query.shape[-1])
        scores = jnp.tanh(query + memory.keys[:, None]) @ self.score.astype(jnp.float32)
        seen = memory.seen[:, None]
        weights = jax.nn.softmax(jnp.where(seen, scores, _UNSEEN), axis=-1) * seen.astype(jnp.float32)
        context = jnp.einsum(
            "bns,bsm->bnm", weights.astype(dtype), memory.values, preferred_element_type=jnp.float32
        ).astype(dtype)
        return context.reshape(len(hidden), -1), weights.reshape(len(hidden), -1)


class AdditiveAttention(nn.Module):
    """The parameters of `Alignment`, and the keys that it compares states with, made once for a whole source."""

    width: int
    """Of the states, D, and of what scores them, A."""
    memory_width: int
    dtype: Any

    def setup(self):
        """Make the two matrices and the vector."""
        self.query = _Kernel((self.width, self.width))
        self.key = _Kernel((self.memory_width, self.width))
        self.score = _Kernel((self.width, 1))

    def remember(self, states: Float[Array, "B S M"], seen: Int[Array, "B S"] | None) -> Memory:
        """An encoder's states, to be attended to."""
        keys = accumulate(states.astype(self.dtype), self.key())
        shown = jnp.ones(states.shape[:2], bool) if seen is None else seen != 0
        return Memory(states.astype(self.dtype), keys, shown)

    def alignment(self) -> Alignment:
        """What a loop needs."""
        return Alignment(self.query(), self.score()[:, 0])


class _Kernel(nn.Module):
    """A matrix by its own name."""

    shape: tuple[int, int]

    @nn.compact
    def __call__(self) -> Float[Array, "I O"]:
        return self.param("kernel", _KERNEL_INIT, self.shape)


@struct.dataclass
class Steps:
    """What a layer did at each position."""

    hidden: Float[Array, "B T D"]
    """In the compute dtype; 0 on padding."""
    context: Float[Array, "B T M"] | None = None
    """With attention: what it read of the memory."""
    alignment: Float[Array, "B T S"] | None = None
    """With attention: the weights, float32."""


class Recurrence(nn.Module):
    """One layer in one direction; with `memory_width` it reads a memory by additive attention at each step.

    The state before a step asks, and what is read joins the input of the step (Bahdanau et al. 2015, A.2.2).
    """

    cell: Cell
    num_inputs: int
    width: int
    dtype: Any
    memory_width: int | None = None
    remat: Remat = "none"

    def setup(self):
        """Name the linear maps: of the input, of the state before, and of what attention reads."""
        num_gates, _ = CELLS[self.cell]
        start = _forget_little if self.cell == "lstm" else nn.initializers.zeros
        self.input = Gates(self.num_inputs, num_gates, self.width, bias_init=start)
        # An LSTM adds the two biases, so one will do; a GRU's reset gate comes between them.
        self.recurrent = Gates(self.width, num_gates, self.width, self.cell == "gru", nn.initializers.orthogonal())
        if self.memory_width is not None:
            self.context = Gates(self.memory_width, num_gates, self.width, bias=False)
            self.alignment = AdditiveAttention(self.width, self.memory_width, self.dtype)

    def remember(self, states: Float[Array, "B S M"], seen: Int[Array, "B S"] | None) -> Memory:
        """An encoder's states, as `memory`."""
        return self.alignment.remember(states, seen)

    def __call__(
        self,
        x: Float[Array, "B T I"],
        state: State,
        seen: Int[Array, "B T"] | None = None,
        memory: Memory | None = None,
        *,
        reverse: bool = False,
    ) -> tuple[Steps, State]:
        """Read `x` from `state` on, in reverse from its end, and leave out what is not `seen`."""
        _, step = CELLS[self.cell]
        recurrent = self.recurrent()
        gates = self.input()(x.swapaxes(0, 1), self.dtype)  # [T, B, G, D], all products at once
        shown = None if seen is None else (seen != 0).T
        attends = (self.context(), self.alignment.alignment()) if memory is not None else None

        def advance(state: State, inputs):
            gates, shown = inputs
            context = weights = None
            if attends is not None:
                mix, align = attends
                context, weights = align(state.hidden, memory, self.dtype)
                gates = gates + mix(context, self.dtype)
            new = step(gates, recurrent(state.hidden, self.dtype), state).where(shown, state)
            hidden = new.hidden if shown is None else jnp.where(shown[:, None], new.hidden, 0)
            return new, Steps(hidden.astype(self.dtype), context, weights)

        state, steps = lax.scan(rematerialise(advance, self.remat), state, (gates, shown), reverse=reverse)
        return jax.tree.map(lambda leaf: leaf.swapaxes(0, 1), steps), state


class RecurrentStack(nn.Module):
    """Layers of `torch.nn.LSTM` or `torch.nn.GRU`: each reads what the one below has given in all its directions."""

    cell: Cell
    num_layers: int
    num_inputs: int
    width: int
    direction: Direction
    dtype: Any = jnp.float32
    dropout: float = 0.0
    remat: Remat = "none"

    def setup(self):
        """Make the layers."""
        sides = ("forward", "backward") if self.direction == "both" else (self.direction,)
        widths = [self.num_inputs, *(self.width * len(sides) for _ in range(self.num_layers - 1))]
        self.layer = [Layer(self.cell, width, self.width, sides, self.dtype, self.remat) for width in widths]

    def __call__(
        self, x: Float[Array, "B T I"], seen: Int[Array, "B T"] | None = None, dropout_rng: Array | None = None
    ) -> tuple[list[Float[Array, "B T M"]], list[list[State]]]:
        """Return, of each layer, what it gave, M its directions side by side, and each direction's last state."""
        outputs, states = [], []
        for depth, layer in enumerate(self.layer):
            x, last = layer(dropout_at(x, self.dropout, dropout_rng, depth), seen)
            outputs.append(x)
            states.append(last)
        return outputs, states


class Layer(nn.Module):
    """One layer of a stack, in one direction or both."""

    cell: Cell
    num_inputs: int
    width: int
    sides: tuple[str, ...]
    dtype: Any
    remat: Remat

    @nn.compact
    def __call__(
        self, x: Float[Array, "B T I"], seen: Int[Array, "B T"] | None
    ) -> tuple[Float[Array, "B T M"], list[State]]:
        """Read `x` from blank states; the last state of "backward" is that of the first position."""
        blank = State.zeros(self.cell, len(x), self.width)
        read = []
        for side in self.sides:
            recurrence = Recurrence(self.cell, self.num_inputs, self.width, self.dtype, remat=self.remat, name=side)
            read.append(recurrence(x, blank, seen, reverse=side == "backward"))
        return jnp.concatenate([steps.hidden for steps, _ in read], -1), [state for _, state in read]


def dropout_at(x: Array, rate: float, rng: Array | None, depth: int) -> Array:
    """Dropout of what the layer of a depth reads."""
    return dropout(x, rate, None if rng is None else jax.random.fold_in(rng, depth))
