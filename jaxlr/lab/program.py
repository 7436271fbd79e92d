"""A traced lane as a compiled program: seeds outside, cells inside, devices around.

Every chunk width is a `vmap` of one trace. Inside a seed the key is not batched, so
what depends on the seed alone exists once a seed. The cell axis is sharded by
`shard_map`, in which lanes never talk.
"""

from collections.abc import Callable, Sequence
import dataclasses
import functools as ft
from typing import Any

import jax
from jax.sharding import PartitionSpec as P
import numpy as np

from jaxlr.core import compat
from jaxlr.core.types import Experiment
from jaxlr.lab.lane import Lane


@dataclasses.dataclass(frozen=True, eq=False)
class Program:
    """A lane, many seeds and `width` cells wide on each device, compiled.

    Attributes:
        lane: What it runs.
        num_seeds: Seeds in one call.
        num_cells: Cells in one call: width times the number of devices.
        bytes: What the compiler says that one device needs.
    """

    lane: Lane
    num_seeds: int
    num_cells: int
    bytes: int
    call: Callable[..., Sequence[jax.Array | np.ndarray]]

    def initial_state(self) -> list[np.ndarray]:
        """A state to start a segmented run from; step 0 does not read it."""
        lead = (self.num_seeds, self.num_cells)
        state = self.lane.state or []
        return [np.zeros(lead + x.shape, x.dtype) for x in state]


def chunk_function(lane: Lane) -> Callable[..., list[jax.Array]]:
    """All seeds of all cells of one device: leaves get (seed, cell) in front."""
    names = sorted(lane.dtypes)

    def one(seed, index, columns, state, times):
        return lane.function(seed, index, *columns, *state, *times)

    over_cells = jax.vmap(one, (None, None, 0, 0, None))
    over_seeds = jax.vmap(over_cells, (None, 0, None, 0, None))

    def chunk(seed, indices, values, state=(), times=()):
        columns = [values[name] for name in names]
        return over_seeds(seed, indices, columns, list(state), list(times))

    return chunk


def chunk_arguments(lane: Lane, num_cells: int, num_seeds: int) -> tuple[Any, ...]:
    """Shapes and dtypes of the arguments of `chunk_function`."""
    struct = jax.ShapeDtypeStruct
    arguments = (
        struct((), np.uint32),
        struct((num_seeds,), np.int32),
        {name: struct((num_cells,), dtype) for name, dtype in lane.dtypes.items()},
    )
    if lane.state is None:
        return arguments
    state = [struct((num_seeds, num_cells, *x.shape), x.dtype) for x in lane.state]
    return (*arguments, state, (struct((), np.int32), struct((), np.int32)))


def compile_program(
    experiment: Experiment,
    lane: Lane,
    *,
    width: int,
    num_seeds: int,
    devices: Sequence[jax.Device],
    backend: str,
) -> Program:
    """Compile `num_seeds` seeds of `width` cells a device, on all devices."""
    chunk = chunk_function(lane)
    num_cells = width * len(devices)
    arguments = chunk_arguments(lane, num_cells, num_seeds)
    with compat.x64(experiment.x64):
        if backend == "shard_map":
            cells, lanes = P("cell"), P(None, "cell")
            specs = (P(), P(), cells, lanes, P())[: len(arguments)]
            # Lanes never talk, so the check on varying axes has nothing to catch; left
            # on, it rejects a scan whose first carry does not depend on the cell.
            spread = jax.shard_map(
                chunk,
                mesh=compat.line_mesh(devices, "cell"),
                in_specs=specs,
                out_specs=lanes,
                check_vma=False,
            )
            donated = (3,) if lane.state is not None else ()
            lowered = jax.jit(spread, donate_argnums=donated).lower(*arguments)
            call = compiled = lowered.compile(compiler_options(lowered, devices))
        else:
            call, compiled = _pmap(chunk, arguments, devices)
    sizes: Any = compiled.memory_analysis()
    needed = (
        sizes.argument_size_in_bytes
        + sizes.output_size_in_bytes
        + sizes.temp_size_in_bytes
        # Of what lanes close over, GPUs' compilers count it as code, CPUs' as nothing.
        + max(sizes.generated_code_size_in_bytes, lane.closed_over)
        - sizes.alias_size_in_bytes
    )
    if devices[0].platform == "cpu":  # what is fetched lies beside the outputs
        needed += sizes.output_size_in_bytes
    return Program(lane, num_seeds, num_cells, needed, call)


def compiler_options(
    lowered: jax.stages.Lowered, devices: Sequence[jax.Device]
) -> dict[str, Any] | None:
    """One thread an operation for decompositions on CPUs, else jax's own choice.

    Two decompositions of batches at a time wait for each other's threads, on two cores
    for ever (seen with jaxlib 0.10.2: both in `jax::ParallelBatchMap`).
    """
    module: Any = lowered.compiler_ir("stablehlo")
    text = module.operation.get_asm(large_elements_limit=16)
    if devices[0].platform != "cpu" or "@lapack_" not in text:
        return None
    return {"xla_cpu_multi_thread_eigen": False}


def _pmap(chunk, arguments, devices):
    """`backend="pmap"`: the same chunk, its cell axis split by `jax.pmap`."""
    shape = (len(devices), -1)

    def split(axes):
        # (cells,) -> (devices, width) and (seeds, cells, ...) -> (seeds, devices, ...)
        def leaf(axis, x):
            if axis is None:
                return x
            x = np.asarray(x)
            return x.reshape(x.shape[:axis] + shape + x.shape[axis + 1 :])

        return lambda args: tuple(
            jax.tree.map(ft.partial(leaf, axis), arg)
            for axis, arg in zip(axes, args, strict=True)
        )

    axes = (None, None, 0, 1, None)[: len(arguments)]
    mapped = jax.pmap(chunk, in_axes=axes, out_axes=1, devices=devices)
    zeros = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), arguments)
    lowered = mapped.lower(*split(axes)(zeros))
    compiled = lowered.compile(compiler_options(lowered, devices))

    def call(*args):
        out = [np.asarray(x) for x in compiled(*split(axes)(args))]
        return [x.reshape(x.shape[0], -1, *x.shape[3:]) for x in out]

    return call, compiled
