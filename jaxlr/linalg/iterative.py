"""Linear systems known by their products: conjugate gradients and GMRES.

Letters: A is N x N, on arrays of any shape with N entries; M approximates its inverse;
m is the number of steps between restarts.
"""

from collections.abc import Callable
import functools as ft
from typing import Any, NamedTuple, TypeAlias

import jax
from jax import lax
from jax.core import Tracer
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxlr.core.loop import Status
from jaxlr.core.types import Hyper
from jaxlr.linalg.dense import matmul


Map: TypeAlias = Callable[[Float[Array, "..."]], Float[Array, "..."]]
"""A linear map of arrays of one shape."""


class IterativeInfo(NamedTuple):
    """How a solve ended. Has no derivative.

    Attributes:
        residual: ||b - A x|| / ||b|| of the x returned, computed from it; 0 for b = 0.
        num_steps: Products with A, those that check the residual apart.
        status: A `jaxlr.core.loop.Status`: `CONVERGED` if the residual meets the
            tolerance, `DIVERGED` if it is infinite or NaN, else `MAX_STEPS`.
    """

    residual: Float[Array, ""]
    num_steps: Int[Array, ""]
    status: Int[Array, ""]


def cg(
    matvec_fn: Map,
    b: Float[Array, "..."],
    *,
    preconditioner_fn: Map | None = None,
    tolerance: Hyper,
    max_steps: int,
) -> tuple[Float[Array, "..."], IterativeInfo]:
    """Solve A x = b by conjugate gradients, from x = 0; A positive definite.

    When the residual of the recurrence meets the tolerance, the true one is computed,
    and if it does not the recurrence starts again from there.

    Args:
        matvec_fn: `x -> A x`, symmetric positive definite; traceable.
        b: Any shape, real. Its type is that of all arithmetic.
        preconditioner_fn: `x -> M x`, symmetric positive definite. None: the identity.
        tolerance: On the relative residual.
        max_steps: Bound on the number of steps. Static.

    Returns:
        `(x, info)`. Costs a product with A and one with M a step, memory 5 arrays of
        the shape of b. Under `vmap` a lane that has ended is frozen. x is
        differentiable with respect to b and to what `matvec_fn` closes over, any number
        of times; a derivative is one more solve, to the same tolerance and bound, whose
        info is not returned.

    Raises:
        ValueError: If b is not real and floating, a map changes its shape or type,
            `tolerance` is negative or `max_steps` no integer of at least 1.

    References:
        Hestenes, Stiefel. "Methods of Conjugate Gradients for Solving Linear Systems".
        1952. Journal of Research of the National Bureau of Standards.
    """
    precondition = _checked(matvec_fn, b, preconditioner_fn, tolerance, max_steps)

    def cycle(matvec_fn, x, r, target, num):
        def body(carry):
            x, r, p, rho, num = carry
            image = matvec_fn(p)
            alpha = rho / _dot(p, image)
            r = r - alpha * image
            z = precondition(r)
            new = _dot(r, z)
            return x + alpha * p, r, z + new / rho * p, new, num + 1

        def goes_on(carry):
            return (_norm(carry[1]) > target) & (carry[-1] < max_steps)

        z = precondition(r)
        x, *_, num = lax.while_loop(goes_on, body, (x, r, z, _dot(r, z), num))
        return x, num

    solve = ft.partial(_restarted, cycle, tolerance, max_steps)
    return lax.custom_linear_solve(matvec_fn, b, solve, symmetric=True, has_aux=True)


def gmres(
    matvec_fn: Map,
    b: Float[Array, "..."],
    *,
    preconditioner_fn: Map | None = None,
    tolerance: Hyper,
    max_steps: int,
    restart: int | None = None,
) -> tuple[Float[Array, "..."], IterativeInfo]:
    """Solve A x = b by GMRES, from x = 0, preconditioned on the right; any A.

    x is the best in the space of all products since a restart, so that its residual
    never grows; orthogonalized twice. At a restart the true residual is computed.

    Args:
        matvec_fn: `x -> A x`, linear; traceable.
        b: Any shape, real. Its type is that of all arithmetic.
        preconditioner_fn: `x -> M x`, linear. None: the identity.
        tolerance: On the relative residual.
        max_steps: Bound on the number of steps. Static.
        restart: m. None, or more than it: `max_steps`. Static.

    Returns:
        `(x, info)`. Costs a product with A, one with M and 8 m N flops a step, memory
        (m + 1) N. Under `vmap` a lane that has ended is frozen. x is differentiable
        with respect to b and to what `matvec_fn` closes over, any number of times; a
        derivative is one more solve, with A or A^T and M or M^T, to the same tolerance
        and bound, whose info is not returned.

    Raises:
        ValueError: If b is not real and floating, a map changes its shape or type,
            `tolerance` is negative, `max_steps` or `restart` no integer of at least 1.

    References:
        Saad, Schultz. "GMRES: A Generalized Minimal Residual Algorithm for Solving
        Nonsymmetric Linear Systems". 1986. SIAM Journal on Scientific and Statistical
        Computing.
    """
    precondition = _checked(matvec_fn, b, preconditioner_fn, tolerance, max_steps)
    if restart is not None and (not isinstance(restart, int) or restart < 1):
        raise ValueError(f"`restart` must be an integer >= 1, got {restart!r}.")
    most = min(restart or max_steps, max_steps)

    def transposed(x):
        return jax.linear_transpose(precondition, b)(x)[0]

    def solve(precondition, matvec_fn, b):
        cycle = ft.partial(_arnoldi, precondition, most, max_steps)
        return _restarted(cycle, tolerance, max_steps, matvec_fn, b)

    return lax.custom_linear_solve(
        matvec_fn,
        b,
        ft.partial(solve, precondition),
        ft.partial(solve, transposed),
        has_aux=True,
    )


def _checked(matvec_fn, b, preconditioner_fn, tolerance, max_steps):
    """The preconditioner, after all else was found in order."""
    if not jnp.issubdtype(b.dtype, jnp.floating):
        raise ValueError(f"`b` must be real and floating, got {b.dtype}.")
    maps: dict[str, Any] = {"matvec_fn": matvec_fn}
    if preconditioner_fn is not None:
        maps["preconditioner_fn"] = preconditioner_fn
    for name, fn in maps.items():
        got = jax.eval_shape(fn, b)
        if (got.shape, got.dtype) != (b.shape, b.dtype):
            raise ValueError(
                f"`{name}` must return {b.dtype} of shape {b.shape} as `b`, got "
                f"{got.dtype} of shape {got.shape}."
            )
    if not isinstance(tolerance, Tracer) and not tolerance >= 0:
        raise ValueError(f"`tolerance` must be >= 0, got {tolerance!r}.")
    if not isinstance(max_steps, int) or max_steps < 1:
        raise ValueError(f"`max_steps` must be an integer >= 1, got {max_steps!r}.")
    return preconditioner_fn or (lambda x: x)


def _dot(x, y):
    return jnp.vdot(x, y, precision="highest")


def _norm(x):
    return jnp.sqrt(_dot(x, x))


def _restarted(cycle, tolerance, max_steps, matvec_fn, b):
    """Cycles from the true residual, until it meets the tolerance.

    b is scaled: squares of small or large entries are not numbers of its type.
    """
    scale = jnp.max(jnp.abs(b), initial=0)
    scale = jnp.where(scale == 0, 1, scale)
    b = b / scale
    norm = _norm(b)
    target = tolerance * norm

    def body(carry):
        x, r, _, num = carry
        x, num = cycle(matvec_fn, x, r, target, num)
        r = b - matvec_fn(x)
        return x, r, _norm(r), num

    def goes_on(carry):
        return (carry[2] > target) & jnp.isfinite(carry[2]) & (carry[3] < max_steps)

    start = jnp.zeros_like(b), b, norm, jnp.asarray(0)
    x, _, size, num = lax.while_loop(goes_on, body, start)
    status = jnp.where(size <= target, Status.CONVERGED, Status.MAX_STEPS)
    status = jnp.where(jnp.isfinite(size), status, Status.DIVERGED)
    return scale * x, IterativeInfo(size / jnp.where(norm > 0, norm, 1), num, status)


def _arnoldi(precondition, most, max_steps, matvec_fn, x, r, target, num):
    """Until the residual meets the target, or `most` steps."""
    size = _norm(r)

    def body(carry):
        basis, hessenberg, null, j, num = carry
        v = precondition(basis[j].reshape(r.shape))
        w = matvec_fn(v).ravel()
        column = jnp.zeros(most + 1, r.dtype)
        for _ in range(2):  # once leaves rounding errors of the size of the overlap
            overlap = matmul(basis, w)
            column, w = column + overlap, w - matmul(overlap, basis)
        norm = _norm(w)
        # null^T H = 0 column by column: the residual is that of e_1 across this vector.
        null = null.at[j + 1].set(-matmul(null, column) / norm)
        basis = basis.at[j + 1].set(w / jnp.where(norm > 0, norm, 1))
        hessenberg = hessenberg.at[:, j].set(column.at[j + 1].set(norm))
        return basis, hessenberg, null, j + 1, num + 1

    def goes_on(carry):
        _, _, null, j, num = carry
        return (size / _norm(null) > target) & (j < most) & (num < max_steps)

    basis = jnp.zeros((most + 1, r.size), r.dtype).at[0].set(r.ravel() / size)
    first = jnp.zeros(most + 1, r.dtype).at[0].set(1)
    # A column not reached has its 1 where no other and no right-hand side has anything.
    hessenberg = jnp.eye(most + 1, most, -1, dtype=r.dtype)
    carry = basis, hessenberg, first, jnp.asarray(0), num
    basis, hessenberg, _, _, num = lax.while_loop(goes_on, body, carry)
    q, upper = jnp.linalg.qr(hessenberg)
    y = jax.scipy.linalg.solve_triangular(upper, size * q[0])
    return x + precondition(matmul(y, basis[:-1]).reshape(r.shape)), num
