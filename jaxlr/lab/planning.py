"""What a sweep will do, before it does it: cells, groups, chunks, memory."""

from collections.abc import Callable, Sequence
import contextlib
import dataclasses
import logging
import math
from pathlib import Path
from typing import Any

import jax

from jaxlr.core import checks
from jaxlr.core.types import Experiment
from jaxlr.lab import grid, memory, program, provenance, store, tasks
from jaxlr.lab.compiled import Compiled
from jaxlr.lab.gate import Gate
from jaxlr.lab.memory import format_bytes
from jaxlr.lab.progress import Progress
from jaxlr.lab.request import Request


_LOG = logging.getLogger(__name__)
PROBES = 2, 4  # widths of the fit's two compiles; one cell would lose a dimension
EXECUTOR_CHUNKS = 16  # of a group, to be shared among workers
# On a CPU the widest chunk is only somewhat the fastest, so long groups are cut, for
# progress and safety, into chunks of about this many seconds; never below this many
# lanes, whose overhead per step would show. The rate turns a lane's traffic into time.
CHUNK_SECONDS, MIN_LANES, BYTES_PER_SECOND = 20.0, 64, 2e10


@dataclasses.dataclass(frozen=True)
class GroupPlan:
    """One compile group.

    Attributes:
        static: The static fields that its cells share: name -> value.
        num_cells: Number of its cells.
        width: Number of cells of a chunk on one device.
        num_chunks: Number of its chunks.
        num_done: Number of its chunks that the run directory has already.
        bytes: Bytes that a chunk is estimated to take on one device.
    """

    static: dict[str, Any]
    num_cells: int
    width: int
    num_chunks: int
    num_done: int
    bytes: int


@dataclasses.dataclass(frozen=True, repr=False)
class Plan:
    """A sweep's plan; printed, or as the last line of a notebook's cell, a summary.

    Attributes:
        name: Name of the experiment.
        dims: Name of a dimension -> its length.
        num_cells: Number of cells in all.
        num_seeds: Number of seeds of every cell.
        groups: The compile groups: one compilation each.
        num_devices: Number of devices that share a chunk.
        device_kind: What kind of devices they are.
        available_bytes: Bytes of free memory of one device.
        result_bytes: Bytes that the results take on the host.
    """

    name: str
    dims: dict[str, int]
    num_cells: int
    num_seeds: int
    groups: tuple[GroupPlan, ...]
    num_devices: int
    device_kind: str
    available_bytes: int
    result_bytes: int

    @property
    def num_chunks(self) -> int:
        """Number of chunks in all."""
        return sum(group.num_chunks for group in self.groups)

    @property
    def num_done(self) -> int:
        """Number of chunks that the run directory has already."""
        return sum(group.num_done for group in self.groups)

    def __repr__(self):
        sizes = " x ".join(f"{n} {name}" for name, n in self.dims.items()) or "1"
        largest = max(group.bytes for group in self.groups)
        widths = sorted({group.width * self.num_devices for group in self.groups})
        of = f"{widths[0]}" if len(widths) == 1 else f"{widths[0]} to {widths[-1]}"
        share = 100 * largest / max(self.available_bytes, 1)
        done = f"; {self.num_done} are done" if self.num_done else ""
        largest, free = format_bytes(largest), format_bytes(self.available_bytes)
        return "\n".join(
            (
                f"{self.name}",
                f"  cells    {self.num_cells} ({sizes}), {self.num_seeds} seeds each",
                f"  groups   {len(self.groups)} to compile",
                f"  chunks   {self.num_chunks} of {of} cells, on {self.num_devices} "
                f"{self.device_kind}{done}",
                f"  memory   {largest} a chunk and device, {share:.1f} % of "
                f"{free}; results {format_bytes(self.result_bytes)}",
            )
        )


def plan(
    experiment: Experiment,
    axes: Any = None,
    *,
    num_seeds: int | None = None,
    seed: int = 0,
    directory: Any = None,
    resume: bool | str = False,
    chunk: int | None = None,
    devices: Any = None,
    backend: str = "shard_map",
    executor: Any = None,
) -> Plan:
    """Say what `sweep` with the same arguments will do. Nothing is run or written.

    Costs one trace a group, and the compiles of the memory fit (kept for the sweep).

    Args:
        experiment: The experiment to run.
        axes: The axes to sweep; None for the experiment's own.
        num_seeds: Number of seeds of every cell; None for the experiment's own.
        seed: Seed of the root key.
        directory: Directory of the run; the plan says which chunks it has already.
        resume: Whether the sweep would go on with what is in `directory`, in the chunks
            that it was begun with; `"force"` even if source, configuration or versions
            have changed.
        chunk: Largest number of cells of a chunk; None for what fits into memory.
        devices: Devices that share the cells of every chunk; None for all local ones.
        backend: `"shard_map"` or `"pmap"`.
        executor: What would run the chunks elsewhere: there are more of them then.

    Raises:
        ValueError: As `sweep` does.
        RunDirectoryError: As `sweep` does, but for a directory in use.
    """
    request = Request.make(
        experiment,
        axes,
        num_seeds=num_seeds,
        seed=seed,
        chunk=chunk,
        devices=devices,
        backend=backend,
    )
    compiled = Compiled(request)
    root, machine = place(directory, resume), memory.Machine.of(request.devices)
    with contextlib.ExitStack() as stack:
        stack.enter_context(Progress(None, phase="Plan"))
        team = None
        if executor is not None:
            team = stack.enter_context(tasks.team(executor, compiled, None))
            machine = team.machine
        recorded, _ = begun(compiled, root, resume, team)
        if recorded is None:
            widths, sizes = fit(compiled, team and team.machine)
            recorded = manifest_of(compiled, widths, team)
        else:
            widths = [block["width"] for block in recorded["layout"]]
            lines = zip(_lines(compiled, widths), widths, strict=True)
            sizes = [int(fixed + slope * width) for (fixed, slope), width in lines]
    gate, groups = Gate(recorded, root), []
    for g, (block, size) in enumerate(zip(recorded["layout"], sizes, strict=True)):
        chunks = store.chunks(recorded, g)
        groups.append(
            GroupPlan(
                static=block["static"],
                num_cells=len(block["cells"]),
                width=block["width"],
                num_chunks=len(chunks),
                num_done=sum(map(gate.is_done, chunks)),
                bytes=size,
            )
        )
    names = [dim.name for dim in request.dims]
    return Plan(
        name=provenance.name_of(experiment),
        dims=dict(zip(names, grid.shape(request.dims), strict=True)),
        num_cells=request.num_cells,
        num_seeds=request.num_seeds,
        groups=tuple(groups),
        num_devices=machine.num_devices,
        device_kind=machine.device_kind,
        available_bytes=machine.available_bytes,
        result_bytes=compiled.result_bytes,
    )


def place(directory: Any, resume: bool | str) -> Path | None:
    """The directory of a run, if it is to have one.

    Raises:
        ValueError: If `resume` is none of its values, or has nothing to resume.
    """
    checks.choice("`resume`", resume, (False, True, "force"))
    if resume and directory is None:
        raise ValueError("`resume` needs the `directory` to resume.")
    return None if directory is None else store.folder(directory)


def manifest_of(
    compiled: Compiled, widths: Sequence[int], team: tasks.Team | None
) -> dict[str, Any]:
    """The manifest that a sweep begins with, run here or by the workers of a team."""
    manifest = provenance.manifest(compiled, widths)
    return manifest if team is None else team.adopt(manifest)


def begun(
    compiled: Compiled,
    root: Path | None,
    resume: bool | str,
    team: tasks.Team | None,
    is_elsewhere: bool = False,
) -> tuple[dict[str, Any] | None, list[str]]:
    """The manifest of the run that a sweep goes on with, and the changes it forces.

    Args:
        compiled: The sweep.
        root: The run directory; None for none.
        resume: As for `sweep`.
        team: The workers that run what is missing; None: this process does.
        is_elsewhere: Whether workers computed it, which a finished run asks no more.

    Returns:
        None and no changes where the sweep begins anew.

    Raises:
        RunDirectoryError: If the directory cannot be used as asked.
    """
    if root is None or not store.is_run(root):
        return None, []
    if not resume:
        raise store.RunDirectoryError(
            f"{root} already holds a run. Go on with it (resume=True, `--resume`), or "
            "use another directory."
        )
    recorded = store.read_manifest(root)
    now = manifest_of(compiled, [1] * len(compiled.request.groups), team)
    then = recorded["config"]
    now["config"] = provenance.in_words_of(then, now["config"], compiled)
    if is_elsewhere and team is None:
        theirs = ["platform", "device_kind"]
        has_edit = then["source"] != now["config"]["source"]
        if then["platform"] != now["config"]["platform"] and not has_edit:
            theirs.append("computation")  # kernels are chosen by the platform
        now["config"] |= {name: then[name] for name in theirs}
    forced = store.refuse_changes(root, recorded, now, resume == "force")
    if note := provenance.edit(then, now["config"]):
        _LOG.warning(note)
        recorded["history"] = [*recorded.get("history", ()), note]
        then["source"] = now["config"]["source"]
    return recorded, forced


def chunk_function(
    experiment: Experiment,
    axes: Any = None,
    *,
    num_seeds: int | None = None,
    seed: int = 0,
    chunk: int | None = None,
) -> tuple[Callable[..., list[jax.Array]], tuple[Any, ...]]:
    """A sweep's chunk as a function of one device, and the shapes of its arguments.

    It is that of the compile group with the largest footprint, in 32-bit types: a TPU
    has no others.

    Args:
        experiment: The experiment whose chunk is wanted.
        axes: The axes of the sweep; None for the experiment's own.
        num_seeds: Number of seeds of every cell; None for the experiment's own.
        seed: Seed of the root key.
        chunk: Largest number of cells of the chunk; None for the whole group.

    Raises:
        ValueError: As `sweep` does.
    """
    request = Request.make(
        experiment.replace(x64=False),
        axes,
        num_seeds=num_seeds,
        seed=seed,
        chunk=chunk,
    )
    compiled = Compiled(request)
    lanes = [compiled.lane(g) for g in range(len(request.groups))]
    pairs = zip(lanes, request.groups, strict=True)
    lane, group = max(pairs, key=lambda pair: pair[0].footprint)
    num_cells = min(request.chunk or len(group.cells), len(group.cells))
    arguments = program.chunk_arguments(lane, num_cells, request.num_seeds)
    return program.chunk_function(lane), arguments


def fit(
    compiled: Compiled, workers: memory.Machine | None = None
) -> tuple[list[int], list[int]]:
    """Chunk width of every group, cells a device, and the estimated bytes of each.

    The widest that `_lines` has within the budget. The sweep checks every program that
    it compiles against the budget again.

    Args:
        compiled: The sweep.
        workers: What the workers are that share its chunks; None where it runs here.

    Raises:
        ValueError: If one cell does not fit.
    """
    request = compiled.request
    machine = workers or memory.Machine.of(request.devices)
    budget = compiled.budget_on(machine)
    indices = range(len(request.groups))
    wanted = [_wanted(compiled, g, machine, workers is not None) for g in indices]
    widths, sizes = [], []
    lines = _lines(compiled, wanted)
    for group, width, line in zip(request.groups, wanted, lines, strict=True):
        widest = memory.widest(line, budget)
        if widest < 1:
            raise too_large(request, sum(line), budget)
        width = even(len(group.cells), min(width, widest), machine.num_devices)
        widths.append(width)
        sizes.append(int(line[0] + line[1] * width))
    return widths, sizes


def _lines(compiled: Compiled, wanted: Sequence[int]) -> list[tuple[float, float]]:
    """Bytes of a chunk against its width, intercept and slope, of every group.

    The group with the largest footprint is compiled at two small widths, or at its own
    where it is wanted as small; the line through their bytes is scaled by footprint for
    the others. What a lane closes over is added whole.
    """
    lanes = [compiled.lane(g) for g in range(len(wanted))]
    heavy = max(range(len(lanes)), key=lambda g: (lanes[g].footprint, wanted[g]))

    def bytes_at(width):
        return compiled.program(heavy, width).bytes - lanes[heavy].closed_over

    if wanted[heavy] > max(PROBES):
        fixed, slope = memory.line_through(bytes_at, PROBES)
    else:
        fixed, slope = 0.0, bytes_at(wanted[heavy]) / wanted[heavy]
    scales = [lane.footprint / max(lanes[heavy].footprint, 1) for lane in lanes]
    return [
        (fixed * scale + lane.closed_over, max(slope * scale, 1.0))
        for lane, scale in zip(lanes, scales, strict=True)
    ]


def even(num_cells: int, width: int, num_devices: int) -> int:
    """The smallest width with as many chunks as `width` gives: less padding."""
    per_device = math.ceil(num_cells / num_devices)
    return math.ceil(per_device / math.ceil(per_device / width))


def too_large(request: Request, needed: float, budget: float) -> ValueError:
    """The error for a cell that does not fit by itself."""
    return ValueError(
        f"One cell with its {request.num_seeds} seeds needs about "
        f"{format_bytes(needed)} on a device, and {format_bytes(budget)} may "
        "be used. Sweep fewer seeds (`num_seeds`), smaller sizes, or thin the curves "
        "(`every`)."
    )


def _wanted(
    compiled: Compiled, group: int, machine: memory.Machine, is_shared: bool
) -> int:
    """Width before memory has its say: the user's, or what is fast."""
    request, num_devices = compiled.request, machine.num_devices
    num_seeds = request.num_seeds
    per_device = math.ceil(len(request.groups[group].cells) / num_devices)
    if request.chunk is not None:
        return min(per_device, math.ceil(request.chunk / num_devices))
    if is_shared:
        return math.ceil(per_device / EXECUTOR_CHUNKS)
    if machine.platform == "cpu":
        cell_seconds = compiled.lane(group).traffic * num_seeds / BYTES_PER_SECOND
        steady = math.ceil(CHUNK_SECONDS / max(cell_seconds, 1e-9))
        return min(per_device, max(steady, math.ceil(MIN_LANES / num_seeds)))
    return per_device
