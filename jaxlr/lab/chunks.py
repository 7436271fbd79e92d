"""Run one chunk: all seeds of some cells of one group, closed or in segments."""

from collections.abc import Callable, Sequence
from pathlib import Path
import time
from typing import Any

import jax
import numpy as np

from jaxlr.core import compat
from jaxlr.lab import results, store
from jaxlr.lab.lane import LANE
from jaxlr.lab.program import Program
from jaxlr.lab.request import Request
from jaxlr.lab.store import Chunk


SEGMENT_SECONDS = 1.0  # of a long run: how often its progress shows
PAUSES = (0.1, 1.0)  # seconds before a chunk for which memory was short is tried again


def run(
    request: Request,
    program: Program,
    chunk: Chunk,
    *,
    checkpoint: Path | None = None,
    advance: Callable[[float], Any] = lambda lanes: None,
) -> dict[str, np.ndarray]:
    """All metrics of a chunk, leaves (seed, cell, ...), and its lanes' counters.

    Args:
        request: The sweep that the chunk is part of.
        program: Program of the group; where it is narrower than the chunk, it is called
            more than once.
        chunk: The cells to run.
        checkpoint: File in which a long run keeps its state; the run goes on from what
            is there. None keeps nothing.
        advance: Called with the number of lanes that have been finished since its last
            call, fractions included.
    """
    parts = []
    is_whole = chunk.stop - chunk.start <= program.num_cells
    for start in range(chunk.start, chunk.stop, program.num_cells):
        cells = np.arange(start, min(start + program.num_cells, chunk.stop))
        lanes = len(cells) * request.num_seeds
        part = run_lanes(
            request,
            program,
            pad(request, program, chunk.group, cells),
            checkpoint=checkpoint if is_whole else None,
            advance=lambda share, lanes=lanes: advance(share * lanes),
        )
        parts.append({name: x[:, : len(cells)] for name, x in part.items()})
    if len(parts) == 1:
        return parts[0]
    return {name: np.concatenate([p[name] for p in parts], 1) for name in parts[0]}


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
    values: dict[str, np.ndarray],
    *,
    checkpoint: Path | None = None,
    advance: Callable[[float], Any] = lambda share: None,
) -> dict[str, np.ndarray]:
    """One call of a closed program, or all segments of a long one; padding included.

    Args:
        request: The sweep that the lanes are part of.
        program: Compiled program, for as many cells as there are in `values`.
        values: Traced fields: name -> values of shape (cells,).
        checkpoint: File in which a long run keeps its state; None keeps nothing.
        advance: Called with the share of the lanes' whole run that has been done since
            its last call.
    """
    lane = program.lane
    seed = np.uint32(request.seed)
    indices = np.arange(request.num_seeds, dtype=np.int32)
    with compat.x64(request.experiment.x64):
        if lane.state is not None:
            return _segments(
                request, program, (seed, indices, values), checkpoint, advance
            )
        out = patiently(lambda: _fetch(program.call(seed, indices, values)))
    advance(1.0)
    arrays = dict(zip(lane.metrics, out, strict=True))
    counts = results.diverged_at(lane.metrics, arrays, lane.every)
    return arrays | {"diverged_at": counts}


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


def _segments(request, program, arguments, checkpoint, advance):
    lane = program.lane
    num_steps = lane.num_steps
    t, state = 0, program.initial_state(request.num_seeds)
    if checkpoint is not None and checkpoint.exists():
        t, state = _checkpointed(checkpoint, program)
        advance(t / num_steps)
    saved_at = time.perf_counter()
    length, pace = 1, 0.0
    while t < num_steps:
        begun = time.perf_counter()
        stop = min(t + length, num_steps)
        state = program.call(*arguments, state, (np.int32(t), np.int32(stop)))
        has_ended = bool((_fetch([lane.unpack(state).ended_at])[0] >= 0).all())
        seconds = time.perf_counter() - begun
        advance(((num_steps if has_ended else stop) - t) / num_steps)
        # A longer segment is right while it is short, or while its fixed cost shows.
        is_faster = (stop - t) / seconds > 1.1 * pace
        if seconds < SEGMENT_SECONDS / 2 or (
            is_faster and 2 * seconds < request.experiment.checkpoint_seconds
        ):
            length *= 2
        pace, t = (stop - t) / seconds, stop
        if has_ended:
            break
        is_due = time.perf_counter() - saved_at >= request.experiment.checkpoint_seconds
        if checkpoint is not None and is_due and t < num_steps:
            leaves = dict(zip(lane.state_names, _fetch(state), strict=True))
            store.write_arrays(checkpoint, leaves | {"t": np.int32(t)})
            saved_at = time.perf_counter()
    carry = lane.unpack(_fetch(state))
    curves, last = map(jax.tree.leaves, (carry.curves, carry.info))
    arrays = {}
    for name, curve, info in zip(lane.metrics, curves, last, strict=True):
        arrays[name] = curve[:, :, : lane.num_rows]
        # Ended lanes stand still.
        arrays[name][:, :, -(-t // lane.every) :] = info[:, :, None]
    counts = results.diverged_at(lane.metrics, arrays, lane.every)
    return arrays | {"ended_at": carry.ended_at, "diverged_at": counts}


def _checkpointed(path: Path, program: Program) -> tuple[int, list[np.ndarray]]:
    """Step and state that a checkpoint holds, padded as the program is."""
    saved = store.read_arrays(path)
    t = int(saved.pop("t"))
    names, leaves = list(saved), list(saved.values())
    found = [(x.shape[2:], x.dtype) for x in leaves]
    wanted = [(x.shape, x.dtype) for x in program.lane.state or []]
    if (names, found) != (program.lane.state_names, wanted):
        raise store.RunDirectoryError(
            f"{path} holds the state of another solver. Delete that one file and go on "
            "with resume (`--resume`): only its cells are computed again."
        )
    # As `pad` does; other devices than those that wrote it make another width.
    lanes = np.minimum(np.arange(program.num_cells), leaves[0].shape[1] - 1)
    return t, [x[:, lanes] for x in leaves]
