"""Layers and networks: one function in several forms, labels, errors."""

import inspect

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import pytest

from jaxlr import ssm


LAYERS = {
    "s4d": lambda key: ssm.S4D(key, 3, 8),
    "s4d_bilinear": lambda key: ssm.S4D(key, 3, 8, kind="lin", method="bilinear"),
    "s4d_ptd": lambda key: ssm.S4DPTD(key, 3, 8),
    "s4d_ptd_random": lambda key: ssm.S4DPTD(key, 3, 8, ptd_method="random"),
    "s4d_ptd_optimized": lambda key: ssm.S4DPTD(key, 3, 8, ptd_method="optimized"),
    "s5": lambda key: ssm.S5(key, 3, 8, num_blocks=2),
    "s5_ptd": lambda key: ssm.S5PTD(key, 3, 8, num_blocks=2),
    "s5_ptd_optimized": lambda key: ssm.S5PTD(key, 3, 8, ptd_method="optimized"),
}
EACH_LAYER = pytest.mark.parametrize("name", LAYERS)


def stepped(fn, u, state):
    """By `step`, in a scan: `(ys, last_state)`."""

    def body(state, u):
        y, state = fn(u, state)
        return state, y

    last, ys = jax.lax.scan(body, state, u)
    return ys, last


@EACH_LAYER
def test_call_scan_and_step_agree(x64, name):
    layer = LAYERS[name](jr.key(0))
    u = jr.normal(jr.key(1), (20, 3))

    @eqx.filter_jit
    def forms(layer, u):
        state = layer.init_state()
        return layer(u), layer.scan(u), stepped(layer.step, u, state)

    y, scanned, (ys, last) = forms(layer, u)
    np.testing.assert_allclose(y, ys, atol=1e-10)
    np.testing.assert_allclose(scanned[0], ys, atol=1e-10)
    np.testing.assert_allclose(scanned[1], last, atol=1e-10)
    assert np.abs(y).max() > 0.1


@pytest.mark.slow
@pytest.mark.parametrize("layer", [ssm.S4D, ssm.S4DPTD, ssm.S5, ssm.S5PTD])
def test_layers_use_the_kernels(layer):
    """The same values and derivatives by Pallas, over a batch, call and scan."""
    u = jr.normal(jr.key(1), (2, 9, 3))

    @eqx.filter_jit
    @eqx.filter_value_and_grad(has_aux=True)
    def loss(made):
        y = jax.vmap(made)(u)
        z, last = jax.vmap(made.scan)(u)
        return jnp.sum(jnp.sin(y)) + jnp.sum(jnp.cos(z)), (y, z, last)

    plain, kernel = (
        loss(layer(jr.key(0), 3, 8, implementation=implementation))
        for implementation in (None, "pallas_interpret")
    )
    for a, b in zip(jax.tree.leaves(plain), jax.tree.leaves(kernel), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)


@pytest.mark.slow
@EACH_LAYER
def test_state_length_and_resets(x64, name):
    layer = LAYERS[name](jr.key(0))
    u = jr.normal(jr.key(1), (20, 3))
    resets = jnp.zeros(20, bool).at[jnp.array([4, 13])].set(True)
    scan = eqx.filter_jit(lambda *args, **kwargs: layer.scan(*args, **kwargs))
    whole, last = scan(u)
    first, middle = scan(u[:7])
    second, end = scan(u[7:], middle)
    np.testing.assert_allclose(jnp.concatenate([first, second]), whole, atol=1e-10)
    np.testing.assert_allclose(end, last, atol=1e-10)
    y, kept = scan(u, length=jnp.asarray(7))
    np.testing.assert_allclose(y[:7], first, atol=1e-10)
    np.testing.assert_allclose(kept, middle, atol=1e-10)
    y, _ = scan(u, last, resets=resets)
    np.testing.assert_allclose(y[:4], scan(u[:4], last)[0], atol=1e-10)
    np.testing.assert_allclose(y[4:13], scan(u[4:13])[0], atol=1e-10)
    np.testing.assert_allclose(y[13:], scan(u[13:])[0], atol=1e-10)


def test_layers_start_as_the_systems_they_are_named_after():
    layer = ssm.S4D(jr.key(0), 3, 8, kind="inv")
    lam, b, _, dt = layer.system()
    np.testing.assert_allclose(lam, np.tile(ssm.s4d(8, "inv")[0], (3, 1)), rtol=1e-6)
    np.testing.assert_array_equal(b, 1)
    assert np.all((dt >= 1e-3) & (dt <= 0.1))
    np.testing.assert_allclose(layer.system(0.5)[3], dt / 2, rtol=1e-6)
    many = ssm.S4D(jr.key(0), 2000, 4)
    assert np.mean(np.abs(many.system()[2]) ** 2) == pytest.approx(1, abs=0.1)
    assert np.mean(np.asarray(many.log_dt)) == pytest.approx(np.log(1e-2), abs=0.1)
    wanted, b, _ = ssm.ptd(*ssm.hippo_legs(8), method="random", eps=1e-4)
    lam, b_layer, *_ = LAYERS["s4d_ptd_random"](jr.key(0)).system()
    np.testing.assert_allclose(lam[1], wanted, rtol=1e-4)
    np.testing.assert_allclose(b_layer[2], b, rtol=1e-4)
    lam = ssm.S5(jr.key(0), 3, 8, num_blocks=2).system()[0]
    np.testing.assert_allclose(lam, np.tile(ssm.s4d(4)[0], 2), rtol=1e-6)


@pytest.mark.parametrize("name", ["s5", "s5_ptd", "s5_ptd_optimized"])
def test_s5_is_the_dense_system_it_starts_from(x64, name):
    """At a single step for all states: real matrices, by the exponential."""
    from scipy.linalg import expm

    blocks = 1 if name == "s5_ptd_optimized" else 2
    n, dt = 8 // blocks, 0.05
    options = {"dt_min": dt, "dt_max": dt, "num_blocks": blocks}
    key, u = jr.key(0), jr.normal(jr.key(1), (12, 3))
    a, vector = ssm.hippo_legs(n)
    if name == "s5":
        layer, a = ssm.S5(key, 3, 8, **options), a + np.outer(vector, vector) / 2
    else:
        method = "optimized" if "opt" in name else "rank1"
        layer = ssm.S5PTD(key, 3, 8, ptd_method=method, **options)
        a = a + ssm.ptd(a, vector, method=method, eps=1e-4)[2].e
    b_key, c_key, *_ = jr.split(key, 4)
    b = jr.normal(b_key, (blocks, n, 3)) / np.sqrt(3)
    c = jr.normal(c_key, (3, blocks, n)) / np.sqrt(8)
    abar = expm(dt * a)
    bbar = np.linalg.solve(a, (abar - np.eye(n)) @ b)
    x, want = np.zeros((blocks, n)), []
    for row in np.asarray(u):
        x = x @ abar.T + bbar @ row
        want.append(np.einsum("hkn,kn->h", c, x) + layer.d * row)
    np.testing.assert_allclose(layer(u), want, atol=1e-9)


def test_twice_as_many_samples_of_a_slow_signal_are_the_same_with_half_the_step(x64):
    times = np.arange(400) * 0.01
    layer = ssm.S4D(jr.key(0), 1, 16)
    signal = np.sin(times)[:, None]
    run = eqx.filter_jit(layer)
    fine = run(jnp.repeat(signal, 2, axis=0), dt_scale=0.5)
    np.testing.assert_allclose(fine[1::2], run(signal), atol=1e-9)


@pytest.mark.slow
def test_irregular_steps_beyond_the_length_may_be_anything(x64):
    layer, u = ssm.S5(jr.key(0), 3, 8), jr.normal(jr.key(1), (6, 3))

    def loss(layer, scale):
        return jnp.sum(layer.scan(u, length=4, dt_scale=scale)[0][:4] ** 2)

    scale = jnp.asarray([1.0, 2, 1, 3, 1, 2])
    want = eqx.filter_grad(loss)(layer, scale)
    for beyond in (0.0, jnp.nan):
        got = eqx.filter_grad(loss)(layer, scale.at[4:].set(beyond))
        np.testing.assert_allclose(got.log_dt, want.log_dt, rtol=1e-12)


def test_irregular_steps_of_s5(x64):
    """A step of length 2 is two of length 1 with the input held."""
    layer = ssm.S5(jr.key(0), 3, 8)
    u = jr.normal(jr.key(1), (6, 3))
    scale = jnp.asarray([1.0, 2, 1, 3, 1, 2])
    held = jnp.repeat(u, scale.astype(int), axis=0, total_repeat_length=10)
    ends = jnp.cumsum(scale.astype(int)) - 1
    run = eqx.filter_jit(layer)
    np.testing.assert_allclose(run(u, dt_scale=scale), run(held)[ends], atol=1e-11)


def stack(layer="s4d", **options):
    options = {"num_inputs": 2, "num_layers": 2, **options}
    return ssm.Stack(jr.key(0), LAYERS[layer], 3, 4, **options)


@pytest.mark.parametrize("layer", ["s4d", "s5_ptd"])
@pytest.mark.parametrize("pooling", ["mean", "last", "none"])
def test_a_network_gives_the_same_whole_scanned_and_by_steps(x64, layer, pooling):
    model = stack(layer, pooling=pooling)
    x = jr.normal(jr.key(1), (11, 2))

    @eqx.filter_jit
    def forms(model, x):
        first, middle = model.scan(x[:4])
        second, last = model.scan(x[4:], middle)
        ys, stepped_last = stepped(model.step, x, model.init_state())
        return model(x), jnp.concatenate([first, second]), last, ys, stepped_last

    y, scanned, last, ys, stepped_last = forms(model, x)
    np.testing.assert_allclose(scanned, ys, atol=1e-10)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-10), last, stepped_last
    )
    np.testing.assert_allclose(y, ys if pooling == "none" else ys[-1], atol=1e-10)


@pytest.mark.slow
@pytest.mark.parametrize("pooling", ["mean", "last", "none"])
@pytest.mark.parametrize("is_bidirectional", [False, True])
def test_padding_changes_nothing(x64, pooling, is_bidirectional):
    model = stack(pooling=pooling, is_bidirectional=is_bidirectional)
    x = jr.normal(jr.key(1), (12, 2))
    run = eqx.filter_jit(model)
    alone = run(x[:7])
    padded = jax.vmap(run, in_axes=(0, None))(
        jnp.stack([x, x.at[7:].set(1e3)]), jnp.asarray(7)
    )
    padded = padded[:, :7] if pooling == "none" else padded
    np.testing.assert_allclose(padded[0], alone, atol=1e-10)
    np.testing.assert_allclose(padded[1], alone, atol=1e-10)
    if not is_bidirectional:
        outputs, _ = model.scan(x, length=jnp.asarray(7))
        wanted = alone if pooling == "none" else alone[None]
        np.testing.assert_allclose(outputs[:7][-len(wanted) :], wanted, atol=1e-10)


@pytest.mark.slow
@pytest.mark.parametrize("layer", ["s4d", "s5"])
@pytest.mark.parametrize("pooling", ["mean", "none"])
def test_padding_may_be_nan_even_for_derivatives(layer, pooling):
    model = stack(layer, pooling=pooling)
    x = jr.normal(jr.key(1), (9, 2)).at[5:].set(jnp.nan)

    def total(outputs):
        outputs = outputs if outputs.ndim == 1 else outputs[:5]
        return jnp.sum(outputs**2)

    @eqx.filter_jit
    def slopes(model):
        whole = eqx.filter_grad(lambda m: total(m(x, jnp.asarray(5))))(model)
        scanned = eqx.filter_grad(
            lambda m: total(m.scan(x, length=jnp.asarray(5))[0][:5])
        )(model)
        return whole, scanned

    leaves = jax.tree.leaves(slopes(model))
    assert leaves
    assert all(np.all(np.isfinite(leaf)) for leaf in leaves)


@pytest.mark.slow
def test_irregular_steps_run_backward_too(x64):
    options = {"pooling": "none", "is_bidirectional": True, "num_layers": 1}
    model = stack("s5", **options)
    x, scale = jr.normal(jr.key(1), (6, 2)), jnp.asarray([1.0, 2, 1, 3, 1, 2])
    block = model.blocks[0]
    mirrored = eqx.tree_at(
        lambda m: (m.blocks[0].layer, m.blocks[0].backward),
        model,
        (block.backward, block.layer),
    )
    got = mirrored(x[::-1], dt_scale=scale[::-1])[::-1]
    np.testing.assert_allclose(got, model(x, dt_scale=scale), atol=1e-11)


def test_resets_of_a_network_make_sequences_of_their_own(x64):
    model = stack()
    x = jr.normal(jr.key(1), (10, 2))
    resets = jnp.arange(10) == 6
    scan = eqx.filter_jit(model.scan)
    got, last = scan(x, resets=resets)
    first, _ = scan(x[:6])
    second, wanted = scan(x[6:])
    np.testing.assert_allclose(got, jnp.concatenate([first, second]), atol=1e-10)
    np.testing.assert_allclose(last.total, wanted.total, atol=1e-10)
    assert last.num_steps == 4


@pytest.mark.slow
def test_a_bidirectional_network_sees_what_comes():
    model = stack(is_bidirectional=True, pooling="none")
    x = jr.normal(jr.key(1), (10, 2))
    causal = stack(pooling="none")
    later = x.at[9].add(1.0)
    assert not np.allclose(model(x)[0], model(later)[0], atol=1e-4)
    np.testing.assert_allclose(causal(x)[:9], causal(later)[:9], atol=1e-4)


@pytest.mark.slow
def test_tokens_dropout_and_norms():
    model = stack(num_inputs=None, num_tokens=5, dropout=0.5)
    tokens = jnp.asarray([0, 4, 2, 2])
    assert model(tokens).shape == (4,)
    first, again, other = (model(tokens, key=jr.key(i)) for i in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert not np.allclose(first, other)
    np.testing.assert_array_equal(model(tokens), model(tokens))
    post = stack(is_prenorm=False, pooling="none")
    pre = stack(pooling="none")
    x = jr.normal(jr.key(1), (6, 2))
    assert not np.allclose(post(x), pre(x))
    normed = eqx.tree_at(
        lambda m: (m.decoder.weight, m.decoder.bias),
        stack(is_prenorm=False, pooling="none"),
        (jnp.eye(4, 3), jnp.zeros(4)),
    )(x)[:, :3]
    np.testing.assert_allclose(normed.mean(1), 0, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("layer", ["s4d", "s5"])
def test_labels_train_the_systems_apart(layer):
    model = stack(layer)
    params, static = eqx.partition(model, eqx.is_inexact_array)
    labels = ssm.param_labels(params)
    for block in labels.blocks:
        names = ("log_decay", "frequency", "b", "log_dt")
        assert {getattr(block.layer, name) for name in names} == {"ssm"}
        assert (block.layer.c, block.layer.d) == ("other", "other")
    assert jax.tree.leaves(labels).count("ssm") == 8
    assert labels.encoder.weight == "other"
    optimizer = optax.multi_transform(
        {"ssm": optax.sgd(0.0), "other": optax.sgd(0.1)}, ssm.param_labels
    )

    def loss(params):
        return jnp.sum(eqx.combine(params, static)(jnp.ones((5, 2))) ** 2)

    grads = jax.jit(jax.grad(loss))(params)
    assert all(np.all(np.isfinite(g)) for g in jax.tree.leaves(grads))
    updates, _ = optimizer.update(grads, optimizer.init(params))
    after = eqx.apply_updates(params, updates)
    assert all(np.any(g != 0) for g in jax.tree.leaves(grads.blocks[0].layer))
    np.testing.assert_array_equal(
        after.blocks[0].layer.frequency, params.blocks[0].layer.frequency
    )
    assert np.any(after.blocks[0].layer.c != params.blocks[0].layer.c)


def test_adamw_decays_no_system_and_follows_its_schedule():
    params = eqx.filter(stack(), eqx.is_inexact_array)
    optimizer = ssm.adamw(
        0.1, 0.01, weight_decay=0.5, schedule=lambda step: jnp.where(step < 1, 1.0, 0.5)
    )
    grads, state = jax.tree.map(jnp.ones_like, params), optimizer.init(params)
    for factor in (1.0, 0.5):
        updates, state = optimizer.update(grads, state, params)
        block, own = updates.blocks[0], params.blocks[0]
        np.testing.assert_allclose(block.layer.b, -0.01 * factor, rtol=1e-4)
        wanted = -0.1 * factor * (1 + 0.5 * own.layer.c)
        np.testing.assert_allclose(block.layer.c, wanted, atol=1e-6)


@pytest.mark.parametrize("layer", [ssm.S4D, ssm.S4DPTD, ssm.S5, ssm.S5PTD])
def test_layers_list_what_they_pass_on(layer):
    parameters = inspect.signature(layer).parameters
    assert parameters["dt_max"].default == 0.1
    assert "\n    dt_max: The largest step.\n" in inspect.getdoc(layer.__init__)
    if "ptd_method" in parameters:
        assert parameters["eps"].default == 1e-4
    with pytest.raises(TypeError, match="'dt_mim'; did you mean 'dt_min'"):
        layer(jr.key(0), 3, 8, dt_mim=0.1)


@pytest.mark.misuse  # of the type, that is
@pytest.mark.parametrize("layer", [ssm.S4D, ssm.S4DPTD, ssm.S5, ssm.S5PTD])
def test_sizes_may_be_those_of_numpy(layer):
    made = (layer(jr.key(0), of(3), of(8)) for of in (int, np.int64))
    assert eqx.tree_equal(*made)


@pytest.mark.misuse
@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (
            lambda: ssm.S4D(jr.key(0), 0),
            "`num_features` must be an integer >= 1, got 0",
        ),
        (lambda: ssm.S4D(jr.key(0), 3, 7), "`num_states` must be even, got 7"),
        (lambda: ssm.S4D(jr.key(0), 3.0), "`num_features` must be an integer >= 1"),
        (lambda: ssm.S5(jr.key(0), 3, 8.0), "`num_states` must be an integer >= 2"),
        (lambda: stack(num_layers=2.0), "`num_layers` must be an integer >= 1"),
        (lambda: ssm.S4D(jr.key(0), 3, kind="x"), "Unknown kind 'x'"),
        (lambda: ssm.S4D(jr.key(0), 3, method="x"), "Unknown method 'x'"),
        (
            lambda: ssm.S4D(jr.key(0), 3, dt_min=0.2),
            "`dt_min` and `dt_max` must be 0 < dt_min <= dt_max, got 0.2 and 0.1",
        ),
        (
            lambda: ssm.S5(jr.key(0), 3, 6, num_blocks=2),
            "`num_blocks` must divide `num_states` into even parts, got 2 and 6",
        ),
        (lambda: stack(pooling="max"), "Unknown pooling 'max'"),
        (lambda: stack(num_tokens=3), "`num_inputs` or `num_tokens`, and not both"),
        (lambda: stack(dropout=1.0), r"`dropout` must be in \[0, 1\), got 1.0"),
        (lambda: stack(num_layers=0), "`num_layers` must be an integer >= 1, got 0"),
        (
            lambda: stack(is_bidirectional=True).init_state(),
            "A bidirectional Stack has no state",
        ),
        (
            lambda: stack()(jnp.ones((4, 2)), jnp.asarray(5)),
            r"`length` must be in \[1, 4\], got .*5",
        ),
        (
            lambda: stack()(jnp.ones((4, 2)), dt_scale=0.0),
            r"`dt_scale` must be positive and finite, got 0\.0",
        ),
        (
            lambda: stack()(jnp.ones((3, 2)), dt_scale=jnp.ones(3)),
            r"`dt_scale` must be a number here, got shape \(3,\)",
        ),
        (
            lambda: stack("s5").scan(jnp.ones((4, 2)), length=5),
            r"`lengths` must be in \[0, 4\], got 5",
        ),
        (
            lambda: LAYERS["s5"](jr.key(0)).scan(jnp.ones((4, 3)), length=-1),
            r"`lengths` must be in \[0, 4\], got -1",
        ),
        (
            lambda: LAYERS["s4d"](jr.key(0))(jnp.ones((4, 1))),
            r"`u` must have 3 features, got shape \(4, 1\)",
        ),
        (
            lambda: ssm.Stack(jr.key(0), LAYERS["s4d"], 5, 2, num_inputs=1),
            "`layer_fn` must make layers of 5 features, as `num_features` says, got 3",
        ),
        (
            lambda: LAYERS["s5"](jr.key(0))(jnp.ones((4, 3)), dt_scale=jnp.ones(5)),
            r"`dt_scale` must be a number or have shape \(4,\), got shape \(5,\)",
        ),
        (
            lambda: stack()(jnp.ones((4, 2)), jnp.asarray(3.5)),
            "`length` must be a whole number",
        ),
        (
            lambda: stack()(jnp.ones((4, 2)), jnp.asarray([3, 4])),
            "`length` must be a whole number",
        ),
        (
            lambda: ssm.Stack(jr.key(0), LAYERS["s4d"], 3, 2, num_inputs=0),
            "`num_inputs` must be an integer >= 1, got 0",
        ),
        (
            lambda: stack()(jnp.ones((4, 2)), jnp.asarray(0)),
            r"`length` must be in \[1, 4\], got .*0",
        ),
    ],
)
def test_misuse(call, sentence):
    with pytest.raises(ValueError, match=sentence):
        call()
