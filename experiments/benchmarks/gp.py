"""What Gaussian processes on grids cost, beside GPyTorch where it is installed.

    python -m experiments.benchmarks.gp

In float64, on 100^3 points, squared exponential kernels, noise .01: a product with the
covariance; a solve, and the log marginal likelihood with gradients in lengthscales,
noise and observations, kernels and decompositions included; the same by GPyTorch's
Kronecker operators. Each pair is run in turn (A A B B A A ...; the first of two calls
is not timed) and the median of the pairwise ratios kept. Then the product and the solve
on 200^3 points, a fifth of 100^3 points missing at random, steps of GP-HM, whose
authors' code was timed once on two other cores, and collocation with Gaussian
components, training included, once for every equation of `pde.BENCHMARKS`. Memory is
what compiled programs need beyond arguments and results. Writes
`results/gp-<platform>.json`.
"""

import functools as ft
import math
import time
from typing import Any

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax

from jaxlr import covariance, gp, linalg, pde
from jaxlr.core import compat, from_optax, loop, Status

from ..pde import collocation
from .timing import compiled, paired, provenance, seconds, with_verdict, write


SIDE, LARGE = 100, 200
LENGTHSCALES, NOISE = (0.2, 0.3, 0.4), 0.01
MISSING = 0.2
HM_STEPS, HM_AUTHORS = 60, 0.55  # steps; steps a second of arXiv:2311.04465's code
FIRST = "poisson_1d_sin"


def points(side):
    """Regular points of one axis."""
    return jnp.linspace(0.0, 1.0, side)


def factors(lengthscales, side):
    """Covariances of squared exponentials, one for each axis of a cube."""
    return [
        covariance.gram(covariance.SquaredExponential(lengthscale), points(side))
        for lengthscale in lengthscales
    ]


def solve(lengthscales, noise, y):
    """(K + noise)^-1 y."""
    return linalg.kron_solve(factors(lengthscales, len(y)), noise, y)


def likelihood(lengthscales, noise, y):
    """Log marginal likelihood."""
    quadratic, logdet = linalg.kron_gaussian(factors(lengthscales, len(y)), noise, y)
    return -(quadratic + logdet + y.size * math.log(2 * math.pi)) / 2


def peers(arguments):
    """The same three by GPyTorch's operators; None where it is not installed."""
    try:
        from linear_operator import (  # pyright: ignore[reportMissingImports]
            operators,
            to_linear_operator,
        )
        import torch  # pyright: ignore[reportMissingImports]
    except ModuleNotFoundError:
        return None
    lengthscales, noise, y = (
        torch.tensor(np.asarray(x), requires_grad=True) for x in arguments
    )
    x = torch.linspace(0, 1, len(y), dtype=torch.float64)
    column = y.detach().reshape(-1, 1)

    def covariance():
        square = (x[:, None] - x) ** 2
        parts = [torch.exp(-square / (2 * ell**2)) for ell in lengthscales]
        return operators.KroneckerProductLinearOperator(*map(to_linear_operator, parts))

    def with_noise():
        diagonal = operators.ConstantDiagLinearOperator(noise[None], y.numel())
        return operators.KroneckerProductAddedDiagLinearOperator(covariance(), diagonal)

    def matvec():
        with torch.no_grad():
            return fixed @ column

    def direct():
        with torch.no_grad():
            return with_noise().solve(column)

    def gradient():
        quadratic, logdet = with_noise().inv_quad_logdet(y.reshape(-1, 1), logdet=True)
        value = -(quadratic + logdet + y.numel() * math.log(2 * math.pi)) / 2
        return value, torch.autograd.grad(value, (lengthscales, noise, y))

    with torch.no_grad():
        fixed = covariance()
    return matvec, direct, gradient


def of_grid():
    """Product, solve and likelihood with gradients on a whole grid."""
    arguments = jnp.asarray(LENGTHSCALES), jnp.asarray(NOISE), draw(SIDE)
    kernels = factors(LENGTHSCALES, SIDE)
    ours = {
        "matvec": compiled(linalg.kron_matvec, kernels, arguments[2]),
        "solve": compiled(solve, *arguments),
        "likelihood_with_gradients": compiled(
            jax.value_and_grad(likelihood, argnums=(0, 1, 2)), *arguments
        ),
    }
    others = peers(arguments)
    found: dict[str, Any] = {}
    for i, (name, (call, _, mib)) in enumerate(ours.items()):
        report: dict[str, Any] = {"mib": mib}
        if others is None:
            report |= {"seconds": min(seconds(call) for _ in range(10))}
            report |= {"gpytorch": "not installed"}
            found[name] = report
            continue
        report |= paired(call, others[i], 25, is_settled=True)
        found[name] = with_verdict(report, "ratio <= 1", report["ratio"] <= 1)
    most = max(report["mib"] for report in found.values())
    found["memory"] = with_verdict({"mib": most}, "mib <= 1024", most <= 1024)
    if others is not None:
        theirs = others[2]()
        mine = ours["likelihood_with_gradients"][0]()
        gaps = [
            float(np.max(np.abs(a - b.detach().numpy())) / np.max(np.abs(a)))
            for a, b in zip(jax.tree.leaves(mine), (theirs[0], *theirs[1]), strict=True)
        ]
        found["agreement"] = with_verdict(
            {"largest_relative_difference": max(gaps)},
            "largest_relative_difference <= 1e-8",
            max(gaps) <= 1e-8,
        )
    return found


def of_sides():
    """A larger cube over a smaller one."""
    calls = {
        side: (
            compiled(linalg.kron_matvec, factors(LENGTHSCALES, side), draw(side))[0],
            compiled(solve, jnp.asarray(LENGTHSCALES), jnp.asarray(NOISE), draw(side))[
                0
            ],
        )
        for side in (SIDE, LARGE)
    }
    matvec, direct = (
        paired(large, small, 5, is_settled=True)
        for large, small in zip(calls[LARGE], calls[SIDE], strict=True)
    )
    exponent = math.log(matvec["ratio"]) / math.log(LARGE / SIDE)
    return {
        "matvec": with_verdict(
            matvec | {"exponent": exponent}, "exponent <= 4.8", exponent <= 4.8
        ),
        "solve": with_verdict(direct, "seconds <= 1", direct["seconds"] <= 1),
    }


def of_gaps():
    """Points missing at random, by the missing-block method."""
    mask = np.random.default_rng(0).random((SIDE,) * 3) >= MISSING
    kernels = tuple(covariance.Matern(lengthscale) for lengthscale in LENGTHSCALES)
    process = gp.GridGP(kernels, (points(SIDE),) * 3, NOISE, mask)
    call, _, mib = compiled(lambda y: process.solve(y), draw(SIDE))
    _, info = call()
    least = min(seconds(call) for _ in range(5))
    num_steps = int(info.num_steps)
    return with_verdict(
        {
            "num_steps": num_steps,
            "residual": float(info.residual),
            "seconds": least,
            "mib": mib,
        },
        "converged, num_steps <= 15, seconds <= 1",
        int(info.status) == Status.CONVERGED and num_steps <= 15 and least <= 1,
    )


def of_gp_hm():
    """Steps of Adam on the joint density."""

    def training(benchmark):
        problem = benchmark.problem()

        def loss_fn(params):
            return -pde.gp_hm_log_joint(
                params, problem, boundary_weight=benchmark.boundary_weight
            )

        params = pde.gp_hm_init(problem, benchmark.max_frequency)
        adam = from_optax(loss_fn, optax.adam(1e-2), lambda _: params)
        key = jr.key(0)
        run = ft.partial(loop.run, key, adam, HM_STEPS)
        return compiled(lambda state: run(state=state), adam.init(key))

    found: dict[str, Any] = {"steps": HM_STEPS}
    for name, benchmark in pde.BENCHMARKS.items():
        call, _, mib = training(benchmark)
        rate = HM_STEPS / min(seconds(call) for _ in range(3))
        found[name] = {"steps_a_second": rate, "mib": mib}
    over = found[FIRST]["steps_a_second"] / HM_AUTHORS
    found[FIRST] = with_verdict(
        found[FIRST] | {"over_authors_on_other_cores": over},
        "over_authors_on_other_cores >= 100",
        over >= 100,
    )
    return found


def of_collocation():
    """Kernels of Gaussian components, trained and solved with; errors at the end."""
    found: dict[str, Any] = {}
    for name in pde.BENCHMARKS:
        hparams = collocation.HParams(problem=name)
        call, _, mib = compiled(ft.partial(collocation.run, hparams=hparams), jr.key(0))
        begun = time.perf_counter()
        end = call()
        duration = time.perf_counter() - begun
        error, has_converged = float(end.error), bool(end.has_converged)
        most, longest = (1e-6, 60) if name == FIRST else (1e-4, math.inf)
        found[name] = with_verdict(
            {"seconds": duration, "mib": mib, "error": error},
            f"converged, error <= {most}, seconds <= {longest}",
            has_converged and error <= most and duration <= longest,
        )
    return found


def draw(side):
    """Observations on the whole grid."""
    return jr.normal(jr.key(0), (side,) * 3)


def main():
    """Measure, print, and keep as JSON."""
    with compat.x64(True):
        report = provenance() | {
            "whole_grid": of_grid(),
            "sides": of_sides(),
            "gaps": of_gaps(),
            "gp_hm": of_gp_hm(),
            "collocation": of_collocation(),
        }
        platform = jax.default_backend()
        write("gp", report | {"others": f"not measured: all but {platform}"})


if __name__ == "__main__":
    main()
