"""What this machine has, and what would not work on it and why."""

from collections.abc import Iterable
import importlib.metadata
import importlib.util
import os
import platform
from typing import Any, NamedTuple

import jax

import jaxlr
from jaxlr.lab import aot, memory, report


_PACKAGES = """
    jax jaxlib libtpu equinox optax chex jaxtyping numpy xarray tyro rich matplotlib
    filelock scikit-learn statsmodels cloudpickle dask submitit ipywidgets
""".split()


class Limit(NamedTuple):
    """Something that does not work here, or not as one might think.

    Attributes:
        what: The commands, packages or operations that it concerns.
        why: The reason, and what can be done about it.
    """

    what: str
    why: str


def versions() -> dict[str, str]:
    """Name -> version, `-` where it is not installed."""
    found = {"python": platform.python_version(), "jaxlr": jaxlr.__version__}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "-"
    return found


def devices() -> tuple[list[jax.Device], str]:
    """The default backend's devices, and why there are none."""
    try:
        return jax.devices(), ""
    except RuntimeError as e:
        return [], " ".join(str(e).split())


def machine() -> dict[str, str]:
    """Cores, memory and precision defaults."""
    cores = os.cpu_count() or 1
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else cores
    config: Any = jax.config
    return {
        "machine": f"{platform.system()} {platform.machine()}",
        "cores": f"{usable} usable of {cores}",
        "memory free": memory.format_bytes(memory.host_bytes())
        + " (the machine's, or what is left of a cgroup's or this process's limit)",
        "memory limit": os.environ.get(memory.LIMIT_VARIABLE, "")
        or f"none set ({memory.LIMIT_VARIABLE}, bytes)",
        "64-bit types": ("on" if config.jax_enable_x64 else "off")
        + " (an experiment with x64 turns them on for itself)",
        "matmul precision": config.jax_default_matmul_precision
        or "the backend's own: float32 on a CPU, lower on GPU and TPU",
        "platforms asked for": config.jax_platforms or "any",
    }


def limits(found: Iterable[Any]) -> list[Limit]:
    """What would not work with these devices and the installed packages, and why."""
    rows = []
    for maker, name in (("tpu", "TPUs"), ("cuda", "GPUs")):
        if reason := aot.why_not(maker):
            rows.append(Limit(f"jaxlr compile for {name}, tests marked aot", reason))
    for package, what, extra in (
        ("sklearn", "experiments on photographs and digits", "data"),
        ("statsmodels", "experiments on the record of carbon dioxide", "data"),
        ("distributed", "sweeps on a Dask cluster", "cluster"),
        ("submitit", "sweeps by SLURM through submitit", "cluster"),
        ("cloudpickle", "executors for what a notebook or script defines", "cluster"),
        ("ipywidgets", "a bar of progress in notebooks, which have lines", ""),
    ):
        if importlib.util.find_spec(package) is None:
            source = f'"jaxlr[{extra}]"' if extra else package
            why = f"{package} is not installed: pip install {source}."
            rows.append(Limit(what, why))
    for device in {device.platform: device for device in found}.values():
        rows += _device_limits(device)
    return rows


def _device_limits(device: Any) -> list[Limit]:
    if device.platform == "cpu":
        why = "No accelerator: kernels take their XLA twin; Pallas is interpreted."
        return [Limit("Pallas kernels at speed", why)]
    if device.platform == "tpu":
        return [
            Limit(
                "x64 experiments, complex numbers",
                "A TPU has neither float64 nor complex: --device cpu, or --no-x64.",
            ),
            Limit("jnp.linalg.eig", "Exists on a CPU only: do it at initialization."),
            _low_precision("bfloat16"),
        ]
    rows = [
        Limit(
            "jnp.linalg.eig",
            "Exists on a CPU, and on a GPU with MAGMA: do it at initialization.",
        ),
        _low_precision("TF32"),
    ]
    capability = getattr(device, "compute_capability", None)
    if capability and float(capability) < 8:
        why = f"Compute capability {capability}, Triton needs 8.0: XLA twins are used."
        rows.append(Limit("Pallas kernels", why))
    return rows


def _low_precision(kind: str) -> Limit:
    if jax.config.jax_default_matmul_precision:  # pyright: ignore
        return Limit("float32 products", "The default precision has been changed.")
    return Limit(
        "float32 products",
        f'Default to {kind} here; ask for precision="highest" where digits matter.',
    )


def diagnose() -> dict[str, Any]:
    """Print all of it, whatever is missing, and return it."""
    console = report.console()
    present, failure = devices()
    keys = "id", "platform", "kind", "memory"
    rows = [(d.id, d.platform, d.device_kind, _memory(d)) for d in present]
    found = {
        "versions": versions(),
        "machine": machine(),
        "devices": [dict(zip(keys, row, strict=True)) for row in rows],
        "failure": failure,
        "limits": [limit._asdict() for limit in limits(present)],
    }
    console.print(report.attributes_table(found["versions"], "Versions"))
    console.print(report.attributes_table(found["machine"], "Machine"))
    title = "Devices" + (f": none, {failure}" if failure else "")
    console.print(report.table(keys, rows, title))
    limited = [tuple(limit.values()) for limit in found["limits"]]
    console.print(report.table(("what", "why"), limited, "What would not work here"))
    return found


def _memory(device: jax.Device) -> str:
    stats = device.memory_stats() if device.platform != "cpu" else None
    if not stats or "bytes_limit" not in stats:
        return "the host's" if device.platform == "cpu" else "not said"
    used = memory.format_bytes(stats.get("bytes_in_use", 0))
    return f"{memory.format_bytes(stats['bytes_limit'])}, {used} in use"
