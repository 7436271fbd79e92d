"""What a terminal of any width shows, and what files, pipes and notebooks get."""

import builtins
import importlib.util
import io
import re
import subprocess
import sys
import time
import warnings

import pytest

from jaxlr import lab
from jaxlr.core import Claim
from jaxlr.lab import find, progress, report
from jaxlr.lab.judging import Judgement
from tests.lab import _toys as toys
from tests.lab._terminals import on_terminal


ESCAPE = "\x1b"
COLOR = re.compile(r"\x1b\[(?:\d+;)*(?:3[0-7]|38;[\d;]+|9[0-7])m")
PROGRESS = """
import time
from jaxlr.lab.progress import Progress
with Progress(8, 2) as progress:
    with progress.compiling():
        time.sleep(.2)
    for _ in range(3):
        progress.advance(2)
        time.sleep(.2)
"""


@pytest.fixture
def quick(monkeypatch):
    """Lines come twenty times in a second."""
    monkeypatch.setattr(progress, "FIRST_LINE", 0.05)
    monkeypatch.setattr(progress, "LONGEST_PAUSE", 0.4)


def test_a_pipe_gets_lines(quick, monkeypatch):
    """Also while nothing is finished: a first chunk may take minutes."""
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    with progress.Progress(8, 2) as shown:
        with shown.compiling():
            time.sleep(0.3)
        time.sleep(1.2)
        shown.advance(3)
    lines = stream.getvalue().splitlines()
    assert 4 <= len(lines) <= 8
    assert lines[0] == "Compile: 2 of 8 lanes, 0:00:00 elapsed"
    assert lines[-2].startswith("Sweep: 2 of 8 lanes, 0:00:0")
    assert re.fullmatch(
        r"Sweep: 5 of 8 lanes, 0:00:0\d elapsed, about 0:00:0\d left", lines[-1]
    )
    assert ESCAPE not in stream.getvalue()


def test_lines_come_soon_and_then_rarely(monkeypatch):
    pauses = []

    class Clock:
        def wait(self, pause):
            pauses.append(pause)
            return len(pauses) == 10

    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    shown = progress.Progress(8)
    monkeypatch.setattr(shown, "_has_ended", Clock())
    shown._write_lines()
    assert pauses == [2, 4, 8, 16, 32, 64, 128, 256, 300, 300]
    assert len(stream.getvalue().splitlines()) == 10  # one of them at the end


def test_a_plan_that_takes_long_is_told_of(quick, monkeypatch):
    """By itself, and before a sweep: it compiles."""
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setattr(progress, "FIRST_LINE", 0.001)
    for call in (lab.plan, lab.sweep):
        before = len(stream.getvalue())
        call(toys.closed(size=4 if call is lab.plan else 5))
        said = stream.getvalue()[before:].splitlines()
        assert re.fullmatch(r"Plan: 0:00:\d\d elapsed", said[0])
        assert said[-1].startswith("Plan" if call is lab.plan else "Sweep: 10 of 10")


def test_a_short_sweep_is_silent(quick, monkeypatch):
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setattr(progress, "FIRST_LINE", 60.0)
    with progress.Progress(2) as shown:
        shown.advance(2)
    assert stream.getvalue() == ""


def test_a_reader_that_has_gone_stops_nothing(quick, monkeypatch):
    class Gone(io.StringIO):
        def write(self, text):
            raise BrokenPipeError

    for stream in (Gone(), None):
        monkeypatch.setattr(sys, "stderr", stream)
        with progress.Progress(2) as shown:
            time.sleep(0.2)
        assert shown.compile_seconds == 0


def test_estimate_counts_neither_compiling_nor_earlier_lanes(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    shown = progress.Progress(100, 40)
    with shown.compiling():
        now[0] = 50.0
    now[0] = 80.0
    shown.advance(20)
    assert shown.run_seconds == 30
    assert shown.line() == "Sweep: 60 of 100 lanes, 0:01:20 elapsed, about 0:01:00 left"
    with shown.compiling():
        now[0] = 90.0
        assert shown.run_seconds == 30
    shown.advance(40)
    assert shown.line() == "Sweep: 100 of 100 lanes, 0:01:30 elapsed"


@pytest.mark.parametrize("has_widgets", [False, True])
def test_a_notebook_has_text_where_it_has_no_widgets(quick, monkeypatch, has_widgets):
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    shell = type("ZMQInteractiveShell", (), {})
    monkeypatch.setattr(builtins, "get_ipython", shell, raising=False)
    present = object() if has_widgets else None
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name: present if name == "ipywidgets" else find_spec(name),
    )
    if has_widgets:
        assert not progress.Progress(2)._bar.disable
        return
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with progress.Progress(2) as shown:
            time.sleep(0.2)
            shown.advance(2)
    assert stream.getvalue().startswith("Sweep: 0 of 2 lanes")


@pytest.mark.slow
def test_a_real_notebook_has_text_and_no_warning():
    """The kernel of an environment without ipywidgets."""
    import nbclient
    import nbformat

    if importlib.util.find_spec("ipywidgets"):
        pytest.skip("ipywidgets is installed.")
    cells = [
        "from jaxlr.lab import progress\nprogress.FIRST_LINE = .1",
        PROGRESS,
    ]
    notebook = nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_code_cell(text) for text in cells]
    )
    nbclient.NotebookClient(notebook, timeout=60).execute()
    outputs = notebook.cells[1].outputs
    assert {(x.output_type, x.name) for x in outputs} == {("stream", "stderr")}
    lines = "".join(x.text for x in outputs).splitlines()
    assert lines[0] == "Compile: 2 of 8 lanes, 0:00:00 elapsed"
    assert lines[-1].startswith("Sweep: 8 of 8 lanes")
    assert all(re.match(r"(Compile|Sweep): \d of 8 lanes", line) for line in lines)


@pytest.mark.parametrize("num_columns", [40, 80])
def test_a_terminal_has_a_bar_on_one_line(num_columns):
    status, text = on_terminal(PROGRESS, num_columns=num_columns)
    assert status == 0
    assert "100%" in text
    assert ("compiled 0.2 s" in text) == (num_columns == 80)
    frames = re.split(r"\x1b\[2K|\n|\r", text)
    shown = [re.sub(r"\x1b\[[?\d;]*[a-zA-Z]", "", frame) for frame in frames]
    assert {len(frame) for frame in shown} <= set(range(num_columns + 1))
    bars = [frame for frame in shown if "%" in frame]
    assert bars
    assert all(frame.startswith(("Compile", "Sweep")) for frame in bars)


def test_no_color_is_heeded_and_a_dumb_terminal_has_lines():
    text = on_terminal(PROGRESS)[1]
    assert COLOR.search(text)
    assert not COLOR.search(on_terminal(PROGRESS, NO_COLOR="1")[1])
    lines = "from jaxlr.lab import progress\nprogress.FIRST_LINE = .1\n" + PROGRESS
    text = on_terminal(lines, TERM="dumb")[1]
    assert ESCAPE not in text
    assert "Sweep: 8 of 8 lanes" in text


FAILING = """
import sys
from jaxlr.lab.cli import main
sys.exit(main({words}))
"""


def test_no_color_of_errors_and_tables():
    for words in (["runn"], ["list"]):
        code = FAILING.format(words=words)
        assert not COLOR.search(on_terminal(code, NO_COLOR="1")[1])
    assert COLOR.search(on_terminal(FAILING.format(words=["runn"]))[1])


@pytest.mark.parametrize("words", [["list"], ["runn"], ["--help"], ["run", "--help"]])
def test_pipes_get_no_escape_codes_even_where_color_is_forced(words):
    done = subprocess.run(
        [sys.executable, "-c", FAILING.format(words=words)],
        capture_output=True,
        text=True,
        check=False,
        env={"PATH": "", "PYTHONPATH": str(toys.ROOT), "FORCE_COLOR": "1"},
    )
    assert done.stdout + done.stderr
    assert ESCAPE not in done.stdout + done.stderr


def test_forced_color_draws_no_bar_into_a_pipe(quick, monkeypatch):
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setenv("FORCE_COLOR", "1")
    with progress.Progress(2) as shown:
        time.sleep(0.2)
    assert shown._bar.disable
    assert ESCAPE not in stream.getvalue()


class Narrow(io.StringIO):
    def isatty(self):
        return True


def are_readable(text, *sentences):
    """No line is too long, and each sentence's words stand unbroken, in order."""
    text = re.sub(r"\x1b\[[\d;]*m", "", text)
    assert max(map(len, text.splitlines())) <= 40
    found = text.split()
    for sentence in sentences:
        words = sentence.split()
        assert any(found[i : i + len(words)] == words for i in range(len(found)))


def test_forty_columns_are_readable(monkeypatch):
    narrow = Narrow()
    monkeypatch.setattr(sys, "stdout", narrow)
    monkeypatch.setenv("COLUMNS", "40")
    claim = Claim("the error decays at the predicted rate", [1.0, 2.0], 1, 3, "S1")
    names = ("sensing.overparameterization", (claim,)), ("mine", ())
    judgements = [Judgement(*x) for x in names]
    report.console().print(report.claims_table(judgements))
    report.console().print(
        report.attributes_table({"experiment": "x " * 30, "seed": 0})
    )
    report.console().print(report.table(("a", "b"), [("short", "table")]))
    are_readable(
        narrow.getvalue(),
        "sensing.overparameterization claim: the error decays at the predicted rate "
        "predicted: 1 to 3 measured: 1 to 2 (2 values) verdict: holds source: S1",
        "mine claim: makes no claims",
        "experiment x x",
        "a b",
    )


def test_the_list_is_readable_in_forty_columns():
    text = on_terminal(FAILING.format(words=["list"]), num_columns=40, NO_COLOR="1")[1]
    name, path = next(iter(find.names().items()))
    are_readable(text, f"{name} question: {find.summary(path)}")


def test_a_stream_that_lacks_letters_gets_their_codes():
    code = (
        "from jaxlr.lab import find\nfind.summary = lambda path: 'Gr\\xf6sse \\u03bb'"
    )
    code += FAILING.format(words=["list"])
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        env={"PATH": "", "PYTHONPATH": str(toys.ROOT), "PYTHONIOENCODING": "ascii"},
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert r"Gr\xf6sse \u03bb" in done.stdout
