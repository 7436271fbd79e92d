"""Linear systems known by their products: conjugate gradients and GMRES.

Letters: A is N x N, on arrays of any shape with N entries; M approximates its inverse;
m is the number of steps between restarts.
"""

from collections.abc import Callable
import functools as ft
from typing import Any, NamedTuple, TypeAlias

import jax
from jax import lax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxlr.core import checks
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
        b: Right-hand side, real, of any shape. Its type is that of all arithmetic.
        preconditioner_fn: `x -> M x`, symmetric positive definite. None: the identity.
        tolerance: What the relative residual, ||b - A x|| / ||b||, may be at the end.
        max_steps: Bound on the number of steps. Static.

    Returns:
        `(x, info)`; x is NaN and the status `DIVERGED` where A, as it is rounded, has a
        direction without positive curvature. Costs a product with A and one with M a
        step, memory 5 arrays of the shape of b. Under `vmap` a lane that has ended is
        frozen. x is differentiable with respect to b and to what `matvec_fn` closes
        over, any number of times; a derivative is one more solve, to the same tolerance
        and bound, whose info is not returned.

    Raises:
        ValueError: If b is not real and floating, a map changes its shape or type,
            `tolerance` is negative or `max_steps` no integer of at least 1.

    References:
        Hestenes, Stiefel. "Methods of Conjugate Gradients for Solving Linear Systems".
        1952. Journal of Research of the National Bureau of Standards.
    """
    precondition, max_steps = _checked(
        matvec_fn, b, preconditioner_fn, tolerance, max_steps
    )

    def cycle(matvec_fn, x, r, target, num):
        change, info = _conjugate(matvec_fn, r, precondition, max_steps - num, target)
        change = jnp.where(info.status == Status.DIVERGED, jnp.nan, change)
        return x + change, num + info.num_steps

    solve = ft.partial(_restarted, cycle, tolerance, max_steps)
    return lax.custom_linear_solve(matvec_fn, b, solve, symmetric=True, has_aux=True)


def cg_steps(
    matvec_fn: Callable[..., Float[Array, "..."]],
    b: Float[Array, "..."],
    *,
    max_steps: int,
    tolerance: Hyper = 0.0,
    floor: Float[Array, "..."] | float = 0.0,
    preconditioner_fn: Map | None = None,
    seen_fn: Callable[[Float[Array, "..."]], Any] | None = None,
    norm_fn: Callable[..., Float[Array, "..."]] | None = None,
    num_batch_axes: int = 0,
    is_unrolled: bool = False,
) -> tuple[Float[Array, "..."], IterativeInfo]:
    """The bare recurrence of conjugate gradients, for an end that is the caller's own.

    Nothing is restarted, and no residual is computed again, as `cg` does. A may be
    semi-definite, b in its range: a system ends where its residual is as small as asked
    for, or where the curvature of its direction is not positive.

    Args:
        matvec_fn: `x -> A x`, symmetric and positive semi-definite.
        b: Right-hand sides, real; their axes that `num_batch_axes` does not count are
            those of one system.
        max_steps: Bound on the number of steps. Static.
        tolerance: Size that the residual may have at the end, relative to b's.
        floor: Size that it may have in any case, in the units of `norm_fn`: what
            rounding of b alone makes it, say. A number, or one for each system.
        preconditioner_fn: `x -> M x`, symmetric positive definite. None: the identity.
        seen_fn: `x -> s`, a linear map on the way from x to A x, applied to residuals
            alone; s may be any pytree. Then `matvec_fn(x, s)` and `norm_fn(r, z, s)`
            take its value too, so that a norm may be of what the product makes anyway.
            None: there is none.
        norm_fn: `(r, z) -> size` of a residual r and of z = M r. None: the 2-norm of r.
        num_batch_axes: Number of leading axes of b that count independent systems,
            which `matvec_fn` takes all at once. Sizes then have the shape (..., 1, 1)
            that broadcasts against b. Static.
        is_unrolled: Whether all `max_steps` steps are made, a system that has ended
            staying as it is: then x is differentiable in every way, step by step.
            Otherwise the loop ends with the last system. Static.

    Returns:
        `(x, info)`, the residual in `info` being the size of the recurrence's own. A
        step costs a product with A and one with M, memory 4 arrays of the shape of b
        and one s.

    Raises:
        ValueError: If `max_steps` is not an integer of at least 0, or there are not so
            many axes as `num_batch_axes`.
    """
    return _conjugate(
        matvec_fn,
        b,
        preconditioner_fn or (lambda r: r),
        checks.count("max_steps", max_steps, least=0),
        floor,
        tolerance,
        seen_fn,
        norm_fn,
        checks.count("num_batch_axes", num_batch_axes, least=0, most=b.ndim),
        is_unrolled,
    )


def refine(
    matvec_fn: Map,
    solve_fn: Callable[[Float[Array, "..."]], tuple[Float[Array, "..."], Any]],
    b: Float[Array, "..."],
    *,
    max_steps: int,
    target: Float[Array, ""] | float = 0.0,
) -> tuple[Float[Array, "..."], Int[Array, ""]]:
    """Solve A x = b from x = 0 by a rough solver, applied to what it leaves of b.

    As long as that gets smaller: x is the best found. Not differentiated: put
    `lax.custom_linear_solve` or `lax.stop_gradient` around it.

    Args:
        matvec_fn: `x -> A x`, linear.
        solve_fn: `r -> (change, num_steps)`, the change being near A^-1 r.
        b: Right-hand side, real, of any shape.
        max_steps: Bound on the number of calls of `solve_fn`. Static.
        target: What the 2-norm of b - A x may be at the end, in the units of b.

    Returns:
        `(x, num_steps)`, the latter the sum of those of all calls. x is NaN if b is not
        finite.

    Raises:
        ValueError: If `max_steps` is not an integer of at least 1.
    """
    max_steps = checks.count("max_steps", max_steps)

    def goes_on(carry):
        _, r, is_better, num, _ = carry
        return is_better & (_norm(r) > target) & (num < max_steps)

    def body(carry):
        x, r, _, num, num_steps = carry
        change, num_more = solve_fn(r)
        found = x + change
        rest = b - matvec_fn(found)
        is_better = _norm(rest) < _norm(r)
        x, r = (jnp.where(is_better, *p) for p in ((found, x), (rest, r)))
        return x, r, is_better, num + 1, num_steps + num_more

    zero = jnp.asarray(0)
    start = jnp.zeros_like(b), b, jnp.asarray(True), zero, zero
    x, *_, num_steps = lax.while_loop(goes_on, body, start)
    return jnp.where(jnp.all(jnp.isfinite(b)), x, jnp.nan), num_steps


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
        b: Right-hand side, real, of any shape. Its type is that of all arithmetic.
        preconditioner_fn: `x -> M x`, linear. None: the identity.
        tolerance: What the relative residual, ||b - A x|| / ||b||, may be at the end.
        max_steps: Bound on the number of steps. Static.
        restart: Number m of steps between restarts. None, or more than `max_steps`: it
            never restarts. Static.

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
    precondition, max_steps = _checked(
        matvec_fn, b, preconditioner_fn, tolerance, max_steps
    )
    most = max_steps
    if restart is not None:
        most = min(checks.count("restart", restart), max_steps)

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
    """The preconditioner and the bound on steps, after all was found in order."""
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
    checks.positive("tolerance", tolerance, or_zero=True)
    return preconditioner_fn or (lambda x: x), checks.count("max_steps", max_steps)


def _dot(x, y, num_batch_axes=0):
    if num_batch_axes:
        return jnp.sum(x * y, range(num_batch_axes, x.ndim), keepdims=True)
    return jnp.vdot(x, y, precision="highest")


def _norm(x, *_):
    return jnp.sqrt(_dot(x, x))


def judge(size: Float[Array, "..."], target: Float[Array, "..."]) -> Int[Array, "..."]:
    """The `jaxlr.core.loop.Status` of a solve that left a residual of this size.

    Args:
        size: Size of the residual.
        target: What it was to be at most; of a shape that broadcasts.

    Returns:
        `CONVERGED` if it is, `DIVERGED` if it is infinite or NaN, else `MAX_STEPS`.
    """
    status = jnp.where(size <= target, Status.CONVERGED, Status.MAX_STEPS)
    return jnp.where(jnp.isfinite(size), status, Status.DIVERGED)


def _conjugate(
    matvec_fn,
    b,
    precondition,
    max_steps,
    floor,
    tolerance: Hyper = 0.0,
    seen_fn=None,
    norm_fn=None,
    num_batch_axes=0,
    is_unrolled=False,
):
    """`cg_steps`, whose bound may be traced."""
    dot = ft.partial(_dot, num_batch_axes=num_batch_axes)

    def look(r):
        """What direction comes next, its share of it, and the size of r."""
        z = precondition(r)
        z = (z,) if seen_fn is None else (z, seen_fn(z))
        square = dot(r, z[0])
        known = lax.stop_gradient((r, *z))
        size = jnp.sqrt(dot(known[0], known[0])) if norm_fn is None else norm_fn(*known)
        return z, square, size

    def ratio(a, b, is_valid):
        return jnp.where(is_valid, a / jnp.where(is_valid, b, 1), 0)

    def step(carry):
        x, r, p, square, size, num = carry
        image = matvec_fn(*p)
        curvature = dot(p[0], image)
        is_going = size > target
        # A direction without curvature, or a NaN, ends the system it occurs in.
        is_valid = is_going & (curvature > 0)
        alpha = ratio(square, curvature, is_valid)
        x, r = x + alpha * p[0], r - alpha * image
        z, new, now = look(r)
        beta = ratio(new, square, is_valid)
        p = jax.tree.map(lambda z, p: z + beta * p, z, p)
        size = jnp.where(is_valid, now, jnp.where(is_going, jnp.nan, size))
        return x, r, p, new, size, num + jnp.any(is_going)

    def goes_on(carry):
        return jnp.any(carry[-2] > target) & (carry[-1] < max_steps)

    z, square, size = look(b)
    target = lax.stop_gradient(jnp.maximum(tolerance * size, floor))
    carry = jnp.zeros_like(b), b, z, square, size, jnp.asarray(0)
    if is_unrolled:
        carry, _ = lax.scan(lambda c, _: (step(c), None), carry, length=max_steps)
    else:
        carry = lax.while_loop(goes_on, step, carry)
    x, *_, size, num = carry
    return x, IterativeInfo(size, num, judge(size, target))


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
    unit = jnp.where(norm > 0, norm, 1)
    return scale * x, IterativeInfo(size / unit, num, judge(size, target))


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
