"""The loops that drive a `Solver`: a scan, and a bounded loop with a tolerance.

Step t, counted from the start of the run, draws from `fold_in(loop_key, t)`:
`take_step` says so for the loops and for the sweep engine's segments, so that a run may
be cut anywhere.
"""

from collections.abc import Callable
import enum
from typing import Any, NamedTuple

import equinox as eqx
import equinox.internal as eqxi
import jax
from jax.experimental.xla_metadata import set_xla_metadata
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, Int, Key, PyTree

from jaxlr.core import checks, tree
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
        num_steps: Number of steps taken in this call.
        status: A `Status`, as an integer array.
    """

    state: PyTree
    info: PyTree
    num_steps: Int[Array, ""]
    status: Int[Array, ""]


def split_key(
    key: Key[Array, ""],
) -> tuple[Key[Array, ""], Key[Array, ""]]:
    """The two keys that `key` gives a run, `(init_key, loop_key)`: start and steps."""
    init_key, loop_key = jr.split(key)
    return init_key, loop_key


def take_step(
    solver: Solver, loop_key: Key[Array, ""], t: Int[Array, ""] | int, state: PyTree
) -> tuple[PyTree, PyTree]:
    """Step `t` of a run by `solver`, counted from the run's start: `(state, info)`.

    It draws from `fold_in(loop_key, t)`: here alone is that written.
    """
    return solver.step(jr.fold_in(loop_key, t), state)


def run(
    key: Key[Array, ""],
    solver: Solver,
    num_steps: int,
    *,
    first_step: int | Int[Array, ""] = 0,
    every: int = 1,
    state: PyTree | None = None,
    watch_fn: Callable[[Any], PyTree] | None = None,
) -> tuple[PyTree, PyTree]:
    """Take steps `first_step`, ..., `first_step + num_steps - 1` by `lax.scan`.

    A run that is cut is the whole run, bit for bit: with the same key, go on from the
    last state, with `first_step` the number of steps taken before. `has_ended` is not
    consulted.

    Args:
        key: The key of the run, the same for all of its pieces; see `split_key`.
        solver: The method to run.
        num_steps: Number of steps to take. Static.
        first_step: Number of steps that led to `state`. It may be traced if `every` is
            1.
        every: A row is kept of each step t that is a multiple of `every`, t counted
            from the start of the run. Static.
        state: The state to start from; None for `solver.init`.
        watch_fn: `watch_fn(state) -> metrics`, called for the rows alone, with the
            state before the step; its metrics take the place of the infos, which are
            then not computed. None keeps the solver's infos.

    Returns:
        `(last_state, rows)`: infos, or what `watch_fn` returns, with an axis in front
        for the multiples of `every` among the steps taken. There may be none.

    Raises:
        ValueError: If `num_steps` or `every` is not an integer >= 1, if `first_step` is
            not one >= 0 or is traced with `every > 1`, or if `first_step` comes without
            `state`.
    """
    num_steps = checks.count("num_steps", num_steps)
    every = checks.count("every", every)
    if every > 1:
        first_step = checks.count("first_step", first_step, least=0)
    loop_key, state, static = _start(key, solver, first_step, state)

    def advance(state, times):
        def body(state, t):
            state, info = take_step(solver, loop_key, t, eqx.combine(state, static))
            return tree.partition(state)[0], info if watch_fn is None else None

        return _scan(body, state, times)

    def block(state, times):
        if watch_fn is None:
            state, infos = advance(state, times)
            return state, jax.tree.map(lambda x: x[0], infos)
        row = watch_fn(eqx.combine(state, static))
        return advance(state, times)[0], row

    times = first_step + jnp.arange(num_steps)
    if every == 1 and watch_fn is None:
        state, rows = advance(state, times)
        return eqx.combine(state, static), rows
    head = min(-first_step % every, num_steps) if every > 1 else 0
    whole = num_steps - (num_steps - head) % every
    if head:
        state, _ = advance(state, times[:head])
    state, rows = _scan(block, state, times[head:whole].reshape(-1, every))
    if whole < num_steps:
        state, row = _scan(block, state, times[None, whole:])
        rows = jax.tree.map(lambda *x: jnp.concatenate(x), rows, row)
    return eqx.combine(state, static), rows


def run_until(
    key: Key[Array, ""],
    solver: Solver,
    max_steps: int,
    *,
    tolerance: float | Float[Array, ""] | None = None,
    value_fn: Callable[[Any], Float[Array, ""]] = lambda info: info.loss,
    first_step: int | Int[Array, ""] = 0,
    state: PyTree | None = None,
) -> Bounded:
    """Step until `value_fn(info) <= tolerance` or `solver.has_ended(state)`.

    Stops too when a step makes a value that is not finite. Reverse-differentiable (the
    loop keeps O(sqrt(max_steps)) checkpoints); under `vmap` it runs until the last lane
    ends, the others frozen. A run that is cut is the whole run, as for `run`.

    Args:
        key: The key of the run, the same for all of its pieces; see `split_key`.
        solver: The method to run.
        max_steps: Bound on the number of steps to take. Static.
        tolerance: The run ends when `value_fn` is not above it; None leaves that to
            `solver.has_ended`.
        value_fn: Reads the watched scalar from an info; `info.loss` by default.
        first_step: Number of steps that led to `state`; may be traced.
        state: The state to start from; None for `solver.init`.

    Raises:
        ValueError: If `max_steps` is not an integer >= 1, with neither a tolerance nor
            `has_ended`, if `first_step` is not an integer >= 0, or if it comes without
            `state`.
    """
    max_steps = checks.count("max_steps", max_steps)
    if tolerance is None and solver.has_ended is None:
        raise ValueError("`run_until` needs a `tolerance` or a solver with has_ended.")
    loop_key, state, static = _start(key, solver, first_step, state)

    def has_converged(state, info):
        ended = jnp.asarray(False)
        if tolerance is not None:
            ended |= value_fn(info) <= tolerance
        if solver.has_ended is not None:
            ended |= solver.has_ended(state)
        return ended

    def body(carry: Bounded) -> Bounded:
        t = first_step + carry.num_steps
        before = eqx.combine(carry.state, static)
        state, info = take_step(solver, loop_key, t, before)
        status = jnp.where(has_converged(state, info), Status.CONVERGED, carry.status)
        state, _ = tree.partition(state)
        has_diverged = tree.has_diverged(carry.state, state, info)
        status = jnp.where(has_diverged, Status.DIVERGED, status)
        return Bounded(state, info, carry.num_steps + 1, status)

    def info_of(state):
        return take_step(solver, loop_key, first_step, eqx.combine(state, static))[1]

    shapes = jax.eval_shape(info_of, state)
    info = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    end = eqxi.while_loop(
        lambda carry: carry.status == Status.MAX_STEPS,
        body,
        Bounded(state, info, jnp.asarray(0), jnp.asarray(int(Status.MAX_STEPS))),
        max_steps=max_steps,
        kind="checkpointed",
    )
    return end._replace(state=eqx.combine(end.state, static))


def _start(key, solver, first_step, state):
    """The loop's key and, before a piece, the state's arrays and its other leaves."""
    if checks.known(first_step):
        first_step = checks.count("first_step", first_step, least=0)
    init_key, loop_key = split_key(key)
    if state is None:
        if not checks.known(first_step) or first_step > 0:
            raise ValueError(
                "`first_step` says how many steps led to `state`: give both or "
                f"neither, got first_step={first_step!r} and no `state`."
            )
        state = solver.init(init_key)
    return loop_key, *tree.partition(state)


def _scan(body, state, xs):
    """`lax.scan` that stays a loop.

    XLA takes a loop of one trip apart, and what is then fused with its surroundings is
    rounded otherwise than in a longer one. That loop is all that the attribute keeps.
    """

    def unmarked(state, x):
        with set_xla_metadata(**{_STAYS: None}):
            return body(state, x)

    with set_xla_metadata(**{_STAYS: "true"}):
        return jax.lax.scan(unmarked, state, xs)


_STAYS = "skip-simplify-while-loops_trip-count-one"


def num_steps_of(experiment: Experiment, hparams: Any) -> int:
    """Number of steps of the long run that `experiment` makes at `hparams`.

    Raises:
        ValueError: If it is not an integer of at least 1.
    """
    num_steps = experiment.num_steps
    num_steps = num_steps(hparams) if callable(num_steps) else num_steps
    return checks.count("num_steps", num_steps)


def solver_of(
    experiment: Experiment, key: Key[Array, ""], hparams: Any
) -> tuple[Solver, Key[Array, ""]]:
    """The solver of a long-run experiment at `hparams`, and the key of its run.

    Raises:
        ValueError: If the experiment has no `solver`.
    """
    if experiment.solver is None:
        raise ValueError("A long run takes an experiment with a `solver`.")
    problem_key, solve_key = jr.split(key)
    return experiment.solver(problem_key, hparams), solve_key


def closed_form(experiment: Experiment) -> Callable[[Key[Array, ""], Any], PyTree]:
    """A long-run experiment as one `run(key, hparams)`: a single scan.

    `has_ended` is not consulted: lanes run to the end of their steps.

    Raises:
        ValueError: When it is called, if the experiment has no `solver`.
    """

    def run_closed(key, hparams):
        solver, solve_key = solver_of(experiment, key, hparams)
        num_steps = num_steps_of(experiment, hparams)
        return run(solve_key, solver, num_steps, every=experiment.every)[1]

    return run_closed
