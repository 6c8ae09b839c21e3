"""A forked process is what a new interpreter is: settings, exit codes, and the bits that a run ends in."""

import json
import os
import signal
import time

import attacks
import processes
import pytest
from attacks import Training

pytestmark = pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="processes are not forked on this system")

PROBE = """
import json, os, random, signal, sys
import jax, numpy as np
handlers = {name: str(signal.getsignal(getattr(signal, name))) for name in ("SIGTERM", "SIGINT", "SIGUSR1", "SIGCHLD")}
print(json.dumps({
    "jax": {name: str(value) for name, value in jax.config.values.items()},
    "environment": dict(os.environ),
    "arguments": [sys.argv, os.getcwd(), sys.path],
    "signals": [handlers, [str(number) for number in signal.pthread_sigmask(signal.SIG_BLOCK, [])]],
    "streams": [[x.encoding, x.errors, x.line_buffering, x.write_through] for x in (sys.stdout, sys.stderr)],
    "main": [__name__, __file__],
    "files": sorted(os.listdir("/proc/self/fd"))[:3],
    "devices": [str(device) for device in jax.devices()],
    "random": [random.random(), np.random.rand()],
}))
"""


@pytest.fixture
def script(tmp_path):
    """A function that writes a program to a file and returns the file's name."""

    def write(program: str) -> str:
        path = tmp_path / "script.py"
        path.write_text(program)
        return str(path)

    return write


def test_a_fork_is_set_as_a_new_interpreter(script, environment, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    given = environment | {
        "XLA_FLAGS": "--xla_force_host_platform_device_count=4",
        "JAX_ENABLE_X64": "true",
        "JAX_DEFAULT_MATMUL_PRECISION": "highest",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "2.5",
        "ZOO_ANYTHING": "1",
    }
    command = [script(PROBE), "--an", "argument"]
    done = [
        processes.run(command, environment=given, starter=starter)
        for starter in (processes.start, processes.start, processes.start_fresh)
    ]
    assert [x.returncode for x in done] == [0, 0, 0], done
    forked, again, fresh = (json.loads(x.stdout) for x in done)
    seeds = [x.pop("random") for x in (forked, again, fresh)]
    assert len({seed for pair in seeds for seed in pair}) == 6
    assert forked == again == fresh
    assert len(fresh["devices"]) == 4 and fresh["jax"]["jax_enable_x64"] == "True"


@pytest.mark.parametrize(
    ("end", "code", "said"),
    [
        ("pass", 0, ""),
        ("import sys; sys.exit(3)", 3, ""),
        ("raise ValueError('no')", 1, "ValueError: no\n"),
        ("import os; os.kill(os.getpid(), 9)", -9, ""),
        ("import os; os.kill(os.getpid(), 15)", -15, ""),
        ("raise KeyboardInterrupt", -2, "KeyboardInterrupt\n"),
        ("import atexit; atexit.register(print, 'the end')", 0, ""),
    ],
)
def test_a_fork_ends_as_an_interpreter(script, environment, end, code, said):
    command = [script(f"print('begun')\n{end}\n")]
    done = [
        processes.run(command, environment=environment, starter=x) for x in (processes.start, processes.start_fresh)
    ]
    assert [x.returncode for x in done] == [code, code]
    assert done[0].stdout == done[1].stdout
    for one in done:
        assert one.stderr.endswith(said) and bool(one.stderr) == bool(said)


@pytest.mark.slow
def test_a_fork_trains_to_the_bits_of_a_new_interpreter(whole, arguments, environment, tmp_path):
    """`whole` was forked."""
    with Training(tmp_path / "run", arguments, environment, fresh=True) as training:
        assert training.finish() == 0, training.said[-3000:]
    attacks.assert_same_end(whole, tmp_path / "run")


def test_no_fork_outlives_its_server_and_a_dead_server_is_named(environment, script, tmp_path):
    command = [script("import time\nprint('begun', flush=True)\ntime.sleep(1000)")]
    request = {"command": command, "environment": environment, "folder": str(tmp_path), "unbuffered": True}
    server = processes.Server(environment)
    with open(tmp_path / "said", "w+") as said:
        forked = server.fork(request, said.fileno(), said.fileno())
        while not (tmp_path / "said").read_text():
            time.sleep(0.01)
        server.close()  # as when the test run ends, in whatever way
        assert forked.wait() == -signal.SIGKILL
        with pytest.raises(ProcessLookupError):
            os.kill(forked.pid, 0)
    server = processes.Server(environment | {"PYTHONPATH": str(tmp_path)})
    server.process.send_signal(signal.SIGKILL)
    with pytest.raises(RuntimeError, match="the fork server has ended with code -9"):
        server.fork(request, 1, 2)
    server.close()
