"""A plan says what the step then takes: bytes of arrays that a run holds, the compiler's memory, the collectives."""

import dataclasses
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from checkpoints import write_checkpoint
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import PartitionSpec as P
from tiers import tiered
from toy import Counting, Toy, make_batch, run_toy

from zoo.cli import parse_run, train
from zoo.data import open_dataset
from zoo.recipes import RECIPES
from zoo.recipes import plan as recipe_plan
from zoo.recipes.preparation import prepare
from zoo.recipes.start import begin
from zoo.training import loop
from zoo.training import plan as planning
from zoo.training.config import DryRunConfig, MeshConfig, OptimizerConfig, ScheduleConfig, TrainingConfig
from zoo.training.devices import Accelerator, find_accelerator
from zoo.training.optimizer import make_optimizer, make_schedule
from zoo.training.plan import bound_step_time, find_largest_batch, plan_step
from zoo.training.prefetch import place_batch
from zoo.training.program import read_collectives, read_temporaries
from zoo.training.sharding import make_mesh
from zoo.training.state import abstract_state, bind_apply, initialise_state
from zoo.training.step import make_train_step
from zoo.training.tuning import merge

ROOT = Path(__file__).parents[2]
SETTINGS = {
    "optimizer": OptimizerConfig(name="muon"),
    "schedule": ScheduleConfig(),
    "training": TrainingConfig(accumulate=2),
}
MESH = MeshConfig(data=2, fsdp=2, tensor=2)


def plan_toy(rows, mesh=MESH):
    shapes = {name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in make_batch(rows, 0).items()}
    return plan_step(Toy(dropout=0.1), Counting(), shapes, make_mesh(mesh), **SETTINGS)


def bytes_on_a_device(tree):
    """What lies on the first device, counted on the arrays that are there."""
    device = jax.devices()[0]
    shards = [shard for x in jax.tree.leaves(tree) for shard in x.addressable_shards if shard.device == device]
    return sum(shard.data.nbytes for shard in shards)


def test_a_plan_is_what_the_step_takes_that_runs():
    plan, mesh = plan_toy(16), make_mesh(MESH)
    model, task, training = Toy(dropout=0.1), Counting(), SETTINGS["training"]
    schedule = make_schedule(SETTINGS["schedule"], SETTINGS["optimizer"].learning_rate, training.num_steps)
    optimizer = make_optimizer(SETTINGS["optimizer"], schedule)
    with jax.set_mesh(mesh):
        batch = place_batch(make_batch(16, 0), mesh)
        target = abstract_state(model, task, optimizer, batch, mesh)
        state = initialise_state(model, task, optimizer, batch, target, seed=0)
        step = make_train_step(
            task, bind_apply(model), optimizer, schedule, seed=0, accumulate=training.accumulate, target=target
        )
        held = [bytes_on_a_device(x) for x in (state.params, state.opt_state, batch)]
        compiled = step.lower(state, batch, {}).compile()
        state, metrics = compiled(state, batch, {})  # the program that is analysed is one that runs
    assert np.isfinite(metrics["loss"])
    memory, ran = plan.memory, compiled.memory_analysis()
    assert [memory.parameters, memory.optimizer, memory.batch] == held
    assert memory.temporaries == ran.temp_size_in_bytes > memory.gradients > 0
    assert memory.arguments == ran.argument_size_in_bytes >= sum(held)
    assert memory.total == ran.argument_size_in_bytes + ran.temp_size_in_bytes + (
        ran.output_size_in_bytes - ran.alias_size_in_bytes
    )
    assert plan.num_parameters == sum(x.size for x in jax.tree.leaves(state.params)) == 4208
    largest = plan.largest[0]
    assert largest.num_bytes == 2 * 16 * 32 * 4 // 4 and largest.sharding in (". fsdp tensor", ". tensor fsdp")
    assert plan.step_flops > plan.model_flops > 0, "Muon's products are the step's, and no model's"


def test_the_step_that_is_planned_is_the_one_that_the_loop_makes(tmp_path, monkeypatch):
    """Whatever the loop gives its step, the plan gives it too; a new option of one alone fails here."""
    made = []
    for module in (loop, planning):

        def record(*args, make=module.make_train_step, **options):
            made.append(options)
            return make(*args, **options)

        monkeypatch.setattr(module, "make_train_step", record)
    settings = {"num_steps": 1, "accumulate": 2, "seed": 3, "evaluate_every": None, "checkpoint_every": None}
    run_toy(tmp_path, optimizer={"name": "adafactor"}, **settings)
    shapes = {name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in make_batch(8, 0).items()}
    plan_step(
        Toy(dropout=0.1),
        Counting(),
        shapes,
        make_mesh(MeshConfig(data=1, fsdp=2)),
        optimizer=OptimizerConfig(name="adafactor", learning_rate=1e-2),
        schedule=ScheduleConfig(name="constant", warmup_steps=3),
        training=TrainingConfig(tensorboard=False, **settings),
    )
    ran, planned = made
    leaves = [jax.tree_util.tree_leaves_with_path(options.pop("target")) for options in (ran, planned)]
    assert leaves[0] == leaves[1] and ran == planned


def test_a_larger_mesh_holds_less_a_device_and_must_talk():
    one, eight = plan_toy(16, MeshConfig(data=1)), plan_toy(16)
    assert not one.collectives and {x.kind for x in eight.collectives} >= {"all-reduce"}
    assert eight.memory.parameters < one.memory.parameters / 3
    assert one.model_flops == eight.model_flops, "FLOPs are those of the global batch"


def test_collectives_are_counted_with_the_turns_of_their_loops():
    mesh = make_mesh(MeshConfig(data=8))
    ring = [(i, (i + 1) % 8) for i in range(8)]

    def talk(x):
        def turn(total, _):
            return jax.lax.psum(jnp.sin(total), "data") * 0.1, None

        total = jax.lax.scan(turn, x, None, length=5)[0]
        return jax.lax.all_gather(total, "data").sum(0) + jax.lax.ppermute(x, "data", ring)

    with jax.set_mesh(mesh):
        shared = jax.shard_map(talk, in_specs=P("data"), out_specs=P("data"), check_vma=False)
        text = jax.jit(shared).lower(jax.ShapeDtypeStruct((8 * 1000,), jnp.float32)).compile().as_text()
    found = {x.kind: (x.count, x.payload, x.sent) for x in read_collectives(text, 8)}
    assert found == {
        "all-reduce": (5, 5 * 4000, 5 * 2 * 4000 * 7 // 8),
        "all-gather": (1, 32000, 28000),
        "collective-permute": (1, 4000, 4000),
    }
    assert read_temporaries(text, 1)[0].num_bytes == 32000


@pytest.mark.parametrize(
    ("line", "sent"),
    [
        ("%x = f32[8,4]{1,0} reduce-scatter(%p), replica_groups={{0,1},{2,3}}, dimensions={0}", 128),
        (
            "%x = (f32[4]{0}, bf16[4]{0}) all-reduce-start(%p, %p), replica_groups=[2,4]<=[8], to_apply=%add",
            2 * 24 * 3 // 4,
        ),
        ("%x = (f32[4]{0}, f32[16]{0}) all-gather-start(%p), replica_groups=[2,4]<=[8], dimensions={0}", 48),
        ("%x = (f32[4]{0}, f32[4]{0}, u32[], u32[]) collective-permute-start(%p), source_target_pairs={{0,1}}", 16),
        ("%x = f32[4]{0} all-to-all(%p), replica_groups=mesh['a'=2,'b'=4] {'a'}", 8),
        ("%x = f32[4]{0} all-to-all(%p), replica_groups=mesh['a'=2,'b'=4] {'a','b':(1)2}", 12),
        ("%x = f32[8]{0} all-reduce(%p), replica_groups={}, to_apply=%add", 2 * 32 * 7 // 8),
    ],
)
def test_collectives_as_other_compilers_write_them(line, sent):
    """GPUs' and TPUs' programs have them in two halves, and HLO has three ways to write groups."""
    text = f"HloModule m\n\nENTRY %main (p: f32[4]) -> f32[4] {{\n  %p = f32[4]{{0}} parameter(0)\n  {line}\n}}\n"
    (found,) = read_collectives(text, 8)
    assert (found.count, found.sent) == (1, sent)


@settings(max_examples=200, deadline=None)
@given(
    st.integers(1, 64), st.integers(0, 10**6), st.integers(1, 10**4), st.integers(1, 10**8), st.integers(1, 999),
    st.integers(0, 50),
)  # fmt: skip
def test_the_largest_batch_fits_and_the_next_does_not(unit, fixed, slope, memory, start, bumps):
    asked = []

    def measure(rows):
        assert rows % unit == 0 and rows not in asked, "each compilation is dear"
        asked.append(rows)
        return fixed + slope * rows + slope * bumps * (rows // (7 * unit))  # affine, in steps

    rows = find_largest_batch(measure, unit, memory, start * unit)
    size = lambda n: fixed + slope * n + slope * bumps * (n // (7 * unit))  # noqa: E731
    assert size(rows + unit) > memory and (rows == 0 or size(rows) <= memory)
    assert len(asked) < 25


def test_the_largest_batch_of_a_real_step():
    memory = plan_toy(400).memory.total + 5000
    sizes = {}

    def measure(rows):
        sizes[rows] = plan_toy(rows).memory.total
        return sizes[rows]

    rows = find_largest_batch(measure, 8, memory, 64)
    assert rows >= 400 and sizes[rows] <= memory < sizes[rows + 8]
    assert len(sizes) <= 6, "memory is nearly affine in the rows"


def test_a_step_takes_as_long_as_the_slowest_of_products_memory_and_collectives():
    plan = plan_toy(16)
    memory, sent = plan.memory, sum(x.sent for x in plan.collectives)
    slow = {"tflops": 1e-3, "memory": 1, "bandwidth": 1.0, "link": 1.0}

    def bound(peak=1e9, **fast):
        return bound_step_time(plan, Accelerator(**{**slow, **fast}), peak=peak, mfu=0.5)

    times = bound(bandwidth=1e6, link=1e6)
    assert times.products == times.bound == pytest.approx(plan.step_flops / 8e9)
    assert times.expected == pytest.approx(plan.model_flops / 4e9)
    times = bound(peak=1e18, bandwidth=1e6)
    assert times.bound == times.expected == times.collectives == pytest.approx(sent / 1e9)
    times = bound(peak=1e18, link=1e6)
    state = memory.parameters + memory.optimizer
    assert times.bound == pytest.approx((2 * state + memory.batch + 2 * memory.temporaries) / 1e9)


def test_devices_by_their_longest_name():
    assert find_accelerator("NVIDIA H100 80GB HBM3").tflops == 989
    assert find_accelerator("NVIDIA H100 PCIe").link == 64
    assert find_accelerator("TPU v5 lite").memory == 16
    assert find_accelerator("Unheard-of 9000") is None


@pytest.mark.parametrize("name", ["translate-dates", "vit-tiny", "transformer-tiny"])
def test_an_invented_batch_has_the_shapes_of_the_real_one(name, tmp_path):
    run = dataclasses.replace(RECIPES[name](), folder=str(tmp_path))
    real = next(prepare(run, open_dataset(run.data)).task.batches("train"))
    invented, _ = recipe_plan.make_batch(run)
    assert {key: (x.shape[1:], x.dtype) for key, x in real.items()} == {
        key: (x.shape[1:], x.dtype) for key, x in invented.items()
    }
    assert {len(x) for x in real.values()} == {run.task.batch_size} and {len(x) for x in invented.values()} == {2}


@pytest.mark.parametrize("name", tiered(RECIPES, [*RECIPES][::4]))
def test_every_recipe_has_a_state_and_a_loss_of_shapes_alone(name):
    run = RECIPES[name]()
    batch, task = recipe_plan.make_batch(run)
    mesh = make_mesh(MeshConfig(data=1, fsdp=2))
    with jax.set_mesh(mesh):
        optimizer = make_optimizer(run.optimizer, make_schedule(run.schedule, 1.0, 10))
        state = abstract_state(run.make_model(), task, optimizer, batch, mesh)
    assert all(isinstance(x, jax.ShapeDtypeStruct) for x in jax.tree.leaves(state))
    assert len(jax.tree.leaves(state.params)) > 5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"memory": "80 bits"}, "80GiB"),
        ({"memory": "0GiB"}, "80GiB"),
        ({"mfu": 1.5}, "dry_run.mfu"),
        ({"link": 0.0}, "dry_run.link"),
        ({"devices": 0}, "dry_run.devices"),
    ],
)
def test_wrong_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        DryRunConfig(**options)


@pytest.mark.parametrize("tune", tiered(["full", "lora"], ["lora"]))
def test_a_run_from_a_checkpoint(tune, tmp_path, capsys):
    """Roberta's texts have no token types: the rows are made by the checkpoint's tokenizer."""
    folder = write_checkpoint(tmp_path / "roberta", "roberta", "base", num_hidden_layers=2)
    arguments = ["--init", str(folder), "--init.tune", tune, "--mesh.data", "1", "--task.sequence-length", "16"]
    train(["classify-tiny", "--dry-run", *arguments, "--dry-run.json", str(tmp_path / "plan.json")])
    plan = json.loads((tmp_path / "plan.json").read_text())["plan"]
    run, _ = parse_run(["classify-tiny", *arguments])
    start = begin(dataclasses.replace(run, folder=str(tmp_path / "run")), recipe_plan.invent_dataset(run))
    held = {"parameters": bytes_on_a_device(start.params), "frozen": bytes_on_a_device(start.frozen)}
    assert {name: plan["memory"][name] for name in held} == held
    assert 2 * held["parameters"] <= plan["memory"]["optimizer"] < 2 * held["parameters"] + 100
    assert (plan["num_frozen"] > 0) == (tune == "lora") == ("frozen parameters" in capsys.readouterr().out)
    assert plan["num_parameters"] == sum(x.size for x in jax.tree.leaves(merge(start.params, start.frozen)))


def test_sizes_of_memory():
    sizes = {"80GiB": 80 * 2**30, "80GB": 80 * 10**9, "1.5 TiB": 3 * 2**39, "512": 512, "16gib": 2**34}
    assert {text: DryRunConfig(memory=text).memory_bytes for text in sizes} == sizes
    assert DryRunConfig().memory_bytes is None


# A child begins with the memory of the process that forks it, which counts as its own: so a small one starts it.
MEASURED = """
import resource, subprocess, sys
code = subprocess.call(sys.argv[2:])
open(sys.argv[1], "w").write(str(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024))
sys.exit(code)
"""


def dry_run(arguments, folder):
    """Exit code, output and errors of `train.py`, a process with XLA as a user has it; and its peak memory in bytes."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("JAX", "XLA"))}
    with tempfile.TemporaryDirectory() as beside:
        peak = Path(beside) / "peak"
        command = [sys.executable, "-c", MEASURED, peak, sys.executable, ROOT / "train.py", *arguments]
        environment = {**kept, "JAX_PLATFORMS": "cpu", "COLUMNS": "160"}
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, env=environment, timeout=600)
        return done.returncode, done.stdout, done.stderr, int(peak.read_text())


@pytest.mark.slow
def test_a_billion_parameters_on_sixteen_devices_that_are_not_there(tmp_path):
    arguments = ["llama-1b", "--mesh.fsdp", "8", "--mesh.data", "2", "--dry-run", "--dry-run.device", "NVIDIA H100"]
    code, out, err, peak = dry_run([*arguments, "--dry-run.json", "plan.json"], tmp_path)
    assert code == 0, err
    record = json.loads((tmp_path / "plan.json").read_text())
    plan, memory = record["plan"], record["plan"]["memory"]
    assert plan["num_parameters"] == 1_112_614_912 and plan["mesh"]["fsdp"] == 8
    shares = 4 * plan["num_parameters"] / 8
    assert shares <= memory["parameters"] < 1.01 * shares, "all but the norms are split"
    assert 2 * memory["parameters"] <= memory["optimizer"] < 2.01 * memory["parameters"], "Adam has two moments"
    assert peak < 4 * plan["num_parameters"] / 2, "and nothing is allocated"
    assert 3 * 2 * 1e9 < plan["model_flops"] / (512 * 2048) < 3 * 3e9, "six FLOPs a parameter and token, and attention"
    assert record["seconds"]["expected"] > record["seconds"]["products"] > 0
    assert [path.name for path in tmp_path.iterdir()] == ["plan.json"], "no folder, no data, no tokenizer"
    assert "1,112,614,912 parameters, 512 rows a step, on data 2 x fsdp 8" in out
    assert "not a measurement" in out and "a GPU's or TPU's program has other temporaries" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--dry-run.device", "Unheard-of 9000"], "known are TPU v2"),
        (["--dry-run", "--mesh.data", "3"], "make it a multiple of 3"),
        (["--dry-run.memori", "1GiB"], "did you mean --dry-run.memory?"),
    ],
)
def test_what_cannot_be_planned_is_one_line(arguments, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        train(arguments)
    said = capsys.readouterr().err
    assert stopped.value.code == 1 and said.count("\n") == 1 and message in said, said
