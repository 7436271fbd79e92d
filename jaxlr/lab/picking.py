"""The best cells of a sweep by one metric."""

from collections.abc import Sequence
import math
from typing import Any, TYPE_CHECKING

import numpy as np

from jaxlr.core import checks


if TYPE_CHECKING:
    import xarray as xr

# Of a curve: how it is reduced, and what changes nothing in it.
OVER_STEPS: dict[str, Any] = {
    "last": None,
    "min": (np.min, np.inf),
    "max": (np.max, -np.inf),
    "mean": (np.sum, 0.0),
}
OVER_SEEDS = {"median": np.median, "mean": np.mean}


def best(
    results: "xr.Dataset",
    metric: str,
    *,
    is_maximized: bool = False,
    over_steps: str = "last",
    over_seeds: str = "median",
) -> "xr.Dataset":
    """All cells, the best first, by one metric.

    A seed whose score is NaN is worse than any other, and never left out: a median of
    the seeds is a number where more than half of them are.

        best = lab.best(results, "loss")
        print(best.to_dataframe().head())
        print(lab.hparams(best.isel(cell=0)))

    Args:
        results: What `sweep`, `load` or `successive_halving` returns, or cells of it.
        metric: Name of a metric: real numbers, a scalar or a curve over steps.
        is_maximized: Whether large values are the better ones.
        over_steps: What a curve's score is: its `"last"` value, where cells are of
            several lengths that of the cell's own last step; its `"min"`, `"max"` or
            `"mean"`. A NaN anywhere makes the latter three NaN.
        over_seeds: What becomes of the scores of a cell's seeds: their `"median"` or
            `"mean"`.

    Returns:
        Variables along `cell`, whose coordinates are the swept fields, those that move
        together each by itself: `score`; `lowest` and `highest` of the seeds' scores
        that are numbers; `num_nan`, seeds with the score NaN; `num_diverged`, seeds of
        which some value was not finite; `place`, 1 for the best, and the same for cells
        of equal score, which stay in the order of the sweep. `attrs["ties"]` says how
        many cells share the first place. All other attributes are those of the results.

    Raises:
        ValueError: If there is no such metric, if it is complex or has dimensions
            besides those of the sweep and `step`, or on an unknown word.
    """
    checks.choice("`over_seeds`", over_seeds, OVER_SEEDS)
    seeds = scores(results, metric, over_steps)
    score = of_cells(seeds.values, is_maximized, over_seeds)
    order = ranked(score, is_maximized)
    _, first = np.unique(score[order], return_index=True)  # unique up to the sign of 0
    first = np.sort(first)
    place = first[np.searchsorted(first, np.arange(len(order)), "right") - 1] + 1
    dims = cell_dims(results)
    diverged = in_cells(_with_seeds(results["diverged_at"]), dims).values >= 0
    is_nan = np.isnan(seeds.values)
    lowest, highest = (
        np.where(is_nan.all(1), np.nan, reduce(np.where(is_nan, away, seeds), axis=1))
        for reduce, away in ((np.min, np.inf), (np.max, -np.inf))
    )
    columns = {
        "score": score,
        "lowest": lowest,
        "highest": highest,
        "num_nan": is_nan.sum(axis=1),
        "num_diverged": diverged.sum(axis=1),
    }
    found = seeds.isel(cell=order, seed=0, drop=True).coords.to_dataset()
    found = found.assign({name: ("cell", x[order]) for name, x in columns.items()})
    num_first = int((place == 1).sum())
    ties = f"{num_first} cells share" if num_first > 1 else "One cell has"
    attrs = results.attrs | {"ties": f"{ties} the first place."}
    return found.assign(place=("cell", place)).assign_attrs(attrs)


def cell_dims(results: "xr.Dataset") -> list[str]:
    """The dimensions of the sweep's cells.

    Raises:
        ValueError: If these are no results of a sweep.
    """
    if "diverged_at" not in results:
        raise ValueError(
            "`results` must be what `sweep` or `load` returns, or cells of it; these "
            "have no `diverged_at`."
        )
    return [str(dim) for dim in results["diverged_at"].dims if dim != "seed"]


def in_cells(variable: "xr.DataArray", dims: Sequence[str]) -> "xr.DataArray":
    """The dimensions of the cells as one, `cell`, with the swept fields along it."""
    import xarray as xr

    rest = [dim for dim in variable.dims if dim not in dims]
    variable = variable.transpose(*dims, *rest)
    lead = [variable.sizes[dim] for dim in dims]
    coords: dict[Any, Any] = {}
    for name, coord in variable.coords.items():
        if not {*coord.dims} & {*dims}:
            coords[name] = coord
            continue
        (dim,) = coord.dims
        along = [x for x in variable.coords.values() if x.dims == (dim,)]
        if name != dim or len(along) == 1:  # no mere index of fields that move together
            where = dims.index(str(dim))
            shape = [-1 if i == where else 1 for i in range(len(dims))]
            values = np.broadcast_to(coord.values.reshape(shape), lead)
            coords[name] = ("cell", values.reshape(-1), coord.attrs)
    shape = (math.prod(lead), *variable.shape[len(dims) :])
    values = variable.values.reshape(shape)
    return xr.DataArray(values, coords, ("cell", *rest), attrs=variable.attrs)


def scores(results: "xr.Dataset", metric: str, over_steps: str) -> "xr.DataArray":
    """A metric reduced over its steps: one number for every cell and seed.

    Args:
        results: What `sweep` or `load` returns.
        metric: Name of the metric.
        over_steps: `"last"`, `"min"`, `"max"` or `"mean"`.

    Raises:
        ValueError: As `best` says.
    """
    checks.choice("`over_steps`", over_steps, OVER_STEPS)
    dims = cell_dims(results)
    values = results[checks.choice("metric", metric, [*results.data_vars])]
    if values.dtype.kind not in "biuf":
        raise ValueError(
            f"The metric {metric!r} is of type {values.dtype}, which has no order."
        )
    if others := {*values.dims} - {*dims, "seed", "step"}:
        raise ValueError(
            f"The metric {metric!r} has the dimensions {sorted(map(str, others))} too; "
            f"reduce them, as by results.assign(x=results[{metric!r}].max(...))."
        )
    length = results.get("step_length")
    return in_cells(_with_seeds(over(values, length, over_steps)), dims)


def over(
    values: "xr.DataArray", length: "xr.DataArray | None", over_steps: str
) -> "xr.DataArray":
    """Real numbers reduced over their steps, where they have any.

    Args:
        values: The numbers.
        length: How many steps each cell has; None for as many as there are.
        over_steps: A word of `OVER_STEPS`.
    """
    import xarray as xr

    values = values.astype(np.float64)
    if "step" not in values.dims:
        return values
    if length is None:
        length = xr.DataArray(values.sizes["step"])
    if over_steps == "last":
        return values.isel(step=length - 1).drop_vars("step", errors="ignore")
    reduce, padding = OVER_STEPS[over_steps]
    is_step = xr.DataArray(np.arange(values.sizes["step"]), dims="step") < length
    values = values.where(is_step, padding).reduce(reduce, "step")
    values = values.where(length > 0)
    return values / length if over_steps == "mean" else values


def _with_seeds(variable: "xr.DataArray") -> "xr.DataArray":
    """The variable, with the one seed that it is of as a dimension again."""
    return variable if "seed" in variable.dims else variable.expand_dims("seed", -1)


def of_cells(seeds: np.ndarray, is_maximized: bool, over_seeds: str) -> np.ndarray:
    """Scores of cells from those of their seeds, of shape (cells, seeds); NaN is worst.

    Args:
        seeds: The scores of the seeds.
        is_maximized: Whether large ones are the better ones.
        over_seeds: `"median"` or `"mean"`.
    """
    worst = -np.inf if is_maximized else np.inf
    seeds = np.where(np.isnan(seeds), worst, seeds)
    with np.errstate(invalid="ignore"):  # the mean of the best and the worst
        score = OVER_SEEDS[over_seeds](seeds, axis=1)
    return np.where(np.isnan(score), worst, score)


def ranked(score: np.ndarray, is_maximized: bool) -> np.ndarray:
    """Indices of scores, the best first; equal ones stay in their order."""
    return np.argsort(-score if is_maximized else score, kind="stable")
