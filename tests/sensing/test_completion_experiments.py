"""The experiments of completion: the target alone, claims that fail, the full size."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from experiments.sensing import completion, completion_photograph
from jaxlr import lab
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


@pytest.mark.full
@pytest.mark.parametrize("module", [completion, completion_photograph])
def test_claims_hold_at_full_size(module):
    results = lab.sweep(module.EXPERIMENT)
    for claim in lab.claims(module.EXPERIMENT, results):
        assert claim.holds, claim


@pytest.fixture(scope="module")
def smoke():
    """Smoke results by experiment, each computed once."""

    @functools.cache
    def of(module):
        experiment = module.EXPERIMENT.replace(**module.EXPERIMENT.smoke)
        return experiment, lab.sweep(experiment)

    return of


WRONG = [  # the lane where a variable is changed, by what factor, and who notices
    (completion, ("num_inner", 2), "error", 1e12, "share of seeds"),
    (completion, ("num_inner", 2), "num_sweeps", 1.3, "sweeps with two"),
    (completion, ("num_inner", 1), "num_sweeps", 0.7, "sweeps with one"),
    (
        completion_photograph,
        ("algorithm", "sketched"),
        "recovered_psnr",
        0.99,
        "sketched: PSNR",
    ),
    (
        completion_photograph,
        ("algorithm", "exact"),
        "undamped_psnr",
        1.6,
        "exact, k = 16: PSNR lost",
    ),
    (
        completion_photograph,
        ("num_columns", 4),
        "recovered_psnr",
        1.1,
        "exact: PSNR gained",
    ),
    (
        completion_photograph,
        ("algorithm", "soft_impute"),
        "recovered_psnr",
        1.1,
        "soft-impute: PSNR",
    ),
    (
        completion_photograph,
        ("algorithm", "soft_impute"),
        "step_gigaflops",
        0.4,
        "soft-impute: flops",
    ),
    (
        completion_photograph,
        ("algorithm", "exact"),
        "reference_psnr",
        1.3,
        "PSNR below the best",
    ),
]


@pytest.mark.slow
@pytest.mark.parametrize(("module", "where", "variable", "factor", "statement"), WRONG)
def test_claims_notice_a_wrong_result(
    smoke, module, where, variable, factor, statement
):
    experiment, results = smoke(module)
    assert all(claim.holds for claim in experiment.claims(results))
    name, value = where
    wrong = results[variable] * factor
    wrong = wrong.where(results[name] == value, results[variable])
    claims = experiment.claims(results.assign({variable: wrong}))
    assert any(c.statement.startswith(statement) and not c.holds for c in claims)


@pytest.mark.misuse
def test_misuse_is_named():
    hparams = dataclasses.replace(SMALL, algorithm="soft-impute")
    with pytest.raises(ValueError, match="did you mean 'soft_impute'"):
        completion_photograph.run(jr.key(0), hparams)
    with pytest.raises(ValueError, match="`rank` must be in"):
        completion.run(jr.key(0), completion.HParams(n=2, rank=3))
