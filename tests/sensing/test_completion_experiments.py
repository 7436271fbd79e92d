"""The experiments of completion: the target alone."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from experiments.sensing import completion, completion_photograph
from jaxlr.core.compat import x64


@functools.cache
def sweeps(num_inner, num_seeds=5):
    """Sweeps to 1e-6 and the last error, four entries per degree of freedom."""
    hparams = completion.HParams(
        num_inner=num_inner, percent=400, n=120, rank=3, num_steps=50
    )
    with x64(True):
        keys = jax.vmap(lambda i: jr.fold_in(jr.key(1), i))(jnp.arange(num_seeds))
        out = jax.jit(jax.vmap(lambda key: completion.run(key, hparams)))(keys)
        return np.asarray(out.num_sweeps), np.asarray(out.error[:, -1])


@pytest.mark.slow
def test_target_two_inner_iterations_suffice_and_one_does_not():
    (exact, error), (one, _), (two, two_error) = map(sweeps, (0, 1, 2))
    assert max(error.max(), two_error.max()) <= 1e-6
    assert np.all(np.abs(two / exact - 1) <= 0.15)
    assert np.all(one > exact)


SMALL = completion_photograph.HParams(size=32, num_steps=3, num_columns=4)


def test_algorithms_see_the_same_pixels_and_as_many_as_asked_for():
    outs = []
    for algorithm in ("exact", "soft_impute"):  # "sketched" takes long to compile
        hparams = dataclasses.replace(SMALL, algorithm=algorithm, percent=60)
        run = jax.jit(functools.partial(completion_photograph.run, hparams=hparams))
        outs.append(jax.tree.map(np.asarray, run(jr.key(0))))
    first = outs[0]
    is_seen = first.observed == first.original
    assert is_seen.mean() == pytest.approx(0.6, abs=0.01)
    assert set(first.observed[~is_seen]) == {255}
    for out in outs:
        np.testing.assert_array_equal(out.observed, first.observed)
        # Before the first sweep X = 0 for soft-impute: the mean of what is seen.
        assert 5 < out.psnr[0] < out.recovered_psnr + 1e-3
        assert out.weight in np.asarray(completion_photograph.WEIGHTS, np.float32)
        mse = np.mean((out.recovered / 255.0 - out.original / 255.0) ** 2)
        assert -10 * np.log10(mse) == pytest.approx(out.recovered_psnr, abs=0.2)


@pytest.mark.misuse
def test_misuse_is_named():
    hparams = dataclasses.replace(SMALL, algorithm="soft-impute")
    with pytest.raises(ValueError, match="did you mean 'soft_impute'"):
        completion_photograph.run(jr.key(0), hparams)
    with pytest.raises(ValueError, match="`rank` must be in"):
        completion.run(jr.key(0), completion.HParams(n=2, rank=3))
