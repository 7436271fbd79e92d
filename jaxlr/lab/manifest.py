"""What a manifest holds, of format 2 and of the format before.

A manifest is checked once, when it is read; whoever has one takes its entries for
granted. `layout` is a list of blocks: cells and seeds that were asked for together.
Blocks of equal `static` fields, of which a run has several once it has grown, are one
compile group, with one program: `num_seeds` seeds by `width` cells on each device.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import hashlib
import json
import math
from types import NoneType
from typing import Any

import numpy as np

from jaxlr.lab.metrics import Metric, storage_dtype


FORMAT = 2
BACKENDS = "shard_map", "pmap"
COUNTERS = {
    name: Metric((), (), "int32", long_name=text)
    for name, text in (
        ("diverged_at", "First kept step with a metric not finite; -1: none"),
        ("ended_at", "Steps taken when the lane ended; -1: it never did"),
    )
}
_METRIC = {"dims": [str], "shape": [int], "dtype": str, "long_name": str, "units": str}
_BLOCK = {
    "static": dict,
    "cells": [int],
    "fields": [str],
    "seeds": [int],
    "metrics": dict,
    "num_seeds": int,
    "width": int,
    "chunk": int,
}
_MANIFEST = {
    "run": (str, NoneType),
    "experiment": str,
    "source_path": (str, NoneType),
    "config": {
        "experiment": str,
        "source": str,
        "hparams": dict,
        "axes": dict,
        "num_seeds": int,
        "seed": int,
        "num_steps": (int, str, NoneType),
        "every": int,
        "x64": bool,
        "platform": str,
        "computation": dict,
    },
    "counters": [str],
    "field_notes": dict,
    "layout": [_BLOCK],
    "environment": {"backend": str},
    "lanes": {"num_seeds": (int, NoneType), "num_cells": (int, NoneType)},
    "is_complete": bool,
}


@dataclasses.dataclass(frozen=True)
class Chunk:
    """Cells `start:stop` of a block.

    Attributes:
        block: Index of the block.
        index: Index of the chunk in its block.
        start: Index of the first cell, counted in the block.
        stop: Index after the last cell.
        seeds: Index of the first seed, and that after the last.
    """

    block: int
    index: int
    start: int
    stop: int
    seeds: tuple[int, int]

    @property
    def filename(self) -> str:
        """Name of the file of the finished chunk, and of that of its checkpoint."""
        return f"g{self.block:03d}-c{self.index:05d}.npz"

    @property
    def lanes(self) -> tuple[int, int]:
        """How many seeds, and how many cells."""
        return self.seeds[1] - self.seeds[0], self.stop - self.start


def label(static: Mapping[str, Any]) -> str:
    """What a compile group is called: the values of its static fields, in words."""
    return ", ".join(f"{n}={static[n]!r}" for n in sorted(static)) or "all cells"


def of_group(manifest: Mapping[str, Any], static: Mapping[str, Any]) -> list[int]:
    """Indices of the blocks of the compile group that has these static fields."""
    name, blocks = label(static), enumerate(manifest["layout"])
    return [b for b, block in blocks if label(block["static"]) == name]


def chunks(manifest: Mapping[str, Any], block: int | None = None) -> list[Chunk]:
    """The chunks of a run, in order.

    Args:
        manifest: The manifest of the run.
        block: Index of the block whose chunks are wanted; None for all blocks.
    """
    found = []
    for b, layout in enumerate(manifest["layout"]):
        size, num_cells = layout["chunk"], len(layout["cells"])
        found += [
            Chunk(b, i, start, min(start + size, num_cells), tuple(layout["seeds"]))
            for i, start in enumerate(range(0, num_cells, size))
            if block in (None, b)
        ]
    return found


def identity(manifest: Mapping[str, Any], chunk: Chunk) -> dict[str, Any]:
    """Whose results a chunk's are: what its file and its checkpoint's file say.

    Cells stand by the values of their fields: their indices change when a run grows.
    Those fields count that were swept when they were asked for.
    """
    config, block = manifest["config"], manifest["layout"][chunk.block]
    cells, known = block["cells"][chunk.start : chunk.stop], block["fields"]
    fields, static = fields_of(config["axes"], cells), block["static"]
    return {
        "run": manifest["run"],
        "seed": config["seed"],
        "seeds": list(chunk.seeds),
        "static": {name: x for name, x in static.items() if name in known},
        "width": block["width"],
        "cells": {name: fields[name] for name in known},
    }


def fields_of(axes: Mapping[str, Any], cells: Sequence[int]) -> dict[str, list[Any]]:
    """Field -> its values in some cells, given by their flat indices."""
    shape = [len(points) for _, points in axes.values()] or [1]
    columns = np.unravel_index(np.asarray(cells, int), shape)
    return {
        field: [points[i][j] for i in column]
        for (fields, points), column in zip(axes.values(), columns, strict=False)
        for j, field in enumerate(fields)
    }


def misfits(manifest: Mapping[str, Any], chunk: Chunk, arrays: Any) -> list[str]:
    """What is wrong with a chunk's arrays, leaves (seed, cell, ...), a line each."""
    if not isinstance(arrays, Mapping):
        return [f"there are no arrays by name, but {arrays!r}"]
    lanes = list(chunk.lanes)
    metrics = manifest["layout"][chunk.block]["metrics"]
    wanted = {name: (lanes, np.dtype(np.int32)) for name in manifest["counters"]} | {
        name: (lanes + list(m["shape"]), storage_dtype(m["dtype"]))
        for name, m in metrics.items()
    }
    lines = [f"{name!r} is missing" for name in wanted if name not in arrays]
    lines += [f"{name!r} is no metric" for name in arrays if name not in wanted]
    for name, array in arrays.items():
        if name in wanted:
            shape, dtype = wanted[name]
            found, kind = list(np.shape(array)), getattr(array, "dtype", None)
            if found != shape:
                lines.append(f"{name!r} has the shape {found}, not {shape}")
            if kind != dtype:
                lines.append(f"{name!r} is of type {kind}, not {dtype}")
    return lines


def signed(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """A manifest with the digest by which `validated` notices that it was edited."""
    return {**manifest, "digest": _digest(manifest)}


def _digest(manifest: Mapping[str, Any]) -> str:
    decisive = [manifest[name] for name in ("config", "counters", "layout")]
    return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()


def brief(*values: Any) -> str:
    """What a message quotes of some values, cut where it is long."""
    text = ", ".join(map(repr, values))
    return text if len(text) <= 80 else f"{text[:77]}..."


def validated(content: Any) -> dict[str, Any]:
    """A manifest as its file holds it, checked; what format 1 had not is added.

    Raises:
        ValueError: Naming the entry that is missing or wrong, and what it must be.
    """
    if not isinstance(content, dict) or "format" not in content:
        raise ValueError("it is no manifest of a run")
    number = content["format"]
    if number not in range(1, FORMAT + 1):
        raise ValueError(
            f"it is of format {number!r}, and this version of jaxlr reads formats 1 to "
            f"{FORMAT}: a newer one may have written it"
        )
    manifest = dict(content)
    if number == 1:
        manifest.setdefault("run", None)
        manifest.setdefault("lanes", {"num_seeds": None, "num_cells": None})
        _add_missing(manifest)
    else:
        _fits("", manifest, {"digest": str})
    _fits("", manifest, _MANIFEST)
    for name in ("num_seeds", "every"):
        _least(f"config.{name}", manifest["config"][name], 1)
    seed, backend = manifest["config"]["seed"], manifest["environment"]["backend"]
    if not 0 <= seed < 2**32:
        raise ValueError(f"config.seed must be in 0..{2**32 - 1}, it is {seed}")
    if backend not in BACKENDS:
        raise ValueError(f"environment.backend is {backend!r}, none of {BACKENDS}")
    _check_axes(manifest["config"])
    for name, digest in manifest["config"]["computation"].items():
        _fits(f"config.computation.{name}", digest, str)
    for name, kind in {"timings": dict, "forced": list, "history": list}.items():
        _fits(name, manifest.get(name, kind()), kind)
    for name, notes in manifest["field_notes"].items():
        _fits(f"field_notes.{name}", notes, dict)
    if unknown := set(manifest["counters"]).difference(COUNTERS):
        raise ValueError(f"counters has {sorted(unknown)}, which are none")
    for g, block in enumerate(manifest["layout"]):
        _check_block(f"layout[{g}]", block, manifest["config"])
    _check_lanes(manifest)
    if (number > 1 or "digest" in content) and content["digest"] != _digest(content):
        raise ValueError("config, counters or layout are not what was written: edited")
    return manifest


def _add_missing(manifest: dict[str, Any]) -> None:
    """What a manifest of format 1 did not say, unless it went on since and does."""
    config = {"num_seeds": int, "axes": dict, "computation": dict}
    _fits("", manifest, {"config": config, "layout": [{"static": dict}]})
    config = dict(manifest["config"])
    _check_axes(config)
    num_seeds = config["num_seeds"]
    missing = {
        "seeds": [0, num_seeds],
        "num_seeds": num_seeds,
        "fields": [name for fields, _ in config["axes"].values() for name in fields],
    }
    manifest["layout"] = [missing | block for block in manifest["layout"]]
    names = {
        f"group {g}": label(block["static"])
        for g, block in enumerate(manifest["layout"])
    }
    config["computation"] = {
        names.get(name, name): digest for name, digest in config["computation"].items()
    }
    manifest["config"] = config


def _fits(where: str, value: Any, schema: Any) -> None:
    """Refuse a value that is not of its schema: types, in dicts and lists of them."""
    if isinstance(schema, dict):
        _fits(where, value, dict)
        for name, inner in schema.items():
            path = f"{where}.{name}" if where else name
            if name not in value:
                raise ValueError(f"{path} is missing")
            _fits(path, value[name], inner)
    elif isinstance(schema, list):
        _fits(where, value, list)
        for i, entry in enumerate(value):
            _fits(f"{where}[{i}]", entry, schema[0])
    else:
        kinds = schema if isinstance(schema, tuple) else (schema,)
        if type(value) not in kinds:
            names = " or ".join(kind.__name__ for kind in kinds)
            raise ValueError(f"{where} must be of type {names}, it is {brief(value)}")


def _least(where: str, value: int, least: int) -> None:
    if value < least:
        raise ValueError(f"{where} must be at least {least}, it is {value}")


def _check_axes(config: Mapping[str, Any]) -> None:
    for name, axis in config["axes"].items():
        where = f"config.axes.{name}"
        _fits(where, axis, list)
        if len(axis) != 2:
            raise ValueError(f"{where} must be fields and points, it is {brief(axis)}")
        _fits(f"{where}[0]", axis[0], [str])
        _fits(f"{where}[1]", axis[1], [list])
        if not axis[1] or any(len(point) != len(axis[0]) for point in axis[1]):
            raise ValueError(
                f"{where} must have points of {len(axis[0])} values, it has "
                f"{brief(axis[1])}"
            )


def _check_block(where: str, block: Mapping[str, Any], config: Any) -> None:
    for name in ("num_seeds", "width", "chunk"):
        _least(f"{where}.{name}", block[name], 1)
    known = {field.name for field in dataclasses.fields(Metric)}
    for name, metric in block["metrics"].items():
        path = f"{where}.metrics.{name}"
        _fits(path, metric, _METRIC)
        if unknown := metric.keys() - known:
            raise ValueError(f"{path} has {sorted(unknown)}, which are unknown")
        for length in metric["shape"]:
            _least(f"{path}.shape", length, 0)
        if len(metric["dims"]) != len(metric["shape"]):
            raise ValueError(
                f"{path} has the dims {metric['dims']} for the shape {metric['shape']}"
            )
        try:
            storage_dtype(metric["dtype"])
        except TypeError:
            raise ValueError(f"{path}.dtype is {metric['dtype']!r}: no type") from None
    num_cells = _num_cells(config)
    for cell in block["cells"]:
        if not 0 <= cell < num_cells:
            raise ValueError(
                f"{where}.cells has {cell}, and the axes have {num_cells} cells"
            )
    seeds = block["seeds"]
    if len(seeds) != 2 or not 0 <= seeds[0] < seeds[1] <= config["num_seeds"]:
        raise ValueError(
            f"{where}.seeds must be a range within 0..{config['num_seeds']}, it is "
            f"{seeds}"
        )
    fields = fields_of(config["axes"], block["cells"])
    if unknown := set(block["fields"]).difference(fields):
        raise ValueError(f"{where}.fields has {sorted(unknown)}, which no axis has")
    for name, values in fields.items():
        wanted = block["static"].get(name)
        if name in block["static"] and any(_differ(wanted, value) for value in values):
            raise ValueError(f"{where}.cells has cells whose {name} is not {wanted!r}")


def _num_cells(config: Mapping[str, Any]) -> int:
    return math.prod(len(points) for _, points in config["axes"].values())


def _check_lanes(manifest: Mapping[str, Any]) -> None:
    config = manifest["config"]
    times = np.zeros((_num_cells(config), config["num_seeds"]), int)
    for block in manifest["layout"]:
        np.add.at(times[:, slice(*block["seeds"])], block["cells"], 1)
    if wrong := np.argwhere(times != 1).tolist():
        cell, seed = wrong[0]
        found = times[cell, seed]
        raise ValueError(f"layout has cell {cell} with seed {seed} {found} times")


def _differ(one: Any, two: Any) -> bool:
    """Whether they are not the same in JSON, where 1, 1.0 and true are three."""
    return json.dumps(one, sort_keys=True) != json.dumps(two, sort_keys=True)


def differing(one: Mapping[str, Any], two: Mapping[str, Any]) -> list[str]:
    """The names whose values two dicts do not share."""
    names = dict.fromkeys([*one, *two])
    return [name for name in names if _differ(one.get(name), two.get(name))]
