"""Compile for a TPU or GPU without one: its own compiler, on a described chip.

Layout errors, unsupported operations and overflowing memory show here, before a machine
is rented. Nothing is run.
"""

from collections.abc import Callable
import contextlib
import dataclasses
import importlib.util
import os
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxlr.core import checks, compat
from jaxlr.lab.memory import format_bytes


_GIB = 2**30
_OLDEST_JAX = {"tpu": (0, 8), "cuda": (0, 9)}
# From xla/backends/gpu/target_config/specs/h100_sxm.txtpb of openxla/xla.
_H100 = """
gpu_device_info {
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: 49152
  shared_memory_per_core: 233472
  threads_per_core_limit: 2048
  core_count: 132
  fpus_per_core: 128
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  memory_bandwidth: 3352320000000
  l2_cache_size: 52428800
  clock_rate_ghz: 1.98
  device_memory_size: 84942979072
  shared_memory_per_block_optin: 232448
  cuda_compute_capability { major: 9 feature_extension: ACCELERATED_FEATURES }
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 10 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""


@dataclasses.dataclass(frozen=True)
class Chip:
    """A chip as its compiler sees one device of it.

    Attributes:
        name: The name that people call it by.
        topology: What the compiler is told of it: for a TPU the name of the smallest
            topology, a single chip; for a GPU all its sizes.
        hbm: Bytes that a program may use, the runtime's own share taken off; of a GPU
            all there are.
        platform: "tpu" or "cuda".
    """

    name: str
    topology: str
    hbm: int
    platform: str = "tpu"


CHIPS = {
    "v4": Chip("TPU v4 (one of its two cores)", "v4:1x1x1", int(15.25 * _GIB)),
    "v5e": Chip("TPU v5e", "v5e:1x1", int(15.75 * _GIB)),
    "v5p": Chip("TPU v5p", "v5p:1x1x1", int(95.74 * _GIB)),
    "v6e": Chip("TPU v6e", "v6e:1x1", int(31.25 * _GIB)),
    "h100": Chip("NVIDIA H100 SXM", _H100, 84942979072, "cuda"),
}


class DoesNotFitError(ValueError):
    """The program needs more of a memory than the chip has.

    Attributes:
        memory: "HBM", "VMEM" or "shared memory".
        needed: Bytes that the compiler asked for.
        available: Bytes that there are.
    """

    def __init__(self, target: str, memory: str, needed: int, available: int, why: str):
        self.memory, self.needed, self.available = memory, needed, available
        advice = (
            "use a smaller chunk, or keep fewer curves"
            if memory == "HBM"
            else "use smaller blocks in the kernel"
        )
        super().__init__(
            f"Does not fit {CHIPS[target].name}: {format_bytes(needed)} of {memory} "
            f"needed, {format_bytes(available)} available; {advice}. Compiler: {why}"
        )


@dataclasses.dataclass(frozen=True, eq=False)
class Compilation:
    """A program compiled for one device. All sizes in bytes, padding included.

    Attributes:
        target: The name of the chip that `compile_for` was given.
        chip: The full name of the chip.
        arguments: Size of the arguments.
        outputs: Size of the results.
        aliased: Size of the results that lie where donated arguments lay.
        temporaries: Memory that the program needs beside those while it runs.
        generated_code: Size of the program itself.
        hbm: Memory that one device has.
        compiled: The compiled program, which cannot be called on this machine.
    """

    target: str
    chip: str
    arguments: int
    outputs: int
    aliased: int
    temporaries: int
    generated_code: int
    hbm: int
    compiled: jax.stages.Compiled

    @property
    def total(self) -> int:
        """Bytes that one run needs at once."""
        held = self.arguments + self.outputs - self.aliased
        return held + self.temporaries + self.generated_code

    @property
    def fits(self) -> bool:
        """Whether `total` is within `hbm`."""
        return self.total <= self.hbm


def compile_for(target: str, fn: Callable[..., Any], *args: Any) -> Compilation:
    """Compile `fn(*args)` for a TPU or GPU by its own compiler; none is needed.

    The program is traced with 64-bit types off, as a TPU runs it: float64 arguments
    become float32. Where `fn` picks an implementation by backend, the backend is this
    machine's: name the implementation to compile a Pallas kernel.

    Args:
        target: Name of the chip: "v4", "v5e", "v5p", "v6e" or "h100".
        fn: A function of pytrees of arrays; it may be jitted already.
        *args: Its arguments: arrays, `jax.ShapeDtypeStruct`s, typed keys, numbers, or
            pytrees of such.

    Returns:
        Sizes, and the compiled program.

    Raises:
        ValueError: On an unknown target; where its compiler is missing or too old; a
            `DoesNotFitError` where a memory overflows, but for a GPU's HBM.
    """
    chip = CHIPS[checks.choice("target", target, CHIPS)]
    if reason := why_not(chip.platform):
        raise ValueError(reason)
    with _quiet_libtpu():
        device = _device(chip)
        sharding = jax.sharding.SingleDeviceSharding(device)

        def described(x):
            if not hasattr(x, "dtype"):
                x = np.asarray(x)
            dtype = x.dtype
            if not jnp.issubdtype(dtype, jax.dtypes.extended):
                dtype = jax.dtypes.canonicalize_dtype(dtype)
            return jax.ShapeDtypeStruct(x.shape, dtype, sharding=sharding)

        with compat.x64(False):
            structs = jax.tree.map(described, args)
            jitted: Any = fn if hasattr(fn, "lower") else jax.jit(fn)
            traced = jitted.trace(*structs)
            with jax.default_device(device):  # of which Triton asks what it can do
                lowered = traced.lower()
            try:
                compiled = lowered.compile()
            except jax.errors.JaxRuntimeError as e:
                raise _overflow(target, str(e)) or e from e
    sizes: Any = compiled.memory_analysis()
    return Compilation(
        target=target,
        chip=chip.name,
        arguments=sizes.argument_size_in_bytes,
        outputs=sizes.output_size_in_bytes,
        aliased=sizes.alias_size_in_bytes,
        temporaries=sizes.temp_size_in_bytes,
        generated_code=sizes.generated_code_size_in_bytes,
        hbm=chip.hbm,
        compiled=compiled,
    )


def why_not(platform: str = "tpu") -> str:
    """Why `compile_for` cannot work here, as a sentence; empty if it can."""
    if platform == "tpu":
        chip, package, extra = "a TPU", "libtpu", "aot"
        reason = "the libtpu of older versions crashes without a TPU"
        is_there = importlib.util.find_spec("libtpu")
    else:
        chip, package, extra = "a GPU", "jax's CUDA plugin", "aot-cuda"
        reason = "older versions time products on a GPU"
        is_there = importlib.util.find_spec("jax_plugins") and any(
            importlib.util.find_spec(f"jax_plugins.xla_cuda{n}") for n in (12, 13)
        )
    oldest = _OLDEST_JAX[platform]
    if jax.__version_info__ < oldest:
        return (
            f"Compiling for {chip} needs jax >= {oldest[0]}.{oldest[1]}, here is "
            f"{jax.__version__}: {reason}."
        )
    if not is_there:
        return (
            f"Compiling for {chip} needs {package}, which is not installed: "
            f'pip install "jaxlr[{extra}]".'
        )
    return ""


def _device(chip: Chip) -> Any:
    """One to compile for."""
    from jax.experimental import topologies

    described = topologies.get_topology_desc
    if chip.platform == "tpu":
        topology = described(
            platform="tpu",
            topology_name=chip.topology,
            chips_per_host_bounds=(1, 1, 1),
        )
    else:
        try:
            topology = described(
                platform="cuda",
                topology_name="",
                topology="1x1x1",
                target_config=chip.topology,
            )
        except NotImplementedError as e:
            raise ValueError(
                "jax has not loaded its CUDA plugin, as there is no GPU: set "
                "JAX_PLATFORMS=cpu and JAX_SKIP_CUDA_CONSTRAINTS_CHECK=1 before it "
                "starts."
            ) from e
    return topology.devices[0]


@contextlib.contextmanager
def _quiet_libtpu():
    """Libtpu asks the cloud about this machine unless told not to."""
    wanted = {
        "TPU_SKIP_MDS_QUERY": "1",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
        "TPU_ACCELERATOR_TYPE": "v5litepod-1",
        "TPU_WORKER_HOSTNAMES": "localhost",
    }
    added = {k: v for k, v in wanted.items() if k not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)


_SIZE = r"([\d.]+[KMGT]?)"
_OVERFLOWS = (  # what the compiler says, and of which memory
    (rf"on HBM.*?\({_SIZE}\).*?available HBM \({_SIZE}\)", "HBM"),
    (r"size=(\d+)\) would exceed memory \(size=(\d+)\).*vmem", "VMEM"),
    (rf"Used {_SIZE} of {_SIZE} hbm", "HBM"),
    (rf"Used {_SIZE} of {_SIZE} vmem", "VMEM"),
    (r"Shared memory size .*requested (\d+), available: (\d+)", "shared memory"),
)
_UNITS = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


def _overflow(target: str, text: str) -> DoesNotFitError | None:
    """The compiler's words on exhausted memory as an error with sizes."""

    def number(size: str) -> int:
        unit = _UNITS.get(size[-1], 1)
        return int(float(size.rstrip("KMGT")) * unit)

    for pattern, memory in _OVERFLOWS:
        if found := re.search(pattern, text, re.S):
            needed, available = map(number, found.groups())
            why = " ".join(text.split())[:300]
            return DoesNotFitError(target, memory, needed, available, why)
    return None
