"""What experiments share, against loops and formulas in NumPy."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import pytest
import xarray as xr

from experiments.common import networks, photographs, training
from jaxlr import sensing
from jaxlr.core import epoch_batch, loop, Solver


class Data:
    """Ten examples of a linear model."""

    x = np.random.default_rng(0).normal(size=(10, 3)).astype(np.float32)
    labels = np.random.default_rng(1).normal(size=10).astype(np.float32)


class Sizes:
    """Three epochs of two batches, which leave two examples out."""

    num_epochs, batch_size = 3, 4


def squares(w, x, labels):
    return jnp.sum((x @ w - labels) ** 2)


def train(value_and_grad_fn=None):
    return training.train_epochs(
        jr.key(1),
        jr.key(2),
        Sizes,
        Data,
        loss_fn=squares,
        params_fn=lambda _: jnp.zeros(3),
        optimizer_fn=lambda num_steps: optax.sgd(0.06 / num_steps),
        watch_fn=lambda w: (w, jnp.sum(w)),
        value_and_grad_fn=value_and_grad_fn,
    )


@pytest.mark.parametrize("factor", [1, 2])
def test_training_by_epochs_is_descent_by_hand(factor):
    def scaled(w, x, labels):
        return jax.value_and_grad(lambda w: factor * squares(w, x, labels))(w)

    found, losses, (seen, total) = train(None if factor == 1 else scaled)
    w, wanted_losses, wanted_seen = np.zeros(3), [], []
    for step in range(6):
        i = np.asarray(epoch_batch(jr.key(1), step, 10, 4))
        gap = Data.x[i] @ w - Data.labels[i]
        if step % 2 == 0:
            wanted_losses.append(np.sum(gap**2))
            wanted_seen.append(w)
        w = w - 0.01 * factor * 2 * Data.x[i].T @ gap
    np.testing.assert_allclose(found, w, rtol=1e-4)
    np.testing.assert_allclose(losses, wanted_losses, rtol=1e-4)
    np.testing.assert_allclose(seen, wanted_seen, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(total, np.sum(wanted_seen, 1), rtol=1e-4, atol=1e-6)


def test_batches_of_an_epoch_take_the_same_rows_of_all_arrays():
    batch = training.epoch_batches(jr.key(0), 5, jnp.arange(10), -jnp.arange(10))
    first, second = batch(None, jnp.asarray(4)), batch(None, jnp.asarray(5))
    assert sorted([*first[0].tolist(), *second[0].tolist()]) == list(range(10))
    np.testing.assert_array_equal(first[1], -first[0])


def test_after_blocks_drops_what_was_before_the_first():
    before = jnp.arange(3.0), jnp.arange(6).reshape(3, 2)
    found = training.after_blocks(before, (jnp.asarray(9.0), jnp.asarray([7, 8])))
    np.testing.assert_array_equal(found[0], [1, 2, 9])
    np.testing.assert_array_equal(found[1], [[2, 3], [4, 5], [7, 8]])


def test_parameters_are_the_numbers_that_are_trained():
    model = eqx.nn.MLP(3, 2, 5, 1, key=jr.key(0)), jnp.arange(7), "name"
    assert training.num_parameters(model) == (3 + 1) * 5 + (5 + 1) * 2


@pytest.mark.parametrize(
    ("errors", "best"),
    [((3, 1, 2, 0), 1), ((1, 2, 3, 0), 0), ((3, 2, np.nan, 0), 1), ((2, 1, 1, 0), 1)],
)
def test_the_image_of_least_error_before_the_last_state_is_kept(errors, best):
    errors = jnp.asarray(errors, float)
    solver = Solver(lambda _: jnp.asarray(0), lambda _, t: (t + 1, 10 * t))
    solver = photographs.keep_best(
        solver, lambda t: jnp.stack([errors[t], t]), lambda image: image[0]
    )
    assert jnp.isinf(solver.init(jr.key(0)).error)
    kept, infos = loop.run(jr.key(0), solver, 3)
    assert kept.state == 3
    np.testing.assert_array_equal(kept.image, [errors[best], best])
    assert kept.error == errors[best]
    np.testing.assert_array_equal(infos, [0, 10, 20])


def test_every_tenth_measurement_is_held_out():
    operator = sensing.gaussian(jr.key(0), (4, 5), 34)
    x = jr.normal(jr.key(1), (4, 5))
    fitted, held, is_held = photographs.hold_out(operator)
    assert np.flatnonzero(is_held).tolist() == [9, 19, 29]
    y = np.sqrt(34) * np.asarray(operator.apply(x))  # of entries of variance 1
    np.testing.assert_allclose(np.sqrt(3) * held.apply(x), y[is_held], rtol=1e-5)
    np.testing.assert_allclose(np.sqrt(31) * fitted.apply(x), y[~is_held], rtol=1e-4)


def test_a_problem_is_normalized_by_its_estimated_norm():
    rows, cols = np.array([0, 1, 2, 2]), np.array([1, 0, 0, 2])
    y = np.array([3.0, -1.0, 4.0, 2.0])
    problem, scale = photographs.normalized(
        sensing.entries(rows, cols, (3, 4)), jnp.asarray(y), jnp.asarray(0.5)
    )
    seen = np.zeros((3, 4))
    seen[rows, cols] = (y - 0.5) * 12 / 4
    np.testing.assert_allclose(scale, np.linalg.svd(seen)[1][0], rtol=1e-5)
    np.testing.assert_allclose(problem.y, (y - 0.5) / scale, rtol=1e-5)


@pytest.mark.parametrize(("redrawn", "share"), [([0, 2], 0.5), ([], 0.0), ([0], 1.0)])
def test_what_training_ended_in_counts_redrawn_labels(redrawn, share):
    class Digits:
        x, labels = jnp.eye(4), jnp.asarray([0, 1, 3, 0])  # of which 2 are right
        test_x, test_labels = jnp.eye(4)[::-1], jnp.asarray([3, 2, 1, 2])

    is_redrawn = jnp.zeros(4, bool).at[jnp.asarray(redrawn, int)].set(True)
    curve = jnp.arange(3.0)
    found = networks.flatness_metrics(
        lambda x: 2 * x, Digits, is_redrawn, curve, curve / 2, jnp.asarray(7.0)
    )
    assert found.memorized == share
    assert found.accuracy == 0.75
    assert found.curvature == 7
    np.testing.assert_array_equal(found.loss, 2 * found.test_accuracy)


def test_models_of_one_sequence_are_judged_by_the_batch():
    w = np.random.default_rng(2).normal(size=(4, 3))
    x = np.random.default_rng(3).normal(size=(6, 4))
    labels = np.array([0, 1, 2, 0, 1, 2])
    logits = x @ w
    wanted = np.log(np.sum(np.exp(logits), 1)) - logits[np.arange(6), labels]

    def model(one):
        assert one.shape == (4,)
        return one @ jnp.asarray(w)

    found = networks.sequence_loss(model, jnp.asarray(x), jnp.asarray(labels))
    np.testing.assert_allclose(found, np.mean(wanted), rtol=1e-5)
    share = networks.sequence_accuracy(model, jnp.asarray(x), jnp.asarray(labels))
    np.testing.assert_allclose(share, np.mean(np.argmax(logits, 1) == labels))


def test_epochs_are_counted_beside_the_steps():
    results = xr.Dataset({"loss": ("step", np.ones(3))}, {"step": [0, 20, 40]})
    assert networks.by_epoch(results, 1)["epoch"].values.tolist() == [1, 2, 3]
    assert networks.by_epoch(results).swap_dims(step="epoch").sel(epoch=1).step == 20
