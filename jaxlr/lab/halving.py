"""Successive halving: all cells for a few steps, the best of them for more.

K. Jamieson, A. Talwalkar, Non-stochastic best arm identification and hyperparameter
optimization, AISTATS 2016, arXiv:1502.07943; with the rungs of L. Li et al., Hyperband,
JMLR 2018, arXiv:1603.06560.

    manifest-halving.json            as of a sweep; written before anything runs
    rungs/r00-g000-c00000.npz        states of one call's lanes, at the end of the rung
                                     or in flight
"""

from collections.abc import Callable, Sequence
import contextlib
import dataclasses
import json
import math
from pathlib import Path
from typing import Any, TYPE_CHECKING

import numpy as np

from jaxlr.core import checks, loop
from jaxlr.core.types import Experiment
from jaxlr.lab import (
    chunks,
    fields,
    grid,
    manifest as manifests,
    memory,
    picking,
    planning,
    provenance,
    results,
    signals,
    store,
)
from jaxlr.lab.compiled import Compiled
from jaxlr.lab.progress import Progress
from jaxlr.lab.request import Request


if TYPE_CHECKING:
    import xarray as xr

MANIFEST = "manifest-halving.json"


def successive_halving(
    experiment: Experiment,
    axes: Any = None,
    *,
    metric: str,
    is_maximized: bool = False,
    eta: int = 3,
    num_rungs: int | None = None,
    num_seeds: int | None = None,
    seed: int = 0,
    directory: str | Path | None = None,
    resume: bool | str = False,
) -> "xr.Dataset":
    """Run all cells for a few steps, and only the best of them for longer.

    On rung k of K, cells run until `num_steps / eta**(K - 1 - k)` steps are taken; then
    the best `1 / eta**(k + 1)` of all cells go on from their states to the next rung,
    the last of which ends at `num_steps` (Jamieson and Talwalkar, arXiv:1502.07943). No
    step is taken twice: a cell that reaches the end has the bits that it has in
    `sweep(..., chunk=results.attrs["chunk"])` on the same devices.

        found = lab.successive_halving(
            EXPERIMENT, {"alpha": LogUniform(1e-3, 1.0, num=81)}, metric="loss"
        )
        print(lab.best(found, "loss").to_dataframe().head())

    Args:
        experiment: The experiment to run: one with a `solver`.
        axes: The axes to sweep, as for `sweep`; None for the experiment's own.
        metric: Name of the metric by which cells are chosen: real numbers, one a step.
            A cell's score is the median over its seeds of the last value kept on the
            rung; a seed with the score NaN is worse than any other. Of equal cells the
            earlier ones, in the order of the axes, go on.
        is_maximized: Whether large values are the better ones.
        eta: One cell in this many goes on to the next rung; at least 2.
        num_rungs: Number of rungs; None for as many as leave a cell, and a step.
        num_seeds: Number of seeds of every cell; None for the experiment's own.
        seed: Seed of the root key.
        directory: Directory in which states are kept, at the end of each rung and every
            `checkpoint_seconds`; None keeps nothing.
        resume: Whether to go on with what is in `directory`, or start there if nothing
            is; `"force"` goes on even if source, configuration or versions changed.

    Returns:
        What `sweep` returns, NaN where a cell was stopped; also `rung`, the last rung
        of every cell, and `stopped_at`, the steps it had taken when it was stopped, -1
        where it was not. `attrs["rungs"]` is a list as JSON: steps, number of cells,
        the score of the worst that went on, and how many that did not have the same.

    Raises:
        ValueError: On misuse, naming argument, value and what is allowed.
        RunDirectoryError: If the directory cannot be used; the message says what to do.
        KeyboardInterrupt: On Ctrl-C or SIGTERM, after a segment, which is kept.
    """
    root = planning.place(directory, resume)
    checks.count("eta", eta, least=2)
    request = Request.make(experiment, axes, num_seeds=num_seeds, seed=seed)
    rungs = _rungs(request, eta, num_rungs)
    # The work of all rungs is alike, so narrow programs cost little where a wide one
    # would take as long, and elsewhere a rung with few cells must not run many.
    fewest = math.ceil(planning.MIN_LANES / request.num_seeds) * len(request.devices)
    chunk = max(rungs[-1][1], fewest)
    compiled = Compiled(dataclasses.replace(request, chunk=chunk))
    _check_metric(compiled, metric)
    asked = {
        "metric": metric,
        "is_maximized": is_maximized,
        "steps": [steps for steps, _ in rungs],
        "num_cells": [num_cells for _, num_cells in rungs],
    }
    with contextlib.ExitStack() as stack:
        if root is not None:
            stack.enter_context(store.lock(root))
        run = _Halving(compiled, _manifest(compiled, root, resume, asked), root)
        try:
            run.all()
        except KeyboardInterrupt as e:
            how = "Nothing was kept: it had no `directory`."
            if root is not None:
                how = f"Go on with directory={str(root)!r}, resume=True."
            raise KeyboardInterrupt(f"Stopped. {how}") from e
    return run.dataset()


def _rungs(request: Request, eta: int, num_rungs: int | None) -> list[tuple[int, int]]:
    """Steps at the end, and number of cells, of every rung."""
    experiment = request.experiment
    if experiment.solver is None:
        raise ValueError(
            "`experiment` must have a `solver` and `num_steps`: only a long run can be "
            "stopped, and go on from its state."
        )
    found = set()
    for group in request.groups:
        first = {name: values[0].item() for name, values in group.traced.items()}
        hparams = fields.replace(experiment.hparams, group.static | first)
        found.add(loop.num_steps_of(experiment, hparams))
    if len(found) > 1:
        raise ValueError(
            f"Cells are compared at equal steps: `num_steps` must be equal in all of "
            f"them, got {sorted(found)}."
        )
    num_steps, num_cells = found.pop(), request.num_cells
    most = 1
    while eta**most <= min(num_steps, num_cells):
        most += 1
    if num_rungs is not None:
        most = checks.count("num_rungs", num_rungs, most=most)
    return [
        (math.ceil(num_steps / eta ** (most - 1 - k)), num_cells // eta**k)
        for k in range(most)
    ]


def _check_metric(compiled: Compiled, metric: str) -> None:
    for g in range(len(compiled.request.groups)):
        metrics = compiled.lane(g).metrics
        checks.choice("metric", metric, metrics)
        found = metrics[metric]
        if len(found.shape) > 1 or np.dtype(found.dtype).kind not in "biuf":
            raise ValueError(
                f"`metric` must be one real number a step; {metric!r} is of shape "
                f"{found.shape[1:]} and type {found.dtype} in each."
            )


def _manifest(
    compiled: Compiled, root: Path | None, resume: bool | str, asked: dict[str, Any]
) -> dict[str, Any]:
    """What is recorded, if the run goes on, else what is from now on."""

    def made(cuts):
        manifest = provenance.manifest(compiled, cuts)
        manifest["config"]["halving"] = asked
        return json.loads(json.dumps(manifest))

    if root is None or not _is_begun(root):
        manifest = made(planning.fit(compiled)[0])
    else:
        if not resume:
            raise store.RunDirectoryError(
                f"{root} already holds a run. Go on with it (resume=True), or use "
                "another directory."
            )
        manifest = store.read_manifest(root, MANIFEST)
        now = made([{}] * len(compiled.request.groups))
        forced = store.refuse_changes(root, manifest, now, resume == "force")
        if not forced:
            return manifest
        manifest.setdefault("forced", []).append(forced)
    if root is not None:
        store.write_json(root / MANIFEST, manifest)
    return manifest


def _is_begun(root: Path) -> bool:
    """Whether successive halving was begun there, and nothing else."""
    if (root / MANIFEST).exists():
        return True
    (root / f"{MANIFEST}.tmp").unlink(missing_ok=True)
    if store.is_run(root):
        raise store.RunDirectoryError(f"{root} holds a sweep; use another directory.")
    return False


class _Halving:
    """Successive halving under way: the states of all lanes, and who is left."""

    def __init__(self, compiled: Compiled, manifest: dict[str, Any], root: Path | None):
        self.compiled, self.request = compiled, compiled.request
        self.manifest, self.root = manifest, root
        asked = manifest["config"]["halving"]
        self.metric, self.is_maximized = asked["metric"], asked["is_maximized"]
        self.rungs = list(zip(asked["steps"], asked["num_cells"], strict=True))
        self.cuts: list[dict[str, Any]] = []
        self.left = np.arange(self.request.num_cells)
        self.rung = np.zeros(self.request.num_cells, int)
        self.seeds = 0, self.request.num_seeds
        self.states = self._empty()

    def _empty(self) -> list[list[np.ndarray]]:
        """For each group the arrays of a packed carry, of shape (seed, cell, ...)."""
        shapes = [
            ((self.seeds[1], len(group.cells), *x.shape), x.dtype)
            for g, group in enumerate(self.request.groups)
            for x in self.compiled.lane(g).state or []
        ]
        needed = sum(math.prod(shape) * dtype.itemsize for shape, dtype in shapes)
        free = memory.host_bytes()
        if needed > free * memory.SHARE:
            raise ValueError(
                f"The states of all cells need {memory.format_bytes(needed)} of the "
                f"host's {memory.format_bytes(free)}. Halve fewer cells or seeds."
            )
        made = iter([np.zeros(*described) for described in shapes])
        groups = range(len(self.request.groups))
        return [[next(made) for _ in self.compiled.lane(g).state or []] for g in groups]

    def all(self) -> None:
        """Climb the rungs."""
        starts = [0, *(steps for steps, _ in self.rungs)]
        works = [
            num_cells * (steps - start) / self.rungs[-1][0]
            for start, (steps, num_cells) in zip(starts, self.rungs, strict=False)
        ]
        num_lanes = round(sum(works) * self.seeds[1])
        with Progress(num_lanes) as progress, signals.heard() as check:

            def advance(lanes):
                progress.advance(lanes)
                check()

            for k, (steps, num_cells) in enumerate(self.rungs):
                if k:
                    self._choose(starts[k], num_cells)
                self.rung[self.left] = k
                for g, group in enumerate(self.request.groups):
                    cells = np.flatnonzero(np.isin(group.cells, self.left))
                    for i, part in enumerate(_calls(cells, self._width(g))):
                        name = f"r{k:02d}-g{g:03d}-c{i:05d}.npz"
                        times = starts[k], steps
                        self._go_on(g, part, times, name, progress, advance)

    def _width(self, group: int) -> int:
        """Number of cells of a call, on all devices."""
        return self.manifest["layout"][group]["chunk"]

    def _go_on(
        self,
        group: int,
        cells: np.ndarray,
        steps: tuple[int, int],
        name: str,
        progress: Progress,
        advance: Callable[[float], None],
    ) -> None:
        """Take some cells of a group to the end of the rung, in one call's lanes."""
        places = cells % self._width(group)
        filled = np.full(self._width(group), cells[0])
        filled[places] = cells
        block, config = self.manifest["layout"][group], self.manifest["config"]
        identity = {
            "run": self.manifest["run"],
            "seed": config["seed"],
            "seeds": list(self.seeds),
            "static": block["static"],
            "width": block["width"],
            "steps": list(steps),
            "cells": manifests.fields_of(
                config["axes"], self.request.groups[group].cells[filled].tolist()
            ),
        }
        with progress.compiling():
            program = self.compiled.program(group, block["width"])
        found = chunks.go_on(
            self.request,
            program,
            chunks.pad(self.request, program, group, filled),
            [x[:, filled] for x in self.states[group]],
            seeds=self.seeds,
            steps=steps,
            checkpoint=self.root
            and store.Stored(self.root / "rungs" / name, identity, is_named=True),
            advance=lambda share: advance(share * len(cells) * self.seeds[1]),
        )
        for state, new in zip(self.states[group], found, strict=True):
            state[:, cells] = new[:, places]

    def _choose(self, steps: int, num_cells: int) -> None:
        """Leave the best cells after so many steps."""
        score = np.empty(self.request.num_cells)
        row = (steps - 1) // self.request.experiment.every
        for g, group in enumerate(self.request.groups):
            arrays = chunks.metrics_of(self.compiled.lane(g), self.states[g])
            seeds = arrays[self.metric][:, :, row].T.astype(float)
            score[group.cells] = picking.of_cells(seeds, self.is_maximized, "median")
        score = score[self.left]
        order = picking.ranked(score, self.is_maximized)
        cut = score[order[num_cells - 1]]
        num_tied = int((score[order[num_cells:]] == cut).sum())
        self.cuts.append({"score": cut, "num_tied": num_tied})
        self.left = np.sort(self.left[order[:num_cells]])

    def dataset(self) -> "xr.Dataset":
        """The labelled results, NaN from where cells were stopped."""
        ends = np.asarray([steps for steps, _ in self.rungs])[self.rung]
        is_stopped = ends < ends.max()
        every = self.request.experiment.every
        found = results.Results(self.manifest, has_gaps=bool(is_stopped.any()))
        for g, group in enumerate(self.request.groups):
            chunk = manifests.Chunk(g, 0, 0, len(group.cells), self.seeds)
            lane = self.compiled.lane(g)
            found.insert(chunk, chunks.metrics_of(lane, self.states[g]))
        is_ended = found.arrays["ended_at"] >= 0  # of these all later values are known
        for name, array in found.arrays.items():
            if name not in manifests.COUNTERS:
                is_after = np.arange(array.shape[2]) * every >= ends[:, None, None]
                array[is_after & ~is_ended[:, :, None]] = np.nan
        names = [dim.name for dim in self.request.dims]
        counts = {
            "rung": (self.rung, "Last rung"),
            "stopped_at": (
                np.where(is_stopped, ends, -1),
                "Steps taken when the cell was stopped; -1: it was not",
            ),
        }
        shape = grid.shape(self.request.dims)
        dataset = found.dataset().assign(
            {
                name: (names, values.reshape(shape), {"long_name": text})
                for name, (values, text) in counts.items()
            }
        )
        report = [
            {"num_steps": steps, "num_cells": num_cells} | cut
            for (steps, num_cells), cut in zip(
                self.rungs, [*self.cuts, {}], strict=True
            )
        ]
        width = max(map(self._width, range(len(self.states))))
        attrs = {"rungs": json.dumps(report), "chunk": width, "is_complete": 1}
        return dataset.assign_attrs(attrs)


def _calls(cells: np.ndarray, width: int) -> Sequence[np.ndarray]:
    """The cells of each call, every one in the place that it has in a sweep.

    Bits may depend on where in the program a lane lies; cells that share a place go
    into different calls.
    """
    places = cells % width
    order = np.argsort(places, kind="stable")
    ordered = places[order]
    turn = np.empty(len(cells), int)
    turn[order] = np.arange(len(cells)) - np.searchsorted(ordered, ordered)
    return [cells[turn == i] for i in range(turn.max(initial=-1) + 1)]
