"""What a sweep will do, before it does it: cells, groups, chunks, memory."""

from collections.abc import Callable
import dataclasses
import math
from typing import Any

import jax

from jaxlr.core.types import Experiment
from jaxlr.lab import grid, memory, program, provenance
from jaxlr.lab.setup import Setup


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
        static: The static fields that its cells share.
        num_cells: Its cells.
        width: Cells of a chunk on one device.
        num_chunks: Its chunks.
        bytes: What a chunk is estimated to take on one device.
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
        name: The experiment.
        dims: Dimension -> length.
        num_cells: Cells in all.
        num_seeds: Seeds of every cell.
        groups: Compile groups: one compilation each.
        num_devices: Devices that share a chunk.
        device_kind: What they are.
        available_bytes: Free memory of one device.
        result_bytes: What the results take on the host.
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
        """Chunks in all."""
        return sum(group.num_chunks for group in self.groups)

    def __str__(self):
        sizes = " x ".join(f"{n} {name}" for name, n in self.dims.items()) or "1"
        largest = max(group.bytes for group in self.groups)
        widths = sorted({group.width * self.num_devices for group in self.groups})
        of = f"{widths[0]}" if len(widths) == 1 else f"{widths[0]} to {widths[-1]}"
        share = 100 * largest / max(self.available_bytes, 1)
        return "\n".join(
            (
                f"{self.name}",
                f"  cells    {self.num_cells} ({sizes}), {self.num_seeds} seeds each",
                f"  groups   {len(self.groups)} to compile",
                f"  chunks   {self.num_chunks} of {of} cells, on {self.num_devices} "
                f"{self.device_kind}",
                f"  memory   {_bytes(largest)} a chunk and device, {share:.1f} % of "
                f"{_bytes(self.available_bytes)}; results {_bytes(self.result_bytes)}",
            )
        )


def _bytes(number: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if number < 1024 or unit == "GiB":
            break
        number /= 1024
    return f"{number:.3g} {unit}"


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

    Raises:
        ValueError: As `sweep` does.
    """
    del directory, resume
    setup = Setup.make(
        experiment,
        axes,
        num_seeds=num_seeds,
        seed=seed,
        devices=devices,
        backend=backend,
    )
    widths, sizes = fit(setup, chunk=chunk, has_executor=executor is not None)
    num_devices = len(setup.devices)
    return Plan(
        name=provenance.name_of(experiment),
        dims=dict(
            zip((d.name for d in setup.dims), grid.shape(setup.dims), strict=True)
        ),
        num_cells=setup.num_cells,
        num_seeds=setup.num_seeds,
        groups=tuple(
            GroupPlan(
                static=group.static,
                num_cells=len(group.cells),
                width=width,
                num_chunks=-(-len(group.cells) // (width * num_devices)),
                bytes=size,
            )
            for group, width, size in zip(setup.groups, widths, sizes, strict=True)
        ),
        num_devices=num_devices,
        device_kind=setup.devices[0].device_kind,
        available_bytes=memory.available_bytes(setup.devices),
        result_bytes=setup.result_bytes,
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

    It is that of the compile group with the largest footprint, in 32-bit types (a TPU
    has no others), `chunk` cells wide (None: the whole group).

    Raises:
        ValueError: As `sweep` does.
    """
    setup = Setup.make(
        experiment.replace(x64=False), axes, num_seeds=num_seeds, seed=seed
    )
    group = max(range(len(setup.groups)), key=lambda g: setup.lane(g).footprint)
    lane, num_cells = setup.lane(group), len(setup.groups[group].cells)
    num_cells = min(chunk or num_cells, num_cells)
    arguments = program.chunk_arguments(lane, num_cells, setup.num_seeds)
    return program.chunk_function(lane), arguments


def fit(
    setup: Setup, *, chunk: int | None, has_executor: bool
) -> tuple[list[int], list[int]]:
    """Chunk width of every group, cells a device, and the estimated bytes of each.

    The group with the largest footprint is compiled at two small widths; a straight
    line through their bytes, scaled by footprint for the other groups, gives the widest
    chunk within the budget. (A group of few cells is compiled at its own width.) The
    sweep checks every program that it compiles against the budget again.

    Raises:
        ValueError: If `chunk` is not a positive integer, or one cell does not fit.
    """
    if chunk is not None and (not isinstance(chunk, int) or chunk < 1):
        raise ValueError(f"`chunk` must be an integer >= 1, got {chunk!r}.")
    indices = range(len(setup.groups))
    wanted = [_wanted(setup, g, chunk, has_executor) for g in indices]
    footprints = [setup.lane(g).footprint for g in indices]
    heavy = max(range(len(wanted)), key=lambda g: (footprints[g], wanted[g]))

    def bytes_at(width):
        return setup.program(heavy, width).bytes

    if wanted[heavy] > max(PROBES):
        line = memory.line_through(bytes_at, PROBES)
    else:
        line = (0.0, bytes_at(wanted[heavy]) / wanted[heavy])
    widths, sizes = [], []
    for group, width, footprint in zip(setup.groups, wanted, footprints, strict=True):
        scale = footprint / max(footprints[heavy], 1)
        scaled = (line[0] * scale, max(line[1] * scale, 1.0))
        widest = memory.widest(scaled, setup.budget)
        if widest < 1:
            raise too_large(setup, scaled[0] + scaled[1])
        width = even(setup, len(group.cells), min(width, widest))
        widths.append(width)
        sizes.append(int(scaled[0] + scaled[1] * width))
    return widths, sizes


def even(setup: Setup, num_cells: int, width: int) -> int:
    """The smallest width with as many chunks as `width` gives: less padding."""
    per_device = math.ceil(num_cells / len(setup.devices))
    return math.ceil(per_device / math.ceil(per_device / width))


def too_large(setup: Setup, needed: float) -> ValueError:
    """The error for a cell that does not fit by itself."""
    return ValueError(
        f"One cell with its {setup.num_seeds} seeds needs about {_bytes(needed)} on a "
        f"device, and {_bytes(setup.budget)} may be used. Sweep fewer seeds "
        "(`num_seeds`), smaller sizes, or thin the curves (`every`)."
    )


def _wanted(setup: Setup, group: int, chunk: int | None, has_executor: bool) -> int:
    """Width before memory has its say: the user's, or what is fast."""
    num_devices = len(setup.devices)
    per_device = math.ceil(len(setup.groups[group].cells) / num_devices)
    if chunk is not None:
        return min(per_device, math.ceil(chunk / num_devices))
    if has_executor:
        return math.ceil(per_device / EXECUTOR_CHUNKS)
    if setup.devices[0].platform == "cpu":
        cell_seconds = setup.lane(group).traffic * setup.num_seeds / BYTES_PER_SECOND
        steady = math.ceil(CHUNK_SECONDS / max(cell_seconds, 1e-9))
        enough = math.ceil(MIN_LANES / setup.num_seeds)
        return min(per_device, max(steady, enough))
    return per_device
