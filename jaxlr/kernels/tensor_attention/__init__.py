"""Softmax attention over tuples of keys, exact, in memory linear in the lengths.

    s_ijk = sum_d q_id k_jd k'_kd,      o_i = sum_jk softmax_jk(s_ijk) (v_j * v'_k)

for two modes, and likewise for any number; one mode is ordinary attention. Letters: Z
heads, T queries, modes of S positions, d features. With rows q_i * k_j as queries, all
modes but the last are loops around ordinary attention on tiles of the last: no more
than a tile of scores ever exists.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxlr.kernels._common import Implementation, pick
from jaxlr.kernels.tensor_attention import _tpu, _xla
from jaxlr.kernels.tensor_attention._plan import (
    Head,
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
        query: Already scaled.
        keys: An array a mode. The number of its heads divides Z: as many in a row share
            one.
        values: Likewise.
        lengths: Positions of each mode that count.
        windows: `(left, right)` a mode: query i sees positions i - left..i + right;
            None is all on that side. Tiles outside are not visited. Static.
        is_ordered: Whether positions must not fall from mode to mode. Static.
        mask: Where scores count, an axis for each of Z, T and the modes, of its length
            or 1.
        blocks: None: with XLA 16 queries, 16 positions and 128 of the last mode; 128
            queries for one mode; in a kernel 64, 128 and 512. A kernel needs multiples
            of 16, 16 and 128. Static.
        precision: Of products. Static.
        implementation: `"xla"` anywhere; it repeats keys that heads share. `"pallas"`
            on a TPU, two modes of float32 or bfloat16; the gradient holds those of the
            keys and values of a head in VMEM. `"pallas_interpret"`: the same kernel
            anywhere, slow, for tests. None is `"xla"`. There is no silent fallback.
            Static.

    Returns:
        `(out, lse)`; where a query sees nothing, 0 and -inf.

    Raises:
        ValueError: If a kernel is asked for other than two modes, types or blocks than
            it has, or for more than 100 MiB of VMEM.

    References:
        Dao, Fu, Ermon, Rudra, Re. "FlashAttention: Fast and Memory-Efficient Exact
        Attention with IO-Awareness". 2022. arXiv:2205.14135.
    """
    implementation = pick(implementation)
    lens = [k.shape[1] for k in keys]
    num_steps = query.shape[1]
    form = _xla if implementation == "xla" else _tpu
    num_queries, sizes = form.tiles(query, lens, blocks)
    plan = Plan(windows, is_ordered, num_queries, sizes, precision, implementation)

    def whole(x, size, axis=1):
        widths = [(0, 0)] * x.ndim
        widths[axis] = 0, -x.shape[axis] % size
        return jnp.pad(x, widths)

    if mask is not None:
        for axis, size in enumerate((plan.num_queries, *plan.sizes), 1):
            mask = whole(mask, size, axis) if mask.shape[axis] > 1 else mask
    head = Head(
        whole(query, plan.num_queries),
        tuple(map(whole, keys, plan.sizes)),
        tuple(map(whole, values, plan.sizes)),
        lengths,
        mask,
    )
    out, lse = _attend(plan, head)
    return out[:, :num_steps], lse[:, :num_steps]


def _form(plan):
    return _xla if plan.implementation == "xla" else _tpu


def _value(plan, head):
    return _form(plan).forward(plan, head)


def _fwd(plan, head):
    out, lse = _value(plan, head)
    return (out, lse), (head, out, lse)


def _bwd(plan, saved, cotangents):
    head, out, lse = saved
    d_out, d_lse = cotangents
    wide = lse.dtype
    # Of the softmax's derivative, what all scores of a query share.
    shared = jnp.sum(out.astype(wide) * d_out.astype(wide), axis=-1) - d_lse
    gradients = _form(plan).backward(plan, head, lse, d_out, shared)
    like = head.query, head.keys, head.values
    query, keys, values = jax.tree.map(lambda g, x: g.astype(x.dtype), gradients, like)
    return (Head(query, keys, values, None, None),)


_attend = jax.custom_vjp(_value, nondiff_argnums=(0,))
_attend.defvjp(_fwd, _bwd)
