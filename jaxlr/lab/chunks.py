"""Run one chunk: seeds by cells of one compile group, closed or in segments.

A program computes a fixed number of seeds and cells at once. A chunk with more is run
in parts, one with fewer is padded: the bits of a lane depend on how wide its program
is, neither on its place in it nor on the other lanes.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
import dataclasses
import functools as ft
import math
import time
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxlr.core import compat
from jaxlr.lab import results, signals
from jaxlr.lab.lane import CURVES, ENDED_AT, INFO, LANE, Lane
from jaxlr.lab.manifest import Chunk
from jaxlr.lab.program import Program
from jaxlr.lab.request import Request
from jaxlr.lab.store import Stored


SEGMENT_SECONDS = 1.0  # of a long run: how often its progress shows
PAUSES = (0.1, 1.0)  # seconds before a chunk for which memory was short is tried again


@dataclasses.dataclass(frozen=True)
class Work:
    """The lanes of a chunk, and the program that computes them.

    Attributes:
        group: Index of their compile group.
        num_seeds: Number of seeds that the program computes at once.
        width: Number of cells that the program computes at once on a device.
        seeds: Index of the first seed, and that after the last.
        cells: Indices of the cells in the group, of shape (cells,).
    """

    group: int
    num_seeds: int
    width: int
    seeds: tuple[int, int]
    cells: np.ndarray

    @classmethod
    def of(cls, request: Request, manifest: Mapping[str, Any], chunk: Chunk) -> "Work":
        """What a chunk of a run is in a request of all the cells of the run."""
        block = manifest["layout"][chunk.block]
        group = request.group_of(block["static"])
        cells = np.asarray(block["cells"][chunk.start : chunk.stop])
        # A group's cells are in the order of their flat indices.
        cells = np.searchsorted(request.groups[group].cells, cells)
        return cls(group, block["num_seeds"], block["width"], chunk.seeds, cells)


class Part(NamedTuple):
    """The lanes of one call of a program.

    Attributes:
        where: Which of the work's seeds, and which of its cells.
        seeds: Indices of the seeds, as many as the program computes.
        values: Traced fields: name -> values of as many cells.
    """

    where: tuple[slice, slice]
    seeds: np.ndarray
    values: dict[str, np.ndarray]


def run(
    request: Request,
    program: Program,
    work: Work,
    *,
    checkpoint: Stored | None = None,
    advance: Callable[[float], Any] = lambda lanes: None,
    on_segment: Callable[[dict[str, np.ndarray]], Any] | None = None,
) -> dict[str, np.ndarray]:
    """All metrics of some lanes, leaves (seed, cell, ...), and the lanes' counters.

    A closed program is called for every part, a long one for every part and segment.

    Args:
        request: The sweep that the lanes are part of.
        program: The program that the work is for.
        work: The lanes.
        checkpoint: Where a long run keeps its state; the run goes on from what is
            there. None keeps nothing.
        advance: Called with the number of lanes that have been finished since its last
            call, fractions included.
        on_segment: Called after every segment of a long run with that of a checkpoint
            which the metrics so far are made of; if it stops the run by a
            KeyboardInterrupt, the state is kept.
    """
    lane, lanes = program.lane, (work.seeds[1] - work.seeds[0], len(work.cells))
    parts, total = list(_parts(request, program, work)), math.prod(lanes)
    with compat.x64(request.experiment.x64):
        if lane.state is not None:
            steps, starts = (
                (0, lane.num_steps),
                [program.initial_state() for _ in parts],
            )
            long = _Long(request, program, parts, lanes, checkpoint, steps, starts)
            long.run(lambda share: advance(share * total), on_segment)
            return metrics_of(lane, long.whole())
        outs, seed = [], np.uint32(request.seed)
        for _, seeds, values in parts:
            call = ft.partial(program.call, seed, seeds, values)
            outs.append(patiently(lambda call=call: _fetch(call())))
            advance(total / len(parts))
    wholes = _joined(parts, outs, lanes)
    arrays = dict(zip(lane.metrics, wholes, strict=True))
    counts = results.diverged_at(lane.metrics, arrays, lane.every)
    return arrays | {"diverged_at": counts}


def _parts(request: Request, program: Program, work: Work) -> Iterator[Part]:
    """The calls that compute some lanes, seeds outside."""
    seeds = np.arange(*work.seeds, dtype=np.int32)
    for s in range(0, len(seeds), program.num_seeds):
        rows = slice(s, min(s + program.num_seeds, len(seeds)))
        for c in range(0, len(work.cells), program.num_cells):
            columns = slice(c, min(c + program.num_cells, len(work.cells)))
            yield Part(
                (rows, columns),
                _padded(seeds[rows], program.num_seeds),
                pad(request, program, work.group, work.cells[columns]),
            )


def _padded(index: np.ndarray, length: int) -> np.ndarray:
    """An index with its last entry repeated up to a length."""
    return index[np.minimum(np.arange(length), len(index) - 1)]


def pad(
    request: Request, program: Program, group: int, cells: np.ndarray
) -> dict[str, np.ndarray]:
    """The traced fields of some cells, the last repeated up to the program's width."""
    index = _padded(cells, program.num_cells)
    traced = request.groups[group].traced
    dtypes = program.lane.dtypes
    columns = {name: traced[name][index].astype(dtypes[name]) for name in traced}
    return columns | {LANE: np.arange(program.num_cells, dtype=dtypes[LANE])}


def go_on(
    request: Request,
    program: Program,
    values: dict[str, np.ndarray],
    state: list[np.ndarray],
    *,
    seeds: tuple[int, int],
    steps: tuple[int, int],
    checkpoint: Stored | None = None,
    advance: Callable[[float], Any] = lambda share: None,
) -> list[np.ndarray]:
    """The state of a long run's lanes after some of its steps, from that before them.

    Args:
        request: The sweep that the lanes are part of.
        program: Compiled program, for as many seeds and cells as there are.
        values: Traced fields: name -> values of shape (cells,).
        state: Arrays of the packed carry, of shape (seed, cell, ...).
        seeds: Index of the first seed, and that after the last.
        steps: The first step to take, and that after the last.
        checkpoint: Where the state is kept on the way and at the end; what is there
            already is gone on from. None keeps nothing.
        advance: Called with the share of the lanes' whole run that has been done since
            its last call.
    """
    lanes = program.num_seeds, program.num_cells
    where = slice(0, lanes[0]), slice(0, lanes[1])
    part = Part(where, np.arange(*seeds, dtype=np.int32), values)
    with compat.x64(request.experiment.x64):
        long = _Long(request, program, [part], lanes, checkpoint, steps, [state])
        is_new = long.t < steps[1]
        long.run(advance)
        if is_new:
            long.save()
        return _fetch(long.states[0])


def metrics_of(lane: Lane, state: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
    """All metrics and counters of a packed carry, leaves (seed, cell, ...)."""
    named = dict(zip(lane.state_names, state, strict=True))
    return results.of_carry(lane.metrics, named, lane.every, lane.num_steps)


def _joined(
    parts: Sequence[Part], outs: Sequence[Sequence[np.ndarray]], lanes: tuple[int, int]
) -> list[np.ndarray]:
    """What the calls returned as arrays of all lanes, without the padding."""
    if len(parts) == 1:
        return [x[: lanes[0], : lanes[1]] for x in outs[0]]
    wholes = [np.empty((*lanes, *x.shape[2:]), x.dtype) for x in outs[0]]
    for part, arrays in zip(parts, outs, strict=True):
        own = tuple(slice(s.stop - s.start) for s in part.where)
        for whole, array in zip(wholes, arrays, strict=True):
            whole[part.where] = array[own]
    return wholes


def patiently(call: Callable[[], list[np.ndarray]]) -> list[np.ndarray]:
    """Call again where memory was short: the last chunk's may be returned late."""
    for pause in PAUSES:
        try:
            return call()
        except jax.errors.JaxRuntimeError as e:
            if "RESOURCE_EXHAUSTED" not in str(e):
                raise
            time.sleep(pause)
    return call()


def _fetch(arrays: Sequence[jax.Array | np.ndarray]) -> list[np.ndarray]:
    """Wait without blocking the interpreter, so that Ctrl-C is heard at once."""
    pause = 1e-4
    while not all(getattr(x, "is_ready", lambda: True)() for x in arrays):
        time.sleep(pause)
        pause = min(2 * pause, 0.01)
    return [np.array(x) for x in arrays]


@dataclasses.dataclass
class _Long:
    """A long run under way: all parts of a chunk, at one step, segment by segment."""

    request: Request
    program: Program
    parts: Sequence[Part]
    lanes: tuple[int, int]
    checkpoint: Stored | None
    steps: tuple[int, int]  # the first one, and that after the last
    states: list[Any]

    def __post_init__(self):
        self.lane, self.t = self.program.lane, self.steps[0]
        if self.checkpoint is not None and self.checkpoint.path.exists():
            self._restore(self.checkpoint)

    def run(
        self,
        advance: Callable[[float], Any],
        on_segment: Callable[[dict[str, np.ndarray]], Any] | None = None,
    ) -> None:
        """Take the steps; `states` is then that of the last."""
        num_steps, (first, last) = self.lane.num_steps, self.steps
        patience = self.request.experiment.checkpoint_seconds
        advance((self.t - first) / num_steps)
        length, pace, saved_at = 1, 0.0, time.perf_counter()
        try:
            while self.t < last:
                t, begun = self.t, time.perf_counter()
                stop = min(t + length, last)
                with signals.held():  # a state in the midst of a segment is no state
                    has_ended = self._advance(stop)
                seconds = time.perf_counter() - begun
                if has_ended:  # later ones change nothing
                    self.t = last
                advance((self.t - t) / num_steps)
                if on_segment is not None:
                    on_segment(self._named((CURVES, INFO, ENDED_AT)))
                # A longer segment is right while it is short, or while its fixed cost
                # shows.
                is_faster = (stop - t) / seconds > 1.1 * pace
                if seconds < SEGMENT_SECONDS / 2 or (
                    is_faster and 2 * seconds < patience
                ):
                    length *= 2
                pace = (stop - t) / seconds
                is_due = time.perf_counter() - saved_at >= patience
                if is_due and self.t < last:
                    self.save()
                    saved_at = time.perf_counter()
        except KeyboardInterrupt:
            self.save()
            raise

    def _advance(self, stop: int) -> bool:
        """Take all parts to step `stop`; whether all lanes have ended."""
        times, unpack, ended = (np.int32(self.t), np.int32(stop)), self.lane.unpack, []
        seed = np.uint32(self.request.seed)
        for i, (part, state) in enumerate(zip(self.parts, self.states, strict=True)):
            state = self.program.call(seed, part.seeds, part.values, state, times)
            ended.append((_fetch([unpack(state).ended_at])[0] >= 0).all())
            # The device has room for one part.
            self.states[i] = state if len(self.parts) == 1 else _fetch(state)
        self.t = stop
        return all(ended)

    def save(self) -> None:
        """Keep the state, where there is a place for it."""
        if self.checkpoint is not None and self.t:
            self.checkpoint.write(self._named(("",)))

    def _named(self, begins: tuple[str, ...]) -> dict[str, np.ndarray]:
        """The arrays of the state whose names begin like one of these, and the step."""
        names = enumerate(self.lane.state_names)
        where = {name: i for i, name in names if name.startswith(begins)}
        parts = [_fetch([state[i] for i in where.values()]) for state in self.states]
        leaves = _joined(self.parts, parts, self.lanes)
        return dict(zip(where, leaves, strict=True)) | {
            "t": np.asarray(self.t, np.int32)
        }

    def whole(self) -> list[np.ndarray]:
        """The state of all lanes."""
        return _joined(self.parts, list(map(_fetch, self.states)), self.lanes)

    def _restore(self, checkpoint: Stored) -> None:
        """Step and state from a checkpoint, padded as the program is."""
        saved = checkpoint.read()
        t = saved.pop("t", None)
        leaves = list(saved.values())
        found = [(name, x.shape[2:], x.dtype) for name, x in saved.items()]
        pairs = zip(self.lane.state_names, self.lane.state or [], strict=True)
        wanted = [(name, x.shape, x.dtype) for name, x in pairs]
        first, last = max(self.steps[0], 1), self.steps[1]
        if t is None or t.shape or not first <= t <= last or found != wanted:
            raise checkpoint.refused("it holds the state of another solver")
        # Format 1 kept the padding too.
        num_seeds, num_cells = self.lanes
        if any(x.shape[0] != num_seeds or x.shape[1] < num_cells for x in leaves):
            raise checkpoint.refused(
                f"it does not hold the states of {self.lanes} lanes"
            )
        self.t = int(t)
        sizes = self.program.num_seeds, self.program.num_cells
        for i, part in enumerate(self.parts):
            pairs = zip(part.where, sizes, strict=True)
            lanes = [_padded(np.arange(s.start, s.stop), n) for s, n in pairs]
            self.states[i] = [x[np.ix_(*lanes)] for x in leaves]
