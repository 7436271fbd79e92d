"""What a sweep will do, before it does it: cells, groups, chunks, memory."""

from collections.abc import Callable, Mapping, Sequence
import contextlib
import dataclasses
import logging
import math
from pathlib import Path
from typing import Any, NamedTuple

import jax

from jaxlr.core import checks
from jaxlr.core.types import Experiment
from jaxlr.lab import grid, growing, memory, program, provenance, store, tasks
from jaxlr.lab.compiled import Compiled
from jaxlr.lab.gate import Gate
from jaxlr.lab.manifest import of_group
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
        width: Number of cells that a device computes at once.
        chunk: Largest number of cells of a chunk.
        num_chunks: Number of its chunks.
        num_done: Number of its chunks that the run directory has already.
        bytes: Bytes that a chunk is estimated to take on one device.
    """

    static: dict[str, Any]
    num_cells: int
    width: int
    chunk: int
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
        chunks = sorted({min(group.chunk, group.num_cells) for group in self.groups})
        of = f"{chunks[0]}" if len(chunks) == 1 else f"{chunks[0]} to {chunks[-1]}"
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
    lanes: tuple[int, int] | None = None,
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
            have changed; `"grow"` with more seeds and values.
        chunk: Largest number of cells of a chunk; None for what fits into memory.
        devices: Devices that share the cells of every chunk; None for all local ones.
        backend: `"shard_map"` or `"pmap"`.
        executor: What would run the chunks elsewhere: there are more of them then.
        lanes: How many seeds, and how many cells on each device, would be computed at
            once; None for what is fast.

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
        lanes=lanes,
    )
    compiled = Compiled(request)
    root, machine = place(directory, resume), memory.Machine.of(request.devices)
    with contextlib.ExitStack() as stack:
        stack.enter_context(Progress(None, phase="Plan"))
        team = None
        if executor is not None:
            team = stack.enter_context(tasks.team(executor, compiled, None))
            machine = team.machine
        recorded = begun(compiled, root, resume, team).manifest
        if recorded is None:
            cuts, sizes = fit(compiled, team and team.machine)
            recorded = manifest_of(compiled, cuts, team)
            blocks = recorded["layout"]
        else:
            found = [of_group(recorded, x.static) for x in request.groups]
            blocks = [recorded["layout"][first] for first, *_ in found]
            widths = [block["width"] for block in blocks]
            lines = _lines(compiled, widths, blocks[0]["num_seeds"])
            pairs = zip(lines, widths, strict=True)
            sizes = [int(fixed + slope * width) for (fixed, slope), width in pairs]
    gate, groups = Gate(recorded, root), []
    for group, block, size in zip(request.groups, blocks, sizes, strict=True):
        alike = of_group(recorded, group.static)
        chunks = [c for b in alike for c in store.chunks(recorded, b)]
        groups.append(
            GroupPlan(
                static=group.static,
                num_cells=len(group.cells),
                width=block["width"],
                chunk=block["chunk"],
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
    checks.choice("`resume`", resume, (False, True, "force", "grow"))
    if resume and directory is None:
        raise ValueError("`resume` needs the `directory` to resume.")
    return None if directory is None else store.folder(directory)


def manifest_of(
    compiled: Compiled, cuts: Sequence[Mapping[str, int]], team: tasks.Team | None
) -> dict[str, Any]:
    """The manifest that a sweep begins with, run here or by the workers of a team."""
    manifest = provenance.manifest(compiled, cuts)
    return manifest if team is None else team.adopt(manifest)


class Begun(NamedTuple):
    """A run that a sweep goes on with.

    Attributes:
        manifest: Its manifest, grown if more is asked for; None where the sweep begins.
        forced: A line for each change that was forced.
        has_grown: Whether more is asked for than was.
    """

    manifest: dict[str, Any] | None = None
    forced: Sequence[str] = ()
    has_grown: bool = False


def begun(
    compiled: Compiled,
    root: Path | None,
    resume: bool | str,
    team: tasks.Team | None,
    is_elsewhere: bool = False,
) -> Begun:
    """The run that a sweep goes on with; nothing is written.

    Args:
        compiled: The sweep.
        root: The run directory; None for none.
        resume: As for `sweep`.
        team: The workers that run what is missing; None: this process does.
        is_elsewhere: Whether workers computed it, which a finished run asks no more.

    Raises:
        RunDirectoryError: If the directory cannot be used as asked.
    """
    if root is None or not store.is_run(root):
        return Begun()
    if not resume:
        raise store.RunDirectoryError(
            f"{root} already holds a run. Go on with it (resume=True, `--resume`), or "
            "use another directory."
        )
    request, recorded = compiled.request, store.read_manifest(root)
    kept = tuple(recorded["lanes"].values())
    if request.lanes not in (None, kept):
        raise store.RunDirectoryError(
            f"{root} was begun with `lanes` {'None' if None in kept else kept}, which "
            f"decides bits: it cannot go on with {request.lanes}. Leave `lanes` out."
        )
    now = manifest_of(compiled, [{}] * len(request.groups), team)
    num_blocks = len(recorded["layout"])
    has_grown = resume == "grow" and growing.has_grown(recorded, now)
    if has_grown:
        recorded = growing.grown(root, recorded, now)
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
    new = [block for block in recorded["layout"][num_blocks:] if "width" not in block]
    if new:  # groups that the run has not had
        at_once = recorded["layout"][0]["num_seeds"], kept[1]
        cuts, _ = fit(compiled, team and team.machine, at_once)
        for block in new:
            block |= cuts[request.group_of(block["static"])]
    return Begun(recorded, forced, has_grown)


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
    compiled: Compiled,
    workers: memory.Machine | None = None,
    at_once: tuple[int, int | None] | None = None,
) -> tuple[list[dict[str, int]], list[int]]:
    """How every group is cut, and the estimated bytes of its program on a device.

    A cut is the `num_seeds` and the `width`, in cells on a device, of the group's
    program, and the cells of a `chunk`. Without a given width a chunk is one call of
    the widest program that `_lines` has within the budget. The sweep checks every
    program that it compiles against the budget again.

    Args:
        compiled: The sweep.
        workers: What the workers are that share its chunks; None where it runs here.
        at_once: The number of seeds, and of cells on a device, of a program, as those
            of a run that goes on; None for what the request says.

    Raises:
        ValueError: If one cell does not fit.
    """
    request = compiled.request
    num_seeds, given = at_once or request.lanes or (request.num_seeds, None)
    machine = workers or memory.Machine.of(request.devices)
    budget = compiled.budget_on(machine)
    indices = range(len(request.groups))
    wanted = [_wanted(compiled, g, machine, workers is not None) for g in indices]
    cuts, sizes = [], []
    lines = _lines(compiled, [given or x for x in wanted], num_seeds)
    for group, wish, line in zip(request.groups, wanted, lines, strict=True):
        widest, least = memory.widest(line, budget), given or 1
        if widest < least:
            raise too_large(num_seeds, least, line[0] + line[1] * least, budget)
        width = given or even(len(group.cells), min(wish, widest), machine.num_devices)
        calls = max(wish // width, 1) if given else 1
        chunk = calls * width * machine.num_devices
        chunk = request.chunk if given and request.chunk else chunk
        cuts.append({"num_seeds": num_seeds, "width": width, "chunk": chunk})
        sizes.append(int(line[0] + line[1] * width))
    return cuts, sizes


def _lines(
    compiled: Compiled, wanted: Sequence[int], num_seeds: int
) -> list[tuple[float, float]]:
    """Bytes of a program against its width, intercept and slope, of every group.

    The group with the largest footprint is compiled at two small widths, or at its own
    where it is wanted as small; the line through their bytes is scaled by footprint for
    the others. What a lane closes over is added whole.
    """
    lanes = [compiled.lane(g) for g in range(len(wanted))]
    heavy = max(range(len(lanes)), key=lambda g: (lanes[g].footprint, wanted[g]))

    def bytes_at(width):
        program = compiled.program(heavy, width, num_seeds)
        return program.bytes - lanes[heavy].closed_over

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


def too_large(
    num_seeds: int, num_cells: int, needed: float, budget: float
) -> ValueError:
    """The error for the least that can be computed at once, where it does not fit."""
    cells = "One cell with its"
    if num_cells > 1:
        cells = f"Computing {num_cells} cells at once with their"
    return ValueError(
        f"{cells} {num_seeds} seeds needs about {format_bytes(needed)} on a "
        f"device, and {format_bytes(budget)} may be used. Compute fewer seeds at once "
        "(`lanes`), sweep fewer (`num_seeds`) or smaller sizes, or thin the curves "
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
