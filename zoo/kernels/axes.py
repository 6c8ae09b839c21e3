"""Names of the mesh axes that split the batch, the heads and the sequence: zoo's own, or those of a user's mesh."""

import contextlib
import contextvars
import dataclasses
from collections.abc import Iterable, Iterator


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeshAxes:
    """Names of mesh axes by what they split."""

    batch: tuple[str, ...] = ("data", "fsdp", "expert")
    heads: str | None = "tensor"
    sequence: str | None = "context"


_GIVEN: contextvars.ContextVar[MeshAxes | None] = contextvars.ContextVar("mesh axes", default=None)


@contextlib.contextmanager
def mesh_axes(
    *, batch: str | tuple[str, ...] = (), heads: str | None = None, sequence: str | None = None
) -> Iterator[None]:
    """Say which axes of your own mesh split the op's arguments, and models' activations, while they are traced.

    zoo knows the axes `data`, `fsdp` and `expert` of the batch, `tensor` of heads and `context` of the sequence. A mesh
    of other names needs this; an axis that is part of types (`AxisType.Explicit`) needs nothing, as arguments tell.

        with jax.set_mesh(jax.make_mesh((2, 4), ("dp", "tp"), axis_types=(AxisType.Auto,) * 2)):
            with mesh_axes(batch="dp", heads="tp"):
                out = attention(q, k, v)

    Args:
      batch: axes that together split the batch.
      heads: the axis of the heads.
      sequence: the axis of queries and keys.
    """
    axes = MeshAxes(batch=(batch,) if isinstance(batch, str) else tuple(batch), heads=heads, sequence=sequence)
    token = _GIVEN.set(axes)
    try:
        yield
    finally:
        _GIVEN.reset(token)


def current_axes(free: Iterable[str]) -> MeshAxes:
    """The names in force, for a mesh whose axes `free` have several devices and are the compiler's to lay out.

    Raises:
      ValueError: all of them are unknown. Nothing would be split, and every device would do the whole work.
    """
    given, free = _GIVEN.get(), list(free)
    known = given or MeshAxes()
    if given is None and free and not {*known.batch, known.heads, known.sequence} & {*free}:
        raise ValueError(
            f"the mesh has the axes {', '.join(free)}, and none is one of {', '.join(known.batch)}, {known.heads}, "
            f"{known.sequence}: nothing would be split; say what yours split with zoo.kernels.mesh_axes(batch=..., "
            "heads=..., sequence=...)"
        )
    return known
