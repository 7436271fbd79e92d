"""The experiments with gross errors: the target alone, and its limit."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from experiments.sensing import outliers, robust_photograph
from jaxlr.core.compat import x64


@functools.cache
def runner(experiment):
    """One compilation for all cells that share their static settings."""

    def run(key, moving):
        return experiment.run(key, dataclasses.replace(experiment.hparams, **moving))

    return jax.jit(run)


def cell(seed=0, num_columns=20, outlier_share=0.1, alpha=1e-6):
    """One run at the settings of the target row, as the sweep would trace it."""
    with x64(True):
        moving = {
            "num_columns": jnp.asarray(num_columns),
            "outlier_share": jnp.asarray(outlier_share),
            "alpha": jnp.asarray(alpha),
        }
        run = runner(outliers.EXPERIMENT)
        return jax.tree.map(np.asarray, run(jr.fold_in(jr.key(0), seed), moving))


@pytest.mark.parametrize(("width", "share"), [(2, 0.0), (20, 0.1), (5, 0.3)])
def test_target_subgm_ignores_width_and_outliers(width, share):
    out = cell(num_columns=width, outlier_share=share)
    assert out.subgm_final <= 5e-7
    if share:
        assert out.l2_final >= 0.3
        assert 1e-3 <= out.huber_final <= 0.2


def test_what_is_left_is_what_the_start_has_grown_to():
    """The exception in the docstring: one of 4 seeds in 24."""
    hardest = {"seed": 23, "num_columns": 5, "outlier_share": 0.3}
    assert 1e-6 < cell(**hardest).subgm_final < 1e-4
    assert cell(**hardest, alpha=1e-7).subgm_final <= 1e-6


def test_sign_scale_falls_as_the_share_of_outliers_grows():
    few, many = (cell(outlier_share=share) for share in (0.0, 0.6))
    for out in (few, many):
        assert out.sign_scale == pytest.approx(out.predicted_sign_scale, rel=0.15)
    assert many.sign_scale < 0.6 * few.sign_scale


SMALL = robust_photograph.HParams(size=64, num_steps=2, num_columns=8)


def test_wrong_pixels_are_the_share_asked_for_and_nested():
    run = runner(robust_photograph.EXPERIMENT.replace(hparams=SMALL))

    def observed(share):
        out = run(jr.key(0), {"outlier_share": jnp.asarray(share)})
        return np.asarray(out.observed, int), np.asarray(out.original, int)

    (clean, original), (few, _), (many, _) = map(observed, (0.0, 0.1, 0.3))
    is_seen = clean == original
    assert is_seen.mean() == pytest.approx(0.8, abs=0.02)
    assert set(clean[~is_seen].ravel()) == {128}
    for image, share in ((few, 0.1), (many, 0.3)):
        is_wrong = image != clean
        assert is_wrong.mean() == pytest.approx(0.8 * share, abs=0.02)
        assert set(image[is_wrong].ravel()) == {0, 255}
    np.testing.assert_array_equal((few != clean) & (many == clean), False)


@pytest.mark.misuse
def test_misuse_is_named():
    with pytest.raises(ValueError, match=r"'chian'.*did you mean 'china'"):
        robust_photograph.run(jr.key(0), dataclasses.replace(SMALL, photo="chian"))
    with pytest.raises(ValueError, match=r"`rank` must be in 1\.\.2, got 3"):
        outliers.run(jr.key(0), outliers.HParams(n=2, rank=3))
