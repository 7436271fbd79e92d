"""The sweep: plan, run chunk by chunk, keep what is finished, label the results."""

from collections.abc import Callable, Generator, Mapping, Sequence
import contextlib
import json
import math
from pathlib import Path
import secrets
from typing import Any, TYPE_CHECKING

import jax
import numpy as np

from jaxlr.core.types import Experiment
from jaxlr.lab import chunks, judging, planning, provenance, signals, store, tasks
from jaxlr.lab.compiled import Compiled
from jaxlr.lab.gate import Gate
from jaxlr.lab.hooks import ending, Hooks
from jaxlr.lab.manifest import brief, fields_of, of_group
from jaxlr.lab.progress import Progress
from jaxlr.lab.request import Request


if TYPE_CHECKING:
    import xarray as xr

# Directory -> the run that this process swept there, and its experiment.
SWEPT: dict[Path, tuple[str | None, Experiment]] = {}


def swept(directory: Path, manifest: Mapping[str, Any]) -> Experiment | None:
    """The experiment of a run, if this process swept it."""
    run, experiment = SWEPT.get(directory.resolve(), (None, None))
    return experiment if run == manifest["run"] else None


def sweep(
    experiment: Experiment,
    axes: Any = None,
    *,
    num_seeds: int | None = None,
    seed: int = 0,
    directory: str | Path | None = None,
    resume: bool | str = False,
    chunk: int | None = None,
    devices: Sequence[jax.Device] | None = None,
    backend: str = "shard_map",
    executor: Any = None,
    lanes: tuple[int, int] | None = None,
    on_chunk: Callable[["xr.Dataset"], Any] | None = None,
    on_segment: Callable[["xr.Dataset", int], Any] | None = None,
) -> "xr.Dataset":
    """Run an experiment at every cell of its axes, with every seed.

    Fields of HParams that are static or strings are compiled once a value; all others
    are one `vmap`. Seed i is the key `fold_in(key(seed), i)` in every cell. A lane
    that diverges is data: `diverged_at` is its first kept step with a metric not
    finite. A long run's lane ends where its state is not finite, whatever its metrics.

    Hooks hear of results as they come. What one raises stops the sweep as Ctrl-C does,
    with what is finished kept, a long run's state too, and is raised as it is.

    Args:
        experiment: The experiment to run.
        axes: Dict of a field's name -> its values, or a sequence of `Axis`. A tuple of
            names moves several fields together; `Uniform` and `LogUniform` draw the
            values. None for the experiment's own axes.
        num_seeds: Number of seeds of every cell; None for the experiment's own.
        seed: Seed of the root key.
        directory: Directory in which finished chunks are kept; None keeps nothing.
        resume: Whether to go on with what is in `directory`, or start there if nothing
            is; `"force"` goes on even if computation, configuration or versions
            changed. A source that was edited and computes what it did is noted.
            `"grow"` goes on with a finished or unfinished run, and may ask for more:
            more seeds, more values of axes in any order, axes of static fields that had
            a value among theirs. What exists is kept; only new lanes are run, as many
            at once as those of the run (a compile group that is new to it has cells at
            once of its own). If the run has `lanes` given, it then is bit by bit what
            it would have been if begun whole; if not, what it would have been if begun
            whole in programs as wide as its manifest says.
        chunk: Largest number of cells of a chunk; None for what fits into memory. A
            resumed run keeps its own.
        devices: Devices that share the cells of every chunk; None for all local ones.
        backend: `"shard_map"`, or `"pmap"` for the same by `jax.pmap`.
        executor: What runs the chunks elsewhere: any `concurrent.futures.Executor`
            (spawned processes, Dask's `client.get_executor()`), or one of submitit
            (SLURM). None runs them here. A long run's chunk has no checkpoints
            elsewhere.
        lanes: How many seeds, and how many cells on each device, one call of a program
            computes. None for what is fast: all seeds, and cells by time and memory.
            Calls with fewer are padded, so that with given `lanes` the bits of a lane
            do not depend on what else is asked for, now or later. A run that goes on or
            grows keeps its own.
        on_chunk: Called in this process, `on_chunk(finished)`, with the metrics of
            every chunk once it is finished and kept: a Dataset with the dimensions
            `cell`, `seed` and the metrics' own, the swept fields along `cell`. A
            resumed run calls it for new chunks only.
        on_segment: Called after every segment of a long run, about once a second,
            `on_segment(curves, step)`, with the curves of a chunk up to the step that
            it has reached. Not with an executor.

    Returns:
        One variable a metric, with dimensions (axes..., seed, its own); coordinates
        with units; provenance in `attrs`.

    Raises:
        ValueError: On misuse, naming argument, value and what is allowed.
        RunDirectoryError: If the directory cannot be used; the message says what to do.
        RuntimeError: If a chunk fails or is cancelled: it names group, cells and seeds,
            once all others are finished (at once, if there is no directory).
        KeyboardInterrupt: On Ctrl-C or SIGTERM, within the chunk, or after the segment
            of a long run, which is kept; the message says how to resume.
    """
    root = planning.place(directory, resume)
    request = Request.make(
        experiment,
        axes,
        num_seeds=num_seeds,
        seed=seed,
        chunk=chunk,
        devices=devices,
        backend=backend,
        lanes=lanes,
    )
    hooks = Hooks(on_chunk, on_segment)
    hooks.check(experiment, executor is not None)
    with contextlib.ExitStack() as stack:
        is_there = root is not None and _only_reads(root, resume)
        place = None if root is None or is_there else root
        if place is not None:
            stack.enter_context(store.lock(place))
        compiled, team = Compiled(request), None
        if executor is not None and not is_there:
            team = stack.enter_context(tasks.team(executor, compiled, place))
        with Progress(None, phase="Plan"):
            run = _Run(compiled, root, resume, team, hooks, executor is not None)
        if root is not None:
            SWEPT[root.resolve()] = run.manifest["run"], experiment
        stopped = None
        try:
            run.all()
        except KeyboardInterrupt as e:  # what a hook raised gets no other context
            stopped = ending(e, run.how_to_resume())
        if stopped is not None:
            raise stopped
    return run.dataset()


def _only_reads(root: Path, resume: bool | str) -> bool:
    """Whether nothing is left to do or keep there: read-only storage will do."""
    # Asked before a lock file is put there.
    if not store.is_run(root) or resume in (False, "grow"):
        return False
    manifest = store.read_manifest(root)
    return manifest["is_complete"] and not Gate(manifest, root).missing()


class _Run:
    """One sweep under way. Owns the manifest; the only writer of the directory."""

    def __init__(
        self,
        compiled: Compiled,
        root: Path | None,
        resume: bool | str,
        team: tasks.Team | None,
        hooks: Hooks,
        is_elsewhere: bool,
    ):
        self.compiled, self.request = compiled, compiled.request
        self.root, self.team, self.hooks = root, team, hooks
        found = planning.begun(compiled, root, resume, team, is_elsewhere)
        recorded, forced, has_grown = found
        if recorded is None or root is None:
            cuts, _ = planning.fit(compiled, team and team.machine)
            manifest = planning.manifest_of(compiled, cuts, team)
            self.manifest = json.loads(json.dumps(manifest))
            self.gate = Gate(self.manifest, root)
            if root is not None:
                store.clean(root)
                source = provenance.source_text(self.request.experiment)
                store.write_atomically(root / store.SOURCE, lambda f: f.write(source))
            self.gate.write_manifest()
            return
        self.manifest = recorded
        self.gate = Gate(self.manifest, root)
        if not self.gate.missing() and not has_grown:
            return
        store.clean(root)
        if forced:  # for whoever reads the mixed results
            self.manifest.setdefault("forced", []).append(forced)
        self.manifest["run"] = self.manifest["run"] or secrets.token_hex(8)
        self.manifest["is_complete"] = False
        if has_grown:
            judging.set_aside(root, len(self.manifest["history"]))
        self.gate.write_manifest()

    def _chunks(self, block: int | None = None) -> list[store.Chunk]:
        return store.chunks(self.manifest, block)

    def _work(self, chunk: store.Chunk) -> chunks.Work:
        return chunks.Work.of(self.request, self.manifest, chunk)

    def _lanes(self, found) -> int:
        return sum(math.prod(chunk.lanes) for chunk in found)

    def all(self) -> None:
        """Run what is not done yet."""
        every = self._chunks()
        done = [c for c in every if self.gate.is_done(c)]
        with (
            Progress(self._lanes(every), self._lanes(done)) as progress,
            signals.heard() as check,
        ):

            def advance(lanes):
                progress.advance(lanes)
                check()

            failures = {}
            ended = self._here(progress, advance)
            if self.team is not None:
                ended = self._elsewhere(self.team, advance)
            with contextlib.closing(ended):
                for chunk, error in ended:
                    failures[chunk] = error
                    if self.root is None:
                        break  # nothing would be kept of what is still to come
            timings = {
                "compile_seconds": round(progress.compile_seconds, 3),
                "run_seconds": round(progress.run_seconds, 3),
            }
        if failures:
            raise self._failed(failures)
        self.gate.close(timings)

    def _here(
        self, progress: Progress, advance: Callable[[float], None]
    ) -> Generator[tuple[store.Chunk, BaseException]]:
        """Run what is missing in this process; gives the chunks that fail, and why."""
        for block in range(len(self.manifest["layout"])):
            if all(map(self.gate.is_done, self._chunks(block))):
                continue
            try:
                program = self._program(block, progress)
            except store.RunDirectoryError:
                raise
            except Exception as e:
                if len(self.request.groups) == 1:
                    raise
                left = (c for c in self._chunks(block) if not self.gate.is_done(c))
                yield from ((c, e) for c in left)
                continue
            for chunk in self._chunks(block):
                if self.gate.is_done(chunk):
                    continue
                try:
                    arrays = chunks.run(
                        self.request,
                        program,
                        self._work(chunk),
                        checkpoint=self.gate.checkpoint(chunk),
                        advance=advance,
                        on_segment=self.hooks.segments(self.manifest, chunk),
                    )
                except store.RunDirectoryError:
                    raise
                except Exception as e:
                    yield chunk, e
                else:
                    self._keep(chunk, arrays)

    def _keep(self, chunk: store.Chunk, arrays: Mapping[str, np.ndarray]) -> None:
        self.gate.admit(chunk, arrays)
        self.hooks.finished(self.manifest, chunk, arrays)

    def _program(self, block: int, progress: Progress):
        """Compile at the planned width, and narrower while that is over the budget.

        Once a chunk of the group has begun its width stands: the bits depend on it; so
        does one that was given.
        """
        layout = self.manifest["layout"]
        static, num_seeds = layout[block]["static"], layout[block]["num_seeds"]
        group, alike = self.request.group_of(static), of_group(self.manifest, static)
        every = [chunk for b in alike for chunk in self._chunks(b)]
        has_begun = any(map(self.gate.has_begun, every))
        is_given = self.manifest["lanes"]["num_cells"] is not None
        while True:
            width = layout[block]["width"]
            try:
                with progress.compiling():
                    program = self.compiled.program(group, width, num_seeds)
            except jax.errors.JaxRuntimeError as e:
                if has_begun or "RESOURCE_EXHAUSTED" not in str(e):
                    raise
                needed = 2 * self.compiled.budget
            else:
                needed = program.bytes
                if has_begun or needed <= self.compiled.budget:
                    return program
            if width == 1 or is_given:
                budget = self.compiled.budget
                raise planning.too_large(num_seeds, width, needed, budget)
            narrower = int(width * self.compiled.budget / needed)
            narrower = min(max(narrower, 1), width - 1)
            num_devices = len(self.request.devices)
            num_cells = len(self.request.groups[group].cells)
            width = planning.even(num_cells, narrower, num_devices)
            for b in alike:
                layout[b] |= {"width": width, "chunk": width * num_devices}
            self.gate.write_manifest()

    def _elsewhere(
        self, team: tasks.Team, advance: Callable[[float], None]
    ) -> Generator[tuple[store.Chunk, BaseException]]:
        """Run what is missing on the workers; gives the chunks that fail, and why."""
        works = {chunk: self._work(chunk) for chunk in self.gate.missing()}
        with contextlib.closing(team.run(works)) as ended:
            for chunk, outcome in ended:
                if isinstance(outcome, BaseException):
                    yield chunk, outcome
                    continue
                try:
                    self._keep(chunk, outcome)
                except ValueError as e:  # of other metrics than the chunk's
                    yield chunk, e
                else:
                    advance(self._lanes([chunk]))

    def _failed(self, failures: Mapping[store.Chunk, BaseException]) -> RuntimeError:
        """The error that names what failed, where everything else is done."""
        chunk, error = next(iter(failures.items()))
        block = self.manifest["layout"][chunk.block]
        cells = block["cells"][chunk.start : chunk.stop]
        fields = fields_of(self.manifest["config"]["axes"], cells)
        values = "; ".join(
            f"{name}={brief(*dict.fromkeys(found))}" for name, found in fields.items()
        )
        first, last = chunk.seeds[0], chunk.seeds[1] - 1
        others = f" So did {len(failures) - 1} others." * (len(failures) > 1)
        what = ": ".join(filter(None, (type(error).__name__, str(error))))
        rest = "All else is finished and kept; mend the cause and go on with resume."
        if self.root is None:
            rest = "Nothing was kept: the sweep had no `directory`."
        raised = RuntimeError(
            f"Cells {chunk.start}..{chunk.stop - 1} of block {chunk.block} ({values}; "
            f"seeds {first}..{last}) failed: {what}.{others} "
            f"{rest}"
        )
        raised.__cause__ = error
        return raised

    def dataset(self) -> "xr.Dataset":
        """The labelled results."""
        return self.gate.dataset()

    def how_to_resume(self) -> str:
        """What to say on Ctrl-C."""
        if self.root is None:
            return "Stopped. Nothing was kept: the sweep had no `directory`."
        every = self._chunks()
        done = sum(map(self.gate.is_done, every))
        return (
            f"Stopped. {done} of {len(every)} chunks are kept in {self.root}. Go on "
            f"with `--directory {self.root} --resume`, in Python with "
            f"directory={str(self.root)!r}, resume=True."
        )
