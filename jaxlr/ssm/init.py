"""Diagonal state matrices to start from: HiPPO-LegS made diagonal, S4D and its kin.

Letters: n states. Computed on the host, in float64, as NumPy arrays; whoever builds a
model from them casts. Systems are x' = A x + B u, y = C x.
"""

from typing import get_args, Literal, NamedTuple, TypeAlias

from jaxtyping import Complex, Float
import numpy as np

from jaxlr.core import checks


Kind: TypeAlias = Literal["legs", "lin", "inv", "inv2", "quad", "real", "random"]


class DPLR(NamedTuple):
    """A = V (diag(lam) - p p*) V*, B = V b: a unitary V, so every C keeps its norm.

    Attributes:
        lam: Eigenvalues of the normal part A + P P^T: real parts -1/2, imaginary parts
            from the smallest to the largest, lam[n-1-i] the conjugate of lam[i].
        p: Vector V* P of the term of rank one.
        b: Input vector V* B; all positive, which fixes the phase of every column of V.
        v: The matrix V of eigenvectors. Row vectors C of outputs become C V.
    """

    lam: Complex[np.ndarray, " n"]
    p: Complex[np.ndarray, " n"]
    b: Complex[np.ndarray, " n"]
    v: Complex[np.ndarray, "n n"]


def hippo_legs(n: int) -> tuple[Float[np.ndarray, "n n"], Float[np.ndarray, " n"]]:
    """HiPPO-LegS: A_ij = -sqrt((2i+1)(2j+1)) below the diagonal, -(i+1) on it.

    The state holds the coefficients of the input's past in Legendre polynomials under
    an exponential warp; the impulse response of state i is
    sqrt(2i+1) Legendre_i(2 e^-t - 1) e^-t. A + P P^T + I/2 is skew for P = B / sqrt 2.

    Args:
        n: Number of states.

    Returns:
        `(a, b)`: A, lower triangular, of spectral norm about (2 / pi) n^2; and
        b_i = sqrt(2i+1).

    Raises:
        ValueError: Unless n is an integer of at least 1.

    References:
        Gu, Dao, Ermon, Rudra, Re. "HiPPO: Recurrent Memory with Optimal Polynomial
        Projections". 2020. arXiv:2008.07669.
    """
    n = checks.count("n", n)
    b = np.sqrt(2 * np.arange(n) + 1.0)
    return -np.tril(np.outer(b, b), -1) - np.diag(np.arange(n) + 1.0), b


def dplr_legs(n: int) -> DPLR:
    """HiPPO-LegS as a normal matrix minus one of rank one: 9 n^3 flops.

    The normal part is diagonalized as a Hermitian matrix, which is exact to rounding;
    A itself has eigenvectors of condition 8e10 at n = 16 already.

    Args:
        n: Number of states, even.

    Raises:
        ValueError: Unless n is an even integer of at least 2.

    References:
        Gu, Goel, Re. "Efficiently Modeling Long Sequences with Structured State
        Spaces". 2021. arXiv:2111.00396.
    """
    n = even("n", n)
    a, b = hippo_legs(n)
    p = b / np.sqrt(2)
    frequency, v = np.linalg.eigh(-1j * (a + np.outer(p, p) + np.eye(n) / 2))
    # Exactly in conjugate pairs, each column with a phase that makes b positive.
    upper, v = frequency[n // 2 :], v[:, n // 2 :]
    phase = v.conj().T @ b
    v = v * (phase / np.abs(phase))
    v = np.concatenate([v[:, ::-1].conj(), v], axis=1)
    lam = -0.5 + 1j * np.concatenate([-upper[::-1], upper])
    half = np.abs(phase)
    b = np.concatenate([half[::-1], half]).astype(complex)
    return DPLR(lam, b / np.sqrt(2), b, v)


def s4d(
    n: int, kind: Kind = "legs", *, seed: int = 0
) -> tuple[Complex[np.ndarray, " k"], Complex[np.ndarray, " k"]]:
    """A diagonal start of S4D.

    Args:
        n: Number of states, even; the representatives k = 0..n/2-1 stand for
            themselves and for their conjugates, and real parts are -1/2.
        kind: Where eigenvalues are. `"legs"`: as in the normal part of HiPPO-LegS, with
            half of its input vector, so that the transfer function tends weakly to that
            of HiPPO-LegS. Imaginary parts of the others: `"lin"`: pi k; `"inv"`:
            (n/pi)(n/(2k+1) - 1); `"inv2"`: (n/pi)(n/(k+1) - 1); `"quad"`:
            (2k+1)^2 / pi; `"random"`: the exponential of a standard normal. `"real"`:
            -(k+1), without any.
        seed: Seed of the draws of `"random"`; no other kind uses it.

    Returns:
        `(lam, b)`: eigenvalues, Im >= 0; and input vectors, 1 for all but `"legs"`.

    Raises:
        ValueError: Unless n is an even integer of at least 2, or for an unknown kind.

    References:
        Gu, Gupta, Goel, Re. "On the Parameterization and Initialization of Diagonal
        State Space Models". 2022. arXiv:2206.11893.
    """
    n, seed = even("n", n), checks.count("seed", seed, least=0)
    checks.choice("kind", kind, get_args(Kind))
    k = np.arange(n // 2)
    b = np.ones(n // 2, complex)
    if kind == "legs":
        legs = dplr_legs(n)
        return legs.lam[n // 2 :], legs.b[n // 2 :] / 2
    if kind == "real":
        return -(k + 1.0 + 0j), b
    imag = {
        "lin": np.pi * k,
        "inv": n / np.pi * (n / (2 * k + 1) - 1),
        "inv2": n / np.pi * (n / (k + 1) - 1),
        "quad": (2 * k + 1) ** 2 / np.pi,
        "random": np.exp(np.random.default_rng(seed).standard_normal(n // 2)),
    }
    return -0.5 + 1j * imag[kind], b


def even(name: str, n: int) -> int:
    """A number of states that come in conjugate pairs.

    Args:
        name: Name of the argument, for the error.
        n: Number of states.

    Raises:
        ValueError: Unless n is an even integer of at least 2.
    """
    n = checks.count(name, n, least=2)
    if n % 2:
        raise ValueError(f"`{name}` must be even, got {n}.")
    return n
