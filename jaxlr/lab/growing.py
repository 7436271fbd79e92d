"""A run that is asked for more: seeds, values of its axes, axes of static fields.

Cells are known by the values of their fields. Blocks stay as they are but for the flat
indices of their cells, which are those in the new axes, and blocks of what is new are
appended: their programs are those of the run.
"""

from collections.abc import Iterator, Mapping, Sequence
import json
import math
from pathlib import Path
from typing import Any

from jaxlr.lab.manifest import differing, fields_of, label
from jaxlr.lab.store import RunDirectoryError


def has_grown(recorded: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    """Whether other axes, or another number of seeds, are asked for than recorded."""
    then, asked = recorded["config"], now["config"]
    return bool({"axes", "num_seeds"}.intersection(differing(then, asked)))


def grown(
    root: Path, recorded: Mapping[str, Any], now: Mapping[str, Any]
) -> dict[str, Any]:
    """The manifest of a run of which more is asked.

    Blocks of compile groups that the run has not had are not cut yet.

    Args:
        root: The run directory.
        recorded: The manifest of the run.
        now: That of a run of all that is asked for, not cut.

    Raises:
        RunDirectoryError: If it asks for less, or for other axes.
    """
    now = json.loads(json.dumps(now))
    then, asked = recorded["config"], now["config"]
    was = _with_constants(root, recorded, now)
    places = {cell: i for i, cell in enumerate(_cells(asked["axes"], asked["axes"]))}
    _refuse_less(root, then, asked, was, places)
    homes = {cell: part for part in now["layout"] for cell in part["cells"]}
    layout, computation = [], dict(asked["computation"])
    cuts: dict[str, Mapping[str, Any]] = {}
    for block in recorded["layout"]:
        cells = [places[cell] for cell in _cells(was, asked["axes"], block["cells"])]
        static = homes[cells[0]]["static"]
        layout.append(block | {"cells": cells, "static": static})
        name = label(static)
        computation[name] = then["computation"].get(label(block["static"]))
        kept = "metrics", "num_seeds", "width", "chunk"
        cuts.setdefault(name, {k: block[k] for k in kept})
    old = {cell for block in layout for cell in block["cells"]}
    num_blocks, first, last = len(layout), then["num_seeds"], asked["num_seeds"]
    for part in now["layout"]:
        for is_old, seeds in ((True, [first, last]), (False, [0, last])):
            cells = [cell for cell in part["cells"] if (cell in old) == is_old]
            if cells and seeds[0] < seeds[1]:
                cut = cuts.get(label(part["static"]), {})
                layout.append(part | {"cells": cells, "seeds": seeds} | cut)
    more = {name: asked[name] for name in ("axes", "num_seeds")}
    config = then | more | {"computation": computation}
    entry = _entry(recorded, now) | {"blocks": [num_blocks, len(layout)]}
    history = [*recorded.get("history", ()), entry]
    return dict(recorded) | {"config": config, "layout": layout, "history": history}


def _names(axes: Mapping[str, Any]) -> list[str]:
    return [name for fields, _ in axes.values() for name in fields]


def _with_constants(
    root: Path, recorded: Mapping[str, Any], now: Mapping[str, Any]
) -> dict[str, Any]:
    """The axes of a run, with axes of one point for fields that are swept only now."""
    config, axes = recorded["config"], dict(recorded["config"]["axes"])
    asked = _names(now["config"]["axes"])
    if lost := [name for name in _names(axes) if name not in asked]:
        raise RunDirectoryError(
            f"{root} sweeps {' and '.join(lost)}, of which no axis was asked for: a "
            "run only grows."
        )
    for name in asked:
        if name in _names(axes):
            continue
        if any(name not in part["static"] for part in now["layout"]):
            raise RunDirectoryError(
                f"{root} has one value of {name}, a constant of its programs; swept, "
                "it would be an input, and the bits others. Only axes of static fields "
                "can be added to a run: use another directory."
            )
        axes[name] = [[name], [[config["hparams"][name]]]]
    return axes


def _cells(
    axes: Mapping[str, Any],
    order: Mapping[str, Any],
    cells: Sequence[int] | None = None,
) -> Iterator[str]:
    """What tells cells apart, whatever the axes: the values of fields, in an order."""
    if cells is None:
        cells = range(math.prod(len(points) for _, points in axes.values()))
    columns = fields_of(axes, cells)
    for i in range(len(cells)):
        yield json.dumps([columns[name][i] for name in _names(order)])


def _refuse_less(
    root: Path,
    then: Mapping[str, Any],
    asked: Mapping[str, Any],
    was: Mapping[str, Any],
    places: Mapping[str, int],
) -> None:
    if asked["num_seeds"] < then["num_seeds"]:
        raise RunDirectoryError(
            f"{root} has {then['num_seeds']} seeds of every cell, and "
            f"{asked['num_seeds']} were asked for: a run only grows."
        )
    lost = [cell for cell in _cells(was, asked["axes"]) if cell not in places]
    if not lost:
        return
    present = fields_of(asked["axes"], range(len(places)))
    lines = []
    for fields, points in was.values():
        rows = zip(*(present[name] for name in fields), strict=True)
        known = {json.dumps(row) for row in rows}
        missing = [point for point in points if json.dumps(point) not in known]
        if missing:
            listed = ", ".join("/".join(map(repr, point)) for point in missing)
            lines.append(f"{'/'.join(fields)}={listed}")
    if not lines:  # points of each axis are there, but not together
        names, values = _names(asked["axes"]), json.loads(lost[0])
        pairs = zip(names, values, strict=True)
        lines = ["the cell " + ", ".join(f"{k}={v!r}" for k, v in pairs)]
    raise RunDirectoryError(
        f"{root} has {'; '.join(lines)}, which was not asked for: a run only grows. "
        "Name what it has too."
    )


def _entry(recorded: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, Any]:
    """When a run has grown, from what, and what was asked for that it had not."""
    then, asked = recorded["config"], now["config"]
    added = {}
    for name, (_, points) in asked["axes"].items():
        _, old = then["axes"].get(name, (None, []))
        known = set(map(json.dumps, old))
        added[name] = [point for point in points if json.dumps(point) not in known]
    configured = "source", "jaxlr", "jax", "jaxlib"
    return (
        {"grown": now["environment"]["begun"]}
        | {name: now["environment"][name] for name in ("commit", "command")}
        | {name: asked[name] for name in configured}
        | {"num_seeds": [then["num_seeds"], asked["num_seeds"]]}
        | {"axes": {name: points for name, points in added.items() if points}}
    )
