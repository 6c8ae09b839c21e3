"""Weight maps: a checkpoint's tensors to zoo's parameters and back, from one table.

A `Rule` is a row of an architecture's table: names of tensors in the checkpoint, paths of parameters, and a
`Transform` that runs both ways. `{layer}` and `{expert}` in a name stand for indices; the parameters are stacked over
them on leading axes. Import is strict both ways: every tensor is used, or belongs to a head that was not asked for,
or is named in the error, and so is every parameter without a tensor. Shapes are compared before anything is read;
then one tensor at a time goes straight to the devices it belongs to.

File formats are in `zoo.formats`, the tables in `zoo.architectures`.
"""

import itertools
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Sharding, SingleDeviceSharding

Shape = tuple[int, ...]
_INDEX = re.compile(r"\{(\w+)\}")


class CheckpointError(ValueError):
    """A checkpoint that cannot be loaded, or written: the message names the file, the tensor or field, and the mend."""


@runtime_checkable
class Tensors(Protocol):
    """A checkpoint file or folder: what is in it, and a tensor of it at a time."""

    origin: str
    """File or folder, for messages."""
    shapes: Mapping[str, Shape]

    def read(self, name: str) -> np.ndarray:
        """One tensor, in the file's dtype."""
        ...


@dataclass(frozen=True)
class Transform:
    """How tensors become parameters of one layer, and back; both ways reorder numbers and never change them."""

    to_ours: Callable[[list, list[Shape]], list]
    """Tensors and the parameters' shapes to parameters."""
    to_theirs: Callable[[list], list]
    """Parameters to tensors."""


def _flat_inputs(kernel):
    """[*I, O] to [I, O]."""
    return kernel.reshape(-1, kernel.shape[-1])


def _flat_outputs(kernel):
    """[I, *O] to [I, O]."""
    return kernel.reshape(kernel.shape[0], -1)


def _each(to_ours: Callable, to_theirs: Callable) -> Transform:
    """A transform of tensors one by one."""
    return Transform(
        lambda tensors, shapes: [to_ours(tensor, shape) for tensor, shape in zip(tensors, shapes, strict=True)],
        lambda kernels: [to_theirs(kernel) for kernel in kernels],
    )


AS_IS = _each(lambda tensor, shape: tensor.reshape(shape), lambda kernel: kernel)
"""Tables and scales: the same array."""
VECTOR = _each(lambda tensor, shape: tensor.reshape(shape), lambda kernel: kernel.reshape(-1))
"""A bias: [N * H] to [N, H]."""
LINEAR = _each(lambda tensor, shape: tensor.T.reshape(shape), lambda kernel: _flat_outputs(kernel).T)
"""A linear map [out, in] to [in, *out]."""
LINEAR_OF_HEADS = _each(lambda tensor, shape: tensor.T.reshape(shape), lambda kernel: _flat_inputs(kernel).T)
"""A linear map [out, N * H] to [N, H, out]: attention's output projection."""
INPUT_FIRST = _each(lambda tensor, shape: tensor.reshape(shape), _flat_outputs)
"""A linear map stored as [in, out] (GPT-2's Conv1D) to [in, *out]."""
INPUT_FIRST_OF_HEADS = _each(lambda tensor, shape: tensor.reshape(shape), _flat_inputs)
"""A linear map stored as [N * H, out] to [N, H, out]."""
ROW = _each(lambda tensor, shape: tensor.reshape(shape), lambda kernel: kernel[None])
"""A vector stored as a table of one row."""
CONVOLUTION = _each(
    lambda tensor, shape: tensor.transpose(*range(2, tensor.ndim), 1, 0).reshape(shape),
    lambda kernel: kernel.transpose(-1, -2, *range(kernel.ndim - 2)),
)
"""A convolution [out, in, *window] to [*window, in, out]."""


def patches(patch_size: int, num_channels: int) -> Transform:
    """A convolution [D, C, size, size] whose stride is its size, to the product's [size * size * C, D]."""
    window = (patch_size, patch_size, num_channels)
    return _each(
        lambda tensor, shape: tensor.transpose(2, 3, 1, 0).reshape(shape),
        lambda kernel: kernel.reshape(*window, -1).transpose(3, 2, 0, 1),
    )


def unit_axes(count: int) -> Transform:
    """The same array behind `count` axes of size one: a token [1, 1, D] to [D], a table [1, T, D] to [T, D]."""
    ones = (1,) * count
    return _each(lambda tensor, shape: tensor.reshape(shape), lambda array: array.reshape(ones + array.shape))


def _concatenate(arrays: list, axis: int):
    xp = np if all(isinstance(array, np.ndarray) for array in arrays) else jnp
    return xp.concatenate(arrays, axis)


def _split(tensor, widths: list[int]) -> list:
    """Slices of the last axis."""
    ends = list(itertools.accumulate(widths))
    return [tensor[..., end - width : end] for width, end in zip(widths, ends, strict=True)]


def fused(transform: Transform = LINEAR) -> Transform:
    """One tensor that holds the outputs of several maps one after another, as q, k and v; of LINEAR or INPUT_FIRST."""
    flipped = transform is LINEAR

    def to_ours(tensors, shapes):
        tensor = tensors[0].T if flipped else tensors[0]
        parts = _split(tensor, [math.prod(shape[1:]) for shape in shapes])
        return [part.reshape(shape) for part, shape in zip(parts, shapes, strict=True)]

    def to_theirs(kernels):
        whole = _concatenate([_flat_outputs(kernel) for kernel in kernels], -1)
        return [whole.T if flipped else whole]

    return Transform(to_ours, to_theirs)


def _split_vector(tensors, shapes):
    parts = _split(tensors[0], [math.prod(shape) for shape in shapes])
    return [part.reshape(shape) for part, shape in zip(parts, shapes, strict=True)]


FUSED_VECTOR = Transform(_split_vector, lambda biases: [_concatenate([bias.reshape(-1) for bias in biases], 0)])
"""The bias of `fused`."""


def _split_heads(tensors, shapes):
    # [N * n * H, I]: for each head its n maps.
    heads, size = shapes[0][-2:]
    parts = tensors[0].T.reshape(-1, heads, len(shapes), size)
    return [parts[:, :, index].reshape(shape) for index, shape in enumerate(shapes)]


def _join_heads(kernels):
    heads, size = kernels[0].shape[-2:]
    parts = [kernel.reshape(-1, heads, 1, size) for kernel in kernels]
    whole = _concatenate(parts, 2).reshape(-1, heads * len(kernels) * size)
    return [whole.T]


def _split_heads_vector(tensors, shapes):
    parts = _split_heads([tensors[0][:, None]], [(1, *shape) for shape in shapes])
    return [part.reshape(shape) for part, shape in zip(parts, shapes, strict=True)]


FUSED_HEADS = Transform(_split_heads, _join_heads)
"""Query, key and value of head 0, then of head 1, ... [N * 3 * H, D] (GPT-NeoX, BLOOM)."""
FUSED_HEADS_VECTOR = Transform(
    _split_heads_vector, lambda biases: [_join_heads([bias[None] for bias in biases])[0].reshape(-1)]
)
"""The bias of `FUSED_HEADS`."""


def _interleave(arrays: list) -> list:
    whole = _concatenate([array[..., None] for array in arrays], -1)
    return [whole.reshape(*whole.shape[:-2], -1)]


INTERLEAVED = Transform(
    lambda tensors, shapes: [tensors[0][..., place :: len(shapes)] for place in range(len(shapes))], _interleave
)
"""One tensor whose last axis takes turns between several: [..., n * O] to n of [..., O] (GPT-OSS)."""


@dataclass(frozen=True, kw_only=True)
class Rule:
    """A row: tensors `theirs` are parameters `ours`. It speaks only of models that have those parameters."""

    theirs: tuple[str, ...]
    ours: tuple[str, ...]
    transform: Transform
    aliases: tuple[str, ...] = ()
    """Other names under which files keep the same, single tensor (tied weights); any of them may stand for it."""
    first: int = 0
    """The first layer that has the tensors."""
    absent: float = 0.0
    """What stands in the parameters of layers before `first`, and of all where an optional tensor is missing."""
    optional: bool = False
    """Whether files may lack the tensors."""
    written: bool = True
    """Whether `save` writes the tensors; the reference leaves some constants out."""


def rule(theirs: str | Sequence[str], ours: str | Sequence[str], transform: Transform = AS_IS, **options: Any) -> Rule:
    """A `Rule`; a single name may stand for a tuple of one. Without `ours` it is a constant."""
    names = [(side,) if isinstance(side, str) else tuple(side) for side in (theirs, ours)]
    return Rule(theirs=names[0], ours=names[1], transform=transform, **options)


def constant(theirs: str, value: np.ndarray, **options: Any) -> list[Rule]:
    """The row of a tensor that the configuration determines, such as a table of sines: compared where a file has it."""
    return [rule(theirs, (), Transform(lambda tensors, shapes: [], lambda kernels: [value]), optional=True, **options)]


def linear(theirs: str, ours: str, transform: Transform = LINEAR, **options: Any) -> list[Rule]:
    """The rows of a linear map, weight and bias."""
    return [
        rule(f"{theirs}.weight", f"{ours}/kernel", transform, **options),
        rule(f"{theirs}.bias", f"{ours}/bias", VECTOR, **options),
    ]


def fused_linear(theirs: str, ours: Sequence[str], transform: Transform = LINEAR) -> list[Rule]:
    """The rows of a linear map whose outputs are those of several: one after another, or by heads (FUSED_HEADS)."""
    by_heads = transform is FUSED_HEADS
    return [
        rule(f"{theirs}.weight", [f"{path}/kernel" for path in ours], transform if by_heads else fused(transform)),
        rule(f"{theirs}.bias", [f"{path}/bias" for path in ours], FUSED_HEADS_VECTOR if by_heads else FUSED_VECTOR),
    ]


def norm(theirs: str, ours: str, **options: Any) -> list[Rule]:
    """The rows of a norm, scale and bias."""
    return [
        rule(f"{theirs}.weight", f"{ours}/scale", **options),
        rule(f"{theirs}.bias", f"{ours}/bias", VECTOR, **options),
    ]


def table(theirs: str, ours: str, **options: Any) -> list[Rule]:
    """The row of an embedding."""
    return [rule(f"{theirs}.weight", f"{ours}/embedding", **options)]


def under(parent: str, rules: Sequence[Rule]) -> list[Rule]:
    """The rows of a model that is a part of another, whose parameters lie under `parent`."""
    return [replace(row, ours=tuple(f"{parent}/{path}" for path in row.ours)) for row in rules]


@dataclass(frozen=True)
class _Item:
    """One application of a rule: concrete tensor names and the index of the parameters' slice."""

    rule: Rule
    names: tuple[str, ...]
    index: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Imported:
    """What `import_params` returns."""

    params: dict
    left_out: tuple[str, ...]
    """Tensors of heads that the model does not have."""
    fresh: tuple[str, ...]
    """Parameters of the head that the checkpoint lacks, for the caller to initialise; they are zero in `params`."""


def flatten(params: Any) -> dict[str, Any]:
    """Nested dicts to `{"decoder/attention/query/kernel": leaf}`."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def unflatten(leaves: Mapping[str, Any]) -> dict:
    """The reverse of `flatten`."""
    tree: dict = {}
    for path, leaf in leaves.items():
        *parents, last = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = leaf
    return tree


def _shapes(model: Any) -> dict[str, Shape]:
    return {path: tuple(leaf.shape) for path, leaf in flatten(model).items()}


def _items(rule: Rule, shapes: Mapping[str, Shape]) -> Iterator[_Item]:
    """Every application of a rule to a model of these parameter shapes; none where it lacks the parameters."""
    if not all(path in shapes for path in rule.ours):
        return
    letters = list(dict.fromkeys(_INDEX.findall(rule.theirs[0])))
    sizes = shapes[rule.ours[0]][: len(letters)] if letters else ()
    for index in itertools.product(*map(range, sizes)):
        if index and index[0] < rule.first:
            continue
        yield _Item(rule, tuple(name.format(**dict(zip(letters, index, strict=True))) for name in rule.theirs), index)


def _check_count(rule: Rule, shapes: Mapping[str, Shape], tensors: Tensors) -> None:
    """Raise CheckpointError where a rule asks for more tensors than there are, before they are counted one by one."""
    if rule.ours and all(path in shapes for path in rule.ours):
        letters = dict.fromkeys(_INDEX.findall(rule.theirs[0]))
        count = math.prod(shapes[rule.ours[0]][: len(letters)])
        if count > rule.first + len(tensors.shapes):
            raise CheckpointError(
                f"{tensors.origin} has {len(tensors.shapes)} tensors; config.json describes {count} of {rule.theirs[0]}"
            )


def _their_shapes(item: _Item, shapes: Mapping[str, Shape]) -> list[Shape]:
    """Shapes of the tensors that the item reads."""
    own = [jax.ShapeDtypeStruct(shapes[path][len(item.index) :], jnp.float32) for path in item.rule.ours]
    return [tensor.shape for tensor in jax.eval_shape(item.rule.transform.to_theirs, own)]


def _shorten(names: Sequence[str], most: int = 4) -> str:
    names = sorted(names)
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


class _Names:
    """The table's names for those in a file, which may have another prefix or none, or old endings."""

    def __init__(self, tensors: Tensors, wanted: set[str], prefix: str, other_prefixes: Sequence[str]):
        self.found: dict[str, str] = {}
        for name in tensors.shapes:
            plain = re.sub(r"LayerNorm\.(gamma|beta)$", _new_ending, name)
            for other in other_prefixes:
                plain = prefix + plain.removeprefix(other) if plain.startswith(other) else plain
            known = next((n for n in (plain, prefix + plain, plain.removeprefix(prefix)) if n in wanted), plain)
            if known in self.found:
                raise CheckpointError(
                    f"{tensors.origin} has both {self.found[known]} and {name}, which are one tensor; delete one"
                )
            self.found[known] = name


def _new_ending(match: re.Match) -> str:
    return "LayerNorm.weight" if match[1] == "gamma" else "LayerNorm.bias"


def import_params(
    rules: Sequence[Rule],
    tensors: Tensors,
    model: Any,
    *,
    shardings: Any = None,
    dtype: Any = jnp.float32,
    prefix: str = "",
    other_prefixes: Sequence[str] = (),
    ignored: Sequence[str] = (),
    other_heads: Callable[[], Iterable[tuple[Sequence[Rule], Callable[[], Any]]]] = tuple,
    head_may_be_fresh: bool = False,
    renewed: Sequence[str] = (),
    convert: Callable[[str, jax.Array], Any] | None = None,
) -> Imported:
    """Read a checkpoint into the parameters of a model.

    Args:
        rules: the architecture's table.
        tensors: the checkpoint.
        model: tree of the parameters' shapes (`jax.eval_shape` of `init`).
        shardings: tree of `Sharding`s; None is the first device.
        dtype: of the parameters.
        prefix: of the base model's names in files with a head; files of a base model may lack it.
        other_prefixes: what stands for it in the files of some heads.
        ignored: patterns of tensors that carry no parameter (position ids, masks).
        other_heads: tables of the architecture with each head, and what makes the parameters' shapes; asked for where
            tensors are left over, for those of another head may be.
        head_may_be_fresh: whether parameters under `head/` may be missing.
        renewed: patterns of the head's parameters that are to be initialised even where the checkpoint has them.
        convert: takes each parameter as it comes, with its path, and gives what takes its place; not those to be drawn.

    Raises:
        CheckpointError: tensors missing, left over, of another shape, or tied and yet different.
    """
    shapes = _shapes(model)
    placed = {path: SingleDeviceSharding(jax.devices()[0]) for path in shapes}
    placed |= {} if shardings is None else flatten(shardings)
    for row in rules:
        _check_count(row, shapes, tensors)
    items = [item for row in rules for item in _items(row, shapes)]
    covered = {path for item in items for path in item.rule.ours}
    uncovered = sorted(set(shapes) - covered)
    if uncovered:
        raise AssertionError(f"the weight map has no row for {_shorten(uncovered)}")
    aliases = {alias for item in items for alias in item.rule.aliases}
    wanted = {name for item in items for name in item.names} | aliases
    names = _Names(tensors, wanted, prefix, other_prefixes)

    replaced = _take_out(items, names.found, renewed)
    missing, fresh = _missing(items, names.found, head_may_be_fresh)
    unused = set(names.found) - wanted
    unused = {name for name in unused if not any(re.search(pattern, name) for pattern in ignored)}
    left_out: set[str] = set()
    others = iter(other_heads())
    while not missing and left_out != unused and (other := next(others, None)):
        left_out |= _of_another_head(unused, *other, prefix)
    if missing or unused - left_out:
        found = [f"it lacks {_shorten(missing)}"] if missing else []
        if unused - left_out:
            found.append(f"zoo has no use for {_shorten([names.found[name] for name in unused - left_out])}")
        raise CheckpointError(
            f"{tensors.origin} does not fit the model that config.json describes: {'; '.join(found)}. "
            "Check that the weights and config.json belong together"
        )
    _check_shapes(items, tensors, names.found, shapes)
    _check_constants(items, tensors, names.found)

    params = {}
    for row in {item.rule.ours: item.rule for item in items if item.rule.ours}.values():
        own = [item for item in items if item.rule.ours == row.ours]
        reader = _Reader(own, tensors, names.found, {path: shapes[path] for path in row.ours})
        for position, path in enumerate(row.ours):
            keep = convert if convert is not None and path not in fresh else _as_it_is
            params[path] = keep(path, reader.place(position, placed[path], dtype))
    return Imported(
        params=unflatten(params),
        left_out=tuple(sorted([*replaced, *(names.found[name] for name in left_out)])),
        fresh=tuple(sorted(fresh)),
    )


def _as_it_is(path: str, leaf: jax.Array) -> jax.Array:
    del path
    return leaf


def _pattern(name: str) -> str:
    """A regular expression of a rule's name, any index for each letter."""
    return "".join(r"\d+" if index % 2 else re.escape(part) for index, part in enumerate(_INDEX.split(name)))


def _of_another_head(unused: set[str], rules: Sequence[Rule], make_shapes: Callable[[], Any], prefix: str) -> set[str]:
    """Which names are tensors, or copies, of a model with these parameters, or of a head that the table knows."""

    def matching(rows: Iterable[Rule]) -> set[str]:
        patterns = [re.compile(_pattern(name)) for row in rows for name in (*row.theirs, *row.aliases)]
        return {name for name in unused if any(p.fullmatch(n) for p in patterns for n in _spellings(name, prefix))}

    of_head = matching(row for row in rules if all(path.startswith("head/") for path in row.ours))
    possible = matching(rules) - of_head
    if not possible:  # tracing a model for its shapes takes a tenth of a second
        return of_head
    try:
        shapes = _shapes(make_shapes())
    except CheckpointError:  # of that head alone
        return of_head
    known = {name for row in rules for item in _items(row, shapes) for name in (*item.names, *row.aliases)}
    return of_head | {name for name in possible if not known.isdisjoint(_spellings(name, prefix))}


def _spellings(name: str, prefix: str) -> tuple[str, str, str]:
    """A tensor's name, and with the base model's prefix and without."""
    return name, prefix + name, name.removeprefix(prefix)


def _take_out(items: list[_Item], found: dict[str, str], renewed: Sequence[str]) -> list[str]:
    """Forget the tensors of parameters that are to be initialised; returns their names in the file."""
    names = [
        name
        for item in items
        for name in (*item.names, *item.rule.aliases)
        if any(fnmatchcase(path, pattern) for path in item.rule.ours for pattern in renewed)
    ]
    return [found.pop(name) for name in names if name in found]


def _missing(items: list[_Item], found: Mapping[str, str], head_may_be_fresh: bool) -> tuple[list[str], set[str]]:
    """Names of tensors that are missing, and paths of the head's parameters that may be."""
    missing, fresh = [], set()
    for item in items:
        lacking = [name for name in item.names if name not in found]
        if not lacking or item.rule.optional or any(alias in found for alias in item.rule.aliases):
            continue
        if head_may_be_fresh and all(path.startswith("head/") for path in item.rule.ours):
            fresh.update(item.rule.ours)
        else:
            missing += lacking
    return missing, fresh


def _check_shapes(items: list[_Item], tensors: Tensors, found: Mapping[str, str], shapes: Mapping[str, Shape]) -> None:
    """Raise CheckpointError for the first tensor whose shape is not what the model needs."""
    expected: dict[tuple[str, ...], list[Shape]] = {}
    for item in items:
        if item.rule.theirs not in expected:
            expected[item.rule.theirs] = _their_shapes(item, shapes)
        for name, shape in zip(item.names, expected[item.rule.theirs], strict=True):
            for known in (name, *item.rule.aliases):
                if known in found and tuple(tensors.shapes[found[known]]) != shape:
                    raise CheckpointError(
                        f"{tensors.origin}: {found[known]} has shape {list(tensors.shapes[found[known]])}; "
                        f"the model that config.json describes needs {list(shape)}"
                    )


def _check_constants(items: list[_Item], tensors: Tensors, found: Mapping[str, str]) -> None:
    """Raise CheckpointError for a constant that is not what the configuration says, beyond its dtype's rounding."""
    for item in items:
        if item.rule.ours:
            continue
        for name, wanted in zip(item.names, item.rule.transform.to_theirs([]), strict=True):
            if name not in found:
                continue
            value = tensors.read(found[name])
            error = float(np.abs(value.astype(np.float32) - wanted).max())
            if not error <= max(1e-3, float(jnp.finfo(value.dtype).eps)):
                raise CheckpointError(
                    f"{tensors.origin}: {found[name]} is off by {error:.2g} from what config.json makes it; "
                    "was the model trained with another library's positions?"
                )


class _Reader:
    """The tensors of one rule over all its indices, cut to what each device holds."""

    def __init__(self, items: list[_Item], tensors: Tensors, found: Mapping[str, str], shapes: dict[str, Shape]):
        self.items, self.tensors, self.found = items, tensors, found
        self.shapes, self.num_indices = list(shapes.values()), len(items[0].index)
        self.absent = items[0].rule.absent
        # Once, and not for every shard: copies of a tied tensor are compared whole.
        self.names = [self._names(item) for item in items]

    def place(self, position: int, sharding: Sharding, dtype: Any) -> jax.Array:
        """One of the rule's parameters on its devices; the host holds one shard and one tensor at a time."""
        shape = self.shapes[position]
        slices = sharding.addressable_devices_indices_map(shape)
        devices: dict[tuple, list] = {}
        for device, index in slices.items():
            bounds = tuple(part.indices(size)[:2] for part, size in zip(index, shape, strict=True))
            devices.setdefault(bounds, []).append(device)
        shards = {}
        for bounds, holders in devices.items():
            shard = self._shard(position, bounds, dtype)
            for device in holders:
                shards[device] = jax.device_put(shard, device)
            # The copy to an accelerator reads the buffer after this call returns.
            jax.block_until_ready([shards[device] for device in holders])
        return jax.make_array_from_single_device_arrays(shape, sharding, [shards[device] for device in slices])

    def _shard(self, position: int, bounds: tuple[tuple[int, int], ...], dtype: Any) -> np.ndarray:
        shard = np.full([stop - start for start, stop in bounds], self.absent, dtype)
        inner = tuple(slice(*bound) for bound in bounds[self.num_indices :])
        for item, names in zip(self.items, self.names, strict=True):
            outer = [i - start for i, (start, _) in zip(item.index, bounds, strict=False)]
            inside = all(0 <= i < stop - start for i, (start, stop) in zip(outer, bounds, strict=False))
            if inside and names:
                shard[(*outer, ...)] = self._read(item, names)[position][inner]
        return shard

    def _names(self, item: _Item) -> list[str]:
        """The item's tensors in the file, of tied copies the first; nothing where the file lacks them."""
        if not item.rule.aliases:
            names = [self.found[name] for name in item.names if name in self.found]
            return names if len(names) == len(item.names) else []
        copies = [self.found[name] for name in (*item.names, *item.rule.aliases) if name in self.found]
        for copy in copies[1:]:
            one, other = self.tensors.read(copies[0]), self.tensors.read(copy)
            if one.dtype != other.dtype or not np.array_equal(one, other, equal_nan=True):
                raise CheckpointError(
                    f"{self.tensors.origin}: {copies[0]} and {copy} differ, and "
                    "config.json ties them; set tie_word_embeddings to false if they are two tensors"
                )
        return copies[:1]

    def _read(self, item: _Item, names: list[str]) -> list[np.ndarray]:
        """The parameters that an item's tensors are."""
        arrays = [self.tensors.read(name) for name in names]
        return item.rule.transform.to_ours(arrays, [shape[self.num_indices :] for shape in self.shapes])


def export_params(
    rules: Sequence[Rule], params: Any
) -> Iterator[tuple[str, Shape, np.dtype, Callable[[], np.ndarray]]]:
    """The checkpoint's tensors for parameters: name, shape, dtype, and a function that makes it when it is written."""
    leaves = flatten(params)
    shapes = {path: tuple(leaf.shape) for path, leaf in leaves.items()}
    for row in rules:
        dtype = np.dtype(leaves[row.ours[0]].dtype if row.ours and row.ours[0] in leaves else np.float32)
        for item in _items(row, shapes) if row.written else ():
            for position, (name, shape) in enumerate(zip(item.names, _their_shapes(item, shapes), strict=True)):

                def make(item=item, position=position) -> np.ndarray:
                    own = [_on_host(leaves[path], item.index) for path in item.rule.ours]
                    return np.ascontiguousarray(item.rule.transform.to_theirs(own)[position])

                yield name, shape, dtype, make


def _on_host(leaf: Any, index: tuple[int, ...]) -> np.ndarray:
    """Bring a slice of a parameter to the host; what lies there already is viewed, for a slice by JAX is compiled."""
    if isinstance(leaf, jax.Array) and [device.platform for device in leaf.devices()] == ["cpu"]:
        leaf = np.asarray(leaf)
    return np.asarray(jax.device_get(leaf[index]))
