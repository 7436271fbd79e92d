import json
import signal
import types
from typing import Any, NamedTuple

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from jaxlr.core import Experiment, Solver
from jaxlr.lab import (
    best,
    chunks,
    halving,
    planning,
    RunDirectoryError,
    store,
    successive_halving,
    sweep,
)
from jaxlr.lab.compiled import Compiled
from tests.lab import _toys as toys


AXES = {"rate": np.linspace(0.05, 0.6, 13), "size": [2, 3]}


@pytest.fixture(autouse=True)
def narrow(monkeypatch):
    """Programs of four cells."""
    monkeypatch.setattr(planning, "MIN_LANES", 8)


@pytest.fixture
def calls(monkeypatch):
    """Steps of every call of a program, with its number of cells."""
    made = []
    program = Compiled.program

    def counted(self, group, width, num_seeds=None):
        compiled = program(self, group, width, num_seeds)

        class Counted:
            def __getattr__(self, name):
                return getattr(compiled, name)

            def call(self, *arguments):
                made.append(tuple(int(t) for t in arguments[-1]))
                return compiled.call(*arguments)

        return Counted()

    monkeypatch.setattr(Compiled, "program", counted)
    return made


def halved(experiment, axes=AXES, **arguments):
    return successive_halving(
        experiment, axes, **{"metric": "loss", "num_seeds": 2} | arguments
    )


def chosen(whole, steps, counts, every=1, sign=1):
    """Rung of every cell, by the sweep of all of them: the slow way."""
    losses = whole.loss.values.reshape(-1, *whole.loss.shape[-2:])
    left = list(range(len(losses)))
    rung = [0] * len(losses)
    for k, count in enumerate(counts[1:]):
        row = max(i for i in range(losses.shape[-1]) if i * every < steps[k])
        score = {}
        for cell in left:
            seeds = losses[cell, :, row].astype(float)
            score[cell] = np.median([np.inf if s != s else s for s in sign * seeds])
        left = sorted(left, key=lambda cell: score[cell])[:count]
        for cell in left:
            rung[cell] = k + 1
    return rung


@pytest.mark.parametrize("every", [1, 4])
@pytest.mark.parametrize("is_maximized", [False, True])
def test_survivors_have_the_bits_of_the_whole_sweep(every, is_maximized):
    experiment = toys.long().replace(every=every)
    found = halved(experiment, is_maximized=is_maximized)
    whole = sweep(experiment, AXES, num_seeds=2, chunk=found.attrs["chunk"])
    rungs = json.loads(found.attrs["rungs"])
    steps, counts = ([r[n] for r in rungs] for n in ("num_steps", "num_cells"))
    assert (steps, counts) == ([6, 17, 50], [26, 8, 2])
    sign = -1 if is_maximized else 1
    rung = chosen(whole, steps, counts, every, sign)
    assert found.rung.values.ravel().tolist() == rung
    ends = np.asarray(steps)[rung].reshape(13, 2)
    assert found.stopped_at.values.tolist() == np.where(ends < 50, ends, -1).tolist()
    is_taken = found.step.values < ends[..., None, None]
    is_taken = np.broadcast_to(is_taken, found.loss.shape)
    wanted = whole.loss.values[is_taken].tobytes()
    assert found.loss.values[is_taken].tobytes() == wanted
    assert np.isnan(found.loss.values[~is_taken]).all()
    assert found.loss.dtype == whole.loss.dtype
    winners = best(found, "loss", is_maximized=is_maximized)
    assert np.isfinite(winners.score.values).tolist() == [True] * 2 + [False] * 24


def test_in_64_bits_too():
    experiment = toys.long().replace(x64=True)
    found = halved(experiment, {"rate": toys.RATES}, eta=2)
    whole = sweep(
        experiment, {"rate": toys.RATES}, num_seeds=2, chunk=found.attrs["chunk"]
    )
    (winner,) = np.flatnonzero(found.rung == 2)
    assert found.loss.dtype == np.float64
    one, two = (x.loss.values[winner] for x in (found, whole))
    assert one.tobytes() == two.tobytes()


def test_no_step_is_taken_twice_and_the_stopped_take_none(calls, monkeypatch):
    monkeypatch.setattr(
        chunks, "SEGMENT_SECONDS", 1e9
    )  # segments of 1, 2, 4, ... steps
    found = halved(toys.long(), {"rate": np.linspace(0.05, 0.6, 16)}, eta=4)
    rungs = json.loads(found.attrs["rungs"])
    assert [(r["num_steps"], r["num_cells"]) for r in rungs] == [
        (4, 16),
        (13, 4),
        (50, 1),
    ]
    by_rung = {4: 0, 13: 0, 50: 0}
    starts = {4: 0, 13: 4, 50: 13}
    at = None
    for first, last in calls:
        end = min(steps for steps in by_rung if last <= steps)
        assert first == (starts[end] if at in (None, 4, 13, 50) else at)
        by_rung[end] += last == end
        at = last
    # Cells keep their places in the program: four may share one.
    assert by_rung[4] == 4
    assert 1 <= by_rung[13] <= 4
    assert by_rung[50] == 1


def test_cells_keep_their_places():
    cells = np.asarray([0, 2, 5, 6, 8, 9, 13])
    parts = halving._calls(cells, 4)
    assert [part.tolist() for part in parts] == [[0, 2, 5], [6, 8, 9], [13]]
    for part in parts:
        assert len({*(part % 4)}) == len(part)


class Info(NamedTuple):
    loss: Any
    count: Any


class Planned(eqx.Module):
    level: float = 1.0
    """Of the loss."""
    worse_at: float = 1e9
    """Step at which the loss becomes NaN."""
    ends_at: float = 1e9
    """Step at which the lane ends."""


def planned(key, hparams):
    def step(key, t):
        loss = jnp.where(t >= hparams.worse_at, jnp.nan, hparams.level)
        return t + 1, Info(loss, t)

    return Solver(lambda key: jnp.asarray(0), step, lambda t: t >= hparams.ends_at)


PLANNED = Experiment(solver=planned, num_steps=9, hparams=Planned())


def test_a_nan_is_worse_than_any_number():
    levels = [(1.0, 0.0), (5.0, 1e9), (2.0, 2.0), (4.0, 1e9), (3.0, 4.0)]
    found = halved(PLANNED, {("level", "worse_at"): levels}, eta=2, num_rungs=2)
    # After five steps two are numbers.
    assert found.rung.values.tolist() == [0, 1, 0, 1, 0]
    assert json.loads(found.attrs["rungs"])[0] == {
        "num_steps": 5,
        "num_cells": 5,
        "score": 5.0,
        "num_tied": 0,
    }


def test_of_equal_cells_the_first_go_on_and_it_is_said():
    axes = {"level": [2.0, 1.0], "ends_at": [100.0, 101.0, 102.0, 103.0]}
    found = halved(PLANNED, axes)
    assert found.rung.values.tolist() == [[0, 0, 0, 0], [1, 1, 0, 0]]
    first = json.loads(found.attrs["rungs"])[0]
    assert (first["score"], first["num_tied"]) == (1.0, 2)


def test_lanes_that_end_stand_still_to_the_end():
    axes = {"ends_at": [2.0, 4.0, 100.0]}
    found = halved(PLANNED, axes, eta=3)
    whole = sweep(PLANNED, axes, num_seeds=2)
    assert found.rung.values.tolist() == [1, 0, 0]
    assert found.ended_at.values[:, 0].tolist() == [2, -1, -1]
    assert found["count"].values[0].tolist() == whole["count"].values[0].tolist()
    assert np.isnan(found["count"].values[1, 0]).tolist() == [False] * 3 + [True] * 6
    # Stopped after its end, whatever comes later is known too.
    found = halved(PLANNED, {"level": [1.0, 2.0, 3.0], "ends_at": [2.0]}, eta=3)
    assert found.rung.values.ravel().tolist() == [1, 0, 0]
    assert found["count"].values[:, 0, 0].tolist() == [[0] + [1] * 8] * 3


def test_with_one_rung_it_is_a_sweep():
    found = halved(toys.long(), num_rungs=1)
    whole = sweep(toys.long(), AXES, num_seeds=2, chunk=found.attrs["chunk"])
    toys.assert_equal(found.drop_vars(["rung", "stopped_at"]), whole)
    assert (found.stopped_at == -1).all()
    assert (found.rung == 0).all()


class Interrupted(list):
    stop = -1


@pytest.fixture
def files(monkeypatch):
    """Names of files that are written; Ctrl-C comes after the `stop`-th."""
    names = Interrupted()
    write = store.write_arrays

    def spy(path, arrays, identity):
        write(path, arrays, identity)
        names.append(path.name)
        if len(names) == names.stop:
            raise KeyboardInterrupt

    monkeypatch.setattr(store, "write_arrays", spy)
    return names


def test_it_goes_on_where_it_was_stopped(tmp_path, files, calls, monkeypatch):
    monkeypatch.setattr(chunks, "SEGMENT_SECONDS", 0)  # segments of one step
    wanted = halved(toys.long(), directory=tmp_path / "whole")
    num_files, num_calls = len(files), len(calls)
    assert num_files > 60
    for stop in (1, 20, num_files // 2, num_files - 1):
        directory = tmp_path / str(stop)
        files.clear()
        calls.clear()
        files.stop = stop
        with pytest.raises(KeyboardInterrupt, match=r"directory='.*', resume=True"):
            halved(toys.long(), directory=directory)
        files.stop = -1
        found = halved(toys.long(), directory=directory, resume=True)
        toys.assert_equal(found, wanted)
        assert len(calls) == num_calls
        assert found.attrs["rungs"] == wanted.attrs["rungs"]
        calls.clear()
        toys.assert_equal(halved(toys.long(), directory=directory, resume=True), wanted)
        assert not calls


def test_without_a_directory_nothing_is_kept(files):
    halved(toys.long())
    assert not files


def test_another_question_is_refused(tmp_path):
    halved(toys.long(), directory=tmp_path)
    with pytest.raises(RunDirectoryError, match="already holds a run"):
        halved(toys.long(), directory=tmp_path)
    for changed in ({"eta": 2}, {"is_maximized": True}, {"num_rungs": 2}, {"seed": 1}):
        name = "seed" if "seed" in changed else r"halving\."
        with pytest.raises(RunDirectoryError, match=f"cannot be resumed[^$]*{name}"):
            halved(toys.long(), directory=tmp_path, resume="force", **changed)
    with pytest.raises(RunDirectoryError, match=r"no run directory and not empty"):
        sweep(toys.long(), AXES, directory=tmp_path, resume=True)
    sweep(toys.long(), {"rate": [0.1]}, directory=tmp_path / "sweep")
    with pytest.raises(RunDirectoryError, match="holds a sweep"):
        halved(toys.long(), directory=tmp_path / "sweep", resume=True)


def test_a_file_of_other_cells_is_refused_by_name(tmp_path):
    halved(toys.long(), directory=tmp_path)
    one, two = (tmp_path / f"rungs/r00-g000-c0000{i}.npz" for i in range(2))
    content = one.read_bytes()
    one.write_bytes(two.read_bytes())
    with pytest.raises(RunDirectoryError, match="does not belong") as e:
        halved(toys.long(), directory=tmp_path, resume=True)
    assert str(one) in str(e.value)
    one.write_bytes(content[:-40])
    with pytest.raises(RunDirectoryError, match=r"c00000.npz is corrupt.*Delete"):
        halved(toys.long(), directory=tmp_path, resume=True)
    one.unlink()
    found = halved(toys.long(), directory=tmp_path, resume=True)
    toys.assert_equal(found, halved(toys.long()))


@pytest.mark.misuse
def test_misuse_is_named(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="`experiment` must have a `solver`"):
        halved(toys.closed())
    with pytest.raises(ValueError, match=r"`num_steps` must be equal.*\[20, 50\]"):
        halved(toys.long(), {"num_steps": [50, 20]})
    with pytest.raises(ValueError, match="Unknown metric 'los'; did you mean 'loss'"):
        halved(toys.long(), metric="los")
    with pytest.raises(ValueError, match="`eta` must be an integer >= 2, got 1"):
        halved(toys.long(), eta=1)
    with pytest.raises(ValueError, match=r"`num_rungs` must be in 1\.\.3, got 4"):
        halved(toys.long(), num_rungs=4)
    with pytest.raises(ValueError, match="`resume` needs the `directory`"):
        halved(toys.long(), resume=True)

    def vectors(key, hparams):
        return Solver(lambda key: key, lambda _, key: (key, {"loss": jr.key_data(key)}))

    long = Experiment(solver=vectors, num_steps=4, hparams=toys.HParams())
    with pytest.raises(ValueError, match=r"one real number a step; 'loss' is of shape"):
        halved(long, {"rate": toys.RATES})
    small = {"host_bytes": lambda: 10_000, "SHARE": 0.8, "format_bytes": str}
    monkeypatch.setattr(halving, "memory", types.SimpleNamespace(**small))
    with pytest.raises(ValueError, match=r"states of all cells need \d+ of the host"):
        halved(toys.long())


KILLED = """
import os, signal
from jaxlr.lab import chunks, planning, successive_halving
planning.MIN_LANES, chunks.SEGMENT_SECONDS = 8, 0
replace, num_files = os.replace, 0

def killing(one, two):
    global num_files
    num_files += 1
    if num_files == {at} and {is_before}:
        os.kill(os.getpid(), signal.SIGKILL)
    replace(one, two)
    if num_files == {at}:
        os.kill(os.getpid(), signal.SIGKILL)

os.replace = killing
successive_halving(
    toys.long(), {{"rate": toys.RATES, "size": [2, 3]}},
    metric="loss", num_seeds=2, directory={directory!r}, resume=True,
)
"""


@pytest.mark.slow
def test_it_survives_kills(tmp_path):
    """In the midst of writing the manifest, a state in flight, and a rung's last."""
    for at, is_before in ((1, True), (5, True), (20, False), (19, True)):
        code = KILLED.format(at=at, is_before=is_before, directory=str(tmp_path))
        process = toys.start(code)
        process.communicate(timeout=300)
        assert process.returncode == -signal.SIGKILL
    axes = {"rate": toys.RATES, "size": [2, 3]}
    experiment = toys.long()
    assert len(list((tmp_path / "rungs").iterdir())) > 1
    found = halved(experiment, axes, directory=tmp_path, resume=True)
    toys.assert_equal(found, halved(experiment, axes))
