"""How far a run is, seen from another process."""

import contextlib
import dataclasses
import math
from pathlib import Path
import time
from typing import Literal, NamedTuple

import numpy as np

from jaxlr.lab import plot, progress, report, results, store
from jaxlr.lab.gate import Gate
from jaxlr.lab.manifest import Chunk, chunks


@dataclasses.dataclass(frozen=True)
class Sight:
    """What is seen of a run at one look.

    Attributes:
        run: The run directory.
        experiment: Name of the experiment.
        state: Whether a process is at it, or has left it unfinished, or is done.
        lanes_done: Number of lanes (a cell with a seed) that are kept, fractions
            included.
        num_lanes: Number of lanes in all.
        chunks_done: Number of chunks that are finished.
        num_chunks: Number of chunks in all.
        seconds_left: An estimate of the time that the run still takes; None if nothing
            has been kept since its process began, or none is at it.
        medians: Metric -> median of its last value over the lanes that have one.
    """

    run: str
    experiment: str
    state: Literal["running", "stopped", "complete"]
    lanes_done: float
    num_lanes: int
    chunks_done: int
    num_chunks: int
    seconds_left: float | None
    medians: dict[str, float]

    def line(self) -> str:
        """All of it in one line."""
        parts = [f"{self.state}: {int(self.lanes_done)} of {self.num_lanes} lanes"]
        if self.seconds_left is not None:
            parts.append(f"about {progress.clock(self.seconds_left)} left")
        parts += [f"{name} {value:.4g}" for name, value in self.medians.items()]
        return ", ".join(parts)

    def table(self) -> report.Sheet:
        """All of it as a table."""
        rows: list[tuple[str, str]] = [
            ("state", self.state),
            ("lanes", f"{self.lanes_done:.1f} of {self.num_lanes}"),
            ("chunks", f"{self.chunks_done} of {self.num_chunks}"),
        ]
        if self.seconds_left is not None:
            rows.append(("left", f"about {progress.clock(self.seconds_left)}"))
        rows += [(name, f"{value:.4g}") for name, value in self.medians.items()]
        return report.table(("", "median of the lanes"), rows, self.experiment)


class _Part(NamedTuple):
    """What is known of one chunk: of which file, how much, the metrics' last values."""

    stamp: tuple[int, ...]
    share: float
    ends: dict[str, np.ndarray]


class Watched:
    """A run directory that is looked at again and again; each file is read once.

    Args:
        directory: The run directory.
    """

    def __init__(self, directory: Path):
        self.directory = directory
        self._parts: dict[Chunk, _Part] = {}
        self._first: tuple[int, float] | None = None

    def look(self) -> Sight:
        """What there is to see by now.

        Raises:
            RunDirectoryError: If there is no run, or a file of it is corrupt.
        """
        return store.settled(self.directory, self._look)

    def _look(self) -> Sight:
        # Asked first: a run that ends between the two is complete, not stopped.
        is_in_use = store.is_in_use(self.directory)
        manifest = store.read_manifest(self.directory)
        gate, every = Gate(manifest, self.directory), chunks(manifest)
        self._parts = {chunk: self._part(gate, chunk) for chunk in every}
        num_lanes = sum(math.prod(chunk.lanes) for chunk in every)
        done = {c: x.share * math.prod(c.lanes) for c, x in self._parts.items()}
        state = "running" if is_in_use else "stopped"
        state = "complete" if manifest["is_complete"] else state
        return Sight(
            run=str(self.directory),
            experiment=manifest["experiment"],
            state=state,
            lanes_done=sum(done.values()),
            num_lanes=num_lanes,
            chunks_done=len(every) - len(gate.missing()),
            num_chunks=len(every),
            seconds_left=self._left(done, num_lanes) if state == "running" else None,
            medians=self._medians(),
        )

    def _left(self, lanes: dict[Chunk, float], num_lanes: int) -> float | None:
        """Seconds that the rest takes at the pace of what has been written."""
        begun = (store.stamp(self.directory / ".owner") or (0, time.time_ns()))[1]
        written = {c: max(begun, *x.stamp[1:], 0) for c, x in self._parts.items()}
        newest, done = max(written.values()), sum(lanes.values())
        before = sum(n for c, n in lanes.items() if written[c] == begun)
        self._first = self._first or (newest, done)
        if done > self._first[1]:  # a chunk in flight may have begun long ago
            begun, before = self._first
        if done <= before:
            return None
        pace = (newest - begun) / (done - before)
        return max(newest + pace * (num_lanes - done) - time.time_ns(), 0) / 1e9

    def _part(self, gate: Gate, chunk: Chunk) -> _Part:
        stamp = gate.stamp(chunk)
        known = self._parts.get(chunk)
        if known is not None and known.stamp == stamp:
            return known
        arrays, share = gate.so_far(chunk) or ({}, 0.0)
        ends = {}
        for name, metric in results.metrics_of(gate.manifest, chunk).items():
            array = arrays.get(name, np.empty(0))
            if metric.dims == ("step",) and array.size:
                array = array[..., -1]
            if metric.dims in ((), ("step",)) and array.dtype.kind in "biufc":
                ends[name] = plot.numbers(array).reshape(-1)
        return _Part(stamp, share, ends)

    def _medians(self) -> dict[str, float]:
        found: dict[str, list[np.ndarray]] = {}
        for part in self._parts.values():
            for name, values in part.ends.items():
                found.setdefault(name, []).append(values[np.isfinite(values)])
        columns = {name: np.concatenate(parts) for name, parts in found.items()}
        return {name: float(np.median(x)) for name, x in columns.items() if x.size}


def follow(watched: Watched, interval: float) -> Sight:
    """Show a run until no process is at it: a live table, or lines in a pipe.

    Args:
        watched: The run.
        interval: Seconds between two looks.

    Returns:
        The last that was seen.
    """
    from rich.live import Live

    console = report.console()
    live = Live(console=console, auto_refresh=False) if console.is_terminal else None
    with live or contextlib.nullcontext():
        while True:
            sight = watched.look()
            if live is None:
                console.print(report.literal(sight.line()), soft_wrap=True)
            else:
                live.update(sight.table(), refresh=True)
            if sight.state != "running":
                return sight
            time.sleep(interval)
