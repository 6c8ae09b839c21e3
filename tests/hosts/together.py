"""Several processes of the real train.py on loopback, started as SLURM, Open MPI or a user starts them."""

import os
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path

from processes import PATIENCE, start
from small_run import OPTIONS as SMALL

from zoo.training.metrics import read_metrics

ROOT = Path(__file__).parents[2]
_CLUSTER = ("SLURM_", "OMPI_", "JAX_COORDINATOR", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID", "ZOO_", "KUBERNETES_")

OPTIONS = [
    *SMALL,
    *("--model.decoder.num-layers", "1"),
    *("--training.num-steps", "60"),
    *("--training.evaluate-every", "20"),
    *("--training.checkpoint-every", "4"),
]
SAME_BITS = ["--training.deterministic-parts", "8"]


def free_port(lowest: int = 0) -> int:
    """A port that nobody listens at, at or above `lowest`."""
    for port in range(lowest, 65536):
        with socket.socket() as probe:
            try:
                probe.bind(("", port))
                return probe.getsockname()[1]
            except OSError:
                continue
    raise AssertionError("no port is free")


def by_hand(count: int) -> list[dict[str, str]]:
    address = f"localhost:{free_port()}"
    return [
        {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": str(count), "JAX_PROCESS_ID": str(index)}
        for index in range(count)
    ]


def slurm(count: int) -> list[dict[str, str]]:
    """What srun sets on one machine. JAX makes the port of the job's number."""
    job = str(4096 * 7 + free_port(61440 + os.getpid() % 2000) - 61440)
    return [
        {
            "SLURM_JOB_ID": job,
            "SLURM_STEP_NODELIST": "localhost",
            "SLURM_NTASKS": str(count),
            "SLURM_PROCID": str(index),
            "SLURM_LOCALID": str(index),
            "SLURM_NODEID": "0",
            "SLURM_STEP_TASKS_PER_NODE": str(count),
        }
        for index in range(count)
    ]


def open_mpi(count: int) -> list[dict[str, str]]:
    """What mpirun sets on one machine."""
    job = 4096 * (free_port(61440 + os.getpid() % 2000) - 61440)
    return [
        {
            "OMPI_MCA_orte_hnp_uri": f"{job}.0;tcp://127.0.0.1:34911",
            "OMPI_COMM_WORLD_SIZE": str(count),
            "OMPI_COMM_WORLD_RANK": str(index),
            "OMPI_COMM_WORLD_LOCAL_RANK": str(index),
            "OMPI_COMM_WORLD_LOCAL_SIZE": str(count),
        }
        for index in range(count)
    ]


class Together:
    """Processes of one run. Leaving the block kills those that are left."""

    def __init__(self, arguments: list[str], logs: Path, env: dict[str, str], devices: int, places: list[dict]):
        logs.mkdir(parents=True, exist_ok=True)
        base = {name: value for name, value in env.items() if not name.startswith(_CLUSTER)}
        base |= {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"}
        self._logs, self.processes = [], []
        for index, place in enumerate(places):
            files = logs / f"{index}.out", logs / f"{index}.err"
            with open(files[0], "w") as out, open(files[1], "w") as err:
                process = start(["train.py", *arguments], environment=base | place, out=out.fileno(), err=err.fileno())
            self.processes.append(process)
            self._logs.append(files)

    def __enter__(self) -> "Together":
        return self

    def __exit__(self, *_) -> None:
        for process in self.processes:
            process.kill()
            process.wait()

    def wait_for(self, event: Callable[[], bool]) -> None:
        """Return when an event has happened, while all processes run."""
        end = time.monotonic() + PATIENCE
        while not event():
            assert time.monotonic() < end, "it did not happen in time"
            ended = [index for index, process in enumerate(self.processes) if process.poll() is not None]
            assert not ended, f"process {ended} ended before: {self.errors(ended[0]) if ended else ''}"
            time.sleep(0.01)

    def wait_for_step(self, folder: Path, step: int) -> None:
        def reached() -> bool:
            rows = read_metrics(folder / "metrics.csv")
            return bool(rows) and int(rows[-1]["step"]) >= step

        self.wait_for(reached)

    def codes(self) -> list[int]:
        """Exit codes of all."""
        return [process.wait(PATIENCE) for process in self.processes]

    def finish(self) -> None:
        codes = self.codes()
        assert codes == [0] * len(codes), [self.errors(index)[-3000:] for index in range(len(codes))]

    def output(self, index: int) -> str:
        """What a process printed, without the lines of Gloo."""
        return _without_gloo(self._logs[index][0])

    def errors(self, index: int) -> str:
        return _without_gloo(self._logs[index][1])

    def send(self, index: int, number: signal.Signals) -> None:
        self.processes[index].send_signal(number)


def _without_gloo(path: Path) -> str:
    return "".join(line for line in path.read_text().splitlines(keepends=True) if not line.startswith("[Gloo]"))
