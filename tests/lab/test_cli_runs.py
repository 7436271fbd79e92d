"""The command line on runs that are there: show, replay, reproduce."""

from pathlib import Path
import signal
import time

import pytest

from jaxlr import lab
from jaxlr.core import Claim
from jaxlr.lab import find
from jaxlr.lab.cli import main
from tests.lab import _toys as toys
from tests.lab._files import LONG, MINE, only_run


pytestmark = pytest.mark.usefixtures("away")


def test_show_draws_again_without_running(mine, capsys, monkeypatch):
    assert main(["run", "mine.py"]) == 0
    directory = only_run()
    (directory / "figure.png").unlink()
    capsys.readouterr()
    monkeypatch.setitem(vars(lab), "sweep", None)
    assert main(["show", str(directory)]) == 0
    text = capsys.readouterr().out
    for word in ("Provenance", "jaxlr", "it decays", "holds", "figure.png"):
        assert word in text
    assert (directory / "figure.png").exists()
    mine.rename("moved.py")
    assert main(["show", str(directory)]) == 0
    assert main(["show", str(directory), "--experiment", "moved.py"]) == 0


def test_show_of_an_unfinished_run_says_so_and_leaves_it_unfinished(mine, capsys):
    assert main(["run", "mine.py", "--chunk", "1"]) == 0
    directory = only_run()
    sorted((directory / "chunks").iterdir())[0].unlink()
    (directory / "claims.json").unlink()
    assert main(["show", str(directory)]) == 1  # NaN is not below 0.1
    assert "The run is unfinished" in capsys.readouterr().out
    assert not (directory / "claims.json").exists()


def test_replay_compares(mine, capsys):
    assert main(["run", "mine.py"]) == 0
    words = [
        "replay",
        str(only_run()),
        "--cell",
        "eta=0.25",
        "method=sgd",
        "--seed",
        "1",
    ]
    capsys.readouterr()
    assert main(words) == 0
    text = capsys.readouterr().out
    assert "bit" in text
    assert "error" in text
    assert main([*words, "--experiment", "mine.py"]) == 0
    words[3:5] = ["eta=0.3"]
    assert main(["replay", str(only_run()), "--cell", "eta=0.3", "method=gd"]) == 2
    assert "0.25, 0.5" in capsys.readouterr().err


def test_replay_says_when_it_differs(monkeypatch, capsys):
    import xarray as xr

    def replay(run, cell, seed, *, experiment):
        assert (run, cell, seed) == (Path("r"), {"num_columns": 2, "m": "x"}, 0)
        return xr.Dataset({"a": 1.0}, attrs={"replay": "NOT equal.", "is_equal": 0})

    monkeypatch.setitem(vars(lab), "replay", replay)
    assert main(["replay", "r", "--cell", "num-columns=2", "m=x"]) == 1
    assert "NOT equal." in capsys.readouterr().out


def reproduced():
    """The run directories of the last `reproduce`, by experiment."""
    root = max(Path("runs/reproduce/smoke").iterdir())
    return {path.name.rpartition("-")[0]: path for path in root.iterdir()}


def test_reproduce_judges_all_and_goes_on_after_an_error(tmp_path, mine, capsys):
    Path("broken.py").write_text(MINE.replace("return {", "return 1 / 0, {"))
    Path("long.py").write_text(LONG)
    names = ["broken.py", "mine.py", "long.py"]
    assert main(["reproduce", "--smoke", *names]) == 3
    text = capsys.readouterr().out
    lines = [" ".join(line.split()) for line in text.splitlines()]
    assert any("broken.py ZeroDivisionError" in line for line in lines)
    assert any("mine.py it decays <= 0.1" in line and "holds" in line for line in lines)
    assert "long.py makes no claims" in lines
    assert main(["reproduce", "--smoke", *names[1:]]) == 0
    assert dict(lab.load(reproduced()["mine"]).sizes)["step"] == 10
    mine.write_text(MINE.replace("high=0.1", "high=1e-9"))
    assert main(["reproduce", "--smoke", "mine.py"]) == 1


def test_reproduce_says_each_verdict_as_it_falls(tmp_path, mine, capsys, monkeypatch):
    Path("long.py").write_text(LONG)
    seen, sweep = [], lab.sweep

    def sweep_and_look(*args, **kwargs):
        seen.append(capsys.readouterr().out)
        return sweep(*args, **kwargs)

    monkeypatch.setitem(vars(lab), "sweep", sweep_and_look)
    assert main(["reproduce", "--smoke", "mine.py", "long.py"]) == 0
    assert seen[0].startswith("1 of 2  mine.py: runs/reproduce/smoke/")
    assert "  holds  it decays" in seen[1]
    assert "2 of 2  long.py" in seen[1]


def test_reproduce_stopped_says_what_it_knows_and_goes_on(mine, capsys, monkeypatch):
    Path("long.py").write_text(LONG)
    calls, sweep = [], lab.sweep

    def stop_in_the_second(*args, **kwargs):
        calls.append(args)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return sweep(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setitem(vars(lab), "sweep", stop_in_the_second)
        assert main(["reproduce", "--smoke", "mine.py", "long.py"]) == 130
    text, error = capsys.readouterr()
    assert text.count("it decays") == 2  # as it fell, and in the table
    hint = "jaxlr reproduce --resume --smoke mine.py long.py"
    assert error == f"Stopped in 2 of 2. Go on with `{hint}`.\n"
    kept = {p: p.stat().st_ino for p in reproduced()["mine"].glob("chunks/*.npz")}
    assert kept
    assert main(hint.split()[1:]) == 0
    assert {
        p: p.stat().st_ino for p in reproduced()["mine"].glob("chunks/*.npz")
    } == kept
    assert lab.load(reproduced()["long"]).attrs["is_complete"]
    assert len(list(Path("runs/reproduce/smoke").iterdir())) == 1
    assert main(["reproduce", "--resume", "mine.py"]) == 2
    assert "nothing in runs/reproduce/full to resume" in capsys.readouterr().err


@pytest.mark.slow
def test_reproduce_in_a_process_is_stopped_by_ctrl_c_and_goes_on(mine, tmp_path):
    """While the second is under way: what is known is printed, and nothing is lost."""
    Path("slow.py").write_text(LONG.replace("num_steps=8", "num_steps=10**9"))
    code = "import os, signal, sys\nfrom jaxlr.lab.cli import main\n"
    code += "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
    code += f"os.chdir({str(tmp_path)!r})\nsys.exit(main({{words}}))"
    words = ["reproduce", "mine.py", "slow.py"]
    process = toys.start(code.format(words=words))
    assert process.stdout is not None
    shown = []
    while not any("2 of 2" in line for line in shown):
        shown.append(process.stdout.readline())
        assert shown[-1], process.communicate()
    time.sleep(2)
    process.send_signal(signal.SIGINT)
    out, error = process.communicate(timeout=120)
    assert process.returncode == 130, error
    assert "  holds  it decays" in "".join(shown)
    assert "it decays" in out
    hint = "jaxlr reproduce --resume mine.py slow.py"
    assert error.splitlines()[-1] == f"Stopped in 2 of 2. Go on with `{hint}`."
    (root,) = Path("runs/reproduce/full").iterdir()
    (chunk,) = root.glob("mine-*/chunks/g000-*.npz")
    inode = chunk.stat().st_ino
    words = ["reproduce", "--resume", "mine.py"]
    assert "it decays" in toys.finish(toys.start(code.format(words=words)))
    assert chunk.stat().st_ino == inode


def test_reproduce_tells_files_of_one_name_apart(tmp_path, capsys):
    """Each has its own helper, and its own run directory."""
    for folder, value in (("a", 6), ("b", 600)):
        path = tmp_path / folder / "one.py"
        path.parent.mkdir()
        path.write_text(
            "import helper\n"
            + MINE.replace('results["last"]', "helper.VALUE")
            .replace("high=0.1", f"low={value}, high={value}")
            .replace(
                "return [",
                "import late\n    assert late.VALUE == helper.VALUE\n    return [",
            )
        )
        (path.parent / "helper.py").write_text(f"VALUE = {value}")
        (path.parent / "late.py").write_text(f"VALUE = {value}")
    assert main(["reproduce", "--smoke", "a/one.py", "b/one.py"]) == 0
    assert capsys.readouterr().out.count("  holds  it decays") == 2
    assert len(list(Path("runs/reproduce/smoke").glob("*/one-*"))) == 2


@pytest.mark.parametrize("bound", ["0.1", "1e-9"])
def test_the_exit_status_comes_from_verdicts_not_from_a_table(
    mine, capsys, monkeypatch, bound
):
    """Whatever the table's columns are, a failing claim exits 1."""
    from jaxlr.lab import report

    mine.write_text(MINE.replace("high=0.1", f"high={bound}"))
    monkeypatch.setattr(report, "claims_table", lambda judgements: "no table at all")
    status = int(bound == "1e-9")
    assert main(["run", "mine.py"]) == status
    assert main(["show", str(only_run())]) == status
    assert main(["reproduce", "--smoke", "mine.py"]) == status
    assert capsys.readouterr().out.endswith("no table at all\n")


def test_verdicts():
    good, bad = (Claim("c", 1.0, high=high) for high in (2.0, 0.0))
    assert lab.Judgement("x").status == 0
    assert lab.Judgement("x", (good,)).status == 0
    assert lab.Judgement("x", (good, bad)).status == 1
    assert lab.Judgement("x", (good, bad), ("no figure",)).status == 3


def test_reproduce_without_names_takes_all_shipped(monkeypatch, mine, capsys):
    monkeypatch.setattr(find, "names", lambda: {"mine.py": mine})
    assert main(["reproduce"]) == 0
    assert "it decays" in capsys.readouterr().out
