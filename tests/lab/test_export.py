"""The recipes of docs/export.md run, on results that have every kind of metric."""

from pathlib import Path
import re

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from jaxlr.core import Experiment
from jaxlr.lab import sweep


PAGE = (Path(__file__).parents[2] / "docs" / "export.md").read_text()
RECIPES = dict(re.findall(r"^\*\*(\w+)\*\*.*?```python\n(.*?)```", PAGE, re.M | re.S))


class HParams(eqx.Module):
    rate: float = 0.1
    """Step size."""
    name: str = "plain"
    """A word."""
    momentum: float = 0.0
    """Of the step."""


def run(key, hparams):
    x = hparams.rate * jr.normal(key, (4,)) + hparams.momentum
    return {
        "loss": x,
        "loss/phase": jnp.exp(1j * x),
        "train/loss": x[0],
        "is_small": x[1] < 0.1,
        "count": jnp.asarray(3, jnp.uint8),
        "half": x[2].astype(jnp.float16),
        "brain": x[3].astype(jnp.bfloat16),
        "key": key,
        "undefined": x[0] / 0,
    }


@pytest.fixture(scope="module")
def results():
    axes = {("rate", "momentum"): [(0.1, 0.0), (1 / 3, 0.9)], "name": ["a", "é b"]}
    return sweep(Experiment(run=run, hparams=HParams(), num_seeds=3), axes)


def recipe(name, results, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    scope = {"results": results}
    exec(RECIPES[name], scope)
    return scope


def test_all_kinds_are_there(results):
    kinds = {x.dtype.name for x in results.data_vars.values()}
    assert kinds >= {"float32", "float16", "complex64", "uint32", "uint8", "bool"}
    assert set(RECIPES) == {"netCDF", "zarr", "pandas", "CSV"}


@pytest.mark.parametrize("name", ["netCDF", "zarr"])
def test_files_of_arrays_come_back_bit_for_bit(name, results, tmp_path, monkeypatch):
    pytest.importorskip({"netCDF": "h5netcdf"}.get(name, name))
    again = recipe(name, results, tmp_path, monkeypatch)["again"]
    for old, variable in results.variables.items():
        found = again[old.replace("/", ".")]
        assert found.dims == variable.dims
        if variable.dtype.kind == "U":
            assert found.values.tolist() == variable.values.tolist()
        else:
            assert found.dtype == variable.dtype
            assert found.values.tobytes() == variable.values.tobytes(), old
    assert len(again.variables) == len(results.variables)
    assert dict(again.attrs) == results.attrs
    key = again["key"].isel(rate_momentum=0, name=0, seed=1).values
    wanted = jr.key_data(jr.fold_in(jr.key(0), 1))
    assert key.tolist() == np.asarray(wanted).tolist()
    impl = re.findall(r"key<(\w+)>", results["key"].attrs["stored_dtype"])
    assert impl == ["fry"]
    assert jax.dtypes.issubdtype(jr.wrap_key_data(key).dtype, jax.dtypes.prng_key)


def test_tables_have_a_row_for_every_number(results, tmp_path, monkeypatch):
    found = recipe("pandas", results, tmp_path, monkeypatch)
    curve, table = found["curve"], found["table"]
    assert len(curve) == results["loss"].size
    row = curve[(curve.rate == 1 / 3) & (curve.name == "é b")]
    row = row[(row.seed == 2) & (row.step == 3)]
    assert row["loss"].tolist() == [results["loss"].values[1, 1, 2, 3]]
    assert row["momentum"].tolist() == [0.9]
    assert len(table) == 12
    wanted = {"train/loss", "is_small", "count", "half", "brain", "undefined"}
    assert wanted <= {*table.columns}
    assert table["is_small"].dtype == bool


def test_text_comes_back_bit_for_bit(results, tmp_path, monkeypatch):
    found = recipe("CSV", results, tmp_path, monkeypatch)
    curve, again = found["curve"], found["again"]
    assert list(again.columns) == list(curve.columns)
    for name in curve.columns:
        assert again[name].tolist() == curve[name].tolist()
    assert again["loss"].values.tobytes() == curve["loss"].values.tobytes()
