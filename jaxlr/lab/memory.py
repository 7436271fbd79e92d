"""How much memory a device has, and the widest chunk that fits into it."""

from collections.abc import Callable, Sequence
import dataclasses
import os
from pathlib import Path
import resource

import jax


LIMIT_VARIABLE = "JAXLR_MEMORY_LIMIT"
SHARE = 0.8  # of what is free: compilers count buffers, not their libraries' scratch


@dataclasses.dataclass(frozen=True)
class Machine:
    """What runs chunks: this process, or a worker.

    Attributes:
        platform: Name of the platform, as `cpu`.
        device_kind: What kind of devices it has.
        num_devices: Number of devices that share a chunk.
        available_bytes: Free bytes of one of them.
    """

    platform: str
    device_kind: str
    num_devices: int
    available_bytes: int

    @classmethod
    def of(cls, devices: Sequence[jax.Device]) -> "Machine":
        """The machine that has these devices, all of one kind."""
        one, free = devices[0], available_bytes(devices)
        return cls(one.platform, one.device_kind, len(devices), free)


def format_bytes(number: float) -> str:
    """A number of bytes in the binary unit that suits it."""
    for unit in ("B", "KiB", "MiB"):
        if abs(number) < 1024:
            return f"{number:.4g} {unit}"
        number /= 1024
    return f"{number:.4g} GiB"


def available_bytes(devices: Sequence[jax.Device]) -> int:
    """Free bytes of one device; on a host, an equal share of its free memory.

    `JAXLR_MEMORY_LIMIT`, bytes that this process may use in all, lowers it.
    """
    stats = devices[0].memory_stats() if devices[0].platform != "cpu" else None
    if stats and "bytes_limit" in stats:
        free = [d.memory_stats() or {} for d in devices]
        return min(s["bytes_limit"] - s.get("bytes_in_use", 0) for s in free)
    return host_bytes() // len(devices)


def host_bytes() -> int:
    """Free bytes of this process: the machine's, its cgroup's, its own limits'.

    Raises:
        ValueError: If `JAXLR_MEMORY_LIMIT` is set to something else than a number.
    """
    found = [_machine_free()]
    found += [limit - used for limit, used in (*_cgroups(), *_own_limits())]
    if value := os.environ.get(LIMIT_VARIABLE):
        if not value.isdigit():
            raise ValueError(f"{LIMIT_VARIABLE} must be a number of bytes: {value!r}.")
        found.append(int(value) - _own("VmRSS"))
    return max(0, min(found))


def _figure(path: str, name: str) -> int | None:
    """A figure that Linux gives in KiB, in bytes; None on other systems."""
    try:
        lines = Path(path).read_text().splitlines()
    except OSError:
        return None
    fields = dict(line.split(":", 1) for line in lines if ":" in line)
    return int(fields[name].split()[0]) * 1024


def _own(name: str) -> int:
    """A figure of this process's status, in bytes; 0 where there is none."""
    return _figure("/proc/self/status", name) or 0


def _machine_free() -> int:
    free = _figure("/proc/meminfo", "MemAvailable")
    if free is None:  # half of what is built in
        free = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    return free


def _cgroups():
    """(limit, used) of every cgroup above this process that has a limit."""
    try:
        entries = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    root = Path("/sys/fs/cgroup")
    for entry in entries:
        _, controllers, path = entry.split(":", 2)
        if controllers == "":
            base, limit, used = root, "memory.max", "memory.current"
        elif "memory" in controllers.split(","):
            base = root / "memory"
            limit, used = "memory.limit_in_bytes", "memory.usage_in_bytes"
        else:
            continue
        folder = base / path.strip("/")
        for place in (folder, *folder.parents):
            if not place.is_relative_to(base):
                break
            try:
                texts = [(place / name).read_text().strip() for name in (limit, used)]
            except OSError:
                continue
            if texts[0] != "max":
                yield int(texts[0]), int(texts[1]) - _reclaimable(place)


def _reclaimable(folder: Path) -> int:
    """Bytes of a cgroup's page cache that it gives up when asked."""
    try:
        lines = (folder / "memory.stat").read_text().splitlines()
    except OSError:
        return 0
    stat = dict(line.split() for line in lines if len(line.split()) == 2)
    return int(stat.get("total_inactive_file", stat.get("inactive_file", 0)))


def _own_limits():
    """(limit, used) of the process's own address-space and data limits."""
    for kind, name in (
        (resource.RLIMIT_AS, "VmSize"),
        (resource.RLIMIT_DATA, "VmData"),
    ):
        limit = resource.getrlimit(kind)[0]
        if limit == resource.RLIM_INFINITY:
            continue
        yield limit, _own(name)


def line_through(
    bytes_at: Callable[[int], int], widths: tuple[int, int]
) -> tuple[float, float]:
    """Intercept and slope of bytes against chunk width, from two small compiles."""
    low, high = widths
    slope = max((bytes_at(high) - bytes_at(low)) / (high - low), 1.0)
    return bytes_at(low) - slope * low, slope


def widest(line: tuple[float, float], budget: float) -> int:
    """The largest width whose bytes are within the budget; 0 if none is."""
    intercept, slope = line
    return max(0, int((budget - intercept) // slope))
