"""One run whose measurements are spread over many devices."""

from collections.abc import Callable, Sequence
import dataclasses
from typing import Any

import jax
from jax.sharding import NamedSharding, PartitionSpec as P
from jaxtyping import Array, Key

from jaxlr.core import checks, compat, loop, Solver
from jaxlr.kernels import NormalRows
from jaxlr.sensing.operator import RowEnsemble
from jaxlr.sensing.problem import SensingProblem


_AXIS = "measurements"


def run_sharded(
    key: Key[Array, ""],
    solver_fn: Callable[[SensingProblem], Solver],
    problem: SensingProblem,
    num_steps: int,
    *,
    devices: Sequence[jax.Device] | None = None,
    every: int = 1,
) -> tuple[Any, Any]:
    """`loop.run` of one solver, each device holding a share of the measurements.

    For an ensemble that one device cannot hold. Devices sum the loss and the gradients
    of the factors, (n1 + n2) k + 1 numbers, in one message a step; methods that need
    A*(z) itself send n1 n2. The result is that of one device but for the rounding of
    those sums.

    Args:
        key: Source of the start and of the steps' randomness, the same on all devices.
        solver_fn: `solver_fn(problem) -> Solver`, such as `gd` with its settings; it is
            given this device's share of the problem, and uses no Pallas kernel.
        problem: The instance to solve, of stored or packed measurements of independent
            entries. Its arrays may lie on one device, or be spread over `devices` by
            their first axis already.
        num_steps: Number of steps. Static.
        devices: The devices that share the measurements; None for all. The number m of
            measurements must be a multiple of theirs. Static.
        every: The infos of every so many steps are kept. Static.

    Returns:
        `(state, infos)`, the same on all devices.

    Raises:
        ValueError: If `num_steps` or `every` is not an integer >= 1; for an ensemble
            that is not of stored or packed rows; if m is not a multiple of the number
            of devices.
    """
    num_steps = checks.count("num_steps", num_steps)
    every = checks.count("every", every)
    devices = jax.devices() if devices is None else list(devices)
    operator = problem.operator
    if not isinstance(operator, RowEnsemble) or isinstance(operator.rows, NormalRows):
        raise ValueError(
            "`problem.operator` must be of stored or packed rows to be spread, got "
            f"{type(operator).__name__}."
        )
    if operator.rows.num_rows % len(devices):
        raise ValueError(
            f"the number of measurements must be a multiple of the {len(devices)} "
            f"`devices`, got {operator.rows.num_rows}."
        )
    spread = dataclasses.replace(
        problem, operator=dataclasses.replace(operator, axis_name=_AXIS)
    )
    specs = jax.tree_util.tree_map_with_path(
        lambda path, _: P(_AXIS) if path[0].name in ("operator", "y") else P(), spread
    )
    mesh = compat.line_mesh(devices, _AXIS)
    if checks.known(spread):
        shardings = jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs)
        spread = jax.device_put(spread, shardings)
    run = jax.shard_map(
        lambda key, share: loop.run(key, solver_fn(share), num_steps, every=every),
        mesh=mesh,
        in_specs=(P(), specs),
        out_specs=P(),
    )
    return jax.jit(run)(key, spread)
