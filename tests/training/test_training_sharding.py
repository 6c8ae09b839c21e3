"""Meshes: sizes, slices, the table, and the same losses on eight devices as on one."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.mesh_utils import create_hybrid_device_mesh
from jax.sharding import PartitionSpec as P
from tiers import tiered
from toy import SHAPES, Counting, Toy, make_batch

from zoo.training.config import MeshConfig, OptimizerConfig, ScheduleConfig
from zoo.training.optimizer import make_optimizer, make_schedule
from zoo.training.prefetch import place_batch
from zoo.training.sharding import (
    arrange_devices,
    check_axes,
    make_mesh,
    parameter_spec,
    shard_batch,
    shard_optimizer_state,
    shard_parameters,
)
from zoo.training.state import abstract_state, bind_apply, initialise_state
from zoo.training.step import make_train_step

PARAMS = jax.tree.map(
    lambda shape: jax.ShapeDtypeStruct(shape, jnp.float32), SHAPES, is_leaf=lambda x: isinstance(x, tuple)
)


def train_on(mesh_config, num_steps=20, accumulate=1, **optimizer):
    """Return (losses, state, mesh) of a few steps of the toy."""
    mesh, model, task = make_mesh(mesh_config), Toy(), Counting()
    schedule = make_schedule(ScheduleConfig(warmup_steps=5), 3e-3, num_steps)
    transform = make_optimizer(OptimizerConfig(**optimizer), schedule)
    batches = [make_batch(16, step) for step in range(num_steps)]
    losses = []
    with jax.set_mesh(mesh):
        target = abstract_state(model, task, transform, batches[0], mesh)
        state = initialise_state(model, task, transform, batches[0], target, seed=0)
        step = make_train_step(
            task, bind_apply(model), transform, schedule, seed=0, accumulate=accumulate, target=target
        )
        for batch in batches:
            state, metrics = step(state, place_batch(batch, mesh))
            losses.append(float(metrics["loss"]))
    return np.array(losses), state, mesh


@pytest.fixture(scope="module")
def single():
    """Return what `train_on` returns on one device."""
    return train_on(MeshConfig(data=1))


MIXED = {"data": 2, "fsdp": 2, "tensor": 2}


@pytest.mark.parametrize(
    "axes",
    tiered([{"data": 8}, {"fsdp": 8}, {"data": 2, "tensor": 4}, MIXED], [MIXED]),
    ids=str,
)
def test_losses_equal_one_devices(single, axes):
    losses, state, mesh = train_on(MeshConfig(**{"data": 1, **axes}))
    assert mesh.size == 8 and single[2].size == 1
    assert np.abs(losses - single[0]).max() < 1e-5
    assert losses[-1] < losses[0] - 0.1  # the comparison is of a model that learns
    query = state.params["decoder"]["attention"]["query"]["kernel"]
    held = query.addressable_shards[0].data.size * axes.get("fsdp", 1) * axes.get("tensor", 1)
    assert held == query.size  # split exactly as far as the mesh says
    assert len(query.sharding.device_set) == 8


def test_moments_lie_where_their_parameters_lie():
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    for name in ("adamw", "muon"):
        opt = make_optimizer(OptimizerConfig(name=name), make_schedule(ScheduleConfig(), 1e-3, 10))
        state = jax.eval_shape(opt.init, PARAMS)
        specs = {
            jax.tree_util.keystr(path, simple=True, separator="/"): x.spec
            for path, x in jax.tree_util.tree_leaves_with_path(shard_optimizer_state(state, PARAMS, mesh))
        }
        moments = [spec for path, spec in specs.items() if path.endswith("attention/query/kernel")]
        assert len(moments) == {"adamw": 2, "muon": 1}[name]
        assert all(spec == P(None, "fsdp", "tensor", None) for spec in moments)
        assert all(spec == P() for path, spec in specs.items() if path.endswith("count"))


def test_table():
    mesh = make_mesh(MeshConfig(data=1, fsdp=2, tensor=4))
    specs = jax.tree.map(lambda x: x.spec, shard_parameters(PARAMS, mesh))
    decoder = specs["decoder"]
    assert decoder["attention"]["query"]["kernel"] == P(None, "fsdp", "tensor", None)
    assert decoder["attention"]["key"]["kernel"] == P(None, "fsdp", None, None)  # 2 heads on 4 devices: whole
    assert decoder["attention"]["output"]["kernel"] == P(None, "tensor", None, "fsdp")
    assert decoder["mlp"]["up"]["kernel"] == P(None, "fsdp", "tensor")
    assert decoder["mlp"]["up"]["bias"] == P(None, "tensor")
    assert decoder["mlp"]["down"]["kernel"] == P(None, "tensor", "fsdp")
    assert decoder["attention_norm"]["scale"] == P(None, None)
    assert specs["embedder"]["token"]["embedding"] == P("tensor", "fsdp")
    assert specs["head"]["kernel"] == P("fsdp", "tensor")
    assert parameter_spec("decoder/cross_attention/query/kernel", (3, 8, 4, 2), mesh) == P(None, "fsdp", "tensor", None)


def test_table_of_experts():
    mesh = make_mesh(MeshConfig(data=1, fsdp=2, expert=2, tensor=2))
    where = "decoder/mlp/experts"
    assert parameter_spec(f"{where}/up_kernel", (3, 4, 8, 6), mesh) == P(None, "expert", "fsdp", "tensor")
    assert parameter_spec(f"{where}/down_kernel", (3, 4, 6, 8), mesh) == P(None, "expert", "tensor", "fsdp")
    assert parameter_spec(f"{where}/gate_bias", (3, 4, 6), mesh) == P(None, "expert", "tensor")
    assert parameter_spec(f"{where}/down_bias", (3, 4, 8), mesh) == P(None, "expert", "fsdp")
    assert parameter_spec(f"{where}/up_kernel", (3, 5, 8, 6), mesh) == P(None, None, "fsdp", "tensor")  # 5 experts
    assert parameter_spec(f"{where}/router/kernel", (3, 8, 4), mesh) == P(None, "fsdp", None)


def test_unknown_parameters_are_split_by_fsdp_along_their_largest_dimension():
    mesh = make_mesh(MeshConfig(data=1, fsdp=4, tensor=2))
    assert parameter_spec("lstm/recurrent", (12, 64), mesh) == P(None, "fsdp")
    assert parameter_spec("lstm/recurrent", (64, 6), mesh) == P("fsdp", None)
    assert parameter_spec("lstm/recurrent", (128, 8, 8), mesh) == P(None, None, "fsdp")  # 128 may be layers
    assert parameter_spec("lstm/recurrent", (7, 9), mesh) == P(None, None)
    assert parameter_spec("lstm/gate", (64,), mesh) == P(None)


def test_batches_are_split_by_rows_and_positions():
    assert shard_batch(np.zeros(8), make_mesh(MeshConfig(data=2, fsdp=2, expert=2))).spec == P(
        ("data", "fsdp", "expert")
    )
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, context=2))
    shardings = shard_batch({"tokens": np.zeros((8, 12)), "odd": np.zeros((8, 13)), "row": np.zeros(8)}, mesh)
    assert shardings["tokens"].spec == P(("data", "fsdp"), "context")
    assert shardings["odd"].spec == P(("data", "fsdp"), None)
    assert shardings["row"].spec == P(("data", "fsdp"))


@pytest.mark.parametrize(
    ("config", "mend"),
    [
        ({"data": 0}, "mesh.data is 0; give a positive count"),
        ({"data": -1, "fsdp": -1}, "only one mesh axis"),
        ({"data": 16}, "needs 16 devices, but 8 are here"),
        ({"data": -1, "tensor": 3}, "mesh.data=-1 cannot share 8 devices"),
        ({"expert": -2}, "mesh.expert is -2; give a positive count"),
        ({"slices": 0}, "mesh.slices is 0; it must be at least 1"),
        ({"data": 1, "fsdp": 8, "slices": 2}, "mesh.data is 1 and mesh.slices 2: `data` alone runs across slices"),
    ],
    ids=str,
)
def test_a_mesh_that_does_not_fit_is_refused(config, mend):
    with pytest.raises(ValueError, match=mend):
        make_mesh(MeshConfig(**config))


def test_remaining_devices_and_part_of_the_devices():
    sizes = {"data": 4, "fsdp": 1, "expert": 1, "tensor": 2, "context": 1}
    assert MeshConfig(data=-1, tensor=2).sizes(8) == sizes
    assert make_mesh(MeshConfig(data=2, fsdp=2)).size == 4


@pytest.mark.parametrize(
    ("axes", "mend"),
    [
        ({"expert": 2}, "mesh.expert is 2, .* it takes experts of which 2 is a divisor, and it has none"),
        ({"tensor": 7}, r"mesh.tensor is 7, .* heads, hidden units or a vocabulary .* the sizes that it has are 2, "),
        ({"fsdp": 5}, "mesh.fsdp is 5, .* use another size, or mesh.fsdp=1"),
    ],
    ids=str,
)
def test_an_axis_that_splits_nothing_is_refused(axes, mend):
    with pytest.raises(ValueError, match=mend):
        train_on(MeshConfig(**{"data": 1, **axes}))


def test_an_axis_that_splits_something_is_not():
    check_axes(PARAMS, make_mesh(MeshConfig(data=1, tensor=8)))  # no heads, but hidden units
    check_axes({"lstm": jax.ShapeDtypeStruct((12, 64), jnp.float32)}, make_mesh(MeshConfig(data=1, fsdp=8)))


@dataclasses.dataclass(frozen=True)
class Device:
    """What arranging asks of a device."""

    id: int
    process_index: int
    slice_index: int
    platform: str = "gpu"
    device_kind: str = "one that no table knows"


def devices(num_slices: int, num_processes: int, num_each: int) -> list[Device]:
    """Devices of slices of processes, in an order that mixes slices."""
    found = [
        Device(id=index, process_index=index // num_each, slice_index=index // num_each // num_processes)
        for index in range(num_slices * num_processes * num_each)
    ]
    return found[::2] + found[1::2]


@pytest.mark.parametrize("slices", [2, 4])
def test_data_alone_runs_across_slices(slices):
    """As JAX's own arrangement, for slices of two processes each, where data and fsdp are split within a slice too."""
    given = devices(slices, 2, 4)
    config = MeshConfig(data=2 * slices, fsdp=2, tensor=2, slices=slices)
    found = arrange_devices(config, given)
    assert found.shape == (2 * slices, 2, 1, 2, 1) and set(found.flat) == set(given)
    expected = create_hybrid_device_mesh((2, 2, 1, 2, 1), (slices, 1, 1, 1, 1), given)
    assert (found == expected).all()
    assert [{device.slice_index for device in part.flat} for part in found[::2]] == [{i} for i in range(slices)]


def test_machines_are_slices_where_the_platform_has_none():
    given = [dataclasses.replace(device, slice_index=0) for device in devices(1, 4, 2)]
    found = arrange_devices(MeshConfig(data=4, tensor=2, slices=4), given)
    assert [{device.process_index for device in part.flat} for part in found] == [{0}, {1}, {2}, {3}]
    # Two machines of each two that share a switch; and fake devices, which have neither.
    found = arrange_devices(MeshConfig(data=2, tensor=4, slices=2), sorted(given, key=lambda device: device.id))
    assert [{device.process_index for device in part.flat} for part in found] == [{0, 1}, {2, 3}]
    found = make_mesh(MeshConfig(data=2, fsdp=2, slices=2)).devices
    assert [[device.id for device in part.flat] for part in found] == [[0, 1], [4, 5]]


def test_slices_that_the_devices_do_not_have_are_refused():
    with pytest.raises(ValueError, match=r"mesh\.slices is 4, and the devices are in 2 slices"):
        arrange_devices(MeshConfig(data=4, slices=4), devices(2, 1, 4))
    uneven = sorted(devices(2, 1, 4), key=lambda device: device.id)[:-2]
    with pytest.raises(ValueError, match="needs 3 devices of each of its 2 slices, and one has 2"):
        arrange_devices(MeshConfig(data=2, fsdp=3, slices=2), uneven)


@pytest.mark.parametrize(
    "axes",
    tiered([{"data": 8}, {"fsdp": 8}, {"data": 2, "tensor": 4}, MIXED, {"data": 4, "context": 2}], [MIXED]),
    ids=str,
)
def test_accumulation_equals_the_whole_batch_on_every_mesh(single, axes):
    """Micro-batches score different numbers of tokens, so weighing them all the same would show."""
    losses, state, _ = train_on(MeshConfig(**{"data": 1, **axes}), num_steps=5, accumulate=2)
    assert np.abs(losses - single[0][:5]).max() < 1e-5
    assert {len(x.sharding.device_set) for x in jax.tree.leaves(state.params)} == {8}


def test_accumulation_equals_the_whole_batch(single):
    """Micro-batches score different numbers of tokens, so weighing them all the same would show."""
    losses, state, _ = train_on(MeshConfig(data=2), accumulate=4)
    assert np.abs(losses - single[0]).max() < 1e-5
    for x, y in zip(*map(jax.tree.leaves, (state.params, single[1].params)), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-3, atol=1e-5)
