import itertools
import json
import re
import shutil

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from jaxlr.core import Experiment
from jaxlr.lab import engine, find, replay, store, sweep
from tests.lab import _toys as toys


AXES = {"rate": toys.RATES, "size": (3, 4)}


def _check(found, kept, seed, **cell):
    wanted = kept.sel(seed=seed, **cell)
    assert found.attrs["is_equal"] == 1
    assert found.attrs["replay"].startswith("Equal bit by bit (expected bit by bit")
    for name in kept.data_vars:
        if name.endswith("_length"):
            continue
        one, two = found[name].values, wanted[name].values
        two = two[tuple(slice(n) for n in one.shape)]  # what padded other groups
        assert one.tobytes() == two.tobytes(), name
    for name, value in cell.items():
        assert found[name] == value
    assert found.seed == seed


@pytest.mark.slow
@pytest.mark.parametrize("chunk", [None, 2, 3])
@pytest.mark.parametrize("make", [toys.closed, toys.long])
def test_every_cell_comes_again_bit_by_bit(tmp_path, make, chunk):
    """Two groups, their last chunks padded; all cells of all seeds."""
    kept = sweep(make(), AXES, directory=tmp_path, chunk=chunk)
    for rate, size, seed in itertools.product(toys.RATES, (3, 4), range(2)):
        cell = {"rate": rate, "size": size}
        _check(replay(tmp_path, cell, seed), kept, seed, **cell)


def test_zipped_axes_leave_ragged_groups(tmp_path):
    points = [(0.1, 3), (0.2, 4), (0.3, 3), (0.4, 3), (0.5, 5)]
    kept = sweep(toys.closed(), {("rate", "size"): points}, directory=tmp_path, chunk=2)
    for i, (rate, size) in enumerate(points):
        found = replay(tmp_path, {"rate": rate}, 1)
        assert found.attrs["is_equal"] == 1
        wanted = kept.isel(rate_size=i).sel(seed=1)
        assert found.loss.values.tobytes() == wanted.loss.values.tobytes()
        assert (found.rate, found.size) == (rate, size)
        assert found.last.shape == (size,)


def test_other_precisions_and_dtypes(tmp_path):
    def run(key, hparams):
        x = hparams.rate * jr.normal(key, (4,))
        return {"z": jnp.fft.fft(x), "half": x.astype(jnp.bfloat16), "key": key}

    experiment = toys.closed().replace(run=run, x64=True)
    kept = sweep(experiment, directory=tmp_path, chunk=2)
    assert kept.z.dtype == np.complex128
    _check(replay(tmp_path, {"rate": 0.3}, 1), kept, 1, rate=0.3)


def test_a_diverged_cell_comes_again(tmp_path):
    axes = {"rate": (0.1, np.inf)}
    kept = sweep(toys.closed(), axes, directory=tmp_path)
    assert (kept.diverged_at.sel(rate=np.inf) >= 0).all()
    _check(replay(tmp_path, {"rate": float("inf")}, 0), kept, 0, rate=np.inf)


def test_a_tampered_chunk_is_found_out(tmp_path):
    sweep(toys.closed(), directory=tmp_path, chunk=2)
    path = tmp_path / "chunks/g000-c00001.npz"
    arrays, identity = store.read_arrays(path)
    loss = arrays["loss"].copy()
    loss[1, 0, 7] = np.nextafter(loss[1, 0, 7], np.float32(9))  # one bit
    store.write_arrays(path, arrays | {"loss": loss}, identity)
    found = replay(tmp_path, {"rate": toys.RATES[2]}, 1)
    assert found.attrs["is_equal"] == 0
    assert found.attrs["replay"].startswith("NOT equal: relative gap")
    for rate, seed in ((toys.RATES[2], 0), (toys.RATES[3], 1)):
        assert replay(tmp_path, {"rate": rate}, seed).attrs["is_equal"] == 1


@pytest.mark.parametrize("part", ["real", "imag"])
def test_a_tampered_complex_number_is_found_out(tmp_path, part):
    def run(key, hparams):
        return {"z": jnp.fft.fft(hparams.rate * jr.normal(key, (4,)))}

    sweep(toys.closed().replace(run=run), directory=tmp_path)
    path = tmp_path / "chunks/g000-c00000.npz"
    arrays, identity = store.read_arrays(path)
    z = arrays["z"].copy()
    getattr(z, part)[0, 0, 1] += 1
    store.write_arrays(path, arrays | {"z": z}, identity)
    found = replay(tmp_path, {"rate": toys.RATES[0]}, 0)
    assert found.attrs["is_equal"] == 0


def _record(directory, **config):
    path = directory / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["config"] |= config
    store.write_json(path, manifest)


def test_what_was_swept_there_before_is_not_replayed(tmp_path):
    sweep(toys.closed(), directory=tmp_path / "run")
    sweep(toys.closed(rate=0.7), directory=tmp_path / "other")
    shutil.rmtree(tmp_path / "run")
    (tmp_path / "other").rename(tmp_path / "run")
    with pytest.raises(ValueError, match="does not ship with jaxlr"):
        replay(tmp_path / "run", {"rate": 0.1}, 0)


@pytest.mark.parametrize("field", ["jaxlr", "jax", "device_kind"])
def test_what_changed_decides_the_equality_expected(tmp_path, field):
    kept = sweep(toys.closed(), directory=tmp_path)
    _record(tmp_path, **{field: "of old"})
    found = replay(tmp_path, {"rate": toys.RATES[0]}, 0)
    expected = f"expected to a relative 0.0001, as {field} changed"
    assert expected in found.attrs["replay"]
    assert found.attrs["is_equal"] == 1
    for factor, is_equal in ((1 + 1e-6, 1), (1.01, 0)):
        path = tmp_path / "chunks/g000-c00000.npz"
        arrays, identity = store.read_arrays(path)
        arrays["loss"] = kept.loss.values.swapaxes(0, 1) * np.float32(factor)
        store.write_arrays(path, arrays, identity)
        found = replay(tmp_path, {"rate": toys.RATES[0]}, 0)
        assert found.attrs["is_equal"] == is_equal
        assert expected in found.attrs["replay"]


def test_a_cell_not_computed_yet_says_so(tmp_path):
    sweep(toys.closed(), directory=tmp_path, chunk=2)
    (tmp_path / "chunks/g000-c00001.npz").unlink()
    found = replay(tmp_path, {"rate": toys.RATES[2]}, 0)
    assert "not finished" in found.attrs["replay"]
    assert found.attrs["is_equal"] == 0


@pytest.mark.misuse
@pytest.mark.parametrize(
    ("cell", "seed", "words"),
    [
        ({"rate": 0.15, "size": 3}, 0, ("0.15", "0.1", "0.5")),
        ({"rate": 0.1}, 0, ("size", "open", "3", "4")),
        ({"raet": 0.1, "size": 3}, 0, ("raet", "did you mean 'rate'")),
        ({"rate": 0.1, "size": 3}, 2, ("seed", "0..1", "2")),
        ({"rate": 0.1, "size": 3}, -1, ("seed", "0..1", "-1")),
        ({"rate": 0.1, "size": 3}, 0.0, ("seed", "0..1", "0.0")),
    ],
)
def test_unknown_cells_and_seeds_are_named(tmp_path, cell, seed, words):
    sweep(toys.closed(), AXES, directory=tmp_path)
    with pytest.raises(ValueError, match=re.escape(words[0])) as caught:
        replay(tmp_path, cell, seed)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.misuse
def test_an_experiment_that_cannot_be_found_is_named(tmp_path, monkeypatch):
    nameless = toys.closed().replace(name="gone")
    sweep(nameless, directory=tmp_path)
    monkeypatch.setattr(engine, "SWEPT", {})
    with pytest.raises(ValueError, match=r"'gone'.*`experiment`"):
        replay(tmp_path, {"rate": 0.1}, 0)
    found = replay(tmp_path, {"rate": 0.1}, 0, experiment=nameless)
    assert found.attrs["is_equal"] == 1


@pytest.mark.misuse
def test_an_experiment_with_other_metrics_is_refused(tmp_path):
    sweep(toys.closed(), directory=tmp_path)

    def thinned(key, hparams):
        return {"loss": toys.run(key, hparams).loss[::2]}

    other = toys.closed().replace(run=thinned)
    with pytest.raises(ValueError, match="recorded"):
        replay(tmp_path, {"rate": 0.1}, 0, experiment=other)


def test_an_experiment_is_replayed_at_the_runs_own_settings(tmp_path):
    sweep(toys.closed(num_steps=20), directory=tmp_path)
    found = replay(tmp_path, {"rate": 0.1}, 0, experiment=toys.closed(num_steps=49))
    assert found.attrs["is_equal"] == 1


def test_a_refused_sweep_does_not_become_the_one_replayed(tmp_path):
    kept = sweep(toys.closed(), directory=tmp_path, chunk=2)
    with pytest.raises(store.RunDirectoryError):
        sweep(Experiment(run=_other, hparams=toys.HParams()), directory=tmp_path)
    _check(replay(tmp_path, {"rate": 0.1}, 0), kept, 0, rate=0.1)


def _other(key, hparams):
    return {"loss": hparams.rate}


USERS_FILE = """
import equinox as eqx
import jax
from jaxlr.core import Experiment

class HParams(eqx.Module):
    rate: float = 0.1
    power: float = 1.0

def run(key, hparams):
    return {"x": hparams.rate * jax.random.normal(key, (5,)) ** hparams.power}

EXPERIMENT = Experiment(
    run=run, hparams=HParams(), num_seeds=2, axes={"rate": (0.1, 0.2, 0.3)}
)
"""


@pytest.mark.slow
def test_a_fresh_process_takes_the_flags_from_the_run(tmp_path):
    """The recorded hyper-parameters win over the file's defaults."""
    file = tmp_path / "mine.py"
    file.write_text(USERS_FILE)
    experiment = find.find(file)
    hparams = type(experiment.hparams)(power=3.0)
    kept = sweep(experiment.replace(hparams=hparams), directory=tmp_path / "run")
    out = toys.finish(
        toys.start(
            "from jaxlr.lab import find, replay\n"
            f"mine = find.find({str(file)!r})\n"
            f"run = {str(tmp_path / 'run')!r}\n"
            "found = replay(run, {'rate': 0.2}, 1, experiment=mine)\n"
            "print(found.attrs['replay'])\n"
            "print(found.x.values.tobytes().hex())"
        )
    )
    sentence, bits = out.splitlines()
    assert re.match(r"Equal bit by bit \(expected bit by bit", sentence)
    assert bytes.fromhex(bits) == kept.x.sel(rate=0.2, seed=1).values.tobytes()


def test_a_replayed_cell_is_the_nearest_within_rounding(tmp_path):
    axes = {"rate": (0.1, 0.1 * (1 + 1e-6), 0.3)}
    kept = sweep(toys.closed(), axes, directory=tmp_path)
    for i, rate in enumerate(axes["rate"]):
        found = replay(tmp_path, {"rate": rate * (1 + 1e-12)}, 0)
        assert found.rate == kept.rate[i]
        assert found.attrs["is_equal"] == 1
    for rate in (0.1 * (1 + 1e-7), 0.3 * (1 - 1e-8)):
        with pytest.raises(ValueError, match="No cell has"):
            replay(tmp_path, {"rate": rate}, 0)


@pytest.mark.parametrize("chunk", [2, 3])
def test_a_replayed_cell_lies_where_it_was_recorded(tmp_path, chunk):
    """Here the bits depend on the place, as roundings of wide programs may."""

    @jax.custom_batching.custom_vmap
    def placed(x):
        return x

    @placed.def_vmap
    def rule(axis_size, is_batched, x):
        return x * (1 + jnp.arange(axis_size)), is_batched[0]

    experiment = toys.closed().replace(
        run=lambda key, hparams: {"x": placed(hparams.rate)}
    )
    kept = sweep(experiment, directory=tmp_path, chunk=chunk)
    factors = 1 + np.arange(5) % chunk
    np.testing.assert_allclose(kept.x.values[:, 0], toys.RATES * factors, rtol=1e-6)
    for rate in toys.RATES:
        found = replay(tmp_path, {"rate": rate}, 1)
        assert found.attrs["is_equal"] == 1
        assert found.x.values == kept.x.sel(rate=rate, seed=1).values
