"""Do diagonal systems converge to HiPPO-LegS as the number of states grows?

S4D-LegS drops the rank-one part of HiPPO-LegS; rank-one PTD keeps half of it. Transfer
functions are compared for the output of state 0, and kernels in L2, all in closed form
and in float64. The frequencies that decide are the eigenfrequencies of the normal part,
where S4D's transfer function has spikes half a radian wide that a grid of frequencies
would miss.

Claims. S4D converges weakly only: at its top eigenfrequency it stays .6366 = 2 / pi off
HiPPO-LegS, k-th from the top 2 / ((2k-1) pi), and in L2 its kernel stays 1 / sqrt 2 of
the kernel's norm away. Rank-one PTD (t = 1/2) converges uniformly, as .5 / (n+1), with
eigenvectors of condition 3. Both follow from one identity, transfer functions over
1 + tau rho with rho = prod (s-k) / (s+k+1).

Falsified if at n = 16, 64, 256 a figure leaves that of the table (gap .638603, .636747,
.636628; kernel distance .70434, .70693, .70710; condition 2.80421, 2.94974, 2.98737) by
1e-5; if the first four spikes exceed their limits by more than 45 / n^2, or fall short
of them; if PTD's largest gap over all eigenfrequencies exceeds .5 / (n+1), or its
kernel is more than a fifth as far away as S4D's; if the identity fails by 1e-11 of the
largest value for random outputs, the equation of the eigenfrequencies by 1e-11, or the
kernels of the first 64 states are not Legendre polynomials to 1e-12 of the largest (of
256, the matrix exponential itself was off by 1.2e-12).

References:
    Yu, Nigmetov, Morozov, Mahoney, Erichson. "Robustifying State-space Models for Long
    Sequences via Approximate Diagonalization". 2023. arXiv:2310.01698.
    Gu, Gupta, Goel, Re. "On the Parameterization and Initialization of Diagonal State
    Space Models". 2022. arXiv:2206.11893.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, Key
import numpy as np

from jaxlr import lab, ssm
from jaxlr.core import Claim, Experiment
from jaxlr.ssm import theory


NUM_SPIKES = 4


class HParams(eqx.Module):
    """One cell: everything else is in closed form."""

    n: int = eqx.field(static=True, default=64)
    """Number of states, even."""
    t: float = eqx.field(static=True, default=0.5)
    """Size of the rank-one perturbation [1]."""
    num_outputs: int = eqx.field(static=True, default=4)
    """Number of random output vectors that the identity is tried on."""


class Metrics(eqx.Module):
    """How far from HiPPO-LegS."""

    spikes: Float[Array, " spike"]
    """Gap of S4D at its eigenfrequencies, from the top [1]."""
    ptd_spikes: Float[Array, " spike"]
    """Gap of PTD there [1]."""
    ptd_gap: Float[Array, ""]
    """Largest gap of PTD over all eigenfrequencies [1]."""
    distance: Float[Array, ""]
    """L2 norm of S4D's kernel less the exact one, over that of the exact one [1]."""
    ptd_distance: Float[Array, ""]
    """L2 norm of PTD's kernel less the exact one, over that of the exact one [1]."""
    condition: Float[Array, ""]
    """Condition of PTD's eigenvectors [1]."""
    identity_error: Float[Array, ""]
    """Error of G_S4D (1 + rho) = G, random outputs, over the largest |G| [1]."""
    frequency_error: Float[Array, ""]
    """Relative error of the equation that eigenfrequencies solve [1]."""
    legendre_error: Float[Array, ""]
    """Error of the first 64 states' kernels against Legendre polynomials [1]."""


def _legendre_error(n):
    times = np.linspace(0.05, 4, 8)
    # A is triangular: its first states know nothing of the others.
    n = min(n, 64)
    a, b = ssm.hippo_legs(n)
    flows = jax.vmap(jax.scipy.linalg.expm)(jnp.asarray(times[:, None, None] * a))
    got = jnp.matmul(flows, b, precision="highest").T
    values = np.polynomial.legendre.legvander(2 * np.exp(-times) - 1, n - 1).T
    want = b[:, None] * values * np.exp(-times)
    return jnp.max(jnp.abs(got - want)) / np.abs(want).max()


def run(key: Key[Array, ""], hparams: HParams) -> Metrics:
    """One cell: computed on the host, but for the random outputs."""
    n, half = hparams.n, hparams.n // 2
    legs = ssm.dplr_legs(n)
    lam, b = ssm.s4d(n)
    v = legs.v[:, half:]
    ptd_lam, ptd_b, info = ssm.ptd(*ssm.hippo_legs(n), t=hparams.t)
    omega = np.imag(lam)[::-1]
    exact = theory.legs_states(n, 1j * omega)
    modal, ptd_modal = (x[:, None] * y.T for x, y in ((b, v), (ptd_b, info.v)))
    states, ptd_states = (
        theory.transfer(poles, np.ones(half), w.T, 1j * omega)
        for poles, w in ((lam, modal), (ptd_lam, ptd_modal))
    )
    gap, ptd_gap = (np.abs(x[0] - exact[0]) for x in (states, ptd_states))

    def distance(poles, weights):
        # The output of state 0 is e^-t: half of it and its own conjugate.
        one, half_one = np.array([-1.0 + 0j]), np.array([0.5 + 0j])
        own = theory.kernel_inner(poles, weights, poles, weights)
        cross = theory.kernel_inner(poles, weights, one, half_one)
        square = theory.kernel_inner(one, half_one, one, half_one)
        return np.sqrt((own - 2 * cross + square) / square)

    c = jr.normal(key, (hparams.num_outputs, n))
    left = jnp.matmul(c, jnp.asarray(states * (1 + theory.rho(n, 1j * omega))))
    right = jnp.matmul(c, jnp.asarray(exact))
    counts = theory.eigenfrequency_count(n, omega) - 0.5
    wanted = np.arange(half) + 0.5
    return Metrics(
        spikes=jnp.asarray(gap[:NUM_SPIKES]),
        ptd_spikes=jnp.asarray(ptd_gap[:NUM_SPIKES]),
        ptd_gap=jnp.asarray(ptd_gap.max()),
        distance=jnp.asarray(distance(lam, modal[:, 0])),
        ptd_distance=jnp.asarray(distance(ptd_lam, ptd_modal[:, 0])),
        condition=jnp.asarray(info.kappa),
        identity_error=jnp.max(jnp.abs(left - right)) / jnp.max(jnp.abs(right)),
        frequency_error=jnp.asarray(np.abs(counts / wanted - 1).max()),
        legendre_error=_legendre_error(n),
    )


TABLE = {
    16: (0.638603, 0.70434, 2.80421),
    64: (0.636747, 0.70693, 2.94974),
    256: (0.636628, 0.70710, 2.98737),
}


def claims(results) -> list[Claim]:
    """The table, the bound, the identities."""
    first = results.isel(seed=0)
    sizes = [n for n in TABLE if n in first["n"].values]
    figures = [
        (cell["spikes"].values[0], cell["distance"].item(), cell["condition"].item())
        for cell in (lab.select(first, n=n).squeeze() for n in sizes)
    ]
    columns = zip(*figures, strict=True), zip(*(TABLE[n] for n in sizes), strict=True)
    names = (
        "S4D: gap at the top eigenfrequency, less the table's",
        "S4D: kernel's distance in L2, less the table's",
        "rank-one PTD: condition, less the table's",
    )
    n = results["n"]
    limits = np.array([theory.spike_height(k + 1) for k in range(NUM_SPIKES)])
    return [
        *(
            Claim(name, np.subtract(got, want), low=-1e-5, high=1e-5)
            for name, got, want in zip(names, *columns, strict=True)
        ),
        Claim(
            "S4D: spikes over 2 / ((2k-1) pi), less 1, times n^2",
            (results["spikes"] / limits - 1) * n**2,
            low=0,
            high=45,
            source="derived",
        ),
        Claim(
            "rank-one PTD: largest gap times 2 (n+1)",
            results["ptd_gap"] * 2 * (n + 1),
            high=1,
            source="Yu et al. (2023), strong convergence",
        ),
        Claim(
            "rank-one PTD: its distance in L2 over S4D's",
            results["ptd_distance"] / results["distance"],
            high=0.2,
        ),
        Claim("error of the identity with rho", results["identity_error"], high=1e-11),
        Claim(
            "error of the equation of eigenfrequencies",
            results["frequency_error"],
            high=1e-11,
        ),
        Claim("error of Legendre kernels", results["legendre_error"], high=1e-12),
    ]


def figure(results):
    """The transfer functions around the top; gaps over n."""
    page, (around, over_n) = lab.panels(1, 2, size=(12, 4.4))
    n = int(results["n"].values.min())
    lam, b = ssm.s4d(n)
    ptd_lam, ptd_b, info = ssm.ptd(*ssm.hippo_legs(n))
    omega = np.unique(np.concatenate([np.geomspace(0.5, 400, 4000), np.imag(lam)]))
    v = ssm.dplr_legs(n).v[0, n // 2 :]
    for label, values, color in (
        ("HiPPO-LegS", theory.legs_states(n, 1j * omega)[0], "#000000"),
        ("S4D-LegS", theory.transfer(lam, b, v, 1j * omega), "#D55E00"),
        ("PTD, t = 1/2", theory.transfer(ptd_lam, ptd_b, info.v[0], 1j * omega), BLUE),
    ):
        width = 2.5 if label == "HiPPO-LegS" else 1
        around.plot(omega, np.abs(values), color=color, lw=width, label=label)
    around.set(xscale="log", yscale="log", ylim=(1e-3, 2))
    around.set(
        xlabel="frequency [radians / time]", ylabel="|G(i w)|, output of state 0"
    )
    around.set_title(f"n = {n}: S4D has spikes at its eigenfrequencies")
    around.legend()
    first = results.isel(seed=0).sortby("n")
    sizes = first["n"].values
    for i in range(NUM_SPIKES):
        label = "S4D, at eigenfrequencies from the top" if not i else None
        over_n.plot(
            sizes,
            first["spikes"][:, i],
            "o-",
            color="#D55E00",
            alpha=1 - i / 5,
            label=label,
        )
    over_n.plot(sizes, first["ptd_gap"], "s-", color=BLUE, label="PTD, the largest")
    over_n.plot(sizes, 0.5 / (sizes + 1), "k:", label="0.5 / (n + 1)")
    over_n.set(
        xscale="log", yscale="log", xlabel="states n", ylabel="gap to HiPPO-LegS"
    )
    over_n.set_xticks(sizes, [str(size) for size in sizes])
    over_n.set_xticks([], minor=True)
    over_n.set_title("S4D stays 2 / ((2k-1) pi) off, PTD converges uniformly")
    over_n.legend()
    return page


BLUE = "#0072B2"

EXPERIMENT = Experiment(
    run=run,
    hparams=HParams(),
    axes={"n": (16, 64, 256)},
    num_seeds=2,
    x64=True,
    smoke={"axes": {"n": (16, 64)}},
    dims={"spikes": ("spike",), "ptd_spikes": ("spike",)},
    claims=claims,
    figure=figure,
)
