"""What a run shows and writes beside its checkpoints: FLOPs, speeds, the card, TensorBoard, the CSV."""

import struct

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P
from toy import run_toy

from zoo.training.breakdown import Breakdown
from zoo.training.config import MeshConfig
from zoo.training.flops import count_flops, measure_ceiling, peak_flops
from zoo.training.metrics import MetricsFile, read_metrics
from zoo.training.plots import draw_loss, smooth
from zoo.training.progress import Progress
from zoo.training.sharding import make_mesh


def test_flops_count_loops_branches_gradients_and_convolutions():
    x, w = jnp.ones((4, 8)), jnp.ones((8, 16))
    one = 2 * 4 * 8 * 16
    assert count_flops(lambda x, w: x @ w, x, w) == one
    assert count_flops(jax.jit(lambda x, w: jnp.tanh(x @ w) * 3), x, w) == one
    assert count_flops(lambda x, w: jax.lax.map(lambda _: x @ w, jnp.arange(5)), x, w) == 5 * one
    assert count_flops(lambda x, w: jax.lax.cond(x[0, 0] > 0, lambda: x @ w, lambda: jnp.zeros((4, 16))), x, w) == one
    assert count_flops(jax.value_and_grad(lambda x, w: jax.checkpoint(jnp.matmul)(x, w).sum(), (0, 1)), x, w) == 3 * one
    assert count_flops(lambda x, w: (x @ w, x + 1)[1], x, w) == 0  # nothing reads the product
    attention = jax.ShapeDtypeStruct((2, 5, 3, 4), jnp.float32)
    assert count_flops(lambda q: jnp.einsum("btnh,bsnh->bnts", q, q), attention) == 2 * 2 * 3 * 5 * 5 * 4
    image, kernel = jnp.ones((1, 8, 8, 3)), jnp.ones((2, 2, 3, 7))
    convolve = lambda i, k: jax.lax.conv_general_dilated(  # noqa: E731
        i, k, (2, 2), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    assert count_flops(convolve, image, kernel) == 2 * (4 * 4) * 7 * (2 * 2 * 3)


def test_flops_inside_shards_are_those_of_all_shards():
    mesh = make_mesh(MeshConfig(data=8))
    with jax.set_mesh(mesh):
        product = jax.shard_map(lambda x, w: x @ w, in_specs=(P("data"), P()), out_specs=P("data"))
        assert count_flops(product, jnp.ones((16, 8)), jnp.ones((8, 4))) == 2 * 16 * 8 * 4


def test_peaks():
    class Device:
        platform, device_kind = "gpu", "NVIDIA H100 PCIe"

    assert peak_flops(Device(), jnp.bfloat16) == 756e12
    assert peak_flops(Device(), jnp.float32) == 378e12
    Device.device_kind = "NVIDIA H100 80GB HBM3"
    assert peak_flops(Device(), "bfloat16") == 989e12
    Device.device_kind = "Unheard-of 9000"
    assert peak_flops(Device(), "bfloat16") is None
    assert 1e8 < measure_ceiling("float32", size=256, seconds=0.02) < 1e15


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Return the folder of a run with everything that it reports."""
    folder = tmp_path_factory.mktemp("reported")
    run_toy(folder, tensorboard=True, resolved={"recipe": "count", "task": {"rows": (8, 2)}})
    return folder


def test_card_and_plot(run):
    card = (run / "README.md").read_text()
    rows = read_metrics(run / "metrics.csv")
    assert card.startswith("# count\n")
    assert f"| validation loss | {float(rows[-1]['validation_loss']):.4g} |" in card
    assert f"| targets scored in training | {int(rows[-1]['tokens']):,} |" in card
    assert "| **all** | **4,208** |" in card and "| decoder | 3,680 |" in card
    assert "learning_rate: 0.01" in card and "rows: [8, 2]" in card and "loss.png" in card
    assert (run / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert draw_loss(run / "checkpoints") is None


def read_events(folder):
    """Yield TensorBoard's records: length, checksum, event, checksum."""
    from tensorboardX.proto import event_pb2

    (path,) = (folder / "tensorboard").iterdir()
    data, start = path.read_bytes(), 0
    while start < len(data):
        (length,) = struct.unpack("Q", data[start : start + 8])
        yield event_pb2.Event.FromString(data[start + 12 : start + 12 + length])
        start += 16 + length


def test_tensorboard_has_the_rows_of_the_csv(run):
    rows = read_metrics(run / "metrics.csv")
    values = {(event.step, v.tag): v.simple_value for event in read_events(run) for v in event.summary.value}
    for row in rows:
        assert values[int(row["step"]), "train/loss"] == np.float32(row["loss"])
    assert values[12, "validation/loss"] == np.float32(rows[-1]["validation_loss"])


def test_metrics_file_cuts_widens_and_amends(tmp_path):
    path = tmp_path / "metrics.csv"
    file = MetricsFile(path)
    file.open(0)
    for step in range(1, 5):
        file.write(step, {"tokens": 10 * step, "loss": np.float32(0.1) * step})
        if step == 2:
            file.write(step, {"validation_loss": 0.25})
    file.flush()
    before = path.read_bytes()
    assert before.endswith(b"4,40,0.4,,,\n")
    file.write(4, {"validation_loss": 1.5})  # the row on the disk grows
    file.close()
    assert path.read_text().splitlines() == [
        "step,tokens,loss,grad_norm,learning_rate,validation_loss",
        "1,10,0.1,,,",
        "2,20,0.2,,,0.25",
        "3,30,0.3,,,",
        "4,40,0.4,,,1.5",
    ]
    with open(path, "a") as torn:
        torn.write("5,50")  # killed in the middle of a row
    file = MetricsFile(path)
    file.open(2)
    assert file.has(2, "validation_") and not file.has(3, "")
    file.write(3, {"tokens": 30})
    file.close()
    assert path.read_text().splitlines()[2:] == ["2,20,0.2,,,0.25", "3,30,,,,"]


def test_progress_speaks_plainly_where_there_is_no_terminal(capfd, monkeypatch):
    clock = iter([0.0, 100.0, 101.0, 112.0, 113.0]).__next__
    monkeypatch.setattr("zoo.training.progress.time.monotonic", clock)
    seconds = [0.0]
    spent = Breakdown(lambda: seconds[0])
    progress = Progress(40, 0, flops_per_step=2e9, peak=1e11, spent=spent)
    with progress:
        assert progress.show_step(1, 10, {"loss": 2.5}) is None  # 100 s of compilation are no step
        assert progress.show_step(2, 20, {"loss": 2.5}) is None  # too soon to say more
        for part, until in (("compute", 9.0), ("input", 11.5), ("host", 12.0)):
            with spent.within(part):
                seconds[0] = until
        speeds = progress.show_step(25, 250, {"loss": 1.25})
    assert speeds == {
        "step_seconds": pytest.approx(0.5),
        "tokens_per_second_per_device": pytest.approx(20.0),
        "mfu": pytest.approx(2e9 / 0.5 / 1e11),
        "compute_share": pytest.approx(9 / 12),
        "input_share": pytest.approx(2.5 / 12),
        "host_share": pytest.approx(0.5 / 12),
    }
    line = capfd.readouterr().err.strip().splitlines()[-1]
    assert line.startswith("step 25/40  loss 1.2500  500.0 ms/step  20 tokens/s  MFU 4.0 %  input 21 %  host 4 %  ")
    assert line.endswith("GiB  0:08 left")


def test_smoothing_keeps_a_constant_and_follows_a_start():
    np.testing.assert_allclose(smooth(np.full(50, 3.0)), 3.0)
    values = np.concatenate([np.linspace(9, 1, 10), np.ones(990)])
    assert smooth(values)[0] == 9 and smooth(values)[-1] == 1


def test_a_file_opened_again_keeps_its_newest_row_at_once(tmp_path):
    """The row's checkpoint is committed: a kill right after the resume must not cost the row."""
    path = tmp_path / "metrics.csv"
    file = MetricsFile(path)
    file.open(0)
    for step in (1, 2):
        file.write(step, {"tokens": 10 * step, "loss": 1.5})
    file.close()
    whole = path.read_bytes()
    again = MetricsFile(path)
    again.open(2)
    assert path.read_bytes() == whole
    again.write(2, {"validation_loss": 1.25})  # a new column: the file is rewritten
    assert read_metrics(path)[1] == {"step": "2", "tokens": "20", "loss": "1.5", "validation_loss": "1.25"}
    again.close()
