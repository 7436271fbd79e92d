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
# # Kronecker attention, from the equation to a swept figure
#
# Attention weighs positions; Kronecker attention weighs tuples of positions, one of every
# mode. With two modes,
#
# $$s_{ijk} = \frac{1}{\sqrt d} \sum_l q_{il}\, k_{jl}\, k'_{kl}, \qquad
# o_i = \sum_{jk} \mathrm{softmax}_{jk}(s_{ijk})\; v_j \odot v'_k$$
#
# (Alman, Song, arXiv:2310.04064). `attention.tensor_attention` takes tuples of keys and
# values; with one of each it is `jax.nn.dot_product_attention`. It never holds more than a
# tile of scores, and so does its gradient.

# %%
import time

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import matplotlib.pyplot as plt
import numpy as np

from jaxlr import attention, lab
from jaxlr.core import Experiment


def draw(key, length, features, bound=1.0):
    """Query, keys and values of one head: (1, length, 1, features)."""
    shape = 5, 1, length, 1, features
    q, k1, k2, v1, v2 = jr.uniform(key, shape, minval=-1.0)
    return bound * q, (bound * k1, bound * k2), (v1, v2)


query, keys, values = draw(jr.key(0), 60, 8, bound=2.0)
out = attention.tensor_attention(query, keys, values)
scores = jnp.einsum("bind,bjnd,bknd->bnijk", query, *keys) / 8**0.5
shares = jax.nn.softmax(scores.reshape(*scores.shape[:3], -1)).reshape(scores.shape)
by_definition = jnp.einsum("bnijk,bjnd,bknd->bind", shares, *values)
print(f"all scores at once, and by tiles: {jnp.abs(out - by_definition).max():.0e}")

one_mode = attention.tensor_attention(query, keys[:1], values[:1], is_causal=True)
ordinary = jax.nn.dot_product_attention(query, keys[0], values[0], is_causal=True)
print(f"one mode, and ordinary attention: {jnp.abs(one_mode - ordinary).max():.0e}")

# %% [markdown]
# ## What pairs of positions are good for
#
# Match3: which integers $x_i$ of a sequence have two others with
# $x_i + x_j + x_k \equiv 0 \pmod M$? (Sanford, Hsu, Telgarsky, arXiv:2306.02896.) One head with
# five features has $c \cos(2\pi (x_i + x_j + x_k) / M)$ as its score: angles add up under
# products. A blank position, of value 0 where others have 1, scores a little less than a
# match, and more than all else. Nothing is learned.

# %%
M, N = 1021, 32
x = jr.randint(jr.key(1), (N,), 0, M)
angle = 2 * jnp.pi * x / M
C, S, zero, one = jnp.cos(angle), jnp.sin(angle), jnp.zeros(N), jnp.ones(N)
between = jnp.cos(jnp.pi / M)
sharpness = (2 * jnp.log(N) + 10) / (1 - between)


def with_blank(rows, blank):
    return jnp.concatenate([jnp.asarray([blank]), jnp.stack(rows, 1)])[None, :, None]


q = sharpness * jnp.stack([C, -C, -S, -S, between * one], 1)[None, :, None]
k1 = with_blank((C, S, C, S, zero), [0.0, 0, 0, 0, 1])
k2 = with_blank((C, S, S, C, zero), [0.0, 0, 0, 0, 1])
v = with_blank([one] * 5, [0.0] * 5)
found = attention.tensor_attention(q, (k1, k2), (v, v), scale=1.0)[0, :, 0, 0] > 0.5
matching = jnp.any((x[:, None, None] + x[:, None] + x) % M == 0, axis=(1, 2))
print(
    f"{matching.sum()} of {N} match; {(found == matching).sum()} are classified rightly"
)

# %% [markdown]
# ## Linear time, for bounded entries
#
# $n$ queries and two modes of $n$ positions have $n^3$ scores. A Taylor polynomial in place of
# the exponential leaves products of sums over one mode each, and takes linear time, with any
# number of modes. The error falls with the degree as long as entries are small, and not
# beyond: here a sweep over the bound $B$ on entries, three seeds a value, one compilation.


# %%
class HParams(eqx.Module):
    bound: float = 1.0


DEGREES = (0, 2, 4, 6, 8)


def run(key, hparams):
    arrays = draw(key, 128, 4, hparams.bound)
    exact = attention.tensor_attention(*arrays, scale=0.25)
    errors = [
        jnp.max(
            jnp.abs(
                attention.tensor_attention(
                    *arrays, scale=0.25, implementation="polynomial", degree=degree
                )
                - exact
            )
        )
        for degree in DEGREES
    ]
    return {"error": jnp.stack(errors), "largest": jnp.max(jnp.abs(exact))}


EXPERIMENT = Experiment(
    run=run, hparams=HParams(), num_seeds=3, x64=True, dims={"error": ("degree",)}
)
results = lab.sweep(EXPERIMENT, {"bound": [0.25, 0.5, 0.7, 1.0, 1.4, 2.0, 3.0]})
shares = (results["error"] / results["largest"]).assign_coords(degree=list(DEGREES))
for degree in DEGREES:
    curve = shares.sel(degree=degree)
    lab.draw_seeds(plt.gca(), curve, "bound", label=f"degree {degree}")
plt.yscale("log")
plt.xlabel("bound B on entries [1]")
plt.ylabel("largest error / largest output [1]")
plt.legend()
plt.show()

# %% [markdown]
# `certified_error` bounds the error without a look at the outputs; it is loose, and never
# wrong but for rounding. `degree="auto"` takes the least even degree that is certain to do,
# and refuses where none is; without an `implementation` it would be exact there.

# %%
small = draw(jr.key(2), 200, 4)
sure = attention.tensor_attention(
    *small, scale=0.25, implementation="polynomial", degree="auto", error_bound=1e-4
)
exact = attention.tensor_attention(*small, scale=0.25)
print(f"asked for 1e-4, got {jnp.abs(sure - exact).max():.0e}")
try:
    attention.tensor_attention(
        *draw(jr.key(2), 200, 4, bound=8.0),
        implementation="polynomial",
        degree="auto",
        error_bound=1e-4,
    )
except ValueError as error:
    print(error)

# %% [markdown]
# ## What it costs
#
# The best of four calls on this machine.


# %%
def seconds(length, **options):
    arrays = draw(jr.key(3), length, 4)
    call = jax.jit(lambda *arrays: attention.tensor_attention(*arrays, **options))
    times = []
    for _ in range(4):
        begun = time.perf_counter()
        jax.block_until_ready(call(*arrays))
        times.append(time.perf_counter() - begun)
    return min(times)


for name, lengths, options in (
    ("exact, by tiles", 2 ** np.arange(5, 11, 2), {}),
    ("degree 4", 2 ** np.arange(5, 18, 3), {"implementation": "polynomial"}),
):
    plt.loglog(lengths, [seconds(n, **options) for n in lengths], "o-", label=name)
plt.xlabel("queries, and positions of either mode")
plt.ylabel("time [s]")
plt.legend()
plt.show()

# %% [markdown]
# ## One position at a time
#
# Sums over positions are all that a causal polynomial needs of the past: a state of fixed
# size, whatever has gone before.

# %%
query, keys, values = draw(jr.key(4), 300, 4)
parallel = attention.tensor_attention(
    query, keys, values, is_causal=True, implementation="polynomial"
)


def decode(state, row):
    query, keys, values = row
    state = attention.update(state, keys, values)
    return state, attention.query(state, query)


rows = jax.tree.map(lambda x: jnp.moveaxis(x, 1, 0), (query, keys, values))
state = attention.init_state(2, 1, 1, 4)
_, recurrent = jax.lax.scan(decode, state, rows)
gap = jnp.abs(jnp.moveaxis(recurrent, 0, 1) - parallel).max()
print(f"step by step, and all at once: {gap:.0e}")
