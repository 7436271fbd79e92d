"""Tasks that fail, jobs that are cancelled, workers that die: what is left is right."""

from concurrent.futures import CancelledError
import os
import signal
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlr.core import Experiment
from jaxlr.lab import (
    load,
    store,
    sweep,
)
from jaxlr.lab.compiled import Compiled
from tests.lab import _toys as toys
from tests.lab._executors import AtOnce, Job


class Faulty(AtOnce):
    """Tasks with the cells from 2 on raise `error`."""

    def __init__(self, error):
        super().__init__()
        self.error = error

    def submit(self, fn, /, *args):
        if getattr(args[-1], "cells", [None])[0] == 2:
            return Job(None, self.error)
        return super().submit(fn, *args)


@pytest.mark.parametrize(
    "error", [OSError("node lost"), CancelledError(), SystemExit(3)], ids=repr
)
def test_a_failed_task_is_named_and_costs_no_other(tmp_path, error):
    """One that was cancelled too, and `sys.exit` in a worker."""
    fields = r"size=3; rate=0\.3, 0\.4; seeds 0\.\.1"
    what = f"failed: {type(error).__name__}{f': {error}' if str(error) else ''}"
    message = rf"Cells 2\.\.3 of block 0 \({fields}\) {what}\. .*resume"
    axes = {"size": [3, 4], "rate": toys.RATES}
    with pytest.raises(RuntimeError, match=message) as caught:
        sweep(toys.closed(), axes, directory=tmp_path, chunk=2, executor=Faulty(error))
    assert "So did 1 others" in str(caught.value)
    assert caught.value.__cause__ is error
    kept = {p.name: p.stat().st_ino for p in (tmp_path / "chunks").iterdir()}
    assert sorted(kept) == [f"g00{g}-c0000{c}.npz" for g in (0, 1) for c in (0, 2)]
    assert not store.read_manifest(tmp_path)["is_complete"]
    assert load(tmp_path).attrs["is_complete"] == 0
    found = sweep(toys.closed(), axes, directory=tmp_path, resume=True)
    toys.assert_equal(found, sweep(toys.closed(), axes, chunk=2))
    for name, inode in kept.items():
        assert (tmp_path / "chunks" / name).stat().st_ino == inode


def test_without_a_directory_the_first_failure_ends_it():
    executor = Faulty(OSError("node lost"))
    with pytest.raises(RuntimeError, match=r"node lost.*Nothing was kept"):
        sweep(toys.closed(), chunk=2, executor=executor)


def _fails_at(rate):
    """An experiment whose callback raises in one cell, and says what else was run."""

    def check(found):
        if np.any(np.isclose(found, rate)):
            raise FloatingPointError("the data are not positive")
        return np.float32(found)

    def run(key, hparams):
        shape = jax.ShapeDtypeStruct((), jnp.float32)
        found = jax.pure_callback(
            check, shape, hparams.rate * 1.0, vmap_method="expand_dims"
        )
        return {"x": found + jax.random.normal(key)}

    return Experiment(
        run=run, hparams=toys.HParams(), axes={"size": [3, 4], "rate": toys.RATES}
    )


@pytest.mark.parametrize("elsewhere", [False, True])
def test_only_what_is_left_fails_where_a_group_cannot_be_compiled(
    tmp_path, monkeypatch, elsewhere
):
    """Of a group that does not compile any more, the finished chunks stay so."""
    experiment = toys.closed().replace(axes={"size": [3, 4], "rate": toys.RATES})
    sweep(experiment, directory=tmp_path, chunk=2)
    (tmp_path / "chunks/g001-c00001.npz").unlink()
    compile_ = Compiled.program

    def program(self, group, *lanes):
        if group == 1:
            raise OSError("no compiler")
        return compile_(self, group, *lanes)

    monkeypatch.setattr(Compiled, "program", program)
    cells = r"Cells 2\.\.3 of block 1 .* failed: OSError: no compiler\. All else"
    with pytest.raises(RuntimeError, match=cells):
        sweep(
            experiment,
            directory=tmp_path,
            resume=True,
            executor=AtOnce() if elsewhere else None,
        )


@pytest.mark.parametrize("elsewhere", [False, True])
def test_a_failing_cell_is_named_and_the_rest_goes_on(tmp_path, elsewhere):
    failing, executor = _fails_at(0.3), AtOnce() if elsewhere else None
    cells = r"Cells 2\.\.2 of block 0 \(size=3; rate=0\.3; seeds 0\.\.0\) failed"
    with pytest.raises(RuntimeError, match=cells) as caught:
        sweep(failing, directory=tmp_path, chunk=1, executor=executor)
    assert "So did 1 others" in str(caught.value)
    assert "the data are not positive" in str(caught.value)
    assert len(list((tmp_path / "chunks").iterdir())) == 8
    found = load(tmp_path)
    assert found.x.isnull().sum() == 2
    assert found.x.sel(rate=0.3).isnull().all()


@pytest.mark.slow
@pytest.mark.parametrize("how", ["restart", "close"])
def test_a_dask_cluster_may_be_stopped_in_mid_run(tmp_path, how):
    """Which cancels tasks: the run goes on later, and is not complete before."""
    distributed = pytest.importorskip("distributed")
    wanted = sweep(toys.slow("closed"), chunk=2)
    settings = {"n_workers": 2, "threads_per_worker": 1, "dashboard_address": ":0"}
    with (
        distributed.LocalCluster(processes=True, **settings) as cluster,
        distributed.Client(cluster) as client,
    ):

        def stop():
            while not list(tmp_path.glob("chunks/*.npz")):
                time.sleep(0.01)
            getattr(client, how)()

        thread = threading.Thread(target=stop)
        thread.start()
        executor, message = client.get_executor(), r"Cells .* failed.*go on with resume"
        with pytest.raises(RuntimeError, match=message):
            sweep(toys.slow("closed"), directory=tmp_path, chunk=2, executor=executor)
        thread.join()
    assert 1 <= len(list(tmp_path.glob("chunks/*.npz"))) < 12
    assert not store.read_manifest(tmp_path)["is_complete"]
    assert load(tmp_path).loss.isnull().any()
    found = sweep(toys.slow("closed"), directory=tmp_path, resume=True)
    toys.assert_equal(found, wanted)


@pytest.mark.slow
def test_a_job_of_submitit_that_fails_costs_no_other(tmp_path):
    submitit = pytest.importorskip("submitit")
    executor = submitit.LocalExecutor(tmp_path / "logs")
    failing, axes, root = _fails_at(0.3), {"rate": [0.2, 0.3]}, tmp_path / "run"
    with pytest.raises(RuntimeError, match=r"(?s)rate=0\.3; .*data are not positive"):
        sweep(failing, axes, directory=root, chunk=1, executor=executor)
    assert [p.name for p in (root / "chunks").iterdir()] == ["g000-c00000.npz"]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["closed", "long"])
def test_a_dask_worker_may_die(tmp_path, kind):
    """`kill -9` of one of two worker processes in the middle: the same bits."""
    distributed = pytest.importorskip("distributed")
    wanted = sweep(toys.slow(kind), chunk=2)
    with (
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, processes=True, dashboard_address=":0"
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        workers = client.run(os.getpid)
        victim = next(iter(workers.values()))
        left = []

        def kill():
            while not list(tmp_path.glob("chunks/*.npz")):
                time.sleep(0.01)
            os.kill(victim, signal.SIGKILL)
            left.append(12 - len(list(tmp_path.glob("chunks/*.npz"))))

        thread = threading.Thread(target=kill)
        thread.start()
        found = sweep(
            toys.slow(kind),
            directory=tmp_path,
            chunk=2,
            executor=client.get_executor(),
        )
        thread.join()
        assert victim not in client.run(os.getpid).values()
    assert left[0] > 2
    toys.assert_equal(found, wanted)
