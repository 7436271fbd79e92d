"""Runs are looked at while another process writes them, and after it was killed."""

import json
import os
import signal
import subprocess
import sys
import threading
import time

import filelock
import numpy as np
import pytest

from jaxlr import lab
from jaxlr.lab import chunks, gate, judging, load, plot, store, sweep, watching
from jaxlr.lab.cli import main
from tests.lab import _terminals as terminals, _toys as toys
from tests.lab.test_hooks import ENDING


class _Stop(Exception):
    pass


@pytest.fixture(autouse=True)
def one_step(monkeypatch):
    """Segments stay one step long."""
    monkeypatch.setattr(chunks, "SEGMENT_SECONDS", 0)


def stopped(experiment, directory, at, **settings):
    """A long run that was left at a step of its second chunk."""

    def stop(curves, step):
        del curves
        calls.append(step)
        if calls.count(1) == 2 and step == at:
            raise _Stop

    calls: list[int] = []
    with pytest.raises(_Stop):
        sweep(experiment, directory=directory, on_segment=stop, **settings)


def assert_prefix(part, whole):
    """What a lane has, it has of the whole run; the rest is NaN."""
    share = part.share_done.values
    for name in ("loss", "count"):
        if name not in whole:
            continue
        values, wanted = part[name].values, whole[name].values.astype(part[name].dtype)
        for lane in np.ndindex(share.shape):
            num_rows = round(share[lane] * values.shape[-1])
            assert (
                values[lane][:num_rows].tobytes() == wanted[lane][:num_rows].tobytes()
            )
            assert np.isnan(values[lane][num_rows:]).all()


@pytest.mark.parametrize("at", [1, 13, 49])
@pytest.mark.parametrize("every", [1, 4])
def test_a_run_left_in_midst_loads_as_far_as_it_is(tmp_path, every, at):
    experiment = toys.long().replace(every=every)
    stopped(experiment, tmp_path, at, chunk=2)
    found = load(tmp_path)
    rows = -(-at // every) / -(-50 // every)
    assert found.share_done.values.tolist() == [[x] * 2 for x in (1, 1, rows, rows, 0)]
    assert found.share_done.dims == ("rate", "seed")
    assert found.attrs["is_complete"] == 0
    assert_prefix(found, sweep(experiment, chunk=2))
    figure = plot.default_figure(found)
    drawn = [line.get_ydata() for line in figure.axes[0].lines]
    finite = [int(np.isfinite(y).sum()) for y in drawn]
    num_rows = round(rows * -(-50 // every))
    assert finite[:4] == [-(-50 // every)] * 2 + [num_rows] * 2
    assert all(line.get_marker() == "o" for line in figure.axes[0].lines[2:4]) == (
        num_rows == 1
    )
    whole = sweep(experiment, directory=tmp_path, resume=True)
    assert "share_done" not in whole
    toys.assert_equal(load(tmp_path), whole)


def test_integers_and_counters_of_a_run_left_in_midst(tmp_path):
    axes = {"limit": (2.0, 4.0, 20.0, 3.0)}
    stopped(ENDING, tmp_path, 3, axes=axes, chunk=2)
    found = load(tmp_path)
    assert found["count"].dtype == np.float64
    assert found.ended_at.values[:, 0].tolist() == [2, 4, -1, 3]
    assert found.diverged_at.values[:, 0].tolist() == [1, 1, 1, 1]
    assert_prefix(found, sweep(ENDING, axes, chunk=2))


def test_show_draws_a_run_left_in_midst(tmp_path, capsys):
    experiment = toys.long().replace(axes={"rate": (0.1, 0.2)})
    stopped(experiment, tmp_path, 13, chunk=1)
    assert main(["show", str(tmp_path)]) == 0
    assert "unfinished" in capsys.readouterr().out
    assert (tmp_path / "figure.png").stat().st_size > 5000


def test_a_figure_that_needs_the_whole_run_gives_way_to_any_other(tmp_path):
    def figure(results):
        raise ValueError(f"I need all of {results.sizes['step']} steps")

    def claims(results):
        raise ValueError("I need them too")

    experiment = toys.long().replace(figure=figure, claims=claims)
    stopped(experiment, tmp_path, 13, chunk=2)
    part = judging.judge(experiment, load(tmp_path), tmp_path)
    assert not part.problems
    assert "I need all of 50 steps" in part.notes[1]
    assert (tmp_path / "figure.png").exists()
    whole = sweep(experiment, directory=tmp_path, resume=True)
    assert len(judging.judge(experiment, whole, tmp_path).problems) == 2


def test_a_checkpoint_that_becomes_a_chunk_under_the_readers_eyes(
    tmp_path, monkeypatch
):
    stopped(toys.long(), tmp_path, 13, chunk=2)
    read, calls = store.Stored.read, []

    def late(self):
        if self.path.parent.name == "segments":
            calls.append(self.path)
            if len(calls) == 1:
                sweep(toys.long(), directory=tmp_path, resume=True)
        return read(self)

    monkeypatch.setattr(store.Stored, "read", late)
    toys.assert_equal(load(tmp_path), sweep(toys.long(), chunk=2))


def test_chunks_that_become_narrower_under_the_readers_eyes(tmp_path, monkeypatch):
    sweep(toys.closed(), directory=tmp_path / "wide", chunk=3)
    sweep(toys.closed(), directory=tmp_path / "run", chunk=2)
    narrow = store.read_manifest(tmp_path / "run")
    wide = store.read_manifest(tmp_path / "wide") | {"run": narrow["run"]}
    store.write_json(tmp_path / "run" / store.MANIFEST, wide)
    dataset, calls = gate.Gate.dataset, []

    def late(self):
        calls.append(self)
        if len(calls) == 1:
            store.write_json(tmp_path / "run" / store.MANIFEST, narrow)
        return dataset(self)

    monkeypatch.setattr(gate.Gate, "dataset", late)
    found = load(tmp_path / "run")
    assert len(calls) == 2
    toys.assert_equal(found, sweep(toys.closed(), chunk=2))


def test_files_that_stand_still_and_are_wrong_are_refused(tmp_path):
    stopped(toys.long(), tmp_path, 13, chunk=2)
    (path,) = tmp_path.glob("segments/*.npz")
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(lab.RunDirectoryError, match=path.name):
        load(tmp_path)
    with pytest.raises(lab.RunDirectoryError, match=path.name):
        watching.Watched(tmp_path).look()


def test_a_look_tells_what_there_is(tmp_path):
    stopped(toys.long(), tmp_path, 20, chunk=2)
    part = load(tmp_path)
    found = watching.Watched(tmp_path).look()
    assert (found.state, found.seconds_left) == ("stopped", None)
    assert (found.chunks_done, found.num_chunks, found.num_lanes) == (1, 3, 10)
    assert found.lanes_done == pytest.approx(4 + 4 * 0.4)
    ends = [*part.loss.values[:2, :, -1].flat, *part.loss.values[2:4, :, 19].flat]
    assert found.medians == {"loss": np.median(ends)}
    sweep(toys.long(), directory=tmp_path, resume=True)
    assert watching.Watched(tmp_path).look().state == "complete"


def test_files_are_read_once(tmp_path, monkeypatch):
    stopped(toys.long(), tmp_path, 20, chunk=2)
    read, paths = store.Stored.read, []
    monkeypatch.setattr(
        store.Stored, "read", lambda self: paths.append(self.path) or read(self)
    )
    watched = watching.Watched(tmp_path)
    first, second = watched.look(), watched.look()
    assert first == second
    assert len(paths) == 2


def test_an_estimate_is_the_pace_of_what_was_written(tmp_path):
    """Two of five chunks in ten seconds each: thirty seconds are left."""
    sweep(toys.closed(), chunk=1, directory=tmp_path)
    manifest = store.read_manifest(tmp_path) | {"is_complete": False}
    store.write_json(tmp_path / store.MANIFEST, manifest)
    now = time.time()
    for path in sorted(tmp_path.glob("chunks/*.npz"))[2:]:
        path.unlink()
    for i, path in enumerate(sorted(tmp_path.glob("chunks/*.npz"))):
        os.utime(path, (now, now - 10 * (1 - i)))
    with store.lock(tmp_path):
        os.utime(tmp_path / ".owner", (now, now - 20))
        watched = watching.Watched(tmp_path)
        found = watched.look()
        assert found.state == "running"
        assert found.seconds_left == pytest.approx(30, abs=2)
        os.utime(tmp_path / ".owner", (now, now - 5))  # resumed behind the first
        found = watching.Watched(tmp_path).look()
        assert found.seconds_left == pytest.approx(15, abs=2)
        os.utime(tmp_path / ".owner", (now, now + 5))  # nothing since
        assert watching.Watched(tmp_path).look().seconds_left is None


def test_whether_a_run_is_in_use(tmp_path):
    sweep(toys.closed(), directory=tmp_path)
    assert not store.is_in_use(tmp_path)
    with store.lock(tmp_path):
        assert store.is_in_use(tmp_path)
    assert not store.is_in_use(tmp_path)
    assert not store.is_in_use(tmp_path / "nothing")


def test_asking_is_in_nobodys_way(tmp_path):
    """A sweep that begins while somebody asks gets the lock all the same."""
    asking = filelock.FileLock(tmp_path / ".lock", thread_local=False)
    asking.acquire()
    timer = threading.Timer(0.05, asking.release)
    timer.start()
    with store.lock(tmp_path):
        assert store.is_in_use(tmp_path)
    timer.join()


def test_the_command_watches_what_is_over(tmp_path, capsys):
    stopped(toys.long(), tmp_path, 20, chunk=2)
    assert main(["watch", str(tmp_path)]) == 1
    out = capsys.readouterr().out.splitlines()
    assert out[0].startswith("stopped: 5 of 10 lanes, loss 1")
    assert f"--directory {tmp_path} --resume" in out[1]
    assert main(["watch", str(tmp_path), "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert (found["status"], found["state"]) == (1, "stopped")
    assert found["lanes_done"] == pytest.approx(5.6)
    sweep(toys.long(), directory=tmp_path, resume=True)
    assert main(["watch", str(tmp_path)]) == 0
    assert capsys.readouterr().out.startswith("complete: 10 of 10 lanes, loss 1")
    assert main(["watch", str(tmp_path / "nothing")]) == 2
    assert main(["watch", str(tmp_path), "--interval", "0"]) == 2


@pytest.fixture
def started():
    """Processes that are gone when the test is over."""
    processes = []
    yield processes
    for process in processes:
        process.kill()
        process.communicate()


def _watch(directory, started):
    code = "import sys; from jaxlr.lab.cli import main; sys.exit(main(sys.argv[1:]))"
    words = "watch", str(directory), "--interval", "0.05"
    process = subprocess.Popen(
        [sys.executable, "-c", code, *words],
        cwd=toys.ROOT,
        env=os.environ | {"PYTHONPATH": str(toys.ROOT), "JAX_PLATFORMS": "cpu"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    started.append(process)
    assert process.stdout is not None
    return process, process.stdout


def _begin(kind, directory, started):
    """A process that sweeps as far as it is told, once its manifest is there."""
    process = toys.start(f"toys.sweep_when_seen({kind!r}, {str(directory)!r})")
    started.append(process)
    until = time.perf_counter() + 120
    while not (directory / store.MANIFEST).exists():
        assert process.poll() is None
        assert time.perf_counter() < until
        time.sleep(0.01)
    return process


def _is_at(directory, number):
    return directory.with_name(f"{directory.name}-at{number}").exists()


def _tell(directory, numbers):
    for number in numbers:
        directory.with_name(f"{directory.name}-go{number}").touch()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["closed", "long"])
def test_a_sweep_of_another_process_is_watched_live(tmp_path, kind, started):
    directory = tmp_path / "run"
    process = _begin(kind, directory, started)
    watcher, said = _watch(directory, started)
    watched = watching.Watched(directory)
    lines, sights, parts = [], [], []
    for line in said:
        lines.append(line.strip())
        if _is_at(directory, len(sights)):
            sights.append(watched.look())
            parts.append(load(directory))
            _tell(directory, [len(sights) - 1])
    assert watcher.wait() == 0
    assert toys.finish(process).splitlines()[-1] == "done"
    assert len(lines) > toys.NUM_SEEN
    assert all(line.startswith("running: ") for line in lines[:-1])
    assert lines[-1].startswith("complete: 48 of 48 lanes, ")
    assert any(" left, " in line for line in lines)
    assert "\x1b" not in "".join(lines)
    done = [sight.lanes_done for sight in sights]
    assert done == sorted(done)
    assert len({*done}) == len(done) == toys.NUM_SEEN
    assert {sight.state for sight in sights} == {"running"}
    assert [48 * float(x.share_done.mean()) for x in parts] == pytest.approx(done)
    assert watched.look().state == "complete"
    whole = sweep(toys.slow(kind), chunk=2)
    if kind == "long":
        assert 0 < done[-1] < 4
        assert_prefix(parts[-1], whole)
    toys.assert_equal(load(directory), whole)


@pytest.mark.slow
def test_a_run_that_is_killed_is_loaded_as_far_as_it_came(tmp_path, started):
    directory = tmp_path / "run"
    process = _begin("long", directory, started)
    watcher, said = _watch(directory, started)
    assert said.readline().startswith("running: ")
    for number in range(toys.NUM_SEEN):
        while not _is_at(directory, number):
            time.sleep(0.01)
        if number == toys.NUM_SEEN - 1:
            process.send_signal(signal.SIGKILL)
            process.communicate()
        _tell(directory, [number])
    out, err = watcher.communicate(timeout=60)
    assert watcher.returncode == 1, err
    assert "stopped: " in out
    assert "stopped unfinished" in out
    part = load(directory)
    assert_prefix(part, sweep(toys.slow("long"), chunk=2))
    assert 0 < part.share_done.values[0, 0] < 1


@pytest.mark.slow
def test_ctrl_c_leaves_quietly_and_the_run_goes_on(tmp_path, started):
    directory = tmp_path / "run"
    process = _begin("long", directory, started)
    watcher, said = _watch(directory, started)
    assert said.readline().startswith("running: ")
    watcher.send_signal(signal.SIGINT)
    _, err = watcher.communicate(timeout=60)
    assert watcher.returncode == 130
    assert err == ""
    _tell(directory, range(toys.NUM_SEEN))
    assert toys.finish(process).splitlines()[-1] == "done"


LIVE = """
import itertools, pathlib, sys
from jaxlr.lab import watching
from jaxlr.lab.cli import main
numbers, look = itertools.count(), watching.Watched.look
def seen(self):
    sight = look(self)
    pathlib.Path(sys.argv[1] + f"-go{next(numbers)}").touch()
    return sight
watching.Watched.look = seen
sys.exit(main(["watch", sys.argv[1], "--interval", "0.05"]))
"""


@pytest.mark.slow
def test_a_terminal_shows_a_table_that_lives(tmp_path, started):
    directory = tmp_path / "run"
    process = _begin("closed", directory, started)
    code = LIVE.replace("sys.argv[1]", repr(str(directory)))
    status, shown = terminals.on_terminal(code)
    assert status == 0
    assert toys.finish(process).splitlines()[-1] == "done"
    assert shown.count("chunks") > toys.NUM_SEEN
    assert "complete" in shown
    assert "\x1b[1A" in shown  # it is drawn over itself
