"""Where tests of the command line run."""

import sys

import pytest

from jaxlr.lab import progress
from tests.lab._files import MINE


@pytest.fixture
def away(tmp_path, monkeypatch):
    """In an empty folder, on a wide terminal."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(progress, "FIRST_LINE", 600.0)  # also where all is slow
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv("COLUMNS", "200")  # tyro's and rich's tables unwrapped


@pytest.fixture
def mine(tmp_path):
    """A file with an experiment."""
    path = tmp_path / "mine.py"
    path.write_text(MINE)
    return path
