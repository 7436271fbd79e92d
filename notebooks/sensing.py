# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
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
if util.find_spec("jaxlr") is None:
    source = str(checkout) if (checkout / "jaxlr").is_dir() else REPOSITORY
    kept = [f"{name}=={metadata.version(name)}" for name in ("jax", "jaxlib")]
    command = [sys.executable, "-m", "pip", "install", "--quiet", source, *kept]
    subprocess.run(command, check=True)

# %% [markdown]
# # Low-rank recovery, from the equation to a swept figure
#
# A matrix $M$ of rank $r$ is seen through $m$ inner products,
# $y_i = \langle A_i, M \rangle$, far fewer than it has entries. It has
# $r (n_1 + n_2 - r)$ degrees of freedom; a few times as many measurements determine it.

# %%
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import matplotlib.pyplot as plt

from jaxlr import lab, sensing
from jaxlr.core import Experiment, loop
from jaxlr.sensing import theory


n, rank = 32, 2
truth = sensing.low_rank(jr.key(0), (n, n), rank, condition=10.0)
freedom = theory.degrees_of_freedom((n, n), rank)
m = 4 * freedom
print(f"{n * n} entries, {freedom} degrees of freedom, {m} measurements")

# %% [markdown]
# ## The measurements
#
# An ensemble is a pytree with `apply` ($A$) and `adjoint` ($A^*$), scaled so that
# $\mathbb{E} A^* A = c I$. What it stores differs by orders of magnitude.

# %%
ensembles = {
    "Gaussian, stored": sensing.gaussian(jr.key(1), (n, n), m),
    "Gaussian, regenerated": sensing.gaussian(
        jr.key(1), (n, n), m, storage="regenerate"
    ),
    "signs, packed in bits": sensing.rademacher(jr.key(1), (n, n), m, storage="packed"),
    "rank one": sensing.rank_one(jr.key(1), (n, n), m),
    "Hadamard, sampled": sensing.hadamard(jr.key(1), (n, n), m),
}


def final_error(operator):
    problem = sensing.measure(operator, truth)
    solver = sensing.scaled_gd(problem, num_columns=rank, eta=0.4)
    return loop.run(jr.key(2), solver, 100)[1].relative_error[-1]


for name, operator in ensembles.items():
    stored = sum(leaf.nbytes for leaf in jax.tree.leaves(operator))
    error = jax.jit(final_error)(operator)
    print(f"{name:22} {stored:8} bytes, relative error {error:.0e}")

# %% [markdown]
# ## The hot loop
#
# All methods on factors need one thing: the loss of $A(F G^\top)$ against $y$ and its
# gradients $D G$ and $D^\top F$, with $D = A^*(\psi(A(F G^\top) - y))$.

# %%
problem = sensing.measure(ensembles["Gaussian, stored"], truth)
f, g = sensing.init.spectral(problem.operator, problem.y, rank)
loss, f_grad, g_grad = sensing.residual_gradient(problem.operator, f, g, problem.y)


def by_autodiff(f):
    return jnp.sum((problem.operator.apply_factors(f, g) - problem.y) ** 2) / 2


print(float(loss), bool(jnp.allclose(f_grad, jax.grad(by_autodiff)(f), atol=1e-5)))

# %% [markdown]
# ## Condition number
#
# Plain gradient descent slows down with the condition number of $M$. Preconditioned by
# the Gram matrix of the other factor, $D G (G^\top G)^{-1}$, it does not. The experiment
# is a function of a key and hyper-parameters; the condition number is traced, so that
# all its values share one program.


# %%
class Condition(eqx.Module):
    """One cell of the first sweep."""

    solver: str = eqx.field(static=True, default="gd")
    condition: float = 1.0


def run_condition(key, hparams):
    keys = jr.split(key, 3)
    truth = sensing.low_rank(keys[0], (n, n), rank, condition=hparams.condition)
    problem = sensing.measure(sensing.gaussian(keys[1], (n, n), m), truth)
    make = getattr(sensing, hparams.solver)
    solver = make(problem, num_columns=rank, eta=0.4, start="spectral")
    return loop.run(keys[2], solver, 150)[1]


axes = {"solver": ["gd", "scaled_gd"], "condition": [1.0, 10.0, 100.0]}
experiment = Experiment(run=run_condition, hparams=Condition(), num_seeds=4)
results = lab.sweep(experiment, axes)

figure, panels = plt.subplots(1, 2, sharey=True, figsize=(8, 3), layout="constrained")
for panel, name in zip(panels, results.solver.values, strict=True):
    for condition in results.condition.values:
        curves = results.relative_error.sel(solver=name, condition=condition)
        label = f"condition {condition:g}"
        panel.semilogy(results.step, curves.median("seed"), label=label)
    panel.set(title=name, xlabel="step")
panels[0].set_ylabel("relative error")
_ = panels[0].legend()

# %% [markdown]
# ## Gross errors, and too many columns
#
# A share of the measurements is replaced by garbage. Least squares follows it; the
# subgradient method on $\|A(U U^\top) - y\|_1$ does not notice; with too many columns it
# is as fast, down to an error that the scale of the start sets (Ma, Fattahi,
# arXiv:2202.08788). The width is an axis too: columns beyond `num_active` are zero, and
# stay so.


# %%
class Outliers(eqx.Module):
    """One cell of the second sweep."""

    solver: str = eqx.field(static=True, default="subgm")
    share: float = 0.1
    width: int = 2


def run_outliers(key, hparams):
    keys = jr.split(key, 4)
    truth = sensing.low_rank(keys[0], (20, 20), rank, is_psd=True)
    clean = sensing.measure(sensing.gaussian(keys[1], (20, 20), 800), truth)
    spoilt = sensing.add_outliers(keys[2], clean, hparams.share, 10 / 800**0.5)
    shared = {"num_columns": 20, "num_active": hparams.width}
    if hparams.solver == "subgm":
        solver = sensing.subgm(spoilt, alpha=1e-4, decay=0.993, **shared)
    else:
        solver = sensing.gd(spoilt, alpha=0.1, eta=0.1, is_symmetric=True, **shared)
    return loop.run(keys[3], solver, 2000)[1]


axes = {"solver": ["gd", "subgm"], "share": [0.0, 0.1, 0.3], "width": [2, 20]}
experiment = Experiment(run=run_outliers, hparams=Outliers(), num_seeds=4)
results = lab.sweep(experiment, axes)
final = results.relative_error.isel(step=-1).median("seed")
final.stack(cell=("share", "width")).to_pandas().T

# %%
figure, panels = plt.subplots(1, 2, sharey=True, figsize=(8, 3), layout="constrained")
for panel, name in zip(panels, results.solver.values, strict=True):
    for share in results.share.values:
        for width, style in zip(results.width.values, ("-", "--"), strict=True):
            cell = results.sel(solver=name, share=share, width=width)
            curve = cell.relative_error.median("seed")
            label = f"{share:.0%} outliers, k = {width}"
            panel.semilogy(results.step, curve, style, label=label)
    panel.set(title=name, xlabel="step")
panels[0].set_ylabel("relative error")
_ = panels[1].legend(fontsize=7)

# %% [markdown]
# `jaxlr list` names the experiments that go on from here: robust recovery and completion
# of photographs, the phase transition in the number of measurements, and the precision
# that the products need.
