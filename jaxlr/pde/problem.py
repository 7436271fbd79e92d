"""Differential equations on boxes, and those of the literature's high frequencies.

Letters: D axes of n_1, ..., n_D points, which are the grid; time may be one of them.

An equation is a function of the unknown u, where `u(*orders)` is the mixed derivative
of these orders on the grid and `u()` the value: in two dimensions
`lambda u: u(2, 0) + u(0, 2)` is the Laplacian. It acts point by point.
"""

from collections.abc import Callable, Sequence
import contextlib
from typing import NamedTuple, TypeAlias

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, Num
import numpy as np

from jaxlr.core import checks


Unknown: TypeAlias = Callable[..., Array]
Equation: TypeAlias = Callable[[Unknown], Array]
Face: TypeAlias = tuple[int, int]
"""An axis, and 0 for its beginning or -1 for its end."""


class Problem(eqx.Module):
    """equation(u) = source on a box, and u given on some of its faces.

    Attributes:
        equation: The left side, a function of u as the module's text has it. Static.
        grid: Ascending points of every axis, in its units.
        source: The right side on the grid, or a number.
        boundary: Values of u on the grid, or a number; only those on `faces` count.
        solution: Values of u on the grid, to measure errors by; None where they are not
            known.
        faces: Faces of the box where u is given. None stands for all of them. Static.

    Raises:
        ValueError: Unless axes ascend (where they are known), arrays fit the grid, and
            faces exist, once each, with a point between them; on an equation that does
            not involve u, asks for derivatives that are not of so many axes, or gives
            another shape.
    """

    equation: Equation = eqx.field(static=True)
    grid: tuple[Float[Array, " _"], ...]
    source: Float[Array, "..."]
    boundary: Float[Array, "..."]
    solution: Float[Array, "..."] | None
    faces: tuple[Face, ...] = eqx.field(static=True)

    def __init__(
        self,
        equation: Equation,
        grid: Sequence[Num[ArrayLike, " _"]],
        source: Num[ArrayLike, "..."],
        boundary: Num[ArrayLike, "..."],
        solution: Num[ArrayLike, "..."] | None = None,
        faces: Sequence[Face] | None = None,
    ):
        if not len(grid):
            raise ValueError("`grid` must have an axis or more, got none.")
        self.equation = equation
        self.grid = tuple(_axis(axis, points) for axis, points in enumerate(grid))
        self.source = self._on_grid("source", source)
        self.boundary = self._on_grid("boundary", boundary)
        self.solution = (
            None if solution is None else self._on_grid("solution", solution)
        )
        num_axes = len(self.grid)
        every = tuple((axis, side) for axis in range(num_axes) for side in (0, -1))
        self.faces = every if faces is None else tuple((a, s) for a, s in faces)
        for face in self.faces:
            checks.choice("face", face, every)
        if len(set(self.faces)) < len(self.faces):
            raise ValueError(f"`faces` must be given once each, got {self.faces}.")
        for axis, num in enumerate(self.shape):
            if num < 3 and {(axis, 0), (axis, -1)} <= set(self.faces):
                raise ValueError(
                    f"`grid[{axis}]` needs a point between its two faces, got {num}."
                )
        _ = self.orders

    @property
    def shape(self) -> tuple[int, ...]:
        """Number of points of every axis."""
        return tuple(len(points) for points in self.grid)

    @property
    def orders(self) -> tuple[tuple[int, ...], ...]:
        """The derivatives that the equation asks for, each once; zeros for the value.

        Raises:
            ValueError: As the class does, on the equation.
        """
        found = []

        def _record(*orders):
            if len(orders) not in (0, len(self.grid)):
                raise ValueError(
                    f"The equation asks for u{orders}, where u takes no argument or "
                    f"an order of derivation for each of {len(self.grid)} axes."
                )
            name = f"order in u{orders}"
            orders = tuple(checks.count(name, order, least=0) for order in orders)
            orders = orders or (0,) * len(self.grid)
            if orders not in found:
                found.append(orders)
            return jnp.zeros(self.shape)

        result = jax.eval_shape(lambda: self.equation(_record))
        if not found:
            raise ValueError("The `equation` does not involve u.")
        if jnp.shape(result) != self.shape:
            raise ValueError(
                f"The `equation` must be pointwise on a grid of shape {self.shape}, "
                f"got shape {jnp.shape(result)}."
            )
        return tuple(found)

    def error(self, u: Float[Array, "..."]) -> Float[Array, ""]:
        """The relative error of u in the Euclidean norm over the grid.

        Args:
            u: What is to be compared with the solution, on the grid.

        Raises:
            ValueError: Where the solution is not known.
        """
        if self.solution is None:
            raise ValueError("The problem has no `solution` to measure errors by.")
        return jnp.linalg.norm(u - self.solution) / jnp.linalg.norm(self.solution)

    def _on_grid(self, name, values):
        """The argument `name`, of the grid's shape and type."""
        values = jnp.asarray(values, self.grid[0].dtype)
        if values.shape not in ((), self.shape):
            raise ValueError(
                f"`{name}` must be a number or of the grid's shape {self.shape}, got "
                f"shape {values.shape}."
            )
        return jnp.broadcast_to(values, self.shape)


def manufactured(
    equation: Equation,
    solution_fn: Callable[..., Array],
    grid: Sequence[Num[ArrayLike, " _"]],
    faces: Sequence[Face] | None = None,
) -> Problem:
    """The problem that a given function solves: source and boundary made from it.

    Args:
        equation: The left side, as `Problem` has it.
        solution_fn: Solution u, an elementwise jax function of D coordinates.
        grid: Ascending points of every axis, in its units.
        faces: Faces of the box where u is given. None stands for all of them.

    Returns:
        The problem; its source by jax's derivatives, exact to rounding.

    Raises:
        ValueError: As `Problem`.
    """
    grid = tuple(_axis(axis, points) for axis, points in enumerate(grid))
    mesh = jnp.meshgrid(*grid, indexing="ij")

    def unknown(*orders):
        fun = solution_fn
        for axis, order in enumerate(orders):
            for _ in range(order):
                fun = _slope(fun, axis)
        return fun(*mesh)

    value = solution_fn(*mesh)
    draft = Problem(equation, grid, 0.0, value, value, faces)
    return eqx.tree_at(lambda p: p.source, draft, equation(unknown))


def _axis(axis, points):
    """The points of one axis as an array of floats, checked."""
    is_known = checks.known(points)
    with jax.ensure_compile_time_eval() if is_known else contextlib.nullcontext():
        points = jnp.asarray(points)
        points = points.astype(jnp.result_type(float, points))
    if points.ndim != 1 or len(points) < 2:
        raise ValueError(
            f"`grid` must have vectors of 2 points or more, got shape {points.shape} "
            f"for axis {axis}."
        )
    if is_known and not np.all(np.diff(np.asarray(points)) > 0):
        raise ValueError(
            f"`grid` must ascend, with no point twice, which axis {axis} does not."
        )
    return points


def _slope(fun, axis):
    """The derivative of an elementwise function in one of its arguments."""

    def slope(*xs):
        along = [
            jnp.ones_like(x) if i == axis else jnp.zeros_like(x)
            for i, x in enumerate(xs)
        ]
        return jax.jvp(fun, xs, tuple(along))[1]

    return slope


class Benchmark(NamedTuple):
    """A problem of known solution, at any resolution, with the settings of GP-HM.

    Attributes:
        equation: The left side, as `Problem` has it.
        solution_fn: Solution u, a function of as many coordinates as there are axes.
        num_axes: Number of axes D.
        length: Length of the domain [0, length] along every axis.
        num: Number of points of every axis, ends included.
        max_frequency: Largest of the frequencies that kernels start from, in periods
            for a unit of x; the smallest is 0.
        boundary_weight: Factor lambda_b of the boundary's log-likelihood.
        faces: Faces of the box where u is given. None stands for all of them.
    """

    equation: Equation
    solution_fn: Callable[..., Array]
    num_axes: int
    length: float
    num: int
    max_frequency: float
    boundary_weight: float = 200.0
    faces: tuple[Face, ...] | None = None

    def shorten(self, share: float) -> "Benchmark":
        """The problem on a share of the domain along every axis, at the same spacing.

        Args:
            share: Share of the length that is kept.

        Raises:
            ValueError: Unless `share` is in (0, 1] and leaves two points or more.
        """
        steps = round(share * (self.num - 1))
        if not 0 < share <= 1 or steps < 1:
            raise ValueError(
                "`share` must be in (0, 1] and leave 2 points or more of "
                f"{self.num}, got {share}."
            )
        length = self.length * steps / (self.num - 1)
        return self._replace(length=length, num=steps + 1)

    def problem(self, num: int | None = None) -> Problem:
        """The problem on a grid of `num` points along every axis; `self.num` for None.

        The differential equations of the literature need float64 at these frequencies:
        make and solve them under `jaxlr.core.compat.x64(True)`.

        Args:
            num: Number of points of every axis, or None. Static.
        """
        num = self.num if num is None else checks.count("num", num, least=2)
        points = np.linspace(0.0, self.length, num)
        grid = (points,) * self.num_axes
        return manufactured(self.equation, self.solution_fn, grid, self.faces)


def poisson_1d(u: Unknown) -> Array:
    """u_xx."""
    return u(2)


def poisson_2d(u: Unknown) -> Array:
    """u_xx + u_yy."""
    return u(2, 0) + u(0, 2)


def allen_cahn_1d(u: Unknown) -> Array:
    """u_xx + u (u^2 - 1)."""
    return u(2) + u() * (u() ** 2 - 1)


def allen_cahn_2d(u: Unknown) -> Array:
    """u_xx + u_yy + u (u^2 - 1)."""
    return u(2, 0) + u(0, 2) + u() * (u() ** 2 - 1)


def advection(u: Unknown) -> Array:
    """200 u_x + u_t, the second axis being time."""
    return 200 * u(1, 0) + u(0, 1)


def _sin(x):
    return jnp.sin(100 * x)


def _sin_cos(x):
    return jnp.sin(6 * x) * jnp.cos(100 * x)


def _slow(x):
    return jnp.sin(6 * x) * jnp.cos(20 * x)


def _scales(x):
    return jnp.sin(x) + 0.1 * jnp.sin(20 * x) + jnp.cos(100 * x)


_TURN = 2 * np.pi

BENCHMARKS: dict[str, Benchmark] = {
    "poisson_1d_sin": Benchmark(poisson_1d, _sin, 1, _TURN, 400, 20),
    "poisson_1d_sin_cos": Benchmark(poisson_1d, _sin_cos, 1, _TURN, 400, 20),
    "poisson_1d_growing": Benchmark(
        poisson_1d, lambda x: x * jnp.sin(200 * x), 1, _TURN, 900, 50
    ),
    "poisson_1d_scales": Benchmark(
        poisson_1d,
        lambda x: jnp.sin(x) + 0.1 * jnp.sin(20 * x) + 0.05 * jnp.sin(100 * x),
        *(1, 1.0, 900, 30),
    ),
    "poisson_1d_parabola": Benchmark(
        poisson_1d, lambda x: jnp.sin(500 * x) - 2 * (x - 0.5) ** 2, 1, 1.0, 400, 100
    ),
    "allen_cahn_1d_sin": Benchmark(allen_cahn_1d, _sin, 1, _TURN, 400, 20),
    "allen_cahn_1d_sin_cos": Benchmark(allen_cahn_1d, _sin_cos, 1, _TURN, 400, 20),
    "poisson_2d_sin": Benchmark(
        poisson_2d, lambda x, y: _sin(x) * _sin(y), 2, _TURN, 400, 20
    ),
    "poisson_2d_sin_cos": Benchmark(
        poisson_2d,
        lambda x, y: _slow(x) + _slow(y),
        *(2, _TURN, 200, 20),
    ),
    "allen_cahn_2d": Benchmark(
        allen_cahn_2d, lambda x, y: _scales(x) * _scales(y), 2, 1.0, 400, 30
    ),
    "advection": Benchmark(
        advection,
        lambda x, t: jnp.sin(x - 200 * t),
        *(2, 1.0, 200, 40, 500.0),
        faces=((0, 0), (1, 0)),
    ),
}
"""The eleven problems of arXiv:2311.04465, its advection from its inflow and start."""
