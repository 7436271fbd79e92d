"""How flat a minimum is: curvature of the loss, and its rise near the parameters.

Letters: w the parameters, flattened, d of them; L the loss; H its Hessian at w.
`fun(params, *args) -> L` is a scalar. `params` is any pytree, an Equinox module whole:
leaves that are no floating-point arrays stay as they are. The loss is evaluated in the
parameters' own types (in bfloat16 small radii are lost: cast them to float32 before),
vectors of the Lanczos process are float32 at least. Complex parameters are an error,
except in `hvp`: give their real and imaginary parts.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, TYPE_CHECKING

import equinox as eqx
import jax
from jax.flatten_util import ravel_pytree
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, Key, PyTree
import numpy as np

from jaxlr import linalg
from jaxlr.core import checks, Hyper
from jaxlr.sharpness._common import check_rho


if TYPE_CHECKING:
    from matplotlib.figure import Figure


class LargestEigenvalue(NamedTuple):
    """What `lambda_max` returns.

    Attributes:
        value: Ritz value [L/w^2], never above the largest eigenvalue but for rounding.
        residual: Distance within which some eigenvalue is of the value [L/w^2].
    """

    value: Float[Array, ""]
    residual: Float[Array, ""]


class MSharpness(NamedTuple):
    """What `m_sharpness` returns, in the units of L.

    Attributes:
        value: mean_j max_{||e_j|| <= rho} L_j(w + e_j) - L_j(w), the maximum as far as
            the ascent found it; never negative.
        first_order: rho mean_j ||grad L_j(w)||.
    """

    value: Float[Array, ""]
    first_order: Float[Array, ""]


class SpectralDensity(NamedTuple):
    """What `spectral_density` returns: p probes, k nodes each, q points of the grid.

    Attributes:
        nodes: Ritz values of every probe [L/w^2].
        weights: Share of the density at every node [1]; those of a probe have sum 1.
        grid: Evenly spaced eigenvalues [L/w^2].
        density: Gaussians around the nodes, averaged over probes, at the grid's points
            [w^2/L]; its integral is 1.
    """

    nodes: Float[Array, "p k"]
    weights: Float[Array, "p k"]
    grid: Float[Array, " q"]
    density: Float[Array, " q"]


def hvp(
    fun: Callable[..., Float[Array, ""]], params: PyTree, vector: PyTree, *args: Any
) -> PyTree:
    """H v, the Hessian times a vector: forward over reverse.

    Args:
        fun: The loss, `fun(params, *args) -> L`.
        params: Parameters at which the Hessian is taken.
        vector: The vector v, a pytree like `params`; leaves that are no floating-point
            arrays do not count.
        *args: Further arguments of `fun`, such as a batch.

    Returns:
        H v, like `params`, None for leaves that are no floating-point arrays. About
        twice the flops and the memory of a gradient.

    Raises:
        ValueError: Unless the arrays of `vector` have the shapes of those of `params`,
            or if L is not a scalar.
    """
    arrays, rest = eqx.partition(params, eqx.is_inexact_array)
    tangent = eqx.filter(vector, eqx.is_inexact_array)
    shapes, want = (
        [jnp.shape(x) for x in jax.tree.leaves(tree)] for tree in (tangent, arrays)
    )
    if shapes != want or jax.tree.structure(tangent) != jax.tree.structure(arrays):
        raise ValueError(
            f"`vector` must be a tree like `params`, its floating-point arrays of "
            f"shapes {want}, got {shapes}."
        )
    gradient = jax.grad(lambda x: _scalar(fun(eqx.combine(x, rest), *args)))
    tangent = jax.tree.map(lambda v, x: jnp.asarray(v, x.dtype), tangent, arrays)
    return jax.jvp(gradient, (arrays,), (tangent,))[1]


def lambda_max(
    key: Key[Array, ""],
    fun: Callable[..., Float[Array, ""]],
    params: PyTree,
    *args: Any,
    num_steps: int = 25,
) -> LargestEigenvalue:
    """The largest eigenvalue of the Hessian (not in magnitude), by Lanczos.

    Args:
        key: Random key that the start of the Lanczos process is drawn from.
        fun: The loss, `fun(params, *args) -> L`.
        params: Parameters at which the Hessian is taken.
        *args: Further arguments of `fun`, such as a batch.
        num_steps: Number k of Hessian-vector products; no more than d are made. Static.

    Returns:
        The value and a bound on its error. Costs k products and 8 d k^2 flops, d k
        memory.

    Raises:
        ValueError: If `num_steps` is below 1, L is not a scalar, or `params` has no
            floating-point arrays or a complex one; so for what follows.
    """
    loss, w = _flatten(fun, params, args)
    start = jr.normal(key, w.shape, w.dtype)
    num_steps = min(checks.count("num_steps", num_steps), w.size)
    found = linalg.lanczos(_matvec(loss, w), start, num_steps)
    values, _, residuals = linalg.ritz(found)
    return LargestEigenvalue(values[-1], residuals[-1])


def hessian_trace(
    key: Key[Array, ""],
    fun: Callable[..., Float[Array, ""]],
    params: PyTree,
    *args: Any,
    num_samples: int = 100,
    batch_size: int = 1,
) -> linalg.Estimate:
    """The trace of the Hessian, by Hutchinson's estimator.

    Args:
        key: Random key that the probes are drawn from.
        fun: The loss, `fun(params, *args) -> L`.
        params: Parameters at which the Hessian is taken.
        *args: Further arguments of `fun`, such as a batch.
        num_samples: Number of probes, a Hessian-vector product each; at least 2.
            Static.
        batch_size: Number of probes at once, by `vmap`: memory against time. Static.

    Returns:
        The estimate and its standard error [L/w^2].

    Raises:
        ValueError: If `num_samples` is below 2, `batch_size` below 1, or L is not a
            scalar.
    """
    loss, w = _flatten(fun, params, args)
    return linalg.stochastic_trace(
        key,
        _matvec(loss, w),
        w.size,
        num_samples=num_samples,
        dtype=w.dtype,
        batch_size=batch_size,
    )


def m_sharpness(
    fun: Callable[..., Float[Array, ""]],
    params: PyTree,
    *batch: PyTree[Array],
    rho: Hyper,
    num_shards: int = 1,
    num_steps: int = 1,
) -> MSharpness:
    """Mean over shards of the largest rise of the shard's loss within a ball.

    The maximum is sought by gradient ascent, steps of length rho in the direction of
    the gradient, each projected on the ball: the first one leads to SAM's point, rho
    g_j / ||g_j||. The largest loss on the way counts, that at w included.

    Args:
        fun: The loss, `fun(params, *batch) -> L`, a mean over examples.
        params: Parameters w at the center of the ball.
        *batch: Arrays, or pytrees of them, with the examples along the first axis; the
            shards are consecutive blocks of it.
        rho: Radius of the ball [w].
        num_shards: Number of disjoint shards of equal size; 1 is the sharpness of the
            whole batch. Static.
        num_steps: Number of steps of the ascent, at least 1. Static.

    Returns:
        The value and its first-order form, which does not decrease if shards are split
        further. Costs num_steps + 1 gradients of the whole batch, with the
        memory of one shard's gradient.

    Raises:
        ValueError: For a negative rho, if `num_shards` does not divide the number of
            examples, if arrays differ in it or there are none, if `num_steps` is below
            1, or L is not a scalar.

    References:
        Foret, Kleiner, Mobahi, Neyshabur. "Sharpness-Aware Minimization for
        Efficiently Improving Generalization". 2021. arXiv:2010.01412.

        Behdin, Song, Gupta, Durfee, Acharya, Keerthi, Mazumder. "Improved Deep Neural
        Network Generalization Using m-Sharpness-Aware Minimization". 2022.
        arXiv:2212.04343.
    """
    check_rho(rho)
    num_steps = checks.count("num_steps", num_steps)
    shards = _split(batch, num_shards)

    def rise(shard):
        loss, w = _flatten(fun, params, shard)

        def step(carry, _):
            e, gradient, best = carry
            e = e + rho * gradient / (_norm(gradient) + 1e-12)
            # A ratio of at most 1: the first step already has the length rho.
            e = e * jnp.minimum(1, rho / jnp.maximum(_norm(e), 1e-30))
            value, gradient = jax.value_and_grad(loss)(w + e)
            return (e, gradient, jnp.maximum(best, value)), None

        value, gradient = jax.value_and_grad(loss)(w)
        carry = jnp.zeros_like(w), gradient, value
        (_, _, best), _ = jax.lax.scan(step, carry, length=num_steps)
        return best - value, rho * _norm(gradient)

    rises, slopes = jax.lax.map(rise, shards)
    return MSharpness(jnp.mean(rises), jnp.mean(slopes))


def average_sharpness(
    key: Key[Array, ""],
    fun: Callable[..., Float[Array, ""]],
    params: PyTree,
    *args: Any,
    rho: Hyper,
    num_samples: int = 100,
    batch_size: int = 1,
) -> linalg.Estimate:
    """E L(w + rho u) - L(w), u ~ N(0, I): to second order, rho^2 / 2 times tr H.

    The perturbation has a norm of about rho sqrt(d). Every draw is taken with both
    signs, which removes the linear term and its variance.

    Args:
        key: Random key that u is drawn from.
        fun: The loss, `fun(params, *args) -> L`.
        params: Parameters w that are perturbed.
        *args: Further arguments of `fun`, such as a batch.
        rho: Standard deviation of every coordinate of the perturbation [w].
        num_samples: Number of pairs u, -u, each two losses; at least 2. Static.
        batch_size: Number of pairs at once, by `vmap`: memory against time. Static.

    Returns:
        The estimate and its standard error, in the units of L.

    Raises:
        ValueError: If `num_samples` is below 2, `batch_size` below 1, L is not a
            scalar, or rho, where it is known while tracing, is not a number >= 0.

    References:
        Andriushchenko, Croce, Müller, Hein, Flammarion. "A Modern Look at the
        Relationship between Sharpness and Generalization". 2023. arXiv:2302.07011.
    """
    check_rho(rho)
    loss, w = _flatten(fun, params, args)
    clean = loss(w)

    def rise(key):
        step = rho * jr.normal(key, w.shape, w.dtype)
        # Differences first: the loss may be large, its rise small.
        return ((loss(w + step) - clean) + (loss(w - step) - clean)) / 2

    draws = linalg.map_draws(rise, key, num_samples, "num_samples", batch_size)
    return linalg.Estimate.of(draws)


def spectral_density(
    key: Key[Array, ""],
    fun: Callable[..., Float[Array, ""]],
    params: PyTree,
    *args: Any,
    num_probes: int = 10,
    num_steps: int = 50,
    num_points: int = 1000,
    width: Hyper = 0.01,
    batch_size: int = 1,
) -> SpectralDensity:
    """The distribution of the Hessian's eigenvalues, by stochastic Lanczos.

    Args:
        key: Random key that the probes are drawn from.
        fun: The loss, `fun(params, *args) -> L`.
        params: Parameters at which the Hessian is taken.
        *args: Further arguments of `fun`, such as a batch.
        num_probes: Number p of probes. Static.
        num_steps: Number k of Hessian-vector products a probe; no more than d are made.
            Static.
        num_points: Number q of points of the grid, at least 2. Static.
        width: Standard deviation of the Gaussians, as a share of the range of the
            nodes, or of a hundredth of the largest if that is more.
        batch_size: Number of probes at once, by `vmap`: memory against time. Static.

    Returns:
        Nodes, weights and the smoothed density; `plot_density` draws it. Costs p k
        Hessian-vector products and 8 p d k^2 flops, batch_size d k memory.

    Raises:
        ValueError: If `num_points` is below 2, another number below 1, or L is not a
            scalar.

    References:
        Ghorbani, Krishnan, Xiao. "An Investigation into Neural Net Optimization via
        Hessian Eigenvalue Density". 2019. arXiv:1901.10159.
    """
    num_points = checks.count("num_points", num_points, least=2)
    num_steps = checks.count("num_steps", num_steps)
    loss, w = _flatten(fun, params, args)
    nodes, weights, _ = linalg.stochastic_lanczos(
        key,
        _matvec(loss, w),
        w.size,
        num_probes=num_probes,
        num_steps=min(num_steps, w.size),
        dtype=w.dtype,
        batch_size=batch_size,
    )
    low, high = jnp.min(nodes), jnp.max(nodes)
    # An eigenvalue alone has no range but of rounding: its size counts, then 1.
    size = jnp.maximum(jnp.abs(low), jnp.abs(high))
    scale = jnp.maximum(high - low, 0.01 * size)
    std = width * jnp.where(scale > 0, scale, 1)
    grid = jnp.linspace(low - 5 * std, high + 5 * std, num_points, dtype=w.dtype)
    gaussians = jax.scipy.stats.norm.pdf(grid[:, None], nodes.ravel(), std)
    density = linalg.matmul(gaussians, weights.ravel()) / num_probes
    return SpectralDensity(nodes, weights, grid, density)


def plot_density(density: SpectralDensity) -> "Figure":
    """The spectral density on a logarithmic scale, its Ritz values as ticks below.

    Args:
        density: What one call of `spectral_density` returned, not a batch of them.

    Returns:
        A matplotlib Figure.

    Raises:
        ValueError: If `density` is a batch.
    """
    from matplotlib.figure import Figure

    grid, values = np.asarray(density.grid), np.asarray(density.density)
    if grid.ndim != 1:
        raise ValueError(f"`density` must be one, not a batch of shape {grid.shape}.")
    nodes = np.asarray(density.nodes)
    floor = values.max() * 1e-7  # of a Gaussian's tails; a node's weight is far above
    figure = Figure((6, 3.6), layout="constrained")
    axes = figure.subplots()
    axes.fill_between(grid, floor, np.maximum(values, floor), alpha=0.3, lw=0)
    axes.plot(grid, np.maximum(values, floor), lw=1.2)
    ticks = np.full(nodes.size, floor)
    axes.plot(nodes.ravel(), ticks, "|", color="black", ms=9, clip_on=False)
    axes.set(
        yscale="log",
        ylim=(floor, None),
        xlabel="eigenvalue of the Hessian [loss / parameter$^2$]",
        ylabel="density [parameter$^2$ / loss]",
        title=f"{nodes.shape[0]} probes, {nodes.shape[1]} steps of Lanczos",
    )
    return figure


def _scalar(value):
    if jnp.shape(value):
        raise ValueError(
            f"`fun` must return a scalar loss, got shape {jnp.shape(value)}."
        )
    return value


def _flatten(fun, params, args):
    """The loss as a function of flat parameters, float32 at least, and those."""
    arrays, rest = eqx.partition(params, eqx.is_inexact_array)
    flat, restore = ravel_pytree(arrays)
    if not jnp.issubdtype(flat.dtype, jnp.floating) or not flat.size:
        raise ValueError(
            "`params` must hold real floating-point arrays, and no complex ones, got "
            f"{[str(x.dtype) for x in jax.tree.leaves(arrays)]}."
        )
    dtype = jnp.promote_types(flat.dtype, jnp.float32)

    def loss(w):
        value = fun(eqx.combine(restore(w.astype(flat.dtype)), rest), *args)
        return _scalar(value).astype(dtype)

    return loss, flat.astype(dtype)


def _matvec(loss, w):
    """`v -> H v`; what does not depend on v is computed once."""
    return jax.linearize(jax.grad(loss), w)[1]


def _norm(x):
    """||x||, with derivative zero at zero."""
    square = linalg.matmul(x, x)
    return jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1)), 0)


def _split(batch, num_shards: int):
    """Leaves (B, ...) as (num_shards, B / num_shards, ...)."""
    sizes = {jnp.shape(x)[:1] for x in jax.tree.leaves(batch)}
    if len(sizes) != 1 or () in sizes:
        raise ValueError(
            "`batch` must hold arrays with one number of examples along the first "
            f"axis, got {sorted(sizes)}."
        )
    ((num,),) = sizes
    num_shards = checks.count("num_shards", num_shards)
    if num % num_shards:
        raise ValueError(
            f"`num_shards` must divide the {num} examples of the batch, got "
            f"{num_shards}."
        )
    return jax.tree.map(
        lambda x: x.reshape(num_shards, num // num_shards, *x.shape[1:]), batch
    )
