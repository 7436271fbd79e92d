"""Until which size of entries does a polynomial replace the exponential in attention?

Three-way attention over all pairs of positions takes cubic time; with a Taylor
polynomial of the exponential it takes linear time. The exact outputs are compared with
the polynomial's, for entries of queries and keys uniform in [-B, B], values uniform in
[-1, 1] and scores divided by the number of features.

Claims. For B = 1 the largest error is at most 3e-5, 3e-7 and 3e-9 at degrees 2, 4 and
6, and every degree from 2 to 6 is ten times closer than degree 0, which ignores queries
and keys. The certified bound holds wherever it is finite, up to rounding. For B = 3
even degree 8 is off by half of the largest output: scores grow as the cube of B, the
terms of the series as a power of the scores.

Falsified if any seed misses one of these.

References:
    Alman, Song. "How to Capture Higher-order Correlations? Generalizing Matrix Softmax
    Attention to Kronecker Computation". 2023. arXiv:2310.04064: near-linear time for
    bounded entries, none beyond.
"""

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, Key
import numpy as np

from jaxlr import attention, lab
from jaxlr.core import Claim, Experiment, Hyper


class HParams(eqx.Module):
    """One cell. Static fields fix shapes; all others may be swept without compiling."""

    bound: Hyper = 1.0
    """Bound B on the entries of queries and keys [1]."""
    num_positions: int = eqx.field(static=True, default=128)
    """Number of queries, and of positions of either mode."""
    num_features: int = eqx.field(static=True, default=4)
    """Number of features d of a head."""


class Metrics(eqx.Module):
    """One number a degree."""

    error: Float[Array, " degree"]
    """Largest error of an output [1]."""
    certificate: Float[Array, " degree"]
    """What that error is at most for sure, 1e3 where nothing is sure [1]."""
    largest: Float[Array, ""]
    """Largest output [1]."""
    degrees: Float[Array, " degree"]
    """Degrees of the polynomials [1]."""


def run(key: Key[Array, ""], hparams: HParams) -> Metrics:
    """One cell."""
    shape = 5, 1, hparams.num_positions, 1, hparams.num_features
    query, *sets = jr.uniform(key, shape, minval=-1.0)
    keys, values = [hparams.bound * x for x in sets[:2]], sets[2:]
    query, scale = hparams.bound * query, 1 / hparams.num_features
    exact = attention.tensor_attention(query, keys, values, scale=scale)
    most = attention.entry_score_bound(hparams.bound, hparams.num_features, 2, scale)
    product = jnp.max(jnp.abs(values[0]), 1) * jnp.max(jnp.abs(values[1]), 1)
    errors, certificates = [], []
    for degree in DEGREES:
        out = attention.tensor_attention(
            query,
            keys,
            values,
            scale=scale,
            implementation="polynomial",
            degree=degree,
        )
        errors.append(jnp.max(jnp.abs(out - exact)))
        sure = attention.certified_error(degree, most) * jnp.max(product)
        certificates.append(jnp.where(jnp.isfinite(sure), sure, 1e3))
    return Metrics(
        error=jnp.stack(errors),
        certificate=jnp.stack(certificates),
        largest=jnp.max(jnp.abs(exact)),
        degrees=jnp.asarray(DEGREES, exact.dtype),
    )


DEGREES = (0, 2, 3, 4, 5, 6, 8)
MOST = {2: 3e-5, 4: 3e-7, 6: 3e-9}


def claims(results) -> list[Claim]:
    """Errors fall with the degree below the bound, and do not above it."""
    small, large = (lab.select(results, bound=bound) for bound in (1.0, 3.0))

    def at(cell, degree):
        return cell["error"].isel(degree=DEGREES.index(degree))

    middle = [DEGREES.index(degree) for degree in range(2, 7)]
    return [
        *(
            Claim(
                f"B = 1: largest error at degree {degree}", at(small, degree), high=most
            )
            for degree, most in MOST.items()
        ),
        Claim(
            "B = 1: error of degree 0 over those of degrees 2 to 6",
            at(small, 0) / small["error"].isel(degree=middle),
            low=10,
        ),
        Claim(
            "error over certificate and 1e-13 of rounding, all bounds and degrees",
            results["error"] / (results["certificate"] + 1e-13),
            high=1,
        ),
        Claim(
            "B = 3: error of degree 8 over the largest output",
            at(large, 8) / large["largest"],
            low=0.5,
        ),
    ]


def figure(results):
    """Errors over degrees, and over bounds."""
    page, (by_degree, by_bound) = lab.panels(1, 2, size=(11, 4.4))
    results = results.assign_coords(degree=("degree", np.asarray(DEGREES)))
    for i, bound in enumerate(results["bound"].values):
        cell = lab.select(results, bound=float(bound)).squeeze("bound")["error"]
        style = {"color": f"C{i}", "label": f"B = {bound:g}", "marker": "o"}
        lab.draw_seeds(by_degree, cell, "degree", **style)
    shares = results["error"] / results["largest"]
    for i, degree in enumerate((0, 2, 4, 6, 8)):
        cell = shares.sel(degree=degree)
        style = {"color": f"C{i}", "label": f"degree {degree}", "marker": "o"}
        lab.draw_seeds(by_bound, cell, "bound", **style)
    by_degree.set(yscale="log", xlabel="degree", ylabel="largest error [1]")
    by_bound.set(yscale="log", xlabel="bound B on entries [1]")
    by_bound.set(ylabel="largest error / largest output [1]")
    for axes in (by_degree, by_bound):
        axes.legend(fontsize=8)
        axes.set_title("medians, ranges of seeds")
    page.suptitle(
        "Polynomial attention: errors fall with the degree for small entries alone"
    )
    return page


EXPERIMENT = Experiment(
    run=run,
    hparams=HParams(),
    axes={"bound": (0.25, 0.5, 0.7, 1.0, 1.4, 2.0, 3.0)},
    num_seeds=3,
    x64=True,
    smoke={"axes": {"bound": (1.0, 3.0)}},
    dims={
        "error": ("degree",),
        "certificate": ("degree",),
        "degrees": ("degree",),
    },
    claims=claims,
    figure=figure,
)
