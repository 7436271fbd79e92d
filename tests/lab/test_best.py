import itertools
import math
import statistics

import jax.numpy as jnp
import numpy as np
import pytest
import xarray as xr

from jaxlr import lab
from jaxlr.core import Experiment
from tests.lab import _toys as toys


def results(values, dims=("rate", "seed"), diverged_at=None):
    """Results of a sweep over `rate` and `size` with these losses."""
    values = np.asarray(values, float)
    lanes = dict(zip(dims, values.shape, strict=True))
    axes = [dim for dim in dims if dim != "step"]
    if diverged_at is None:
        diverged_at = np.full([lanes[dim] for dim in axes], -1)
    coords = {dim: np.arange(lanes[dim]) * 0.5 for dim in axes if dim != "seed"}
    return xr.Dataset(
        {"loss": (dims, values), "diverged_at": (axes, diverged_at)},
        coords,
        {"hparams": '{"rate": 0.1, "size": 3}', "seed": 7},
    )


def test_the_best_cell_comes_first_with_its_seeds_spread():
    values = np.random.default_rng(0).normal(size=(4, 3, 5))
    found = lab.best(results(values, ("rate", "size", "seed")), "loss")
    cells = list(itertools.product(range(4), range(3)))
    wanted = sorted(cells, key=lambda cell: statistics.median(values[cell]))
    rates, sizes = found.rate.values * 2, found["size"].values * 2
    assert list(zip(rates, sizes, strict=True)) == wanted
    for i, cell in enumerate(wanted):
        at = found.isel(cell=i)
        assert float(at.score) == statistics.median(values[cell])
        assert float(at.lowest) == min(values[cell])
        assert float(at.highest) == max(values[cell])
        assert int(at.place) == i + 1
    assert found.attrs["ties"] == "One cell has the first place."
    assert found.attrs["seed"] == 7


@pytest.mark.parametrize("over_seeds", ["median", "mean"])
def test_large_values_may_be_the_better_ones(over_seeds):
    values = np.random.default_rng(1).normal(size=(6, 4))
    found = lab.best(results(values), "loss", is_maximized=True, over_seeds=over_seeds)
    center = {"median": statistics.median, "mean": statistics.fmean}[over_seeds]
    wanted = sorted(range(6), key=lambda i: -center(values[i]))
    assert (found.rate.values * 2).tolist() == wanted
    np.testing.assert_allclose(found.score, [center(values[i]) for i in wanted])


@pytest.mark.parametrize("is_maximized", [False, True])
def test_a_seed_that_is_nan_is_worse_than_any_other_and_counted(is_maximized):
    nan = np.nan
    sign = -1 if is_maximized else 1
    rows = np.asarray([[0, 0, 3], [0, nan, 9], [0, nan, nan], [nan] * 3, [1, 1, 1]])
    # Whether a lane has diverged is another matter than its score.
    diverged_at = np.where(np.isnan(rows), 5, -1)
    diverged_at[4, 0] = 2
    given = results(sign * rows, diverged_at=diverged_at)
    found = lab.best(given, "loss", is_maximized=is_maximized)
    assert (found.rate.values * 2).tolist() == [0, 4, 1, 2, 3]
    assert (sign * found.score.values).tolist() == [0, 1, 9, math.inf, math.inf]
    assert found.num_nan.values.tolist() == [0, 0, 1, 2, 3]
    assert found.num_diverged.values.tolist() == [0, 1, 1, 2, 3]
    assert found.place.values.tolist() == [1, 2, 3, 4, 4]
    assert (sign * found.lowest.values[2:4]).tolist() == (
        [9, 0] if is_maximized else [0, 0]
    )
    assert np.isnan(found.highest.values[4])
    mean = lab.best(given, "loss", is_maximized=is_maximized, over_seeds="mean")
    assert np.isinf(mean.score.values).tolist() == [False] * 2 + [True] * 3


def test_infinities_are_ordered():
    """The logarithm of an error may reach -inf, of which there is nothing better."""
    inf = np.inf
    found = lab.best(results([[1, 2], [-inf, -inf], [-inf, inf], [inf, 2]]), "loss")
    assert (found.rate.values * 2).tolist() == [1, 0, 2, 3]
    assert found.place.values.tolist() == [1, 2, 3, 3]


def test_ties_are_said_and_stay_in_order():
    found = lab.best(results([[2.0], [1.0], [0.0], [-0.0], [1.0], [0.0]]), "loss")
    assert found.place.values.tolist() == [1, 1, 1, 4, 4, 6]
    assert (found.rate.values * 2).tolist() == [2, 3, 5, 1, 4, 0]
    assert found.attrs["ties"] == "3 cells share the first place."


@pytest.mark.parametrize("over_steps", ["last", "min", "max", "mean"])
def test_curves_are_reduced_over_the_steps_that_a_cell_has(over_steps):
    axes = {"num_steps": [5, 9, 7], "rate": [0.1, 0.4]}
    swept = lab.sweep(toys.closed(), axes)
    found = lab.best(swept, "loss", over_steps=over_steps, over_seeds="mean")
    reduce = {"last": lambda x: x[-1], "mean": statistics.fmean}.get(over_steps)
    reduce = reduce or {"min": min, "max": max}[over_steps]
    seen = set()
    for i in range(6):
        at = found.isel(cell=i)
        num_steps, rate = int(at.num_steps), float(at.rate)
        curves = swept.loss.sel(num_steps=num_steps, rate=rate).values[:, :num_steps]
        scores = [reduce(curve.astype(float)) for curve in curves]
        assert float(at.score) == pytest.approx(statistics.fmean(scores))
        assert float(at.lowest) == pytest.approx(min(scores))
        seen.add((num_steps, rate))
    assert len(seen) == 6
    assert (np.diff(found.score) >= 0).all()


def test_a_nan_in_a_curve_is_not_passed_over():
    values = [[[1.0, np.nan, 0.0]], [[3.0, 2.0, 2.0]]]
    given = results(values, ("rate", "seed", "step"))
    for over_steps in ("min", "max", "mean"):
        found = lab.best(given, "loss", over_steps=over_steps)
        assert found.num_nan.values.tolist() == [0, 1]
    assert lab.best(given, "loss").num_nan.values.tolist() == [0, 0]


def test_fields_that_move_together_are_coordinates_each():
    axes = {("rate", "num_steps"): [(0.1, 20), (0.2, 30)], "size": [2, 3]}
    swept = lab.sweep(toys.closed(), axes)
    found = lab.best(swept, "loss")
    assert set(found.coords) == {"rate", "num_steps", "size"}
    pairs = set(zip(found.rate.values, found.num_steps.values, strict=True))
    assert pairs == {(0.1, 20), (0.2, 30)}
    winner = lab.hparams(found.isel(cell=-1))
    cell = lab.select(swept, rate=winner["rate"]).sel(size=winner["size"])
    last = cell.loss.values[0, :, winner["num_steps"] - 1]
    assert np.median(last) == float(found.score[-1])


def test_a_selection_has_a_best_cell_too():
    swept = lab.sweep(toys.closed(), {"rate": [0.1, 0.3], "size": [2, 3]})
    found = lab.best(swept.isel(seed=1, rate=0), "loss")
    assert found["size"].values.tolist() in ([2, 3], [3, 2])
    assert lab.hparams(found)["rate"] == 0.1
    best = swept.loss.isel(seed=1, rate=0, step=-1).values.min()
    assert float(found.score[0]) == best
    assert lab.best(swept.isel(rate=0, size=0), "loss").sizes["cell"] == 1


def test_counts_and_truths_have_an_order():
    def run(key, hparams):
        return {"count": hparams.size, "is_large": hparams.rate > 0.2}

    experiment = Experiment(run=run, hparams=toys.HParams())
    swept = lab.sweep(experiment, {"rate": [0.1, 0.3], "size": [2, 5]})
    found = lab.best(swept, "count", is_maximized=True)
    assert found["size"].values.tolist() == [5, 5, 2, 2]
    found = lab.best(swept, "is_large", is_maximized=True)
    assert found.rate.values.tolist() == [0.3, 0.3, 0.1, 0.1]


@pytest.mark.misuse
def test_misuse_is_named():
    def run(key, hparams):
        x = hparams.rate * jnp.ones(3)
        return {"loss": x, "matrix": jnp.ones((2, 2)), "wave": x[0] * 1j}

    swept = lab.sweep(Experiment(run=run, hparams=toys.HParams()))
    with pytest.raises(ValueError, match=r"Unknown metric 'los'; did you mean 'loss'"):
        lab.best(swept, "los")
    with pytest.raises(ValueError, match=r"'matrix' has the dimensions \['matrix_dim"):
        lab.best(swept, "matrix")
    with pytest.raises(ValueError, match="'wave' is of type complex64"):
        lab.best(swept, "wave")
    with pytest.raises(ValueError, match="Unknown `over_steps` 'first'"):
        lab.best(swept, "loss", over_steps="first")
    with pytest.raises(ValueError, match=r"Unknown `over_seeds` 'maen'.*'mean'"):
        lab.best(swept, "loss", over_seeds="maen")
    with pytest.raises(ValueError, match="have no `diverged_at`"):
        lab.best(swept.drop_vars("diverged_at"), "loss")
