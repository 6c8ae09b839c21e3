"""Which cluster the environment tells of, and one clear line where it does not come together."""

import os
import re

import pytest
from together import OPTIONS, Together, by_hand, open_mpi, slurm

from zoo.training.hosts import Cluster, find_cluster, local_devices

JAX = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID", "JAX_COORDINATOR_PORT")


@pytest.fixture
def find(monkeypatch):
    """`find(variables)`: the cluster of a process with these variables; JAX's own detection reads os.environ."""

    def find(variables):
        for name in [name for name in os.environ if name.startswith(("SLURM_", "OMPI_")) or name in JAX]:
            monkeypatch.delenv(name)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        return find_cluster(os.environ, seconds=1)

    return find


def test_a_machine_alone_is_no_cluster(find):
    assert find({}) is None


@pytest.mark.parametrize(
    ("launcher", "name"),
    [(by_hand, "environment"), (slurm, "SLURM"), (open_mpi, "Open MPI")],
    ids=["environment", "slurm", "open_mpi"],
)
def test_launchers_are_known_by_their_variables(find, launcher, name):
    places = launcher(3)
    found = [find(place) for place in places]
    assert [cluster.name for cluster in found] == [name] * 3
    assert [cluster.process for cluster in found] == [0, 1, 2]
    assert {cluster.num_processes for cluster in found} == {3}
    assert len({cluster.coordinator for cluster in found}) == 1


def test_slurm_names_the_first_node_of_its_list(find):
    place = slurm(8)[5] | {"SLURM_STEP_NODELIST": "node[007,009-011],other1", "SLURM_JOB_ID": "123456"}
    assert find(place).coordinator == "node007:62016"  # 61440 + 123456 % 4096
    assert find(place | {"JAX_COORDINATOR_PORT": "1234"}).coordinator == "node007:1234"


def test_what_is_said_outright_wins(find):
    place = slurm(2)[1]
    assert find(place | {"JAX_NUM_PROCESSES": "1"}) is None
    assert find(place | {"JAX_COORDINATOR_ADDRESS": "other:9"}).coordinator == "other:9"
    assert find(place | by_hand(4)[3]).process == 3
    assert find({**slurm(1)[0]}) is None


def test_open_mpi_5_has_no_address_and_the_error_says_so(find):
    place = {name: value for name, value in open_mpi(2)[1].items() if name != "OMPI_MCA_orte_hnp_uri"}
    with pytest.raises(ValueError, match="JAX_COORDINATOR_ADDRESS"):
        find(place)
    found = find(place | {"JAX_COORDINATOR_ADDRESS": "node1:1234"})
    assert found == Cluster(name="Open MPI", coordinator="node1:1234", num_processes=2, process=1)


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"JAX_COORDINATOR_ADDRESS": "a:1"}, "JAX_NUM_PROCESSES and JAX_PROCESS_ID is not set"),
        ({"JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "0"}, "JAX_COORDINATOR_ADDRESS is not set"),
        ({"JAX_NUM_PROCESSES": "two"}, "JAX_NUM_PROCESSES is 'two'; give a number"),
        ({**by_hand(2)[0], "JAX_PROCESS_ID": "2"}, "process 2 of 2 processes: give JAX_PROCESS_ID from 0 to 1"),
        ({**by_hand(2)[0], "JAX_COORDINATOR_ADDRESS": "host"}, "JAX_COORDINATOR_ADDRESS is 'host'; give host:port"),
    ],
)
def test_contradictions_are_named(find, variables, message):
    with pytest.raises(ValueError, match=message):
        find(variables)


@pytest.mark.parametrize(
    ("visible", "tasks", "node", "local", "expected"),
    [
        ("0,1,2,3,4,5,6,7", "1(x2)", 1, 0, None),  # one process has the machine, and all its GPUs
        ("0,1,2,3,4,5,6,7", "8(x4)", 3, 5, (5,)),
        ("0,1,2,3", "2(x2),1", 0, 1, (2, 3)),
        ("0,1,2,3", "2(x2),1", 2, 0, None),
        ("3", "4", 0, 3, None),  # SLURM has dealt them: --gpus-per-task=1
        (None, "4", 0, 3, None),
    ],
)
def test_gpus_are_shared_among_the_processes_of_a_machine(visible, tasks, node, local, expected):
    environment = {"SLURM_STEP_TASKS_PER_NODE": tasks, "SLURM_NODEID": str(node), "SLURM_LOCALID": str(local)}
    if visible is not None:
        environment["CUDA_VISIBLE_DEVICES"] = visible
    assert local_devices(environment) == expected
    assert local_devices(environment | {"JAX_LOCAL_DEVICE_IDS": "1,2"}) == (1, 2)


def test_a_coordinator_that_is_not_there_is_one_line(environment, tmp_path):
    place = by_hand(2)[1] | {"ZOO_JOIN_SECONDS": "2"}
    with Together(["--folder", str(tmp_path / "run")], tmp_path / "logs", environment, 1, [place]) as run:
        assert run.codes() == [1] and run.output(0) == ""
        (line,) = run.errors(0).splitlines()
    assert line.startswith("error: process 1 of 2 cannot reach process 0 at localhost:")
    assert "within 2 s (Connection refused)" in line and "ZOO_JOIN_SECONDS" in line
    assert not (tmp_path / "run").exists()


def test_a_process_that_does_not_come_is_named(environment, tmp_path):
    places = [place | {"ZOO_JOIN_SECONDS": "10"} for place in by_hand(3)[:2]]
    with Together(["--folder", str(tmp_path / "run")], tmp_path / "logs", environment, 1, places) as run:
        assert run.codes() == [1, 1]
        said = [run.errors(index) for index in range(2)]
    # A machine may be too slow for the second to come in time too.
    assert re.fullmatch(r"error: process (1, )?2 of 3 did not come to localhost:\d+ within 10 s; .*\n", said[0])
    assert len(said[1].splitlines()) == 1


def test_processes_that_contradict_each_other_are_named(environment, tmp_path):
    first, second = by_hand(2)
    second["JAX_NUM_PROCESSES"] = "3"
    with Together(["--folder", str(tmp_path / "run")], tmp_path / "logs", environment, 1, [first, second]) as run:
        assert run.codes() == [1, 1]
        for index in range(2):
            (line,) = run.errors(index).splitlines()
            assert line.startswith("error: process 1 was told of 3 processes and process 0 of 2")


def test_different_commands_are_refused(environment, text, tmp_path):
    """They would wait for each other in collectives that do not match."""
    options = [*OPTIONS, "--data.path", str(text), "--folder", str(tmp_path)]
    first, second = (
        Together([*options, "--training.seed", seed], tmp_path / seed, environment, 1, [place])
        for seed, place in zip("01", by_hand(2), strict=True)
    )
    with first, second:
        assert [*first.codes(), *second.codes()] == [1, 1]
        said = [first.errors(0), second.errors(0)]
    assert any("error: the processes were given different runs" in err for err in said), said
    assert not (tmp_path / "metrics.csv").exists()
