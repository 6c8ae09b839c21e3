"""Eight fake CPU devices for every test, programs compiled in haste, JAX's strict modes; set before JAX is imported.

A test compiles much and computes little, so its time goes into XLA's optimisations: without them it takes a third.
tests/test_scripts.py runs the scripts in processes of their own, with XLA as a user has it.
"""

import gc
import importlib.metadata
import os
import shutil
import tempfile
from pathlib import Path

import pytest

os.environ["JAX_PLATFORMS"] = "cpu"
# Hundreds of processes are started: each would compile all modules that it imports, which takes longer than to start.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
# Scripts keep what they compile where a user's caches are.
os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp(prefix="zoo-caches-")
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

import jax

# Compiled programs stay alive: collecting among them again and again took a twentieth of the time.
gc.set_threshold(50_000, 20, 20)

jax.config.update("jax_numpy_dtype_promotion", "standard")

# Each compiled program keeps a few maps of memory, of which Linux gives a process 65,530; XLA ends it at one more.
MOST_MAPS = 20_000


@pytest.fixture(scope="session", autouse=True)
def caches():
    """Remove them at the end."""
    yield
    shutil.rmtree(os.environ["XDG_CACHE_HOME"], ignore_errors=True)


@pytest.fixture(scope="module", autouse=True)
def few_programs():
    """Forget compiled programs between files, once there are many."""
    yield
    maps = Path("/proc/self/maps")
    if maps.exists() and maps.read_bytes().count(b"\n") > MOST_MAPS:
        jax.clear_caches()
        gc.collect()
