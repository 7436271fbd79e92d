"""One cell of a recorded run, run again and compared with what was stored."""

from collections.abc import Mapping, Sequence
import dataclasses
from pathlib import Path
from typing import Any, TYPE_CHECKING

import jax
import numpy as np

from jaxlr.core import checks
from jaxlr.core.types import Experiment
from jaxlr.lab import (
    chunks,
    fields,
    find,
    grid,
    manifest as manifests,
    provenance,
    results,
    store,
)
from jaxlr.lab.compiled import Compiled
from jaxlr.lab.engine import swept
from jaxlr.lab.gate import Gate
from jaxlr.lab.program import Program
from jaxlr.lab.request import Request
from jaxlr.lab.results import Results


if TYPE_CHECKING:
    import xarray as xr


TOLERANCE = 1e-4  # relative, where the bits cannot be promised


def replay(
    directory: str | Path,
    cell: Mapping[str, Any],
    seed: int,
    *,
    experiment: Experiment | None = None,
) -> "xr.Dataset":
    """Run one cell with one seed again, as wide as it was recorded, on one device.

    Args:
        directory: The run directory.
        cell: Values of the cell's swept fields: name -> value. A dimension of one point
            may be left out.
        seed: Index of the seed, in 0..num_seeds - 1.
        experiment: The experiment to run, at the settings of the run, whatever it
            declares. None for what this process swept there, else for the shipped one
            of the recorded name: a file that a run directory names is not executed.

    Returns:
        The cell's metrics. `attrs["replay"]` says what equality can be expected here
        and what was found; `attrs["is_equal"]` is 1 if the finding is as expected.
        With the recorded computation, backend and versions that is equality bit by bit,
        elsewhere to a relative 1e-4 of each metric's largest value.

    Raises:
        ValueError: On an unknown cell or seed, or if no experiment can be found.
        RunDirectoryError: If there is no run, or a file of it is corrupt.
    """
    directory = store.folder(directory)
    manifest = store.read_manifest(directory)
    config = manifest["config"]
    dims, groups = results.from_manifest(manifest)
    seed = checks.count("seed", seed, least=0, most=config["num_seeds"] - 1)
    index = grid.find_cell(dims, cell)
    block, where = next(
        (b, layout["cells"].index(index))
        for b, layout in enumerate(manifest["layout"])
        if index in layout["cells"] and seed in range(*layout["seeds"])
    )
    layout = manifest["layout"][block]
    experiment = experiment or swept(directory, manifest) or find.recorded(manifest)
    try:
        experiment = _as_recorded(experiment, config)
    except (TypeError, ValueError) as e:
        raise store.RunDirectoryError(
            f"{directory / store.MANIFEST}: config.hparams holds what the experiment's "
            f"fields cannot be: {e}. Restore it, or give the `experiment` as it was."
        ) from e
    request = Request.make(
        experiment,
        {dim.fields: dim.points for dim in dims},
        num_seeds=config["num_seeds"],
        seed=config["seed"],
        devices=_devices(config["platform"])[:1],
        backend=manifest["environment"]["backend"],
    )
    compiled = Compiled(request)
    group, name = request.group_of(layout["static"]), manifests.label(layout["static"])
    metrics = compiled.lane(group).metrics
    then = config | {"computation": {name: config["computation"].get(name)}}
    now = provenance.in_words_of(then, provenance.config(compiled, [group]), compiled)
    now["axes"] = then["axes"]
    if provenance.edit(then, now):
        then["source"] = now["source"]
    changed = [name for name in now if repr(now[name]) != repr(then.get(name))]
    recorded, current = (
        {name: (m.shape, m.dtype) for name, m in found.items()}
        for found in (groups[block][1], metrics)
    )
    if recorded != current:
        raise ValueError(
            f"The experiment's metrics are not those of {directory}: {recorded} were "
            f"recorded, it has {current}. Give the `experiment` as it was."
        )
    program = compiled.program(group, layout["width"], layout["num_seeds"])
    chunk = store.chunks(manifest, block)[where // layout["chunk"]]
    work = chunks.Work.of(request, manifest, chunk)
    at, row = where - chunk.start, seed - chunk.seeds[0]
    lane = _alone(request, program, work, at, row)
    gate = Gate(manifest, directory)
    sentence, is_equal = "Its chunk was not finished: nothing to compare.", False
    if gate.is_done(chunk):
        stored = {k: x[row, at] for k, x in gate.read(chunk).items()}
        sentence, is_equal = _compare(stored, lane, changed)
    points = {
        dim.name: [dim.fields, [dim.points[i]]]
        for dim, i in zip(dims, np.unravel_index(index, grid.shape(dims)), strict=True)
    }
    one = Results(
        manifest
        | {"config": config | {"axes": points, "num_seeds": 1}}
        | {"layout": [layout | {"cells": [0]}]}
    )
    leaves = {k: x[None, None] for k, x in lane.items()}
    one.insert(store.Chunk(0, 0, 0, 1, seeds=(0, 1)), leaves)
    found = one.dataset().assign_coords(seed=[seed])
    found = found.squeeze(["seed", *(dim.name for dim in dims)])
    return found.assign_attrs(replay=sentence, is_equal=int(is_equal))


def _alone(
    request: Request, program: Program, work: chunks.Work, at: int, row: int
) -> dict[str, np.ndarray]:
    """One lane of the work, where in the program it lay, among the same seeds."""
    place, first = at % work.width, work.seeds[0] + row - row % work.num_seeds
    again = dataclasses.replace(
        work,
        seeds=(first, min(first + work.num_seeds, work.seeds[1])),
        cells=np.repeat(work.cells[at], work.width),
    )
    arrays = chunks.run(request, program, again)
    return {k: x[row % work.num_seeds, place] for k, x in arrays.items()}


def _compare(
    stored: Mapping[str, np.ndarray],
    found: Mapping[str, np.ndarray],
    changed: Sequence[str],
) -> tuple[str, bool]:
    """What equality was to be expected, and whether it was found."""
    worst, is_bitwise = 0.0, True
    for name, old in stored.items():
        new = found[name]
        if old.tobytes() == new.tobytes():
            continue
        is_bitwise = False
        wide = np.complex128 if old.dtype.kind == "c" else np.float64
        old, new = (np.asarray(x, wide) for x in (old, new))
        same = (old == new) | (np.isnan(old) & np.isnan(new))
        scale = np.nanmax(np.abs(old), initial=0.0, where=np.isfinite(old)) or 1.0
        gap = np.where(same, 0.0, np.abs(old - new) / scale)
        worst = max(worst, float(np.nan_to_num(gap, nan=np.inf).max(initial=0.0)))
    if changed:
        expected = f"to a relative {TOLERANCE:g}, as {', '.join(changed)} changed"
    else:
        expected = "bit by bit: same computation, versions and device"
    if is_bitwise:
        return f"Equal bit by bit (expected {expected}).", True
    is_equal = bool(changed) and worst <= TOLERANCE
    verdict = "Equal" if is_equal else "NOT equal"
    return f"{verdict}: relative gap {worst:.1e} (expected {expected}).", is_equal


def _devices(platform: str) -> list[jax.Device]:
    """The recorded platform's, where this machine has one; else the default ones."""
    try:
        return jax.local_devices(backend=platform)
    except RuntimeError:
        return jax.local_devices()


def _as_recorded(experiment: Experiment, config: Mapping[str, Any]) -> Experiment:
    """The experiment at the run's settings: a smoke size or flags may have set some."""
    recorded, hparams = config["hparams"], experiment.hparams
    now, known = fields.plain(hparams), fields.of(hparams)
    changes = {
        name: fields.restored(recorded[name], field)
        for name, field in known.items()
        if name in recorded and repr(recorded[name]) != repr(now[name])
    }
    if isinstance(config["num_steps"], int):
        experiment = experiment.replace(num_steps=config["num_steps"])
    return experiment.replace(
        hparams=fields.replace(hparams, changes),
        x64=config["x64"],
        every=config["every"],
    )
