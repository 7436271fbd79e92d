"""Marginal likelihoods of dense covariances, and hyper-parameters that maximize them.

Letters: n functionals of a Gaussian process, m draws of them.
"""

from collections.abc import Callable, Sequence

import jax
from jax import lax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxlr.core import checks, Count, lbfgs, Minimum, multistart, tree
from jaxlr.core.batching import one_by_one
from jaxlr.covariance import constrain, hold, Kernel, unconstrain
from jaxlr.covariance.training import LOG, ways


_MOST_JITTER = 1e-3
_LINE_SEARCH = 10
_LEAST_GAIN = 0.01  # nats; rounding alone makes as much at a condition of 1e12
_PRIOR_DEVIATION = 5.0  # of logarithms; a factor of 150


def cholesky(
    correlations: Float[Array, "n n"], jitter: Float[Array, ""]
) -> tuple[Float[Array, "n n"], Float[Array, ""]]:
    """L of C + jitter I, and the jitter: ten times as much as long as that fails.

    Raises:
        ValueError: If known ones fail up to a jitter of 1e-3; of others L is then NaN.
    """
    identity = jnp.eye(len(correlations), dtype=correlations.dtype)
    known = lax.stop_gradient(correlations)

    def fails(jitter):
        lower = jnp.linalg.cholesky(known + jitter * identity)
        return ~jnp.all(jnp.isfinite(lower)) & (jitter < _MOST_JITTER / 2)

    start = lax.stop_gradient(jitter)
    least = jnp.finfo(start.dtype).tiny
    jitter = lax.while_loop(fails, lambda j: jnp.maximum(10 * j, least), start)
    lower = jnp.linalg.cholesky(correlations + jitter * identity)
    if checks.known(lower) and not jnp.all(jnp.isfinite(lower)):
        raise ValueError(
            "The `kernels` give correlations that are not positive definite, nor with "
            f"a jitter of {jitter:.1g}."
        )
    return lower, jitter


def correlate(
    covariance: Float[Array, "n n"],
) -> tuple[Float[Array, "n n"], Float[Array, " n"]]:
    """Correlations, and standard deviations."""
    scale = jnp.sqrt(jnp.diagonal(covariance))
    return covariance / scale[:, None] / scale, scale


def log_likelihood(
    covariance: Float[Array, "n n"],
    data: Float[Array, "n _"],
    jitter: Float[Array, ""],
    num_draws: Count = 1,
) -> Float[Array, ""]:
    """The log likelihood of a draw, the mean over draws, in nats.

    The covariance is taken times the number that makes the draws likeliest: its own
    scale does not matter. Other columns may stand for the draws, of the same sum of
    products `data @ data.T`. 0 where all data are 0, which tell nothing.
    """
    correlations, scale = correlate(covariance)
    n = len(scale)
    lower = jnp.linalg.cholesky(correlations + jitter * jnp.eye(n, dtype=scale.dtype))
    white = jax.scipy.linalg.solve_triangular(lower, data / scale[:, None], lower=True)
    variance = jnp.sum(white**2) / (n * num_draws)
    is_empty = variance == 0
    variance = jnp.where(is_empty, 1, variance)  # NaN stays
    logdet = 2 * jnp.sum(jnp.log(jnp.diagonal(lower) * scale))
    value = -(n * (jnp.log(2 * jnp.pi * variance) + 1) + logdet) / 2
    return jnp.where(is_empty, 0, value)


def maximize(
    likelihood_fn: Callable[[Kernel, Float[Array, ""]], Float[Array, ""]],
    covariance_fn: Callable[[Kernel], Float[Array, "n n"]],
    starts: Sequence[Kernel],
    max_evaluations: int,
    jitter: Float[Array, ""],
) -> tuple[Kernel, Float[Array, ""]]:
    """The likeliest kernel that L-BFGS finds from one of the starts, and how likely.

    Starts go one after the other, in one compile: batches of factorizations may wait
    for each other (`batching.one_by_one`). The jitter with which a start's Cholesky
    factorization succeeds stays for its training. Ends too when a step gains less than
    a hundredth of a nat. A wide log-normal prior around the start holds what is trained
    in its logarithm: rates of components without weight, which the likelihood does not
    see and derivatives do. It does not count in what is returned.

    Args:
        likelihood_fn: Of a kernel and a jitter, in nats.
        covariance_fn: What the likelihood factors.
        starts: Of one structure.
        max_evaluations: Bound on evaluations of likelihood and gradient for each start.
        jitter: Where escalation starts.
    """
    max_search = min(_LINE_SEARCH, max_evaluations - 1)

    def train(start):
        _, used = cholesky(correlate(covariance_fn(constrain(start)))[0], jitter)

        def loss_fn(params):
            value = likelihood_fn(constrain(hold(params)), used)
            value = _distance(params, start) - value
            return jnp.where(jnp.isfinite(value), value, jnp.inf)

        end = Minimum(start, jnp.asarray(jnp.inf), jnp.asarray(0), jnp.asarray(0))
        if max_search > 0:
            end = lbfgs(
                loss_fn,
                max_steps=max_evaluations,
                max_evaluations=max_evaluations,
                max_search=max_search,
                tolerance=0.0,
                least_gain=_LEAST_GAIN,
            )(start)
        value = likelihood_fn(constrain(end.params), used)
        is_good = jnp.isfinite(value)
        params = tree.select(is_good, end.params, start)
        return end._replace(params=params, loss=jnp.where(is_good, -value, jnp.inf))

    logs = [unconstrain(kernel, jitter.dtype) for kernel in starts]
    if len(logs) == 1:  # misuse of a single one is named
        best = train(logs[0])
    else:
        best = multistart(
            one_by_one(train), jax.tree.map(lambda *x: jnp.stack(x), *logs)
        )
    return constrain(best.params), -best.loss


def _distance(params, start):
    """Minus the prior's log density, in nats, up to a constant."""

    def of(way, x, y):
        return jnp.sum((x - y) ** 2) if way == LOG else 0

    squares = jax.tree.map(of, ways(params), params, start)
    return sum(jax.tree.leaves(squares)) / (2 * _PRIOR_DEVIATION**2)
