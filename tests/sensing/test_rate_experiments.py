"""Conditioning, precision, phase transition: targets on their own."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from experiments.sensing import conditioning, phase_transition, precision
from jaxlr import sensing
from jaxlr.core.compat import x64


MODULES = {
    "conditioning": conditioning,
    "precision": precision,
    "phase_transition": phase_transition,
}


@functools.cache
def runner(module, **fixed):
    """One compilation for all cells that share their static settings."""
    hparams = dataclasses.replace(MODULES[module].HParams(), **fixed)

    def run(key, moving):
        return MODULES[module].run(key, dataclasses.replace(hparams, **moving))

    return jax.jit(jax.vmap(run, in_axes=(0, None)))


def cells(module, num_seeds=2, moving=None, **fixed):
    """Seeds of one cell, as the sweep traces them, but not those that it takes."""
    with x64(MODULES[module].EXPERIMENT.x64):
        moving = {name: jnp.asarray(value) for name, value in (moving or {}).items()}
        keys = jr.split(jr.key(1), num_seeds)
        return jax.tree.map(np.asarray, runner(module, **fixed)(keys, moving))


@pytest.mark.slow
@pytest.mark.parametrize("condition", [1.0, 10.0, 100.0])
@pytest.mark.parametrize("form", conditioning.FORMS)
@pytest.mark.parametrize(("method", "most"), [("prec_gd", 110), ("scaled_gd", 50)])
def test_target_preconditioning_removes_the_condition_number(
    method, most, form, condition
):
    out = cells(
        "conditioning",
        num_seeds=5,
        method=method,
        form=form,
        moving={"condition": condition, "tolerance": 1e-9},
    )
    assert (out.num_iterations <= most).all()
    where = np.arange(5), out.num_iterations
    assert (out.error[where] <= 1e-9).all()
    assert (out.error[where[0], where[1] - 1] > 1e-9).all()


def test_iterations_that_do_not_reach_the_tolerance_are_all_counted():
    moving = {"condition": 10.0, "tolerance": 1e-30}
    out = cells("conditioning", 5, moving, method="prec_gd", form="symmetric")
    assert (out.num_iterations == 120).all()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "low", "high"), [("float32", 1e-8, 3e-6), ("bfloat16", 3e-4, 3e-3)]
)
def test_target_precision_decides_the_floor(name, low, high):
    """At m = 1500; the smoke size has all precisions."""
    out = cells("precision", precision=name, num_steps=120)
    assert (low <= out.floor).all()
    assert (out.floor <= high).all()
    assert (out.predicted > 0).all() == (name == "bfloat16")


def test_mixed_takes_each_product_from_its_own_operator():
    forward, backward = (sensing.gaussian(jr.key(i), (5, 4), 7) for i in (0, 1))
    operator = precision.Mixed((5, 4), forward, backward)
    f, g, y = (
        jr.normal(jr.key(i), s) for i, s in ((2, (5, 2)), (3, (4, 2)), (4, (7,)))
    )
    _, f_grad, g_grad = sensing.residual_gradient(operator, f, g, y)
    d = backward.adjoint(forward.apply(f @ g.T) - y)
    np.testing.assert_allclose(f_grad, d @ g, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(g_grad, d.T @ f, rtol=1e-4, atol=1e-5)


def test_relative_rounding_error_is_that_of_bfloat16():
    x = jr.normal(jr.key(0), (100_000,))
    error = x.astype(jnp.bfloat16).astype(x.dtype) - x
    mantissas = np.exp2(np.random.default_rng(0).uniform(size=100_000))
    rounded = jnp.asarray(mantissas).astype(jnp.bfloat16).astype(float)
    relative = np.sqrt(np.mean((np.asarray(rounded) / mantissas - 1) ** 2))
    np.testing.assert_allclose(relative, precision.RHO, rtol=0.01)
    ratio = jnp.linalg.norm(error) / jnp.linalg.norm(x)
    np.testing.assert_allclose(ratio, precision.RHO, rtol=0.02)


@pytest.mark.parametrize("ensemble", ["gaussian", "rank_one"])
def test_first_is_an_operator_of_its_first_measurements(ensemble):
    base = getattr(sensing, ensemble)(jr.key(0), (5, 4), 12)
    operator = phase_transition.First((5, 4), base, 7)
    x = jr.normal(jr.key(1), (5, 4))
    f, g = jr.normal(jr.key(2), (5, 2)), jr.normal(jr.key(3), (4, 2))
    z = jr.normal(jr.key(4), (12,))
    y = operator.apply(x)
    np.testing.assert_allclose(y[:7], base.apply(x)[:7], rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(y[7:], 0)
    d = operator.adjoint(z)
    np.testing.assert_allclose(jnp.vdot(y, z), jnp.vdot(x, d), rtol=1e-4)
    for got, want in zip(
        (operator.apply_factors(f, g), *operator.adjoint_factors(z, f, g)),
        (operator.apply(f @ g.T), d @ g, d.T @ f),
        strict=True,
    ):
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)
    # In the mean over operators A*A is the isotropy times the identity.
    np.testing.assert_allclose(operator.isotropy, base.isotropy * 7 / 12, rtol=1e-6)


@pytest.mark.parametrize("method", phase_transition.METHODS)
def test_recovery_needs_more_than_the_degrees_of_freedom(method):
    """At n = 16, r = 2 they are 60."""

    def share(num_measurements):
        moving = {"num_measurements": num_measurements, "rank": 2.0}
        sizes = {"n": 16, "max_rank": 3, "max_measurements": 150}
        out = cells("phase_transition", 4, moving, method=method, **sizes)
        assert np.isfinite(out.error).all()
        np.testing.assert_array_equal(out.success, out.error <= 1e-3)
        return out.success.mean()

    assert share(55.0) == 0
    assert share(140.0) == 1


def test_half_is_interpolated_and_not_made_up():
    success = np.array([[0, 1, 0], [0.25, 1, 0], [0.75, 1, 0], [1, 1, 0]], float)
    x = np.array([1.0, 2.0, 3.0, 4.0])[:, None] * np.ones(3)
    half = phase_transition._half(success, x)
    np.testing.assert_allclose(half, [2.5, np.nan, np.nan])


@pytest.mark.misuse
@pytest.mark.parametrize(
    ("module", "fields", "message"),
    [
        ("conditioning", {"method": "prec"}, "method 'prec'.*'prec_gd'"),
        ("conditioning", {"form": "symetric"}, "form 'symetric'.*'symmetric'"),
        ("precision", {"precision": "float16"}, "precision 'float16'"),
        ("precision", {"ensemble": "normal"}, "ensemble 'normal'"),
        ("phase_transition", {"method": "newton"}, "method 'newton'"),
        ("phase_transition", {"ensemble": "gausian"}, "'gausian'.*'gaussian'"),
    ],
)
def test_misuse_is_named(module, fields, message):
    hparams = MODULES[module].HParams(**fields)
    with pytest.raises(ValueError, match=message):
        MODULES[module].run(jr.key(0), hparams)
