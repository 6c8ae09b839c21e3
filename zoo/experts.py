"""A mixture of expert MLPs on rows: selection, products group by group, and who computes what on a mesh.

Rows are sorted by expert and multiplied group by group (Gale et al. 2022), so no token is dropped and no capacity is
set. On a mesh each device selects for its own rows, and only then do rows move: the devices of one group along the
axis `expert` gather each other's rows, each computes those that chose its experts, and the sum is scattered back. That
sends a row to every device of the group where an exchange would send it to those of its experts: more bytes once a
group has more devices than a row has experts, for shapes that no routing changes.

Parameters are `zoo.layers.Experts`'s; nothing here is a module.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int

from zoo.config import ExpertsConfig
from zoo.kernels.product import Kernel, grouped_product
from zoo.partition import axes_of_rows, axis_of_positions, free_axes

EXPERT_AXIS, HIDDEN_AXIS = "expert", "tensor"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mixture:
    """What the experts compute, without their parameters.

    Attributes:
      config: how many there are, how many a row selects, and with which weights.
      hidden_size: of each expert, F.
      activation: from `up` [M, F] and `gate` [M, F], None where the MLP is not gated, to the hidden rows.
      dtype: of the products.
    """

    config: ExpertsConfig
    hidden_size: int
    activation: Callable[[Array, Array | None], Array]
    dtype: Any

    def __call__(
        self, x: Float[Array, "B T D"], logits: Float[Array, "B T E"], parameters: dict[str, Kernel]
    ) -> tuple[Float[Array, "B T D"], Float[Array, ""]]:
        """Return the weighted sum of the selected experts' outputs, and the load-balancing loss.

        `parameters` are `up_kernel` [E, D, F], `down_kernel` [E, F, D] and, where the MLP has them, `gate_kernel`,
        `up_bias` [E, F], `gate_bias` and `down_bias` [E, D]; or dicts that stand for the kernels in 8 bits.
        """
        free = free_axes()
        split = _Split(
            rows=(*axes_of_rows(x.shape[0]), axis_of_positions(x.shape[1])),
            experts=EXPERT_AXIS in free and self.config.num_experts % free[EXPERT_AXIS] == 0,
            hidden=HIDDEN_AXIS in free and self.hidden_size % free[HIDDEN_AXIS] == 0,
        )
        apply = functools.partial(self._apply, split=split)
        if split.axes:
            rows, specs = PartitionSpec(split.rows[:-1], split.rows[-1]), split.specs(parameters)
            outputs = (rows, PartitionSpec())
            apply = jax.shard_map(apply, in_specs=(rows, rows, specs), out_specs=outputs, axis_names=split.axes)
        return apply(x, logits, parameters)

    def _apply(self, x, logits, parameters, split: "_Split"):
        rows, shape = x.reshape(-1, x.shape[-1]), x.shape
        logits = logits.reshape(-1, self.config.num_experts)
        weights, chosen = self._select(logits)
        balance = self._balance_loss(logits, chosen, split)
        # What devices share becomes each one's own here, so that its gradient is summed over them in float32, and once.
        parameters = jax.tree.map(split.own, parameters, split.specs(parameters))
        weights, rows = split.own(weights, split.rows), split.own(rows.astype(jnp.float32), split.rows)
        rows = rows.astype(self.dtype)
        if split.gathers:
            weights, chosen = lax.all_gather((weights, chosen), EXPERT_AXIS, tiled=True)
            rows = _gather_rows(rows)
        out = self._sum_experts(rows, weights, chosen, parameters, split)
        if split.experts or split.hidden:  # as products are summed over devices everywhere
            out = out.astype(jnp.float32)
        if split.gathers:
            out = lax.psum_scatter(out, EXPERT_AXIS, tiled=True)
        elif split.experts:
            out = lax.psum(out, EXPERT_AXIS)
        if split.hidden:
            out = lax.psum(out, HIDDEN_AXIS)
        return out.reshape(shape).astype(x.dtype), balance

    def _sum_experts(self, rows, weights, chosen, parameters, split: "_Split") -> Float[Array, "M D"]:
        """What this device's experts, and its share of their hidden units, add to each row."""
        count = jax.tree.leaves(parameters["up_kernel"])[0].shape[0]
        # Rows of other devices' experts come last: the products do not reach them.
        expert = chosen.reshape(-1)
        if split.experts:
            expert = expert - lax.axis_index(EXPERT_AXIS) * count
            expert = jnp.where((expert >= 0) & (expert < count), expert, count)
        order = jnp.argsort(expert, stable=True)
        expert = expert[order]
        sizes = jnp.bincount(expert, length=count + 1)[:count]

        def own(x):
            # What a product leaves in rows that it does not reach is undefined.
            return jnp.where((expert < count)[:, None], x, 0) if split.experts else x

        def linear(name: str, inputs: Array) -> Array:
            out = own(grouped_product(inputs, parameters[f"{name}_kernel"], sizes))
            if f"{name}_bias" not in parameters:
                return out
            bias = parameters[f"{name}_bias"].astype(self.dtype)[expert]
            if split.hidden and name == "down":  # of the parts that are summed, one has it
                bias = jnp.where(lax.axis_index(HIDDEN_AXIS) == 0, bias, 0)
            return out + own(bias)

        inputs = own(rows[order // self.config.num_selected])
        hidden = self.activation(linear("up", inputs), linear("gate", inputs) if "gate_kernel" in parameters else None)
        out = linear("down", hidden)[jnp.argsort(order)]
        return (out.reshape(*weights.shape, -1) * weights[..., None].astype(self.dtype)).sum(1)

    def _select(self, logits: Float[Array, "M E"]) -> tuple[Float[Array, "M n"], Int[Array, "M n"]]:
        if self.config.weights == "select_then_softmax":
            chosen, experts = lax.top_k(logits, self.config.num_selected)
            return jax.nn.softmax(chosen), experts
        return lax.top_k(jax.nn.softmax(logits), self.config.num_selected)

    def _balance_loss(self, logits: Float[Array, "M E"], chosen: Int[Array, "M n"], split: "_Split"):
        """Number of experts times the dot product of load and probability (Fedus et al. 2022, eq. 4)."""
        count = self.config.num_experts
        load = jax.nn.one_hot(chosen, count).sum(1).mean(0) / self.config.num_selected
        probability = jax.nn.softmax(logits).mean(0)
        if split.row_axes:
            load, probability = lax.pmean((load, probability), split.row_axes)
        return self.config.balance_loss * count * jnp.sum(load * probability)


@jax.custom_vjp
def _gather_rows(rows: Float[Array, "m D"]) -> Float[Array, "M D"]:
    """The rows of the group's devices, sent in their own dtype; their gradients are summed in float32."""
    return lax.all_gather(rows, EXPERT_AXIS, tiled=True)


def _gather_rows_bwd(_, cotangent):
    summed = lax.psum_scatter(cotangent.astype(jnp.float32), EXPERT_AXIS, tiled=True)
    return (summed.astype(cotangent.dtype),)


_gather_rows.defvjp(lambda rows: (_gather_rows(rows), None), _gather_rows_bwd)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Split:
    """What of a mixture the ambient mesh splits: rows by these axes, the last of positions; experts; hidden units."""

    rows: tuple[str | None, ...]
    experts: bool
    hidden: bool

    @property
    def row_axes(self) -> tuple[str, ...]:
        return tuple(axis for axis in self.rows if axis)

    @property
    def gathers(self) -> bool:
        """Whether devices that share the experts have rows of their own."""
        return self.experts and EXPERT_AXIS in self.rows

    @property
    def axes(self) -> set[str]:
        return {*self.row_axes, *(EXPERT_AXIS,) * self.experts, *(HIDDEN_AXIS,) * self.hidden}

    def own(self, x: Array, split_by: Iterable[str | None]) -> Array:
        """The same array, which some axes split, said to differ from device to device on the others too."""
        shared = tuple(sorted(self.axes.difference(split_by)))
        return lax.pcast(x, shared, to="varying") if shared else x

    def specs(self, parameters: dict[str, Kernel]) -> dict[str, Any]:
        experts, hidden = EXPERT_AXIS if self.experts else None, HIDDEN_AXIS if self.hidden else None

        def spec(name: str, leaf: Kernel) -> Any:
            inputs, outputs = (hidden, None) if name.startswith("down") else (None, hidden)
            if isinstance(leaf, Mapping):  # outputs come first in 8 bits
                scale, values = PartitionSpec(experts, outputs), PartitionSpec(experts, outputs, inputs)
                return {part: scale if part == "scale" else values for part in leaf}
            return PartitionSpec(experts, *((inputs,) if name.endswith("kernel") else ()), outputs)

        return {name: spec(name, leaf) for name, leaf in parameters.items()}
