"""Equations for collocation, and the dense systems of theirs, solved by NumPy."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxlr import covariance, pde


def matern(ell, x, y, a, b):
    """d^a/dx^a d^b/dy^b of the Matern 5/2 covariance, by hand."""
    scale = np.sqrt(5) / ell
    t = scale * (x[:, None] - y)
    r = np.abs(t)
    factor = (
        1 + r + r**2 / 3,
        -t * (1 + r) / 3,
        (r**2 - r - 1) / 3,
        t * (3 - r) / 3,
        1 - 5 * r / 3 + r**2 / 3,
    )[a + b]
    return (-1) ** b * scale ** (a + b) * factor * np.exp(-r)


def variable(u):
    """Of variable coefficients, and a constant that moves to the right side."""
    return u(2) + jnp.linspace(0, 1, 14) * u(1) - 3 * u() + 2


REGULAR = np.linspace(0, 1.5, 14)
IRREGULAR = 1.5 * np.linspace(0, 1, 14) ** 1.3
SOURCE, BOUNDARY = np.random.default_rng(0).normal(size=(2, 14))


def dense_1d(x, ell, faces):
    """The posterior mean, and the likelihood with its variance profiled out."""
    ends = np.array([side % 14 for _, side in faces])
    points = np.concatenate([x, x[ends]])
    c = {
        0: np.r_[np.full(14, -3.0), np.ones(len(ends))],
        1: np.r_[np.linspace(0, 1, 14), np.zeros(len(ends))],
        2: np.r_[np.ones(14), np.zeros(len(ends))],
    }
    k = sum(
        c[a][:, None] * c[b] * matern(ell, points, points, a, b) for a in c for b in c
    )
    cross = sum(c[b] * matern(ell, x, points, 0, b) for b in c)
    y = np.r_[SOURCE - 2, BOUNDARY[ends]]
    variance = y @ np.linalg.solve(k, y) / len(y)
    logdet = np.linalg.slogdet(2 * np.pi * variance * k)[1]
    return cross @ np.linalg.solve(k, y), -(logdet + len(y)) / 2


def problem_1d(x=REGULAR, faces=None):
    return pde.Problem(variable, (x,), SOURCE, BOUNDARY, faces=faces)


def train(*args, fn=pde.collocation_solve, is_jitted=True, **settings):
    """Results that may leave `x64`."""

    def run():
        return fn(*args, **settings)

    return jax.tree.map(np.asarray, (jax.jit(run) if is_jitted else run)())


def solve(*args, **settings):
    return train(*args, max_evaluations=0, **settings)


X, Y = np.linspace(0, 1, 7), np.linspace(0, 2, 8)
GRID_SOURCE, GRID_BOUNDARY = np.random.default_rng(1).normal(size=(2, 7, 8))
WEIGHTS = 1 + X[:, None] * Y
BOX = ((0, 0), (0, -1), (1, 0), (1, -1))


def elliptic(u):
    return WEIGHTS * u(2, 0) + u(0, 2) + 0.3 * u(1, 1) - u(0, 1) - 2 * u()


def cubic(u):
    return elliptic(u) - u() ** 3


def slopes(x, ell, order):
    k = matern(ell, x, x, 0, 0)
    return np.linalg.solve(k, matern(ell, x, x, order, 0).T).T


def dense_2d(faces, is_cubic=False):
    """Newton with the dense matrix of what is free."""
    ex, ey = np.eye(7), np.eye(8)
    dx, dy = slopes(X, 0.8, 1), slopes(Y, 1.1, 1)
    dxx, dyy = slopes(X, 0.8, 2), slopes(Y, 1.1, 2)
    operator = (
        WEIGHTS.ravel()[:, None] * np.kron(dxx, ey)
        + np.kron(ex, dyy)
        + 0.3 * np.kron(dx, dy)
        - np.kron(ex, dy)
        - 2 * np.eye(56)
    )
    is_given = np.zeros((7, 8), bool)
    for axis, side in faces:
        np.moveaxis(is_given, axis, 0)[side] = True
    free = ~is_given.ravel()
    u = np.where(is_given, GRID_BOUNDARY, 0).ravel()
    for _ in range(12 if is_cubic else 1):
        gap = GRID_SOURCE.ravel() - operator @ u + is_cubic * u**3
        jacobian = operator - is_cubic * np.diag(3 * u**2)
        u[free] += np.linalg.solve(jacobian[free][:, free], gap[free])
    return u.reshape(7, 8)


def problem_2d(equation=elliptic, faces=BOX):
    return pde.Problem(equation, (X, Y), GRID_SOURCE, GRID_BOUNDARY, faces=faces)


def matern_2d():
    return covariance.Matern(0.8), covariance.Matern(1.1)


def error(problem, u):
    want = np.asarray(problem.solution)
    return np.linalg.norm(u - want) / np.linalg.norm(want)
