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
sources = {"jaxlr": source, "sklearn": "scikit-learn"}  # the latter has the digits
missing = [sources[name] for name in sources if util.find_spec(name) is None]
if missing:
    kept = [f"{name}=={metadata.version(name)}" for name in ("jax", "jaxlib")]
    command = [sys.executable, "-m", "pip", "install", "--quiet", *missing, *kept]
    subprocess.run(command, check=True)

# %% [markdown]
# # Sharpness-aware minimization, from the equation to a swept figure
#
# SAM takes the gradient not at $w$ but at the worst point near by, to first order:
#
# $$g = \nabla L(w), \qquad e = \rho \, g / \|g\|, \qquad
# w \leftarrow w - \eta \, \nabla L(w + e)$$
#
# (Foret, Kleiner, Mobahi, Neyshabur, arXiv:2010.01412). It changes where the gradient is
# taken, not what the optimizer does with it. So it is written as `jax.value_and_grad` is,
# and any optax chain follows.

# %%
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import matplotlib.pyplot as plt
import optax

from jaxlr import core, lab, sharpness
from jaxlr.core import Experiment, loop
from jaxlr.data import digits
from jaxlr.sharpness import theory


rho = 0.1
data = jax.jit(digits)(jr.key(0))
model = sharpness.MLP(jr.key(1), (64, 64, 64, 10))
batch = data.x[:128], data.labels[:128]

plain = jax.value_and_grad(sharpness.cross_entropy)
sam = sharpness.sam_value_and_grad(sharpness.cross_entropy, rho)


@jax.jit
def by_hand(model):
    g = plain(model, *batch)[1]
    scale = rho / optax.tree.norm(g)
    return plain(jax.tree.map(lambda w, g: w + scale * g, model, g), *batch)[1]


def distance(a, b):
    return optax.tree.norm(optax.tree.sub(a, b)) / optax.tree.norm(b)


loss, gradient = jax.jit(sam)(model, *batch)
print(f"loss {loss:.2f}, gradient off by {distance(gradient, by_hand(model)):.0e}")

# %% [markdown]
# `is_normalized=False` is unnormalized SAM, $e = \rho g$; `is_adaptive=True` is ASAM, whose radius
# is relative to each weight; `num_shards` is mSAM, which cuts the batch in shards and
# climbs the loss of each on its own. The smaller the shards, the further their loss rises
# within one radius. The backend "ghost" multiplies by a shard's perturbation, which has low
# rank: the model names its dense layers by `sharpness.dense`.


# %%
def rise_and_gradient(num_shards, backend):
    transform = sharpness.sam_value_and_grad(
        sharpness.cross_entropy,
        rho,
        num_shards=num_shards,
        backend=backend,
        return_info=True,
    )
    (loss, info), gradient = jax.jit(transform)(model, *batch)
    return jnp.mean(info.perturbed_value) - loss, gradient


for num_shards in (1, 8, 32):
    rise, gradient = rise_and_gradient(num_shards, "scan")
    ghost = rise_and_gradient(num_shards, "ghost")[1]
    print(
        f"{num_shards:2} shards: loss rises by {rise:.3f}, "
        f"ghost off by {distance(ghost, gradient):.0e}"
    )

# %% [markdown]
# ## A quadratic: SAM does not converge
#
# The normalized step has length $\rho$ however small the gradient. On a quadratic, SAM
# ends in a cycle $w, -w, w, \dots$ along the eigenvector of the largest eigenvalue
# $\lambda$, of radius $\eta \lambda \rho / (2 - \eta \lambda)$: it feels the steepest
# direction alone (Bartlett, Long, Bousquet, arXiv:2210.01513).

# %%
eigenvalues, eta, rhos = jnp.array([1.0, 0.3]), 0.5, jnp.array([0.03, 0.1, 0.3])


def quadratic(w):
    return jnp.sum(eigenvalues * w**2) / 2


def iterates(rho):
    def step(w, _):
        gradient = sharpness.sam_value_and_grad(quadratic, rho)(w)[1]
        return w - eta * gradient, w

    return jax.lax.scan(step, jnp.array([0.5, 1.0]), length=100)[1]


paths = jax.jit(jax.vmap(iterates))(rhos)
radii = theory.two_cycle_radius(1.0, eta=eta, rho=rhos)
print("||w|| at the end / closed form:", jnp.linalg.norm(paths[:, -1], axis=1) / radii)

figure, panels = plt.subplots(1, 2, figsize=(8, 3), layout="constrained")
panels[0].plot(*paths[-1].T, ".-", lw=0.5)
panels[0].set(title=f"rho = {rhos[-1]:g}", xlabel="steep direction", ylabel="shallow")
for path, radius, rho in zip(paths, radii, rhos, strict=True):
    (line,) = panels[1].semilogy(jnp.linalg.norm(path, axis=1), label=f"rho = {rho:g}")
    panels[1].axhline(radius, color=line.get_color(), ls="--", lw=1)
panels[1].set(title="dashed: closed form", xlabel="step", ylabel="||w||")
_ = panels[1].legend()

# %% [markdown]
# ## Least squares: bias against variance
#
# Unnormalized, everything has a closed form: along an eigenvector of the Hessian the error
# shrinks by $1 - \eta \lambda (1 + \rho \lambda)$ a step. SAM thus fits faster: less bias,
# more variance (Behdin, Mazumder, arXiv:2302.11836). Dots are means over 300 draws of the
# noise.

# %%
n, d, sigma = 200, 50, 1.0
x = jr.normal(jr.key(2), (n, d)) / jnp.sqrt(jnp.arange(1, d + 1))
truth = jr.normal(jr.key(3), (d,))
truth = 2 * truth / jnp.linalg.norm(truth)
modes = theory.least_squares_modes(x, truth)
eta = 0.25 / modes.eigenvalues[-1]
steps, dots = jnp.arange(200), jnp.array([1, 2, 5, 10, 20, 50, 100, 199])


def risk_over_draws(rho):
    def squares(w, y):
        return jnp.sum((x @ w - y) ** 2) / (2 * n)

    gradient = jax.vmap(sharpness.sam_value_and_grad(squares, rho, is_normalized=False))
    y = x @ truth + sigma * jr.normal(jr.key(4), (300, n))

    def step(w, _):
        return w - eta * gradient(w, y)[1], jnp.mean(((w - truth) @ x.T) ** 2)

    return jax.lax.scan(step, jnp.zeros((300, d)), steps)[1]


figure, panels = plt.subplots(1, 2, figsize=(8, 3), layout="constrained")
for name, rho in {"GD": 0.0, "SAM": 2 / modes.eigenvalues[-1]}.items():
    parts = theory.bias_variance(
        modes, num_samples=n, sigma=sigma, eta=eta, rho=rho, num_steps=steps
    )
    (line,) = panels[0].loglog(steps[1:], parts.squared_bias[1:], label=f"{name}: bias")
    color = line.get_color()
    panels[0].loglog(
        steps[1:], parts.variance[1:], "--", color=color, label=f"{name}: variance"
    )
    measured = jax.jit(risk_over_draws)(rho)
    panels[1].semilogx(steps[1:], parts.risk[1:], color=color, label=name)
    panels[1].semilogx(dots, measured[dots], "o", color=color)
    best = int(jnp.argmin(parts.risk))
    print(
        f"{name:3}: risk {parts.risk[5]:.3f} after 5 steps, {parts.risk[-1]:.3f} at "
        f"the end; least, {parts.risk[best]:.3f}, after {best}"
    )
panels[0].set(title="squared bias, variance", xlabel="step", ylim=(1e-3, None))
panels[1].set(title="risk: closed form, and draws", xlabel="step")
panels[0].legend(fontsize=7)
_ = panels[1].legend()

# %% [markdown]
# SAM's risk is the lower one while training is short, and the higher one in the end. Each
# stopped at its best, SAM needs fewer steps, and gains nothing else here.
#
# ## Digits with wrong labels: flat, and accurate
#
# A fifth of the training labels is redrawn. A small network can memorize them, which takes
# a sharp minimum; the test digits are labelled rightly. `lambda_max` is the largest
# eigenvalue of the Hessian, by Lanczos. The radius is traced, so that all its values share
# one program; the number of shards fixes shapes, and is compiled once a value. Radius 0 is
# SGD.


# %%
class HParams(eqx.Module):
    """One cell of the sweep."""

    num_shards: int = eqx.field(static=True, default=1)
    rho: float = 0.1


class Metrics(eqx.Module):
    """Where training ends."""

    curvature: jax.Array
    accuracy: jax.Array
    memorized: jax.Array


def fit(key, hparams):
    keys, num_steps = jr.split(key, 3), 400
    data = digits(keys[0], num_train=640, label_noise=0.2)

    def batch(key, step):
        index = core.epoch_batch(keys[1], step, len(data.x), 64)
        return data.x[index], data.labels[index]

    solver = core.from_optax(
        sharpness.cross_entropy,
        optax.sgd(optax.cosine_decay_schedule(0.1, num_steps), momentum=0.9),
        lambda key: sharpness.MLP(key, (64, 64, 64, 10)),
        batch,
        value_and_grad_fn=sharpness.sam_value_and_grad(
            sharpness.cross_entropy,
            hparams.rho,
            num_shards=hparams.num_shards,
            backend="vmap",
        ),
    )
    return loop.run(keys[2], solver, num_steps)[0].params, data


def run(key, hparams):
    model, data = fit(key, hparams)
    noisy = data.x, data.labels
    found = sharpness.lambda_max(jr.key(0), sharpness.cross_entropy, model, *noisy)
    is_right = jnp.argmax(model(data.x), axis=1) == data.labels
    return Metrics(
        curvature=found.value,
        accuracy=sharpness.accuracy(model, data.test_x, data.test_labels),
        memorized=jnp.sum(is_right & data.is_redrawn) / jnp.sum(data.is_redrawn),
    )


experiment = Experiment(run=run, hparams=HParams(), num_seeds=3)
axes = {"num_shards": [1, 8], "rho": [0.0, 0.1, 0.2, 0.4]}
results = lab.sweep(experiment, axes)
medians = results[["curvature", "accuracy", "memorized"]].median("seed")
medians.to_dataframe().unstack("num_shards").round(3)

# %%
figure, panel = plt.subplots(figsize=(6, 3.6), layout="constrained")
for num_shards in results.num_shards.values:
    label = f"mSAM, {num_shards} shards" if num_shards > 1 else "SAM"
    cells, middle = (r.sel(num_shards=num_shards) for r in (results, medians))
    (line,) = panel.loglog(middle.curvature, 1 - middle.accuracy, "o-", label=label)
    color = line.get_color()
    panel.plot(cells.curvature, 1 - cells.accuracy, ".", color=color, ms=4)
panel.set(xlabel="largest eigenvalue of the Hessian", ylabel="test error")
panel.set_xticks([1, 2, 4, 8], ["1", "2", "4", "8"], minor=False)
panel.set_yticks([0.05, 0.1, 0.2, 0.5], ["5 %", "10 %", "20 %", "50 %"])
panel.minorticks_off()
_ = panel.legend()

# %% [markdown]
# SGD, at the right, is sharpest, and reproduces about half of the wrong labels. A larger
# radius is flatter and more accurate; at one radius, 0.1 or 0.2, mSAM is flatter and more
# accurate than SAM. But the radius is there to be tuned: plain SAM at twice the radius
# matches mSAM, to about a percentage point. And a radius can be too large: with 8 shards
# and 0.4 the digits are not learned well any more.
#
# ## The whole spectrum
#
# `lambda_max` is one number. `spectral_density` shows all eigenvalues at once, by
# stochastic Lanczos, here after training by SAM.

# %%
trained, data = jax.jit(fit)(jr.key(0), HParams(rho=0.2))
density = jax.jit(sharpness.spectral_density, static_argnums=1)(
    jr.key(1), sharpness.cross_entropy, trained, data.x, data.labels
)
num_parameters = sum(w.size for w in jax.tree.leaves(trained))
is_outlier = density.nodes > 0.2 * density.nodes.max()
share = jnp.mean(jnp.sum(density.weights * is_outlier, axis=1))
print(
    f"{num_parameters} eigenvalues from {density.nodes.min():.2f} to "
    f"{density.nodes.max():.2f}; about {num_parameters * share:.0f} of them are above a "
    "fifth of the largest"
)
sharpness.plot_density(density)

# %% [markdown]
# Most eigenvalues are next to zero, and a few stand apart. With `rho=0.0` above, the largest
# are several times as large.
#
# Next: `is_adaptive=True`, whose radius is relative to the weights; `perturb_filter`, to leave
# some of them where they are; `jaxlr run sharpness.digits`, the sweep above at full size,
# with a verdict on each claim. `jaxlr list` names the others: the edge of stability,
# diagonal networks, and SAM on matrix sensing, where it balances the factors.
