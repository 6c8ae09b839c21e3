"""Several processes as one run: they join by the environment, and agree where each could decide otherwise.

JAX tells SLURM, Open MPI, Cloud TPU and Kubernetes by their variables; `JAX_COORDINATOR_ADDRESS`, `JAX_NUM_PROCESSES`
and `JAX_PROCESS_ID` say it outright, and win. Nothing of this is touched on a machine that has none of them.

Two settings are variables too, for they count before any command line is read: `ZOO_JOIN_SECONDS` (300), how long
processes wait for each other at the start, and `ZOO_HEARTBEAT_SECONDS` (100), after which JAX gives up a silent one.
"""

import importlib.util
import os
import socket
import sys
import traceback
import zlib
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from zoo.training.peers import Peers
from zoo.training.stopping import listen

_BARRIER_MILLISECONDS = 24 * 3600 * 1000  # whoever dies meanwhile ends the others


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """What the environment says about the run's processes."""

    name: str
    coordinator: str
    """host:port of process 0."""
    num_processes: int
    process: int
    local_devices: tuple[int, ...] | None = None
    """The GPUs of this process by their numbers on its machine; None: all that are visible."""


def find_cluster(environment: Mapping[str, str], seconds: float) -> Cluster | None:
    """Return the cluster that an environment tells of; None for a process that is alone.

    Raises ValueError for variables that are missing or no numbers.
    """
    count = _number(environment, "JAX_NUM_PROCESSES")
    process = _number(environment, "JAX_PROCESS_ID")
    address = environment.get("JAX_COORDINATOR_ADDRESS")
    if count == 1:
        return None
    name, kind = "environment", None
    if None in (count, process, address):
        kind = _detect(environment)
    if kind is not None:
        name = _NAMES.get(kind.name, kind.name)
        count = kind.get_process_count() if count is None else count
        process = kind.get_process_id() if process is None else process
    elif "OMPI_COMM_WORLD_SIZE" in environment:  # Open MPI 5: it tells all but the address, and JAX wants that too
        name = "Open MPI"
        count = _number(environment, "OMPI_COMM_WORLD_SIZE") if count is None else count
        process = _number(environment, "OMPI_COMM_WORLD_RANK") if process is None else process
    if count == 1 or (count, process, address) == (None, None, None):
        return None
    if kind is not None and address is None:
        port = environment.get("JAX_COORDINATOR_PORT")
        address = kind.get_coordinator_address(timeout_secs=int(seconds), override_coordinator_port=port)
    given = {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": count, "JAX_PROCESS_ID": process}
    missing = [name for name, value in given.items() if value is None]
    if missing or count is None or process is None or address is None:
        raise ValueError(
            f"{name} tells of several processes, and {' and '.join(missing)} is not set: set all of "
            f"{', '.join(given)}, or none for one machine"
        )
    if not 0 <= process < count:
        raise ValueError(f"process {process} of {count} processes: give JAX_PROCESS_ID from 0 to {count - 1}")
    if not address.rpartition(":")[2].isdigit() or not address.rpartition(":")[0]:
        raise ValueError(f"JAX_COORDINATOR_ADDRESS is {address!r}; give host:port of the machine of process 0")
    devices = local_devices(environment)
    return Cluster(name=name, coordinator=address, num_processes=count, process=process, local_devices=devices)


_NAMES = {"slurm": "SLURM", "ompi": "Open MPI", "gketpu": "Cloud TPU", "gcetpu": "Cloud TPU", "k8s": "Kubernetes"}


def _number(environment: Mapping[str, str], name: str) -> int | None:
    text = environment.get(name)
    if text is None:
        return None
    if not text.isdigit():
        raise ValueError(f"{name} is {text!r}; give a number")
    return int(text)


def _detect(environment: Mapping[str, str]) -> Any:
    """The first of JAX's kinds of clusters that is present; those are not public, `jax.distributed` asks them too."""
    from jax._src.clusters import ClusterEnv

    def present(kind: Any) -> bool:
        if kind.name == "k8s":
            # Every pod has the service's address; JAX would ask the service about each, and warn without the package.
            job = {"KUBERNETES_SERVICE_HOST", "JOB_COMPLETION_INDEX"} <= environment.keys()
            return job and importlib.util.find_spec("kubernetes") is not None and kind.is_env_present()
        return not kind.opt_in_only_method and kind.is_env_present()

    return next((kind for kind in ClusterEnv._cluster_types if present(kind)), None)


def local_devices(environment: Mapping[str, str]) -> tuple[int, ...] | None:
    """Return the GPUs of this process where a launcher starts several on a machine; None: all that are visible.

    A machine's GPUs are shared evenly among its processes. Fewer visible than processes: the launcher has dealt them.
    (JAX left alone takes the GPU of the process's own number, and so one of eight where one process has the machine.)
    """
    ids = environment.get("JAX_LOCAL_DEVICE_IDS")
    if ids:
        return tuple(map(int, ids.split(",")))
    visible = environment.get("CUDA_VISIBLE_DEVICES") or environment.get("ROCR_VISIBLE_DEVICES")
    here, mine = _tasks_here(environment)
    if not visible or here <= 1:
        return None
    each = len(visible.split(",")) // here
    return None if each == 0 else tuple(range(mine * each, (mine + 1) * each))


def _tasks_here(environment: Mapping[str, str]) -> tuple[int, int]:
    """How many processes the launcher started on this machine, and which of them this is."""
    if "OMPI_COMM_WORLD_LOCAL_SIZE" in environment:
        return int(environment["OMPI_COMM_WORLD_LOCAL_SIZE"]), int(environment["OMPI_COMM_WORLD_LOCAL_RANK"])
    tasks: list[int] = []  # of each node, written as "2(x3),1"
    for part in filter(None, environment.get("SLURM_STEP_TASKS_PER_NODE", "").split(",")):
        number, _, times = part.rstrip(")").partition("(x")
        tasks += [int(number)] * int(times or 1)
    node = int(environment.get("SLURM_NODEID", 0))
    return (tasks[node], int(environment.get("SLURM_LOCALID", 0))) if node < len(tasks) else (1, 0)


_peers: Peers | None = None


@contextmanager
def joined() -> Iterator[None]:
    """Be one process of the cluster that the environment tells of, if it does, within the block.

    Call it before anything asks JAX for its devices. When the block ends by an error, the other processes end too.

    Raises ValueError for a cluster that does not come together in time.
    """
    global _peers
    seconds = _seconds("ZOO_JOIN_SECONDS", 300)
    cluster = find_cluster(os.environ, seconds)
    if cluster is None:
        yield
        return
    _peers = Peers(cluster.process, cluster.num_processes)
    _peers.meet(cluster.coordinator, seconds)
    _initialize(cluster, seconds)
    _peers.watch()
    try:
        with listen() as stop:
            stop.alone = False
            yield
    except SystemExit as error:
        if error.code not in (0, None):
            _peers.fail()
        _leave(_peers)
        raise
    except BaseException:
        traceback.print_exc()
        _peers.fail()
    else:
        _leave(_peers)


def _leave(peers: Peers) -> None:
    synchronise("the end")
    peers.leave()
    jax.distributed.shutdown()


def _initialize(cluster: Cluster, seconds: float) -> None:
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    # It would take SIGTERM for itself, even where nobody listens; the loop has an agreement of its own.
    jax.config.update("jax_enable_preemption_service", False)
    jax.distributed.initialize(
        cluster.coordinator,
        cluster.num_processes,
        cluster.process,
        cluster.local_devices,
        cluster_detection_method="deactivate",
        initialization_timeout=int(seconds),
        heartbeat_timeout_seconds=int(_seconds("ZOO_HEARTBEAT_SECONDS", 100)),
    )
    device = jax.local_devices()[0]
    print(
        f"{cluster.name}: process {cluster.process} of {cluster.num_processes} on {socket.gethostname()}, with "
        f"{jax.local_device_count()} of {jax.device_count()} devices ({device.device_kind}); process 0 is at "
        f"{cluster.coordinator}",
        file=sys.stderr,
        flush=True,
    )


def _seconds(name: str, default: float) -> float:
    text = os.environ.get(name)
    try:
        value = default if text is None else float(text)
    except ValueError:
        value = -1.0
    if value < 1:
        raise ValueError(f"{name} is {text!r}; give seconds, at least 1")
    return value


def is_first() -> bool:
    """Whether this process is the one that writes and speaks."""
    return jax.process_index() == 0


def synchronise(name: str) -> None:
    """Wait until all processes are here; at once where there is one."""
    if jax.process_count() > 1:
        from jax._src import distributed  # collectives on devices, the public way, give up a long wait

        _passed[name] = _passed.get(name, 0) + 1
        client: Any = distributed.global_state.client
        client.wait_at_barrier(f"zoo: {name} {_passed[name]}", _BARRIER_MILLISECONDS)


_passed: dict[str, int] = {}


@contextmanager
def first_one_first() -> Iterator[None]:
    """Run the block in process 0 and then in the others: what it makes in a shared folder, they find there."""
    if not is_first():
        synchronise("the first has made it")
    yield
    if is_first():
        synchronise("the first has made it")


def check_same(what: Any) -> None:
    """Raise ValueError unless a value, such as the run that was asked for, is the same in every process."""
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        sums = multihost_utils.process_allgather(np.uint32(zlib.crc32(repr(what).encode())))
        if len(set(np.asarray(sums).tolist())) > 1:
            raise ValueError("the processes were given different runs: start all with the same command and code")


class Agreement:
    """Decisions that any of several processes may ask for and that all must take at the same step."""

    def __init__(self, lag: int = 0):
        """An answer that comes `lag` questions later costs no wait: the devices have it when it is read."""
        self._lag = lag
        self._asked: deque[Any] = deque()

    def now(self, flag: bool) -> bool:
        """Return whether any process has the flag; all ask together, and wait for each other."""
        return flag if jax.process_count() == 1 else bool(_any_process(flag))

    def soon(self, flag: bool) -> bool:
        """Return whether any process had the flag `lag` calls ago; of one process, whether it has it now."""
        if jax.process_count() == 1:
            return flag
        self._asked.append(_any_process(flag))
        return len(self._asked) > self._lag and bool(self._asked.popleft())


def _any_process(flag: bool) -> jax.Array:
    """Whether the flag is set in any process, still on the devices."""
    devices = np.array(jax.devices())
    mesh = jax.sharding.Mesh(devices, ("all",))
    mine = np.array([flag])
    flags = jax.make_array_from_callback((devices.size,), jax.NamedSharding(mesh, jax.P("all")), lambda _: mine)
    with jax.set_mesh(mesh):
        return _any(flags)


@jax.jit
def _any(flags: jax.Array) -> jax.Array:
    return flags.any()
