import json

import numpy as np
import pytest
import xarray as xr

from jaxlr import lab
from jaxlr.core import Experiment
from jaxlr.lab import cli, compare
from tests.lab import _toys as toys


@pytest.fixture(scope="module")
def runs():
    """Two sweeps of the long toy that share three cells, two seeds and 20 steps."""
    one = lab.sweep(toys.long(), num_seeds=3)
    rates = [0.5, 0.3, 0.7, 0.1]
    two = lab.sweep(toys.long(num_steps=20), {"rate": rates}, num_seeds=2, seed=4)
    return {"one": one, "two": two}


def test_common_cells_seeds_and_steps_are_side_by_side(runs):
    found = compare(runs).results
    assert dict(found.sizes) == {"run": 2, "cell": 3, "seed": 2, "step": 20}
    assert found.run.values.tolist() == ["one", "two"]
    assert found.rate.values.tolist() == [0.1, 0.3, 0.5]
    for i, run in enumerate(runs.values()):
        for cell, rate in enumerate(found.rate.values):
            wanted = run.loss.sel(rate=rate).values[:2, :20]
            assert found.loss.values[i, cell].tobytes() == wanted.tobytes()
    assert found.attrs == {}


def test_what_is_left_out_is_said(runs):
    found = compare(runs)
    assert found.left_out == (
        "one: 2 of 5 cells are left out, which not all runs have (rate = 0.2, 0.4).",
        "two: 1 of 4 cells are left out, which not all runs have (rate = 0.7).",
        "one: 1 of 3 seeds are left out, which not all runs have.",
        "one: 30 of 50 steps are left out, which not all runs have.",
    )
    assert all(sentence in str(found) for sentence in found.left_out)


def test_differences_of_the_configuration_are_all_there(runs):
    found = compare(runs).differences
    assert found.pop("computation")[0].startswith('{"all cells": ')
    assert found == {
        "hparams.num_steps": ("50", "20"),
        "hparams.rate": ("0.1, 0.2, 0.3, 0.4, 0.5", "0.1, 0.3, 0.5, 0.7"),
        "num_seeds": ("3", "2"),
        "seed": ("0", "4"),
    }
    other = runs["one"].assign_attrs(jax="0.1", is_complete=0, extra=1)
    found = compare({"a": runs["one"], "b": other}).differences
    version = runs["one"].attrs["jax"]
    assert found == {
        "jax": (version, "0.1"),
        "is_complete": ("1", "0"),
        "extra": ("", "1"),
    }


@pytest.mark.parametrize("over_steps", ["last", "min", "max", "mean"])
def test_gaps_are_those_of_the_medians(runs, over_steps):
    found = compare(runs).gaps("loss", over_steps)
    reduce = {"last": lambda x, _: x[..., -1]}.get(over_steps)
    reduce = reduce or getattr(np, over_steps)
    for cell, rate in enumerate((0.1, 0.3, 0.5)):
        pairs = [
            reduce(run.loss.sel(rate=rate).values[:2, :20].astype(float), -1)
            for run in runs.values()
        ]
        medians = [float(np.median(x)) for x in pairs]
        at = found.isel(cell=cell)
        np.testing.assert_allclose(at["median"], medians, rtol=1e-12)
        np.testing.assert_allclose(at["gap"], np.subtract(medians, medians[0]))
        np.testing.assert_allclose(at["lowest"], [x.min() for x in pairs])
        np.testing.assert_allclose(at["highest"], [x.max() for x in pairs])
    assert float(abs(found["gap"]).max()) > 1e-3


def test_cells_of_other_layouts_are_the_same_cells():
    """A product, fields that move together, and a field that is not swept."""
    pairs = [(0.1, 20), (0.2, 30), (0.3, 20)]
    runs = {
        "product": lab.sweep(
            toys.closed(), {"num_steps": [30, 20], "rate": [0.3, 0.2, 0.1]}
        ),
        "zipped": lab.sweep(toys.closed(), {("rate", "num_steps"): pairs}),
        "fixed": lab.sweep(toys.closed(num_steps=20), {"rate": [0.1, 0.2, 0.3]}),
    }
    found = compare(runs)
    cells = zip(found.results.rate.values, found.results.num_steps.values, strict=True)
    assert list(cells) == [(0.3, 20), (0.1, 20)]
    loss = found.results.loss.values
    assert loss[0, :, :, :20].tobytes() == loss[1, :, :, :20].tobytes()
    for cell, rate in enumerate((0.3, 0.1)):
        wanted = runs["fixed"].loss.sel(rate=rate).values
        assert loss[2, cell].tobytes() == wanted.tobytes()
        assert loss[0, cell, :, :20].tobytes() == wanted.tobytes()
    assert (found.results.step_length == 20).all()
    assert (found.gaps("loss")["gap"] == 0).all()
    both = compare({k: runs[k] for k in ("product", "zipped")})
    assert set(both.results.step_length.values[0].tolist()) == {20, 30}
    assert (both.gaps("loss", "max")["gap"] == 0).all()
    assert "(rate = 0.2" not in str(found.left_out[0])


def test_none_and_words_among_values_are_values():
    class HParams(toys.eqx.Module):
        decay: float | None = None
        """Of the step."""
        kind: str = "plain"
        """A word."""

    def run(key, hparams):
        decay = 0.0 if hparams.decay is None else hparams.decay
        return {"loss": decay + 1.0 * len(hparams.kind)}

    experiment = Experiment(run=run, hparams=HParams())
    one = lab.sweep(experiment, {"decay": [None, 0.5], "kind": ["plain", "wide"]})
    two = lab.sweep(experiment, {"kind": ["wide", "narrow"]})
    found = compare([one, two])
    assert found.results.kind.values.tolist() == ["wide"]
    assert np.isnan(found.results.decay.values).tolist() == [True]
    assert found.results.loss.values.ravel().tolist() == [4.0, 4.0]


def test_lanes_of_equal_bits_are_counted_and_nan_is_itself(runs):
    one = runs["one"]
    other = one.copy(deep=True)
    other.loss.values[0, 0, 7] += 1
    other.loss.values[1, 1, -1] = np.nan
    one = one.copy(deep=True)
    one.loss.values[2, 2, -1] = other.loss.values[2, 2, -1] = np.nan
    found = compare({"one": one, "other": other})
    assert "13 of 15" in str(found)
    gaps = found.gaps("loss")
    assert gaps["num_nan"].values.tolist() == [[0, 0, 1, 0, 0], [0, 1, 1, 0, 0]]
    assert ", 1 NaN" in str(found)
    kept = other.loss.values[1, [0, 2], -1].astype(float)
    assert float(gaps["median"][1, 1]) == pytest.approx(np.median(kept))


def test_metrics_that_not_all_have_are_left_out_by_name():
    one = lab.sweep(toys.closed())
    wide = lab.sweep(toys.closed(size=4)).rename(loss="cost")
    found = compare({"one": one, "wide": wide})
    assert found.metrics == ()
    assert found.left_out == (
        "loss is left out, which not all runs have.",
        "last is left out, whose dimensions are not the same.",
        "cost is left out, which not all runs have.",
    )
    both = compare([one, one])
    assert both.metrics == ("loss", "last")
    assert both.gaps("last").sizes["last_dim_0"] == 3


def test_runs_without_common_cells_still_differ():
    one = lab.sweep(toys.closed(), {"rate": [0.1]})
    two = lab.sweep(toys.closed(), {"rate": [0.2]})
    found = compare({"one": one, "two": two})
    assert found.results.sizes["cell"] == 0
    assert "0 cells with 2 seeds in common" in str(found)
    assert found.differences == {"hparams.rate": ("0.1", "0.2")}


def test_a_halved_run_is_a_run(runs):
    halved = lab.successive_halving(toys.long(), metric="loss", num_seeds=3, eta=2)
    found = compare({"whole": runs["one"], "halved": halved})
    gaps = found.gaps("loss")
    is_stopped = halved.stopped_at.values >= 0
    assert (gaps["num_nan"].values[1] == 3 * is_stopped).all()
    assert "3 NaN" in str(found)


def test_long_tables_show_the_largest_gaps():
    rates = np.linspace(0.01, 0.3, 30)
    one = lab.sweep(toys.closed(), {"rate": rates})
    two = one.copy(deep=True)
    two.loss.values[17] += 3
    text = str(compare({"one": one, "two": two}))
    assert "12 of 30 cells, those of the largest gap" in text
    assert str(rates[17]) in text
    assert "+3" in text


def test_directories_are_compared_on_the_command_line(tmp_path, capsys):
    lab.sweep(toys.closed(), directory=tmp_path / "one")
    lab.sweep(toys.closed(size=4), {"rate": [0.1, 0.7]}, directory=tmp_path / "two")
    names = [str(tmp_path / name) for name in ("one", "two")]
    assert cli.main(["show", *names]) == 0
    out = capsys.readouterr().out
    assert "hparams.size" in out
    assert "rate = 0.7" in out
    assert cli.main(["show", *names, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["differences"]["hparams.size"] == ["3", "4"]
    rows = found["metrics"]["loss"]
    assert [row["run"] for row in rows] == names
    assert rows[1]["gap"] == pytest.approx(rows[1]["median"] - rows[0]["median"])
    assert cli.main(["show", *names, "--experiment", "sensing.outliers"]) == 2
    found = compare(names).results
    assert found.run.values.tolist() == names


@pytest.mark.misuse
def test_misuse_is_named(runs, tmp_path):
    one = runs["one"]
    with pytest.raises(ValueError, match="at least two runs, got 1"):
        compare([one])
    with pytest.raises(lab.RunDirectoryError, match="holds no run"):
        compare([one, tmp_path])
    path = tmp_path / "run"
    lab.sweep(toys.closed(), {"rate": [0.1]}, directory=path)
    with pytest.raises(ValueError, match="has one name twice"):
        compare([path, str(path)])
    with pytest.raises(ValueError, match="no seed in common"):
        compare([one.isel(seed=[0]), one.isel(seed=[1])])
    with pytest.raises(ValueError, match="Unknown metric 'los'; did you mean 'loss'"):
        compare([one, one]).gaps("los")
    with pytest.raises(ValueError, match="have no `diverged_at`"):
        compare([one, xr.Dataset(attrs=one.attrs)])
    hparams = json.dumps({"size": 3})
    without = one.isel(rate=0, drop=True).assign_attrs(hparams=hparams)
    with pytest.raises(ValueError, match="differ by rate alone"):
        compare({"one": one, "without": without})
