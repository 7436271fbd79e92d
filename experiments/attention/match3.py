"""Can one head of three-way attention find triples that add up to zero?

Match3: position i of a sequence of integers matches if x_i + x_j + x_k is a multiple of
M for some j and k. With C and S the cosine and sine of 2 pi x / M, the query
c (C, -C, -S, -S, b) and the keys (C, S, C, S, 0) and (C, S, S, C, 0) have scores
c cos(2 pi (x_i + x_j + x_k) / M): largest, c, for a match. A blank position, with keys
(0, 0, 0, 0, 1) and values 0 where others have 1, has the score c b with itself, below a
match and above all else for b = cos(pi / M). Five features, one head, nothing learned.

Claims. With c = (2 log N + 10) / (1 - b), outputs above 1/2 are the matches: all of
them and no others, in float32, for N up to 64 and M = 1021; no output is closer than
.49 to 1/2. With a hundredth of that c a twentieth of them or more is wrong.

Falsified if a single position of any sequence is classified wrongly, if a hundredth of
c does as well, or if the positions that match are all or none, which would show
nothing.

References:
    Sanford, Hsu, Telgarsky. "Representational Strengths and Limitations of
    Transformers". 2023. arXiv:2306.02896: the task.
    Alman, Song. "How to Capture Higher-order Correlations? Generalizing Matrix Softmax
    Attention to Kronecker Computation". 2023. arXiv:2310.04064: that this attention
    solves it.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Bool, Float, Int, Key

from jaxlr import attention, lab
from jaxlr.core import Claim, Experiment, Hyper


class HParams(eqx.Module):
    """One cell. Static fields fix shapes; all others may be swept without compiling."""

    modulus: int = eqx.field(static=True, default=1021)
    """Modulus M."""
    num_positions: int = eqx.field(static=True, default=64)
    """Number N of integers in a sequence."""
    num_sequences: int = eqx.field(static=True, default=16)
    """Number of sequences."""
    sharpness: Hyper = 1.0
    """Factor c of the scores over (2 log N + 10) / (1 - b) [1]."""


class Metrics(eqx.Module):
    """Over all positions of all sequences."""

    accuracy: Float[Array, ""]
    """Share of positions that are classified rightly [1]."""
    matching: Float[Array, ""]
    """Share of positions that match [1]."""
    margin: Float[Array, ""]
    """Smallest distance of an output from 1/2 [1]."""


def is_matching(x: Int[Array, "B N"], modulus: int) -> Bool[Array, "B N"]:
    """By counting."""
    total = x[:, :, None, None] + x[:, None, :, None] + x[:, None, None, :]
    return jnp.any(total % modulus == 0, axis=(2, 3))


def outputs(x: Int[Array, "B N"], modulus: int, sharpness: Hyper):
    """The outputs of the head, of shape (B, N)."""
    num_positions = x.shape[1]
    between = jnp.cos(jnp.pi / modulus)
    # 1 - cos without cancellation.
    sharpness = (sharpness * (2 * jnp.log(num_positions) + 10)) / (
        2 * jnp.sin(jnp.pi / (2 * modulus)) ** 2
    )
    c, s = jnp.cos(2 * jnp.pi * x / modulus), jnp.sin(2 * jnp.pi * x / modulus)
    zero, one = jnp.zeros_like(c), jnp.ones_like(c)
    query = sharpness * jnp.stack([c, -c, -s, -s, between * one], axis=-1)
    keys = [jnp.stack(parts, -1) for parts in ((c, s, c, s, zero), (c, s, s, c, zero))]
    blank = jnp.zeros_like(query[:, :1]).at[..., 4].set(1.0)
    keys = [jnp.concatenate([blank, key], axis=1) for key in keys]
    values = jnp.concatenate([0 * blank, jnp.ones_like(query)], axis=1)
    head = [x[:, :, None] for x in (query, *keys, values)]
    out = attention.tensor_attention(head[0], head[1:3], (head[3], head[3]), scale=1.0)
    return out[:, :, 0, 0]


def run(key: Key[Array, ""], hparams: HParams) -> Metrics:
    """One cell."""
    shape = hparams.num_sequences, hparams.num_positions
    x = jr.randint(key, shape, 0, hparams.modulus)
    matching = jax.lax.map(lambda row: is_matching(row[None], hparams.modulus)[0], x)
    out = outputs(x, hparams.modulus, hparams.sharpness)
    return Metrics(
        accuracy=jnp.mean((out > 0.5) == matching),
        matching=jnp.mean(matching),
        margin=jnp.min(jnp.abs(out - 0.5)),
    )


SHARPNESSES = 1.0, 0.01


def claims(results) -> list[Claim]:
    """All positions right; not so with scores too close to each other."""
    whole, blunt = (lab.select(results, sharpness=value) for value in SHARPNESSES)
    return [
        Claim("accuracy, every seed", whole["accuracy"], low=1),
        Claim("distance of every output from 1/2", whole["margin"], low=0.49),
        Claim("share of positions that match", whole["matching"], low=0.02, high=0.98),
        Claim("a hundredth of the sharpness: accuracy", blunt["accuracy"], high=0.95),
    ]


def figure(results):
    """Accuracy and shares over N."""
    page, (axes,) = lab.panels(size=(6.4, 4.4))
    for i, sharpness in enumerate(SHARPNESSES):
        cell = lab.select(results, sharpness=sharpness).squeeze("sharpness")
        label = f"accuracy, {sharpness:g} of the sharpness"
        style = {"color": f"C{i}", "marker": "o", "label": label}
        lab.draw_seeds(axes, cell["accuracy"], "num_positions", **style)
    matching = results["matching"].isel(sharpness=0)
    style = {"color": "k", "ls": ":", "label": "share that matches"}
    lab.draw_seeds(axes, matching, "num_positions", **style)
    axes.set(xlabel="positions N", ylabel="share of positions [1]", ylim=(-0.02, 1.05))
    axes.set_title("Match3 modulo 1021 by one head of three-way attention")
    axes.legend(fontsize=8)
    return page


EXPERIMENT = Experiment(
    run=run,
    hparams=HParams(),
    axes={"sharpness": SHARPNESSES, "num_positions": (16, 32, 48, 64)},
    num_seeds=3,
    smoke={"axes": {"sharpness": SHARPNESSES, "num_positions": (32, 64)}},
    claims=claims,
    figure=figure,
)
