from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
import importlib
import json
import multiprocessing
import os
from pathlib import Path
import pickle
import sys
import tempfile

import cloudpickle
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlr.core import Experiment
from jaxlr.lab import (
    find,
    planning,
    provenance,
    RunDirectoryError,
    store,
    sweep,
    tasks,
)
from jaxlr.lab.compiled import Compiled
from jaxlr.lab.memory import Machine
from jaxlr.lab.request import Request
from tests.lab import _toys as toys
from tests.lab._executors import AtOnce, Job


@pytest.mark.parametrize("make", [toys.closed, toys.long])
def test_threads_give_the_same_bits(tmp_path, make):
    wanted = sweep(make(), chunk=2)
    with ThreadPoolExecutor(2) as pool:
        toys.assert_equal(sweep(make(), chunk=2, executor=pool), wanted)
        kept = sweep(make(), chunk=2, executor=pool, directory=tmp_path)
    toys.assert_equal(kept, wanted)
    assert len(list((tmp_path / "chunks").iterdir())) == 3


def test_workers_run_the_planned_width(tmp_path, monkeypatch):
    widths, program = [], Compiled.program

    def spy(self, group, width, num_seeds):
        widths.append(width)
        return program(self, group, width, num_seeds)

    with ThreadPoolExecutor(2) as pool:
        sweep(toys.closed(), directory=tmp_path, chunk=2, executor=pool)
        (layout,) = store.read_manifest(tmp_path)["layout"]
        (tmp_path / "chunks/g000-c00001.npz").unlink()
        monkeypatch.setattr(Compiled, "program", spy)
        sweep(toys.closed(), directory=tmp_path, resume=True, executor=pool)
    assert widths == [layout["width"]] == [2]


def test_workers_take_over_jaxs_settings():
    with jax.default_prng_impl("rbg"):
        wanted = sweep(toys.closed(), chunk=2)
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(1, mp_context=context) as pool:
            toys.assert_equal(sweep(toys.closed(), chunk=2, executor=pool), wanted)
    assert not (wanted.loss == sweep(toys.closed(), chunk=2).loss).all()


@pytest.mark.parametrize("begin", [0, 1])
def test_a_worker_that_would_compute_something_else_says_so(begin):
    """The first, which is asked before anything runs, or a later one."""
    executor = AtOnce(begin, jax=lambda own: "0.0.1")
    with pytest.raises(RuntimeError, match=r"jax: .* / '0.0.1'"):
        sweep(toys.closed(num_steps=17), executor=executor)


def test_what_decides_bits_is_asked_of_the_workers(tmp_path):
    """A login node without a GPU: platform, kernels and memory are the workers'."""
    others = {
        "platform": lambda own: "gpu",
        "device_kind": lambda own: "H200",
        "computation": lambda own: {name: f"gpu {x}" for name, x in own.items()},
    }
    found = sweep(toys.closed(), directory=tmp_path, executor=AtOnce(**others), chunk=2)
    toys.assert_equal(found, sweep(toys.closed(), chunk=2))
    config = store.read_manifest(tmp_path)["config"]
    assert config["platform"] == found.attrs["platform"] == "gpu"
    assert config["device_kind"] == "H200"
    assert config["computation"]["all cells"].startswith("gpu ")
    (tmp_path / "chunks/g000-c00001.npz").unlink()
    with pytest.raises(store.RunDirectoryError, match="platform: 'gpu' -> 'cpu'"):
        sweep(toys.closed(), directory=tmp_path, resume=True)
    again = AtOnce(**others)
    sweep(toys.closed(), directory=tmp_path, resume=True, executor=again)
    assert again.num_submitted == 2  # a question, and the chunk


def test_chunks_are_as_wide_as_the_workers_can():
    """By their memory, and by the number of their devices."""
    compiled = Compiled(Request.make(toys.closed(), {"rate": np.linspace(0, 1, 99)}))
    plenty, little = (Machine("gpu", "", 4, n) for n in (2**40, 3600))
    cut = {"num_seeds": 2, "width": 2, "chunk": 8}  # of 25 a device, for 16 chunks
    assert planning.fit(compiled, plenty)[0] == [cut]
    assert planning.fit(compiled, little)[0] == [cut | {"width": 1, "chunk": 4}]
    with pytest.raises(ValueError, match=r"needs about .*, and 819.2 B may"):
        planning.fit(compiled, Machine("gpu", "", 4, 2**10))


def test_threads_of_this_process_take_over_its_settings():
    """And change none of them, nor load or unpack anything."""
    before = jax.config.jax_default_prng_impl, list(sys.path)
    with jax.default_prng_impl("rbg"), ThreadPoolExecutor(1) as pool:
        wanted = sweep(toys.closed(), chunk=2)
        toys.assert_equal(sweep(toys.closed(), chunk=2, executor=pool), wanted)
    assert (jax.config.jax_default_prng_impl, list(sys.path)) == before
    assert not (wanted.loss == sweep(toys.closed(), chunk=2).loss).all()


USERS_FILE = """
import equinox as eqx
import jax
import jax.numpy as jnp
from jaxlr.core import Experiment

class HParams(eqx.Module):
    rate: float = 0.1
    form: str = "sin"

def run(key, hparams):
    fn = getattr(jnp, hparams.form)
    def step(x, _):
        return x - hparams.rate * fn(x), x
    return {"x": jax.lax.scan(step, jax.random.normal(key), None, 40)[1]}

EXPERIMENT = Experiment(
    run=run, hparams=HParams(), num_seeds=2, claims=lambda results: [],
    axes={"form": ("sin", "tanh"), "rate": (0.1, 0.2, 0.3)},
)
"""


def test_spawned_processes_give_the_same_bits(tmp_path):
    """One experiment of a module, one of a user's file that no worker has seen."""
    file = tmp_path / "mine.py"
    file.write_text(USERS_FILE)
    experiments = toys.closed(), toys.long(), find.find(file)
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(2, mp_context=spawn) as pool:
        found = [sweep(x, chunk=2, executor=pool) for x in experiments]
        ids = {pool.submit(os.getpid).result() for _ in range(4)}
    assert os.getpid() not in ids
    for experiment, results in zip(experiments, found, strict=True):
        toys.assert_equal(results, sweep(experiment, chunk=2))


def test_workers_notice_an_edited_file(tmp_path):
    """The same pool, as a Dask cluster that outlives many edits."""
    file = tmp_path / "mine.py"
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn) as pool:
        for text in (USERS_FILE, USERS_FILE.replace("x - h", "x + h")):
            file.write_text(text)
            experiment = find.find(file)
            for _ in range(2):
                found = sweep(experiment, chunk=2, executor=pool)
                toys.assert_equal(found, sweep(experiment, chunk=2))
    with ThreadPoolExecutor(1) as pool:
        for text in (USERS_FILE, USERS_FILE.replace("x - h", "x + h")):
            file.write_text(text)
            experiment = find.find(file)
            for _ in range(2):
                found = sweep(experiment, chunk=2, executor=pool)
                toys.assert_equal(found, sweep(experiment, chunk=2))


@pytest.mark.slow
@pytest.mark.parametrize("is_package", [False, True])
def test_workers_notice_an_edited_module_beside(tmp_path, monkeypatch, is_package):
    """Imported by an experiment that is not edited itself, in a worker that has it."""
    folder = tmp_path / "beside_it" if is_package else tmp_path
    folder.mkdir(exist_ok=True)
    name = "beside_it.slopes" if is_package else "slopes_beside"
    helper = folder / f"{name.rpartition('.')[2]}.py"
    file = tmp_path / "mine_beside.py"
    how = "from beside_it import" if is_package else "import slopes_beside as"
    text = USERS_FILE.replace("hparams.rate * fn(x)", "hparams.rate * slopes.slope(x)")
    file.write_text(f"{how} slopes\n{text}")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    spawn = multiprocessing.get_context("spawn")
    axes, lasts = {"rate": (0.1, 0.2)}, []
    with ProcessPoolExecutor(1, mp_context=spawn) as pool:
        for i in range(2):
            helper.write_text(f"def slope(x): return {i}.0 * x\n")
            for imported in (name, "mine_beside", "beside_it"):
                sys.modules.pop(imported, None)
            importlib.invalidate_caches()
            experiment = importlib.import_module("mine_beside").EXPERIMENT
            found = sweep(experiment, axes, executor=pool)
            toys.assert_equal(found, sweep(experiment, axes, chunk=1))
            lasts.append(found.x.isel(step=-1).values)
    assert (lasts[0] != lasts[1]).all()


class Measured(AtOnce):
    """Counts the bytes that it is sent, as another process would be."""

    num_bytes = 0

    def submit(self, fn, /, *args):
        self.num_bytes += len(cloudpickle.dumps((fn, args)))
        return super().submit(fn, *args)


def _heavy(seed):
    data = np.random.default_rng(seed).normal(size=2**20)  # 8 MB, of no module

    def run(key, hparams):
        return {
            "x": hparams.rate * jnp.asarray(data)[jax.random.randint(key, (), 0, 9)]
        }

    axes = {"rate": np.linspace(0, 1, 16)}
    return Experiment(run=run, hparams=toys.HParams(), axes=axes)


@pytest.mark.parametrize("has_directory", [False, True])
def test_what_functions_close_over_is_sent_once(tmp_path, monkeypatch, has_directory):
    """By a file, into which a worker looks: 8 MB, not 16 times as much."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    executor, seen = Measured(), []
    unpack = tasks._unpack

    def spy(parcel, content):
        seen.append((Path(parcel.file), content))
        return unpack(parcel, content)

    monkeypatch.setattr(tasks, "_unpack", spy)
    root = tmp_path / "run" if has_directory else None
    (tmp_path / "run" / f"{store.SENT}killed").mkdir(parents=True)
    monkeypatch.setattr(tasks, "_SENT", Forgetful())
    found = sweep(_heavy(has_directory), directory=root, executor=executor, chunk=1)
    assert executor.num_submitted == 17
    assert executor.num_bytes < 100_000
    ((file, content),) = seen
    assert content is None
    assert file.is_relative_to(root or tmp_path / "temporary")
    assert not file.exists()
    assert not list((tmp_path / "temporary").iterdir())
    assert list((tmp_path / "run").glob(f"{store.SENT}*")) == [] or not has_directory
    toys.assert_equal(found, sweep(_heavy(has_directory), chunk=1))


class Forgetful(dict):
    """Keeps nothing: threads of this process then are as other processes."""

    def __setitem__(self, key, value):
        pass


def test_a_worker_that_sees_no_file_is_sent_what_is_in_it(tmp_path, monkeypatch):
    """And once it has said so, all of them are."""
    executor = Measured()
    monkeypatch.setattr(tasks, "_SENT", Forgetful())

    def refused(self):
        raise OSError("no such file here")

    monkeypatch.setattr(tasks.Path, "read_bytes", refused)
    monkeypatch.setattr(tasks, "_sources", lambda: ())
    monkeypatch.setattr(provenance, "source_digest", lambda experiment: "")
    found = sweep(_heavy(2), executor=executor, chunk=8)
    monkeypatch.undo()
    assert executor.num_submitted == 4
    assert executor.num_bytes > 3 * 8 * 2**20
    toys.assert_equal(found, sweep(_heavy(2), chunk=8))


def test_a_file_that_is_not_what_was_sent_is_not_unpacked(tmp_path, monkeypatch):
    """Digests tell: what lies in a run directory is not to be executed."""
    path = tmp_path / "sweep"
    path.write_bytes(pickle.dumps("another"))
    monkeypatch.setattr(pickle, "loads", lambda content: 1 / 0)
    parcel = tasks._Parcel("0" * 64, str(path), "main", ())
    assert tasks._in_worker(lambda compiled: compiled, parcel, None) == tasks._UNSEEN


@pytest.mark.misuse
def test_an_executor_that_forks_is_refused():
    fork = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(1, mp_context=fork) as pool:
        with pytest.raises(ValueError, match=r"`executor` forks .*spawn"):
            sweep(toys.closed(), executor=pool)


@pytest.mark.misuse
def test_what_is_no_executor_is_refused():
    with pytest.raises(ValueError, match=r"`executor` must be .*, got 4\."):
        sweep(toys.closed(), executor=4)


def test_ctrl_c_cancels_what_waits(tmp_path):
    """And keeps what has come in."""
    asked, cancelled = [], []

    class Stopped(Job):
        def cancel(self):
            cancelled.append(self)

        def done(self):  # never, and when asked again the user has had enough
            asked.append(self)
            if len(asked) == 3:
                raise KeyboardInterrupt
            return False

    class Stopping(AtOnce):
        def submit(self, fn, /, *args):
            if self.num_submitted < 2:
                return super().submit(fn, *args)
            return Stopped(None, None)

    executor = Stopping()
    with pytest.raises(KeyboardInterrupt, match="1 of 3 chunks are kept"):
        sweep(toys.closed(), directory=tmp_path, chunk=2, executor=executor)
    assert len(cancelled) == 2


def test_a_run_moves_between_executors(tmp_path):
    wanted = sweep(toys.closed(), directory=tmp_path, chunk=2)
    (tmp_path / "chunks/g000-c00001.npz").unlink()
    with ThreadPoolExecutor(2) as pool:
        found = sweep(toys.closed(), directory=tmp_path, resume=True, executor=pool)
        toys.assert_equal(found, wanted)
        elsewhere = sweep(toys.closed(), directory=tmp_path / "two", executor=pool)
    (tmp_path / "two/chunks/g000-c00000.npz").unlink()
    found = sweep(toys.closed(), directory=tmp_path / "two", resume=True)
    toys.assert_equal(found, elsewhere)


def test_without_a_width_of_ones_own_there_is_work_for_many():
    class Counting(ThreadPoolExecutor):
        submitted = 0

        def submit(self, *args, **kwargs):
            self.submitted += 1
            return super().submit(*args, **kwargs)

    axes = {"rate": [0.01 * i for i in range(40)]}
    with Counting(2) as pool:
        sweep(toys.closed(), axes, executor=pool)
        assert 8 <= pool.submitted <= 16


def test_a_finished_run_needs_no_workers(tmp_path):
    with ThreadPoolExecutor(1) as pool:
        wanted = sweep(toys.closed(), directory=tmp_path, executor=pool, chunk=2)
    path = tmp_path / "manifest.json"
    manifest = json.loads(path.read_text())
    there = {"platform": "tpu", "device_kind": "TPU v5"}  # as if they had been others
    manifest["config"] |= there | {"computation": {"all cells": "of the workers"}}
    store.write_json(path, manifest)
    found = sweep(toys.closed(), directory=tmp_path, executor=pool, resume=True)
    toys.assert_equal(found, wanted)
    with pytest.raises(RunDirectoryError, match=r"(?s)device_kind: .*platform: "):
        sweep(toys.closed(), directory=tmp_path, resume=True)
    manifest["config"]["source"] = "edited"  # who knows what it computes there
    store.write_json(path, manifest)
    with pytest.raises(RunDirectoryError, match=r"(?s)computation.* source: "):
        sweep(toys.closed(), directory=tmp_path, executor=pool, resume=True)


def test_a_worker_traces_anew_under_other_settings(monkeypatch):
    monkeypatch.setattr(tasks, "_SENT", Forgetful())
    experiment = toys.closed(size=5)
    with ThreadPoolExecutor(1) as pool:
        for name in ("threefry2x32", "rbg"):
            with jax.default_prng_impl(name):
                wanted = sweep(experiment, chunk=2)
                found = sweep(experiment, chunk=2, executor=pool)
            toys.assert_equal(found, wanted)


def _notebook(**fields):
    return Experiment(
        run=lambda key, hparams: {"x": hparams.rate * jax.random.normal(key)},
        hparams=toys.HParams(**fields),
        axes={"rate": toys.RATES},
    )


def test_a_lambda_travels_with_cloudpickle():
    pytest.importorskip("cloudpickle")
    with ThreadPoolExecutor(2) as pool:
        found = sweep(_notebook(), chunk=2, executor=pool)
    toys.assert_equal(found, sweep(_notebook(), chunk=2))


@pytest.mark.misuse
@pytest.mark.parametrize("module", [__name__, "__main__"])
def test_without_cloudpickle_a_lambda_is_refused(monkeypatch, module):
    experiment = _notebook()
    experiment.function.__module__ = module
    monkeypatch.setitem(sys.modules, "cloudpickle", None)
    monkeypatch.delitem(sys.modules, "jaxlr.lab.pickling", raising=False)
    what = "cloudpickle" if module == "__main__" else "cannot be sent to an executor"
    with ThreadPoolExecutor(2) as pool, pytest.raises(ValueError, match=what):
        sweep(experiment, chunk=2, executor=pool)
