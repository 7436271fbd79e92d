"""Which key a step draws from, and what a long run's parts are."""

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from jaxlr.core import Experiment, loop, Solver


class HParams(eqx.Module):
    """Hyper-parameters."""

    num: int = eqx.field(static=True, default=4)


WALK = Solver(jr.normal, lambda key, x: (x + jr.normal(key), x))


def long_run(**changes):
    given = {"solver": lambda key, hparams: WALK, "num_steps": 3, "hparams": HParams()}
    return Experiment(**(given | changes))


def test_step_t_draws_from_the_loop_key_and_t():
    _, loop_key = loop.split_key(jr.key(1))
    state, info = loop.take_step(WALK, loop_key, 5, jnp.ones(()))
    assert state == 1 + jr.normal(jr.fold_in(loop_key, 5))
    assert info == 1


def test_the_two_keys_are_those_of_a_run():
    init_key, loop_key = loop.split_key(jr.key(1))
    state = WALK.init(init_key)
    for t in range(3):
        state, _ = loop.take_step(WALK, loop_key, t, state)
    np.testing.assert_allclose(loop.run(jr.key(1), WALK, 3)[0], state, rtol=1e-6)


def test_num_steps_of_a_number_or_of_static_fields():
    assert loop.num_steps_of(long_run(), HParams()) == 3
    experiment = long_run(num_steps=lambda hparams: 2 * hparams.num)
    assert loop.num_steps_of(experiment, HParams(5)) == 10


def test_solver_of_splits_the_key_for_the_problem_and_for_its_run():
    seen = []

    def solver(key, hparams):
        seen.append(key)
        return WALK

    found, key = loop.solver_of(long_run(solver=solver), jr.key(2), HParams())
    assert found is WALK
    keys = [jr.key_data(k).tolist() for k in (*seen, key, jr.key(2))]
    assert len({tuple(k) for k in keys}) == 3


@pytest.mark.misuse
def test_misuse_is_named():
    with pytest.raises(ValueError, match=r"`num_steps` must be.*got 0"):
        loop.num_steps_of(long_run(num_steps=lambda hparams: 0), HParams())
    with pytest.raises(ValueError, match=r"`num_steps` must be.*got 2\.5"):
        long_run(num_steps=2.5)
    experiment = Experiment(run=lambda key, hparams: {}, hparams=HParams())
    with pytest.raises(ValueError, match="`solver`"):
        loop.solver_of(experiment, jr.key(0), HParams())
