"""Runs that earlier versions began, one of each format, load and go on."""

import json
from pathlib import Path
import shutil

import jax
import numpy as np
import pytest

from jaxlr.lab import find, load, RunDirectoryError, store, sweep
from tests.lab import _toys as toys


OLD = Path(__file__).parent / "old_runs"
KINDS = {"closed": "CLOSED", "long": "LONG"}


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


@pytest.fixture
def experiment(kind):
    return getattr(find.load_module("counting", OLD / "counting.py"), KINDS[kind])


@pytest.fixture
def directory(tmp_path, kind):
    return Path(shutil.copytree(OLD / f"format1_{kind}", tmp_path / "run"))


def _total(kind):
    """Of every cell and seed, in exact arithmetic: (rate, size, seed, step)."""
    rate, size = np.meshgrid([0.25, 0.5, 2.0], [2, 3], indexing="ij")
    steps = np.arange(8)
    sums = steps * (steps - 1) / 2 if kind == "closed" else steps
    factor = rate if kind == "closed" else rate * size
    return np.repeat((factor[..., None] * sums)[:, :, None], 2, axis=2)


def test_an_old_run_loads(kind, directory):
    found = load(directory)
    assert found.attrs["is_complete"] == 0
    there = {"closed": (4, 5), "long": (2, 2)}[kind]  # of two groups, whole chunks
    is_there = np.isfinite(found.total.values)
    assert is_there.all((2, 3)).sum() == is_there.any((2, 3)).sum()
    assert there[0] <= is_there.any((2, 3)).sum() <= there[1]
    np.testing.assert_array_equal(found.total.values[is_there], _total(kind)[is_there])


def test_an_old_run_goes_on(kind, experiment, directory):
    """By force: jax may be another."""
    files = {p: p.read_bytes() for p in directory.glob("chunks/*.npz")}
    if kind == "long":  # its state was another: it is begun again
        (checkpoint,) = directory.glob("segments/*.npz")
        with pytest.raises(RunDirectoryError, match="Delete that one file") as caught:
            sweep(experiment, directory=directory, resume="force")
        assert str(checkpoint) in str(caught.value)
        checkpoint.unlink()
    found = sweep(experiment, directory=directory, resume="force")
    np.testing.assert_array_equal(found.total.values, _total(kind))
    assert found.attrs["is_complete"] == 1
    toys.assert_equal(load(directory), found)
    assert all(p.read_bytes() == content for p, content in files.items())
    new = set(directory.glob("chunks/*.npz")) - set(files)
    run = store.read_manifest(directory)["run"]
    assert {store.read_arrays(p)[1]["run"] for p in new} == {run}
    assert len(run) == 16
    if kind == "long":
        words = np.asarray(jax.random.key_data(jax.random.key(7)))[-1]
        assert (found.word == words).all()


def test_an_old_run_of_another_jax_says_how_to_go_on(experiment, directory):
    path = directory / "manifest.json"
    path.write_text(path.read_text().replace('"jax": "', '"jax": "0.'))
    with pytest.raises(RunDirectoryError, match=r"(?s)  jax: '0.*--resume --force"):
        sweep(experiment, directory=directory, resume=True)


def _without_a_metric(arrays):
    return {name: x for name, x in arrays.items() if name != "total"}


def _shorter(arrays):
    return {name: x[:, :1] for name, x in arrays.items()}


@pytest.mark.parametrize("change", [_without_a_metric, _shorter])
def test_old_files_are_checked_by_names_shapes_and_types(directory, change):
    path = directory / "chunks/g000-c00000.npz"
    _write_as_format_1(path, change(store.read_arrays(path)[0]))
    with pytest.raises(RunDirectoryError, match=r"'total'.*Delete that one file"):
        load(directory)


def _write_as_format_1(path, arrays):
    kinds = json.dumps({name: x.dtype.name for name, x in arrays.items()})
    np.savez(path, **arrays, __dtypes__=np.frombuffer(kinds.encode(), np.uint8))


def test_a_file_of_another_new_run_does_not_enter_an_old_one(
    tmp_path, experiment, directory
):
    sweep(experiment, directory=tmp_path / "new", chunk=2)
    name = "chunks/g000-c00000.npz"
    shutil.copy(tmp_path / "new" / name, directory / name)
    with pytest.raises(RunDirectoryError, match="does not belong to this run"):
        load(directory)
