"""The launch files do what they say: SLURM's starts a real run of two processes, zoo reads the others' variables."""

import json
import os
import subprocess
import sys

import pytest
import yaml
from together import OPTIONS, ROOT, free_port

from zoo.training.checkpoint import list_steps
from zoo.training.hosts import find_cluster

LAUNCH = ROOT / "launch"
SRUN = """#!/usr/bin/env bash
# srun as far as a job of two tasks on this machine sees it: options, then a command that it starts twice.
set -u
while [[ $1 == --* ]]; do shift; done
for task in 0 1; do
  SLURM_PROCID=$task SLURM_LOCALID=$task SLURM_NODEID=0 SLURM_STEP_TASKS_PER_NODE=2 SLURM_STEP_NODELIST=localhost \
    "$@" & tasks[$task]=$!
done
wait "${tasks[0]}" && wait "${tasks[1]}"
"""


def test_slurm_starts_one_run_on_two_processes(environment, text, tmp_path):
    srun = tmp_path / "bin" / "srun"
    srun.parent.mkdir()
    srun.write_text(SRUN)
    srun.chmod(0o755)
    job = {
        "PATH": f"{srun.parent}:{os.environ['PATH']}",
        "SLURM_JOB_ID": str(free_port(61440 + os.getpid() % 2000) - 61440),
        "SLURM_NTASKS": "2",
        "SLURM_SUBMIT_DIR": str(ROOT),
        "PYTHON": sys.executable,
        "JAX_PLATFORMS": "cpu",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
    }
    folder = tmp_path / "run"
    options = [*OPTIONS, "--data.path", str(text), "--training.num-steps", "4", "--folder", str(folder)]
    done = subprocess.run(
        ["bash", str(LAUNCH / "slurm.sh"), "gpt-tiny", *options],
        env=environment | job,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    for task in range(2):
        assert f"SLURM: process {task} of 2 on " in done.stderr
    assert list_steps(folder) == [4]


def test_slurm_directives_are_options_of_sbatch():
    lines = (LAUNCH / "slurm.sh").read_text().splitlines()
    options = dict(line.removeprefix("#SBATCH --").partition("=")[::2] for line in lines if line.startswith("#SBATCH"))
    assert options["signal"] == "TERM@120" and options["ntasks-per-node"] == "1" and "requeue" in options
    # sbatch reads directives up to the first command.
    first = next(index for index, line in enumerate(lines) if line and not line.startswith("#"))
    assert not any(line.startswith("#SBATCH") for line in lines[first:])


def test_skypilot_runs_a_process_a_node(tmp_path):
    task = yaml.safe_load((LAUNCH / "skypilot.yaml").read_text())
    for part in ("setup", "run"):
        subprocess.run(["bash", "-n"], input=task[part], text=True, check=True)
    python = tmp_path / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(
        f"#!{sys.executable}\nimport json, os, sys\nprint(json.dumps([sys.argv[1:], dict(os.environ)]))\n"
    )
    python.chmod(0o755)
    for rank in range(2):
        node = {"SKYPILOT_NODE_IPS": "10.0.0.4\n10.0.0.5", "SKYPILOT_NUM_NODES": "2", "SKYPILOT_NODE_RANK": str(rank)}
        env = {"PATH": os.environ["PATH"], **task["envs"], **node}
        out = subprocess.run(
            ["bash", "-c", task["run"]], env=env, cwd=tmp_path, text=True, capture_output=True, check=True
        )
        arguments, variables = json.loads(out.stdout)
        assert arguments == ["train.py", "gpt-tiny", "--folder", "/runs/gpt-tiny"]
        cluster = find_cluster(variables, seconds=1)
        assert cluster is not None
        assert (cluster.coordinator, cluster.num_processes, cluster.process) == ("10.0.0.4:8476", 2, rank)
    assert task["resources"]["ports"] == 8476


def test_kubernetes_pods_find_the_first_of_them():
    service, job = yaml.safe_load_all((LAUNCH / "kubernetes.yaml").read_text())
    pods, name = job["spec"]["template"]["spec"], job["metadata"]["name"]
    assert service["spec"]["clusterIP"] == "None"
    assert service["spec"]["selector"] == {"job-name": name}
    assert pods["subdomain"] == service["metadata"]["name"]
    (container,) = pods["containers"]
    given = {entry["name"]: entry.get("value", "1") for entry in container["env"]}
    cluster = find_cluster(given, seconds=1)
    assert cluster is not None
    # An indexed Job calls its pods' hosts by its own name and their index, in the Service's domain.
    assert cluster.coordinator == f"{name}-0.{service['metadata']['name']}:{container['ports'][0]['containerPort']}"
    assert cluster.num_processes == job["spec"]["completions"] == job["spec"]["parallelism"]
    assert container["command"][:2] == ["python", "train.py"]
    with pytest.raises(ValueError, match="JAX_PROCESS_ID"):
        find_cluster({key: value for key, value in given.items() if key != "JAX_PROCESS_ID"}, seconds=1)
