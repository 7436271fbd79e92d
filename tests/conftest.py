"""Quick tests compile quickly: most of their time goes into LLVM's optimizations."""

import os


_FLAGS = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"


def pytest_configure(config):
    """Where slow tests are left out; those run for longer than they compile."""
    if "not slow" in config.option.markexpr:
        os.environ["XLA_FLAGS"] = f"{_FLAGS} {os.environ.get('XLA_FLAGS', '')}"
