"""Figures that any results can have. Matplotlib is imported when one is drawn."""

import itertools
from typing import Any, TYPE_CHECKING
import warnings

import numpy as np

from jaxlr.core import checks


if TYPE_CHECKING:
    from matplotlib.figure import Figure
    import xarray as xr

MAX_LINES = 12
MAX_PANELS = 12
_LOG_SPAN = 30.0  # positive values that span more than this are drawn on a log scale
_QUANTILES = (0.1, 0.5, 0.9)


def draw_seeds(
    axis: Any, curves: "xr.DataArray", x: str = "step", **style: Any
) -> None:
    """Draw the median over seeds, and the range of the seeds behind it.

    Args:
        axis: The axes of matplotlib to draw in.
        curves: Values with two dimensions, "seed" and that of `x`; those that are not
            finite are left out.
        x: Name of the coordinate to draw against.
        **style: Properties of the median's line, which `axis.plot` takes: color, ls,
            lw, marker, label and so on.
    """
    (dim,) = curves[x].dims
    values = curves.transpose("seed", dim).values
    values = np.where(np.isfinite(values), values, np.nan)
    kept = np.isfinite(values).any(axis=0)
    if not kept.any():
        return
    low, middle, high = np.nanquantile(values[:, kept], (0, 0.5, 1), axis=0)
    (line,) = axis.plot(curves[x].values[kept], middle, **style)
    axis.fill_between(
        curves[x].values[kept], low, high, color=line.get_color(), alpha=0.25, lw=0
    )


def panels(
    num_rows: int = 1,
    num_columns: int = 1,
    *,
    size: tuple[float, float],
    has_shared_y: bool = False,
) -> tuple["Figure", np.ndarray]:
    """A page of panels, laid out so that nothing overlaps.

    Args:
        num_rows: Number of panels above one another.
        num_columns: Number of panels beside one another.
        size: Width and height of the page [inch].
        has_shared_y: Whether all panels have one vertical axis.

    Returns:
        The page and Matplotlib's axes: `num_columns` of them for one row, else an array
        of rows.

    Raises:
        ValueError: If a number of panels is not an integer >= 1.
    """
    from matplotlib.figure import Figure

    num_rows = checks.count("num_rows", num_rows)
    num_columns = checks.count("num_columns", num_columns)
    page = Figure(figsize=size, layout="constrained")
    axes = page.subplots(num_rows, num_columns, sharey=has_shared_y, squeeze=False)
    return page, axes[0] if num_rows == 1 else axes


def default_figure(results: "xr.Dataset") -> "Figure":
    """One panel a metric: median over seeds, with the 10 % to 90 % band.

    Curves are drawn against the step, one line a cell. Without curves, scalars are
    drawn against the first numeric axis, one line for each cell of the other axes. Of
    more than `MAX_LINES` lines, that many are drawn, evenly chosen; the title says so.

    Args:
        results: What `sweep` or `load` returns.

    Raises:
        ValueError: If no metric is a scalar or a curve of numbers.
    """
    from matplotlib.figure import Figure

    axes = [str(d) for d in results.sizes if is_axis(results, str(d))]
    curves = _metrics(results, {*axes, "seed", "step"})
    against = "step" if curves else _against(results, axes)
    names = curves or _metrics(results, {*axes, "seed"})
    if not names:
        raise ValueError(
            "No metric is a curve over steps or a scalar; give the experiment a figure."
        )
    rest = [dim for dim in axes if dim != against]
    cells = list(itertools.product(*(range(results.sizes[dim]) for dim in rest)))
    shown = _evenly(len(cells), MAX_LINES)
    panels = names[:MAX_PANELS]
    num_columns = min(3, len(panels))
    num_rows = -(-len(panels) // num_columns)
    figure = Figure((4.2 * num_columns + 2, 3.1 * num_rows + 0.5), layout="constrained")
    grid = figure.subplots(num_rows, num_columns, squeeze=False)
    x, ticks, label = _abscissa(results, against)
    order = np.argsort(x, kind="stable")  # a random search's values are in none
    x = x[order]
    colors = _colors(len(shown))
    for panel, name in zip(grid.flat, panels, strict=False):
        lead = [*rest, "seed", *([against] if against else [])]
        values = numbers(results[name].transpose(*lead).values)
        values = values.reshape(len(cells), results.sizes["seed"], -1)
        for color, index in zip(colors, shown, strict=True):
            low, middle, high = _quantiles(values[index])[:, order]
            has_line = against == "step" and np.isfinite(middle).sum() > 1
            marker = "" if has_line else "o"
            text = _cell_label(results, rest, cells[index])
            panel.plot(x, middle, color=color, marker=marker, label=text, lw=1.4)
            if results.sizes["seed"] > 1:
                panel.fill_between(x, low, high, color=color, alpha=0.2, lw=0)
        panel.set(title=name, xlabel=label, ylabel=_label(results[name], ""))
        if _is_logarithmic(values[shown]):
            panel.set_yscale("log")
        if against == "step":
            panel.locator_params(axis="x", integer=True)
        if ticks is not None:
            panel.set_xticks(x, ticks)
        elif against != "step" and _is_logarithmic(x):
            panel.set_xscale("log")
    for panel in grid.flat[len(panels) :]:
        panel.set_axis_off()
    handles, labels = grid.flat[0].get_legend_handles_labels()
    if any(labels):
        figure.legend(handles, labels, loc="outside right center", fontsize="small")
    title = _title(results, names, panels, len(cells), len(shown))
    figure.suptitle(title, x=0.02, ha="left", fontsize="medium")
    return figure


def is_axis(results: "xr.Dataset", dim: str) -> bool:
    """Whether a dimension is a swept axis: every metric has those."""
    if dim in ("seed", "step"):
        return False
    metrics = [v for v in results.data_vars.values() if "seed" in v.dims]
    return bool(metrics) and all(
        dim in v.dims and v.dims.index(dim) < v.dims.index("seed") for v in metrics
    )


def _metrics(results, dims: set[str]) -> list[str]:
    counters = ("diverged_at", "ended_at", "share_done")
    return [
        str(name)
        for name, variable in results.data_vars.items()
        if set(variable.dims) == dims
        and name not in counters
        and variable.dtype.kind in "biufc"
    ]


def _against(results, axes: list[str]) -> str:
    """The first axis with a numeric field; else the first one; "" without axes."""
    for dim in axes:
        if any(results[name].dtype.kind in "iuf" for name in _fields(results, dim)):
            return dim
    return axes[0] if axes else ""


def _fields(results, dim: str) -> list[str]:
    """Names of the swept fields along an axis: several where they move together."""
    on = [str(name) for name, c in results.coords.items() if c.dims == (dim,)]
    return [name for name in on if name != dim] or on


def _abscissa(results, against: str) -> tuple[np.ndarray, list[str] | None, str]:
    """Where points lie, tick labels where the axis is no number, the axis's label."""
    if not against:
        return np.zeros(1), [""], ""
    fields = _fields(results, against)
    if not fields:
        return np.arange(results.sizes[against]), None, against
    numeric = [name for name in fields if results[name].dtype.kind in "iuf"]
    if numeric:
        name = numeric[0]
        return results[name].values, None, _label(results[name], name)
    words = [str(x) for x in results[fields[0]].values]
    return np.arange(len(words)), words, fields[0]


def _label(variable, name: str) -> str:
    text = name or variable.attrs.get("long_name", "")
    units = variable.attrs.get("units", "")
    return f"{text} [{units}]" if units and units != "1" else text


def _cell_label(results, dims: list[str], cell: tuple[int, ...]) -> str:
    words = []
    for dim, i in zip(dims, cell, strict=True):
        for name in _fields(results, dim):
            value = results[name].values[i]
            is_float = isinstance(value, np.floating)
            words.append(f"{name}={value:.4g}" if is_float else f"{name}={value}")
    return ", ".join(words)


def numbers(values: np.ndarray) -> np.ndarray:
    """Values as real floats; infinities, which no axis can show, as gaps."""
    values = np.abs(values) if values.dtype.kind == "c" else values
    values = values.astype(np.float64)
    return np.where(np.isfinite(values), values, np.nan)


def _quantiles(values: np.ndarray) -> np.ndarray:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # all lanes ended or diverged
        return np.nanquantile(values, _QUANTILES, axis=0)


def _is_logarithmic(values: Any) -> bool:
    values = np.asarray(values, np.float64)
    known = values[np.isfinite(values)]
    return bool(
        known.size and known.min() > 0 and known.max() > _LOG_SPAN * known.min()
    )


def _evenly(num: int, most: int) -> list[int]:
    """At most so many indices, ends included."""
    return sorted({round(i) for i in np.linspace(0, num - 1, min(num, most))})


def _colors(num: int) -> list[Any]:
    import matplotlib as mpl

    return list(mpl.colormaps["viridis"](np.linspace(0, 0.9, num)))


def _title(results, names, panels, num_cells: int, num_shown: int) -> str:
    parts = [str(results.attrs.get("experiment", ""))]
    if results.sizes["seed"] > 1:
        parts.append(f"median and 10-90 % of {results.sizes['seed']} seeds")
    if num_shown < num_cells:
        parts.append(f"{num_shown} of {num_cells} lines")
    if len(panels) < len(names):
        parts.append(f"{len(panels)} of {len(names)} metrics")
    return "; ".join(part for part in parts if part)
