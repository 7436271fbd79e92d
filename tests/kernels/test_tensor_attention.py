"""Kernels of attention against all scores at once in float64: values, gradients, vmap.

Scores have a standard deviation of 1.2; attention to all alike would fail.
"""

import functools as ft
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlr.core.compat import x64
from jaxlr.kernels import tensor_attention, TensorBlocks
from jaxlr.lab import aot, compile_for


F32 = jnp.float32
BF16 = jnp.bfloat16
OPEN = ((None, None), (None, None))
SMALL = {"tpu": TensorBlocks(16, 32, 128), "gpu": TensorBlocks(16, 16, 16)}
LENS = 37, (40, 150)  # no multiples of tiles
HEADS = 4
LENS_TURNED = np.tile(LENS[1][::-1], (HEADS, 1))


@pytest.fixture(params=["tpu", pytest.param("gpu", marks=pytest.mark.slow)])
def backend(request, monkeypatch):
    """Whose kernels are interpreted."""
    monkeypatch.setattr(jax, "default_backend", lambda: request.param)
    return request.param


def draw(*shape, seed=0, dtype=F32):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


def make(groups=(1, 1), dtype=F32, features=8):
    """Query, keys and values."""
    num_queries, lens = LENS
    query = 1.2 / np.sqrt(features) * draw(HEADS, num_queries, features, dtype=dtype)
    sets = [
        tuple(
            draw(HEADS // group, length, features, seed=seed + mode, dtype=dtype)
            for mode, (group, length) in enumerate(zip(groups, lens, strict=True))
        )
        for seed in (1, 3)
    ]
    return query.astype(dtype), *sets


def definition(arrays, seen):
    """All scores at once."""
    query, keys, values = arrays
    keys, values = (
        [jnp.repeat(x, HEADS // len(x), axis=0) for x in part]
        for part in (keys, values)
    )
    scores = jnp.einsum("zid,zjd,zkd->zijk", query, *keys)
    has_seen = jnp.any(seen, axis=(2, 3))
    scores = jnp.where(seen | ~has_seen[..., None, None], scores, -jnp.inf)
    lse = jax.nn.logsumexp(scores, axis=(2, 3))
    shares = jnp.exp(scores - lse[..., None, None])
    out = jnp.einsum("zijk,zjd,zkd->zid", shares, *values)
    out = jnp.where(has_seen[..., None], out, 0)
    return out, jnp.where(has_seen, lse, -jnp.inf)


def is_seen(lengths=None, windows=OPEN, is_ordered=False, mask=True):
    """Where scores count, (heads, queries, positions, positions)."""
    num_queries, lens = LENS
    i, *places = np.ix_(*map(np.arange, (num_queries, *lens)))
    seen = np.broadcast_to(mask, (HEADS, num_queries, *lens)).copy()
    for mode, (place, (left, right)) in enumerate(zip(places, windows, strict=True)):
        if lengths is not None:
            seen &= place < np.asarray(lengths)[:, mode].reshape(-1, 1, 1, 1)
        seen &= (place >= i - left) if left is not None else True
        seen &= (place <= i + right) if right is not None else True
    return seen & (places[0] <= places[1]) if is_ordered else seen


def both(fn, arrays):
    """Outputs and log-sum-exps, and the gradients of a sum of both."""

    def total(arrays):
        out, lse = fn(arrays)
        weights = jnp.asarray(draw(*out.shape, seed=9), out.dtype)
        finite = jnp.where(jnp.isfinite(lse), lse, 0)
        return jnp.vdot(weights, out) + jnp.vdot(weights[..., 0], finite), (out, lse)

    (_, results), gradients = jax.jit(jax.value_and_grad(total, has_aux=True))(arrays)
    return results, gradients


def kernel(arrays, *, lengths=None, windows=OPEN, mask=None, **options):
    lengths = np.tile(LENS[1], (HEADS, 1)) if lengths is None else lengths
    return tensor_attention(
        *arrays,
        lengths=jnp.asarray(lengths),
        windows=windows,
        mask=mask if mask is None else jnp.asarray(mask),
        **{"precision": "highest", "implementation": "pallas_interpret"} | options,
    )


def close(got, want, tolerance, at_least=1.0):
    """Errors relative to the largest entry, or absolute where all are small."""
    for g, w in zip(*map(jax.tree.leaves, (got, want)), strict=True):
        assert g.shape == w.shape
        size = max(np.abs(np.where(np.isfinite(w), w, 0)).max(), at_least)
        g, w = (np.asarray(x, np.float64) for x in (g, w))
        np.testing.assert_allclose(g, w, atol=tolerance * size, rtol=0)


RNG = np.random.default_rng(0)
MASK = RNG.random((HEADS, LENS[0], *LENS[1])) < 0.5
LENGTHS = np.array([[3, 100], [40, 1], [0, 5], [20, 150]])
CASES: dict[str, tuple[dict[str, Any], tuple[int, int]]] = {
    "all": ({}, (1, 1)),
    "causal": ({"windows": ((None, 0), (None, 0))}, (1, 2)),
    "windows": ({"windows": ((3, 1), (30, 9))}, (1, 1)),
    "ordered": ({"is_ordered": True}, (1, 1)),
    "shared": ({"windows": ((12, None), (None, 7))}, (2, 4)),
    "lengths": ({"lengths": LENGTHS}, (1, 1)),
    "mask": ({"mask": MASK}, (1, 1)),
    "key_mask": ({"mask": MASK[:1, :1, :, :1]}, (1, 1)),
    "query_mask": ({"mask": MASK[:, :, :1]}, (2, 1)),
}


@pytest.mark.parametrize("name", CASES)
def test_values_and_gradients(name, backend):
    options, groups = CASES[name]
    arrays = make(groups)
    got = both(ft.partial(kernel, blocks=SMALL[backend], **options), arrays)
    with x64(True):
        wide = jax.tree.map(lambda x: jnp.asarray(np.asarray(x, np.float64)), arrays)
        seen = is_seen(**options)
        want = both(ft.partial(definition, seen=seen), wide)
        alike, _ = definition((0 * wide[0], *wide[1:]), seen)
    close(got[0], want[0], 2e-6)
    close(got[1], want[1], 5e-6)
    with pytest.raises(AssertionError):
        close(alike, want[0][0], 0.1)


@pytest.mark.slow
@pytest.mark.usefixtures("backend")
def test_default_blocks():
    arrays = make()
    got = both(kernel, arrays)
    close(got, both(ft.partial(kernel, implementation="xla"), arrays), 5e-6)


@pytest.mark.slow
@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("is_wide", [False, True])
def test_bfloat16(is_wide):
    """As close as twice the errors of all scores at once in that type.

    With and without 64-bit types. The measure is that of FlashAttention's own tests.
    """
    arrays = make(dtype=BF16, features=19)
    with x64(is_wide):
        found = both(kernel, arrays)
    assert [x.dtype for x in found[0]] == [BF16, F32]
    assert {x.dtype for x in jax.tree.leaves(found[1])} == {jnp.dtype(BF16)}
    naive = both(ft.partial(definition, seen=is_seen()), arrays)
    wide = jax.tree.map(lambda x: x.astype(F32), arrays)
    want = both(ft.partial(definition, seen=is_seen()), wide)
    for parts in zip(*map(jax.tree.leaves, (found, naive, want)), strict=True):
        got, other, exact = (np.asarray(x, np.float64) for x in parts)
        assert np.abs(got - exact).max() <= 2 * np.abs(other - exact).max()


@pytest.mark.slow
def test_the_order_of_modes(backend):
    """With their windows; tiles of the modes differ, so the bits do too."""
    query, keys, values = make()
    windows = (12, 3), (30, 9)
    options = {"blocks": SMALL[backend]}
    found, slopes = both(
        ft.partial(kernel, windows=windows, **options), (query, keys, values)
    )
    other, turned = both(
        ft.partial(kernel, windows=windows[::-1], lengths=LENS_TURNED, **options),
        (query, keys[::-1], values[::-1]),
    )
    close(other, found, 2e-6)
    close((turned[0], *(x[::-1] for x in turned[1:])), slopes, 5e-6)


@pytest.mark.slow
def test_vmap(backend):
    """All batched, twice; then each part alone."""
    arrays = make((2, 1))
    lanes = jax.tree.map(lambda x: jnp.stack([x, 0.7 * x]), arrays)
    options = {"windows": ((3, 2), (30, 9)), "blocks": SMALL[backend]}

    def one(arrays):
        def total(arrays):
            out, lse = kernel(arrays, **options)
            return jnp.sum(jnp.cos(out)) + jnp.sum(jnp.where(lse > -10, lse, 0))

        return jax.grad(total)(arrays)

    def at(tree, *index):
        return jax.tree.map(lambda x: x[index], tree)

    nested = jax.tree.map(lambda x: x[None], lanes)
    nested = jax.jit(jax.vmap(jax.vmap(one)))(nested)
    mixed = jax.jit(jax.vmap(one, in_axes=((0, None, (None, 0)),)))(
        (lanes[0], arrays[1], (arrays[2][0], lanes[2][1]))
    )
    for i in range(2):
        close(at(nested, 0, i), one(at(lanes, i)), 1e-5)
        some = (
            lanes[0][i],
            arrays[1],
            (arrays[2][0], lanes[2][1][i]),
        )
        close(at(mixed, i), one(some), 1e-5)


@pytest.mark.slow
def test_a_gpu_does_not_read_tiles_out_of_sight(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    arrays = make()
    spoiled = jax.tree.map(lambda x: x, arrays)
    for part in (1, 2):
        outer, inner = arrays[part]
        outer = outer.at[:, 16:].set(jnp.nan)
        spoiled = (
            *spoiled[:part],
            (outer, inner.at[:, 112:].set(jnp.nan)),
            *spoiled[part + 1 :],
        )
    options = {
        "windows": ((None, None), (None, 60)),  # the last of a tile sees up to 107
        "lengths": [[9, 150]] * HEADS,
        "blocks": SMALL["gpu"],
    }
    got, want = (both(ft.partial(kernel, **options), x) for x in (spoiled, arrays))
    jax.tree.map(np.testing.assert_array_equal, got, want)


@pytest.mark.misuse
@pytest.mark.parametrize(
    ("kind", "sentence"),
    [("tpu", "multiples of 16, 16 and 128"), ("gpu", "powers of two, at least 16")],
)
def test_wrong_blocks_are_named(kind, sentence, monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: kind)
    blocks = TensorBlocks(8, 16, 128)
    with pytest.raises(ValueError, match=f"`blocks` must be {sentence}, got Tensor"):
        kernel(make(), blocks=blocks)


@pytest.mark.misuse
@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize(
    ("use", "sentence"),
    [
        (
            lambda: tensor_attention(
                make()[0],
                (make()[1][0],),
                (make()[2][0],),
                lengths=jnp.full((HEADS, 1), 3),
                windows=OPEN[:1],
                implementation="pallas_interpret",
            ),
            "takes two modes, got 1; use 'xla'",
        ),
        (
            lambda: kernel(make(dtype=jnp.float16)),
            "must be float32 or bfloat16, got float16",
        ),
        (lambda: kernel(make(), implementation="fast"), "Unknown implementation"),
        (lambda: TensorBlocks(query=0), "`query` must be an integer >= 1, got 0"),
    ],
)
def test_misuse_is_named(use, sentence):
    with pytest.raises(ValueError, match=sentence):
        use()


@pytest.mark.misuse
def test_too_long_keys_are_named():
    def total(query, long):
        return jnp.sum(kernel((query, (long, long), (long, long)))[0])

    query, long = (jax.ShapeDtypeStruct((HEADS, n, 128), F32) for n in (64, 2**16))
    sentence = "MiB of VMEM, of 100 that the kernel may take; use smaller `blocks`, or"
    with pytest.raises(ValueError, match=sentence):
        jax.eval_shape(jax.grad(total), query, long)


@pytest.mark.misuse
def test_a_cpu_has_no_kernel():
    with pytest.raises(ValueError, match="Only interpret mode is supported on CPU"):
        kernel(make(), implementation="pallas")


PROGRAMS: dict[str, dict[str, Any]] = {
    "float32": {},
    "shared": {"dtype": BF16, "groups": (4, 8)},
    "large_blocks": {"dtype": BF16, "blocks": TensorBlocks(64, 128, 1024)},
    "windows": {"length": 4096, "windows": ((31, 0), (511, 0))},
    "odd": {"length": 37, "features": 5, "is_ordered": True},
    "mask": {"length": 64, "mask": (8, 1, 64, 64), "dtype": BF16},
    "many_heads": {"heads": 4096, "length": 64, "features": 64},
}


def program(name):
    """The kernel's gradient, which makes the value too, and what it takes."""
    options = {"heads": 8, "length": 1024, "features": 128, "groups": (1, 1)}
    options |= {"dtype": F32, "mask": None, "windows": OPEN} | PROGRAMS[name]
    heads, length, features, groups, dtype, mask = (
        options.pop(key)
        for key in ("heads", "length", "features", "groups", "dtype", "mask")
    )

    def gradient(arrays, lengths, mask):
        out, pullback = jax.vjp(
            lambda arrays: kernel(
                arrays, lengths=lengths, mask=mask, implementation="pallas", **options
            ),
            arrays,
        )
        return out, pullback(out)

    def shape(*sizes, dtype=dtype):
        return jax.ShapeDtypeStruct(sizes, dtype)

    part = tuple(shape(heads // group, length, features) for group in groups)
    arrays = shape(heads, length, features), part, part
    if mask is not None:
        mask = shape(*mask, dtype=bool)
    return gradient, (arrays, shape(heads, 2, dtype=jnp.int32), mask)


@pytest.mark.aot
@pytest.mark.parametrize("target", ["v5e", "v6e"])
@pytest.mark.parametrize("name", PROGRAMS)
def test_kernels_compile_for_a_tpu(target, name):
    pytest.importorskip("libtpu", reason='needs pip install "jaxlr[aot]"')
    if reason := aot.why_not():
        pytest.skip(reason)
    fn, args = program(name)
    made = compile_for(target, fn, *args)
    assert made.fits
    assert str(made.compiled.as_text()).count("tpu_custom_call") >= 2


@pytest.mark.aot
@pytest.mark.filterwarnings("ignore:The Pallas Triton backend is deprecated")
@pytest.mark.parametrize("name", [name for name in PROGRAMS if name != "large_blocks"])
def test_kernels_compile_for_a_gpu(name):
    if reason := aot.why_not("cuda"):
        pytest.skip(reason)
    fn, args = program(name)
    made = compile_for("h100", fn, *args)
    assert made.fits
    text = str(made.compiled.as_text())
    assert text.count('custom_call_target="__gpu$xla.gpu.triton"') == 4


@pytest.mark.aot
@pytest.mark.filterwarnings("ignore:The Pallas Triton backend is deprecated")
@pytest.mark.parametrize(("target", "platform"), [("v5e", "tpu"), ("h100", "cuda")])
def test_kernels_compile_under_vmap(target, platform):
    if reason := aot.why_not(platform):
        pytest.skip(reason)
    fn, args = program("shared")
    lanes = jax.tree.map(lambda x: jax.ShapeDtypeStruct((3, *x.shape), x.dtype), args)
    assert compile_for(target, jax.vmap(fn), *lanes).fits


@pytest.mark.skipif(
    jax.__version_info__ >= (0, 11), reason="newer versions of jax want a GPU for it"
)
@pytest.mark.parametrize("is_wide", [False, True])
@pytest.mark.parametrize("name", ["float32", "shared"])
def test_kernels_lower_for_a_gpu(name, is_wide):
    fn, args = program(name)
    with x64(is_wide):
        lowered = jax.jit(fn).trace(*args).lower(lowering_platforms=("cuda",))
    assert lowered.as_text().count("__gpu$xla.gpu.triton") == 4
