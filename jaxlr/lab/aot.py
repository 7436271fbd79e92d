"""Compile for a TPU without one: libtpu's own compiler, on a described chip.

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

from jaxlr.core import compat, errors


_GIB = 2**30
_OLDEST_JAX = (0, 8)  # the libtpu of 0.7 crashes the process


@dataclasses.dataclass(frozen=True)
class Chip:
    """A TPU generation as its compiler sees one device of it.

    Attributes:
        name: As people call it.
        topology: The smallest one, a single chip.
        hbm: Bytes that a program may use, the runtime's own share taken off.
    """

    name: str
    topology: str
    hbm: int


CHIPS = {
    "v4": Chip("TPU v4 (one of its two cores)", "v4:1x1x1", int(15.25 * _GIB)),
    "v5e": Chip("TPU v5e", "v5e:1x1", int(15.75 * _GIB)),
    "v5p": Chip("TPU v5p", "v5p:1x1x1", int(95.74 * _GIB)),
    "v6e": Chip("TPU v6e", "v6e:1x1", int(31.25 * _GIB)),
}


class DoesNotFitError(ValueError):
    """The program needs more of a memory than the chip has.

    Attributes:
        memory: "HBM" or "VMEM".
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
            f"Does not fit {CHIPS[target].name}: {needed / _GIB:.4g} GiB of {memory} "
            f"needed, {available / _GIB:.4g} GiB available; {advice}. Compiler: {why}"
        )


@dataclasses.dataclass(frozen=True, eq=False)
class Compilation:
    """A program compiled for one device of a TPU. All sizes in bytes, padding included.

    Attributes:
        target: As given.
        chip: Its full name.
        arguments: What the arguments take.
        outputs: What the results take.
        aliased: Outputs that lie where donated arguments lay.
        temporaries: What the program needs beside those while it runs.
        generated_code: What the program itself takes.
        hbm: What one device has.
        compiled: The `jax.stages.Compiled`; cannot be called here.
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
    """Compile `fn(*args)` for a TPU by its own compiler; no TPU is needed.

    The program is traced with 64-bit types off, as a TPU runs it: float64 arguments
    become float32. Where `fn` picks an implementation by backend, the backend is this
    machine's: name the implementation to compile a Pallas kernel.

    Args:
        target: "v4", "v5e", "v5p" or "v6e".
        fn: A function of pytrees of arrays; jitted already or not.
        *args: Arrays, `jax.ShapeDtypeStruct`s, typed keys, numbers, or pytrees of such.

    Returns:
        Sizes, and the compiled program.

    Raises:
        ValueError: On an unknown target; where libtpu is missing or too old; a
            `DoesNotFitError` where HBM or VMEM overflows.
    """
    if target not in CHIPS:
        raise ValueError(errors.unknown("target", target, CHIPS))
    if reason := why_not():
        raise ValueError(reason)
    chip = CHIPS[target]
    with _quiet_libtpu():
        from jax.experimental import topologies

        topology = topologies.get_topology_desc(
            platform="tpu",
            topology_name=chip.topology,
            chips_per_host_bounds=(1, 1, 1),
        )
        sharding = jax.sharding.SingleDeviceSharding(topology.devices[0])

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
            lowered = jitted.lower(*structs)
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


def why_not() -> str:
    """Why `compile_for` cannot work here, as a sentence; empty if it can."""
    if jax.__version_info__ < _OLDEST_JAX:
        return (
            f"Compiling for a TPU needs jax >= 0.8, here is {jax.__version__}: the "
            "libtpu of older versions crashes without a TPU."
        )
    if importlib.util.find_spec("libtpu") is None:
        return (
            "Compiling for a TPU needs libtpu, which is not installed: "
            'pip install "jaxlr[aot]".'
        )
    return ""


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
