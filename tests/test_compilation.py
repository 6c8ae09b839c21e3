"""The persistent compilation cache, each time in a process of its own: where programs are kept, and whose word counts.

In the default tier: a few seconds, and what a user's home holds depends on it.
"""

import os
import subprocess
import sys

import pytest

from zoo import compilation

COMPILE = """
import sys
import jax
from zoo.compilation import keep_compiled_programs
exec(sys.argv[1])
keep_compiled_programs()
if jax.config.jax_persistent_cache_min_compile_time_secs == 0.1:
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)  # nothing that a test compiles takes so long
jax.monitoring.register_event_listener(lambda name, **_: print(name))
assert jax.jit(lambda x: x + 1)(1.0) == 2
print(jax.config.jax_compilation_cache_dir)
"""
HIT = "/jax/compilation_cache/cache_hits"


def run(home, before: str = "", check: bool = True, **environment: str) -> subprocess.CompletedProcess:
    """The program, after the code `before`, in an environment without JAX's settings of the tests."""
    others = {name: value for name, value in os.environ.items() if not name.startswith(("JAX_", "XLA_"))}
    environment = others | {"XDG_CACHE_HOME": str(home), "JAX_PLATFORMS": "cpu"} | environment
    command = [sys.executable, "-c", COMPILE, before]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=check)


def kept(folder) -> list:
    return list(folder.rglob("*-cache"))


def test_a_second_process_finds_what_the_first_compiled(tmp_path):
    assert HIT not in run(tmp_path).stdout
    (kind,) = (tmp_path / "zoo" / "compiled").iterdir()  # of this processor
    assert kept(kind)
    again = run(tmp_path)
    assert HIT in again.stdout and not again.stderr


def test_the_switch_moves_the_cache_or_turns_it_off(tmp_path):
    run(tmp_path / "home", ZOO_COMPILE_CACHE="off")
    assert not kept(tmp_path)
    run(tmp_path / "home", ZOO_COMPILE_CACHE=str(tmp_path / "given"))
    assert kept(tmp_path / "given") and not (tmp_path / "home").exists()


def test_settings_of_jax_go_first(tmp_path):
    home, given = tmp_path / "home", tmp_path / "given"
    run(home, ZOO_COMPILE_CACHE=str(home), JAX_ENABLE_COMPILATION_CACHE="0")
    run(home, ZOO_COMPILE_CACHE=str(home), JAX_COMPILATION_CACHE_DIR=str(tmp_path / "environment"))
    run(home, f"jax.config.update('jax_compilation_cache_dir', {str(tmp_path / 'code')!r})")
    assert not home.exists() and (tmp_path / "environment").exists() and (tmp_path / "code").exists()
    # One that is so high that nothing is kept.
    run(given, JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="100")
    assert not kept(given)


def test_a_home_that_cannot_be_written_keeps_nothing_and_a_named_folder_is_an_error(tmp_path):
    (tmp_path / "file").touch()
    quiet = run(tmp_path / "file" / "home")
    assert quiet.stdout.splitlines()[-1] == "None" and not quiet.stderr
    named = run(tmp_path, check=False, ZOO_COMPILE_CACHE=str(tmp_path / "file"))
    assert named.returncode and "ValueError: ZOO_COMPILE_CACHE is" in named.stderr


def test_a_broken_program_is_compiled_with_a_warning(tmp_path):
    run(tmp_path)
    for file in kept(tmp_path):
        file.write_bytes(file.read_bytes()[:-20])
    again = run(tmp_path)  # whose result is asserted
    assert "Error reading persistent compilation cache entry" in again.stderr


def test_processes_share_a_folder(tmp_path):
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("JAX_", "XLA_"))}
    environment |= {"ZOO_COMPILE_CACHE": str(tmp_path), "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", COMPILE, ""]
    processes = [subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL) for _ in range(3)]
    assert [process.wait() for process in processes] == [0, 0, 0]
    assert HIT in run(tmp_path, ZOO_COMPILE_CACHE=str(tmp_path)).stdout


@pytest.mark.parametrize(("limit", "left"), [(100, "abc"), (25, "bc"), (0, "")])
def test_what_was_used_longest_ago_is_deleted_first(tmp_path, limit, left):
    for age, name in enumerate("cba"):
        file = tmp_path / f"{name}-cache"
        file.write_bytes(bytes(10))
        os.utime(file, (1e9 - age, 1e9 - age))
    compilation.delete_oldest(tmp_path, limit)
    assert sorted(file.name[0] for file in tmp_path.iterdir()) == list(left)


def test_load_turns_it_on(tmp_path):
    load = "import zoo\ntry: zoo.load('no-such-folder/config.json/x', head='x')\nexcept Exception: pass"
    assert str(tmp_path) in run(tmp_path, load, HF_HUB_OFFLINE="1").stdout.splitlines()[-1]
