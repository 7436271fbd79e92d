"""Softmax attention over tuples of keys, exact, in memory linear in the lengths.

    s_ijk = sum_d q_id k_jd k'_kd,      o_i = sum_jk softmax_jk(s_ijk) (v_j * v'_k)

for two modes, and likewise for any number; one mode is ordinary attention. Letters: Z
heads, T queries, modes of S positions, d features. With rows q_i * k_j as queries, all
modes but the last are loops around ordinary attention on tiles of the last: no more
than a tile of scores ever exists.
"""

from collections.abc import Sequence
import functools as ft

import jax
from jax import lax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxlr.kernels._common import Implementation, pick
from jaxlr.kernels.tensor_attention import _gpu, _tpu, _xla
from jaxlr.kernels.tensor_attention._plan import (
    Head,
    Options,
    Plan,
    TensorBlocks as TensorBlocks,
    Window as Window,
)


def tensor_attention(
    query: Float[Array, "Z T d"],
    keys: Sequence[Float[Array, "_ _ d"]],
    values: Sequence[Float[Array, "_ _ d"]],
    *,
    lengths: Int[Array, "Z modes"],
    windows: tuple[Window, ...],
    is_ordered: bool = False,
    mask: Bool[Array, "..."] | None = None,
    blocks: TensorBlocks | None = None,
    precision: str | None = None,
    implementation: Implementation | None = None,
) -> tuple[Float[Array, "Z T d"], Float[Array, "Z T"]]:
    """Outputs, and natural logarithms of the sums of exponentials.

    4 d flops for each tuple of a query and its positions, forward, and 12 d backward,
    where scores are made again. O(Z d (T + sum S)) memory and a tile for each head.
    Differentiable once, in both results.

    Args:
        query: The queries, already scaled.
        keys: An array a mode. The number of its heads divides Z: as many in a row share
            one.
        values: An array a mode, as many and of the same shapes as `keys`.
        lengths: Positions of each mode that count.
        windows: `(left, right)` a mode: query i sees positions i - left..i + right;
            None is all on that side. Tiles outside are not visited. Static.
        is_ordered: Whether positions must not fall from mode to mode. Static.
        mask: Where scores count, an axis for each of Z, T and the modes, of its length
            or 1.
        blocks: Size of a tile of scores. None: with XLA 16 queries, 8 positions and 256
            of the last mode, but 128 queries for one mode, and fewer positions from
            four modes on; on a TPU 32, 128 and 512, of which it takes multiples of 16,
            16 and 128; on a GPU 32 each for float32 and 64 for bfloat16, and powers of
            two from 16. Static.
        precision: Precision of products, as for `jnp.einsum`; a kernel makes those of
            bfloat16 as they are. Static.
        implementation: `"xla"` anywhere; it repeats keys that heads share. `"pallas"`:
            kernels for two modes of float32 or bfloat16. On a TPU the gradient holds
            those of the keys and values of a head in VMEM. On a GPU, by Triton, it
            takes 22 d flops, and results are the same every time; full products of
            float32 do not use its matrix unit, those at "TF32_TF32_F32_X3" do. What is
            compiled on a CPU for either has to suit both. `"pallas_interpret"`: the
            same kernels, a TPU's on a CPU, slow, for tests. None is `"xla"`. There is
            no silent fallback. Static.

    Returns:
        `(out, lse)`; where a query sees nothing, 0 and -inf.

    Raises:
        ValueError: If a kernel is asked for other than two modes, types or blocks than
            it has, or for more than 100 MiB of VMEM.

    References:
        Dao, Fu, Ermon, Rudra, Re. "FlashAttention: Fast and Memory-Efficient Exact
        Attention with IO-Awareness". 2022. arXiv:2205.14135.
    """
    options = Options(windows, is_ordered, precision, pick(implementation), blocks)
    return _attend(options, Head(query, tuple(keys), tuple(values), lengths, mask))


def _value(options, head):
    return _by_form(_forward, options, head)


def _fwd(options, head):
    out, lse = _value(options, head)
    return (out, lse), (head, out, lse)


def _bwd(options, saved, cotangents):
    head, out, lse = saved
    # Nothing passes a query that sees nothing, be its cotangents infinite or NaN.
    is_blind = lse == -jnp.inf
    d_out = jnp.where(is_blind[..., None], 0, cotangents[0])
    d_lse = jnp.where(is_blind, 0, cotangents[1])
    wide = lse.dtype
    # Of the softmax's derivative, what all scores of a query share.
    shared = jnp.sum(out.astype(wide) * d_out.astype(wide), axis=-1) - d_lse
    gradients = _by_form(_backward, options, head, lse, d_out, shared)
    like = head.query, head.keys, head.values
    query, keys, values = jax.tree.map(lambda g, x: g.astype(x.dtype), gradients, like)
    return (Head(query, keys, values, None, None),)


_attend = jax.custom_vjp(_value, nondiff_argnums=(0,))
_attend.defvjp(_fwd, _bwd)


def _by_form(function, options, *operands):
    def of(form):
        return ft.partial(function, form, options)

    if options.implementation == "xla":
        return of(_xla)(*operands)
    backend = jax.default_backend()
    if backend == "gpu":
        return of(_gpu)(*operands)
    if backend == "tpu" or options.implementation == "pallas_interpret":
        return of(_tpu)(*operands)
    # To compile for what is not here.
    return lax.platform_dependent(*operands, cuda=of(_gpu), default=of(_tpu))


def _forward(form, options, head):
    plan, tiled = _tiled(form, options, head)
    num_queries = head.query.shape[1]
    out, lse = form.forward(plan, tiled)
    return out[:, :num_queries], lse[:, :num_queries]


def _backward(form, options, head, *others):
    plan, tiled = _tiled(form, options, head)
    others = (_whole(x, 1, plan.num_queries) for x in others)
    gradients = form.backward(plan, tiled, *others)
    like = head.query, head.keys, head.values
    return jax.tree.map(lambda g, x: g[:, : x.shape[1]], gradients, like)


def _tiled(form, options, head):
    """The plan, and whole tiles."""
    lens = [key.shape[1] for key in head.keys]
    num_queries, sizes = form.tiles(head.query, lens, options.blocks)
    mask = head.mask
    if mask is not None:
        for axis, size in enumerate((num_queries, *sizes), 1):
            mask = _whole(mask, axis, size) if mask.shape[axis] > 1 else mask
    keys, values = (
        tuple(_whole(x, 1, size) for x, size in zip(part, sizes, strict=True))
        for part in (head.keys, head.values)
    )
    query = _whole(head.query, 1, num_queries)
    plan = Plan(*options[:-1], num_queries=num_queries, sizes=sizes)
    return plan, Head(query, keys, values, head.lengths, mask)


def _whole(x, axis, size):
    widths = [(0, 0)] * x.ndim
    widths[axis] = 0, -x.shape[axis] % size
    return jnp.pad(x, widths)
