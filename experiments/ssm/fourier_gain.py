"""How much of a sinusoid at an eigenfrequency does a fixed layer pass?

S4D-LegS, rank-one PTD (t = 1/2) and HiPPO-LegS itself, for the output of state 0, are
driven by sinusoids at the four top eigenfrequencies of S4D-LegS, and midway below each
of them, until nothing is left of the start. Gains are measured on the output of the
convolution. S4D and PTD are discretized by a hold over the step, HiPPO-LegS by the
bilinear rule, in 8 or 16 steps a period of the top eigenfrequency.

Claims. What is passed is what theory says: |G(i w)| of the transfer function, for all
systems and frequencies, but for some percent that the discretization takes. At the
k-th eigenfrequency from the top S4D passes nearly 2 / ((2k-1) pi), .6 of the topmost,
where HiPPO-LegS passes 1e-2 at n = 16 and 1e-3 at 64; PTD passes what HiPPO-LegS does,
over |1 + rho / 3|. Half way to the next eigenfrequency S4D is silent again: it is
noise at a few frequencies that it cannot stand.

Falsified if a gain leaves .97..1.03 of |G(i w)|; if S4D's gain at the top leaves
.60...65, or is less than 20 times that midway; if the gain of PTD over that of
HiPPO-LegS is more than 3 % off 1 / |1 + rho / 3|, which is between 3/4 and 3/2; or if
S4D's gain over that of HiPPO-LegS at the top is below 500 at the largest n (n = 64;
n = 32 in the small size: 150).

References:
    Yu, Nigmetov, Morozov, Mahoney, Erichson. "Robustifying State-space Models for Long
    Sequences via Approximate Diagonalization". 2023. arXiv:2310.01698.
    Gu, Gupta, Goel, Re. "On the Parameterization and Initialization of Diagonal State
    Space Models". 2022. arXiv:2206.11893.
"""

import math

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, Key
import numpy as np

from jaxlr import lab, ssm
from jaxlr.core import Claim, Experiment
from jaxlr.ssm import theory


T = 0.5
NUM_TOP = 4
# Transients fall as exp(-time / 2).
DURATION, WINDOW = 24.0, 1.0


class HParams(eqx.Module):
    """One cell."""

    n: int = eqx.field(static=True, default=64)
    """Number of states, even and at least 10."""
    steps: int = eqx.field(static=True, default=8)
    """Number of steps in a period of the top eigenfrequency."""


class Metrics(eqx.Module):
    """Amplitude of the output over that of the input, in the last unit of time."""

    s4d: Float[Array, "place spike"]
    """Gain of S4D-LegS at eigenfrequencies from the top, and midway below [1]."""
    ptd: Float[Array, "place spike"]
    """Gain of rank-one PTD there [1]."""
    legs: Float[Array, "place spike"]
    """Gain of HiPPO-LegS there [1]."""


def _systems(n):
    """`(lam, b, c)` of S4D-LegS and of PTD, c for the output of state 0."""
    lam, b, info = ssm.ptd(*ssm.hippo_legs(n), t=T)
    v = ssm.dplr_legs(n).v[:, n // 2 :]
    s4d_lam, s4d_b = ssm.s4d(n)
    return (s4d_lam, s4d_b, v[0]), (lam, b, info.v[0])


def _frequencies(n):
    """Angular frequencies: eigenfrequencies from the top, and midway below each."""
    lam, _ = ssm.s4d(n)
    top = np.imag(lam)[::-1]
    return np.stack([top[:NUM_TOP], (top[:NUM_TOP] + top[1 : NUM_TOP + 1]) / 2])


def run(key: Key[Array, ""], hparams: HParams) -> Metrics:
    """One cell: the key draws the phases of the sinusoids."""
    n, omega = hparams.n, _frequencies(hparams.n)
    dt = 2 * np.pi / omega.max() / hparams.steps
    length, window = math.ceil(DURATION / dt), math.ceil(WINDOW / dt)
    legs = ssm.dplr_kernel(ssm.dplr_legs(n), np.eye(n)[0], dt, length)
    kernels = [
        *(
            ssm.kernel(jnp.asarray(lam), jnp.asarray(b), c, dt, length)
            for lam, b, c in _systems(n)
        ),
        legs,
    ]
    turns = omega[..., None] * dt * np.arange(length)
    u = jnp.sin(turns + jr.uniform(key, (*omega.shape, 1), maxval=2 * np.pi))
    waves = np.stack([np.cos(turns), np.sin(turns)], axis=-1)[..., -window:, :]
    fit = jnp.asarray(np.linalg.pinv(waves))

    def gain(k):
        y = ssm.fft_conv(u, k)[..., -window:]
        return jnp.linalg.norm(jnp.einsum("...pl,...l->...p", fit, y), axis=-1)

    return Metrics(*map(gain, kernels))


def claims(results) -> list[Claim]:
    """Measured gains against transfer functions."""
    sizes = sorted(results["n"].values)

    def measured(name, n):
        return lab.select(results, n=n)[name].transpose(..., "place", "spike").values

    predicted = {"s4d": [], "ptd": [], "legs": []}
    for n in sizes:
        s = 1j * _frequencies(n)
        for name, system in zip(("s4d", "ptd"), _systems(n), strict=True):
            predicted[name].append(np.abs(theory.transfer(*system, s)))
        predicted["legs"].append(np.abs(theory.legs_states(n, s)[0]))
    tops = [measured("s4d", n)[..., 0, 0] for n in sizes]
    tau = theory.rank1_tau(T)
    largest = sizes[-1]
    return [
        *(
            Claim(
                f"{title}: gain over |G(i w)|",
                [
                    measured(name, n) / value
                    for n, value in zip(sizes, predicted[name], strict=True)
                ],
                low=0.97,
                high=1.03,
            )
            for name, title in (
                ("s4d", "S4D"),
                ("ptd", "rank-one PTD"),
                ("legs", "HiPPO-LegS"),
            )
        ),
        Claim(
            "S4D: gain at the top eigenfrequency",
            tops,
            low=0.6,
            high=0.65,
            source="derived",
        ),
        Claim(
            "S4D: gain at the top eigenfrequency over that midway below",
            [
                gain[..., 0, 0] / gain[..., 1, 0]
                for gain in (measured("s4d", n) for n in sizes)
            ],
            low=20,
        ),
        Claim(
            "rank-one PTD: gain over HiPPO-LegS's, times |1 + rho / 3|",
            [
                measured("ptd", n)
                / measured("legs", n)
                * np.abs(1 + tau * theory.rho(n, 1j * _frequencies(n)))
                for n in sizes
            ],
            low=0.97,
            high=1.03,
            source="derived",
        ),
        Claim(
            "S4D, largest n: gain at the top over HiPPO-LegS's",
            measured("s4d", largest)[..., 0, 0] / measured("legs", largest)[..., 0, 0],
            low=500 if largest >= 64 else 150,
        ),
    ]


def figure(results):
    """Measured gains on the transfer functions, for every n."""
    sizes = sorted(results["n"].values)
    page, panels = lab.panels(1, len(sizes), size=(6.5 * len(sizes), 4.6))
    for axis, n in zip(panels, sizes, strict=True):
        places = _frequencies(n)
        grid = np.geomspace(1, places.max() * 1.5, 3000)
        omega = np.sort(np.concatenate([grid, *(places[0] + [[-0.5], [0], [0.5]])]))
        s4d, ptd = (theory.transfer(*x, 1j * omega) for x in _systems(n))
        cells = lab.select(results, n=n).isel(n=0, seed=0)
        for name, title, values, color in (
            ("legs", "HiPPO-LegS", theory.legs_states(n, 1j * omega)[0], "#000000"),
            ("s4d", "S4D-LegS", s4d, "#D55E00"),
            ("ptd", "PTD, t = 1/2", ptd, "#0072B2"),
        ):
            axis.plot(omega, np.abs(values), color=color, lw=1, label=title)
            for i in range(cells.sizes["steps"]):
                gains = cells[name].isel(steps=i).transpose("place", "spike")
                marker = "ox+^"[i]
                axis.plot(places.ravel(), gains.values.ravel(), marker, color=color)
        axis.set(xscale="log", yscale="log", title=f"n = {n}")
        axis.set(xlabel="frequency w [radians / time]", ylabel="gain, state 0")
        axis.legend()
    page.suptitle("Lines: |G(i w)|. Marks: what convolutions pass of a sinusoid")
    return page


EXPERIMENT = Experiment(
    run=run,
    hparams=HParams(),
    axes={"n": (16, 64), "steps": (8, 16)},
    num_seeds=2,
    x64=True,
    smoke={"axes": {"n": (16, 32), "steps": (8,)}},
    dims=dict.fromkeys(("s4d", "ptd", "legs"), ("place", "spike")),
    claims=claims,
    figure=figure,
)
