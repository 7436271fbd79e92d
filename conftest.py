"""Keeps compiled programs between test runs, beside pytest's own cache."""

import os
from pathlib import Path


# Two thirds of the suite's time is compilation; subprocesses of tests inherit this.
for name, value in {
    "JAX_COMPILATION_CACHE_DIR": Path(__file__).parent / ".pytest_cache" / "jax",
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": 0,
    "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": 0,
}.items():
    os.environ.setdefault(name, str(value))
