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
# # A first sweep
#
# Recover a matrix $M$ of rank 3 from all its entries by gradient descent on two factors,
# $F G^\top$. How does the number of columns, and the scale of the start, decide how fast
# the error falls?
#
# An experiment is a pure function of a key and hyper-parameters. A field marked static
# fixes a shape; all others can be swept without compiling again.

# %%
import equinox as eqx
import jax
import jax.random as jr

from jaxlr import lab, sensing
from jaxlr.core import Experiment, loop


class HParams(eqx.Module):
    """One cell of the sweep."""

    alpha: float = 0.1
    num_columns: int = eqx.field(static=True, default=5)


def run(key, hparams):
    """Error curves of one run."""
    truth = sensing.low_rank(jr.fold_in(key, 0), (30, 30), 3)
    problem = sensing.measure(sensing.identity((30, 30)), truth)
    solver = sensing.gd(problem, num_columns=hparams.num_columns, alpha=hparams.alpha)
    return loop.run(jr.fold_in(key, 1), solver, 600)[1]


experiment = Experiment(run=run, hparams=HParams(), num_seeds=4)
print(jax.__version__, jax.devices())

# %% [markdown]
# The plan says what will happen: static values become compilations, traced ones a `vmap`.

# %%
axes = {"alpha": [0.8, 0.4, 0.2], "num_columns": [3, 5]}
print(lab.plan(experiment, axes))

# %%
results = lab.sweep(experiment, axes)
results

# %% [markdown]
# Results are labelled: dimensions are the axes, the seed, and the step. Seed $i$ is the
# same key in every cell, so two cells differ by their hyper-parameters alone.

# %%
results.relative_error.isel(step=-1).median("seed").to_pandas()

# %% [markdown]
# With as many columns as the rank (left) the scale of the start hardly matters; with more
# (right) the error falls at a rate that goes with $\alpha^2$: the imbalance of the two
# factors drives it (Xiong, Ding, Du, arXiv:2310.01769).

# %%
import matplotlib.pyplot as plt


figure, panels = plt.subplots(1, 2, sharey=True, figsize=(8, 3), layout="constrained")
for panel, num_columns in zip(panels, results.num_columns.values, strict=True):
    for alpha in results.alpha.values:
        curves = results.relative_error.sel(alpha=alpha, num_columns=num_columns)
        panel.semilogy(results.step, curves.median("seed"), label=f"alpha = {alpha}")
        low, high = curves.min("seed"), curves.max("seed")
        panel.fill_between(results.step, low, high, alpha=0.2)
    panel.set(title=f"{num_columns} columns", xlabel="step")
panels[0].set_ylabel("relative error")
_ = panels[0].legend()
# %% [markdown]
# A sweep with a directory keeps every finished chunk. Killed, it goes on with
# `resume=True`; and any single cell can be run again, bit for bit.

# %%
import tempfile


directory = Path(tempfile.mkdtemp()) / "first_sweep"
lab.sweep(experiment, axes, directory=directory)
again = lab.replay(directory, {"alpha": 0.4, "num_columns": 5}, seed=2)
print(again.attrs["replay"])
