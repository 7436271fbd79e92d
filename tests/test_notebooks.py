"""Notebooks: paired, stripped, and run from top to bottom."""

from pathlib import Path

import jupytext
from nbclient import NotebookClient
import nbformat
import pytest


FOLDER = Path(__file__).parents[1] / "notebooks"
SOURCES = sorted(FOLDER.glob("*.py"))
FIRST = FOLDER / "first_sweep.py"


@pytest.mark.parametrize("source", SOURCES, ids=lambda p: p.stem)
def test_the_pair_is_in_step_and_stripped(source):
    text = jupytext.read(source)
    notebook = nbformat.read(source.with_suffix(".ipynb"), as_version=4)
    pairs = zip(text.cells, notebook.cells, strict=True)
    for ours, theirs in pairs:
        assert (ours.cell_type, ours.source) == (theirs.cell_type, theirs.source)
        assert not theirs.get("outputs")
        assert theirs.get("execution_count") is None


@pytest.mark.parametrize(
    "source",
    [s if s == FIRST else pytest.param(s, marks=pytest.mark.slow) for s in SOURCES],
    ids=lambda p: p.stem,
)
# nbclient and the kernel close their sockets and loops late.
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning")
def test_it_runs(source, monkeypatch):
    monkeypatch.delenv("MPLBACKEND", raising=False)  # the kernel then draws inline
    notebook = nbformat.read(source.with_suffix(".ipynb"), as_version=4)
    folder = {"metadata": {"path": str(FOLDER)}}
    NotebookClient(notebook, timeout=180, resources=folder).execute()
    drawn = [
        output
        for cell in notebook.cells
        for output in cell.get("outputs", [])
        if "image/png" in output.get("data", {})
    ]
    assert drawn
