"""Eight fake CPU devices for every test, programs compiled in haste and once, JAX's strict modes.

All of it is set before JAX is imported.

A test compiles much and computes little, so its time goes into XLA's optimisations: without them it takes a third.
tests/test_scripts.py runs the scripts in processes of their own, with XLA as a user has it.

What is compiled is kept in `.pytest_cache/zoo`, for all workers, all processes that tests start, and the next run.
ZOO_TEST_CACHE names another folder; ZOO_TEST_CACHE=off keeps nothing after the run.
"""

import gc
import importlib.metadata
import os
import shutil
import tempfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

os.environ["JAX_PLATFORMS"] = "cpu"
# Hundreds of processes are started: each would compile all modules that it imports, which takes longer than to start.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
# The first process of a run makes the folder; workers and what tests start inherit its name.
if "ZOO_TEST_TEMPORARY" not in os.environ:
    os.environ["ZOO_TEST_TEMPORARY"] = tempfile.mkdtemp(prefix="zoo-tests-")
TEMPORARY = os.environ["ZOO_TEST_TEMPORARY"]
if os.environ.setdefault("ZOO_TEST_CACHE", str(ROOT / ".pytest_cache" / "zoo")) == "off":
    os.environ["ZOO_TEST_CACHE"] = f"{TEMPORARY}/kept"
CACHE = Path(os.environ["ZOO_TEST_CACHE"])
# Scripts keep what they compile where a user's caches are.
os.environ["XDG_CACHE_HOME"] = f"{TEMPORARY}/user"
os.environ["JAX_COMPILATION_CACHE_DIR"] = str(CACHE / "programs")
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"
# Neither dtypes nor ranks are promoted implicitly, here and in the processes that tests start.
os.environ["JAX_NUMPY_DTYPE_PROMOTION"] = "strict"
os.environ["JAX_NUMPY_RANK_PROMOTION"] = "raise"
os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"
os.environ["XLA_FLAGS"] = " ".join(
    [
        os.environ.get("XLA_FLAGS", ""),
        "--xla_force_host_platform_device_count=8",
        "--xla_cpu_parallel_codegen_split_count=1",
        # jaxlibs after 0.10 do not know this flag, and an unknown one ends the process.
        "--xla_cpu_use_fusion_emitters=false" if importlib.metadata.version("jaxlib").startswith("0.10.") else "",
    ]
)

import jax  # noqa: E402

# Compiled programs stay alive: collecting among them again and again took a twentieth of the time.
gc.set_threshold(50_000, 20, 20)

# Each compiled program keeps a few maps of memory, of which Linux gives a process 65,530; XLA ends it at one more.
MOST_MAPS = 20_000


def pytest_sessionstart(session):
    # Imported here: what checks annotations has to come before zoo.
    from zoo.compilation import MAX_BYTES, delete_oldest

    if not hasattr(session.config, "workerinput"):
        delete_oldest(CACHE / "programs", MAX_BYTES)


def pytest_sessionfinish(session):
    if not hasattr(session.config, "workerinput"):
        shutil.rmtree(TEMPORARY, ignore_errors=True)


FIRST = ("tests/hosts/", "tests/trust/")
"""What takes long though it has few tests: begun last, it would leave the other workers idle."""
LAST = ("tests/parity/test_recorded.py", "tests/parity/test_live.py", "tests/parity/test_hidden_states.py")
"""Files whose tests share nothing: any worker may take any of them, when it has nothing else to do."""


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: item.nodeid.startswith(LAST) - item.nodeid.startswith(FIRST))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Keep the tests of a file on one worker, which makes what they share once."""
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            return nodeid if nodeid.startswith(LAST) else nodeid.partition("::")[0]

    config.option.loadscopereorder = False
    return ByFile(config, log)


@pytest.fixture(scope="module", autouse=True)
def few_programs():
    """Forget compiled programs between files, once there are many."""
    yield
    maps = Path("/proc/self/maps")
    if maps.exists() and maps.read_bytes().count(b"\n") > MOST_MAPS:
        jax.clear_caches()
        gc.collect()
