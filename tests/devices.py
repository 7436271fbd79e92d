"""Runs a test file again in a process that sees several devices."""

import os
from pathlib import Path
import re
import subprocess
import sys

import pytest


ROOT = Path(__file__).resolve().parents[1]


COMMAND = *"-m pytest -q -n0 -p no:cacheprovider -m".split(), "not full and not aot"


class Forced:
    """So many CPU devices.

    Attributes:
        is_here: Whether this process was started to see them.
        needed: Marks tests that need them; skips these elsewhere.
        starter: Marks the test that calls `rerun`; skips it here.
    """

    def __init__(self, num: int):
        self.flag = f"--xla_force_host_platform_device_count={num}"
        self.is_here = self.flag in os.environ.get("XLA_FLAGS", "")
        reason = f"runs in a process of {num} devices"
        self.needed = pytest.mark.skipif(not self.is_here, reason=reason)
        self.starter = pytest.mark.skipif(self.is_here, reason="runs here")

    def rerun(self, file: str, most_skipped: int = 1) -> None:
        """Every test of `file` must pass there but the starter, or as many as given."""
        own = {"PYTHONPATH": str(ROOT), "XLA_FLAGS": self.flag, "JAX_PLATFORMS": "cpu"}
        done = subprocess.run(
            [sys.executable, *COMMAND, file],
            cwd=ROOT,
            env=os.environ | own,
            capture_output=True,
            text=True,
            timeout=500,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert re.search(
            rf"\b[1-9]\d* passed, [1-{most_skipped}] skipped", done.stdout
        ), done.stdout
