"""The README's Python code runs, and its commands are the ones that exist."""

from pathlib import Path
import re

import pytest

from jaxlr import lab
from jaxlr.lab import cli, find


ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.S)


def test_there_is_code():
    assert len(BLOCKS) >= 2


@pytest.mark.parametrize("index", range(len(BLOCKS)))
def test_python_blocks_run(index, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "block.py"  # a file, so that its functions have a source
    path.write_text(BLOCKS[index])
    exec(compile(BLOCKS[index], str(path), "exec"), {"__name__": "__main__"})
    assert capsys.readouterr().out.strip()


def test_the_experiment_runs_from_the_command_line(tmp_path, monkeypatch, capsys):
    """Every `jaxlr` line of the second screen, in order, at a smaller size."""
    monkeypatch.chdir(tmp_path)
    source = next(block for block in BLOCKS if "EXPERIMENT = " in block)
    Path("mine.py").write_text(source)
    lines = re.findall(r"^jaxlr (\S+ .*mine.*)$", README, re.M)
    assert len(lines) >= 3
    for line in lines:
        assert cli.main(line.split()) == 0
    assert "bit by bit" in capsys.readouterr().out
    found = lab.replay("runs/mine", {"alpha": 1.0, "num_columns": 5}, seed=3)
    assert found.attrs["is_equal"] == 1


def test_named_experiments_exist():
    named = set(re.findall(r"jaxlr run ([a-z_]+\.[a-z_]+)", README)) - {"mine.py"}
    assert named
    assert named <= set(find.names())


def test_continuous_integration_runs_the_readmes_test_command():
    commands = re.findall(r"^(pytest\S*)", README, re.M)
    assert commands
    lines = (ROOT / ".ci" / "run").read_text().splitlines()
    assert set(commands) <= set(lines)
