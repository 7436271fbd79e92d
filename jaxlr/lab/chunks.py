"""Run one chunk: all seeds of some cells of one group, closed or in segments."""

from collections.abc import Callable, Sequence
import dataclasses
import math
import time
from typing import Any

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


def run(
    request: Request,
    program: Program,
    chunk: Chunk,
    *,
    checkpoint: Stored | None = None,
    advance: Callable[[float], Any] = lambda lanes: None,
    on_segment: Callable[[dict[str, np.ndarray]], Any] | None = None,
) -> dict[str, np.ndarray]:
    """All metrics of a chunk, leaves (seed, cell, ...), and its lanes' counters.

    Args:
        request: The sweep that the chunk is part of.
        program: Program of the group; where it is narrower than the chunk, it is called
            more than once.
        chunk: The cells to run.
        checkpoint: Where a long run keeps its state; the run goes on from what is
            there. None keeps nothing.
        advance: Called with the number of lanes that have been finished since its last
            call, fractions included.
        on_segment: Called after every segment of a long run with that of a checkpoint
            which the metrics so far are made of; if it stops the run by a
            KeyboardInterrupt, the state is kept.
    """
    cells = np.arange(chunk.start, chunk.stop)
    parts = [
        pad(request, program, chunk.group, cells[start : start + program.num_cells])
        for start in range(0, len(cells), program.num_cells)
    ]
    return run_lanes(
        request,
        program,
        parts,
        num_cells=len(cells),
        seeds=chunk.seeds,
        checkpoint=checkpoint,
        advance=lambda share: advance(share * math.prod(chunk.lanes)),
        on_segment=on_segment,
    )


def pad(
    request: Request, program: Program, group: int, cells: np.ndarray
) -> dict[str, np.ndarray]:
    """The traced fields of some cells, the last repeated up to the program's width."""
    index = np.minimum(np.arange(program.num_cells), len(cells) - 1)
    traced = request.groups[group].traced
    dtypes = program.lane.dtypes
    columns = {name: traced[name][cells[index]].astype(dtypes[name]) for name in traced}
    return columns | {LANE: np.arange(program.num_cells, dtype=dtypes[LANE])}


def run_lanes(
    request: Request,
    program: Program,
    parts: Sequence[dict[str, np.ndarray]],
    *,
    num_cells: int,
    seeds: tuple[int, int],
    checkpoint: Stored | None = None,
    advance: Callable[[float], Any] = lambda share: None,
    on_segment: Callable[[dict[str, np.ndarray]], Any] | None = None,
) -> dict[str, np.ndarray]:
    """A call of a closed program for every part, or all segments of a long one.

    Args:
        request: The sweep that the lanes are part of.
        program: Compiled program, for as many cells as there are in each part.
        parts: Traced fields of each call: name -> values of shape (cells,).
        num_cells: Number of cells to return; those after them are padding.
        seeds: Index of the first seed, and that after the last.
        checkpoint: Where a long run keeps its state; None keeps nothing.
        advance: Called with the share of the lanes' whole run that has been done since
            its last call.
        on_segment: As for `run`.
    """
    lane = program.lane
    given = np.uint32(request.seed), np.arange(*seeds, dtype=np.int32)
    with compat.x64(request.experiment.x64):
        if lane.state is not None:
            starts = [program.initial_state(len(given[1])) for _ in parts]
            steps = 0, lane.num_steps
            long = _Long(
                request, program, given, parts, num_cells, checkpoint, steps, starts
            )
            long.run(advance, on_segment)
            return metrics_of(lane, _joined(list(map(_fetch, long.states)), num_cells))
        outs = []
        for values in parts:
            outs.append(patiently(lambda v=values: _fetch(program.call(*given, v))))
            advance(1 / len(parts))
    arrays = dict(zip(lane.metrics, _joined(outs, num_cells), strict=True))
    counts = results.diverged_at(lane.metrics, arrays, lane.every)
    return arrays | {"diverged_at": counts}


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
        program: Compiled program, for as many cells as there are.
        values: Traced fields: name -> values of shape (cells,).
        state: Arrays of the packed carry, of shape (seed, cell, ...).
        seeds: Index of the first seed, and that after the last.
        steps: The first step to take, and that after the last.
        checkpoint: Where the state is kept on the way and at the end; what is there
            already is gone on from. None keeps nothing.
        advance: As for `run_lanes`.
    """
    given = np.uint32(request.seed), np.arange(*seeds, dtype=np.int32)
    with compat.x64(request.experiment.x64):
        num_cells = program.num_cells
        long = _Long(
            request, program, given, [values], num_cells, checkpoint, steps, [state]
        )
        is_new = long.t < steps[1]
        long.run(advance)
        if is_new:
            long.save()
        return _fetch(long.states[0])


def metrics_of(lane: Lane, state: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
    """All metrics and counters of a packed carry, leaves (seed, cell, ...)."""
    named = dict(zip(lane.state_names, state, strict=True))
    return results.of_carry(lane.metrics, named, lane.every, lane.num_steps)


def _joined(parts: Sequence[Sequence[np.ndarray]], num_cells: int) -> list[np.ndarray]:
    """The arrays of all parts side by side, without the padding."""
    columns = zip(*parts, strict=True)
    wholes = (c[0] if len(c) == 1 else np.concatenate(c, axis=1) for c in columns)
    return [x[:, :num_cells] for x in wholes]


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
    given: tuple[np.uint32, np.ndarray]
    parts: Sequence[dict[str, np.ndarray]]
    num_cells: int
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
        for i, (values, state) in enumerate(zip(self.parts, self.states, strict=True)):
            state = self.program.call(*self.given, values, state, times)
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
        leaves = _joined(parts, self.num_cells)
        return dict(zip(where, leaves, strict=True)) | {
            "t": np.asarray(self.t, np.int32)
        }

    def _restore(self, checkpoint: Stored) -> None:
        """Step and state from a checkpoint, padded as the program is."""
        saved = checkpoint.read()
        t = saved.pop("t", None)
        leaves = list(saved.values())
        lead = len(self.given[1]), self.num_cells
        found = [(name, x.shape[2:], x.dtype) for name, x in saved.items()]
        pairs = zip(self.lane.state_names, self.lane.state or [], strict=True)
        wanted = [(name, x.shape, x.dtype) for name, x in pairs]
        first, last = max(self.steps[0], 1), self.steps[1]
        if t is None or t.shape or not first <= t <= last or found != wanted:
            raise checkpoint.refused("it holds the state of another solver")
        # Format 1 kept the padding too.
        if any(x.shape[0] != lead[0] or x.shape[1] < lead[1] for x in leaves):
            raise checkpoint.refused(f"it does not hold the states of {lead} lanes")
        self.t = int(t)
        width = self.program.num_cells
        for i in range(len(self.parts)):  # as `pad` does
            lanes = np.minimum(i * width + np.arange(width), lead[1] - 1)
            self.states[i] = [x[:, lanes] for x in leaves]
