"""Is single precision enough for kernels of sixteen thousand steps?

At the end of a long kernel an eigenvalue has turned thousands of times: float32 has
few digits left for the angle. The kernel is a product of two short tables of
exponentials, of powers of two of the step times the rate, and that is kept in two
numbers. Kernels in float32 are compared with float64's from the same rounded
arguments, over steps from 1e-4 to 0.1, for random outputs.

Claims. The error stays below 1e-5 of the kernel's maximum with 64 states, whatever the
start, and below 4e-5 for LegS with 256.

Falsified if the error of any channel exceeds these.

References:
    Gu, Gupta, Goel, Re. "On the Parameterization and Initialization of Diagonal State
    Space Models". 2022. arXiv:2206.11893.
"""

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, Key

from jaxlr import lab, ssm
from jaxlr.core import Axis, Claim, Experiment, Hyper


class HParams(eqx.Module):
    """One cell. Static fields fix shapes; all others may be swept without compiling."""

    kind: ssm.Kind = eqx.field(static=True, default="legs")
    """A name of `ssm.s4d`'s starts."""
    n: int = eqx.field(static=True, default=64)
    """Number of states, even."""
    length: int = eqx.field(static=True, default=16384)
    """Number of steps of the kernel."""
    num_channels: int = eqx.field(static=True, default=256)
    """Number of channels; steps go evenly, in logarithms, from `dt_min` to `dt_max`."""
    dt_min: Hyper = 1e-4
    """Smallest step [time]."""
    dt_max: Hyper = 0.1
    """Largest step [time]."""


class Metrics(eqx.Module):
    """One number a channel."""

    error: Float[Array, " channel"]
    """Largest error of a kernel over its largest entry [1]."""
    dt: Float[Array, " channel"]
    """Step [time]."""


def run(key: Key[Array, ""], hparams: HParams) -> Metrics:
    """One cell.

    Raises:
        ValueError: For an unknown `kind`, or an odd `n`.
    """
    lam, b = ssm.s4d(hparams.n, hparams.kind)
    parts = jr.normal(key, (2, hparams.num_channels, hparams.n // 2))
    share = jnp.linspace(0.0, 1.0, hparams.num_channels)
    low, high = jnp.log(hparams.dt_min), jnp.log(hparams.dt_max)
    dt = jnp.exp(low + share * (high - low)).astype(jnp.float32)
    system = lam, b, parts[0] + 1j * parts[1]
    narrow = [*(jnp.asarray(x, jnp.complex64) for x in system), dt]
    wide = [x.astype(jnp.result_type(x.dtype, share.dtype)) for x in narrow]
    single, double = (
        ssm.kernel(lam, b, c, dt, hparams.length) for lam, b, c, dt in (narrow, wide)
    )
    gap = jnp.max(jnp.abs(single - double), axis=-1)
    return Metrics(gap / jnp.max(jnp.abs(double), axis=-1), dt)


def claims(results) -> list[Claim]:
    """Below 1e-5 with 64 states, below 4e-5 with 256."""
    sizes = results["n"].values
    return [
        Claim(
            f"n {'<=' if n == 64 else '='} {n}: largest error over the largest entry",
            lab.select(results, n=sizes[sizes <= 64] if n == 64 else n)["error"],
            high=bound,
        )
        for n, bound in ((64, 1e-5), (256, 4e-5))
        if n == 64 or n in sizes
    ]


def figure(results):
    """Errors over steps."""
    page, (axes,) = lab.panels(size=(7, 4.6))
    for i in range(results.sizes[DIM]):
        cell = results.isel({DIM: i})
        label = f"{cell['kind'].item()}, n = {cell['n'].item()}"
        worst = cell["error"].max("seed", skipna=False)
        axes.plot(cell["dt"].isel(seed=0), worst, lw=1, color=f"C{i}", label=label)
    axes.axhline(1e-5, color="k", ls=":", lw=1)
    axes.set(xscale="log", yscale="log", xlabel="step dt [time]")
    axes.set(ylabel="largest error / largest entry [1]")
    axes.set_title("Kernels of 16384 steps in float32 against float64")
    axes.legend(fontsize=8, ncols=2)
    return page


DIM = lab.dimension_name(("kind", "n"))
CELLS = (
    *((kind, 64) for kind in ("legs", "lin", "inv", "inv2", "quad", "real")),
    ("legs", 256),
)

EXPERIMENT = Experiment(
    run=run,
    hparams=HParams(),
    axes=(Axis(("kind", "n"), CELLS),),
    num_seeds=2,
    x64=True,
    smoke={
        "axes": (Axis(("kind", "n"), CELLS[::6]),),
        "num_seeds": 1,
        "hparams": HParams(num_channels=8, length=2048),
    },
    dims={"error": ("channel",), "dt": ("channel",)},
    claims=claims,
    figure=figure,
)
