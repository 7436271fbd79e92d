"""Tests compile quickly, and what a file compiled does not outlive it."""

from importlib import metadata
import os

import pytest


# Most of the time of tests goes into LLVM's optimizations, then into MLIR's.
_FLAGS = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
if tuple(map(int, metadata.version("jaxlib").split(".")[:2])) <= (0, 10):
    _FLAGS += " --xla_cpu_use_fusion_emitters=false"  # jax 0.12 knows no such flag


# Decompositions of batches wait for each other's threads, on two cores for ever: the
# flag alone does not always prevent it.
_ONE_THREAD = "--xla_cpu_multi_thread_eigen=false"


def pytest_configure(config):
    """Quick compilation, but for experiments at full size: those run for longer."""
    is_quick = "not full" in config.option.markexpr
    os.environ["NPROC"] = "1"  # threads of XLA's pool; the tests' processes are two
    given = os.environ.get("XLA_FLAGS", "")
    os.environ["XLA_FLAGS"] = f"{_FLAGS if is_quick else ''} {_ONE_THREAD} {given}"


@pytest.fixture(autouse=True, scope="module")
def _programs_end_with_their_file():
    """Every program takes memory maps, of which Linux gives a process 65 530."""
    yield
    import jax

    jax.clear_caches()


@pytest.fixture
def x64():
    """With 64-bit types."""
    from jaxlr.core import compat

    with compat.x64(True):
        yield
