"""From which length on is the polynomial form of Kronecker attention cheaper?

Over pairs of n positions, exact attention takes 4 n^3 d flops of products, a polynomial
of r = C(d + degree, degree) monomials in place of the exponential 6 n r (d + 1). They
are equal at n* = sqrt(3 r (d + 1) / (2 d)). Flops of both programs are counted by the
compiler, with all that is not a product, at the powers of two around n*; where the
lines through them cross is the measured length. That of equal times, which depends on
the machine, is in `experiments/benchmarks/attention.py`.

Claims. For d = 4, 8, 16 features and degrees 2, 3, 4 the measured length is 0.85 to 1
of n*: what the exact form does beside its products counts for more. The forms are those
of one function: for entries of queries and keys uniform in [-1/2, 1/2] and scores
divided by d, their outputs agree to 1e-4 of the largest.

Falsified if one of these bounds is missed, or if the lines do not cross around n*.

References:
    Alman, Song. "How to Capture Higher-order Correlations? Generalizing Matrix Softmax
    Attention to Kronecker Computation". 2023. arXiv:2310.04064: near-linear time for
    bounded entries.
"""

import functools as ft
import math

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, Key
import numpy as np

from jaxlr import attention, lab
from jaxlr.core import Claim, Experiment
from jaxlr.lab import cost


class HParams(eqx.Module):
    """One cell: a polynomial, at lengths around the one where it gets cheaper."""

    num_features: int = eqx.field(static=True, default=4)
    """Number of features d of a head."""
    degree: int = eqx.field(static=True, default=4)
    """Degree of the polynomial."""


class Metrics(eqx.Module):
    """Numbers at each length, and where the forms cost the same."""

    num_positions: Float[Array, " length"]
    """Number n of queries, and of positions of either mode [1]."""
    exact: Float[Array, " length"]
    """Cost of the exact form by tiles [flop]."""
    polynomial: Float[Array, " length"]
    """Cost of the polynomial [flop]."""
    crossover: Float[Array, ""]
    """Length of equal flops; NaN if it is not among these lengths [1]."""
    error: Float[Array, ""]
    """Largest error over the largest output, last length and small entries [1]."""


def predicted(num_features, degree) -> float:
    """The length of equal products, n*."""
    d, r = num_features, attention.num_features(num_features, degree)
    return math.sqrt(3 * r * (d + 1) / (2 * d))


def _attend(implementation, degree, query, keys, values):
    return attention.tensor_attention(
        query,
        keys,
        values,
        scale=1 / query.shape[-1],
        implementation=implementation,
        degree=degree,
    )


@ft.cache
def _flops(implementation, num_features, degree, num_positions):
    x = jax.ShapeDtypeStruct((1, num_positions, 1, num_features), jnp.float32)
    attend = ft.partial(_attend, implementation, degree)
    return cost.compiled_cost(attend, x, (x, x), (x, x)).flops


def run(key: Key[Array, ""], hparams: HParams) -> Metrics:
    """One cell: flops from the compiler, the error from random arrays."""
    d, degree = hparams.num_features, hparams.degree
    first = int(math.log2(predicted(d, degree)))
    lengths = 2 ** np.arange(first - 1, first + 2)
    exact, polynomial = (
        np.array([_flops(name, d, of, int(n)) for n in lengths])
        for name, of in (("xla", 0), ("polynomial", degree))
    )
    # Logarithms of what the exact form costs more rise from below zero to above.
    crossover = np.interp(
        0, np.log(exact / polynomial), np.log(lengths), left=np.nan, right=np.nan
    )
    query, *sets = jr.uniform(key, (5, 1, int(lengths[-1]), 1, d), minval=-1.0)
    arrays = query / 2, [x / 2 for x in sets[:2]], sets[2:]
    out, reference = (_attend(name, degree, *arrays) for name in ("polynomial", "xla"))
    return Metrics(
        num_positions=jnp.asarray(lengths, float),
        exact=jnp.asarray(exact, float),
        polynomial=jnp.asarray(polynomial, float),
        crossover=jnp.exp(jnp.asarray(crossover, float)),
        error=jnp.max(jnp.abs(out - reference)) / jnp.max(jnp.abs(reference)),
    )


def _table(results, name):
    """An array (features, degree)."""
    return results[name].transpose("seed", "num_features", "degree", ...).values[0]


def _predictions(results):
    """n*, (features, degree)."""
    axes = (results[name].values.tolist() for name in ("num_features", "degree"))
    features, degrees = axes
    return np.array([[predicted(d, degree) for degree in degrees] for d in features])


def claims(results) -> list[Claim]:
    """Where it is, and agreement."""
    crossover = _table(results, "crossover")
    return [
        Claim(
            "length of equal flops over n*",
            crossover / _predictions(results),
            low=0.85,
            high=1,
            source="products of both forms",
        ),
        Claim("largest error over the largest output", results["error"], high=1e-4),
    ]


def figure(results):
    """Flops of the exact form over the polynomial's, and where they are equal."""
    page, (ratios, lengths) = lab.panels(1, 2, size=(11, 4.4))
    n, exact, polynomial, crossover = (
        _table(results, name)
        for name in ("num_positions", "exact", "polynomial", "crossover")
    )
    predictions = _predictions(results)
    degrees = results["degree"].values.tolist()
    for i, d in enumerate(results["num_features"].values.tolist()):
        for j, marker in zip(range(len(degrees)), "os^", strict=False):
            style = {"color": f"C{i}", "marker": marker}
            style |= {"label": f"d = {d}, degree {degrees[j]}"}
            ratios.plot(n[i, j], exact[i, j] / polynomial[i, j], **style)
        lengths.plot(degrees, crossover[i], f"C{i}o-", label=f"d = {d}, counted")
        lengths.plot(degrees, predictions[i], f"C{i}:", label=f"d = {d}, n*")
    ratios.axhline(1, color="k", lw=0.8)
    ratios.set(xscale="log", yscale="log", xlabel="positions n [1]")
    ratios.set(ylabel="flops, exact over polynomial [1]")
    lengths.set(yscale="log", xlabel="degree", ylabel="length of equal flops [1]")
    lengths.set_xticks(degrees)
    for axes in (ratios, lengths):
        axes.legend(fontsize=7)
    page.suptitle("Attention over pairs: from this length on the polynomial is cheaper")
    return page


EXPERIMENT = Experiment(
    run=run,
    hparams=HParams(),
    axes={"num_features": (4, 8, 16), "degree": (2, 3, 4)},
    smoke={"axes": {"num_features": (4, 8), "degree": (2, 3)}},
    dims={name: ("length",) for name in ("num_positions", "exact", "polynomial")},
    claims=claims,
    figure=figure,
)
