from pathlib import Path
import signal
import subprocess
import time

import numpy as np
import pytest

from jaxlr.lab import chunks, load, store, sweep
from jaxlr.lab.signals import USUAL
from tests.lab import _toys as toys


@pytest.fixture(autouse=True)
def _ctrl_c_is_heard():
    """Also where a script put the tests in the background, with the signal ignored."""
    handlers = {number: signal.signal(number, usual) for number, usual in USUAL.items()}
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)


def _start(kind: str, directory: Path) -> subprocess.Popen:
    """A process that is about to sweep."""
    process = toys.start(f"toys.sweep_slowly({kind!r}, {str(directory)!r})")
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line == "ready\n", process.communicate()
    return process


def _has_progressed(kind: str, directory: Path, process: subprocess.Popen) -> bool:
    return toys.has_progressed(kind, directory, lambda: process.poll() is None)


@pytest.mark.parametrize(
    "num_kills",
    [pytest.param(6, marks=pytest.mark.slow), pytest.param(20, marks=pytest.mark.full)],
)
@pytest.mark.parametrize("kind", ["closed", "long"])
def test_kills_at_random_leave_no_trace(tmp_path, kind, num_kills):
    """`kill -9` and go on, until the run is done; then the next run, until the last.

    Every other kill is at any time at all; the rest come just after something new was
    kept, so that a busy machine cannot push all kills to before or after the work.
    """
    wanted = sweep(toys.slow(kind), chunk=2)
    process = _start(kind, tmp_path / "whole")
    begun = time.time()
    toys.finish(process)
    toys.assert_equal(load(tmp_path / "whole"), wanted)
    written = (p.stat().st_mtime for p in tmp_path.glob("whole/chunks/*.npz"))
    duration = max(written) - begun
    rng = np.random.default_rng(0)
    num_started = num_killed = num_midway = num_runs = 0
    while num_killed < num_kills:
        num_runs += 1
        directory = tmp_path / f"run{num_runs}"
        while num_killed < num_kills and not toys.is_complete(directory):
            num_started += 1
            process = _start(kind, directory)
            is_midway = num_started % 2 and _has_progressed(kind, directory, process)
            time.sleep(rng.uniform(0, 0.02 if is_midway else 1.1 * duration))
            process.kill()
            process.communicate()
            if process.returncode == -signal.SIGKILL:
                num_killed += 1
                num_midway += is_midway
        found = sweep(toys.slow(kind), directory=directory, resume=True, chunk=2)
        toys.assert_equal(found, wanted)
        assert not list(directory.rglob("*.tmp"))
    assert num_midway >= num_kills // 4


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["closed", "long"])
def test_a_sweep_that_was_stopped_goes_on_to_the_same_bits(tmp_path, kind):
    """By Ctrl-C, SIGTERM, `kill -9`, each when there is something new to go on from."""
    for stop in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
        process = _start(kind, tmp_path)
        assert _has_progressed(kind, tmp_path, process), process.communicate()
        process.send_signal(stop)
        since = time.perf_counter()
        out, err = process.communicate(timeout=60)
        ends = {signal.SIGTERM: signal.SIGINT}  # a KeyboardInterrupt that nobody caught
        assert process.returncode == -ends.get(stop, stop)
        assert out == ""
        assert load(tmp_path).attrs["is_complete"] == 0
        if stop != signal.SIGKILL:
            assert time.perf_counter() - since < 10
            sentence = err.strip().splitlines()[-1]
            kept = len(list(tmp_path.glob("chunks/*.npz")))
            assert f"Stopped. {kept} of 12 chunks are kept in {tmp_path}." in sentence
            assert f"`--directory {tmp_path} --resume`" in sentence
            assert "resume=True" in sentence
    kept = {p: p.stat().st_ino for p in tmp_path.glob("chunks/*.npz")}
    assert kind == "long" or len(kept) >= 3
    found = sweep(toys.slow(kind), directory=tmp_path, resume=True)
    assert all(p.stat().st_ino == inode for p, inode in kept.items())
    toys.assert_equal(found, sweep(toys.slow(kind), chunk=2))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_long_run_that_is_stopped_keeps_its_segment(tmp_path, monkeypatch, number):
    """However long ago the last checkpoint was; what is under way is finished first."""
    rare = toys.long().replace(checkpoint_seconds=1e6)
    ends, advance = [], chunks._Long._advance

    def stopped(self, stop):
        if len(ends) == 2:
            signal.raise_signal(number)
        out = advance(self, stop)
        ends.append(self.t)
        return out

    with monkeypatch.context() as patch:
        patch.setattr(chunks._Long, "_advance", stopped)
        with pytest.raises(KeyboardInterrupt, match=r"0 of 2 chunks are kept"):
            sweep(rare, directory=tmp_path, chunk=3)
    saved, _ = store.read_arrays(tmp_path / "segments/g000-c00000.npz")
    assert saved["t"] == ends[-1] == ends[2]
    assert [signal.getsignal(s) for s in USUAL] == list(USUAL.values())
    begun = []

    def spy(self, stop):
        begun.append(self.t)
        return advance(self, stop)

    monkeypatch.setattr(chunks._Long, "_advance", spy)
    found = sweep(rare, directory=tmp_path, resume=True)
    assert begun[0] == ends[-1]
    toys.assert_equal(found, sweep(rare, chunk=3))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_that_the_program_handles_itself_is_left_to_it(monkeypatch, number):
    heard, run = [], chunks.run
    signal.signal(number, lambda *args: heard.append(args))

    def signalled(*args, **kwargs):
        signal.raise_signal(number)
        return run(*args, **kwargs)

    monkeypatch.setattr(chunks, "run", signalled)
    toys.assert_equal(sweep(toys.closed()), sweep(toys.closed()))
    assert len(heard) == 2


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("kind", [toys.closed, toys.long])
def test_ctrl_c_that_python_drops_is_heard(tmp_path, monkeypatch, kind):
    """Within a finalizer, as within a callback of the garbage collector."""

    class Dropping:
        def __del__(self):
            signal.raise_signal(signal.SIGINT)

    fetch = chunks._fetch

    def fetch_and_drop(leaves):
        Dropping()
        return fetch(leaves)

    monkeypatch.setattr(chunks, "_fetch", fetch_and_drop)
    with pytest.raises(KeyboardInterrupt, match=r"0 of 2 chunks are kept"):
        sweep(kind(), directory=tmp_path, chunk=3)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.parametrize("at", [0, 1, 4])
def test_ctrl_c_while_a_chunk_is_written_keeps_it(tmp_path, monkeypatch, at):
    """Not only the file: `zipfile` turns an interrupt within it into other errors."""
    calls, write_array = [], np.lib.format.write_array

    def interrupted(*args, **kwargs):
        calls.append(args)
        if len(calls) == at + 1:
            signal.raise_signal(signal.SIGINT)
        write_array(*args, **kwargs)

    handler = signal.getsignal(signal.SIGINT)
    with monkeypatch.context() as patch:
        patch.setattr(np.lib.format, "write_array", interrupted)
        with pytest.raises(KeyboardInterrupt, match=r"[12] of 2 chunks are kept"):
            sweep(toys.closed(), directory=tmp_path, chunk=3)
    kept = 1 if at < 4 else 2  # a chunk is four arrays
    assert len(list(tmp_path.glob("chunks/*.npz"))) == kept
    assert not list(tmp_path.rglob("*.tmp"))
    assert signal.getsignal(signal.SIGINT) is handler
    found = sweep(toys.closed(), directory=tmp_path, resume=True)
    toys.assert_equal(found, sweep(toys.closed(), chunk=3))


def test_ctrl_c_without_a_directory_says_that_nothing_was_kept(monkeypatch):
    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(chunks, "run", interrupt)
    with pytest.raises(KeyboardInterrupt, match="Nothing was kept"):
        sweep(toys.closed(), chunk=3)
