"""Eight fake CPU devices for every test, programs compiled in haste, JAX's strict modes; set before JAX is imported.

A test compiles much and computes little, so its time goes into XLA's optimisations: without them it takes a third.
tests/test_scripts.py runs the scripts in processes of their own, with XLA as a user has it.
"""

import gc
import importlib.metadata
import os

os.environ["JAX_PLATFORMS"] = "cpu"
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
