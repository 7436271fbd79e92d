"""Products of a grid with a matrix along each axis: one at a time, or all in one pass.

Letters: a grid has axes of n_1, ..., n_D points, N in all, K_d is the (m_d, n_d) factor
of axis d; a batch of B grids; b grids in a tile.
"""

from collections.abc import Sequence
import dataclasses
import functools as ft
import math

import jax
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, Inexact

from jaxlr.core import checks
from jaxlr.kernels._common import (
    check_float32,
    Implementation,
    LANE,
    pick,
    round_up,
    SUBLANE,
    vmem_params,
)


_TILE_BYTES = 2**20  # By arithmetic: four of them and the scratch fit everywhere.


def mode_product(
    k: Inexact[ArrayLike, "m n"], x: Inexact[ArrayLike, "..."], axis: int
) -> Inexact[Array, "..."]:
    """K times x along one axis: 2 m flops an entry of x, memory of the result.

    Args:
        k: The matrix K.
        x: What it multiplies, of any shape, n long at `axis`.
        axis: The axis of x; may count from the end. Static.

    Returns:
        The shape of x, with m at `axis`.

    Raises:
        ValueError: If there is no such axis, or it has not n entries.
    """
    k, x = jnp.asarray(k), jnp.asarray(x)
    axis = checks.count("axis", axis, least=-x.ndim, most=x.ndim - 1)
    if k.ndim != 2 or k.shape[1] != x.shape[axis]:
        raise ValueError(
            f"`k` must have shape (m, {x.shape[axis]}) for axis {axis} of `x` "
            f"{x.shape}, got {k.shape}."
        )
    here = list(range(x.ndim))
    there = here.copy()
    there[axis] = x.ndim
    operands = [(x, here), (k, [x.ndim, here[axis]])]
    if not here[axis]:  # a CPU then has less to transpose
        operands.reverse()
    (a, a_axes), (b, b_axes) = operands
    return jnp.einsum(a, a_axes, b, b_axes, there, precision="highest")


@dataclasses.dataclass(frozen=True)
class ModeBlocks:
    """The size of a tile of `mode_products`.

    Attributes:
        batch: Number b of grids in a tile.

    Raises:
        ValueError: Unless it is an integer of at least 1.
    """

    batch: int

    def __post_init__(self):
        object.__setattr__(self, "batch", checks.count("batch", self.batch))


def mode_products(
    factors: Sequence[Float[Array, "_ _"]],
    x: Float[Array, "B ..."],
    *,
    blocks: ModeBlocks | None = None,
    implementation: Implementation | None = None,
) -> Float[Array, "B ..."]:
    """(K_1 (x) ... (x) K_D) of each grid in a batch.

    2 B N sum n_d flops where factors are square, of float32 at full precision.

    Args:
        factors: The K_d, of shapes (m_d, n_d), the same for all grids.
        x: The batch of grids, of shape (B, n_1, ..., n_D).
        blocks: Size of a kernel's tile. None: as many grids as make 1 MiB. Changes
            speed and memory, not results. Static.
        implementation: `"xla"` anywhere, for any D and type: a pass over memory a
            factor, two arrays of the batch. `"pallas"` on a TPU, D of 2 or 3 and
            float32: one pass, factors and two tiles each of x and the result in VMEM,
            and nothing in memory but arguments and result. Its gradient in x is the
            same kernel with transposed factors, that in factors is made by XLA; it is
            differentiable once. Under `vmap` lanes of x join the batch.
            `"pallas_interpret"`: the same kernel anywhere, slow, for tests. None is
            `"xla"`. There is no silent fallback. Static.

    Returns:
        Shape (B, m_1, ..., m_D).

    Raises:
        ValueError: If shapes do not fit, or on an unknown `implementation`; with a
            kernel, if D is not 2 or 3, something is empty or not float32, or a tile
            needs more than 100 MiB of VMEM.
    """
    implementation = pick(implementation)
    factors = tuple(factors)
    shapes = [k.shape for k in factors]
    fits = factors and all(len(shape) == 2 for shape in shapes)
    if not fits or x.shape[1:] != tuple(n for _, n in shapes):
        raise ValueError(
            "Shapes must be `factors` (m_d, n_d) and `x` (B, n_1, ..., n_D), got "
            f"{shapes} and {x.shape}."
        )
    if implementation == "xla":
        return _xla(factors, x)
    for name, value in (
        *((f"factors[{d}]", k) for d, k in enumerate(factors)),
        ("x", x),
    ):
        check_float32(implementation, name, value)
        if not value.size:
            raise ValueError(f"The kernel's `{name}` is empty: {value.shape}.")
    if len(factors) not in (2, 3):
        raise ValueError(
            f"The kernel takes grids of 2 or 3 axes, got {len(factors)} `factors`."
        )
    return _pallas((blocks, implementation == "pallas_interpret"), factors, x)


def _xla(factors, x):
    for axis, k in enumerate(factors):
        x = mode_product(k, x, axis + 1)
    return x


@ft.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _pallas(static, factors, x):
    return _lanes(static)(*factors, x)


def _fwd(static, factors, x):
    return _pallas(static, factors, x), (factors, x)


def _bwd(static, saved, cotangent):
    factors, x = saved
    (d_factors,) = jax.vjp(lambda factors: _xla(factors, x), factors)[1](cotangent)
    return d_factors, _pallas(static, tuple(k.T for k in factors), cotangent)


_pallas.defvjp(_fwd, _bwd)


def _lanes(static):
    """The kernel; `vmap` adds lanes to the batch, unless each has its own factors."""
    launch = ft.partial(_launch, *static)
    call = jax.custom_batching.custom_vmap(launch)

    @call.def_vmap
    def rule(axis_size, is_batched, *args):
        *factors, x = args
        if any(is_batched[:-1]):
            axes = [0 if batched else None for batched in is_batched]
            return jax.vmap(launch, in_axes=axes)(*args), True
        out = call(*factors, x.reshape(-1, *x.shape[2:]))
        return out.reshape(axis_size, -1, *out.shape[1:]), True

    return call


def _launch(blocks, interpret, *args):
    *factors, x = args
    shape = tuple(k.shape[0] for k in factors)
    middle = (x.shape[1], shape[1], shape[2]) if len(factors) == 3 else None
    item = 4 * (_padded(x.shape[1:]) + _padded(shape))
    size = min(blocks.batch if blocks else max(1, _TILE_BYTES // item), x.shape[0])
    vmem = 2 * size * item + 4 * sum(2 * _padded(k.shape) for k in factors)
    vmem += 4 * _padded(middle) if middle else 0
    params = vmem_params(
        vmem, f"A tile of `batch` {size} needs", "use smaller `blocks`, or 'xla'"
    )
    *factors, last = factors
    factors = *factors, last.T
    num, sides = x.shape[0], [*x.shape[1:]]
    flops = 0
    for d, m in enumerate(shape):
        flops += 2 * num * m * math.prod(sides)
        sides[d] = m

    def tile(*grid):
        return pl.BlockSpec((size, *grid), lambda i: (i, *[0] * len(grid)))

    return pl.pallas_call(
        _kernel,
        out_shape=jax.ShapeDtypeStruct((num, *shape), jnp.float32),
        grid=(pl.cdiv(num, size),),
        in_specs=[
            *([pl.BlockSpec(memory_space=pltpu.SMEM)] if middle else []),
            *(pl.BlockSpec(k.shape, lambda i: (0, 0)) for k in factors[-2:]),
            tile(*x.shape[1:]),
        ],
        out_specs=tile(*shape),
        scratch_shapes=[pltpu.VMEM(middle, jnp.float32)] if middle else [],
        compiler_params=params,
        cost_estimate=pl.CostEstimate(
            flops=flops,
            bytes_accessed=4 * (x.size + num * math.prod(shape)),
            transcendentals=0,
        ),
        interpret=interpret,
        name="mode_products",
    )(*factors, x)


def _padded(shape):
    """Entries of an array in VMEM: whole registers."""
    *rest, rows, columns = shape
    return math.prod(rest) * round_up(rows, SUBLANE) * round_up(columns, LANE)


def _dot(a, b):
    return jnp.dot(a, b, precision="highest", preferred_element_type=jnp.float32)


def _kernel(*refs):
    """Two axes by products of matrices; a third in front as sums of slices."""
    if len(refs) == 4:
        first, last, x, out = refs

        def grid(i, _):
            out[i] = _dot(_dot(first[...], x[i]), last[...])

    else:
        first, second, last, x, out, middle = refs

        def grid(i, _):
            def across(j, _):
                middle[j] = _dot(_dot(second[...], x[i, j]), last[...])

            def along(j, _):
                def add(h, total):
                    return total + first[j, h] * middle[h]

                zero = jnp.zeros(middle.shape[1:], jnp.float32)
                out[i, j] = lax.fori_loop(0, middle.shape[0], add, zero)

            lax.fori_loop(0, middle.shape[0], across, None)
            lax.fori_loop(0, out.shape[1], along, None)

    lax.fori_loop(0, x.shape[0], grid, None)
