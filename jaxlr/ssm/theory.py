"""What diagonal state-space models do in closed form. NumPy, float64, on the host.

Letters: n states; s points of the complex plane, i w on the imaginary axis; rho the
ratio that separates S4D-LegS from HiPPO-LegS.
"""

from jaxtyping import Complex, Float, Inexact
import numpy as np

from jaxlr.core import checks


def transfer(
    lam: Complex[np.ndarray, " k"],
    b: Complex[np.ndarray, " k"],
    c: Inexact[np.ndarray, "*outs k"],
    s: Inexact[np.ndarray, "*s"],
) -> Complex[np.ndarray, "..."]:
    """Transfer function of representatives: sum of c b / (s - lam) and conjugates.

    It is the Laplace transform of the kernel 2 Re sum c b e^(lam t).

    Args:
        lam: Eigenvalues of the representatives.
        b: Entry of the input vector for each.
        c: Output vectors, one or many.
        s: Points of the complex plane at which to take it.
    """
    lam, w, s = np.asarray(lam), np.asarray(c) * b, np.asarray(s)
    poles = s[..., None] - lam
    mirrored = s[..., None] - lam.conj()
    return np.tensordot(w, 1 / poles, (-1, -1)) + np.tensordot(
        w.conj(), 1 / mirrored, (-1, -1)
    )


def legs_states(n: int, s: Inexact[np.ndarray, "*s"]) -> Complex[np.ndarray, " n *s"]:
    """(s - A)^-1 B of HiPPO-LegS, the Laplace transforms of its states.

    These are sqrt(2i+1) P_i(2 e^-t - 1) e^-t in time. State i is sqrt(2i+1) / (s+i+1)
    times prod_{k<i} (s-k) / (s+k+1). A transfer function is C times these.

    Args:
        n: Number of states.
        s: Points of the complex plane, none of them -1, ..., -n.
    """
    n, s = checks.count("n", n), np.asarray(s, complex)
    product, states = np.ones_like(s), []
    for i in range(n):
        states.append((2 * i + 1) ** 0.5 / (s + i + 1) * product)
        product = product * ((s - i) / (s + i + 1))
    return np.stack(states)


def rho(n: int, s: Inexact[np.ndarray, "*s"]) -> Complex[np.ndarray, "*s"]:
    """prod_{k<n} (s-k) / (s+k+1), of modulus w / sqrt(w^2 + n^2) at s = i w.

    For every output vector the transfer function of S4D-LegS is that of HiPPO-LegS
    over 1 + rho, and that of `ptd(method="rank1", t)` is it over 1 + tau rho with
    `rank1_tau`.

    Args:
        n: Number of states.
        s: Points of the complex plane, none of them -1, ..., -n.
    """
    k = np.arange(checks.count("n", n))
    s = np.asarray(s, complex)[..., None]
    return np.prod((s - k) / (s + k + 1), axis=-1)


def rank1_tau(t: float) -> float:
    """Tau = t / (2 - t) of `ptd(method="rank1", t)`; its condition tends to 1 / tau."""
    return t / (2 - t)


def rank1_gap(
    n: int, t: float, omega: Float[np.ndarray, "*w"]
) -> Float[np.ndarray, "*w"]:
    """Most that rank-one PTD is off HiPPO-LegS, relative to it, at s = i omega [1].

    tau r / (1 - tau r) with r = |rho|: for t < 1 bounded by tau / (1 - tau) at all
    frequencies, and as small as tau omega / n far below n.

    Args:
        n: Number of states.
        t: Size of the perturbation.
        omega: Angular frequencies, in radians per unit of time.

    Raises:
        ValueError: Unless t is in (0, 1).
    """
    checks.within("t", t, 0, 1, ends="()")
    r = rank1_tau(t) * np.abs(omega) / np.hypot(omega, checks.count("n", n))
    return r / (1 - r)


def eigenfrequency_count(
    n: int, omega: Float[np.ndarray, "*w"]
) -> Float[np.ndarray, "*w"]:
    """J at the j-th eigenfrequency from the top of the normal part of HiPPO-LegS.

    sum_k arctan((2k+1) / (2 omega)) / pi + 1/2, which falls as omega grows.

    Args:
        n: Number of states.
        omega: Positive angular frequencies.
    """
    k = np.arange(checks.count("n", n))
    angles = np.arctan((2 * k + 1) / (2 * np.asarray(omega)[..., None]))
    return angles.sum(-1) / np.pi + 0.5


def spike_height(k: int) -> float:
    """Gap of S4D-LegS to HiPPO-LegS at its k-th eigenfrequency from the top.

    For the output of state 0, as n grows: 2 / ((2k-1) pi). It does not fall, so S4D
    does not converge in operator norm.

    Args:
        k: Place of the eigenfrequency, 1 for the top one.
    """
    return 2 / ((2 * checks.count("k", k) - 1) * np.pi)


def kernel_inner(
    lam: Complex[np.ndarray, " k"],
    w: Complex[np.ndarray, " k"],
    other_lam: Complex[np.ndarray, " m"],
    other_w: Complex[np.ndarray, " m"],
) -> float:
    """Integral over t > 0 of two kernels 2 Re sum w e^(lam t), multiplied.

    Args:
        lam: Stable eigenvalues of the first kernel.
        w: Weights c b of the first kernel.
        other_lam: Stable eigenvalues of the second kernel.
        other_w: Weights c b of the second kernel.
    """
    plain = np.outer(w, other_w) / -np.add.outer(lam, other_lam)
    crossed = np.outer(w, np.conj(other_w)) / -np.add.outer(lam, np.conj(other_lam))
    return float(2 * np.sum(plain + crossed).real)
