"""Newton's step in collocation, on one axis and on several.

Letters as in `jaxlr.pde.collocation`. A builder trains kernels and gives them, their
likelihood, where Newton starts, and its step.
"""

import functools as ft
from typing import Any, NamedTuple

import jax
from jax import lax
import jax.numpy as jnp
from jaxtyping import Array
import numpy as np

from jaxlr.core import checks
from jaxlr.linalg.dense import matmul
from jaxlr.linalg.iterative import gmres, refine
from jaxlr.linalg.kron import kron_matvec, mode_product
from jaxlr.pde.likelihood import cholesky, correlate, log_likelihood, maximize


_MOST_REFINEMENTS = 20
_GMRES_STEPS = 100


class Step(NamedTuple):
    """What Newton carries: derivatives (one axis) or u (more), and how it went."""

    state: Any
    residual: Array
    jitter: Array
    num_products: Array


def apply(problem, derivatives):
    """The equation, of arrays in the order of `problem.orders`."""
    orders = problem.orders
    zero = (0,) * len(problem.grid)
    return problem.equation(lambda *o: derivatives[orders.index(o or zero)])


def linearize(problem, derivatives):
    """Coefficients of the linearized equation, of arrays in the same order.

    The equation is pointwise, so that one product tells each.
    """

    def of(i):
        along = [jnp.full_like(x, i == j) for j, x in enumerate(derivatives)]
        return jax.jvp(ft.partial(apply, problem), [derivatives], [along])[1]

    return [of(i) for i in range(len(derivatives))]


def _zeros(problem):
    return [jnp.zeros(problem.shape, problem.grid[0].dtype) for _ in problem.orders]


def _gram(kernel, x, order) -> Array:
    """k^(order)(x_i - x_j); on a regular axis from its first column."""
    if not checks.known(x):
        return kernel(x[:, None] - x, order)
    known = np.asarray(x)
    step = np.diff(known)
    rounding = 4 * np.finfo(known.dtype).eps * np.max(np.abs(known))
    if np.ptp(step) > max(1e-9 * step[0], rounding):
        return kernel(x[:, None] - x, order)
    i = np.arange(len(known))
    lag = i[:, None] - i
    values = kernel(x - x[0], order)[np.abs(lag)]
    return values if order % 2 == 0 else jnp.sign(lag).astype(x.dtype) * values


def _norm(x):
    return jnp.sqrt(jnp.sum(x**2))


def _combine(weights, arrays) -> Array:
    return ft.reduce(jnp.add, map(jnp.multiply, weights, arrays))


def _ratio(x, y):
    return x / jnp.where(y > 0, y, 1)


def one_axis(problem, starts, max_evaluations, jitter):
    """Kernels, their likelihood, where Newton starts, and its step."""
    (x,) = problem.grid
    orders = [order for (order,) in problem.orders]
    n = len(x)
    faces = np.array([side % n for _, side in problem.faces], int)
    index = np.concatenate([np.arange(n), faces])
    values = problem.boundary[faces]

    def functionals(derivatives):
        """Coefficients of what is known, order by order, and what it is."""
        coefficients = linearize(problem, derivatives)
        linear = _combine(coefficients, derivatives)
        rest = problem.source - apply(problem, derivatives) + linear
        zeros = jnp.zeros(len(faces), x.dtype)
        full = dict.fromkeys({*orders, 0}, jnp.zeros(n + len(faces), x.dtype))
        for order, c in zip(orders, coefficients, strict=True):
            full[order] = jnp.concatenate([c, zeros])
        full[0] = full[0].at[n:].set(1)
        return full, jnp.concatenate([rest, values])

    def covariances(kernel, full):
        """Of the functionals among them, and of each derivative of u with them."""
        table = ft.cache(lambda order: _gram(kernel, x, order)[:, index])

        def with_all(order):
            signed = [(-1) ** b * table(order + b) for b in full]
            return _combine(full.values(), signed)

        cross = {order: with_all(order) for order in full}
        rows = [c[:, None] for c in full.values()]
        among = _combine(rows, [cross[a][index] for a in full])
        return among, cross

    first, data = functionals(_zeros(problem))

    def likelihood_fn(kernel, jitter):
        among, _ = covariances(kernel, first)
        return log_likelihood(among, data[:, None], jitter)

    kernel, likelihood = maximize(
        likelihood_fn,
        lambda kernel: covariances(kernel, first)[0],
        starts[0],
        max_evaluations,
        jitter,
    )

    def step(derivatives):
        full, rhs = functionals(derivatives)
        among, cross = covariances(kernel, full)
        correlations, scale = correlate(among)
        lower, used = cholesky(correlations, jitter)
        weights = _refine(correlations, lower, rhs / scale) / scale
        new = [matmul(cross[order], weights) for order in orders]
        u = matmul(cross[0], weights)
        gap = jnp.concatenate([problem.source - apply(problem, new), values - u[faces]])
        size = _ratio(_norm(gap / scale), _norm(data / scale))
        return Step((u, new), size, used[None], jnp.asarray(0))

    nothing = jnp.zeros((), x.dtype)
    zeros = _zeros(problem)
    start = Step((zeros[0], zeros), nothing, nothing[None], jnp.asarray(0))
    return (kernel,), likelihood, start, lambda state: step(state[1])


def _refine(matrix, lower, rhs):
    """The solution of the matrix itself, as long as steps of L L^T lessen its residual.

    They undo jitter where there is something to undo. One more step is differentiated.
    """

    def solve(lower, rest):
        return jax.scipy.linalg.cho_solve((lower, True), rest)

    still, low, b = map(lax.stop_gradient, (matrix, lower, rhs))
    x, _ = refine(
        ft.partial(matmul, still),
        lambda r: (solve(low, r), 0),
        b,
        max_steps=_MOST_REFINEMENTS,
    )
    more = solve(lower, rhs - matmul(matrix, x))
    return x + more - lax.stop_gradient(more)


def many_axes(problem, starts, max_evaluations, jitter):
    """Kernels, their likelihood, where Newton starts, and its step."""
    dtype, shape = problem.grid[0].dtype, problem.shape
    kernels, matrices, jitters, likelihood = [], [], [], jnp.zeros((), dtype)
    for axis, x in enumerate(problem.grid):
        lines, num_lines = _lines(problem, axis)

        def covariance_fn(kernel, x=x):
            return _gram(kernel, x, 0)

        def likelihood_fn(kernel, jitter, x=x, lines=lines, num=num_lines):
            return log_likelihood(_gram(kernel, x, 0), lines, jitter, num)

        kernel, value = maximize(
            likelihood_fn, covariance_fn, starts[axis], max_evaluations, jitter
        )
        correlations, scale = correlate(_gram(kernel, x, 0))
        lower, used = cholesky(correlations, jitter)
        along = {}
        for order in {order[axis] for order in problem.orders} - {0}:
            slopes = _gram(kernel, x, order) / scale[:, None] / scale
            along[order] = _refine(correlations, lower, slopes.T).T
        kernels.append(kernel)
        matrices.append(along)
        jitters.append(used)
        likelihood += value

    free = tuple(
        slice(int((d, 0) in problem.faces), n - int((d, -1) in problem.faces))
        for d, n in enumerate(shape)
    )
    fixed = problem.boundary.at[free].set(0)

    def differentiate(u):
        found = []
        for order in problem.orders:
            x = u
            for axis, o in enumerate(order):
                x = mode_product(matrices[axis][o], x, axis) if o else x
            found.append(x)
        return found

    def gap(derivatives):
        return (problem.source - apply(problem, derivatives))[free]

    def relative(derivatives):
        terms = map(jnp.multiply, linearize(problem, derivatives), derivatives)
        size = ft.reduce(jnp.add, map(jnp.abs, terms)) + jnp.abs(problem.source)
        return _ratio(_norm(gap(derivatives)), _norm(size[free]))

    first = differentiate(fixed)
    precondition = _preconditioner(problem, free, matrices, linearize(problem, first))

    def step(u):
        u = fixed.at[free].set(u[free])  # whose boundary has derivatives
        derivatives = differentiate(u)
        coefficients = linearize(problem, derivatives)

        def matvec(v):
            parts = differentiate(jnp.zeros(shape, dtype).at[free].set(v))
            return _combine(coefficients, parts)[free]

        change, info = gmres(
            matvec,
            gap(derivatives),
            preconditioner_fn=ft.partial(precondition, coefficients),
            tolerance=1e3 * float(jnp.finfo(dtype).eps),
            max_steps=_GMRES_STEPS,
        )
        u = u.at[free].add(change)
        residual = relative(differentiate(u))
        return Step((u,), residual, jnp.stack(jitters), info.num_steps)

    nothing = jnp.zeros((), dtype)
    start = Step((fixed,), nothing, jnp.stack(jitters), jnp.asarray(0))
    return tuple(kernels), likelihood, start, lambda state: step(*state)


def _lines(problem, axis):
    """Columns along the axis, of the source, or of the boundary if that is zero.

    As many as there are points, of the same sum of products; and for how many lines
    they stand.
    """
    n = problem.shape[axis]

    def columns(arrays):
        data = [jnp.moveaxis(a, axis, 0).reshape(n, -1) for a in arrays]
        data = jnp.concatenate([*data, jnp.zeros((n, n), data[0].dtype)], 1)
        return jnp.linalg.qr(data.T, mode="r").T

    source = columns([problem.source])
    kept = jnp.zeros(problem.shape, bool)
    for d, side in problem.faces:
        if d != axis:
            kept = kept.at[(slice(None),) * d + (side,)].set(True)
    boundary = columns([jnp.where(kept, problem.boundary, 0)])
    has_source = jnp.any(source != 0)
    num_kept = jnp.maximum(jnp.sum(jnp.any(kept, axis)), 1)
    num = jnp.where(has_source, problem.source.size // n, num_kept)
    return jnp.where(has_source, source, boundary), num


def _preconditioner(problem, free, matrices, coefficients):
    """The inverse of the mean part that is a sum of operators along one axis each."""
    num_axes = len(free)
    mean = {
        order: jnp.mean(c[free])
        for order, c in zip(problem.orders, coefficients, strict=True)
    }
    found = []
    for axis, here in enumerate(free):
        n = here.stop - here.start
        operator = jnp.zeros((n, n), problem.grid[0].dtype)
        for order, matrix in matrices[axis].items():
            only = tuple(order if d == axis else 0 for d in range(num_axes))
            if only in mean:
                operator += mean[only] * matrix[here, here]
        found.append(_diagonalize(lax.stop_gradient(operator)))
    values, vectors, inverses = zip(*found, strict=True)
    total = ft.reduce(lambda a, b: a[..., None] + b, values)

    def precondition(coefficients, r):
        zero = (0,) * num_axes
        shift = total
        if zero in problem.orders:
            mean = jnp.mean(coefficients[problem.orders.index(zero)][free])
            shift = total + lax.stop_gradient(mean)
        r = lax.complex(r, jnp.zeros_like(r))  # whose transpose casts nothing
        modes = kron_matvec(inverses, r) / jnp.where(shift == 0, 1, shift)
        return kron_matvec(vectors, modes).real

    return precondition


def _diagonalize(matrix):
    """Eigenvalues, eigenvectors and their inverse, on the host where it can be."""
    dtype = jnp.result_type(matrix, jnp.complex64)
    if not checks.known(matrix):
        values, vectors = jnp.linalg.eig(matrix)
        return values, vectors, jnp.linalg.inv(vectors)
    values, vectors = np.linalg.eig(np.asarray(matrix, np.float64))
    return tuple(
        jnp.asarray(x, dtype) for x in (values, vectors, np.linalg.inv(vectors))
    )
