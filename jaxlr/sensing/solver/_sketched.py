"""Alternating least squares for matrix completion in nearly linear time.

Row i of F regresses the observed y_ij, m_i of them, on the rows g_j of G. Instead of
the Gram matrix of the regressors, m_i k^2 flops, a sketch of them gives a
preconditioner, with which a few conjugate-gradient iterations of m_i k flops each do.
"""

import jax
import jax.numpy as jnp
import jax.random as jr

from jaxlr.core import checks, Count, Hyper, Solver
from jaxlr.linalg import cg_steps
from jaxlr.sensing.problem import SensingProblem
from jaxlr.sensing.solver import _common


def alternating_sketched(
    problem: SensingProblem,
    *,
    num_columns: int,
    num_active: Count | None = None,
    num_inner: int = 2,
    sketch_size: int | None = None,
    damping: Hyper = 0.0,
) -> Solver:
    """Minimize over F, then over G, and again; each by sketched regressions.

    L is that of `alternating_least_squares`. For each row: a random sketch of its
    regressors, s-by-k; its QR decomposition, whose R makes the row's normal equations
    well conditioned; `num_inner` conjugate-gradient iterations on these, from the last
    value of the row. All rows at once, with a fresh sketch every time.

    The sketch adds each observed entry, with a random sign, to one of s buckets. Every
    s consecutive entries of a row fill each bucket once, so that a row of at most s
    entries loses nothing, and two iterations solve it exactly. Rows with fewer than k
    entries take a solution near their last value. A column that is exactly zero in both
    factors stays so.

    With k = 5 and 2.5 to 4 times as many entries as degrees of freedom, as many sweeps
    reach a given error as by exact solves, to 5 percent. With many more entries exact
    sweeps converge faster than two iterations can: take more, or a longer sketch. The
    flops saved do not always pay: on a CPU with two cores, n = 1000, a sweep took 0.5
    times as long as an exact one at k = 16 and 8 % of the entries, but 2.5 times at
    k = 5 and 2.5 %, and 5 times at k = 32 and 16 %, where exact sweeps are matrix
    products.

    Args:
        problem: The instance to solve, of sampled or of all entries; a repeated entry
            counts as often as it occurs.
        num_columns: Number k of columns of the factors. Static.
        num_active: Number of columns in use, 1..k, the others being zero; None for all.
            May be traced: one program then serves all ranks.
        num_inner: Number of conjugate-gradient iterations for each factor in a sweep.
            Static.
        sketch_size: Number s of buckets of a row's sketch, at least k; None for 4 k.
            Static.
        damping: Weight of ||F||^2 + ||G||^2 [||M||].

    Returns:
        A `Solver` with `FactorState`, from the `spectral` start, and `FactorInfo`. A
        step is one sweep, F and then G: about (6 + 4 num_inner) m k flops and m k
        numbers of memory for each factor (where 1/8 of the entries or more are
        observed, n1 n2 in place of m, as matrix products), and O((n1 + n2) s k^2)
        flops, O((n1 + n2) s k) memory for the decompositions.

    Raises:
        ValueError: If `num_columns` is not an integer in 1..min(n1, n2), if `num_inner`
            is not one >= 1, `sketch_size` one >= k, or for an operator that does not
            observe entries.

    References:
        Gu, Song, Yin, Zhang. "Low Rank Matrix Completion via Robust Alternating
        Minimization in Nearly Linear Time". 2023. arXiv:2302.11068.
    """
    num_inner = checks.count("num_inner", num_inner)
    num_columns = checks.count("num_columns", num_columns)
    if sketch_size is None:
        sketch_size = 4 * num_columns
    size = checks.count("sketch_size", sketch_size, least=num_columns)

    def solve_fn(operator, damping):
        places = _places_in_rows(operator)

        def solve(key, downhill, g):
            def apply_grams(p):
                fit = operator.apply_factors(p, g)
                return operator.adjoint_matmul(fit, g) + damping * p

            change, _ = cg_steps(
                apply_grams,
                downhill,
                max_steps=num_inner,
                # Well above rounding: eps^2, over the ridge in directions left open.
                tolerance=float(jnp.finfo(downhill.dtype).eps) ** 0.5,
                preconditioner_fn=_sketch(key, operator, places, g, damping, size),
                norm_fn=lambda r, z: jnp.sqrt(jnp.sum(r * z, axis=1, keepdims=True)),
                num_batch_axes=1,
                is_unrolled=True,
            )
            return change

        return solve

    return _common.alternating(
        problem,
        "alternating_sketched",
        solve_fn,
        num_columns=num_columns,
        num_active=num_active,
        damping=damping,
    )


def _places_in_rows(operator):
    """Which of its row's entries each entry is: 0, 1, ..., in the order given."""
    order = jnp.argsort(operator.rows)
    rows = operator.rows[order]
    places = jnp.arange(len(rows)) - jnp.searchsorted(rows, rows)
    return jnp.zeros_like(places).at[order].set(places)


def _sketch(key, operator, places, g, damping, s):
    """`r -> (R^T R)^-1 r` for every row, R^T R its sketched and damped Gram matrix."""
    (n, _), (m,), k = operator.shape, operator.rows.shape, g.shape[1]
    sign_key, shift_key = jr.split(key)
    signs = jr.rademacher(sign_key, (m, 1), g.dtype)
    shifts = jr.randint(shift_key, (-(-m // s),), 0, s)
    buckets = (places + shifts[places // s]) % s
    sketch = jax.ops.segment_sum(
        signs * g[operator.cols], operator.rows * s + buckets, num_segments=n * s
    ).reshape(n, s, k)
    # Below the sketch, a diagonal: the damping, and a relative ridge. R is regular then
    # for a zero column, and for a row with fewer than k entries, whose open directions
    # else amplify rounding; the solution stays where it is, so it need not be tiny.
    square = jnp.sum(sketch**2, axis=1)
    largest = jnp.max(square, axis=1, keepdims=True)
    ridge = jnp.finfo(g.dtype).eps ** 0.5 * jnp.where(square > 0, square, largest)
    ridge = jnp.where(largest > 0, ridge, 1)
    foot = jnp.eye(k, dtype=g.dtype) * jnp.sqrt(ridge + damping)[:, :, None]
    root = jnp.linalg.qr(jnp.concatenate([sketch, foot], axis=1), mode="r")

    def solve(right):
        for is_transposed in (True, False):
            right = jax.lax.linalg.triangular_solve(
                root, right, left_side=True, lower=False, transpose_a=is_transposed
            )
        return right

    return lambda right: solve(right[:, :, None])[:, :, 0]
