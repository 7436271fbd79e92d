"""Differential equations by Gaussian processes that satisfy them at the grid's points.

Letters: D axes of n_1, ..., n_D points, N in all; k_d is the kernel of axis d, a an
order of derivation. One axis: u is conditioned on all values of the equation and the
boundary together, by their covariances. More: D_d^(a) = K_d^(a) K_d^-1 differentiates
along axis d, u on the faces is known, and Newton's linear systems are solved by GMRES,
with the part of the operator that has constant coefficients and acts along one axis at
a time, diagonalized, as its preconditioner.
"""

from collections.abc import Sequence
import functools as ft
from typing import NamedTuple, TypeAlias

import jax
from jax import lax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int
import numpy as np

from jaxlr.core import checks, Hyper, Status
from jaxlr.covariance import check_scalar, Kernel
from jaxlr.pde.newton import linearize, many_axes, one_axis
from jaxlr.pde.problem import Problem


Starts: TypeAlias = Kernel | Sequence[Kernel]
"""A kernel, or several of one structure and size, to start training from."""


class Collocation(NamedTuple):
    """A solution on the grid, and how far it is to be believed.

    Attributes:
        solution: u, shape (n_1, ..., n_D).
        residual: ||source - equation(u)||, with u differentiated as the kernels have
            it, relative to the norm of the sum of all terms' magnitudes. One axis: in
            units of the prior's standard deviations, with the boundary's share,
            relative to the data. It is that of the discrete equations: small ones do
            not mean that the grid resolves u, nor that rounding (in float32) does.
        num_steps: Number of Newton steps tried; 1 of `collocation_solve`.
        num_products: Number of products with the linearized operator in all.
        status: A `Status`: `CONVERGED` if the residual meets the tolerance.
        kernels: Kernels that were used, one for each axis, after training.
        log_marginal_likelihood: Logarithm of the likelihood of the data that training
            saw, at the kernels used, in nats.
        jitter: What was added to the diagonal of each axis' correlations.
    """

    solution: Float[Array, "..."]
    residual: Float[Array, ""]
    num_steps: Int[Array, ""]
    num_products: Int[Array, ""]
    status: Int[Array, ""]
    kernels: tuple[Kernel, ...]
    log_marginal_likelihood: Float[Array, ""]
    jitter: Float[Array, " D"]


def collocation_solve(
    problem: Problem,
    kernels: Starts | Sequence[Starts],
    *,
    max_evaluations: int = 100,
    jitter: Hyper | None = None,
    tolerance: Hyper | None = None,
) -> Collocation:
    """Solve a linear differential equation on a box of 1 to 3 dimensions.

    Hyper-parameters are trained before: on the likelihood of source and boundary where
    there is one axis; with more, axis by axis, on that of the source's lines along the
    axis, or of the boundary's where the source is zero, as draws of its kernel. Of
    several starts the likeliest is used: nothing else selects. Fields of a kernel are
    trained as their metadata says (`jaxlr.covariance.training`): held ones, such as the
    frequencies of a `SpectralMixture`, not at all; those on a log scale under a wide
    prior, a factor of 150 off the start being one standard deviation; all others as
    they are. A scale of the kernel changes neither solution nor likelihood.

    Args:
        problem: Equation that is linear in u, with derivatives to the order 2 where
            there is one axis, and else to the kernels' `max_order`. On one axis it is
            imposed on the faces too.
        kernels: One kernel for every axis, or one for all; instead of a kernel, several
            of one structure and size.
        max_evaluations: Bound on the evaluations of the likelihood and its gradient,
            for every start; 0 leaves kernels as they are. Static.
        jitter: Number > 0 that is added to the diagonal of correlations, and ten times
            as much as long as a Cholesky factorization fails. None stands for 1e-12 in
            float64 and 1e-6 in float32.
        tolerance: Bound on the residual that makes the status `CONVERGED`. None stands
            for 1e-6 in float64 and 1e-4 in float32.

    Returns:
        The solution. One axis: O(n^3) flops an evaluation, and to solve, O(n^2) memory.
        More: O(n_d^3) for every axis, and 12 N sum n_d flops and 100 N numbers, or
        less, for a product of GMRES. Differentiable once with respect to the source,
        the boundary, and kernels that are not trained. Axes and kernels that are known
        while tracing cost less: regular axes need n_d values of the kernel, and
        operators are diagonalized on the host, where others need a CPU.

    Raises:
        ValueError: Unless there is a kernel for each of 1 to 3 axes, starts are of one
            structure and size, kernels have numbers as hyper-parameters and the
            derivatives needed, the equation is linear (where that can be known), and
            `max_evaluations` an integer >= 0.

    References:
        Fang, Cooley, Long, Li, Kirby, Zhe. "Solving High Frequency and Multi-Scale PDEs
        with Gaussian Processes". 2023. arXiv:2311.04465: problems and kernels.
        Fasshauer. "Solving Partial Differential Equations by Collocation with Radial
        Basis Functions". 1997. Surface Fitting and Multiresolution Methods.
    """
    _check_linear(problem)
    return _solve(problem, kernels, max_evaluations, jitter, tolerance, 1)


def newton_collocation(
    problem: Problem,
    kernels: Starts | Sequence[Starts],
    *,
    max_evaluations: int = 100,
    jitter: Hyper | None = None,
    tolerance: Hyper | None = None,
    max_steps: int = 20,
) -> Collocation:
    """Solve a differential equation that may be nonlinear, by Newton's method from 0.

    Every step is one of `collocation_solve`, on the equation linearized at the last u;
    hyper-parameters are trained on that at u = 0. It goes on, also where the residual
    rises, until that is within the tolerance and no longer falls to the half, or is of
    rounding's size; the step of the least residual counts.

    Args:
        problem: Equation that is pointwise in u and its derivatives, differentiable at
            u = 0, with derivatives to the orders that `collocation_solve` takes.
        kernels: One kernel for every axis, or one for all; instead of a kernel, several
            of one structure and size.
        max_evaluations: Bound on the evaluations of the likelihood and its gradient,
            for every start; 0 leaves kernels as they are. Static.
        jitter: Number > 0 that is added to the diagonal of correlations, and ten times
            as much as long as a Cholesky factorization fails. None stands for 1e-12 in
            float64 and 1e-6 in float32.
        tolerance: Bound on the residual, which ends the steps and makes the status
            `CONVERGED`. None stands for 1e-6 in float64 and 1e-4 in float32.
        max_steps: Bound on the number of Newton's steps. Static.

    Returns:
        As `collocation_solve`. Of derivatives those of the last step: where the method
        has converged, with several axes they are the solution's; with one they leave
        out that the linearized operator moves with u, and are approximate.

    Raises:
        ValueError: As `collocation_solve`, but for linearity; or unless `max_steps` is
            an integer >= 1.

    References:
        Chen, Hosseini, Owhadi, Stuart. "Solving and Learning Nonlinear PDEs with
        Gaussian Processes". 2021. arXiv:2103.12959.
    """
    max_steps = checks.count("max_steps", max_steps)
    return _solve(problem, kernels, max_evaluations, jitter, tolerance, max_steps)


def _solve(problem, kernels, max_evaluations, jitter, tolerance, max_steps):
    """Steps in a loop, and one that can be differentiated.

    That is from the solution, of which its derivatives are then, or the best one again.
    """
    dtype = problem.grid[0].dtype
    max_evaluations = checks.count("max_evaluations", max_evaluations, least=0)
    starts = _starts(problem, kernels)
    if jitter is None:
        jitter = 1e-12 if dtype == jnp.float64 else 1e-6
    jitter = jnp.asarray(checks.positive("jitter", jitter), dtype)
    if tolerance is None:
        tolerance = 1e-6 if dtype == jnp.float64 else 1e-4
    build = one_axis if len(problem.grid) == 1 else many_axes
    kernels, likelihood, start, step = build(problem, starts, max_evaluations, jitter)
    num_steps, num_products, is_finite = jnp.asarray(1), None, True
    if max_steps > 1:
        floor = 100 * jnp.finfo(dtype).eps

        def goes_on(carry):
            last, before, _, num = carry
            now = last.residual
            has_more = (now > tolerance) | (now <= before / 2)
            return has_more & (now > floor) & (num < max_steps)

        def body(carry):
            last, _, (least, source), num = carry
            new = step(last.state)
            is_best = new.residual < least
            best = (new.residual, last.state), (least, source)
            best = jax.tree.map(ft.partial(jnp.where, is_best), *best)
            products = last.num_products + new.num_products
            return new._replace(num_products=products), last.residual, best, num + 1

        frozen = jax.tree.map(lax.stop_gradient, start)
        big = jnp.asarray(jnp.inf, dtype)
        carry = frozen._replace(residual=big), big, (big, frozen.state), 0 * num_steps
        end, _, (_, source), num_steps = lax.while_loop(goes_on, body, carry)
        has_converged = end.residual <= tolerance
        source = jax.tree.map(ft.partial(jnp.where, has_converged), end.state, source)
        start = start._replace(state=jax.tree.map(lax.stop_gradient, source))
        num_products, is_finite = end.num_products, jnp.isfinite(end.residual)
    last = step(start.state)
    residual = last.residual
    status = jnp.where(residual <= tolerance, Status.CONVERGED, Status.MAX_STEPS)
    return Collocation(
        last.state[0],
        residual,
        num_steps,
        last.num_products if num_products is None else num_products,
        jnp.where(jnp.isfinite(residual) & is_finite, status, Status.DIVERGED),
        kernels,
        likelihood,
        last.jitter,
    )


def _starts(problem, kernels):
    """A tuple of kernels for every axis."""
    num_axes, orders = len(problem.grid), problem.orders
    if not 1 <= num_axes <= 3:
        raise ValueError(f"`problem` must have 1 to 3 axes, got {num_axes}.")
    each = [kernels] * num_axes if isinstance(kernels, Kernel) else list(kernels)
    starts = [(k,) if isinstance(k, Kernel) else tuple(k) for k in each]
    if len(starts) != num_axes or not all(starts):
        raise ValueError(
            f"`kernels` must have an entry for each of {num_axes} axes, a kernel or "
            f"several, got {len(starts)}."
        )
    for axis, several in enumerate(starts):
        for kernel in several:
            check_scalar(kernel)
        forms = {
            (jax.tree.structure(k), *map(jnp.shape, jax.tree.leaves(k)))
            for k in several
        }
        if len(forms) > 1:
            raise ValueError(
                f"`kernels[{axis}]` must be of one structure and size: compare the "
                "likelihoods of several calls to choose among others."
            )
        order = max(o[axis] for o in orders)
        needed = order * (2 if num_axes == 1 else 1)
        if needed > several[0].max_order:
            raise ValueError(
                f"`kernels[{axis}]`, a {type(several[0]).__name__}, has derivatives to "
                f"the order {several[0].max_order}; this equation needs {needed}."
            )
    return starts


def _check_linear(problem):
    rng = np.random.default_rng(0)
    with jax.ensure_compile_time_eval():
        num = len(problem.orders)
        states = [
            [jnp.asarray(rng.normal(size=problem.shape)) for _ in range(num)]
            for _ in range(2)
        ]
        pairs = zip(*(linearize(problem, s) for s in states), strict=True)
        for one, other in pairs:
            if not checks.known(one, other):
                continue
            rounding = 1e-4 * np.max(np.abs(one))
            if not np.allclose(one, other, rtol=1e-4, atol=rounding):
                raise ValueError(
                    "The `equation` is not linear in u: use `newton_collocation`."
                )
