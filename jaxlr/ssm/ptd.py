"""Perturb, then diagonalize: a nearby state matrix whose eigenvectors are tame."""

from typing import get_args, Literal, NamedTuple, TypeAlias

from jaxtyping import Complex, Float
import numpy as np

from jaxlr.core import checks


Method: TypeAlias = Literal["rank1", "random", "optimized"]


class PTDInfo(NamedTuple):
    """What was diagonalized, and how well: A + E = V diag(eigenvalues) V^-1.

    Attributes:
        kappa: Condition of V, whose columns have norm 1 [1].
        backward_error: ||E|| / ||A||, spectral norms [1].
        abscissa: Largest real part of the eigenvalues; negative where it is stable.
        v: The columns of V that belong to the eigenvalues returned. Row vectors C of
            outputs become C V.
        v_inv: Such rows of V^-1, halved where v is all of V: input matrices B become
            V^-1 B, to be read out by 2 Re.
        e: The perturbation E.
    """

    kappa: float
    backward_error: float
    abscissa: float
    v: Complex[np.ndarray, "n k"]
    v_inv: Complex[np.ndarray, "k n"]
    e: Float[np.ndarray, "n n"]


def ptd(
    a: Float[np.ndarray, "n n"],
    b: Float[np.ndarray, " n"],
    *,
    method: Method = "rank1",
    t: float = 0.5,
    eps: float = 1e-3,
    gamma: float = 1.0,
    seed: int = 0,
    allow_unstable: bool = False,
) -> tuple[Complex[np.ndarray, " k"], Complex[np.ndarray, " k"], PTDInfo]:
    """Diagonalize A + E in place of A.

    Every E of spectral norm below 1/2 leaves HiPPO-LegS stable.

    Args:
        a: The state matrix A.
        b: The input vector B.
        method: What E is. `"rank1"`: E = t P P^T with P = B / sqrt 2, and B scaled by
            1 - t/2, for HiPPO-LegS; t = 1 is S4D-LegS, below it the transfer function
            converges uniformly as n grows, and the condition tends to (2-t)/t.
            `"random"`: independent normal entries. `"optimized"`: from there, a local
            minimum of kappa + gamma ||E||_F.
        t: Size of the perturbation of `"rank1"`, in (0, 2).
        eps: Size ||E|| / ||A|| of the perturbation of `"random"`, and of the one that
            `"optimized"` starts from.
        gamma: Price of the perturbation's norm beside the condition, for `"optimized"`.
        seed: Seed of the normal entries.
        allow_unstable: Whether eigenvalues may have a real part of 0 or more.

    Returns:
        `(lam, b, info)`, for which the transfer function of the perturbed system is
        sum_k (C V)_k b_k / (s - lam_k) and its conjugate counterpart. `"rank1"` has
        the k = n/2 eigenvalues with Im > 0. The others have real eigenvalues too, so
        all k = n are returned, and b is halved. About 25 n^3 flops, `"optimized"`
        some 50 times as many.

    Raises:
        ValueError: On shapes, an unknown method, or a parameter of that method that is
            not as above; if `"rank1"` is given another system than HiPPO-LegS with an
            even number of states; if an eigenvalue has a real part of 0 or more,
            unless that is allowed.

    References:
        Yu, Nigmetov, Morozov, Mahoney, Erichson. "Robustifying State-space Models for
        Long Sequences via Approximate Diagonalization". 2023. arXiv:2310.01698
        (`"random"`, `"optimized"`).
    """
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    n, seed = b.size, checks.count("seed", seed, least=0)
    if b.ndim != 1 or a.shape != (n, n) or n < 1:
        raise ValueError(
            f"`a` must be (n, n) and `b` (n,), got shapes {a.shape} and {b.shape}."
        )
    checks.choice("method", method, get_args(Method))
    if method == "rank1":
        checks.within("t", t, 0, 2, ends="()")
        rank1 = np.outer(b, b) / 2
        skew = a + rank1 + np.eye(n) / 2
        if n % 2 or np.abs(skew + skew.T).max() > 1e-9 * np.abs(a).max():
            raise ValueError(
                "`a` and `b` must be HiPPO-LegS's for method 'rank1', with an even "
                "number of states: a + b b^T / 2 + I / 2 has to be skew."
            )
        e, b = t * rank1, (1 - t / 2) * b
    else:
        checks.positive("eps", eps)
        checks.positive("gamma", gamma)
        e = np.random.default_rng(seed).standard_normal((n, n))
        e *= eps * np.linalg.norm(a, 2) / np.linalg.norm(e, 2)
        if method == "optimized":
            e = _optimize(a, e, gamma)
    lam, v = np.linalg.eig(a + e)
    lam, v = lam.astype(complex), v.astype(complex)
    kappa = float(np.linalg.cond(v))
    v_inv = np.linalg.inv(v)
    kept = np.argsort(np.imag(lam))
    if method == "rank1":
        kept = kept[n // 2 :]
    else:
        v_inv = v_inv / 2
    lam, v, v_inv = lam[kept], v[:, kept], v_inv[kept]
    # A column's phase is free: where b is positive it does not depend on the library.
    modal = v_inv @ b
    phase = np.where(modal == 0, 1, modal / np.where(modal == 0, 1, np.abs(modal)))
    abscissa = float(np.real(lam).max())
    if abscissa >= 0 and not allow_unstable:
        raise ValueError(
            f"The perturbed matrix has an eigenvalue of real part {abscissa:.3g} >= 0, "
            f"with ||E|| = {np.linalg.norm(e, 2):.3g}: method {method!r} needs a "
            "smaller perturbation, or `allow_unstable=True`."
        )
    backward_error = float(np.linalg.norm(e, 2) / np.linalg.norm(a, 2))
    info = PTDInfo(
        kappa, backward_error, abscissa, v * phase, v_inv / phase[:, None], e
    )
    return lam, np.abs(modal) + 0j, info


def _optimize(a, e, gamma):
    """A local minimum of kappa(V) + gamma ||E||_F."""
    from scipy.optimize import minimize

    def objective(flat):
        e = flat.reshape(a.shape)
        value, slope = condition(a + e)
        size = np.linalg.norm(e)
        return value + gamma * size, (slope + gamma * e / size).ravel()

    return minimize(objective, e.ravel(), jac=True, method="L-BFGS-B").x.reshape(
        a.shape
    )


def condition(
    a: Float[np.ndarray, "n n"],
) -> tuple[float, Float[np.ndarray, "n n"]]:
    """Condition of a matrix of eigenvectors of norm 1, and its gradient: 50 n^3 flops.

    The gradient exists where eigenvalues are distinct, and the largest and the
    smallest singular value of the eigenvectors are simple.
    """
    lam, v = np.linalg.eig(a)
    u, s, wh = np.linalg.svd(v)
    cotangent = np.outer(u[:, 0], wh[0]) / s[-1]
    cotangent = cotangent - s[0] / s[-1] ** 2 * np.outer(u[:, -1], wh[-1])
    # Norms are fixed, and phases do not matter.
    cotangent = cotangent - v * np.real(np.sum(v.conj() * cotangent, axis=0))
    # dV = V (F o (V^-1 dA V)), F_ij = 1 / (lam_j - lam_i) off the diagonal.
    gap = lam[None, :] - lam[:, None] + np.eye(len(lam))
    inner = (v.conj().T @ cotangent) * (1 - np.eye(len(lam))) / gap.conj()
    slope = np.linalg.solve(v.conj().T, inner @ v.conj().T)
    return float(s[0] / s[-1]), slope.real
