"""The hot loop of gradient methods on measurements: residual and adjoint together.

    residual = s A x - y,        d = s A^T psi(residual)

Letters: A the m rows of `size` entries, s the scale, psi the slope of the loss.
Each block of rows is read once and used twice.
"""

import dataclasses
import functools as ft
import math
from typing import get_args

import equinox as eqx
import jax
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float

from jaxlr.core import checks
from jaxlr.core.types import Hyper
from jaxlr.kernels._common import (
    check_float32,
    Implementation,
    LANE,
    pick,
    round_up,
    SUBLANE,
    vmem_params,
)
from jaxlr.kernels._loss import Loss, loss_slope
from jaxlr.kernels._rows import (
    block_dot,
    block_transpose_dot,
    check_vector,
    NormalRows,
    PackedSigns,
    Rows,
    scan_blocks,
    StoredRows,
    TILE,
)
from jaxlr.kernels._threefry import normals


_CHUNK = 1024  # Columns at once: by arithmetic, 8 registers for a tile of 8 rows.


def residual_adjoint(
    rows: Rows,
    x: Float[Array, " size"],
    y: Float[Array, " m"],
    *,
    loss: Loss = "l2",
    huber_delta: Hyper = 1.0,
    scale: float = 1.0,
    implementation: Implementation | None = None,
    block_rows: int | None = None,
) -> tuple[Float[Array, " m"], Float[Array, " size"]]:
    """Both s A x - y and s A^T psi(s A x - y): 4 m size flops.

    Reverse-differentiable in `x`, `y`, `huber_delta` and stored rows. Under `vmap`
    with rows that are not batched, they are read (or drawn) once for all lanes.

    Args:
        rows: The m rows of A, stored, packed in bits or drawn when needed.
        x: What is measured, `size` entries.
        y: What was measured, m numbers.
        loss: Names psi: "l2" the identity, "l1" the sign, "huber" a clip. Static.
        huber_delta: Where the Huber loss clips, in the units of `y`.
        scale: The factor s of every product with A. Static.
        implementation: `"xla"` anywhere: 64 MiB beside the arguments for rows that are
            not stored, up to size 2^18 in float32; stored rows need nothing.
            `"pallas"` on a TPU, float32: a block of rows, x and d of all lanes in VMEM,
            nothing in HBM but a padded copy of stored or packed rows whose length is
            not a multiple of 128 (packed: 4096). `"pallas_interpret"`: the same kernel
            anywhere, slow, for tests. None is `"xla"`. There is no silent fallback.
        block_rows: How many rows are read at once; changes speed and memory, and
            results by rounding. None: for `"xla"` all stored rows, else those that fit
            8 MiB; for the kernel 8 (16 in bfloat16). A multiple of these for the
            kernel, of 8 for `NormalRows`. Static.

    Returns:
        `(residual, d)`. The kernel draws the random bits of `NormalRows` exactly; on a
        TPU their map to normals may round otherwise than XLA's own.

    Raises:
        ValueError: On shapes, an unknown `loss` or `implementation`, or a `block_rows`
            as above; with a kernel, if anything is not float32 (stored rows: or
            bfloat16), if keys are not of threefry in its partitionable form, or if
            what it holds would exceed 100 MiB of VMEM.
    """
    checks.choice("loss", loss, get_args(Loss))
    x, y = check_vector("x", x, rows.size), check_vector("y", y, rows.num_rows)
    implementation = pick(implementation)
    dtype = rows.product_dtype(x.dtype)
    args = rows, x, y, jnp.asarray(huber_delta, dtype)
    multiple = TILE if isinstance(rows, NormalRows) else 1
    if block_rows is not None:
        block_rows = checks.count("block_rows", block_rows)
    if implementation == "xla":
        if block_rows is None:
            block_rows = rows.default_block_rows(dtype)
        elif block_rows < rows.num_rows:
            _check_multiple(block_rows, multiple)
        return _xla(*args, loss, float(scale), block_rows)
    _check_kernel(rows, x, y)
    multiple = SUBLANE * 4 // rows.dtype.itemsize if isinstance(rows, StoredRows) else 8
    block_rows = multiple if block_rows is None else block_rows
    _check_multiple(block_rows, multiple)
    plan = _plan(rows, block_rows, loss, scale, implementation == "pallas_interpret")
    floats, rest = eqx.partition(rows, eqx.is_inexact_array)
    return _pallas(plan, floats, rest, *args[1:])


def _check_multiple(block_rows, multiple):
    if block_rows % multiple:
        raise ValueError(
            f"`block_rows` must be a multiple of {multiple}, got {block_rows}."
        )


def _check_kernel(rows, x, y):
    if not isinstance(rows, StoredRows | PackedSigns | NormalRows):
        raise ValueError(f"`rows` must be stored, packed or drawn, got {type(rows)}.")
    allowed = (
        (jnp.float32, jnp.bfloat16) if isinstance(rows, StoredRows) else (jnp.float32,)
    )
    if not isinstance(rows, PackedSigns) and rows.dtype not in allowed:
        raise ValueError(f"The kernel's `rows` must be float32, got {rows.dtype}.")
    for name, value in (("x", x), ("y", y)):
        check_float32("pallas", name, value)
    if isinstance(rows, NormalRows):
        if "fry" not in str(jr.key_impl(rows.key)):
            raise ValueError(
                f"The kernel's `rows.key` must be of threefry: {jr.key_impl(rows.key)}."
            )
        if not getattr(jax.config, "jax_threefry_partitionable", True):
            raise ValueError("The kernel needs `jax_threefry_partitionable`.")


def _xla(rows, x, y, delta, loss, scale, block_rows):
    dtype = rows.product_dtype(x.dtype)
    y = y.astype(dtype)

    def body(rows, total, start, num, x, y, delta):
        block = rows.block(start, num, dtype)
        part = lax.dynamic_slice_in_dim(y, start, num)
        residual = scale * block_dot(block, x) - part
        slope = loss_slope(loss, residual, delta)
        return total + block_transpose_dot(block, slope), residual

    total = jnp.zeros(rows.size, dtype)
    d, residual = scan_blocks(rows, block_rows, body, total, x, y, delta)
    return residual, scale * d


@dataclasses.dataclass(frozen=True)
class _Plan:
    """All that is static about a launch. Columns are entries of a row, padded."""

    kind: str  # "stored", "signs" or "normals"
    num_rows: int
    size: int
    width: int  # of the array that the kernel reads, padded; of a bit plane
    block_rows: int
    loss: Loss
    scale: float
    interpret: bool

    @property
    def planes(self):
        return 32 if self.kind == "signs" else 1

    @property
    def columns(self):
        return self.planes * self.width

    @property
    def chunk(self):
        return math.gcd(self.width, _CHUNK)

    @property
    def num_blocks(self):
        return pl.cdiv(self.num_rows, self.block_rows)

    def pad(self, x):
        """Entries to columns: each plane padded to its width."""
        x = _pad_last(x, self.planes * pl.cdiv(self.size, self.planes))
        x = _pad_last(x.reshape(*x.shape[:-1], self.planes, -1), self.width)
        return x.reshape(*x.shape[:-2], self.columns)

    def unpad(self, d):
        """Columns to entries."""
        d = d.reshape(*d.shape[:-1], self.planes, self.width)
        d = d[..., : pl.cdiv(self.size, self.planes)]
        return d.reshape(*d.shape[:-2], -1)[..., : self.size]


def _pad_last(x, size):
    return jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, size - x.shape[-1])])


def _plan(rows, block_rows, loss, scale, interpret):
    kinds = {StoredRows: "stored", PackedSigns: "signs", NormalRows: "normals"}
    kind = kinds[type(rows)]
    width = round_up(rows.words.shape[1] if kind == "signs" else rows.size, LANE)
    return _Plan(
        kind,
        rows.num_rows,
        rows.size,
        width,
        block_rows,
        loss,
        float(scale),
        interpret,
    )


@ft.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _pallas(plan, floats, rest, x, y, delta):
    rows = eqx.combine(floats, rest)
    if plan.kind == "normals":
        # A row's key beside it: what the kernel reads in place of entries.
        tiles = jnp.arange(plan.num_blocks * plan.block_rows // TILE)
        keys = jax.vmap(jr.fold_in, in_axes=(None, 0))(rows.key, tiles)
        source = jnp.repeat(jr.key_data(keys), TILE, axis=0)
    else:
        source = rows.raw if plan.kind == "stored" else rows.words
        source = _pad_last(source, plan.width)
    lanes = [v[None] for v in (plan.pad(x), y, delta)]
    residual, d = _lanes(plan)(*lanes, source)
    return residual[0], plan.unpad(d[0])


def _pallas_fwd(plan, *args):
    return _pallas(plan, *args), args


def _pallas_bwd(plan, args, cotangents):
    floats, rest, *vectors = args

    def twin(floats, x, y, delta):
        rows = eqx.combine(floats, rest)
        block_rows = rows.default_block_rows(x.dtype)
        return _xla(rows, x, y, delta, plan.loss, plan.scale, block_rows)

    floats, *vectors = jax.vjp(twin, floats, *vectors)[1](cotangents)
    return floats, None, *vectors


_pallas.defvjp(_pallas_fwd, _pallas_bwd)


def _lanes(plan):
    """The kernel on (lanes, columns) vectors; `vmap` over them adds lanes."""
    launch = ft.partial(_launch, plan)
    call = jax.custom_batching.custom_vmap(launch)

    @call.def_vmap
    def rule(axis_size, is_batched, *args):
        if is_batched[-1]:  # other rows in every lane: an axis of the grid
            axes = [0 if batched else None for batched in is_batched]
            return jax.vmap(launch, in_axes=axes)(*args), (True, True)
        *vectors, source = args
        merged = [
            (v if batched else jnp.broadcast_to(v, (axis_size, *v.shape))).reshape(
                -1, *v.shape[1 + batched :]
            )
            for v, batched in zip(vectors, is_batched[:-1], strict=True)
        ]
        outs = call(*merged, source)
        split = tuple(out.reshape(axis_size, -1, out.shape[1]) for out in outs)
        return split, (True, True)

    return call


def _launch(plan, x, y, delta, source):
    # Vectors lie (lanes, columns) and residuals (blocks, lanes, rows): then both
    # products contract as a matrix unit does, without a transposition in the kernel.
    num_lanes, lanes = x.shape[0], round_up(x.shape[0], SUBLANE)
    num_rows = plan.num_blocks * plan.block_rows
    x, y, delta = (
        jnp.pad(v, [(0, lanes - num_lanes)] + [(0, 0)] * (v.ndim - 1))
        for v in (x, y, delta[:, None])
    )
    y = _pad_last(y, num_rows).reshape(lanes, plan.num_blocks, plan.block_rows)
    y = y.transpose(1, 0, 2)
    f32 = jnp.float32
    row_bytes = source.shape[-1] * source.dtype.itemsize
    drawn = (plan.block_rows, plan.columns) if plan.kind == "normals" else None
    vmem = 4 * lanes * plan.columns * 2 + 2 * plan.block_rows * row_bytes
    vmem += 4 * math.prod(drawn) if drawn else 0
    params = vmem_params(
        vmem,
        f"`size` {plan.size} in {lanes} lanes by `block_rows` {plan.block_rows} needs",
        "use fewer lanes, or 'xla'",
    )
    whole = ft.partial(pl.BlockSpec, pipeline_mode=pl.Buffered(1))
    per_block = pl.BlockSpec((1, lanes, plan.block_rows), lambda i: (i, 0, 0))
    residual, d = pl.pallas_call(
        ft.partial(_kernel, plan),
        out_shape=(
            jax.ShapeDtypeStruct(y.shape, f32),
            jax.ShapeDtypeStruct(x.shape, f32),
        ),
        grid=(plan.num_blocks,),
        in_specs=[
            whole(x.shape, lambda i: (0, 0)),
            per_block,
            whole(delta.shape, lambda i: (0, 0)),
            pl.BlockSpec((plan.block_rows, source.shape[-1]), lambda i: (i, 0)),
        ],
        out_specs=(per_block, whole(x.shape, lambda i: (0, 0))),
        scratch_shapes=[pltpu.VMEM(drawn, f32)] if drawn else [],
        compiler_params=params,
        cost_estimate=pl.CostEstimate(
            flops=4 * lanes * num_rows * plan.columns,
            bytes_accessed=num_rows * row_bytes + 8 * lanes * (plan.columns + num_rows),
            transcendentals=num_rows * plan.columns if drawn else 0,
        ),
        interpret=plan.interpret,
        name=f"residual_adjoint_{plan.kind}",
    )(x, y, delta, source)
    residual = residual.transpose(1, 0, 2).reshape(lanes, num_rows)
    return residual[:num_lanes, : plan.num_rows], plan.scale * d[:num_lanes]


def _kernel(plan, x, y, delta, source, residual, d, *drawn):
    # `program_id` stays out of the loop bodies: interpret mode cannot lower it there.
    block = pl.program_id(0)
    lanes = x.shape[0]
    row = block * plan.block_rows
    is_row = row + lax.broadcasted_iota(jnp.int32, (plan.block_rows, 1), 0)
    is_row = is_row < plan.num_rows
    num_chunks = plan.width // plan.chunk

    def place(i):
        """Where chunk i lies in the source, its plane, and where among the columns."""
        plane, chunk = lax.rem(i, plan.planes), lax.div(i, plan.planes)
        start = pl.multiple_of(chunk * plan.chunk, LANE)
        column = pl.multiple_of(plane * plan.width + start, LANE)
        return pl.ds(start, plan.chunk), plane, pl.ds(column, plan.chunk)

    def entries(i):
        here, plane, _ = place(i)
        if plan.kind == "signs":
            # The bit goes where a float has its sign.
            shift = jnp.uint32(31) - plane.astype(jnp.uint32)
            sign = (source[:, here] << shift) & jnp.uint32(0x80000000)
            return lax.bitcast_convert_type(sign | jnp.uint32(0x3F800000), jnp.float32)
        if plan.kind == "normals":
            return drawn[0][:, here]
        values = source[:, here]
        if plan.num_rows % plan.block_rows:  # what lies beyond may be NaN
            values = jnp.where(is_row, values, jnp.zeros_like(values))
        return values

    def forward(i, total):
        here, _, columns = place(i)
        if drawn:
            drawn[0][:, here] = normals(source, here.start, plan.chunk, plan.size)
        return total + _matmul(x[:, columns], entries(i), 1)

    total = jnp.zeros((lanes, plan.block_rows), jnp.float32)
    total = lax.fori_loop(0, num_chunks * plan.planes, forward, total)
    gap = plan.scale * total - y[0]
    residual[0] = gap
    is_column = row + lax.broadcasted_iota(jnp.int32, gap.shape, 1) < plan.num_rows
    slope = jnp.where(is_column, loss_slope(plan.loss, gap, delta[...]), 0.0)

    @pl.when(block == 0)
    def _():
        d[...] = jnp.zeros_like(d)

    def backward(i, carry):
        _, _, columns = place(i)
        d[:, columns] += _matmul(slope, entries(i), 0)
        return carry

    lax.fori_loop(0, num_chunks * plan.planes, backward, 0)


def _matmul(a, b, axis):
    """Product a b, or a b^T with axis 1; operands are rounded to the type of b."""
    return lax.dot_general(
        a.astype(b.dtype),
        b,
        (((1,), (axis,)), ((), ())),
        precision="highest" if b.dtype == jnp.float32 else None,
        preferred_element_type=jnp.float32,
    )
