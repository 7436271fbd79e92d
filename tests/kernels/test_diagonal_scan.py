"""The recurrence against a loop in float64: value, gradient, vmap, lengths, resets."""

import functools as ft
import itertools
from typing import Any

import jax
from jax import lax
import jax.numpy as jnp
from jax.test_util import check_grads
import numpy as np
import pytest

from jaxlr.core.compat import x64
from jaxlr.kernels import diagonal_scan
from jaxlr.lab import aot, compile_for


F32 = jnp.float32
IMPLEMENTATIONS = ("xla", "pallas_interpret")
TOLERANCE = {"xla": 1e-12, "pallas_interpret": 2e-6}


def loop(a, u, h0, resets=None, lengths=None, is_reverse=False):
    """(h, h_last), complex, of (batch, L, N) arrays."""
    batch, length, _ = u.shape
    h, last = np.zeros_like(u), np.zeros_like(h0)
    for i in range(batch):
        state = h0[i]
        for l in range(length)[:: -1 if is_reverse else 1]:
            if lengths is None or l < lengths[i]:
                if resets is not None and resets[i, l]:
                    state = np.zeros_like(state)
                state = a[i, l] * state + u[i, l]
            h[i, l] = state
        last[i] = state
    return h, last


def naive(a, u, h0, resets=None, lengths=None, is_reverse=False):
    """The same in jax, for its gradient, on pairs."""
    a, u, h0 = (pair[0] + 1j * pair[1] for pair in (a, u, h0))
    num = u.shape[-2]
    a = jnp.broadcast_to(a if a.ndim == u.ndim else a[..., None, :], u.shape)
    state, states = h0, [h0] * num
    for l in range(num)[:: -1 if is_reverse else 1]:
        kept = state if resets is None else jnp.where(resets[:, l, None], 0, state)
        new = a[:, l] * kept + u[:, l]
        state = new if lengths is None else jnp.where(l < lengths[:, None], new, state)
        states[l] = state
    h = jnp.stack(states, 1)
    return (h.real, h.imag), (state.real, state.imag)


def make(length, batch=2, num=3, constant=False, seed=1):
    rng = np.random.default_rng(seed)

    def draw(*shape):
        return rng.normal(size=shape) + 1j * rng.normal(size=shape)

    a = 0.6 * draw(batch, num) if constant else 0.6 * draw(batch, length, num)
    return a, draw(batch, length, num), draw(batch, num)


def pairs(*arrays, dtype=jnp.float64):
    return [(jnp.asarray(z.real, dtype), jnp.asarray(z.imag, dtype)) for z in arrays]


def mask(length, batch=2):
    """Resets, one of them first, and lengths: all, few, none."""
    resets = np.random.default_rng(5).uniform(size=(batch, length)) < 0.3
    resets[0, 0] = True
    return resets, np.asarray([length, length // 2, 0][:batch])


def close(got, want, tolerance):
    got, want = jax.tree.leaves(got), jax.tree.leaves(want)
    for g, w in zip(got, want, strict=True):
        assert np.shape(g) == np.shape(w)
        np.testing.assert_allclose(g, w, atol=tolerance * (np.abs(w).max() + 1), rtol=0)


def parts(z):
    return z.real, z.imag


def value_and_gradient(fn: Any, *args):
    """Of <c, all that comes out>, with c known to both sides."""

    def total(args):
        out = fn(*args)
        rng = np.random.default_rng(2)
        leaves = jax.tree.leaves(out)
        weights = [jnp.asarray(rng.normal(size=x.shape), x.dtype) for x in leaves]
        products = [jnp.vdot(c, x) for c, x in zip(weights, leaves, strict=True)]
        return sum(products, start=jnp.zeros((), leaves[0].dtype)), out

    (_, out), gradient = jax.jit(jax.value_and_grad(total, has_aux=True))(args)
    return out, gradient


@pytest.mark.parametrize("is_reverse", [False, True])
def test_xla_is_exact_for_all_chunks(is_reverse):
    a, u, h0 = make(13)
    resets, lengths = mask(13)
    with x64(True):
        cases = [*itertools.product((False, True), (False, True), (3,))]
        for cut, short, chunk in [*cases, *((True, True, c) for c in (None, 1, 50))]:
            kwargs = {
                "resets": resets if cut else None,
                "lengths": lengths if short else None,
                "is_reverse": is_reverse,
            }
            fn = jax.jit(ft.partial(diagonal_scan, chunk=chunk, **kwargs))
            h, last = fn(*pairs(a, u, h0))
            want = loop(a, u, h0, **kwargs)
            close((h, last), tuple(map(parts, want)), 1e-12)


@pytest.mark.parametrize("constant", [False, True])
@pytest.mark.parametrize("is_reverse", [False, True])
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_value_and_gradient(implementation, is_reverse, constant):
    """With h0, and in two of the four with resets and lengths."""
    resets, lengths = mask(7)
    kwargs: Any = {"is_reverse": is_reverse}
    if is_reverse != constant:
        kwargs |= {"resets": resets, "lengths": lengths}
    is_exact = implementation == "xla"
    arrays = make(7, constant=constant)
    with x64(is_exact):
        dtype = jnp.float64 if is_exact else F32
        fn = ft.partial(diagonal_scan, implementation=implementation, chunk=3)
        args = pairs(*arrays, dtype=dtype)
        got = value_and_gradient(ft.partial(fn, **kwargs), *args)
        assert all(x.dtype == dtype for x in jax.tree.leaves(got))
    with x64(True):
        want = value_and_gradient(ft.partial(naive, **kwargs), *pairs(*arrays))
    close(got, want, TOLERANCE[implementation])


def test_finite_differences_and_second_derivatives():
    resets, lengths = mask(5)
    fn = ft.partial(diagonal_scan, resets=resets, lengths=lengths, chunk=2)

    def hessian_product(fn: Any):
        def total(args):
            return sum(jnp.sum(x**4) for x in jax.tree.leaves(fn(*args)))

        return jax.jit(lambda args: jax.jvp(jax.grad(total), (args,), (args,)))

    with x64(True):
        args = pairs(*make(5))
        check_grads(jax.jit(fn), args, 1, ["rev"], 1e-6, 1e-6, eps=1e-6)
        want = hessian_product(ft.partial(naive, resets=resets, lengths=lengths))(args)
        close(hessian_product(fn)(args), want, 1e-11)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("length", [1, 2, 150])
def test_lengths_of_sequences_and_many_states(implementation, length):
    """Several blocks of states and of time for the kernel, the last ones ragged."""
    a, u, h0 = make(length, batch=3, num=1500)
    for is_reverse in (False, True):
        fn = ft.partial(
            diagonal_scan, is_reverse=is_reverse, implementation=implementation
        )
        got = jax.jit(fn)(*pairs(a * 0.7, u, h0, dtype=F32))
        close(got, tuple(map(parts, loop(a * 0.7, u, h0, is_reverse=is_reverse))), 3e-6)


def test_axes_in_front_broadcast_and_h0_is_zero():
    a, u, _ = make(6, batch=4)
    with x64(True):
        big = pairs(u.reshape(2, 2, 6, 3))[0]
        zero = np.zeros((4, 3), complex)
        resets, lengths = mask(6, 1)[0][0], np.asarray([[3, 6]])
        got = diagonal_scan(pairs(a[0, 0])[0], big, resets=resets, lengths=lengths)
        want = loop(
            np.broadcast_to(a[0, 0], u.shape),
            u,
            zero,
            np.broadcast_to(resets, (4, 6)),
            [3, 6, 3, 6],
        )
        want = [z.reshape(2, 2, *z.shape[1:]) for z in want]
        close(got, tuple(map(parts, want)), 1e-12)
        # As many axes as u: the last but one is time.
        got = diagonal_scan(pairs(a[:1])[0], pairs(u)[0])
        want = loop(np.broadcast_to(a[:1], u.shape), u, zero)
        close(got, tuple(map(parts, want)), 1e-12)
        # No axes in front.
        got = diagonal_scan(*pairs(a[0], u[0]))
        want = loop(a[:1], u[:1], zero[:1])
        close(got, tuple(parts(z[0]) for z in want), 1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_vmap(implementation):
    arrays = make(5, batch=6)
    resets, lengths = mask(5, 3)
    args = pairs(*arrays, dtype=F32)
    args = jax.tree.map(lambda x: x.reshape(2, 3, *x.shape[1:]), args)

    def total(args, resets, lengths):
        out = diagonal_scan(
            *args, resets=resets, lengths=lengths, implementation=implementation
        )
        return sum(jnp.sum(x**2) for x in jax.tree.leaves(out)), out

    def at(tree, *index):
        return jax.tree.map(lambda x: x[index], tree)

    # Nested: masks in the inner lanes alone; then one of a, u, h0 in the lanes.
    fn = jax.value_and_grad(total, has_aux=True)
    single = jax.jit(fn)
    inner = jax.vmap(fn, in_axes=(0, 0, 0))
    nested = jax.jit(jax.vmap(inner, in_axes=(0, None, None)))(args, resets, lengths)
    for i, j in np.ndindex(2, 3):
        want = single(at(args, i, j), resets[j], lengths[j])
        close(at(nested, i, j), want, 1e-5)
    for k in range(3):
        axes = [0 if k == other else None for other in range(3)]
        mixed = at(args, 0, 0)
        mixed[k] = at(args[k], 0)
        lanes = jax.jit(jax.vmap(fn, in_axes=(axes, None, None)))
        got = lanes(mixed, resets[1], lengths[1])
        for j in range(3):
            mixed[k] = at(args[k], 0, j)
            close(at(got, j), single(mixed, resets[1], lengths[1]), 1e-5)


def test_what_lies_beyond_the_length_is_not_read():
    a, u, h0 = make(6)
    lengths = np.asarray([4, 6])
    a[0, 4:], u[0, 4:] = np.nan, np.nan
    for implementation in IMPLEMENTATIONS:
        fn = ft.partial(diagonal_scan, lengths=lengths, implementation=implementation)
        args = pairs(a, u, h0, dtype=F32)
        got = value_and_gradient(fn, *args)
        assert all(np.isfinite(x).all() for x in jax.tree.leaves(got))
        d_a, d_u, _ = got[1]
        assert not np.any(np.asarray(d_a[0])[0, 4:])
        assert not np.any(np.asarray(d_u[1])[0, 4:])


def big(batch=8, length=4096, num=64, constant=False):
    part = jax.ShapeDtypeStruct((batch, length, num), F32)
    state = jax.ShapeDtypeStruct((batch, num), F32)
    return ((state, state) if constant else (part, part)), (part, part), (state, state)


def both(fn: Any):
    """Value and gradient, of a sum of squares, in one program."""

    def total(args):
        return sum(jnp.sum(x**2) for x in jax.tree.leaves(fn(*args)))

    return lambda *args: jax.value_and_grad(total)(args)


def temporaries(fn, *args):
    sizes = jax.jit(fn).lower(*args).compile().memory_analysis()
    assert sizes is not None
    return sizes.temp_size_in_bytes


def test_memory_is_bounded():
    """No array of all positions beside arguments and results, 16 MiB a pair."""
    for constant in (False, True):
        args = big(constant=constant)
        assert temporaries(diagonal_scan, *args) <= 2 * 2**20
        # h, its cotangent, and the decays moved by one position.
        assert temporaries(both(diagonal_scan), *args) <= 80 * 2**20


@pytest.mark.misuse
def test_misuse_is_named():
    a, u, h0 = pairs(*make(5), dtype=F32)
    fn: Any = diagonal_scan
    with pytest.raises(ValueError, match=r"`u` must be a pair \(re, im\).*complex64"):
        fn(a, lax.complex(*u))
    with pytest.raises(ValueError, match="`a` must be two arrays of one shape"):
        fn((a[0], a[1][:, :2]), u)
    with pytest.raises(ValueError, match=r"`u` must be two arrays .* 2 axes"):
        fn(a, (h0[0][0], h0[1][0]))
    match = r"Shapes must be .*`a` \(2, 4, 3\), `u` \(2, 5, 3\), `h0` \(3,\)"
    with pytest.raises(ValueError, match=match):
        fn((a[0][:, :4], a[1][:, :4]), u)
    with pytest.raises(ValueError, match=r"Shapes must be .*`h0` \(2, 2\)"):
        fn(a, u, (h0[0][:, :2], h0[1][:, :2]))
    with pytest.raises(ValueError, match=r"`resets` must have .* 5\), got \(2, 4\)"):
        fn(a, u, resets=np.zeros((2, 4), bool))
    with pytest.raises(ValueError, match=r"Shapes must be .*`lengths` \(3,\)"):
        fn(a, u, lengths=np.zeros(3, int))
    with pytest.raises(ValueError, match="`resets` must be boolean, got int32"):
        fn(a, u, resets=jnp.zeros((2, 5), jnp.int32))
    with pytest.raises(ValueError, match="`lengths` must be whole numbers, got float"):
        fn(a, u, lengths=jnp.zeros(2))
    with pytest.raises(ValueError, match="`u` must have at least one position"):
        fn(h0, (u[0][:, :0], u[1][:, :0]))
    for chunk in (0, -1, 2.0):
        with pytest.raises(ValueError, match=f"`chunk` must be .* got {chunk}"):
            fn(a, u, chunk=chunk)
    with pytest.raises(ValueError, match="Unknown implementation 'cuda'"):
        fn(a, u, implementation="cuda")
    kernel = ft.partial(fn, implementation="pallas_interpret")
    with x64(True), pytest.raises(ValueError, match="`a` must be float32, got float64"):
        kernel(*pairs(*make(5)))
    with pytest.raises(ValueError, match=r"`chunk` 4096 needs .* MiB of VMEM"):
        jax.eval_shape(ft.partial(kernel, chunk=4096), *big())


@pytest.mark.aot
@pytest.mark.parametrize("target", ["v5e", "v6e"])
@pytest.mark.parametrize(
    ("batch", "length", "num", "constant"),
    [(8, 4096, 64, False), (8, 4096, 64, True), (3, 70, 5, False), (2, 1, 3, True)],
)
def test_kernels_compile_for_a_tpu(target, batch, length, num, constant):
    pytest.importorskip("libtpu", reason='needs pip install "jaxlr[aot]"')
    if reason := aot.why_not():
        pytest.skip(reason)
    args = big(batch, length, num, constant)
    for is_reverse in (False, True):
        fn = ft.partial(diagonal_scan, is_reverse=is_reverse, implementation="pallas")
        made = compile_for(target, both(fn), *args)
        assert made.fits
        assert "tpu_custom_call" in str(made.compiled.as_text())


@pytest.mark.aot
def test_both_forms_compile_for_a_tpu_under_vmap():
    pytest.importorskip("libtpu", reason='needs pip install "jaxlr[aot]"')
    if reason := aot.why_not():
        pytest.skip(reason)
    part = jax.ShapeDtypeStruct((3, 4, 70, 5), F32)
    resets, lengths = mask(70, 3)
    for implementation in ("xla", "pallas"):
        fn = ft.partial(
            diagonal_scan, implementation=implementation, lengths=lengths[0]
        )
        fn = ft.partial(fn, resets=resets[0])
        assert compile_for("v5e", jax.vmap(both(fn)), (part, part), (part, part)).fits
