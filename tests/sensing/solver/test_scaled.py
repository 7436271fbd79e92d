"""Preconditioned descent: the formula, optax chains, condition numbers, noise."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import pytest

from jaxlr import sensing
from jaxlr.core import loop
from jaxlr.core.compat import x64
from jaxlr.sensing import theory


def population(condition, n=20, rank=2, **settings):
    truth = sensing.low_rank(jr.key(0), (n, n), rank, condition=condition, **settings)
    return sensing.measure(sensing.identity((n, n)), truth)


@pytest.mark.parametrize("is_symmetric", [False, True])
def test_the_preconditioner_is_the_formula(is_symmetric):
    rng = np.random.default_rng(0)
    f, g, df, dg = (rng.normal(size=(n, 3)) for n in (7, 6, 7, 6))
    with x64(True):
        transformation = sensing.scale_by_gram(0.3)
        params = sensing.Factors(
            jnp.asarray(f), None if is_symmetric else jnp.asarray(g)
        )
        grad = sensing.Factors(
            jnp.asarray(df), None if is_symmetric else jnp.asarray(dg)
        )
        got, state = transformation.update(grad, transformation.init(params), params)
        assert state == 1
    other = f if is_symmetric else g
    inverse = np.linalg.inv(other.T @ other + 0.3 * np.eye(3))
    np.testing.assert_allclose(got.f, df @ inverse, rtol=1e-10)
    if is_symmetric:
        assert got.g is None
    else:
        inverse = np.linalg.inv(f.T @ f + 0.3 * np.eye(3))
        np.testing.assert_allclose(got.g, dg @ inverse, rtol=1e-10)


@pytest.mark.parametrize("is_symmetric", [False, True])
def test_the_dampings_are_those_of_the_methods(is_symmetric):
    """A step of each against `scaled_gd` at the damping that it should have."""
    with x64(True):
        problem = population(5.0, is_psd=is_symmetric)
        settings = {
            "num_columns": 3,
            "eta": 0.3,
            "start": "random",
            "is_symmetric": is_symmetric,
        }
        state = sensing.scaled_gd(problem, **settings).init(jr.key(1))
        residual = jnp.linalg.norm(state.factors[0] @ state.factors[1].T - problem.y)
        for solver, damping in (
            (sensing.prec_gd(problem, damping=0.7, **settings), 0.7 * residual),
            (sensing.noisy_prec_gd(problem, damping=0.7, decay=0.5, **settings), 0.7),
        ):
            want = sensing.scaled_gd(problem, damping=damping, **settings)
            got, _ = solver.step(jr.key(2), solver.init(jr.key(1)))
            np.testing.assert_allclose(
                got.f, want.step(jr.key(2), state)[0].f, rtol=1e-10
            )
        noisy = sensing.noisy_prec_gd(problem, damping=0.7, decay=0.5, **settings)
        got, _ = noisy.step(jr.key(2), noisy.init(jr.key(1)))
        second, _ = noisy.step(jr.key(2), got)
        half = sensing.scaled_gd(problem, damping=0.35, **settings)
        np.testing.assert_allclose(second.f, half.step(jr.key(2), got)[0].f, rtol=1e-10)


def test_any_chain_takes_the_preconditioner():
    with x64(True):
        problem = population(30.0)
        chain = optax.chain(
            sensing.scale_by_gram(lambda count, loss: 0.1 * jnp.sqrt(loss)),
            optax.trace(0.5),
            optax.scale(-0.3),
        )
        solver = sensing.descend(problem, chain, num_columns=3)
        assert loop.run(jr.key(1), solver, 150)[1].relative_error[-1] < 1e-6


def test_the_condition_number_does_not_matter_where_it_does_for_gd():
    def steps(make, condition, **settings):
        problem = population(condition)
        solver = make(problem, num_columns=2, eta=0.3, start="spectral", **settings)
        start = solver.init(jr.key(1))._replace(
            f=0.9 * solver.init(jr.key(1)).f
        )  # the spectral start of the population is the solution
        errors = loop.run(jr.key(1), solver, 400, state=start)[1].relative_error
        return int(jnp.argmax(errors < 1e-3 / condition))

    scaled = [steps(sensing.scaled_gd, c) for c in (1.0, 30.0)]
    plain = [steps(sensing.gd, c) for c in (1.0, 30.0)]
    assert 0 < scaled[1] <= 2 * scaled[0]
    assert plain[1] == 0 or plain[1] > 4 * plain[0]  # 0: not in 400 steps


@pytest.mark.slow
@pytest.mark.parametrize("is_symmetric", [False, True])
def test_the_error_under_noise_is_that_of_least_squares(is_symmetric):
    with x64(True):
        n, rank, m = 20, 2, 500
        truth = sensing.low_rank(jr.key(0), (n, n), rank, is_psd=is_symmetric)
        make = sensing.symmetric_gaussian if is_symmetric else sensing.gaussian

        def square(key):
            parts = jr.split(key)
            clean = sensing.measure(make(parts[0], (n, n), m), truth)
            problem = sensing.add_noise(parts[1], clean, 1e-4)
            solver = sensing.scaled_gd(
                problem, num_columns=rank, is_symmetric=is_symmetric
            )
            f, g = loop.run(key, solver, 100)[0].factors
            return jnp.sum((f @ g.T - truth) ** 2)

        mean = jnp.mean(jax.vmap(square)(jr.split(jr.key(3), 40)))
        want = theory.noise_floor((n, n), rank, m, std=1e-4, is_symmetric=is_symmetric)
        np.testing.assert_allclose(mean, want, rtol=0.08)


@pytest.mark.misuse
def test_misuse_is_named():
    transformation = sensing.scale_by_gram(lambda count, loss: loss)
    params = sensing.Factors(jnp.ones((3, 2)), None)
    state = transformation.init(params)
    with pytest.raises(ValueError, match="`scale_by_gram` needs `params`, got None"):
        transformation.update(params, state)
    with pytest.raises(ValueError, match="function of the loss: give `value`"):
        transformation.update(params, state, params)
    levels = sensing.quantize(jr.key(0), population(1.0), sensing.Quantizer([0.0], 1.0))
    with pytest.raises(ValueError, match="`prec_gd` needs measurements that are num"):
        sensing.prec_gd(levels, num_columns=2)
    with pytest.raises(ValueError, match=r"`loss` must be l2, .*got 'l1'"):
        sensing.prec_gd(population(1.0), num_columns=2, loss="l1")


@pytest.mark.parametrize("make", [sensing.prec_gd, sensing.noisy_prec_gd])
@pytest.mark.parametrize("is_symmetric", [False, True])
def test_a_solution_is_kept(make, is_symmetric):
    """Long after the damping has fallen to nothing, with more columns than the rank."""
    with x64(True):
        problem = population(5.0, is_psd=is_symmetric)
        solver = make(problem, num_columns=6, eta=0.5, is_symmetric=is_symmetric)
        errors = loop.run(jr.key(1), solver, 1000)[1].relative_error
        assert np.all(np.asarray(errors)[400:] < 1e-9)
