"""The loops that drive a `Solver`: a scan, and a bounded loop with a tolerance.

Step t draws from `fold_in(loop_key, t)`, here and in the sweep engine's segments, so
that a run may be cut anywhere.
"""

from collections.abc import Callable
import enum
from typing import Any, NamedTuple

import equinox.internal as eqxi
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, Int, Key, PyTree

from jaxlr.core import tree
from jaxlr.core.types import Experiment, Solver


class Status(enum.IntEnum):
    """How a bounded run ended; `sentence` says it."""

    CONVERGED = 0
    MAX_STEPS = 1
    DIVERGED = 2

    @property
    def sentence(self) -> str:
        """What happened, for a reader."""
        return (
            "The tolerance was met.",
            "The step budget ended before the tolerance was met.",
            "A value became infinite or NaN.",
        )[self]


class Bounded(NamedTuple):
    """What `run_until` returns.

    Attributes:
        state: The last state.
        info: The info of the last step taken.
        num_steps: Steps taken.
        status: A `Status`, as an integer array.
    """

    state: PyTree
    info: PyTree
    num_steps: Int[Array, ""]
    status: Int[Array, ""]


def check_num_steps(num_steps: int, every: int = 1) -> None:
    """Raises `ValueError` unless both are integers of at least 1."""
    for name, value in (("num_steps", num_steps), ("every", every)):
        if not isinstance(value, int) or value < 1:
            raise ValueError(f"`{name}` must be an integer >= 1, got {value!r}.")


def run(
    key: Key[Array, ""],
    solver: Solver,
    num_steps: int,
    *,
    every: int = 1,
    state: PyTree | None = None,
) -> tuple[PyTree, PyTree]:
    """Take `num_steps` steps by `lax.scan`; `has_ended` is not consulted.

    Args:
        key: Split into an init key and a loop key.
        solver: What to run.
        num_steps: Static.
        every: Keep the infos of steps 0, every, 2 every, ... only. Static.
        state: Start here instead of at `solver.init`.

    Returns:
        `(last_state, infos)`; infos have a leading axis of ceil(num_steps / every).

    Raises:
        ValueError: If `num_steps` or `every` is not an integer of at least 1.
    """
    check_num_steps(num_steps, every)
    init_key, loop_key = jr.split(key)
    if state is None:
        state = solver.init(init_key)

    def body(state, t):
        return solver.step(jr.fold_in(loop_key, t), state)

    def block(state, times):
        state, infos = jax.lax.scan(body, state, times)
        return state, jax.tree.map(lambda x: x[0], infos)

    times = jnp.arange(num_steps)
    if every == 1:
        return jax.lax.scan(body, state, times)
    whole = num_steps - num_steps % every
    state, infos = jax.lax.scan(block, state, times[:whole].reshape(-1, every))
    if whole < num_steps:
        state, last = block(state, times[whole:])
        infos = jax.tree.map(lambda x, y: jnp.append(x, y[None], axis=0), infos, last)
    return state, infos


def run_until(
    key: Key[Array, ""],
    solver: Solver,
    max_num_steps: int,
    *,
    tolerance: float | Float[Array, ""] | None = None,
    value_fn: Callable[[Any], Float[Array, ""]] = lambda info: info.loss,
    state: PyTree | None = None,
) -> Bounded:
    """Step until `value_fn(info) <= tolerance` or `solver.has_ended(state)`.

    Stops too when a step makes a value that is not finite. Reverse-differentiable (the
    loop keeps O(sqrt(max_num_steps)) checkpoints); under `vmap` it runs until the last
    lane ends, the others frozen.

    Args:
        key: Split into an init key and a loop key.
        solver: What to run.
        max_num_steps: The bound. Static.
        tolerance: On `value_fn`; None leaves the decision to `solver.has_ended`.
        value_fn: Reads the watched scalar from an info; `info.loss` by default.
        state: Start here instead of at `solver.init`.

    Raises:
        ValueError: If `max_num_steps < 1`, or with neither tolerance nor `has_ended`.
    """
    check_num_steps(max_num_steps)
    if tolerance is None and solver.has_ended is None:
        raise ValueError("`run_until` needs a `tolerance` or a solver with has_ended.")
    init_key, loop_key = jr.split(key)
    if state is None:
        state = solver.init(init_key)

    def has_converged(state, info):
        ended = jnp.asarray(False)
        if tolerance is not None:
            ended |= value_fn(info) <= tolerance
        if solver.has_ended is not None:
            ended |= solver.has_ended(state)
        return ended

    def body(carry: Bounded) -> Bounded:
        step_key = jr.fold_in(loop_key, carry.num_steps)
        state, info = solver.step(step_key, carry.state)
        status = jnp.where(has_converged(state, info), Status.CONVERGED, carry.status)
        has_diverged = tree.has_diverged(carry.state, state, info)
        status = jnp.where(has_diverged, Status.DIVERGED, status)
        return Bounded(state, info, carry.num_steps + 1, status)

    _, info = jax.eval_shape(solver.step, loop_key, state)
    info = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), info)
    return eqxi.while_loop(
        lambda carry: carry.status == Status.MAX_STEPS,
        body,
        Bounded(state, info, jnp.asarray(0), jnp.asarray(int(Status.MAX_STEPS))),
        max_steps=max_num_steps,
        kind="checkpointed",
    )


def num_steps_of(experiment: Experiment, hparams: Any) -> int:
    """Length of a long run at `hparams`.

    Raises:
        ValueError: If it is not an integer of at least 1.
    """
    num_steps = experiment.num_steps
    num_steps = num_steps(hparams) if callable(num_steps) else num_steps
    if not isinstance(num_steps, int) or num_steps < 1:
        raise ValueError(f"`num_steps` must be an integer >= 1, got {num_steps!r}.")
    return num_steps


def closed_form(experiment: Experiment) -> Callable[[Key[Array, ""], Any], PyTree]:
    """A long-run experiment as one `run(key, hparams)`: a single scan.

    `has_ended` is not consulted: lanes run to the end of their steps.

    Raises:
        ValueError: If the experiment has no `solver`.
    """
    solver_fn = experiment.solver
    if solver_fn is None:
        raise ValueError("`closed_form` takes an experiment with a `solver`.")

    def run_closed(key, hparams):
        problem_key, solve_key = jr.split(key)
        num_steps = num_steps_of(experiment, hparams)
        solver = solver_fn(problem_key, hparams)
        return run(solve_key, solver, num_steps, every=experiment.every)[1]

    return run_closed
