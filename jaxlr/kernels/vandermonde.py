"""Sums of exponentials over a grid of times, without the Vandermonde matrix.

    K_l = 2 Re sum_n w_n exp(l x_n),        l = q T + r:
    K[q, r] = 2 [Re, Im](w exp(q T x)) . [Re, -Im](exp(r x)),

a real matrix product. Letters: w weights and x exponents of N states, T the tile, a
power of two, Q tiles. Exponentials are products of those of 2^j x, one for each binary
digit of l: 2^j x is exact in floating point, and they are log2(Q T) for a state.
"""

import functools as ft

import jax
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

from jaxlr.core import checks
from jaxlr.kernels._common import (
    check_float32,
    check_pairs,
    complex_product,
    Implementation,
    LANE,
    Pair,
    pick,
    round_up,
    SUBLANE,
    vmem_params,
)


_BLOCK = 2**17  # Entries of K that one step of the kernel makes: 512 KiB.
_F32 = jnp.float32
_LOW_BITS = 12  # Of the 24 of a float32: products of two halves are exact.


def vandermonde(
    weights: Pair,
    exponents: Pair,
    length: int,
    *,
    step: ArrayLike | None = None,
    tile: int | None = None,
    implementation: Implementation | None = None,
) -> Float[Array, "... length"]:
    """K_l = 2 Re sum_n w_n exp(l x_n) for l < length, as one real matrix product.

    4 N flops an entry of K, and N (T + length / T) log2(length) small products. The
    gradient, by two more such products, keeps the arguments alone. In float32 the error
    is about 1e-6 of max|K| for the x given. But float32 has only so many digits of a
    quickly turning x: in S4D-LegS of 64 states these cost 2e-5, of 256 states 3e-4.
    Where x is a time step times a rate, give them apart, as `step`, and they cost
    nothing.

    Args:
        weights: The w_n, a pair (re, im) of real arrays of shape (..., N); axes in
            front broadcast.
        exponents: The x_n, a pair (re, im) of shape (..., N), [1]; or, with `step`, a
            rate. Re x <= 0 unless exp(length x) is finite.
        length: Number of entries l of K. Static.
        step: x is `step * exponents`, without the rounding of that product; its shape
            broadcasts with (..., N). None is 1.
        tile: T, a power of two; for a kernel at least 128. Changes speed and memory,
            and results by rounding. None: the first that is no less than sqrt(length).
            Static.
        implementation: `"xla"` anywhere: 8 N (T + length / T) bytes a channel in
            float32 and half as much again beside arguments and result, with the
            gradient 4 times; at 256 channels, N = 32, length 16384, 24 and 56 MiB.
            `"pallas"` on a TPU, float32: the factors never leave VMEM; differentiable
            once, where `"xla"` is differentiable again. `"pallas_interpret"`: the same
            kernel anywhere, slow, for tests. None is `"xla"`. There is no silent
            fallback.

    Returns:
        K, shape (..., length), of the type of the arguments.

    Raises:
        ValueError: If an argument is complex or not a pair, shapes do not broadcast,
            `length`, `tile` or `implementation` are not as above; with a kernel, if
            anything is not float32 or would exceed 100 MiB of VMEM.

    References:
        Albert Gu, Ankit Gupta, Karan Goel, Christopher Ré, *On the Parameterization and
        Initialization of Diagonal State Space Models*, 2022 (arXiv:2206.11893): the sum
        as a Vandermonde product.
    """
    implementation = pick(implementation)
    weights, exponents = check_pairs(
        implementation, weights=weights, exponents=exponents
    )
    length = checks.count("length", length)
    least = 1 if implementation == "xla" else LANE
    if tile is None:
        tile = max(2 ** (((length - 1).bit_length() + 1) // 2), least)
    tile = checks.count("tile", tile, least=least)
    if tile & (tile - 1):
        raise ValueError(f"`tile` must be a power of two, got {tile}.")
    rate = exponents[1]
    if step is not None:
        check_float32(implementation, "step", step)
        step = jnp.asarray(step, rate.dtype)
        exponents = step * exponents[0], step * rate
    arrays = (*weights, *exponents, *_phase(step, rate, exponents[1]))
    try:
        arrays = jnp.broadcast_arrays(*arrays)
    except ValueError as e:
        shapes = [a.shape for a in (*weights, *exponents)]
        raise ValueError(
            f"`weights`, `exponents` and `step` must broadcast, got {shapes}."
        ) from e
    if arrays[0].ndim == 0:
        raise ValueError("`weights` and `exponents` need an axis of states, got none.")
    lead = arrays[0].shape[:-1]
    arrays = tuple(a.reshape(-1, a.shape[-1]) for a in arrays)
    num_tiles = pl.cdiv(length, tile)
    out = _sum(
        (num_tiles, tile, implementation),
        (arrays[0], arrays[1]),
        (arrays[2], arrays[3]),
        arrays[4:],
    )
    return out.reshape(*lead, num_tiles * tile)[..., :length]


def _phase(step, rate, product):
    """Im x as a sum: itself, or in float32 two numbers that hold step * rate."""
    if step is None or product.dtype != jnp.float32:
        return (product,)
    # Dekker's product. Bits are cut by a mask: no compiler may contract or reorder it.
    high = _cut(product)
    a, b = _cut(step), _cut(rate)
    c, d = step - a, rate - b
    return high, ((a * b - high) + (a * d + c * b)) + c * d


def _cut(x):
    bits = lax.bitcast_convert_type(x, jnp.uint32)
    mask = jnp.uint32(0xFFFFFFFF << _LOW_BITS & 0xFFFFFFFF)
    return lax.bitcast_convert_type(bits & mask, jnp.float32)


@ft.partial(jax.custom_jvp, nondiff_argnums=(2,))
def _exponentials(exponents, phase, num):
    """The pair exp(2^j x), j < num, shape (..., N, num)."""
    powers = _powers_of_two(num, exponents[0].dtype)
    size = jnp.exp(exponents[0][..., None] * powers)
    angles = [part[..., None] * powers for part in phase]
    turns = [(jnp.cos(angle), jnp.sin(angle)) for angle in angles]
    re, im = ft.reduce(complex_product, turns)
    return size * re, size * im


def _powers_of_two(num, dtype):
    return jnp.asarray([2.0**j for j in range(num)], dtype)  # exact, as exp2 is not


@_exponentials.defjvp
def _(num, primals, tangents):
    # The phase holds no gradient, as cut bits have none; x does.
    out = _exponentials(*primals, num)
    powers = _powers_of_two(num, out[0].dtype)
    rates = [t[..., None] * powers for t in tangents[0]]
    return out, complex_product(out, (rates[0], rates[1]))


def _powers(table, first, num, index, factor=None):
    """The pair factor * exp(2^first index x), for index below 2^num.

    Args:
        table: Pair of (..., N, digits).
        first: Static.
        num: Static.
        index: Whole numbers of shape (1, K).
        factor: Pair of (..., N, 1). None is 1.

    Returns:
        A pair of (..., N, K).
    """
    out = factor
    for j in range(num):
        is_one = (index >> j) & 1 == 1
        re, im = (part[..., first + j : first + j + 1] for part in table)
        digit = jnp.where(is_one, re, 1.0), jnp.where(is_one, im, 0.0)
        out = digit if out is None else complex_product(out, digit)
    shape = (*table[0].shape[:-1], index.shape[-1])
    if out is None:
        return jnp.ones(shape, table[0].dtype), jnp.zeros(shape, table[0].dtype)
    return jnp.broadcast_to(out[0], shape), jnp.broadcast_to(out[1], shape)


def _indices(num):
    return jnp.arange(num, dtype=jnp.int32)[None]


def _digits(plan):
    num_tiles, tile, _ = plan
    return (tile - 1).bit_length(), (num_tiles - 1).bit_length()


def _value(plan, weights, exponents, phase):
    """K, of (channels, tiles, tile) entries."""
    num_tiles, tile, implementation = plan
    small, large = _digits(plan)
    table = lax.optimization_barrier(_exponentials(exponents, phase, small + large))
    if implementation != "xla":
        return _launch_value(plan, weights, table)
    weights = weights[0][..., None], weights[1][..., None]
    re, im = _powers(table, small, large, _indices(num_tiles), weights)
    right = jnp.concatenate(_powers(table, 0, small, _indices(tile)), 1)
    return 2 * _product("hnq,hnr->hqr", jnp.concatenate((re, -im), 1), right)


def _fwd(plan, *args):
    return _value(plan, *args), args


def _bwd(plan, args, g):
    # With S_k = sum_l l^k g_l exp(l x), the gradients are 2 conj S_0 and 2 conj(w S_1).
    weights, exponents, phase = args
    num_tiles, tile, implementation = plan
    small, large = _digits(plan)
    table = lax.optimization_barrier(_exponentials(exponents, phase, small + large))
    if implementation != "xla":
        moments = _launch_moments(plan, table, g)
    else:
        q, r = _indices(num_tiles), _indices(tile)
        a = jnp.concatenate(_powers(table, small, large, q), 1)
        b = jnp.concatenate(_powers(table, 0, small, r), 1)
        a, b = lax.optimization_barrier((a, b))
        over_r = _product("hnr,hqr->hnq", b, g)
        over_q = _product("hnq,hqr->hnr", a, g)
        moments = _moments(a, b, over_r, over_q, q * tile, r)
    zeroth, (re, im) = (_halves(moment) for moment in moments)
    first = complex_product(weights, (re[..., 0], im[..., 0]))
    zeroth = zeroth[0][..., 0], zeroth[1][..., 0]
    gradients = ((2 * re, -2 * im) for re, im in (zeroth, first))
    return *gradients, tuple(jnp.zeros_like(part) for part in phase)


_sum = jax.custom_vjp(_value, nondiff_argnums=(0,))
_sum.defvjp(_fwd, _bwd)


def _product(subscripts, left, right):
    return jnp.einsum(subscripts, left, right, precision="highest")


def _moments(a, b, over_r, over_q, start, r):
    """S_0 and S_1, Re over Im, from the products of g with one factor each."""
    large = jnp.concatenate(complex_product(_halves(a), _halves(over_r)), -2)
    small = jnp.concatenate(complex_product(_halves(b), _halves(over_q)), -2)
    total = ft.partial(jnp.sum, axis=-1, keepdims=True)
    return total(large), total(start * large) + total(r * small)


def _halves(stacked):
    num = stacked.shape[-2] // 2
    return stacked[..., :num, :], stacked[..., num:, :]


def _launch_value(plan, weights, table):
    states = _states(*table, weights[0][..., None], weights[1][..., None])
    rows, call = _prepare(plan, states, _value_kernel)
    num_tiles, tile, _ = plan
    return call(
        out_shape=jax.ShapeDtypeStruct((states.shape[0], num_tiles, tile), _F32),
        in_specs=[_whole(states.shape[1:])],
        out_specs=pl.BlockSpec((1, rows, tile), lambda h, i: (h, i, 0)),
        name="vandermonde",
    )(states)


def _launch_moments(plan, table, g):
    states = _states(*table)
    num = states.shape[1]
    rows, call = _prepare(plan, states, _moments_kernel)
    moments = call(
        out_shape=jax.ShapeDtypeStruct((states.shape[0], 2 * num, 2), _F32),
        in_specs=[
            _whole(states.shape[1:]),
            pl.BlockSpec((1, rows, g.shape[2]), lambda h, i: (h, i, 0)),
        ],
        out_specs=_whole((2 * num, 2)),
        name="vandermonde_gradient",
    )(states, g)
    moments = moments.reshape(-1, 2, num, 2)[:, :, : table[0].shape[1]]
    moments = moments.reshape(moments.shape[0], -1, 2)
    return moments[..., :1], moments[..., 1:]


def _states(*parts):
    """A row for each state: the exponentials of 2^j x, then the weights."""
    states = jnp.concatenate(parts, -1)
    padding = round_up(states.shape[1], SUBLANE) - states.shape[1]
    return jnp.pad(states, ((0, 0), (0, padding), (0, 0)))


def _whole(shape):
    return pl.BlockSpec((1, *shape), lambda h, i: (h, 0, 0))


def _prepare(plan, states, kernel):
    """Tiles in a block, and what both launches share: channels by blocks of tiles."""
    num_tiles, tile, implementation = plan
    channels, num, _ = states.shape
    rows = min(num_tiles, max(_BLOCK // tile, SUBLANE))
    # K twice, since its copy goes on meanwhile, and once more; factors and products.
    vmem = 4 * (3 * rows * tile + 10 * num * (rows + tile) + 2 * num * LANE)
    params = vmem_params(
        vmem, f"{num} states by `tile` {tile} need", "use a smaller `tile`, or 'xla'"
    )
    size = channels * num_tiles * tile
    products = 1 if kernel is _value_kernel else 2
    return rows, ft.partial(
        pl.pallas_call,
        ft.partial(kernel, plan, rows),
        grid=(channels, pl.cdiv(num_tiles, rows)),
        scratch_shapes=[pltpu.VMEM((2 * num, tile), _F32)],
        compiler_params=params,
        cost_estimate=pl.CostEstimate(
            flops=4 * products * num * size,
            bytes_accessed=4 * (size + states.size),
            transcendentals=0,
        ),
        interpret=implementation == "pallas_interpret",
    )


def _factors(plan, rows, states, weights, right):
    """The factor of a block of tiles, and the other, made at the first block."""
    _, tile, _ = plan
    small, large = _digits(plan)
    block = pl.program_id(1)
    table = states[:, : small + large], states[:, small + large : 2 * (small + large)]

    @pl.when(block == 0)
    def _():
        r = lax.broadcasted_iota(jnp.int32, (1, tile), 1)
        right[...] = jnp.concatenate(_powers(table, 0, small, r), 0)

    q = block * rows + lax.broadcasted_iota(jnp.int32, (1, rows), 1)
    return q, _powers(table, small, large, q, weights)


def _value_kernel(plan, rows, states, out, right):
    weights = states[0, :, -2:-1], states[0, :, -1:]
    _, (re, im) = _factors(plan, rows, states[0], weights, right)
    left = jnp.concatenate((re, -im), 0)
    out[0] = 2 * _dot(left, right[...], 0, 0)


def _moments_kernel(plan, rows, states, g, out, right):
    num_tiles, tile, _ = plan
    q, a = _factors(plan, rows, states[0], None, right)
    a = jnp.concatenate(a, 0)
    cotangent = g[0]
    if num_tiles % rows:  # what lies beyond may be NaN
        row = lax.broadcasted_iota(jnp.int32, (rows, 1), 0) + pl.program_id(1) * rows
        cotangent = jnp.where(row < num_tiles, cotangent, 0.0)
    over_r = _dot(right[...], cotangent, 1, 1)
    over_q = _dot(a, cotangent, 1, 0)
    r = lax.broadcasted_iota(jnp.int32, (1, tile), 1)
    moments = _moments(a, right[...], over_r, over_q, q * tile, r)

    @pl.when(pl.program_id(1) == 0)
    def _():
        out[...] = jnp.zeros_like(out)

    for j, part in enumerate(moments):
        out[0, :, j : j + 1] += part


def _dot(a, b, axis_a, axis_b):
    return lax.dot_general(
        a,
        b,
        (((axis_a,), (axis_b,)), ((), ())),
        precision="highest",
        preferred_element_type=_F32,
    )
