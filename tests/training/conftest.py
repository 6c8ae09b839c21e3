"""What the training tests share: a cache of compiled programs, so that each is compiled once."""

import jax
import pytest


@pytest.fixture(scope="session")
def compile_cache(tmp_path_factory):
    """Compile each program once for all tests and their subprocesses: that is where their time goes."""
    folder = tmp_path_factory.mktemp("compiled")
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    yield folder
    jax.config.update("jax_compilation_cache_dir", None)
