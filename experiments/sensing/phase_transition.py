"""How many measurements does recovery need?

A matrix of rank r is described by d = r (n1 + n2 - r) numbers: no method can do with
fewer measurements m. How close to that do methods come that are told r and start from
the singular vectors of A*(y)? Each seed draws one operator of the most measurements;
every m takes its first m, so that m, like r, is a number and not a shape: a heat map
compiles once for each method and ensemble, and its cells share the operator.

Claims. Below d measurements nothing is recovered. Gauss-Newton (lightly damped)
succeeds for half of the seeds at 1 to 1.3 d Gaussian measurements, for every rank, and
for all from 2 d on; the same from Rademacher measurements. From rank-one measurements
a b^T, which lack the restricted isometry property, it needs up to 1.7 d for a half, and
at most 3 d for all. ScaledGD, whose steps are cheaper, needs 1.2 to 1.8 d Gaussian
measurements for a half, at most 2.2 d for all.

Falsified if one matrix is recovered, to a relative error of 1e-3, from fewer than d
measurements; if half of the seeds succeed outside of those ranges, for any rank; if
any seed fails where all should succeed; or if ScaledGD needs fewer than 1.05 times the
measurements of Gauss-Newton for a half, in the mean over ranks.

References:
    Tong, Ma, Chi. "Accelerating Ill-Conditioned Low-Rank Matrix Estimation via Scaled
    Gradient Descent". 2021. arXiv:2005.08898.
    Zilber, Nadler. "GNMR: A Provable One-Line Algorithm for Low Rank Matrix Recovery".
    2021. arXiv:2106.12933.
    Cai, Zhang. "ROP: Matrix Recovery via Rank-One Projections". 2015. arXiv:1310.5791.
"""

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, Key
import numpy as np

from jaxlr import lab, sensing
from jaxlr.core import Axis, checks, Claim, Experiment, Hyper, loop
from jaxlr.sensing import theory


ENSEMBLES = ("gaussian", "rademacher", "rank_one")
METHODS = ("gauss_newton", "scaled_gd")
KINDS = (
    ("gaussian", "gauss_newton"),
    ("gaussian", "scaled_gd"),
    ("rademacher", "gauss_newton"),
    ("rank_one", "gauss_newton"),
)


class HParams(eqx.Module):
    """One cell. Static fields fix shapes; all others may be swept without compiling."""

    ensemble: str = eqx.field(static=True, default="gaussian")
    """Measurement matrices: gaussian, rademacher or rank_one."""
    method: str = eqx.field(static=True, default="gauss_newton")
    """Solver: gauss_newton or scaled_gd."""
    num_measurements: Hyper = 160.0
    """Number of measurements m, of those drawn."""
    rank: Hyper = 2
    """Rank r of the truth, and number of columns of the factors in use."""
    tolerance: Hyper = 1e-3
    """Relative error at which the matrix counts as recovered [1]."""
    n: int = eqx.field(static=True, default=24)
    """Side of the matrix."""
    max_rank: int = eqx.field(static=True, default=4)
    """The largest rank."""
    max_measurements: int = eqx.field(static=True, default=400)
    """Number of measurements drawn."""
    num_newton_steps: int = eqx.field(static=True, default=25)
    """Number of steps of gauss_newton, each of 30 conjugate-gradient iterations."""
    num_descent_steps: int = eqx.field(static=True, default=500)
    """Number of steps of scaled_gd."""


class Metrics(eqx.Module):
    """Whether the matrix was recovered, and how well."""

    success: Float[Array, ""]
    """1 if the relative error ended at the tolerance or below, else 0 [1]."""
    error: Float[Array, ""]
    """Last relative error; 1, as of the zero matrix, if larger or not finite [1]."""


class First(sensing.Operator):
    """The first measurements of an operator, the others being read as zero.

    Attributes:
        shape: Sizes (n1, n2) of the matrices. Static.
        base: The operator whose measurements are read.
        num_measurements: Number of measurements that are read. May be traced: no shape
            depends on it.
    """

    shape: tuple[int, int] = eqx.field(static=True)
    base: sensing.Operator
    num_measurements: Hyper

    @property
    def measurement_shape(self) -> tuple[int, ...]:
        """The shape of `base`'s measurements."""
        return self.base.measurement_shape

    @property
    def isotropy(self) -> Hyper:
        """The isotropy of `base` times the share of its measurements."""
        share = self.num_measurements / self.measurement_shape[0]
        return self.base.isotropy * share

    def _kept(self, z):
        return jnp.where(jnp.arange(z.shape[0]) < self.num_measurements, z, 0)

    def _apply(self, x):
        return self._kept(self.base.apply(x))

    def _apply_factors(self, f, g):
        return self._kept(self.base.apply_factors(f, g))

    def _adjoint(self, z):
        return self.base.adjoint(self._kept(z))

    def _adjoint_factors(self, z, f, g):
        return self.base.adjoint_factors(self._kept(z), f, g)


def run(key: Key[Array, ""], hparams: HParams) -> Metrics:
    """One cell.

    Raises:
        ValueError: For an unknown `ensemble` or `method`, or as the solvers do.
    """
    checks.choice("ensemble", hparams.ensemble, ENSEMBLES)
    checks.choice("method", hparams.method, METHODS)
    shape, most = (hparams.n, hparams.n), hparams.max_rank
    truth_key, operator_key, solve_key = jr.split(key, 3)
    draw = getattr(sensing, hparams.ensemble)
    drawn = draw(operator_key, shape, hparams.max_measurements)
    operator = First(shape, drawn, hparams.num_measurements)
    spectrum = jnp.where(jnp.arange(most) < hparams.rank, 1.0, 0.0)
    truth = sensing.low_rank(truth_key, shape, most, spectrum=spectrum)
    problem = sensing.measure(operator, truth)
    if hparams.method == "scaled_gd":
        num_steps = hparams.num_descent_steps
        solver = sensing.scaled_gd(problem, num_columns=most, num_active=hparams.rank)
    else:
        num_steps = hparams.num_newton_steps
        solver = sensing.solver.gauss_newton(
            problem,
            num_columns=most,
            num_active=hparams.rank,
            damping=1e-3,
            num_cg_steps=30,
        )
    state, _ = loop.run(solve_key, solver, num_steps)
    f, g = state.factors
    error = sensing.relative_error(f, g, truth)
    # Too few measurements make ScaledGD diverge: that is an answer here, no accident.
    return Metrics(
        success=jnp.where(error <= hparams.tolerance, 1.0, 0.0),
        error=jnp.where(error < 1, error, 1.0),
    )


DIM = lab.dimension_name(("ensemble", "method"))


def _oversampling(results):
    """Ratio m / d of every cell, by number of measurements and rank."""
    n = lab.hparams(results)["n"]
    freedom = [
        theory.degrees_of_freedom((n, n), int(r)) for r in results["rank"].values
    ]
    return results["num_measurements"].values[:, None] / np.array(freedom)


def _success(results, kind):
    """Share of the seeds that succeed, by number of measurements and rank.

    Raises:
        ValueError: If these results have no such cells.
    """
    ensemble, method = kind
    cells = lab.select(results, ensemble=ensemble, method=method).squeeze(DIM)
    return cells["success"].mean("seed").transpose("num_measurements", "rank").values


def _half(success, oversampling):
    """For each rank the least m / d, interpolated, at which half of the seeds succeed.

    NaN where they do so at the least m already, or at none.
    """
    found = []
    for share, x in zip(success.T, oversampling.T, strict=True):
        after = int(np.argmax(share >= 0.5))
        if after == 0:  # NaN has no such m either
            found.append(np.nan)
            continue
        begin, end = share[after - 1], share[after]
        step = (0.5 - begin) / (end - begin)
        found.append(x[after - 1] + step * (x[after] - x[after - 1]))
    return np.array(found)


HALF = {  # bounds on m / d at which half of the seeds succeed, and where all do
    ("gaussian", "gauss_newton"): (1.0, 1.3, 2.0),
    ("gaussian", "scaled_gd"): (1.2, 1.8, 2.2),
    ("rademacher", "gauss_newton"): (1.0, 1.3, 2.0),
    ("rank_one", "gauss_newton"): (1.0, 1.7, 3.0),
}


def claims(results) -> list[Claim]:
    """Nothing below d; half, and all, at small multiples of it.

    Raises:
        ValueError: If these results lack a method from Gaussian measurements, or have
            cells of which nothing is claimed.
    """
    oversampling = _oversampling(results)
    present = list(
        zip(results["ensemble"].values, results["method"].values, strict=True)
    )
    for ensemble, method in KINDS[:2]:
        lab.select(results, ensemble=ensemble, method=method)
    found, halves = [], {}
    for kind in present:
        if kind not in HALF:
            raise ValueError(f"Nothing is claimed of {kind}; of {list(HALF)} it is.")
        success = _success(results, kind)
        low, high, full = HALF[kind]
        name = f"{kind[0]}, {kind[1]}"
        halves[kind] = _half(success, oversampling)
        found += [
            Claim(
                f"{name}: success rate below d measurements",
                success[oversampling < 1],
                high=0.0,
                source="theory.degrees_of_freedom",
            ),
            Claim(
                f"{name}: m / d at which half succeed, each rank",
                halves[kind],
                low=low,
                high=high,
            ),
            Claim(
                f"{name}: success rate from {full:g} d measurements on",
                success[oversampling >= full],
                low=1.0,
            ),
        ]
    found.append(
        Claim(
            "Gaussian: m for a half, ScaledGD's over Gauss-Newton's (mean over ranks)",
            np.mean(halves[KINDS[1]] / halves[KINDS[0]]),
            low=1.05,
        )
    )
    return found


def figure(results):
    """A heat map for each ensemble and method; the line is m = r (n1 + n2 - r)."""
    kinds = list(zip(results["ensemble"].values, results["method"].values, strict=True))
    page, axes = lab.panels(
        1, len(kinds), has_shared_y=True, size=(3.4 * len(kinds) + 1, 4.6)
    )
    counts, ranks = results["num_measurements"].values, results["rank"].values
    freedom = counts[:, None] / _oversampling(results)
    edges = [
        np.append(x, 2 * x[-1] - x[-2]) - (x[1] - x[0]) / 2 for x in (ranks, counts)
    ]
    images = []
    for axis, kind in zip(axes, kinds, strict=True):
        success = _success(results, kind)
        images.append(axis.pcolormesh(*edges, success, vmin=0, vmax=1))
        half = _half(success, _oversampling(results)) * freedom[0]
        axis.plot(ranks, freedom[0], "o-", color="#D55E00", label="m = d")
        axis.plot(ranks, half, "s--", color="white", label="half of the seeds")
        axis.set(xlabel="rank r", title="\n".join(kind).replace("_", " "), xticks=ranks)
        axis.legend(fontsize=8, loc="lower right", facecolor="#777777", labelcolor="w")
    axes[0].set(ylabel="measurements m", ylim=(edges[1][0], edges[1][-1]))
    page.colorbar(images[0], ax=axes, label="share of seeds recovered [1]")
    page.suptitle(
        "Recovery begins at little more than d = r (n1 + n2 - r) measurements"
    )
    return page


def _axes(kinds, counts, ranks):
    return (
        Axis(("ensemble", "method"), kinds),
        Axis("num_measurements", tuple(map(float, counts))),
        Axis("rank", tuple(ranks)),
    )


EXPERIMENT = Experiment(
    run=run,
    hparams=HParams(),
    axes=_axes(KINDS, range(20, 401, 10), range(1, 5)),
    num_seeds=10,
    smoke={
        "num_seeds": 5,
        "axes": _axes(KINDS[:2], range(10, 151, 10), range(1, 3)),
        "hparams": HParams(n=16, max_rank=2, max_measurements=150),
    },
    claims=claims,
    figure=figure,
)
