"""How does the cost of Kronecker attention grow with the length?

Over pairs of n positions, exact attention by tiles takes a score for every triple; a
polynomial of r = C(d + degree, degree) monomials in place of the exponential sums over
each mode by itself. Programs of one head are compiled, not run, and their flops counted
with the repeats of loops (`lab.cost`), so that n = 65536 costs no more to measure than
n = 1024; memory is what the compiler sets aside beside arguments and results.

Claims. At powers of two from n = 1024 to 65536, which fill the tiles, the polynomial's
flops grow as n and the exact form's as n^3, with gradients too. Those of a forward pass
are 1 to 1.4 of its products', which are 6 n r (d + 1) and 4 n^3 d, and a backward pass
takes at most three times as many. Memory grows no faster than n. Most of the exact
form's is a tile, the same for all n; in differences between lengths it cancels, and
there a position adds no more than five arrays as large as its query. With causality,
windows or order the polynomial's flops grow as n too, from n = 4096 on, where there are
chunks enough, and are at most 16 times those of its products without. All forms are of
one function: for entries of queries and keys uniform in [-1/2, 1/2], scores divided by
d and n = 64, outputs agree to 1e-4 of the largest.

Falsified if a slope of log flops over log n leaves 1.00 +- .02 or 3.00 +- .05, a slope
of log memory between neighboring lengths exceeds 1.05, or another bound is missed.

References:
    Alman, Song. "How to Capture Higher-order Correlations? Generalizing Matrix Softmax
    Attention to Kronecker Computation". 2023. arXiv:2310.04064: near-linear time for
    bounded entries.
    Dao, Fu, Ermon, Rudra, Re. "FlashAttention: Fast and Memory-Efficient Exact
    Attention with IO-Awareness". 2022. arXiv:2205.14135: linear memory by tiles.
"""

import functools as ft

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, Key
import numpy as np

from jaxlr import attention, lab
from jaxlr.core import Axis, Claim, Experiment
from jaxlr.lab import cost


class HParams(eqx.Module):
    """One cell: a form, and a length."""

    implementation: str = eqx.field(static=True, default="polynomial")
    """A name of `tensor_attention`'s implementations."""
    num_features: int = eqx.field(static=True, default=4)
    """Number of features d of a head."""
    degree: int = eqx.field(static=True, default=4)
    """Degree of the polynomial; the exact form has none."""
    mask: str = eqx.field(static=True, default="none")
    """Which scores count: "none", "causal", "windows", or "ordered" and causal."""
    num_positions: int = eqx.field(static=True, default=1024)
    """Number n of queries, and of positions of either mode."""


MASKS = {
    "none": {},
    "causal": {"is_causal": True},
    "windows": {"local_window_size": 100},
    "ordered": {"is_ordered": True, "is_causal": True},
}


class Metrics(eqx.Module):
    """What a forward pass costs, and one that is followed by the backward pass."""

    flops: Float[Array, ""]
    """Cost of the value [flop]."""
    gradient_flops: Float[Array, ""]
    """Cost of value and gradient [flop]."""
    memory: Float[Array, ""]
    """Temporaries of the value [bytes]."""
    gradient_memory: Float[Array, ""]
    """Temporaries of value and gradient [bytes]."""
    error: Float[Array, ""]
    """Largest error over the largest output, n = 64 and small entries [1]."""


def _attend(implementation, degree, mask, query, keys, values):
    return attention.tensor_attention(
        query,
        keys,
        values,
        scale=1 / query.shape[-1],
        implementation=implementation,
        degree=degree,
        **MASKS[mask],
    )


@ft.cache
def _costs(implementation, num_features, degree, mask, num_positions):
    """Flops and memory of the value, and of value and gradient."""
    value = ft.partial(_attend, implementation, degree, mask)
    x = jax.ShapeDtypeStruct((1, num_positions, 1, num_features), jnp.float32)

    def value_and_gradient(d_out, *arrays):
        out, pullback = jax.vjp(value, *arrays)
        return out, pullback(d_out)

    arrays = x, (x, x), (x, x)
    return (
        cost.compiled_cost(value, *arrays),
        cost.compiled_cost(value_and_gradient, x, *arrays),
    )


def run(key: Key[Array, ""], hparams: HParams) -> Metrics:
    """One cell: costs from the compiler, the error from random arrays."""
    name, mask = hparams.implementation, hparams.mask
    form = name, hparams.num_features, hparams.degree, mask
    value, gradient = _costs(*form, hparams.num_positions)
    query, *sets = jr.uniform(key, (5, 1, 64, 1, hparams.num_features), minval=-1.0)
    arrays = query / 2, [x / 2 for x in sets[:2]], sets[2:]
    out = _attend(name, hparams.degree, mask, *arrays)
    exact = _attend("reference", 0, mask, *arrays)
    return Metrics(
        flops=jnp.asarray(value.flops, float),
        gradient_flops=jnp.asarray(gradient.flops, float),
        memory=jnp.asarray(value.temporary_bytes, float),
        gradient_memory=jnp.asarray(gradient.temporary_bytes, float),
        error=jnp.max(jnp.abs(out - exact)) / jnp.max(jnp.abs(exact)),
    )


FIELDS = ("implementation", "num_features", "degree", "mask")
EXACT = ("xla", 4, 0, "none")
MASKED = tuple(("polynomial", 4, 2, mask) for mask in MASKS if mask != "none")
FORMS = (
    EXACT,
    ("polynomial", 4, 2, "none"),
    ("polynomial", 4, 4, "none"),
    ("polynomial", 16, 2, "none"),
    *MASKED,
)
MANY_CHUNKS = 4096  # positions


def _rows(cells, name):
    """An array (form, length)."""
    return cells[name].transpose("seed", ..., "num_positions").values[0]


def _products(cells):
    """Flops of the products alone, (form, length)."""
    n = cells["num_positions"].values.astype(float)
    rows = []
    for name, d, degree, _ in zip(*(cells[f].values for f in FIELDS), strict=True):
        num_features = attention.num_features(int(d), int(degree))
        linear = 6 * n * num_features * (d + 1)
        rows.append(4 * n**3 * d if name == "xla" else linear)
    return np.array(rows)


def _slopes(cells, name):
    """Slopes of log cost over log n, by least squares, one a form."""
    logs = np.log(_rows(cells, name).T)
    return np.polyfit(np.log(cells["num_positions"].values), logs, 1)[0]


def _steps(cells, name):
    """Slopes from each length to the next, (form, length)."""
    logs = np.log(_rows(cells, name))
    return np.diff(logs) / np.diff(np.log(cells["num_positions"].values))


def claims(results) -> list[Claim]:
    """Flops by slopes and by counts, memory by bounds, agreement."""
    every = results
    masks = sorted({*every["mask"].values} - {"none"})
    masked = lab.select(every, mask=masks or "causal")  # without any, an error
    results = lab.select(results, mask="none")
    exact, linear = (
        lab.select(results, implementation=name) for name in ("xla", "polynomial")
    )
    long = masked.isel(num_positions=masked["num_positions"] >= MANY_CHUNKS)
    names = {"value": "", "value and gradient": "gradient_"}
    query_bytes = 4 * exact["num_features"].values[0]
    added = np.diff(exact["num_positions"].values) * query_bytes
    forward, both = (_rows(results, name) for name in ("flops", "gradient_flops"))
    found = []
    for words, prefix in names.items():
        flops, memory = f"{prefix}flops", f"{prefix}memory"
        found += [
            Claim(
                f"polynomial, {words}: slope of log flops over log n",
                _slopes(linear, flops),
                low=0.98,
                high=1.02,
                source="Alman, Song (2023)",
            ),
            Claim(
                f"exact, {words}: slope of log flops over log n",
                _slopes(exact, flops),
                low=2.95,
                high=3.05,
            ),
            Claim(
                f"polynomial with masks, {words}: slope of log flops over log n",
                _slopes(long, flops),
                low=0.98,
                high=1.02,
            ),
            Claim(
                f"all forms, {words}: slope of log memory between lengths",
                [*_steps(results, memory), *_steps(masked, memory)],
                high=1.05,
            ),
            Claim(
                f"exact, {words}: memory a position adds, over its query's",
                np.diff(_rows(exact, memory)) / added,
                high=5,
            ),
        ]
    return [
        *found,
        Claim(
            "all forms, value: flops over those of its products",
            forward / _products(results),
            low=1,
            high=1.4,
        ),
        Claim(
            "polynomial with masks, value: flops over those of products without",
            _rows(masked, "flops") / _products(masked),
            high=16,
        ),
        Claim(
            "all forms: flops of the backward pass over the forward one",
            both / forward - 1,
            high=3,
            source="12 d over 4 d for each triple",
        ),
        Claim("all forms, n = 64: largest error", every["error"], high=1e-4),
    ]


def figure(results):
    """Flops and memory over the length."""
    page, panels = lab.panels(1, 2, size=(11, 4.6))
    n = results["num_positions"].values
    products = _products(results)
    forms = zip(*(results[field].values for field in FIELDS), strict=True)
    for i, (name, d, degree, mask) in enumerate(forms):
        label = f"exact, d = {d}" if name == "xla" else f"d = {d}, degree {degree}"
        label += f", {mask}" if mask != "none" else ""
        for axes, metric in zip(panels, ("flops", "memory"), strict=True):
            value, gradient = (
                _rows(results, f"{p}{metric}") for p in ("", "gradient_")
            )
            axes.plot(n, value[i], f"C{i}o-", label=label)
            axes.plot(n, gradient[i], f"C{i}^--")
        panels[0].plot(n, products[i], "k:", lw=1)
    for axes, title, units in zip(
        panels, ("flops", "memory"), ("flop", "bytes"), strict=True
    ):
        axes.set(xscale="log", yscale="log", xlabel="positions n [1]")
        axes.set(ylabel=f"{title} [{units}]")
    panels[0].plot([], [], "k:", label="products alone")
    panels[0].plot([], [], "k^--", label="with the gradient")
    panels[0].legend(fontsize=8)
    panels[0].set_title("by the compiler's count, loops by their repeats")
    panels[1].set_title("temporaries of the compiled program")
    page.suptitle("Attention over pairs of n positions: n^3 exact, n by polynomials")
    return page


EXPERIMENT = Experiment(
    run=run,
    hparams=HParams(),
    axes=(
        Axis(FIELDS, FORMS),
        Axis("num_positions", tuple(2**k for k in range(10, 17))),
    ),
    smoke={
        "axes": (
            Axis(FIELDS, (EXACT, ("polynomial", 16, 2, "none"), MASKED[0])),
            Axis("num_positions", (4096, 65536)),
        ),
    },
    claims=claims,
    figure=figure,
)
