# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#       format_version: '1.3'
#       jupytext_version: 1.19.6
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %%
# Install jaxlr beside the jax that is there, which stays as it is (on Colab too).
from importlib import metadata, util
from pathlib import Path
import subprocess
import sys


REPOSITORY = "git+https://github.com/jaxlr/jaxlr"  # the one place that names it
checkout = Path.cwd().parent
source = str(checkout) if (checkout / "jaxlr").is_dir() else REPOSITORY
if util.find_spec("jaxlr") is None:
    kept = [f"{name}=={metadata.version(name)}" for name in ("jax", "jaxlib")]
    command = [sys.executable, "-m", "pip", "install", "--quiet", source, *kept]
    subprocess.run(command, check=True)

# %% [markdown]
# # Gaussian processes on grids, from the equation to a swept figure
#
# Values $y$ at all $N = n_1 \cdots n_D$ points of a grid, seen with noise of variance
# $\sigma^2$, under a kernel that is a product over the axes: their covariance is
#
# $$K_1 \otimes \cdots \otimes K_D + \sigma^2 I, \qquad K_d = Q_d \Lambda_d Q_d^\top$$
#
# and the eigenvectors of the whole are $Q_1 \otimes \cdots \otimes Q_D$ (Saatci, 2011): a
# solve, a determinant and a posterior mean take $O(N \sum_d n_d)$, and no matrix is larger
# than an axis.

# %%
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import matplotlib.pyplot as plt
import numpy as np

from jaxlr import core, covariance, gp, lab, pde
from jaxlr.core import Experiment


grid = jnp.linspace(0, 1, 12), jnp.linspace(0, 2, 10)
kernels = covariance.Matern(0.3), 2.0 * covariance.SquaredExponential(0.5)
y = jr.normal(jr.key(0), (12, 10))
process = gp.GridGP(kernels, grid, noise=0.1)

dense = jnp.kron(*(covariance.gram(k, x) for k, x in zip(kernels, grid, strict=True)))
by_definition = jax.scipy.stats.multivariate_normal.logpdf(
    y.ravel(), jnp.zeros(120), dense + 0.1 * jnp.eye(120)
)
print("dense matrix: ", by_definition)
print("by axes:      ", process.log_marginal_likelihood(y))

# %% [markdown]
# ## A map with gaps
#
# A quarter of the points is missing at random, and a block on top. Gaps are filled by
# conjugate gradients on what is missing alone; the residual that is returned is that of what
# was observed.

# %%
x = jnp.linspace(0, 1, 60)
kernels = covariance.Matern(0.2), covariance.Matern(0.3)
roots = [
    jnp.linalg.cholesky(covariance.gram(k, x) + 1e-6 * jnp.eye(60)) for k in kernels
]
truth = roots[0] @ jr.normal(jr.key(1), (60, 60)) @ roots[1].T
y = truth + 0.1 * jr.normal(jr.key(2), truth.shape)
mask = np.array(jr.bernoulli(jr.key(3), 0.75, truth.shape))
mask[20:32, 35:50] = False

process = gp.GridGP(kernels, (x, x), noise=0.01, mask=mask, max_dense=2000)
posterior = process.posterior(y)
deviation = jnp.sqrt(posterior.variance)
z = (posterior.mean - truth)[~mask] / deviation[~mask]
print(f"{(~mask).sum()} missing, {posterior.info.num_steps} steps, ", end="")
print(f"residual {posterior.info.residual:.0e}")
print(f"within 2 deviations: {jnp.mean(jnp.abs(z) < 2):.3f} of the missing")

sample = posterior.sample(jr.key(4), 1)[0]
pictures = {
    "observed": jnp.where(mask, y, jnp.nan),
    "mean": posterior.mean,
    "a sample": sample,
    "deviation": deviation,
}
page, panels = plt.subplots(1, 4, figsize=(12, 3), layout="constrained")
for axes, (name, picture) in zip(panels, pictures.items(), strict=True):
    drawn = axes.imshow(picture)
    axes.set(title=name, xticks=[], yticks=[])
    page.colorbar(drawn, ax=axes, shrink=0.7)
plt.show()

# %% [markdown]
# ## Hyper-parameters
#
# Gradients of the log marginal likelihood never pass through an eigendecomposition, whose own
# do not exist where eigenvalues coincide. `core.multistart` runs L-BFGS from many starts in one program.


# %%
def loss(logs):
    kernels = tuple(map(covariance.Matern, jnp.exp(logs[:2])))
    noise = jnp.exp(logs[2])
    return -gp.GridGP(kernels, (x, x), noise).log_marginal_likelihood(truth_and_noise)


truth_and_noise = y
starts = jr.uniform(jr.key(5), (4, 3), minval=-4.0, maxval=1.0)
fitted = core.multistart(core.lbfgs(loss, max_steps=25), starts)
print("nats of every start:   ", -fitted.losses)
print("lengthscales and noise:", jnp.exp(fitted.params))

# %% [markdown]
# ## A differential equation of high frequency
#
# $u'' = f$ on $[0, 2\pi]$, where $u = \sin 100 x$: derivatives of a Gaussian process are one
# too, so that $u$ follows from $f$ and two values at the ends. The kernel is a mixture of
# cosines under bumps (Fang et al., arXiv:2311.04465), its frequencies spread from 0 to
# $F$; here as it starts, nothing trained. A sweep over $F$ and the number of points, in
# float64: a kernel that holds the frequency of the solution, $100 / 2\pi \approx 16$, and
# two points a wave are what it takes.


# %%
class HParams(eqx.Module):
    max_frequency: float = 20.0
    num_points: int = eqx.field(static=True, default=400)


def run(key, hparams):
    problem = pde.BENCHMARKS["poisson_1d_sin"].problem(hparams.num_points)
    kernel = covariance.SpectralMixture(
        jnp.full(30, -np.log(30.0)),
        jnp.ones(30),
        hparams.max_frequency * jnp.linspace(0, 1, 30),
    )
    found = pde.collocation_solve(problem, kernel, max_evaluations=0)
    return {"error": problem.error(found.solution)}


EXPERIMENT = Experiment(run=run, hparams=HParams(), num_seeds=1, x64=True)
results = lab.sweep(
    EXPERIMENT,
    {"max_frequency": [8.0, 12.0, 16.0, 20.0, 30.0], "num_points": [100, 200, 400]},
)
for n in results["num_points"].values:
    curve = results["error"].sel(num_points=n).isel(seed=0)
    plt.semilogy(results["max_frequency"], curve, "o-", label=f"{n} points")
plt.axvline(100 / (2 * np.pi), color="k", ls=":", label="of the solution")
plt.xlabel("highest frequency F of the kernel [1 / unit of x]")
plt.ylabel("error of u, relative [1]")
plt.legend()
plt.show()
