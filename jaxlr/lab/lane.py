"""One lane of a compile group - one cell, one seed - traced once, on flat arrays.

A closed lane maps (seed, index, fields) to metrics. A segmented lane also takes a
carry, a first and a last step, and returns the carry: one program for every segment, so
that a run may be cut anywhere and keep its bits.
"""

from collections.abc import Callable, Sequence
import dataclasses
import functools as ft
from typing import Any

import equinox as eqx
import jax
from jax.extend.core import jaxpr_as_fun
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import PyTree
import numpy as np

from jaxlr.core import compat, loop, tree
from jaxlr.core.types import Experiment
from jaxlr.lab import fields, fingerprint, grid, old_format
from jaxlr.lab.metrics import arrays, described, is_key, Metric, raw


LANE = "_lane"  # a traced input that every group has, so that `vmap` has a size
# How the names of a packed carry's arrays begin.
CURVES, INFO, ENDED_AT = "carry.curves", "carry.info", "carry.ended_at"


@ft.partial(
    jax.tree_util.register_dataclass,
    data_fields=["state", "info", "curves", "ended_at"],
    meta_fields=[],
)
@dataclasses.dataclass
class Carry:
    """What a segmented lane hands from one segment to the next, typed keys as words.

    Attributes:
        state: The solver's state: its arrays.
        info: The metrics of the last step taken.
        curves: The metrics of the kept steps, in front of one row for all others.
        ended_at: Number of steps taken when the lane ended, by its solver or because a
            value of its state became infinite or NaN; -1 if it has not.
    """

    state: PyTree
    info: PyTree
    curves: PyTree
    ended_at: Any

    def pack(self) -> list[Any]:
        """The arrays in a list; `Lane.unpack` makes the carry of it."""
        return jax.tree.leaves(self)

    def after(
        self, t: jax.Array, row: jax.Array, state: PyTree, info: PyTree, has_ended: Any
    ) -> "Carry":
        """The carry after step t, its info in `row`; a lane that has ended is frozen.

        Args:
            t: The step.
            row: Where the curves keep it.
            state: What the step made of the state.
            info: The metrics of the step.
            has_ended: `has_ended(state)` of the solver, or None.
        """
        is_running = self.ended_at < 0
        # What is measured of a state may be infinite or NaN, and the state go on.
        has_diverged = is_running & tree.has_diverged(self.state, state, ())
        state = tree.select(is_running, state, self.state)
        info = tree.select(is_running, info, self.info)
        ends = has_diverged
        if has_ended is not None:
            ends |= has_ended(state)
        put = ft.partial(jax.lax.dynamic_update_index_in_dim, index=row, axis=0)
        return Carry(
            state,
            jax.tree.map(lambda x: _lost(x, has_diverged), info),
            jax.tree.map(put, self.curves, info),
            jnp.where(is_running & ends, t + 1, self.ended_at),
        )


@dataclasses.dataclass(frozen=True, eq=False)
class Lane:
    """One lane of a group, traced.

    Attributes:
        function: The trace, on flat arrays.
        metrics: Its metrics, in the order of the outputs, or of a carry's curves.
        dtypes: Field -> dtype of its traced input.
        carry: Shapes and dtypes of a segmented lane's carry; None for a closed run.
        num_steps: Number of steps of a segmented run; 0 for a closed run.
        every: One row of the curves is kept in this many steps.
        footprint: Bytes of all intermediate values, loop bodies counted once: a
            yardstick for the memory of groups.
        closed_over: Bytes of the arrays that the trace closes over: every program has
            them once a device.
        traffic: Bytes that all operations read and write, scans counted whole: a
            yardstick for time.
        fingerprint: What tells its computation, and how it is labelled, from others.
        is_of_text: Whether a digest is one that format 1 recorded of it.
    """

    function: Callable[..., list[jax.Array]]
    metrics: dict[str, Metric]
    dtypes: dict[str, np.dtype]
    carry: Carry | None
    num_steps: int
    every: int
    footprint: int
    closed_over: int
    traffic: float
    fingerprint: fingerprint.Fingerprint
    is_of_text: Callable[[str], bool]

    @property
    def num_rows(self) -> int:
        """Number of rows of a segmented run's curves."""
        return -(-self.num_steps // self.every)

    @property
    def state(self) -> list[jax.ShapeDtypeStruct] | None:
        """Shapes and dtypes of a packed carry; None for a closed run."""
        return None if self.carry is None else self.carry.pack()

    @property
    def state_names(self) -> list[str]:
        """Names of the arrays of a packed carry: what each is, and of what."""
        paths = jax.tree_util.tree_flatten_with_path(self.carry)[0]
        return [f"carry{jax.tree_util.keystr(path)}" for path, _ in paths]

    def unpack(self, leaves: Sequence[Any]) -> Carry:
        """The carry whose `pack` these are, whatever axes are in front of them."""
        return jax.tree.unflatten(jax.tree.structure(self.carry), leaves)


def trace(experiment: Experiment, group: grid.Group) -> Lane:
    """Trace one lane of a group, under the experiment's precision.

    Raises:
        ValueError: If the metrics are not a dict, NamedTuple or Module of arrays, or
            one is called like a swept field or a reserved coordinate, if an axis has a
            value that its dtype cannot hold, or if the run needs a swept field's value
            in Python.
    """
    known = fields.of(experiment.hparams)
    with compat.x64(experiment.x64):
        dtypes = {
            name: _traced_dtype(name, known[name].default, values)
            for name, values in group.traced.items()
        }
        try:
            return _traced(experiment, group, dtypes)
        except (TypeError, IndexError, ValueError) as e:
            if names := _needed_in_python(experiment, group, dtypes):
                raise ValueError(
                    f"The run needs {' and '.join(names)} in Python, as for an `if`, a "
                    "shape or a number of steps; a field that is swept is traced by "
                    f"jax. Mark it static, `{names[0].rpartition('.')[-1]}: ... = "
                    "eqx.field(static=True, default=...)`, which compiles once a "
                    f"value, or use `jnp.where` and its like. ({type(e).__name__})"
                ) from e
            raise


def _traced(
    experiment: Experiment, group: grid.Group, dtypes: dict[str, np.dtype]
) -> Lane:
    base = fields.replace(experiment.hparams, group.static)
    known = fields.of(experiment.hparams)
    # A number of Python's decides no dtype, and does not where it is swept.
    weak = [n for n in dtypes if not hasattr(known[n].default, "dtype")]
    values = {
        name: jax.ShapeDtypeStruct(
            (), dtype, weak_type=name in weak and dtype.kind != "b"
        )
        for name, dtype in dtypes.items()
    }
    dtypes = {**dtypes, LANE: np.dtype(np.int32)}
    values[LANE] = jax.ShapeDtypeStruct((), np.int32)
    if experiment.solver is None:
        return _closed_lane(experiment, base, dtypes, values)
    num_steps = _num_steps(experiment, base, group)
    return _segmented_lane(experiment, base, dtypes, values, num_steps)


def _num_steps(experiment: Experiment, base: Any, group: grid.Group) -> int:
    """The number of steps of all cells of the group."""
    is_fixed = not callable(experiment.num_steps)
    columns = {n: x.tolist() for n, x in group.traced.items() if not is_fixed}
    rows = zip(*columns.values(), strict=True)
    cells = [dict(zip(columns, row, strict=True)) for row in rows] or [{}]
    found = {
        loop.num_steps_of(experiment, fields.replace(base, cell)) for cell in cells
    }
    if len(found) > 1:
        raise ValueError(f"`num_steps` must be equal in all cells, got {found}.")
    return found.pop()


def _needed_in_python(
    experiment: Experiment, group: grid.Group, dtypes: dict[str, np.dtype]
) -> list[str]:
    """The swept fields for which the trace fails, unless it does without any."""
    first = {name: values[0].item() for name, values in group.traced.items()}

    def fails(*names):
        static = group.static | {n: x for n, x in first.items() if n not in names}
        traced = {name: group.traced[name] for name in names}
        part = grid.Group(static, traced, group.cells)
        try:
            _traced(experiment, part, {name: dtypes[name] for name in names})
        except Exception:
            return True
        return False

    if not first or fails():
        return []
    return [name for name in first if fails(name)] or list(first)


def _traced_dtype(name: str, default: Any, values: np.ndarray) -> np.dtype:
    own = getattr(default, "dtype", None)
    dtype = np.dtype(jax.dtypes.canonicalize_dtype(own or values.dtype))
    with np.errstate(all="ignore"):
        cast = values.astype(dtype).astype(values.dtype)
    if values.dtype.kind == "f":
        is_kept = (np.isfinite(cast) == np.isfinite(values)) & (
            (cast != 0) == (values != 0)
        )
    else:
        is_kept = cast == values
    if not is_kept.all():
        raise ValueError(
            f"Axis {name!r} is computed in {dtype}, which cannot hold "
            f"{values[~is_kept][0].item()!r}."
        )
    return dtype


def _hparams(base, values):
    return fields.replace(base, {n: x for n, x in values.items() if n != LANE})


def _key(seed, index):
    return jr.fold_in(jr.key(seed), index)


_SCALAR = {
    "seed": jax.ShapeDtypeStruct((), np.uint32),
    "index": jax.ShapeDtypeStruct((), np.int32),
}


def _closed_lane(experiment, base, dtypes, values) -> Lane:
    def lane(seed, index, values):
        key = _key(seed, index)
        return arrays(experiment.run(key, _hparams(base, values)))

    scalars = _SCALAR["seed"], _SCALAR["index"]
    traced, shapes = jax.make_jaxpr(lane, return_shape=True)(*scalars, values)
    return _lane(experiment, base, dtypes, traced, shapes)


def _segmented_lane(experiment, base, dtypes, values, num_steps) -> Lane:
    every = experiment.every
    num_rows = -(-num_steps // every)

    def parts(seed, index, values):
        key = _key(seed, index)
        solver, solve_key = loop.solver_of(experiment, key, _hparams(base, values))
        return solver, *loop.split_key(solve_key)

    def initial(solver, init_key):
        state, static = tree.partition(solver.init(init_key))
        return jax.tree.map(_strong, state), static

    def first(seed, index, values):
        solver, init_key, loop_key = parts(seed, index, values)
        state, static = initial(solver, init_key)
        _, info = loop.take_step(solver, loop_key, 0, eqx.combine(state, static))
        impls = [jr.key_impl(x) if is_key(x) else None for x in jax.tree.leaves(state)]
        return jax.tree.map(raw, state), impls, arrays(info)

    scalars = _SCALAR["seed"], _SCALAR["index"]
    state, impls, info = eqx.filter_eval_shape(first, *scalars, values)
    words = jax.eval_shape(lambda info: jax.tree.map(raw, info), info)
    # One row more than is kept: steps between two kept rows write there.
    curves = _stacked(words, num_rows + 1)
    shapes = Carry(state, words, curves, _SCALAR["index"])

    def start(state):
        info, curves = jax.tree.map(
            lambda x: jnp.zeros(x.shape, x.dtype), (shapes.info, shapes.curves)
        )
        never = jnp.asarray(-1, jnp.int32)
        return Carry(jax.tree.map(raw, state), info, curves, never)

    def advance(seed, index, values, carry, t, t_end):
        solver, init_key, loop_key = parts(seed, index, values)
        _, static = eqx.filter_eval_shape(initial, solver, init_key)

        def whole(words):
            leaves, structure = jax.tree.flatten(words)
            pairs = zip(leaves, impls, strict=True)
            leaves = [jr.wrap_key_data(x, impl=i) if i else x for x, i in pairs]
            return eqx.combine(jax.tree.unflatten(structure, leaves), static)

        def body(timed):
            t, carry = timed
            state, info = loop.take_step(solver, loop_key, t, whole(carry.state))
            state = jax.tree.map(raw, tree.partition(state)[0])
            row = jnp.where(t % every == 0, t // every, num_rows)
            has_ended = solver.has_ended
            ends = has_ended and (lambda state: has_ended(whole(state)))
            info = jax.tree.map(raw, arrays(info))
            return t + 1, carry.after(t, row, state, info, ends)

        carry = jax.lax.cond(
            t == 0, lambda: start(initial(solver, init_key)[0]), lambda: carry
        )
        return jax.lax.while_loop(lambda timed: timed[0] < t_end, body, (t, carry))[1]

    time = jax.ShapeDtypeStruct((), np.int32)
    traced = jax.make_jaxpr(advance)(*scalars, values, shapes, time, time)
    rows = _stacked(info, num_rows)
    return _lane(experiment, base, dtypes, traced, rows, shapes, num_steps)


def _stacked(shapes, num_rows):
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct((num_rows, *x.shape), x.dtype), shapes
    )


def _lane(experiment, base, dtypes, traced, shapes, carry=None, num_steps=0) -> Lane:
    footprint, traffic = _cost(traced.jaxpr)
    metrics = described(experiment, base, shapes)
    run = jaxpr_as_fun(traced)
    steps = () if carry is None else (num_steps,)
    closed_over = fingerprint.consts(traced)
    return Lane(
        function=lambda *arguments: [raw(x) for x in run(*arguments)],
        metrics=metrics,
        dtypes=dtypes,
        carry=carry,
        num_steps=num_steps,
        every=experiment.every,
        footprint=footprint,
        closed_over=sum({id(x): _num_bytes(x) for x in closed_over}.values()),
        traffic=traffic * max(num_steps, 1),
        fingerprint=fingerprint.of(
            traced,
            tuple(sorted(dtypes)),
            tuple((name, m.dims, m.shape, m.dtype) for name, m in metrics.items()),
            experiment.every,
            steps,
        ),
        is_of_text=ft.partial(
            old_format.is_of_text, traced, (metrics, experiment.every, *steps)
        ),
    )


def _strong(x: Any) -> jax.Array:
    """An array whose dtype no later operation changes: loop carries need that."""
    x = jnp.asarray(x)
    return x if is_key(x) else jax.lax.convert_element_type(x, x.dtype)


def _lost(x: jax.Array, has_diverged: jax.Array) -> jax.Array:
    """What the rows after a divergence hold: NaN, where the dtype has one."""
    return jnp.where(has_diverged, jnp.nan, x) if tree.is_inexact(x) else x


def _cost(jaxpr: Any) -> tuple[int, float]:
    """(footprint, traffic) of a jaxpr, see `Lane`."""
    footprint, traffic = 0, 0.0
    for eqn in jaxpr.eqns:
        sub = [
            getattr(p, "jaxpr", p) for p in jax.tree.leaves(list(eqn.params.values()))
        ]
        inner = [_cost(p) for p in sub if hasattr(p, "eqns")]
        repeats = eqn.params.get("length", 1) if eqn.primitive.name == "scan" else 1
        written = sum(_num_bytes(v.aval) for v in eqn.outvars)
        footprint += written + sum(f for f, _ in inner)
        traffic += repeats * sum(t for _, t in inner)
        if not inner:
            traffic += written + sum(_num_bytes(v.aval) for v in eqn.invars)
    return footprint, traffic


def _num_bytes(array: Any) -> int:
    """Bytes of an array, or of one that has this shape and dtype."""
    itemsize = getattr(getattr(array, "dtype", None), "itemsize", 4)
    return int(np.prod(getattr(array, "shape", ()), dtype=np.int64)) * itemsize
