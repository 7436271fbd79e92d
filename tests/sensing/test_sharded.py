"""Measurements spread over eight devices, in a process that sees eight."""

import re

import chex
import jax
import jax.random as jr
import numpy as np
import pytest

from jaxlr import sensing
from jaxlr.core import loop
from tests.devices import Forced


EIGHT = Forced(8)


@pytest.mark.slow
@EIGHT.starter
def test_on_eight_devices():
    EIGHT.rerun(__file__)


def problem_of(make=sensing.gaussian, m=480, **settings):
    truth = sensing.low_rank(jr.key(0), (12, 12), 2, is_psd=True)
    return sensing.measure(make(jr.key(1), (12, 12), m, **settings), truth)


SOLVERS = {
    "gd": lambda p: sensing.gd(p, num_columns=3, eta=0.3),
    "gd_l1": lambda p: sensing.gd(p, num_columns=3, eta=0.01, loss="l1"),
    "symmetric": lambda p: sensing.gd(p, num_columns=3, eta=0.3, is_symmetric=True),
    "gauss_newton": lambda p: sensing.gauss_newton(p, num_columns=2),
    "soft_impute": lambda p: sensing.soft_impute(p, penalty=0.1, eta=0.2),
    "scaled_gd": lambda p: sensing.scaled_gd(p, num_columns=2),
    "subgm": lambda p: sensing.subgm(p, num_columns=3, alpha=0.1, decay=0.9),
}


@EIGHT.needed
@pytest.mark.parametrize("name", SOLVERS)
def test_eight_devices_give_the_run_of_one(name):
    assert jax.device_count() == 8
    problem = jax.device_put(problem_of(), jax.devices()[0])
    want = loop.run(jr.key(2), SOLVERS[name](problem), 30)
    got = sensing.run_sharded(jr.key(2), SOLVERS[name], problem, 30)
    chex.assert_trees_all_close(got[1], want[1], rtol=2e-3, atol=2e-5)
    # Not the factors: singular vectors, where some start, have no signs.
    np.testing.assert_allclose(matrix_of(got[0]), matrix_of(want[0]), atol=2e-5)


def matrix_of(state):
    return state.x if hasattr(state, "x") else state.factors[0] @ state.factors[1].T


@EIGHT.needed
def test_packed_and_symmetric_ensembles_are_spread_too():
    for problem in (
        problem_of(sensing.rademacher, storage="packed"),
        problem_of(sensing.symmetric_gaussian),
    ):
        want = loop.run(jr.key(2), SOLVERS["gd"](problem), 30)
        got = sensing.run_sharded(jr.key(2), SOLVERS["gd"], problem, 30)
        chex.assert_trees_all_close(got, want, rtol=2e-3, atol=2e-5)


@EIGHT.needed
def test_a_step_sends_one_message():
    problem = problem_of()

    def hlo(num_steps):
        run = jax.jit(
            lambda key: sensing.run_sharded(key, SOLVERS["gd"], problem, num_steps)
        )
        return run.lower(jr.key(0)).as_text()

    # Beside the one in the loop's body: the norm of y, once, before the loop.
    assert len(re.findall("stablehlo.all_reduce", hlo(7))) == 2


@EIGHT.needed
@pytest.mark.misuse
def test_misuse_is_named():
    with pytest.raises(ValueError, match=r"multiple of the 8 `devices`, got 481"):
        sensing.run_sharded(jr.key(0), SOLVERS["gd"], problem_of(m=481), 3)
    drawn = problem_of(storage="regenerate")
    with pytest.raises(ValueError, match="stored or packed rows to be spread"):
        sensing.run_sharded(jr.key(0), SOLVERS["gd"], drawn, 3)
