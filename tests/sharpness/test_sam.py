"""`sam_value_and_grad` against its formulas, and in the company that it keeps."""

import functools as ft
import itertools
from typing import Any

import chex
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import pytest

from jaxlr.core.compat import x64
from jaxlr.sharpness import sam_value_and_grad, SAMInfo
from tests.sharpness import _models as models


BACKENDS: Any = ["scan", "vmap", "unroll", "ghost"]
RULES = [(True, False), (False, False), (True, True), (False, True)]
FORMS = [  # "ghost" refuses adaptive ones, below
    (*rule, backend)
    for rule in RULES
    for backend in BACKENDS
    if not (rule[1] and backend == "ghost")
]


def assert_close(got, want, rtol):
    """Relative to the largest entry of each leaf."""
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, rtol=rtol, atol=rtol * np.abs(b).max())


@pytest.mark.parametrize(("is_normalized", "is_adaptive", "backend"), FORMS)
@pytest.mark.parametrize("num_shards", [1, 4])
def test_the_formulas(is_normalized, is_adaptive, backend, num_shards):
    rule = {
        "is_normalized": is_normalized,
        "is_adaptive": is_adaptive,
        "num_shards": num_shards,
    }
    want = models.numpy_sam(*models.problem(), 0.3, **rule)
    with x64(True):
        (value, info), grads = jax.jit(
            sam_value_and_grad(
                models.squares, 0.3, backend=backend, return_info=True, **rule
            )
        )(*jax.tree.map(jnp.asarray, models.problem()))
        chex.assert_shape(info, () if num_shards == 1 else (num_shards,))
        got = value, grads, np.atleast_1d(info[0]), np.atleast_1d(info[1])
        assert_close(got, want, 1e-11)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mlp", "conv", "net"])
def test_backends_agree_and_rho_0_is_the_gradient(name):
    fun, params = getattr(models, f"{name}_loss"), getattr(models, name, models.Net)()
    x, y = models.data()
    plain = eqx.filter_value_and_grad(fun)(params, x, y)
    found = {}
    for backend in BACKENDS[: 3 if name == "conv" else 4]:

        @eqx.filter_jit
        def both(params, rhos, backend=backend):
            def one(rho):
                transform = sam_value_and_grad(fun, rho, num_shards=4, backend=backend)
                return transform(params, x, y)

            return jax.lax.map(one, rhos)

        found[backend] = both(params, jnp.array([0.5, 0.0]))
        assert_close(found[backend], found["scan"], 1e-5)
        at_0 = jax.tree.map(lambda z: z[1], found[backend])
        assert jax.tree.structure(at_0) == jax.tree.structure(plain)
        assert_close(at_0, plain, 1e-5)
    first = jax.tree.leaves(found["scan"][1])[0]
    assert np.abs(first[0] - first[1]).max() > 1e-3


def test_a_zero_gradient_stays_one_and_differentiates():
    def flat(w, x):
        return jnp.sum(w**2) + 0 * x.sum()

    for rule in (
        dict(zip(("is_normalized", "is_adaptive"), r, strict=True)) for r in RULES
    ):
        transform = sam_value_and_grad(flat, 0.1, num_shards=2, **rule)
        value, grad = transform(jnp.zeros(3), jnp.ones(4))
        assert value == 0
        np.testing.assert_array_equal(grad, 0)
        hessian = jax.jacobian(lambda w, t=transform: t(w, jnp.ones(4))[1])
        np.testing.assert_allclose(hessian(jnp.zeros(3)), 2 * np.eye(3))


def test_the_perturbation_is_a_constant_but_for_rho():
    params, x, y = models.problem()
    with x64(True):

        def summed(params, rho):
            grads = sam_value_and_grad(models.squares, rho)(params, x, y)[1]
            return sum(map(jnp.sum, jax.tree.leaves(grads)))

        params, x, y = jax.tree.map(jnp.asarray, (params, x, y))
        by_params, by_rho = jax.grad(summed, (0, 1))(params, 0.3)
        want = (summed(params, 0.3 + 1e-6) - summed(params, 0.3 - 1e-6)) / 2e-6
        np.testing.assert_allclose(by_rho, want, rtol=1e-8)
        # The Hessian of least squares is one everywhere: e can be left out.
        ones = jax.tree.map(jnp.ones_like, params)
        slope = jax.jvp(lambda p: jax.grad(models.squares)(p, x, y), (params,), (ones,))
        assert_close(by_params, slope[1], 1e-12)


def test_a_sweep_of_rho_is_one_trace():
    params, x, y = jax.tree.map(jnp.asarray, models.problem())
    calls = []

    def counted(*args):
        calls.append(1)
        return models.squares(*args)

    @jax.jit
    def sweep(rhos):
        return jax.vmap(lambda rho: sam_value_and_grad(counted, rho)(params, x, y))(
            rhos
        )

    values, grads = sweep(jnp.array([0.0, 0.1, 0.2]))
    assert len(calls) == 2  # two passes
    sweep(jnp.array([0.3, 0.1, 0.2]))
    assert len(calls) == 2
    want = models.numpy_sam(*models.problem(), 0.2)
    assert_close(jax.tree.map(lambda z: z[2], (values, grads)), want[:2], 1e-5)


def train(transform, optimizer, params, batches):
    """One `lax.scan` over batches; the last parameters."""

    def step(carry, batch):
        params, state = carry
        _, grads = transform(params, *batch)
        updates, state = optimizer.update(grads, state, params)
        return (optax.apply_updates(params, updates), state), None

    return jax.lax.scan(step, (params, optimizer.init(params)), batches)[0][0]


def batches_of(x, y):
    return jnp.stack([x[:4], x[4:]]), jnp.stack([y[:4], y[4:]])


@pytest.mark.parametrize("num_shards", [1, 2])
def test_a_loop_of_steps_with_a_schedule(num_shards):
    params, x, y = models.problem()
    with x64(True):
        batches = (*batches_of(jnp.asarray(x), jnp.asarray(y)), jnp.array([0.1, 0.4]))

        def transform(params, x, y, rho):
            fun = sam_value_and_grad(models.squares, rho, num_shards=num_shards)
            return fun(params, x, y)

        got = jax.jit(ft.partial(train, transform, optax.sgd(0.1)))(params, batches)
    for rows, rho in ((slice(4), 0.1), (slice(4, 8), 0.4)):
        _, g, *_ = models.numpy_sam(
            params, x[rows], y[rows], rho, num_shards=num_shards
        )
        params = {k: params[k] - 0.1 * g[k] for k in params}
    assert_close(got, params, 1e-12)


def test_accumulated_microbatches_are_shards():
    params, x, y = models.problem()
    with x64(True):
        optimizer = optax.MultiSteps(optax.sgd(0.1), 2)
        transform = sam_value_and_grad(models.squares, 0.3)
        batches = batches_of(jnp.asarray(x), jnp.asarray(y))
        start = jax.tree.map(jnp.asarray, params)
        got = jax.jit(ft.partial(train, transform, optimizer))(start, batches)
    _, g, *_ = models.numpy_sam(*models.problem(), 0.3, num_shards=2)
    assert_close(
        got, {k: params[k] - 0.1 * g[k] for k in g}, 1e-7
    )  # its mean is in float32


@pytest.mark.parametrize("what", ["clip", "decay"])
def test_clipping_and_decay_see_the_second_gradient(what):
    params, x, y = models.problem()
    _, g, *_ = models.numpy_sam(params, x, y, 0.3)
    norm = np.sqrt(sum(np.sum(v**2) for v in g.values()))
    if what == "clip":
        link = optax.clip_by_global_norm(0.5 * norm)
        want = {k: params[k] - 0.1 * 0.5 * g[k] for k in g}
    else:
        link = optax.add_decayed_weights(0.2)
        want = {k: params[k] - 0.1 * (g[k] + 0.2 * params[k]) for k in g}
    with x64(True):
        optimizer = optax.chain(link, optax.sgd(0.1))
        transform = sam_value_and_grad(models.squares, 0.3)
        params = jax.tree.map(jnp.asarray, params)
        got = jax.jit(ft.partial(train, transform, optimizer))(
            params, (jnp.asarray(x)[None], jnp.asarray(y)[None])
        )
    assert_close(got, want, 1e-12)


def dropped(params, key, x, y):
    keep = jr.bernoulli(key, 0.5, x.shape[-1:])
    return models.squares(params, x * keep, y)


@pytest.mark.parametrize("backend", BACKENDS)
def test_one_key_serves_all_passes_and_shards(backend):
    params, x, y = models.problem()
    keep = np.asarray(jr.bernoulli(jr.key(3), 0.5, (3,)))
    assert 0 < keep.sum() < 3
    want = models.numpy_sam(params, x * keep, y, 0.3, num_shards=4)
    transform = sam_value_and_grad(
        dropped, 0.3, num_shards=4, in_axes=(None, None, 0, 0), backend=backend
    )
    arrays = jax.tree.map(jnp.asarray, (params, x, y))
    got = jax.jit(transform)(arrays[0], jr.key(3), *arrays[1:])
    assert_close(got, want[:2], 1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_keys_for_each_shard_are_cut(backend):
    def fun(params, keys, x, y):
        assert keys.shape == (1,)
        return dropped(params, keys[0], x, y)

    params, x, y = jax.tree.map(jnp.asarray, models.problem())
    keys = jr.split(jr.key(3), 4)
    transform = sam_value_and_grad(fun, 0.3, num_shards=4, backend=backend)
    got = jax.jit(transform)(params, keys, x, y)
    one = sam_value_and_grad(dropped, 0.3)
    parts = [
        one(params, k, *(np.split(z, 4)[i] for z in (x, y))) for i, k in enumerate(keys)
    ]
    want = jax.tree.map(lambda *z: np.mean(z, 0), *parts)
    assert_close(got, want, 1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_axes_of_trees_and_of_the_middle(backend):
    """Columns are cut, a leaf is shared, a keyword too; arguments in any order."""

    def fun(batch, w, *, scale):
        return models.squares(w, batch["x"].T * batch["s"], batch["y"].T) * scale

    params, x, y = jax.tree.map(jnp.asarray, models.problem())
    transform = sam_value_and_grad(
        fun,
        0.3,
        argnums=-1,
        num_shards=4,
        in_axes=({"x": -1, "s": None, "y": 1}, None),
        backend=backend,
    )
    batch = {"x": x.T, "s": jnp.array([1.0, 2.0, 3.0]), "y": y.T}
    got = jax.jit(transform)(batch, params, scale=2.0)
    x, y = np.asarray(x) * [1, 2, 3], np.asarray(y)
    value, grads, *_ = models.numpy_sam(params, x, y, 0.3, num_shards=4)
    assert_close(got, (2 * value, {k: 2 * g for k, g in grads.items()}), 2e-5)


@pytest.mark.parametrize("num_shards", [1, 2])
@pytest.mark.parametrize("backend", BACKENDS)
def test_aux_is_of_the_clean_pass_and_stacked(num_shards, backend):
    def fun(params, x, y):
        loss = models.squares(params, x, y)
        return loss, {"loss": loss, "rows": x}

    args = jax.tree.map(jnp.asarray, models.problem())
    transform = sam_value_and_grad(
        fun, 0.3, num_shards=num_shards, backend=backend, has_aux=True
    )
    (value, aux), grads = transform(*args)
    shape = () if num_shards == 1 else (num_shards,)
    chex.assert_shape(aux["rows"], (*shape, 8 // num_shards, 3))
    np.testing.assert_array_equal(aux["rows"].reshape(8, 3), args[1])
    chex.assert_shape(aux["loss"], shape)
    np.testing.assert_allclose(np.mean(aux["loss"]), models.squares(*args), rtol=1e-6)
    np.testing.assert_allclose(value, models.squares(*args), rtol=1e-6)
    with_info = sam_value_and_grad(
        fun,
        0.3,
        num_shards=num_shards,
        backend=backend,
        has_aux=True,
        return_info=True,
    )
    (_, (same, info)), same_grads = with_info(*args)
    assert isinstance(info, SAMInfo)
    chex.assert_trees_all_close((same, same_grads), (aux, grads), rtol=1e-6)


def test_many_arguments_share_one_norm():
    params, x, y = jax.tree.map(jnp.asarray, models.problem())

    def fun(w, x, b, y):
        return models.squares({"w": w, "b": b}, x, y)

    transform = sam_value_and_grad(fun, 0.3, argnums=(2, 0), num_shards=2)
    value, (b, w) = transform(params["w"], x, params["b"], y)
    want = models.numpy_sam(*models.problem(), 0.3, num_shards=2)
    assert_close((value, {"w": w, "b": b}), want[:2], 1e-5)


@pytest.mark.parametrize("num_shards", [1, 2])
@pytest.mark.parametrize("backend", ["scan", "ghost"])
@pytest.mark.parametrize("spec", [lambda w: w.ndim == 2, {"w": True, "b": False}])
def test_leaves_that_are_not_perturbed(num_shards, backend, spec):
    params, x, y = jax.tree.map(jnp.asarray, models.problem())
    transform = sam_value_and_grad(
        models.squares,
        0.3,
        perturb_filter=spec,
        num_shards=num_shards,
        backend=backend,
        return_info=True,
    )
    (_, info), grads = transform(params, x, y)
    want, norms = [], []
    for a, b in zip(np.split(x, num_shards), np.split(y, num_shards), strict=True):
        g = jax.grad(models.squares)(params, a, b)["w"]
        norms.append(np.linalg.norm(g))
        moved = params | {"w": params["w"] + 0.3 * g / norms[-1]}
        want.append(jax.grad(models.squares)(moved, a, b))
    np.testing.assert_allclose(np.atleast_1d(info.grad_norm), norms, rtol=1e-5)
    assert_close(grads, jax.tree.map(lambda *z: np.mean(z, 0), *want), 1e-5)


@pytest.mark.parametrize("num_shards", [1, 2])
def test_all_leaves_left_out_is_the_gradient(num_shards):
    params, x, y = jax.tree.map(jnp.asarray, models.problem())
    for backend in ("scan", "ghost"):
        transform = sam_value_and_grad(
            models.squares,
            0.3,
            perturb_filter=False,
            num_shards=num_shards,
            backend=backend,
            return_info=True,
        )
        value, grads = jax.value_and_grad(models.squares)(params, x, y)
        (same, info), same_grads = transform(params, x, y)
        assert_close((same, same_grads), (value, grads), 1e-5)
        shape = () if num_shards == 1 else (num_shards,)
        np.testing.assert_array_equal(info.grad_norm, np.zeros(shape))


def test_bfloat16_leaves_have_a_float32_norm_and_mean():
    # 300 is not a sum that bfloat16 reaches by ones: it stops at 256.
    w = jnp.ones(300, jnp.bfloat16)
    transform = sam_value_and_grad(
        lambda w, x: jnp.sum(w * x.mean()), 0.5, num_shards=256, return_info=True
    )
    (_, info), grad = jax.jit(transform)(w, jnp.ones(512, jnp.bfloat16))
    assert info.grad_norm.dtype == jnp.float32
    np.testing.assert_allclose(info.grad_norm, np.sqrt(300), rtol=1e-6)
    assert grad.dtype == jnp.bfloat16
    last = jnp.where(jnp.arange(512) < 510, 1, 129).astype(jnp.bfloat16)
    np.testing.assert_allclose(
        transform(w, last)[1].astype(float), 1.5, rtol=1e-6
    )  # (255 + 129) / 256, of which a sum in bfloat16 has 384 or not


def test_complex_leaves_go_uphill():
    """As their real and imaginary parts do."""
    a = jr.normal(jr.key(0), (4, 3, 2)) @ jnp.array([1, 1j])

    def fun(z):
        return jnp.sum(jnp.abs(a @ z - 1) ** 2)

    parts = jr.normal(jr.key(1), (2, 3))
    real = sam_value_and_grad(lambda p: fun(p[0] + 1j * p[1]), 0.3, return_info=True)
    full = sam_value_and_grad(fun, 0.3, return_info=True)
    (_, info), grads = real(parts)
    (_, got), grad = full(parts[0] + 1j * parts[1])
    np.testing.assert_allclose(got, info, rtol=1e-5)
    np.testing.assert_allclose(grad, grads[0] - 1j * grads[1], rtol=1e-4)


@pytest.mark.parametrize(
    ("backend", "num_shards", "copies"),
    [("scan", n, 1.3) for n in (4, 32)] + [("ghost", n, 2.0) for n in (4, 8, 32)],
)
def test_memory_in_copies_of_the_parameters(backend, num_shards, copies):
    sizes = (256, 512, 512, 512, 10)
    params = [(jnp.zeros((n, m)), jnp.zeros(m)) for n, m in itertools.pairwise(sizes)]
    batch = jnp.zeros((256, 256)), jnp.zeros(256, int)

    transform = sam_value_and_grad(
        models.mlp_loss, 0.1, num_shards=num_shards, backend=backend
    )
    program: Any = jax.jit(transform).lower(params, *batch).compile()
    size = sum(w.nbytes for w in jax.tree.leaves(params))
    if backend == "scan" and jax.__version_info__[:2] != (0, 10):
        pytest.xfail("XLA of jax 0.7.2 and 0.12 needs up to 1.47 copies")
    assert program.memory_analysis().temp_size_in_bytes <= copies * size


@pytest.mark.misuse
def test_misuse_is_named_at_once():
    wrong = ft.partial(sam_value_and_grad, models.squares)
    with pytest.raises(ValueError, match=r"`rho` must be >= 0 and finite, got -0.1"):
        wrong(-0.1)
    with pytest.raises(ValueError, match=r"`rho` must be >= 0 and finite, got nan"):
        wrong(float("nan"))
    with pytest.raises(ValueError, match=r"`rho` must be a number, got shape \(2,\)"):
        wrong(jnp.ones(2))
    with pytest.raises(ValueError, match=r"backend 'gost'; did you mean 'ghost'\?"):
        wrong(0.1, backend="gost")  # pyright: ignore
    for count in (0, 2.0, True):
        with pytest.raises(ValueError, match=rf"`num_shards`.* >= 1, got {count}"):
            wrong(0.1, num_shards=count)
    with pytest.raises(ValueError, match=r"`in_axes` must be.*got 'x'"):
        wrong(0.1, in_axes="x")
    with pytest.raises(
        ValueError, match=r"'ghost' is for `is_adaptive=False`.*got True"
    ):
        wrong(0.1, is_adaptive=True, backend="ghost")
    with pytest.raises(
        ValueError, match=r"`perturb_axis_name=None`, got False and 'd'"
    ):
        wrong(0.1, perturb_axis_name="d", backend="ghost")


@pytest.mark.misuse
def test_misuse_is_named_when_called():
    params, x, y = jax.tree.map(jnp.asarray, models.problem())
    wrong = ft.partial(sam_value_and_grad, models.squares, 0.1)
    with pytest.raises(ValueError, match=r"axis 0 of argument 1 has size 8,.* 3"):
        wrong(num_shards=3)(params, x, y)
    with pytest.raises(ValueError, match=r"`in_axes`.*each of the 3 positional"):
        wrong(in_axes=(None, 0))(params, x, y)
    with pytest.raises(ValueError, match=r"must be None for the diff.*\(0,\)"):
        wrong(in_axes=(0, 0, 0))(params, x, y)
    with pytest.raises(ValueError, match=r"`in_axes` cuts no argument in 2"):
        wrong(in_axes=None, num_shards=2)(params, x, y)
    with pytest.raises(ValueError, match=r"argument 2 holds a leaf of shape \(\), .*0"):
        wrong(num_shards=2)(params, x, 1.0)
    with pytest.raises(ValueError, match=r"argument 1 holds a single random key.*None"):
        sam_value_and_grad(dropped, 0.1, num_shards=2)(params, jr.key(0), x, y)
    with pytest.raises(ValueError, match=r"`argnums` must be in -3\.\.2, got 3"):
        wrong(argnums=3)(params, x, y)
    with pytest.raises(ValueError, match=r"`argnums` 0 holds no floating"):
        wrong()({"w": 1, "b": None}, x, y)
