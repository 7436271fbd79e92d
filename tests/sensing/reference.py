"""A slow float64 NumPy oracle of matrix sensing. Tests alone use it.

An ensemble is the array of its measurement matrices, A_i = matrices[i]: (m, n1, n2).
"""

import numpy as np
import numpy.typing as npt

from jaxlr.sensing.operator import (
    EntrySampling,
    Identity,
    Incoherent,
    Kronecker,
    Operator,
    RankOne,
    RowEnsemble,
)


Matrix = npt.NDArray[np.float64]


def matrices(operator: Operator) -> Matrix:
    """The measurement matrices of an operator, by the definition of its ensemble.

    Raises:
        TypeError: For an ensemble that the oracle does not know.
    """
    n1, n2 = operator.shape
    match operator:
        case RowEnsemble():
            raw = np.asarray(operator.rows.to_dense(), np.float64)
            a = raw.reshape(-1, n1, n2) / np.sqrt(len(raw))
            return (a + a.swapaxes(1, 2)) / 2 if operator.is_symmetric else a
        case RankOne():
            pair = operator.left, operator.right
            left, right = (np.asarray(x, np.float64) for x in pair)
            return np.einsum("mi,mj->mij", left, right) / np.sqrt(len(left))
        case Kronecker():
            pair = operator.left, operator.right
            p, q = (np.asarray(x, np.float64) for x in pair)
            return np.einsum("ai,bj->abij", p, q).reshape(-1, n1, n2)
        case Incoherent():
            left = _transform(operator.transform, n1) * np.asarray(operator.left_signs)
            right = _transform(operator.transform, n2) * np.asarray(
                operator.right_signs
            )
            return np.einsum("mab,ai,bj->mij", matrices(operator.base), left, right)
        case Identity():
            return np.eye(n1 * n2).reshape(-1, n1, n2)
        case EntrySampling():
            places = zip(operator.rows.tolist(), operator.cols.tolist(), strict=True)
            return np.array([np.outer(np.eye(n1)[i], np.eye(n2)[j]) for i, j in places])
        case _:
            raise TypeError(f"no oracle for {type(operator).__name__}.")


def _transform(name, n):
    """The orthogonal matrix of a transform, by its definition."""
    rows, cols = np.arange(n)[:, None], np.arange(n)
    if name == "hadamard":
        ones = np.vectorize(lambda bits: int(bits).bit_count())(rows & cols)
        return (-1.0) ** ones / np.sqrt(n)
    cosines = np.cos(np.pi * rows * (2 * cols + 1) / (2 * n)) * np.sqrt(2 / n)
    return np.where(rows == 0, np.sqrt(1 / n), cosines)


def apply(matrices: Matrix, x: Matrix) -> Matrix:
    """<A_i, X> for each i."""
    return np.array([np.sum(a * x) for a in matrices])


def adjoint(matrices: Matrix, z: Matrix) -> Matrix:
    """sum_i z_i A_i."""
    return sum((z_i * a for z_i, a in zip(z, matrices, strict=True)), np.zeros(()))


def asymmetric_step(
    matrices: Matrix, y: Matrix, f: Matrix, g: Matrix, step_size: float
) -> tuple[Matrix, Matrix, float]:
    """One step on both factors, and the loss before it."""
    gap = apply(matrices, f @ g.T) - y
    d = adjoint(matrices, gap)
    return f - step_size * d @ g, g - step_size * d.T @ f, float(gap @ gap) / 2


def symmetric_step(
    matrices: Matrix, y: Matrix, x: Matrix, step_size: float
) -> tuple[Matrix, float]:
    """One step on X, and the loss before it; A_i enters by its symmetric part."""
    gap = apply(matrices, x @ x.T) - y
    d = adjoint(matrices, gap)
    return x - step_size * (d + d.T) / 2 @ x, float(gap @ gap) / 4
