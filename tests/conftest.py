"""Quick tests compile quickly, and what a file compiled does not outlive it."""

from importlib import metadata
import os

import pytest


# Most of the time of quick tests goes into LLVM's optimizations, then into MLIR's.
_FLAGS = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
if tuple(map(int, metadata.version("jaxlib").split(".")[:2])) <= (0, 10):
    _FLAGS += " --xla_cpu_use_fusion_emitters=false"  # jax 0.12 knows no such flag


def pytest_configure(config):
    """Where slow tests are left out; those run for longer than they compile."""
    if "not slow" in config.option.markexpr:
        os.environ["XLA_FLAGS"] = f"{_FLAGS} {os.environ.get('XLA_FLAGS', '')}"


@pytest.fixture(autouse=True, scope="module")
def _programs_end_with_their_file():
    """Every program takes memory maps, of which Linux gives a process 65 530."""
    yield
    import jax

    jax.clear_caches()
