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
# # Diagonal state-space models, from the equation to a swept figure
#
# A layer of such a model is a linear system with a diagonal state matrix,
#
# $$x'(t) = \Lambda x(t) + B u(t), \qquad y(t) = 2 \,\mathrm{Re}\, C x(t),$$
#
# sampled every $\Delta$. Its answer to an impulse is a sum of exponentials,
# $K_l = 2 \,\mathrm{Re} \sum_n C_n \bar B_n \bar A_n^l$, and one and the same function is
# computed in three ways: as a convolution to train, by chunks from a state to a state, and
# step by step to decode (Gu, Gupta, Goel, Re, arXiv:2206.11893).

# %%
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import matplotlib.pyplot as plt
import numpy as np
import optax

from jaxlr import core, lab, ssm
from jaxlr.core import Experiment
from jaxlr.data import sequential_digits
from jaxlr.ssm import theory


lam, b = ssm.s4d(64, "lin")  # 32 eigenvalues that stand for themselves and conjugates
lam, b = jnp.asarray(lam, jnp.complex64), jnp.asarray(b, jnp.complex64)
c = jnp.sum(jr.normal(jr.key(0), (32, 2)) * jnp.array([1, 1j]), axis=1)
dt, u = 0.01, jr.normal(jr.key(1), (1000,))


@jax.jit
def three_forms(u):
    convolved = ssm.fft_conv(u, ssm.kernel(lam, b, c, dt, u.size))
    scanned, _ = ssm.scan(lam, b, c, dt, u)
    abar, bbar = ssm.discretize(lam, b, dt)

    def step(state, u):
        y, state = ssm.step(abar, bbar, c, state, u)
        return state, y

    return convolved, scanned, jax.lax.scan(step, jnp.zeros_like(lam), u)[1]


convolved, scanned, stepped = three_forms(u)
for name, y in (("convolution", convolved), ("scan by chunks", scanned)):
    print(f"{name} and steps differ by {jnp.abs(y - stepped).max():.0e}")

# %% [markdown]
# ## What dropping a rank-one matrix costs
#
# HiPPO-LegS, a matrix whose state holds the past of the input in Legendre polynomials, is
# not normal: its eigenvectors have a condition of $10^{11}$ at 16 states. It is a normal
# matrix minus one of rank one, and S4D drops the latter. The transfer function becomes
#
# $$G_{\mathrm{S4D}}(s) = \frac{G(s)}{1 + \rho(s)}, \qquad
# \rho(s) = \prod_{k<n} \frac{s-k}{s+k+1},$$
#
# and $1 + \rho$ is small at the eigenfrequencies: there are spikes, of a height that does
# not fall as $n$ grows. To perturb first and diagonalize then (PTD; Yu, Nigmetov, Morozov,
# Mahoney, Erichson, arXiv:2310.01698) keeps a part of the rank-one matrix, and converges.

# %%
n = 16
lam, b = ssm.s4d(n)
ptd_lam, ptd_b, info = ssm.ptd(*ssm.hippo_legs(n))
omega = np.unique(np.concatenate([np.geomspace(0.5, 400, 2000), lam.imag]))
first = ssm.dplr_legs(n).v[0, n // 2 :]  # the output of state 0
curves = {
    "HiPPO-LegS": theory.legs_states(n, 1j * omega)[0],
    "S4D-LegS": theory.transfer(lam, b, first, 1j * omega),
    f"PTD, condition {info.kappa:.1f}": theory.transfer(
        ptd_lam, ptd_b, info.v[0], 1j * omega
    ),
}
gap = np.abs(
    curves["S4D-LegS"] * (1 + theory.rho(n, 1j * omega)) - curves["HiPPO-LegS"]
)
print(f"the identity is off by {gap.max():.0e}")
for name, values in curves.items():
    plt.loglog(omega, np.abs(values), label=name)
plt.xlabel("frequency [radians / time]")
plt.ylabel("|G(i w)|, output of state 0")
plt.legend()
plt.show()

# %% [markdown]
# ## A network that reads digits pixel by pixel
#
# `ssm.Stack` is an encoder, residual blocks with a layer each, and a decoder; it takes one
# sequence, and `vmap` takes many. Eigenvalues, input weights and steps are trained more
# slowly than the rest, and without weight decay: `ssm.adamw`. Here the start of the systems is
# swept, with two seeds.


# %%
class HParams(eqx.Module):
    start: str = eqx.field(static=True, default="legs")


def layer(key, start):
    return (
        ssm.S4DPTD(key, 16, 16) if start == "ptd" else ssm.S4D(key, 16, 16, kind=start)
    )


def run(key, hparams):
    keys = jr.split(key)
    x, labels, test_x, test_labels = map(jnp.asarray, sequential_digits())

    def loss(model, x, labels):
        logits = jax.vmap(model)(x)
        return jnp.mean(
            optax.losses.softmax_cross_entropy_with_integer_labels(logits, labels)
        )

    def batch(key, step):
        index = core.epoch_batch(keys[0], step, len(x), 64)
        return x[index], labels[index]

    solver = core.from_optax(
        loss,
        ssm.adamw(8e-3, 2e-3),
        lambda key: ssm.Stack(
            key,
            lambda key: layer(key, hparams.start),
            16,
            10,
            num_inputs=1,
            num_layers=2,
        ),
        batch,
    )

    def watch(state):
        predicted = jnp.argmax(jax.vmap(state.params)(test_x), axis=1)
        return {"accuracy": jnp.mean(predicted == test_labels)}

    # Watched before every epoch: one step more shows what eight of them end in.
    epoch = len(x) // 64
    return core.loop.run(keys[1], solver, 8 * epoch + 1, every=epoch, watch_fn=watch)[1]


EXPERIMENT = Experiment(run=run, hparams=HParams(), num_seeds=2)
results = lab.sweep(EXPERIMENT, {"start": ["legs", "lin", "ptd", "real"]})

for start in results["start"].values:
    cell = lab.select(results, start=start).squeeze("start")
    epochs = cell.assign_coords(epoch=("step", np.arange(9)))
    lab.draw_seeds(plt.gca(), epochs["accuracy"], "epoch", label=start)
plt.xlabel("epoch")
plt.ylabel("test accuracy [1]")
plt.legend()
plt.show()

# %% [markdown]
# Decays alone ("real") fall behind the three starts with frequencies.
# `jaxlr run ssm.digits` trains longer, from ten starts.
