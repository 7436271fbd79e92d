"""Chunks -> one labelled `xarray.Dataset`: (axes..., seed, the metric's own dims).

Of one chunk: (cell, seed, the metric's own dims), the swept fields along `cell`.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import json
import math
from typing import Any, TYPE_CHECKING

import numpy as np

from jaxlr.lab import fields, grid
from jaxlr.lab.lane import CURVES, ENDED_AT, INFO
from jaxlr.lab.manifest import Chunk, COUNTERS, fields_of
from jaxlr.lab.metrics import Metric, storage_dtype


if TYPE_CHECKING:
    import xarray as xr

SHARE_DONE = "share_done"


class Results:
    """Arrays of the whole sweep, filled chunk by chunk, labelled at the end.

    A group's metrics are known before it has run, so memory is taken once. Where the
    groups differ in a dimension's length, short metrics are padded with NaN (see
    `merged_metrics` for what that makes of integers) and the lengths kept in
    `<dim>_length`.

    Args:
        manifest: The manifest of the run.
        has_gaps: Whether some chunks will never come, or in part; the values that they
            lack are NaN, and `share_done` says what share of its steps each lane has.
    """

    def __init__(self, manifest: Mapping[str, Any], has_gaps: bool = False):
        self.manifest, self.has_gaps = manifest, has_gaps
        self.dims, self.groups = from_manifest(manifest)
        self.metrics = {
            name: (COUNTERS[name], np.dtype(np.int32)) for name in manifest["counters"]
        } | merged_metrics(self.groups, has_gaps)
        self.num_seeds = manifest["config"]["num_seeds"]
        lanes = (math.prod(grid.shape(self.dims)), self.num_seeds)
        self.arrays: dict[str, np.ndarray] = {}
        for name, (metric, dtype) in self.metrics.items():
            blank = -1 if name in COUNTERS else np.nan if dtype.kind in "fc" else 0
            self.arrays[name] = np.full((*lanes, *metric.shape), blank, dtype)
        self._share_done = np.zeros(lanes)

    def insert(
        self, chunk: Chunk, arrays: Mapping[str, np.ndarray], share: float = 1.0
    ) -> None:
        """Put the metrics of a chunk, leaves (seed, cell, ...), in their place.

        Args:
            chunk: The chunk.
            arrays: Its metrics; curves that break off fill the rows that they have.
            share: The share of its steps that they hold.

        Raises:
            ValueError: If an integer is too large for the float that it must become.
        """
        cells = self.groups[chunk.block][0].cells[chunk.start : chunk.stop]
        for name, array in arrays.items():
            target = self.arrays[name]
            check_whole(name, array, target.dtype, self.has_gaps)
            array = np.swapaxes(array, 0, 1)
            own = tuple(slice(n) for n in array.shape[2:])
            where = (cells, slice(*chunk.seeds), *own)
            target[where] = array.astype(target.dtype, copy=False)
        self._share_done[cells, slice(*chunk.seeds)] = share

    def dataset(self) -> "xr.Dataset":
        """The labelled results; provenance in its attributes."""
        import xarray as xr

        names = [dim.name for dim in self.dims]
        lead = grid.shape(self.dims)
        variables: dict[str, Any] = {}
        for name, (metric, dtype) in self.metrics.items():
            variables[name] = (
                (*names, "seed", *metric.dims),
                self.arrays[name].reshape(*lead, self.num_seeds, *metric.shape),
                _notes(metric, dtype),
            )
        if self.has_gaps:
            share = self._share_done.reshape(*lead, self.num_seeds)
            notes = {"long_name": "Share of its steps that a lane has here"}
            variables[SHARE_DONE] = ((*names, "seed"), share, notes)
        for dim, lengths in self._lengths().items():
            variables[f"{dim}_length"] = (names, lengths.reshape(lead))
        coords: dict[str, Any] = {"seed": np.arange(self.num_seeds)}
        for dim in self.dims:
            if len(dim.fields) > 1:
                coords[dim.name] = np.arange(len(dim.points))
            for j, field in enumerate(dim.fields):
                notes = self.manifest["field_notes"].get(field, {})
                values = grid.labels([point[j] for point in dim.points])
                coords[field] = (dim.name, values, notes)
        curves = [m for m, _ in self.metrics.values() if "step" in m.dims]
        if curves:
            num_rows = max(m.shape[m.dims.index("step")] for m in curves)
            coords["step"] = _steps(num_rows, self.manifest)
        attrs = attributes(self.manifest) | {"is_complete": int(not self.has_gaps)}
        return xr.Dataset(variables, coords, attrs)

    def _lengths(self) -> dict[str, np.ndarray]:
        """Lengths of every dimension that is not equally long in all groups."""
        num_cells = math.prod(grid.shape(self.dims))
        lengths: dict[str, np.ndarray] = {}
        for group, metrics in self.groups:
            for metric in metrics.values():
                for dim, length in zip(metric.dims, metric.shape, strict=True):
                    found = lengths.setdefault(dim, np.zeros(num_cells, int))
                    found[group.cells] = length
        return {dim: x for dim, x in lengths.items() if len(set(x.tolist())) > 1}


def _notes(metric: Metric, dtype: np.dtype) -> dict[str, str]:
    notes = {"long_name": metric.long_name, "units": metric.units}
    notes["stored_dtype"] = metric.dtype if metric.dtype != dtype.name else ""
    return {k: v for k, v in notes.items() if v}


def _steps(num_rows: int, manifest: Mapping[str, Any]) -> tuple[str, np.ndarray, Any]:
    steps = np.arange(num_rows) * manifest["config"]["every"]
    return "step", steps, {"units": "1", "long_name": "Step"}


def so_far(
    manifest: Mapping[str, Any], chunk: Chunk, saved: Mapping[str, np.ndarray]
) -> tuple[dict[str, np.ndarray], float]:
    """The metrics of a long run's chunk up to where it is, and what share that is.

    Args:
        manifest: The manifest of the run.
        chunk: The chunk.
        saved: What its checkpoint holds.

    Returns:
        Leaves (seed, cell, ...), curves as long as they are by now; and the share of
        their rows that are there.

    Raises:
        ValueError: If that is not what it must be.
    """
    metrics, every = metrics_of(manifest, chunk), manifest["config"]["every"]
    arrays = of_carry(metrics, saved, every, int(saved["t"]))
    share = 0.0
    for name, metric in metrics.items():
        shape, dtype, longest = arrays[name].shape, arrays[name].dtype, metric.shape[0]
        wanted = (*chunk.lanes, min(shape[2], longest), *metric.shape[1:])
        if shape != wanted or dtype != storage_dtype(metric.dtype):
            raise ValueError(f"{name!r} is {dtype} of shape {shape}")
        share = shape[2] / longest
    return arrays, share


def of_carry(
    metrics: Mapping[str, Metric],
    carry: Mapping[str, np.ndarray],
    every: int,
    num_steps: int,
) -> dict[str, np.ndarray]:
    """The metrics and counters of a long run's lanes, leaves (seed, cell, ...).

    Args:
        metrics: The metrics, in the order of the carry's curves.
        carry: The arrays of a packed carry by name; those of the state may be missing.
        every: One row of the curves is kept in this many steps.
        num_steps: Number of steps after which the carry is.
    """
    curves, last = (
        [x for name, x in carry.items() if name.startswith(begin)]
        for begin in (CURVES, INFO)
    )
    num_rows, ended_at = -(-num_steps // every), carry[ENDED_AT][:, :, None]
    # Lanes that ended stand still.
    has_ended = (ended_at >= 0) & (np.arange(num_rows) * every >= ended_at)
    arrays = {}
    for name, curve, info in zip(metrics, curves, last, strict=True):
        mask = has_ended.reshape(has_ended.shape + (1,) * (curve.ndim - 3))
        arrays[name] = np.where(mask, info[:, :, None], curve[:, :, :num_rows])
    counts = diverged_at(metrics, arrays, every)
    return arrays | {"ended_at": carry[ENDED_AT], "diverged_at": counts}


def of_chunk(
    manifest: Mapping[str, Any], chunk: Chunk, arrays: Mapping[str, np.ndarray]
) -> "xr.Dataset":
    """The labelled metrics of one chunk, as long as they are.

    Args:
        manifest: The manifest of the run.
        chunk: The chunk.
        arrays: Its metrics, leaves (seed, cell, ...).
    """
    import xarray as xr

    cells = manifest["layout"][chunk.block]["cells"][chunk.start : chunk.stop]
    known = COUNTERS | metrics_of(manifest, chunk)
    coords: dict[str, Any] = {"seed": np.arange(*chunk.seeds)}
    for field, values in fields_of(manifest["config"]["axes"], cells).items():
        notes = manifest["field_notes"].get(field, {})
        coords[field] = ("cell", grid.labels(values), notes)
    variables = {}
    for name, array in arrays.items():
        metric, array = known[name], np.swapaxes(array, 0, 1)
        dims = "cell", "seed", *metric.dims
        variables[name] = (dims, array, _notes(metric, array.dtype))
        if "step" in dims:
            coords["step"] = _steps(array.shape[dims.index("step")], manifest)
    return xr.Dataset(variables, coords, attributes(manifest))


def check_whole(
    name: str, array: np.ndarray, dtype: np.dtype, has_gaps: bool = False
) -> None:
    """Refuse integers that the dtype cannot hold in which a metric is kept.

    Raises:
        ValueError: If one is too large, saying how large they may be.
    """
    if array.dtype.kind not in "iu" or dtype.kind not in "fc" or not array.size:
        return
    digits = 2 ** (np.finfo(dtype).nmant + 1)
    worst = max(int(array.max()), -int(array.min()))
    if worst > digits:
        why = (
            "cells are missing; finish the run to load it (`--resume`)."
            if has_gaps
            else "another group has another type or length. Return it as one type, of "
            "one length, in all groups."
        )
        raise ValueError(
            f"The metric {name!r} holds integers of size {worst}, and has become "
            f"{dtype}, exact up to {digits}: {why}"
        )


def merged_metrics(
    groups: Sequence[tuple[grid.Group, Mapping[str, Metric]]], has_gaps: bool = False
) -> dict[str, tuple[Metric, np.dtype]]:
    """All groups' metrics at their greatest lengths, with the dtype to keep them in.

    A metric keeps the dtype that it was computed in, integers and booleans too; only
    bfloat16 widens, to float32, and groups that differ share the dtype to which NumPy
    promotes theirs. Where some of its values are missing - it is shorter in a group, a
    group does not have it, or chunks are still to come - they are NaN, for which an
    integer or boolean metric becomes float64; the other metrics stay as they are.

    Raises:
        ValueError: If a metric's dimensions differ between groups.
    """
    merged = {}
    for name in dict.fromkeys(name for _, metrics in groups for name in metrics):
        variants = [metrics.get(name) for _, metrics in groups]
        present = [m for m in variants if m is not None]
        if len({m.dims for m in present}) > 1:
            raise ValueError(
                f"Metric {name!r} has other dimensions in other groups: "
                f"{sorted({m.dims for m in present})}; name them with `dims`."
            )
        lengths = tuple(max(n) for n in zip(*(m.shape for m in present), strict=True))
        needs_nan = has_gaps or any(m is None or m.shape != lengths for m in variants)
        dtypes = [storage_dtype(m.dtype) for m in present]
        dtypes = [d if d.kind in "biufc" else np.dtype(np.float32) for d in dtypes]
        dtype = np.result_type(*dtypes)
        if needs_nan and dtype.kind in "biu":
            dtype = np.dtype(np.float64)
        merged[name] = dataclasses.replace(present[0], shape=lengths), dtype
    return merged


def check_labels(
    dims: Sequence[grid.Dimension],
    groups: Sequence[tuple[grid.Group, Mapping[str, Metric]]],
) -> None:
    """Find names that would collide in the results, before anything has run.

    Raises:
        ValueError: If a metric's dimension is called like an axis, or one dimension has
            two lengths in one group.
    """
    axes = {"seed", *(n for dim in dims for n in (dim.name, *dim.fields))}
    merged_metrics(groups)
    for _, metrics in groups:
        lengths: dict[str, int] = {}
        for name, metric in metrics.items():
            if name in axes:
                raise ValueError(f"The metric {name!r} is called like an axis.")
            for dim, length in zip(metric.dims, metric.shape, strict=True):
                if dim in axes:
                    raise ValueError(
                        f"The metric {name!r} has a dimension {dim!r}, which is an "
                        "axis; rename it with `dims`."
                    )
                if lengths.setdefault(dim, length) != length:
                    raise ValueError(
                        f"The dimension {dim!r} has lengths {lengths[dim]} and "
                        f"{length} (metric {name!r}); tell them apart with `dims`."
                    )


def num_bytes(
    groups: Sequence[tuple[grid.Group, Mapping[str, Metric]]], num_seeds: int
) -> int:
    """Bytes of all results on the host."""
    lanes = sum(len(group.cells) for group, _ in groups) * num_seeds
    merged = merged_metrics(groups).values()
    return lanes * sum(
        int(np.prod(metric.shape)) * dtype.itemsize for metric, dtype in merged
    )


def notes_of(hparams: Any) -> dict[str, dict[str, str]]:
    """Field -> `long_name` and `units`, as its class documents them."""
    pairs = {
        name: {"long_name": field.doc.text, "units": field.doc.units}
        for name, field in fields.of(hparams).items()
    }
    return {k: {n: v for n, v in notes.items() if v} for k, notes in pairs.items()}


def diverged_at(
    metrics: Mapping[str, Metric], arrays: Mapping[str, np.ndarray], every: int
) -> np.ndarray:
    """First step at which a metric of a lane is not finite; -1 where all are.

    What is no curve counts as measured at the last step.
    """
    curves = {name for name, metric in metrics.items() if metric.dims[:1] == ("step",)}
    lengths = (metrics[name].shape[0] for name in curves)
    last = max(max(lengths, default=1) - 1, 0)
    first = np.full(next(iter(arrays.values())).shape[:2], np.iinfo(np.int32).max)
    for name, array in arrays.items():
        if storage_dtype(metrics[name].dtype).kind in "biu" or not array.size:
            continue
        bad = ~np.isfinite(array)
        if name in curves:
            bad = bad.any(tuple(range(3, bad.ndim)))
            at = np.where(bad.any(-1), bad.argmax(-1), first)
        else:
            at = np.where(bad.any(tuple(range(2, bad.ndim))), last, first)
        first = np.minimum(first, at)
    return np.where(first > last, -1, first * every).astype(np.int32)


def to_layout(group: grid.Group, metrics: Mapping[str, Metric]) -> dict[str, Any]:
    """A group as its manifest keeps it; `from_manifest` reads it back."""
    return {
        "static": group.static,
        "cells": group.cells.tolist(),
        "metrics": {name: dataclasses.asdict(m) for name, m in metrics.items()},
    }


def from_manifest(manifest: Mapping[str, Any]):
    """Dimensions, and groups with their metrics, as a manifest recorded them."""
    dims = tuple(
        grid.Dimension(tuple(fields), tuple(map(tuple, points)))
        for fields, points in manifest["config"]["axes"].values()
    )
    parts = []
    for layout in manifest["layout"]:
        group = grid.Group(layout["static"], {}, np.asarray(layout["cells"]))
        parts.append((group, _metrics(layout)))
    return dims, parts


def metrics_of(manifest: Mapping[str, Any], chunk: Chunk) -> dict[str, Metric]:
    """The metrics that a chunk has."""
    return _metrics(manifest["layout"][chunk.block])


def _metrics(layout: Mapping[str, Any]) -> dict[str, Metric]:
    return {
        name: Metric(**m | {k: tuple(m[k]) for k in ("dims", "shape")})
        for name, m in layout["metrics"].items()
    }


def attributes(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Provenance as flat attributes: what netCDF can hold."""
    flat = manifest["config"] | manifest["environment"] | manifest.get("timings", {})
    flat |= {name: manifest[name] for name in ("forced", "history") if name in manifest}
    flat = {name: value for name, value in flat.items() if name != "axes"}
    return {
        name: int(value)
        if isinstance(value, bool)
        else value
        if isinstance(value, int | float | str)
        else json.dumps(value)
        for name, value in flat.items()
    }


def hparams(results: "xr.Dataset") -> dict[str, Any]:
    """The hyper-parameters that all cells of these results share, by name.

    Those that are not swept; and of the swept ones those with a single value here, as
    in `results.isel(alpha=0)`. All others are coordinates of the results. Fields of a
    dataclass inside HParams have dotted names, `"opt.lr"`; tuples are lists. The words
    "inf", "-inf" and "nan", as which JSON holds floats, are floats again.

    Args:
        results: What `sweep` or `load` returns, or a selection of it.
    """
    fixed = json.loads(results.attrs["hparams"])
    for name in (fixed.keys() & results.coords.keys()) - {*grid.RESERVED}:
        values = np.unique(results[name].values)
        if values.size == 1:
            value = values[0].item()
            fixed[name] = None if value != value else value  # see `grid.labels`
        else:
            del fixed[name]
    words = "inf", "-inf", "nan"
    return {name: float(x) if x in words else x for name, x in fixed.items()}


def select(results: "xr.Dataset", **values: Any) -> "xr.Dataset":
    """The cells of these values, also where axes that move together share a dimension.

    Where `Dataset.sel` needs an index along a dimension, this takes any coordinate; the
    dimension is kept. Dotted names go as `select(results, **{"opt.lr": 0.1})`.

    Args:
        results: What `sweep` or `load` returns.
        **values: Name of a coordinate -> the value, or the list of values, that it has
            in the wanted cells.

    Raises:
        ValueError: If no cell has one of them: a claim about nothing would hold.
    """
    for name, wanted in values.items():
        (dim,) = results[name].dims
        present = results[name].values
        is_wanted = np.zeros(present.shape, bool)
        for value in np.atleast_1d(np.asarray(wanted, object)):
            is_value = grid.is_labelled(present, value)
            if not is_value.any():
                raise ValueError(
                    f"No cell of these results has {name} = {value}; they have "
                    f"{sorted(set(present.tolist()))}."
                )
            is_wanted |= is_value
        results = results.isel({dim: np.flatnonzero(is_wanted)})
    return results
