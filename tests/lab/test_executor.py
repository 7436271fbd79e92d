from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
import multiprocessing
import os
import signal
import sys
import threading
import time

import jax
import pytest

from jaxlr.core import Experiment
from jaxlr.lab import find, planning, provenance, store, sweep
from jaxlr.lab.compiled import Compiled
from jaxlr.lab.memory import Machine
from jaxlr.lab.request import Request
from tests.lab import _toys as toys


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

    def spy(self, group, width):
        widths.append(width)
        return program(self, group, width)

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


class AtOnce:
    """Runs what it is given when it is given it; its futures are as submitit's jobs.

    From task `begin` on, its workers are other machines: `provenance.config` there has
    the entries `differing`.
    """

    def __init__(self, begin=0, **differing):
        self.begin, self.differing, self.num_submitted = begin, differing, 0

    def submit(self, fn, /, *args):
        config, is_other = provenance.config, self.num_submitted >= self.begin
        self.num_submitted += 1

        def theirs(*args):
            found = config(*args)
            return found | {k: make(found[k]) for k, make in self.differing.items()}

        with pytest.MonkeyPatch.context() as patch:
            if is_other:
                patch.setattr(provenance, "config", theirs)
            try:
                return Job(fn(*args), None)
            except Exception as e:
                return Job(None, e)


class Job:
    """Has what submitit's jobs have, and no more."""

    def __init__(self, found, error):
        self.found, self.error = found, error

    def done(self):
        return True

    def result(self):
        if self.error:
            raise self.error
        return self.found

    def cancel(self):
        pass


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
    assert config["computation"]["group 0"].startswith("gpu ")
    (tmp_path / "chunks/g000-c00001.npz").unlink()
    with pytest.raises(store.RunDirectoryError, match="platform: 'gpu' -> 'cpu'"):
        sweep(toys.closed(), directory=tmp_path, resume=True)
    again = AtOnce(**others)
    sweep(toys.closed(), directory=tmp_path, resume=True, executor=again)
    assert again.num_submitted == 2  # a question, and the chunk


def test_chunks_are_as_wide_as_the_workers_memory_allows(monkeypatch):
    """And as all of their devices take."""
    wide = planning.fit(Compiled(Request.make(toys.closed(size=5000))))[0]
    compiled = Compiled(Request.make(toys.closed(size=5000)))
    workers = Machine("gpu", "small", 2, 2_000_000)
    assert planning.fit(compiled, workers)[0] < wide
    print(wide, planning.fit(compiled, workers))


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


class Faulty(ThreadPoolExecutor):
    """Chunk 1 fails."""

    def submit(self, fn, /, *args, **kwargs):
        def fail():
            raise OSError("node lost")

        if getattr(args[-1], "stop", None) == 4:
            return super().submit(fail)
        return super().submit(fn, *args, **kwargs)


def test_a_failed_task_is_named_and_costs_no_other(tmp_path):
    with Faulty(1) as pool:
        message = r"Cells 2\.\.3 of group 0 .*node lost.*resume"
        with pytest.raises(RuntimeError, match=message) as caught:
            sweep(toys.closed(), directory=tmp_path, chunk=2, executor=pool)
    assert isinstance(caught.value.__cause__, OSError)
    kept = {p.name: p.stat().st_ino for p in (tmp_path / "chunks").iterdir()}
    assert "g000-c00000.npz" in kept
    assert "g000-c00001.npz" not in kept
    found = sweep(toys.closed(), directory=tmp_path, resume=True)
    toys.assert_equal(found, sweep(toys.closed(), chunk=2))
    inode = (tmp_path / "chunks/g000-c00000.npz").stat().st_ino
    assert inode == kept["g000-c00000.npz"]


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
    what = "cloudpickle" if module == "__main__" else "cannot be sent to an executor"
    with ThreadPoolExecutor(2) as pool, pytest.raises(ValueError, match=what):
        sweep(experiment, chunk=2, executor=pool)


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
