"""The dense network and its losses against NumPy in float64."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from jaxlr import sharpness
from jaxlr.core.compat import x64


SIZES = (6, 9, 8, 4)


def make():
    """A network, biases not zero, examples, labels; drawn by NumPy."""
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(lambda: sharpness.MLP(jr.key(0), SIZES))
    model = jax.tree.map(lambda s: jnp.array(rng.normal(size=s.shape) / 2), shapes)
    labels = jnp.array(rng.integers(4, size=20))
    return model, jnp.array(rng.normal(size=(20, 6))), labels


def numpy_mlp(model, x):
    """Inputs of every layer, and the outputs."""
    hidden = [np.asarray(x)]
    pairs = list(zip(model.weights, model.biases, strict=True))
    for w, b in pairs[:-1]:
        hidden.append(np.maximum(hidden[-1] @ np.asarray(w) + np.asarray(b), 0))
    w, b = map(np.asarray, pairs[-1])
    return hidden, hidden[-1] @ w + b


def numpy_loss(model, x, labels):
    """Mean of -log of the label's probability, and its gradient by hand."""
    hidden, logits = numpy_mlp(model, x)
    p = np.exp(logits - logits.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    rows = np.arange(len(labels))
    loss = -np.log(p[rows, labels]).mean()
    p[rows, labels] -= 1
    d, weights, biases = p / len(labels), [], []
    for w, h in zip(model.weights[::-1], hidden[::-1], strict=True):
        weights.insert(0, h.T @ d)
        biases.insert(0, d.sum(0))
        d = (d @ np.asarray(w).T) * (h > 0)
    return loss, weights, biases


def test_outputs_loss_and_gradient_are_those_of_numpy():
    with x64(True):
        model, x, labels = make()
        np.testing.assert_allclose(model(x), numpy_mlp(model, x)[1], rtol=1e-12)
        loss, grads = jax.jit(jax.value_and_grad(sharpness.cross_entropy))(
            model, x, labels
        )
        want, weights, biases = numpy_loss(model, x, np.asarray(labels))
        np.testing.assert_allclose(loss, want, rtol=1e-12)
        for got, oracle in zip(
            (*grads.weights, *grads.biases), (*weights, *biases), strict=True
        ):
            np.testing.assert_allclose(got, oracle, rtol=1e-10, atol=1e-14)


def test_outputs_of_one_example_and_of_stacked_batches():
    model, x, _ = make()
    want = model(x)
    np.testing.assert_allclose(model(x[3]), want[3], rtol=1e-4, atol=1e-6)
    stacked = model(x.reshape(4, 5, 6))
    np.testing.assert_allclose(stacked.reshape(20, 4), want, rtol=1e-4, atol=1e-6)


def test_accuracy_is_a_share():
    model, x, _ = make()
    best = np.asarray(model(x)).argmax(1)
    labels = np.where(np.arange(20) < 7, best, (best + 1) % 4)
    assert sharpness.accuracy(model, x, jnp.asarray(labels)) == pytest.approx(0.35)


def test_cross_entropy_is_in_nats_and_finite_at_large_outputs():
    model, x, labels = make()
    flat = jax.tree.map(jnp.zeros_like, model)
    assert sharpness.cross_entropy(flat, x, labels) == pytest.approx(np.log(4))
    steep = jax.tree.map(lambda w: 1e6 * w, model)
    loss, grads = jax.jit(jax.value_and_grad(sharpness.cross_entropy))(steep, x, labels)
    assert np.isfinite(loss)
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(grads))


def test_weights_have_the_variance_of_he():
    model = sharpness.MLP(jr.key(0), (300, 200, 100, 10))
    shapes = [w.shape for w in model.weights]
    assert shapes == [(300, 200), (200, 100), (100, 10)]
    for w, b in zip(model.weights, model.biases, strict=True):
        w = np.asarray(w)
        deviation = (2 / w.shape[0]) ** 0.5
        assert abs(w.std() / deviation - 1) <= 4 / (2 * w.size) ** 0.5
        assert abs(w.mean()) <= 4 * deviation / w.size**0.5
        np.testing.assert_array_equal(b, np.zeros(w.shape[1]))
    heads = [np.asarray(w).ravel()[:500] * w.shape[0] ** 0.5 for w in model.weights]
    assert np.abs(np.corrcoef(heads) - np.eye(3)).max() <= 4 / 500**0.5


def test_networks_are_drawn_and_applied_under_vmap():
    keys, x = jr.split(jr.key(0), 3), make()[1]
    many = jax.jit(jax.vmap(lambda key: sharpness.MLP(key, SIZES)))(keys)
    outputs = jax.jit(jax.vmap(lambda model: model(x)))(many)
    assert outputs.shape == (3, 20, 4)
    for i, key in enumerate(keys):
        one = sharpness.MLP(key, SIZES)(x)
        np.testing.assert_allclose(outputs[i], one, rtol=1e-4, atol=1e-5)


def test_its_layers_are_dense_to_ghost():
    with x64(True):
        model, x, labels = make()
        (loss, grads), (want, oracle) = (
            jax.jit(
                sharpness.sam_value_and_grad(
                    sharpness.cross_entropy, 0.5, num_shards=4, backend=backend
                )
            )(model, x, labels)
            for backend in ("ghost", "scan")
        )
        np.testing.assert_allclose(loss, want, rtol=1e-12)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-13),
            grads,
            oracle,
        )


@pytest.mark.misuse
@pytest.mark.parametrize("sizes", [(), (4,), (4, 0, 2), (4, 2.5, 2)])
def test_sizes_are_named(sizes):
    with pytest.raises(ValueError, match=r"`sizes` must be (two numbers|an integer)"):
        sharpness.MLP(jr.key(0), sizes)
