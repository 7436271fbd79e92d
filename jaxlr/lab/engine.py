"""The sweep: plan, run chunk by chunk, keep what is finished, label the results."""

from collections.abc import Callable, Sequence
import concurrent.futures
import contextlib
import functools as ft
import json
import logging
from pathlib import Path
import signal
import threading
from typing import Any, TYPE_CHECKING

import jax

from jaxlr.core import checks
from jaxlr.core.types import Experiment
from jaxlr.lab import chunks, planning, provenance, store, tasks
from jaxlr.lab.compiled import Compiled
from jaxlr.lab.progress import Progress
from jaxlr.lab.request import Request
from jaxlr.lab.results import load, Results


if TYPE_CHECKING:
    import xarray as xr

_LOG = logging.getLogger(__name__)
# Directory -> the experiment that this process swept there, for `replay`.
SWEPT: dict[Path, Experiment] = {}


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
    executor: concurrent.futures.Executor | None = None,
) -> "xr.Dataset":
    """Run an experiment at every cell of its axes, with every seed.

    Fields of HParams that are static or strings are compiled once a value; all others
    are one `vmap`. Seed i is the key `fold_in(key(seed), i)` in every cell. A lane
    that diverges is data: `diverged_at` is its first kept step with a metric not
    finite. A long run's lane ends where its state is not finite, whatever its metrics.

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
        chunk: Largest number of cells of a chunk; None for what fits into memory. A
            resumed run keeps its own.
        devices: Devices that share the cells of every chunk; None for all local ones.
        backend: `"shard_map"`, or `"pmap"` for the same by `jax.pmap`.
        executor: What runs the chunks elsewhere (Dask, SLURM, processes); None runs
            them here. A long run's chunk has no checkpoints elsewhere.

    Returns:
        One variable a metric, with dimensions (axes..., seed, its own); coordinates
        with units; provenance in `attrs`.

    Raises:
        ValueError: On misuse, naming argument, value and what is allowed.
        RunDirectoryError: If the directory cannot be used; the message says what to do.
        KeyboardInterrupt: On Ctrl-C, within the chunk; the message says how to resume.
    """
    checks.choice("`resume`", resume, (False, True, "force"))
    if resume and directory is None:
        raise ValueError("`resume` needs the `directory` to resume.")
    request = Request.make(
        experiment,
        axes,
        num_seeds=num_seeds,
        seed=seed,
        chunk=chunk,
        devices=devices,
        backend=backend,
    )
    with contextlib.ExitStack() as stack:
        root = None if directory is None else Path(directory)
        if root is not None:
            store.is_run(root)  # before a lock file is put there
            stack.enter_context(store.lock(root))
        run = _Run(Compiled(request), root, resume, executor)
        if root is not None:
            SWEPT[root.resolve()] = experiment
        try:
            run.all()
        except KeyboardInterrupt as e:
            raise KeyboardInterrupt(run.how_to_resume()) from e
    return run.dataset()


@contextlib.contextmanager
def _interrupts_are_heard():
    """A function that raises on a Ctrl-C which Python has dropped.

    It does where one falls into a callback of the garbage collector, as jax has.
    Whoever handles the signal in another way is left alone.
    """
    default = signal.default_int_handler
    is_main = threading.current_thread() is threading.main_thread()
    if not is_main or signal.getsignal(signal.SIGINT) is not default:
        yield lambda: None
        return
    heard = []

    def remember(*args):
        heard.append(args)
        default(*args)

    def check():
        if heard:
            raise KeyboardInterrupt

    signal.signal(signal.SIGINT, remember)
    try:
        yield check
    finally:
        if signal.getsignal(signal.SIGINT) is remember:
            signal.signal(signal.SIGINT, default)


class _Run:
    """One sweep under way. Owns the manifest; the only writer of the directory."""

    def __init__(
        self,
        compiled: Compiled,
        root: Path | None,
        resume: bool | str,
        executor: concurrent.futures.Executor | None,
    ):
        self.compiled, self.request = compiled, compiled.request
        self.root, self.executor = root, executor
        if root is None or not store.is_run(root):
            widths, _ = planning.fit(compiled, has_executor=executor is not None)
            manifest = provenance.manifest(compiled, widths)
            self.manifest = json.loads(json.dumps(manifest))
            if root is not None:
                store.clean(root)
            self._write_manifest()
            return
        if not resume:
            raise store.RunDirectoryError(
                f"{root} already holds a run. Go on with it (resume=True, `--resume`), "
                "or use another directory."
            )
        self.manifest = store.read_manifest(root)
        widths, then = [1] * len(self.request.groups), self.manifest["config"]
        now = provenance.manifest(compiled, widths, then)
        forced = store.refuse_changes(root, self.manifest, now, resume == "force")
        store.clean(root)
        if note := provenance.edit(then, now["config"]):
            _LOG.warning(note)
            if not self.manifest["is_complete"]:
                self.manifest.setdefault("history", []).append(note)
                then["source"] = now["config"]["source"]
                self._write_manifest()
        if forced:  # for whoever reads the mixed results
            self.manifest.setdefault("forced", []).append(forced)
            self._write_manifest()

    @ft.cached_property
    def results(self) -> Results:
        """Holds what is finished where there is no directory for it."""
        return Results(self.manifest)

    def _write_manifest(self):
        if self.root is not None:
            store.write_json(self.root / store.MANIFEST, self.manifest)

    def _chunks(self, group: int | None = None) -> list[store.Chunk]:
        return store.chunks(self.manifest, group)

    def _is_done(self, chunk: store.Chunk) -> bool:
        return self._exists(chunk, "chunks")

    def _exists(self, chunk: store.Chunk, *folders: str) -> bool:
        """Whether one of the folders has a file of the chunk."""
        root = self.root
        return root is not None and any(
            (root / folder / chunk.filename).exists() for folder in folders
        )

    def _finish(self, chunk: store.Chunk, arrays) -> None:
        if self.root is None:
            self.results.insert(chunk, arrays)
        else:
            store.write_arrays(self.root / "chunks" / chunk.filename, arrays)
            (self.root / "segments" / chunk.filename).unlink(missing_ok=True)

    def _lanes(self, found) -> int:
        return sum(c.stop - c.start for c in found) * self.request.num_seeds

    def all(self) -> None:
        """Run what is not done yet."""
        every = self._chunks()
        done = [c for c in every if self._is_done(c)]
        with (
            Progress(self._lanes(every), self._lanes(done)) as progress,
            _interrupts_are_heard() as check,
        ):

            def advance(lanes):
                progress.advance(lanes)
                check()

            if len(done) < len(every):
                if self.executor is None:
                    self._here(progress, advance)
                else:
                    self._elsewhere(self.executor, advance)
            timings = {
                "compile_seconds": round(progress.compile_seconds, 3),
                "run_seconds": round(progress.run_seconds, 3),
            }
        if not self.manifest["is_complete"]:
            self.manifest |= {"is_complete": True, "timings": timings}
            self._write_manifest()

    def _here(self, progress: Progress, advance: Callable[[float], None]) -> None:
        for group in range(len(self.request.groups)):
            if all(map(self._is_done, self._chunks(group))):
                continue
            program = self._program(group, progress)
            for chunk in self._chunks(group):
                if not self._is_done(chunk):
                    path = self.root and self.root / "segments" / chunk.filename
                    settings = {"checkpoint": path, "advance": advance}
                    arrays = chunks.run(self.request, program, chunk, **settings)
                    self._finish(chunk, arrays)

    def _program(self, group: int, progress: Progress):
        """Compile at the planned width, and narrower while that is over the budget.

        Once a chunk of the group has begun its width stands: the bits depend on it.
        """
        layout = self.manifest["layout"][group]
        has_begun = any(
            self._exists(c, "chunks", "segments") for c in self._chunks(group)
        )
        while True:
            width = layout["width"]
            try:
                with progress.compiling():
                    program = self.compiled.program(group, width)
            except jax.errors.JaxRuntimeError as e:
                if has_begun or "RESOURCE_EXHAUSTED" not in str(e):
                    raise
                needed = 2 * self.compiled.budget
            else:
                needed = program.bytes
                if has_begun or needed <= self.compiled.budget:
                    return program
            if width == 1:
                raise planning.too_large(self.compiled, needed)
            narrower = int(width * self.compiled.budget / needed)
            narrower = min(max(narrower, 1), width - 1)
            width = planning.even(self.request, len(layout["cells"]), narrower)
            layout |= {"width": width, "chunk": width * len(self.request.devices)}
            self._write_manifest()

    def _elsewhere(
        self, executor: concurrent.futures.Executor, advance: Callable[[float], None]
    ) -> None:
        payload = tasks.pack(self.compiled)
        widths = [layout["width"] for layout in self.manifest["layout"]]
        waiting = {
            executor.submit(tasks.run_chunk, payload, widths[chunk.group], chunk): chunk
            for chunk in self._chunks()
            if not self._is_done(chunk)
        }
        failure = None
        try:
            for future in concurrent.futures.as_completed(set(waiting)):
                chunk = waiting.pop(future)
                if future.cancelled():
                    continue
                if error := future.exception():
                    failure = failure or (chunk, error)
                    for other in waiting:  # those under way are still waited for
                        other.cancel()
                    continue
                self._finish(chunk, future.result())
                advance(self._lanes([chunk]))
        finally:
            for future in waiting:
                future.cancel()
        if failure:
            chunk, error = failure
            raise RuntimeError(
                f"Cells {chunk.start}..{chunk.stop - 1} of group {chunk.group} failed "
                f"on the executor: {error!r}. Every other chunk that had begun is "
                "kept; mend the cause and go on with resume."
            ) from error

    def dataset(self) -> "xr.Dataset":
        """The labelled results."""
        return self.results.dataset() if self.root is None else load(self.root)

    def how_to_resume(self) -> str:
        """What to say on Ctrl-C."""
        if self.root is None:
            return "Stopped. Nothing was kept: the sweep had no `directory`."
        every = self._chunks()
        done = sum(map(self._is_done, every))
        return (
            f"Stopped. {done} of {len(every)} chunks are kept in {self.root}. Go on "
            f"with `--directory {self.root} --resume`, in Python with "
            f"directory={str(self.root)!r}, resume=True."
        )
