"""What a sweep will do, before it does it: cells, groups, chunks, memory."""

from collections.abc import Callable
import dataclasses
import math
from typing import Any

import jax

from jaxlr.core.types import Experiment
from jaxlr.lab import grid, memory, program, provenance, tasks
from jaxlr.lab.compiled import Compiled
from jaxlr.lab.memory import format_bytes
from jaxlr.lab.request import Request


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
        bytes: Bytes that a chunk is estimated to take on one device.
    """

    static: dict[str, Any]
    num_cells: int
    width: int
    num_chunks: int
    bytes: int


@dataclasses.dataclass(frozen=True)
class Plan:
    """A sweep's plan; printing it gives a summary.

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

    def __str__(self):
        sizes = " x ".join(f"{n} {name}" for name, n in self.dims.items()) or "1"
        largest = max(group.bytes for group in self.groups)
        widths = sorted({group.width * self.num_devices for group in self.groups})
        of = f"{widths[0]}" if len(widths) == 1 else f"{widths[0]} to {widths[-1]}"
        share = 100 * largest / max(self.available_bytes, 1)
        largest, free = format_bytes(largest), format_bytes(self.available_bytes)
        return "\n".join(
            (
                f"{self.name}",
                f"  cells    {self.num_cells} ({sizes}), {self.num_seeds} seeds each",
                f"  groups   {len(self.groups)} to compile",
                f"  chunks   {self.num_chunks} of {of} cells, on {self.num_devices} "
                f"{self.device_kind}",
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
        directory: Directory of the run; the plan does not look into it.
        resume: Whether the sweep would go on with a run; the plan is that of all cells.
        chunk: Largest number of cells of a chunk; None for what fits into memory.
        devices: Devices that share the cells of every chunk; None for all local ones.
        backend: `"shard_map"` or `"pmap"`.
        executor: What would run the chunks elsewhere: there are more of them then.

    Raises:
        ValueError: As `sweep` does.
    """
    del directory, resume
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
    machine, workers = memory.Machine.of(request.devices), None
    if executor is not None:
        with tasks.team(executor, compiled, None) as team:
            machine = workers = team.machine
    widths, sizes = fit(compiled, workers)
    num_devices, names = machine.num_devices, [dim.name for dim in request.dims]
    return Plan(
        name=provenance.name_of(experiment),
        dims=dict(zip(names, grid.shape(request.dims), strict=True)),
        num_cells=request.num_cells,
        num_seeds=request.num_seeds,
        groups=tuple(
            GroupPlan(
                static=group.static,
                num_cells=len(group.cells),
                width=width,
                num_chunks=-(-len(group.cells) // (width * num_devices)),
                bytes=size,
            )
            for group, width, size in zip(request.groups, widths, sizes, strict=True)
        ),
        num_devices=num_devices,
        device_kind=machine.device_kind,
        available_bytes=machine.available_bytes,
        result_bytes=compiled.result_bytes,
    )


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

    The group with the largest footprint is compiled at two small widths; a straight
    line through their bytes, scaled by footprint for the other groups, gives the widest
    chunk within the budget. (A group of few cells is compiled at its own width.) The
    sweep checks every program that it compiles against the budget again.

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
    footprints = [compiled.lane(g).footprint for g in indices]
    heavy = max(indices, key=lambda g: (footprints[g], wanted[g]))

    def bytes_at(width):
        return compiled.program(heavy, width).bytes

    if wanted[heavy] > max(PROBES):
        line = memory.line_through(bytes_at, PROBES)
    else:
        line = (0.0, bytes_at(wanted[heavy]) / wanted[heavy])
    widths, sizes = [], []
    for group, width, footprint in zip(request.groups, wanted, footprints, strict=True):
        scale = footprint / max(footprints[heavy], 1)
        scaled = (line[0] * scale, max(line[1] * scale, 1.0))
        widest = memory.widest(scaled, budget)
        if widest < 1:
            raise too_large(request, scaled[0] + scaled[1], budget)
        width = even(len(group.cells), min(width, widest), machine.num_devices)
        widths.append(width)
        sizes.append(int(scaled[0] + scaled[1] * width))
    return widths, sizes


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
