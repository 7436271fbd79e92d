"""What comes into a run's results: whose it is, its types, and whether all is there."""

from concurrent.futures import Future, ThreadPoolExecutor
import contextlib
import itertools
import json
import shutil
import threading
import time
from typing import Any
import zipfile

import equinox as eqx
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlr.core import Experiment
from jaxlr.lab import chunks, load, replay, RunDirectoryError, store, sweep
from tests.lab import _toys as toys


class Typed(eqx.Module):
    """Its static field says which dtype the metric has."""

    rate: float = 1.5
    """A traced field."""
    kind: str = "int32"
    """Dtype of the metric."""


def typed(values, x64=True):
    """The metric `m` is `values[kind]`, of that dtype, in a group of its own."""

    def run(key, hparams):
        value = np.asarray(values[hparams.kind], jnp.dtype(hparams.kind))
        return {"m": jnp.asarray(value) + jnp.zeros((), value.dtype)}

    axes = {"kind": tuple(values)}
    return Experiment(run=run, hparams=Typed(), axes=axes, x64=x64)


EXACT = {
    "bool": True,
    "int8": -7,
    "int32": 2**31 - 1,
    "int64": 2**53,
    "uint32": 2**32 - 1,
    "bfloat16": 3e38,
    "float16": 0.333251953125,
    "float32": 1e38,
    "float64": 1 / 3,
    "complex64": 1.5 - 2.5j,
}


@pytest.mark.parametrize("kinds", list(itertools.combinations(EXACT, 2)))
def test_groups_of_two_types_keep_every_value(tmp_path, kinds):
    values = {kind: EXACT[kind] for kind in kinds}
    wanted = [np.asarray(EXACT[k], jnp.dtype(k)).astype(complex) for k in kinds]
    for directory in (None, tmp_path / "run"):
        found = sweep(typed(values), directory=directory)
        assert found.m.values.ravel().astype(complex).tolist() == wanted
    assert load(tmp_path / "run").m.dtype == found.m.dtype


@pytest.mark.parametrize("directory", [None, "run"])
def test_an_integer_that_a_float_cannot_hold_is_refused(tmp_path, directory):
    directory = directory and tmp_path / directory
    values = {"int64": 2**53 + 1, "float32": 0.5}
    with pytest.raises(ValueError, match=rf"'m' holds integers of size {2**53 + 1}"):
        sweep(typed(values), directory=directory)
    alone = sweep(typed({"int64": 2**53 + 1}))
    assert alone.m.item() == 2**53 + 1


def test_what_could_never_be_loaded_is_never_complete(tmp_path):
    """The group of integers is kept before that of floats is known to be there."""
    with pytest.raises(ValueError, match=rf"'m' holds integers of size {2**60 + 1}"):
        sweep(typed({"int64": 2**60 + 1, "float64": 0.5}), directory=tmp_path)
    assert not store.read_manifest(tmp_path)["is_complete"]
    assert not list(tmp_path.glob("chunks/*.npz"))
    assert np.isnan(load(tmp_path).m.values).all()


def test_an_unfinished_run_of_large_integers_says_how_to_load_it(tmp_path):
    def run(key, hparams):
        return {"m": jnp.asarray(2**60 + 1) + hparams.rate.astype(int)}

    axes = {"rate": (1.0, 2.0)}
    experiment = Experiment(run=run, hparams=Typed(), axes=axes, x64=True)
    wanted = sweep(experiment, directory=tmp_path, chunk=1)
    assert wanted.m.values.ravel().tolist() == [2**60 + 2, 2**60 + 3]
    (tmp_path / "chunks/g000-c00001.npz").unlink()
    with pytest.raises(RunDirectoryError, match=r"finish the run to load it") as caught:
        load(tmp_path)
    assert str(tmp_path) in str(caught.value)
    assert "Return it" not in str(caught.value)
    toys.assert_equal(sweep(experiment, directory=tmp_path, resume=True), wanted)


NAMES = (
    "__dtypes__",
    "header.json",
    "a/b",
    "a\\b",
    "..",
    "file",
    "ä b",
    "x\0y",
    "\ud800",
)


@pytest.mark.parametrize("name", NAMES)
def test_a_metric_may_have_any_name(tmp_path, name):
    def run(key, hparams):
        return {name: hparams.rate * jnp.arange(3.0), "other": hparams.rate}

    experiment = toys.closed().replace(run=run)
    wanted = sweep(experiment, chunk=2)
    toys.assert_equal(sweep(experiment, directory=tmp_path, chunk=2), wanted)
    assert [p.name for p in (tmp_path / "chunks").iterdir()]
    assert replay(tmp_path, {"rate": 0.2}, 1).attrs["is_equal"] == 1


def test_metrics_may_be_empty(tmp_path):
    """Of no rows, of no entries, of a scan of no steps."""

    def run(key, hparams):
        return {"curve": jnp.zeros((0,)), "flat": jnp.ones((3, 0)), "x": hparams.rate}

    dims = {"loss": ("step",), "last": ("entry",)}
    none = toys.closed(num_steps=0).replace(dims=dims)
    for i, experiment in enumerate((toys.closed().replace(run=run), none)):
        wanted = sweep(experiment, chunk=2)
        found = sweep(experiment, directory=tmp_path / str(i), chunk=2)
        toys.assert_equal(found, wanted)
        assert (found.diverged_at == -1).all()
    assert found.sizes["step"] == 0
    both = sweep(none, {"num_steps": (0, 2)})
    assert np.isnan(both.loss.values[0]).all()
    assert both.step_length.values.tolist() == [0, 2]
    nan = toys.closed().replace(run=lambda key, h: run(key, h) | {"x": jnp.nan})
    assert (sweep(nan).diverged_at == 0).all()


def _arrays(path):
    return store.read_arrays(path)[0]


def _rewrite(path, arrays):
    """As a program of one's own may: the identity stays."""
    store.write_arrays(path, arrays, store.read_arrays(path)[1])


def _swap(path, other):
    content = path.read_bytes()
    path.write_bytes(other.read_bytes())
    other.write_bytes(content)


def _shorter(path, other):
    _rewrite(path, {name: x[:, :-1] for name, x in _arrays(path).items()})


def _fewer_seeds(path, other):
    _rewrite(path, {name: x[:1] for name, x in _arrays(path).items()})


def _without_a_metric(path, other):
    arrays = _arrays(path)
    del arrays["last"]
    _rewrite(path, arrays)


def _with_a_metric_more(path, other):
    _rewrite(path, _arrays(path) | {"more": np.zeros((2, 2))})


def _of_another_type(path, other):
    arrays = _arrays(path)
    _rewrite(path, arrays | {"last": arrays["last"].astype(np.float64)})


def _without_its_name(path, other):
    store.write_arrays(path, _arrays(path))


def _edited(path, other):
    """A zip of which one array was exchanged, its own checksums right."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    members["last.npy"] = members["last.npy"][:-1] + b"\x01"
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)


TAMPERED = {
    _swap: r"rate.* not ",
    _shorter: r"'loss' has the shape \[2, 1, 50\], not \[2, 2, 50\]",
    _fewer_seeds: "has the shape",
    _without_a_metric: "'last' is missing",
    _with_a_metric_more: "'more' is no metric",
    _of_another_type: "'last' is of type float64, not float32",
    _without_its_name: "does not say whose it is",
    _edited: "'last' is not what was written",
}


@pytest.mark.parametrize("tamper", TAMPERED)
def test_a_chunk_that_is_not_what_it_must_be_is_refused_by_name(tmp_path, tamper):
    wanted = sweep(toys.closed(), directory=tmp_path, chunk=2)
    path, other = (tmp_path / f"chunks/g000-c0000{i}.npz" for i in (0, 1))
    tamper(path, other)
    (tmp_path / "chunks/g000-c00002.npz").unlink()
    resume = {"directory": tmp_path, "resume": True}
    for use in (lambda: load(tmp_path), lambda: sweep(toys.closed(), **resume)):
        with pytest.raises(RunDirectoryError, match=TAMPERED[tamper]) as caught:
            use()
        assert str(path) in str(caught.value)
        assert "Delete that one file" in str(caught.value)
    path.unlink()
    if tamper is _swap:
        other.unlink()
    toys.assert_equal(sweep(toys.closed(), **resume), wanted)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"seed": 1}, "of run .*; of seed 1, not 0"),
        ({"num_seeds": 3}, r"of seeds \[0, 3\], not \[0, 2\]"),
        ({"axes": {"rate": (9.0, 8.0)}}, "of cells .*9.0"),
        ({"experiment": toys.closed(rate=0.3)}, "of run"),
        ({}, "of run"),  # equal in all, and yet another run's
    ],
)
def test_a_chunk_of_another_run_is_refused(tmp_path, change, reason):
    sweep(toys.closed(), directory=tmp_path / "one", chunk=2)
    change = {"experiment": toys.closed()} | change
    sweep(directory=tmp_path / "two", chunk=2, **change)
    name = "chunks/g000-c00000.npz"
    shutil.copy(tmp_path / "two" / name, tmp_path / "one" / name)
    with pytest.raises(RunDirectoryError, match=reason) as caught:
        load(tmp_path / "one")
    assert str(tmp_path / "one" / name) in str(caught.value)
    with pytest.raises(RunDirectoryError, match=reason):
        replay(tmp_path / "one", {"rate": 0.1}, 0)


@pytest.mark.parametrize("tamper", [_swap, _shorter, _without_its_name])
def test_a_checkpoint_that_is_not_what_it_must_be_is_refused(
    tmp_path, monkeypatch, tamper
):
    experiment, paths = toys.long(), []
    monkeypatch.setattr(chunks, "SEGMENT_SECONDS", 0)
    write = store.write_arrays

    def stopped(path, arrays, identity):
        write(path, arrays, identity)
        if arrays.get("t", 0) == 3:
            raise KeyboardInterrupt

    for name in ("one", "two"):
        with monkeypatch.context() as patch:
            patch.setattr(store, "write_arrays", stopped)
            with pytest.raises(KeyboardInterrupt):
                sweep(experiment, directory=tmp_path / name, chunk=2)
        paths.append(tmp_path / name / "segments/g000-c00000.npz")
    if tamper is _shorter:
        arrays = _arrays(paths[0])
        cut = {name: x[:, :-1] if x.ndim else x for name, x in arrays.items()}
        _rewrite(paths[0], cut)
    else:
        tamper(*paths)
    with pytest.raises(RunDirectoryError, match="Delete that one file") as caught:
        sweep(experiment, directory=tmp_path / "one", resume=True)
    assert str(paths[0]) in str(caught.value)
    paths[0].unlink()
    found = sweep(experiment, directory=tmp_path / "one", resume=True)
    toys.assert_equal(found, sweep(experiment, chunk=2))


def _is_complete(directory):
    return json.loads((directory / "manifest.json").read_text())["is_complete"]


class Cancelling(ThreadPoolExecutor):
    """Cancels all chunks from the second on, as a cluster that closes does."""

    def __init__(self, is_notified):
        super().__init__(1)
        self.num, self.is_notified = 0, is_notified

    def submit(self, fn, /, *args, **kwargs):
        self.num += isinstance(args[-1], chunks.Work)
        if self.num < 2:
            return super().submit(fn, *args, **kwargs)
        future: Future[Any] = Future()
        future.cancel()
        if self.is_notified:
            future.set_running_or_notify_cancel()
        return future


@pytest.mark.parametrize("is_notified", [True, False])
@pytest.mark.parametrize("directory", [None, "run"])
def test_an_executor_that_cancels_is_an_error(tmp_path, directory, is_notified):
    root = directory and tmp_path / directory
    with Cancelling(is_notified) as pool:
        with pytest.raises(RuntimeError, match=r"Cells 2\.\.3 .*CancelledError"):
            sweep(toys.closed(), directory=root, chunk=2, executor=pool)
    if root:
        assert len(list((root / "chunks").iterdir())) == 1
        assert not _is_complete(root)
        found = sweep(toys.closed(), directory=root, resume=True)
        toys.assert_equal(found, sweep(toys.closed(), chunk=2))
        assert _is_complete(root)


@pytest.mark.slow
@pytest.mark.parametrize("end", ["restart", "close"])
def test_a_dask_cluster_that_restarts_or_closes_is_an_error(tmp_path, end):
    distributed = pytest.importorskip("distributed")

    def act():
        while not list(tmp_path.glob("chunks/*.npz")):
            time.sleep(0.01)
        with contextlib.suppress(Exception):
            getattr(client, end)(timeout=5)

    with (
        distributed.LocalCluster(
            n_workers=1, threads_per_worker=1, processes=False, dashboard_address=":0"
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        thread = threading.Thread(target=act)
        thread.start()
        pool = client.get_executor()
        with pytest.raises(RuntimeError, match="CancelledError"):
            sweep(toys.slow("closed"), directory=tmp_path, chunk=2, executor=pool)
        thread.join()
    assert 0 < len(list(tmp_path.glob("chunks/*.npz"))) < 12
    assert not _is_complete(tmp_path)


class Wrong(ThreadPoolExecutor):
    """Gives back something else than what the task computed."""

    def __init__(self, change):
        super().__init__(1)
        self.change = change

    def submit(self, fn, /, *args, **kwargs):
        is_chunk = isinstance(args[-1], chunks.Work)
        change = self.change if is_chunk else lambda out: out
        return super().submit(lambda: change(fn(*args, **kwargs)))


@pytest.mark.parametrize("directory", [None, "run"])
@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda out: out | {"loss": out["loss"][:1]}, "'loss' has the shape"),
        (
            lambda out: out | {"loss": out["loss"].astype(int)},
            "'loss' is of type int64",
        ),
        (lambda out: {"loss": out["loss"]}, "'last' is missing"),
        (lambda out: out | {"z": 1}, "'z' is no metric"),
        (lambda out: None, "no arrays by name"),
    ],
)
def test_what_an_executor_gives_back_is_checked(tmp_path, directory, change, reason):
    root = directory and tmp_path / directory
    with Wrong(change) as pool, pytest.raises(RuntimeError, match=reason):
        sweep(toys.closed(), directory=root, chunk=2, executor=pool)
    if root:
        assert not (root / "chunks").exists()
        assert not _is_complete(root)


@pytest.mark.parametrize("at", [0, 1, 2])
def test_a_directory_deleted_in_mid_run_is_an_error(tmp_path, monkeypatch, at):
    """While the first, one between and the last chunk are computed."""
    root, run, calls = tmp_path / "run", chunks.run, []

    def deleting(*args, **kwargs):
        out = run(*args, **kwargs)
        if len(calls) == at:
            shutil.rmtree(root)
        calls.append(args)
        return out

    monkeypatch.setattr(chunks, "run", deleting)
    with pytest.raises(RunDirectoryError, match="deleted or moved"):
        sweep(toys.closed(), directory=root, chunk=2)
    assert not root.exists()


def test_chunks_deleted_in_mid_run_are_missed(tmp_path, monkeypatch):
    run = chunks.run

    def deleting(*args, **kwargs):
        shutil.rmtree(tmp_path / "chunks", ignore_errors=True)
        return run(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(chunks, "run", deleting)
        with pytest.raises(RuntimeError, match="2 of 3 chunks are missing"):
            sweep(toys.closed(), directory=tmp_path, chunk=2)
    assert not _is_complete(tmp_path)
    found = sweep(toys.closed(), directory=tmp_path, resume=True)
    toys.assert_equal(found, sweep(toys.closed(), chunk=2))


def test_a_directory_begun_anew_in_mid_run_is_left_alone(tmp_path, monkeypatch):
    root, run = tmp_path / "run", chunks.run
    other = toys.closed(rate=0.3)

    def replacing(*args, **kwargs):
        with monkeypatch.context() as patch:
            patch.setattr(chunks, "run", run)
            shutil.rmtree(root)
            sweep(other, directory=root, chunk=2)
        return run(*args, **kwargs)

    monkeypatch.setattr(chunks, "run", replacing)
    with pytest.raises(RunDirectoryError, match="holds another run by now"):
        sweep(toys.closed(), directory=root, chunk=2)
    toys.assert_equal(load(root), sweep(other, chunk=2))


def test_a_run_that_lost_a_chunk_is_not_complete_until_it_is_back(
    tmp_path, monkeypatch
):
    sweep(toys.closed(), directory=tmp_path, chunk=2)
    assert _is_complete(tmp_path)
    (tmp_path / "chunks/g000-c00001.npz").unlink()
    seen, run = [], chunks.run

    def looking(*args, **kwargs):
        seen.append(_is_complete(tmp_path))
        return run(*args, **kwargs)

    monkeypatch.setattr(chunks, "run", looking)
    assert load(tmp_path).attrs["is_complete"] == 0
    sweep(toys.closed(), directory=tmp_path, resume=True)
    assert seen == [False]
    assert _is_complete(tmp_path)
