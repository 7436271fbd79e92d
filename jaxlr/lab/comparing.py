"""Several runs side by side: what differs in how they were made, and in what came."""

from collections.abc import Iterable, Mapping, Sequence
import dataclasses
import io
import json
from pathlib import Path
from typing import Any, TYPE_CHECKING

import numpy as np

from jaxlr.core import checks
from jaxlr.lab import gate, grid, picking, report
from jaxlr.lab.results import hparams


if TYPE_CHECKING:
    import xarray as xr

MOST_ROWS = 12  # of a metric's printed table
_OF_THE_DAY = {"begun", "command", "compile_seconds", "run_seconds", "hparams"}


@dataclasses.dataclass(frozen=True, repr=False)
class Comparison:
    """Runs side by side; printed, a summary.

    Attributes:
        results: What the runs share, with dimensions (run, cell, seed, the metric's
            own), and the fields that any of them swept along `cell`.
        differences: What they do not share of their configuration: name -> the value
            that each run has, as text, "" where it has none.
        left_out: Sentences about what is not in `results`, as not all runs have it.
    """

    results: "xr.Dataset"
    differences: dict[str, tuple[str, ...]]
    left_out: tuple[str, ...]

    @property
    def metrics(self) -> tuple[str, ...]:
        """The metrics that the runs share."""
        lanes = [str(n) for n, x in self.results.data_vars.items() if "seed" in x.dims]
        return tuple(name for name in lanes if name not in grid.RESERVED)

    def gaps(self, metric: str, over_steps: str = "last") -> "xr.Dataset":
        """A metric's numbers for every run and cell, and how far the runs are apart.

        Args:
            metric: Name of the metric; dimensions of its own stay.
            over_steps: Which number of a curve: its `"last"` of the common steps, its
                `"min"`, `"max"` or `"mean"` over them.

        Returns:
            `median` over the seeds, those that are NaN apart, of which there are
            `num_nan`; `lowest` and `highest`; `gap`, the median minus that of the first
            run. All of dimensions (run, cell, ...).

        Raises:
            ValueError: On an unknown word, or if the metric is complex.
        """
        checks.choice("`over_steps`", over_steps, picking.OVER_STEPS)
        values = self.results[checks.choice("metric", metric, self.metrics)]
        if values.dtype.kind not in "biuf":
            raise ValueError(
                f"The metric {metric!r} is of type {values.dtype}, which has no order."
            )
        values = picking.over(values, self.results.get("step_length"), over_steps)
        is_nan = values.isnull()
        is_lost = is_nan.all("seed")
        found = {
            "median": values.where(~is_lost, 0.0).median("seed").where(~is_lost),
            "lowest": values.min("seed"),
            "highest": values.max("seed"),
            "num_nan": is_nan.sum("seed"),
        }
        median = found["median"]
        found["gap"] = median - median.isel(run=0, drop=True)
        return values.isel(seed=0, drop=True).to_dataset(name="_")[[]].assign(found)

    def sheets(self) -> list[report.Sheet]:
        """The tables of the summary: differences, metrics, and each metric's cells."""
        names = [str(name) for name in self.results["run"].values]
        sheets = []
        if self.differences:
            differing = [(name, *row) for name, row in self.differences.items()]
            sheets.append(report.table(("differs", *names), differing))
        sizes = self.results.sizes
        title = f"{sizes['cell']} cells with {sizes['seed']} seeds in common"
        overview = [(name, *self._overview(name)) for name in self.metrics]
        columns = ("metric", *(f"equal lanes, {names[0]} and {n}" for n in names[1:]))
        sheets.append(report.table(columns, overview, title))
        return sheets + [self._cells(name, names) for name in self._scalars]

    @property
    def _scalars(self) -> list[str]:
        """The metrics that are a real number, or a curve of them."""
        own = {"run", "cell", "seed", "step"}
        pairs = [(name, self.results[name]) for name in self.metrics]
        return [n for n, x in pairs if {*x.dims} <= own and x.dtype.kind in "biuf"]

    def _overview(self, metric: str) -> list[str]:
        """How many lanes of every other run equal those of the first, NaN included."""
        values = self.results[metric].transpose("run", "cell", "seed", ...).values
        first = values[:1]
        is_same = (values == first) | ((values != values) & (first != first))
        lanes = is_same.all(tuple(range(3, values.ndim)))
        return [f"{int(x.sum())} of {x.size}" for x in lanes[1:]]

    def _cells(self, metric: str, names: Sequence[str]) -> report.Sheet:
        found = self.gaps(metric)
        largest = np.abs(found["gap"].values).max(0)
        order = np.argsort(-np.nan_to_num(largest, nan=np.inf), kind="stable")
        shown = np.sort(order[:MOST_ROWS])
        fields = [
            str(name)
            for name, x in found.coords.items()
            if x.dims == ("cell",) and len({*map(repr, x.values.tolist())}) > 1
        ]
        rows = []
        for cell in shown:
            row = [str(found[name].values[cell]) for name in fields]
            at = found.isel(cell=cell)
            row += [_spread(at.isel(run=run)) for run in range(len(names))]
            row += [f"{gap:+.3g}" for gap in at["gap"].values[1:]]
            rows.append(row)
        of = f", {len(shown)} of {len(order)} cells, those of the largest gap"
        steps = ", last step" if "step" in self.results[metric].dims else ""
        title = f"{metric}{steps}: median (lowest to highest)"
        title += of if len(shown) < len(order) else ""
        gaps = [f"{name} - {names[0]}" for name in names[1:]]
        return report.table((*fields, *names, *gaps), rows, title)

    def __repr__(self):
        from rich.console import Console

        text = io.StringIO()
        console = Console(file=text, width=120, force_terminal=False, highlight=False)
        for part in (*self.sheets(), *map(report.literal, self.left_out)):
            console.print(part)
        return "\n".join(map(str.rstrip, text.getvalue().splitlines()))

    def summary(self) -> dict[str, Any]:
        """The same as plain values, of every cell."""
        tables = {name: self.gaps(name).to_dataframe() for name in self._scalars}
        return {
            "differences": {name: [*row] for name, row in self.differences.items()},
            "left_out": [*self.left_out],
            "metrics": {
                n: x.reset_index().to_dict("records") for n, x in tables.items()
            },
        }


def _spread(at: "xr.Dataset") -> str:
    """A median, its seeds' range where there is one, and how many are NaN."""
    low, high = float(at["lowest"]), float(at["highest"])
    text = f"{float(at['median']):.4g}"
    text += f" ({low:.4g} to {high:.4g})" if low < high else ""
    num_nan = int(at["num_nan"])
    return text + (f", {num_nan} NaN" if num_nan else "")


def compare(
    runs: Iterable["str | Path | xr.Dataset"] | Mapping[str, Any],
) -> Comparison:
    """Put runs side by side: what differs, in their configuration and their metrics.

    Cells are the same where all their fields have the same values, however the axes are
    laid out; a field that one run swept and another did not has its one value there.

        print(lab.compare(["runs/first", "runs/second"]))
        both = lab.compare({"plain": plain, "scaled": scaled}).results

    Args:
        runs: At least two run directories, or what `sweep` or `load` returns; or name
            -> such a one.

    Raises:
        ValueError: If there are fewer than two, if two have one name, or if cells of
            one run differ by a field that another does not have at all.
        RunDirectoryError: If there is no run, or a file of it is corrupt.
    """
    import xarray as xr

    named = _named(runs)
    fixed = {name: hparams(run) for name, run in named.items()}
    swept = dict.fromkeys(field for run in named.values() for field in _swept(run))
    shared = [
        field
        for field in swept
        if all(field in fixed[name] or field in _swept(named[name]) for name in named)
    ]
    flat = {name: _flat(run, shared, fixed[name]) for name, run in named.items()}
    keys = _keys(flat, shared)
    for name, cells in keys.items():
        if len({*cells}) < len(cells):
            others = ", ".join(field for field in swept if field not in shared)
            raise ValueError(
                f"Cells of {name} differ by {others} alone, which not all runs have; "
                "select one of its values, by `lab.select`, to compare."
            )
    positions = {
        name: {cell: i for i, cell in enumerate(cells)} for name, cells in keys.items()
    }
    first, *others = positions.values()
    common = [cell for cell in first if all(cell in other for other in others)]
    sentences = _lonely_cells(positions, shared, common)
    parts = {
        name: run.isel(cell=[positions[name][cell] for cell in common])
        for name, run in flat.items()
    }
    sentences += _align(parts, shared)
    results = xr.concat(
        list(parts.values()),
        xr.Variable("run", list(parts)),
        data_vars="all",
        coords="minimal",
        compat="override",
        join="exact",
        combine_attrs="override",
    )
    differences = _differences(named, fixed)
    return Comparison(results.drop_attrs(deep=False), differences, tuple(sentences))


def _named(runs: Any) -> dict[str, "xr.Dataset"]:
    """Name -> results; directories are called as they were given."""
    import xarray as xr

    if isinstance(runs, Mapping):
        pairs = list(runs.items())
    else:
        pairs = [
            (f"run {i}" if isinstance(run, xr.Dataset) else str(run), run)
            for i, run in enumerate(runs)
        ]
    if len(pairs) < 2:
        raise ValueError(f"`runs` must be at least two runs, got {len(pairs)}.")
    named = {
        str(name): run if isinstance(run, xr.Dataset) else gate.load(run)
        for name, run in pairs
    }
    if len(named) < len(pairs):
        raise ValueError(f"`runs` has one name twice: {[name for name, _ in pairs]}.")
    return named


def _swept(run: "xr.Dataset") -> list[str]:
    """The fields whose values the cells of a run may differ by."""
    dims = {(dim,) for dim in picking.cell_dims(run)}
    known = json.loads(run.attrs["hparams"])
    return [str(n) for n, x in run.coords.items() if x.dims in dims and n in known]


def _flat(
    run: "xr.Dataset", shared: Sequence[str], fixed: Mapping[str, Any]
) -> "xr.Dataset":
    """A run with its cells along one dimension, and all shared fields along it."""
    import xarray as xr

    if "seed" not in run.dims:
        run = run.expand_dims("seed")
    dims = picking.cell_dims(run)
    flat = xr.Dataset({n: picking.in_cells(x, dims) for n, x in run.data_vars.items()})
    missing = [field for field in shared if field not in _swept(run)]
    num_cells = flat.sizes["cell"]
    values = {field: grid.labels([fixed[field]] * num_cells) for field in missing}
    return flat.assign_coords({n: ("cell", x) for n, x in values.items()})


def _keys(
    flat: Mapping[str, "xr.Dataset"], shared: Sequence[str]
) -> dict[str, list[tuple[str, ...]]]:
    """For each run its cells by the values of their fields, as text."""
    columns: dict[str, list[list[str]]] = {name: [] for name in flat}
    for field in shared:
        is_text = any(run[field].dtype.kind == "U" for run in flat.values())
        for name, run in flat.items():
            values = run[field].values.tolist()
            columns[name].append([_said(value, is_text) for value in values])
    return {
        name: list(zip(*columns[name], strict=True)) or [()] * run.sizes["cell"]
        for name, run in flat.items()
    }


def _said(value: Any, is_text: bool) -> str:
    """A value as text: a float to twelve digits, beside no words."""
    if value != value:  # see `grid.labels`
        return "None"
    return f"{value:.12g}" if isinstance(value, float) and not is_text else str(value)


def _lonely_cells(
    positions: Mapping[str, Mapping[tuple[str, ...], int]],
    shared: Sequence[str],
    common: Sequence[tuple[str, ...]],
) -> list[str]:
    """A sentence for each run that has cells which not all runs have."""
    sentences = []
    for name, cells in positions.items():
        if num_left := len(cells) - len(common):
            said = []
            for i, field in enumerate(shared):
                values = {cell[i]: None for cell in cells}
                values = [v for v in values if v not in {cell[i] for cell in common}]
                said += [f"{field} = {_listed(values)}"] if values else []
            which = f" ({'; '.join(said)})" if said else ""
            sentences.append(
                f"{name}: {num_left} of {len(cells)} cells are left out, which not all "
                f"runs have{which}."
            )
    return sentences


def _listed(values: Sequence[Any]) -> str:
    listed = ", ".join(map(str, values[:5]))
    return listed + (f" and {len(values) - 5} more" if len(values) > 5 else "")


def _align(parts: dict[str, "xr.Dataset"], fields: Sequence[str]) -> list[str]:
    """Cut runs to their common seeds, steps and metrics; a sentence for what is lost.

    Raises:
        ValueError: If they have no seed in common.
    """
    sentences = []
    _say_lengths(parts)
    for dim in ("seed", "step"):
        if not all(dim in part.dims for part in parts.values()):
            continue
        labels = [{*part[dim].values.tolist()} for part in parts.values()]
        common = sorted(set.intersection(*labels))
        if not common:
            raise ValueError(f"The runs have no {dim} in common.")
        for name, part in parts.items():
            if num_left := part.sizes[dim] - len(common):
                sentences.append(
                    f"{name}: {num_left} of {part.sizes[dim]} {dim}s are left out, "
                    "which not all runs have."
                )
            parts[name] = _cut(part, dim, common)
    every = dict.fromkeys(name for part in parts.values() for name in part.data_vars)
    kept = []
    for name in every:
        found = [part[name] for part in parts.values() if name in part]
        if len(found) < len(parts):
            sentences.append(f"{name} is left out, which not all runs have.")
        elif len({(x.dims, x.shape) for x in found}) > 1:
            sentences.append(f"{name} is left out, whose dimensions are not the same.")
        else:
            kept.append(name)
    for name, part in parts.items():
        others = {*part.coords} - {*fields, "seed", "step"}
        parts[name] = part[kept].drop_vars(others, errors="ignore")
    return sentences


def _say_lengths(parts: dict[str, "xr.Dataset"]) -> None:
    """Where cells of a run have several numbers of steps, say it of all runs."""
    if any("step_length" in part for part in parts.values()):
        for name, part in parts.items():
            if "step" in part.dims and "step_length" not in part:
                lengths = np.full(part.sizes["cell"], part.sizes["step"])
                parts[name] = part.assign(step_length=("cell", lengths))


def _cut(part: "xr.Dataset", dim: str, common: Sequence[Any]) -> "xr.Dataset":
    """The part with these labels of a dimension alone."""
    if dim == "step" and "step_length" in part:
        length = part["step_length"].values
        last = part["step"].values[length - 1]
        found = np.where(length, np.searchsorted(common, last, "right"), 0)
        part = part.assign(step_length=("cell", found))
    return part.sel({dim: list(common)})


def _differences(
    named: Mapping[str, "xr.Dataset"], fixed: Mapping[str, dict[str, Any]]
) -> dict[str, tuple[str, ...]]:
    """What the runs' configurations do not share, as text."""
    rows: dict[str, list[str]] = {}
    for i, (name, run) in enumerate(named.items()):
        swept = {n: _listed(np.unique(run[n].values).tolist()) for n in _swept(run)}
        hyper = {f"hparams.{n}": x for n, x in (fixed[name] | swept).items()}
        attrs = {n: x for n, x in run.attrs.items() if n not in _OF_THE_DAY}
        for key, value in (hyper | attrs).items():
            rows.setdefault(key, [""] * len(named))[i] = str(value)
    return {key: tuple(row) for key, row in rows.items() if len({*row}) > 1}
