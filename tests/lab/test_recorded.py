"""Run directories of others: what is recorded is shown, and nothing is executed."""

import errno
import json
import os
from pathlib import Path
import sys

import pytest

from jaxlr import lab
from jaxlr.core import Claim
from jaxlr.lab import engine, find, judging, store
from jaxlr.lab.cli import main
from tests.lab._files import MINE


pytestmark = pytest.mark.usefixtures("away")


@pytest.fixture
def theirs(mine):
    """A run that another process made, with a source that shows when it is executed."""
    assert main(["run", "mine.py", "--directory", "theirs"]) == 0
    del engine.SWEPT[Path("theirs").resolve()]
    for name in [x for x in sys.modules if x.startswith("jaxlr_file_")]:
        del sys.modules[name]
    mine.write_text("from pathlib import Path\nPath('executed').touch()\n" + MINE)
    return Path("theirs")


def edit(directory, **fields):
    path = directory / store.MANIFEST
    store.write_json(path, json.loads(path.read_text()) | fields)


CELL = ["--cell", "eta=0.25", "method=gd"]


@pytest.mark.parametrize("is_judged", [True, False])
@pytest.mark.parametrize("kind", ["path", "name", "inside", "gone"])
def test_no_source_that_a_run_names_is_executed(mine, theirs, capsys, kind, is_judged):
    if not is_judged:
        (theirs / judging.CLAIMS).unlink()
    if kind == "name":
        edit(theirs, experiment="mine.py", source_path=None)
    if kind == "inside":
        mine.rename(theirs / "mine.py")
        edit(theirs, source_path=str((theirs / "mine.py").resolve()))
    if kind == "gone":
        mine.unlink()
    assert main(["show", "theirs"]) == 0
    assert main(["replay", "theirs", *CELL]) == 2
    message = capsys.readouterr().err
    assert "is not executed. If you trust its file, give it" in message
    assert "--experiment PATH" in message
    with pytest.raises(ValueError, match="not executed"):
        lab.replay(theirs, {"eta": 0.25, "method": "gd"}, 0)
    assert not Path("executed").exists()


def test_what_the_user_names_is_executed(theirs):
    assert main(["replay", "theirs", *CELL, "--experiment", "mine.py"]) == 0
    assert Path("executed").exists()


def test_what_ships_is_executed(theirs, monkeypatch, mine, capsys):
    mine.write_text(MINE)
    monkeypatch.setattr(find, "names", lambda: {"mine": mine})
    assert main(["replay", "theirs", *CELL]) == 0
    (theirs / judging.CLAIMS).unlink()
    assert main(["show", "theirs"]) == 0
    assert "it decays" in capsys.readouterr().out


def test_recorded_verdicts_are_shown_and_never_rewritten(mine, theirs, capsys):
    """Whatever has become of the source since; a note says what differs."""
    kept = {
        name: (theirs / name).read_bytes() for name in ("claims.json", "figure.png")
    }
    assert main(["show", "theirs"]) == 0
    text = capsys.readouterr().out
    assert "it decays" in text
    assert "holds" in text
    assert "recorded other verdicts" not in text
    mine.write_text(MINE.replace("high=0.1", "high=1e-9"))
    assert main(["show", "theirs"]) == 0
    assert {name: (theirs / name).read_bytes() for name in kept} == kept
    capsys.readouterr()
    assert main(["show", "theirs", "--experiment", "mine.py"]) == 1
    text = capsys.readouterr().out
    assert (
        "claims.json recorded other verdicts and keeps them: 'it decays' holds" in text
    )
    assert (theirs / "claims.json").read_bytes() == kept["claims.json"]
    assert main(["show", "theirs"]) == 0


def test_a_mended_claim_that_is_resumed_keeps_what_was_recorded(mine, capsys):
    mine.write_text(MINE.replace("high=0.1", "high=1e-9"))
    assert main(["run", "mine.py", "--directory", "r"]) == 1
    kept = Path("r/claims.json").read_bytes()
    mine.write_text(MINE)
    words = ["run", "mine.py", "--directory", "r", "--resume", "--force"]
    assert main(words) == 0
    assert "'it decays' fails" in capsys.readouterr().out
    assert Path("r/claims.json").read_bytes() == kept


def test_a_run_without_verdicts_has_the_figure_that_any_has(theirs, capsys):
    (theirs / "claims.json").unlink()
    (theirs / "figure.png").unlink()
    assert main(["show", "theirs"]) == 0
    text = capsys.readouterr().out
    assert "No verdicts are recorded." in text
    assert "makes no claims" not in text
    assert (theirs / "figure.png").stat().st_size > 1000
    assert not (theirs / "claims.json").exists()


CLAIMS = (
    Claim("both", [1.5, 2.5], 1, 3, "a book"),
    Claim("below", [float("nan"), 1.0], high=2),
    Claim("above", [float("inf"), 0.0, -0.0], low=0),
    Claim("none", -float("inf"), low=0),
)


def test_claims_come_back_as_they_were(tmp_path):
    text = json.dumps([judging.to_plain(claim) for claim in CLAIMS], allow_nan=False)
    (tmp_path / judging.CLAIMS).write_text(text)
    found = judging.recorded(tmp_path)
    assert found is not None
    for old, new in zip(CLAIMS, found, strict=True):
        assert repr(list(new.measured)) == repr(list(old.measured))
        fields = "statement", "low", "high", "source", "holds"
        assert [getattr(new, x) for x in fields] == [getattr(old, x) for x in fields]


def test_the_recorded_verdict_counts_not_its_numbers(tmp_path):
    plain = judging.to_plain(CLAIMS[0]) | {"holds": False}
    (tmp_path / judging.CLAIMS).write_text(json.dumps([plain]))
    (claim,) = judging.recorded(tmp_path) or ()
    assert not claim.holds


@pytest.mark.misuse
@pytest.mark.parametrize("text", ["", "3", "[3]", "[{}]", '[{"statement": "x"}]'])
def test_a_broken_file_of_claims_is_named(theirs, capsys, text):
    (theirs / "claims.json").write_text(text)
    assert main(["show", "theirs"]) == 2
    assert "claims.json cannot be read" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("number", "status"), [(errno.EROFS, 0), (errno.EACCES, 0), (errno.ENOSPC, 3)]
)
def test_a_run_on_read_only_storage_is_shown(
    theirs, monkeypatch, capsys, number, status
):
    def refuse(path, write):
        error = OSError(number, os.strerror(number))
        raise store.RunDirectoryError(f"Could not write {path}.") from error

    (theirs / "claims.json").unlink()
    monkeypatch.setattr(store, "write_atomically", refuse)
    assert main(["show", "theirs", "--experiment", "mine.py"]) == status
    text = "".join(capsys.readouterr())
    for name in ("claims.json", "figure.png"):
        assert f"Could not write theirs/{name}." in text
    assert "holds" in text


def test_what_would_control_a_terminal_is_spelled_out(theirs, capsys):
    edit(theirs, experiment="\x1b[2J\x9b5mmine\x07")
    claim = Claim("\x1b]0;title\x07 it", 1.0, high=2)
    (theirs / "claims.json").write_text(json.dumps([judging.to_plain(claim)]))
    manifest = json.loads((theirs / store.MANIFEST).read_text())
    manifest["environment"]["command"] = "jaxlr \x1b[31m"
    edit(theirs, **manifest)
    assert main(["show", "theirs"]) == 0
    assert main(["replay", "theirs", *CELL]) == 2
    text = "".join(capsys.readouterr())
    assert not set(text) & {"\x1b", "\x9b", "\x07"}
    assert "\\x1b]0;title" in text
    assert "jaxlr \\x1b[31m" in text
