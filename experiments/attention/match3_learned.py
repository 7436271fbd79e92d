"""Does three-way attention learn Match3 where matrix attention does not, at one budget?

Position i of a sequence of 8 integers matches if x_i + x_j + x_k is a multiple of 23
for some j and k. Transformers of width 32, on learned embeddings of the integers, see
the same fresh sequences for the same number of steps of the same optimizer: one block
of three-way attention; one block of matrix attention with twice the heads and a wider
hidden layer, which gives it no fewer parameters; and two blocks of the latter kind. Of
three learning rates each takes the one that is best on validation sequences, in the
median over seeds; what follows is of other sequences.

Four positions in five match, most of them by two integers alone (x_i + 2 x_j, 2 x_i +
x_j, 3 x_i). The score is taken among positions that no pair makes match: the chance
(AUC) that one of them that matches is ranked above one that does not.

Claims. At this budget three-way attention is ahead of one block of matrix attention by
.2 of that score, whatever the seed, and of two blocks, of nearly twice the parameters,
by .05 in the median. It classifies .1 more of all positions rightly than the larger
class has, whatever the seed. Falsified if one of these is missed.

It is a matter of budget: with four times the steps (one seed, learning rate 3e-3, not
part of the sweep) two blocks of matrix attention learned Match3 (1.00) and one came to
.83. The bound set before the first run was .1 of the score among all positions, of
which pairs alone give .8; .106, .099 and .090 came out, so it is not claimed. That of
.2 was set before its score was first measured, that of .05 after. Cosines and sines for
embeddings made no difference to this, and a learning rate of .03 was worse for all (one
seed each, at somewhat other budgets).

References:
    Sanford, Hsu, Telgarsky. "Representational Strengths and Limitations of
    Transformers". 2023. arXiv:2306.02896: the task, for which one layer of matrix
    attention needs a size that grows with the length.
    Alman, Song. "How to Capture Higher-order Correlations? Generalizing Matrix Softmax
    Attention to Kronecker Computation". 2023. arXiv:2310.04064: that one head of this
    attention solves it.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, Int, Key
import numpy as np
import optax

from jaxlr import attention, lab
from jaxlr.core import checks, Claim, Experiment, from_optax, Hyper, loop

from ..common import training


ARCHITECTURES = {  # modes of attention, heads, hidden features, blocks
    "tensor": (2, 4, 128, 1),
    "matrix": (1, 8, 160, 1),
    "two_matrix": (1, 8, 160, 2),
}


class HParams(eqx.Module):
    """One cell. Static fields fix shapes; all others may be swept without compiling."""

    architecture: str = eqx.field(static=True, default="tensor")
    """`tensor`, `matrix`, or `two_matrix` for two blocks of matrix attention."""
    learning_rate: Hyper = 3e-3
    """Highest learning rate of Adam, from which it falls to 0 [1]."""
    modulus: int = eqx.field(static=True, default=23)
    """Modulus M."""
    num_positions: int = eqx.field(static=True, default=8)
    """Number N of integers in a sequence."""
    num_features: int = eqx.field(static=True, default=32)
    """Number of features of a position."""
    batch_size: int = eqx.field(static=True, default=64)
    """Number of sequences in an update."""
    num_updates: int = eqx.field(static=True, default=200)
    """Number of updates in a round; scores are taken after each round."""
    num_rounds: int = eqx.field(static=True, default=10)
    """Number of rounds of training."""
    num_held_out: int = eqx.field(static=True, default=2048)
    """Number of sequences to validate, and as many to test with."""


class Metrics(eqx.Module):
    """After each round."""

    loss: Float[Array, " step"]
    """Training loss on a fresh batch [nat]."""
    valid_auc: Float[Array, " step"]
    """Chance that a match is ranked rightly among validation sequences [1]."""
    auc: Float[Array, " step"]
    """Chance that a match is ranked rightly, where no pair makes a match [1]."""
    accuracy: Float[Array, " step"]
    """Share of all test positions that are classified rightly [1]."""
    majority: Float[Array, ""]
    """Share of all test positions that the larger class has [1]."""
    num_parameters: Float[Array, ""]
    """Number of the network's parameters [1]."""


class Network(eqx.Module):
    """A logit of every position."""

    embedding: Float[Array, "M H"]
    blocks: list[attention.TransformerBlock]
    norm: eqx.nn.LayerNorm
    head: eqx.nn.Linear

    def __init__(self, key: Key[Array, ""], hparams: HParams):
        """Draws all parameters."""
        modes, heads, hidden, num = ARCHITECTURES[hparams.architecture]
        embedding_key, head_key, *keys = jr.split(key, 2 + num)
        size = hparams.num_features
        self.embedding = jr.normal(embedding_key, (hparams.modulus, size))
        self.blocks = [
            attention.TransformerBlock(
                key, size, heads, num_modes=modes, num_hidden=hidden
            )
            for key in keys
        ]
        self.norm = eqx.nn.LayerNorm(size)
        self.head = eqx.nn.Linear(size, "scalar", key=head_key)

    def __call__(self, x: Int[Array, " N"]) -> Float[Array, " N"]:
        """The logits of a sequence."""
        x = self.embedding[x]
        for block in self.blocks:
            # Sequences are short: tiles would not save memory.
            x = block(x, implementation="reference")
        return jax.vmap(self.head)(jax.vmap(self.norm)(x))


def matches(x: Int[Array, "B N"], modulus: int):
    """Which positions match, and which do by less than three positions."""
    total = x[:, :, None, None] + x[:, None, :, None] + x[:, None, None, :]
    is_zero = total % modulus == 0
    i, j, k = jnp.meshgrid(*[jnp.arange(x.shape[1])] * 3, indexing="ij")
    is_pair = (i == j) | (j == k) | (k == i)
    return jnp.any(is_zero, (2, 3)), jnp.any(is_zero & is_pair, (2, 3))


def auc(score, label, by_pair) -> Float[Array, ""]:
    """Area under the receiver operating characteristic, where no pair makes a match.

    NaN unless all scores are finite.
    """
    order = jnp.argsort(jnp.where(by_pair, jnp.inf, score).ravel())
    label = jnp.ravel(label & ~by_pair)[order]
    num = jnp.sum(label)
    rank = jnp.mean(jnp.arange(label.size), where=label)
    area = (rank - (num - 1) / 2) / (jnp.sum(~by_pair) - num)
    return jnp.where(jnp.all(jnp.isfinite(score)), area, jnp.nan)


def run(key: Key[Array, ""], hparams: HParams) -> Metrics:
    """One cell.

    Raises:
        ValueError: For an unknown `architecture`.
    """
    checks.choice("architecture", hparams.architecture, ARCHITECTURES)
    train_key, test_key, solve_key = jr.split(key, 3)
    num_steps = hparams.num_rounds * hparams.num_updates

    def draw(key, num):
        return jr.randint(key, (num, hparams.num_positions), 0, hparams.modulus)

    def loss(network, x):
        label, _ = matches(x, hparams.modulus)
        losses = optax.losses.sigmoid_binary_cross_entropy(jax.vmap(network)(x), label)
        return jnp.mean(losses)

    def batch(_, step):
        return (draw(jr.fold_in(train_key, step), hparams.batch_size),)

    shape = optax.warmup_cosine_decay_schedule(0.0, 1.0, num_steps // 20, num_steps)
    solver = from_optax(
        loss,
        optax.chain(
            optax.clip_by_global_norm(1.0),
            optax.adam(lambda step: hparams.learning_rate * shape(step)),
        ),
        lambda key: Network(key, hparams),
        batch,
    )
    x = draw(test_key, 2 * hparams.num_held_out)
    label, by_pair = matches(x, hparams.modulus)

    def halves(x):
        return x.reshape(2, -1, hparams.num_positions)

    def watch(state):
        score = jax.vmap(state.params)(x)
        aucs = jax.vmap(auc)(halves(score), halves(label), halves(by_pair))
        accuracy = jnp.mean(halves((score > 0) == label)[1])
        return loss(state.params, *batch(None, state.step)), aucs, accuracy

    state, before = loop.run(
        solve_key, solver, num_steps, every=hparams.num_updates, watch_fn=watch
    )
    losses, aucs, accuracy = training.after_blocks(before, watch(state))
    share = jnp.mean(halves(label)[1])
    size = training.num_parameters(state.params)
    return Metrics(
        loss=losses,
        valid_auc=aucs[:, 0],
        auc=aucs[:, 1],
        accuracy=accuracy,
        majority=jnp.maximum(share, 1 - share),
        num_parameters=jnp.asarray(size, share.dtype),
    )


def chosen(results):
    """The learning rate that validation chooses for every architecture, at the end."""
    results = results.isel(step=-1)
    score = results["valid_auc"].median("seed", skipna=False).fillna(0)
    return results.isel(learning_rate=score.argmax("learning_rate"))


def claims(results) -> list[Claim]:
    """Three-way attention knows the triples, and is ahead."""
    last = chosen(results)
    tensor = last.sel(architecture="tensor")
    others = last.drop_sel(architecture="tensor")
    size = others["num_parameters"] / tensor["num_parameters"]
    gain = tensor["auc"] - others["auc"]
    found = [
        Claim("parameters of the others over those of the tensor's", size, low=1),
        Claim(
            "tensor: accuracy above the share of the larger class, every seed",
            tensor["accuracy"] - tensor["majority"],
            low=0.1,
        ),
        Claim(
            "tensor above matrix: AUC where no pair makes a match, every seed",
            gain.sel(architecture="matrix"),
            low=0.2,
        ),
    ]
    if "two_matrix" in results["architecture"].values:
        median = gain.sel(architecture="two_matrix").median("seed", skipna=False)
        statement = "tensor above two blocks: AUC where no pair makes a match (median)"
        found.append(Claim(statement, median, low=0.05))
    return found


def figure(results):
    """Over rounds, at the chosen learning rates; over all of them, at the end."""
    page, (over_rounds, over_rates) = lab.panels(
        1, 2, has_shared_y=True, size=(11, 4.4)
    )
    rounds = np.arange(results.sizes["step"]) + 1
    curves = results.assign_coords(round=("step", rounds))["auc"]
    names, rates = chosen(results)["architecture"], chosen(results)["learning_rate"]
    for i, (name, rate) in enumerate(zip(names.values, rates.values, strict=True)):
        cells = curves.sel(architecture=name)
        size = int(results["num_parameters"].sel(architecture=name).max())
        style = {"color": f"C{i}", "marker": "o", "label": f"{name}, {size} parameters"}
        lab.draw_seeds(over_rounds, cells.sel(learning_rate=rate), "round", **style)
        lab.draw_seeds(over_rates, cells.isel(step=-1), "learning_rate", **style)
    over_rounds.set(xlabel="round", title="learning rates that validation chooses")
    over_rounds.set(ylabel="AUC where no pair makes a match [1]", ylim=(0.45, 1.02))
    over_rates.set(xlabel="learning rate [1]", xscale="log", title="at the end")
    over_rounds.legend(fontsize=8, loc="upper left")
    for axes in (over_rounds, over_rates):
        axes.axhline(0.5, color="k", ls=":", lw=1)
    page.suptitle("Match3 learned: medians and ranges of seeds, fresh sequences")
    return page


EXPERIMENT = Experiment(
    run=run,
    hparams=HParams(),
    axes={
        "architecture": tuple(ARCHITECTURES),
        "learning_rate": (1e-3, 3e-3, 1e-2),
    },
    num_seeds=3,
    smoke={
        "axes": {"architecture": ("tensor", "matrix"), "learning_rate": (1e-2,)},
        "num_seeds": 1,
        "hparams": HParams(
            modulus=17, num_positions=5, num_updates=40, num_held_out=512
        ),
    },
    claims=claims,
    figure=figure,
)
