"""What every measurement ensemble does, and the checks of what it is given."""

import abc
from collections.abc import Sequence
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, Key
import numpy as np

from jaxlr.core import checks, Hyper
from jaxlr.kernels import loss_slope, loss_value
from jaxlr.linalg import matmul


class Operator(eqx.Module):
    """A linear map A from n1-by-n2 matrices to measurements, `A(X)_i = <A_i, X>`.

    A pytree: it may be batched, donated, differentiated. Letters: k columns of the
    factors F (n1 x k) and G (n2 x k). In a sweep, close over one operator for all
    cells: a product with every lane's vector then is one matrix-matrix product.

    A new ensemble gives `shape`, `measurement_shape`, `isotropy`, `_apply` and
    `_adjoint`; the forms that take factors it overrides where it has a faster way.

    Attributes:
        shape: Sizes (n1, n2) of the matrices. Static.
    """

    shape: eqx.AbstractVar[tuple[int, int]]
    has_kernel: ClassVar[bool] = False
    """Whether `residual_gradient` has a Pallas kernel for it."""

    @property
    @abc.abstractmethod
    def measurement_shape(self) -> tuple[int, ...]:
        """Shape of what `apply` returns."""

    @property
    @abc.abstractmethod
    def isotropy(self) -> Hyper:
        """The mean eigenvalue c of A*A; a step of gradient descent is divided by it.

        For a random ensemble E A*A = c I; one that is symmetric, on symmetric matrices.
        """

    @abc.abstractmethod
    def _apply(self, x: Any) -> Any:
        pass

    @abc.abstractmethod
    def _adjoint(self, z: Any) -> Any:
        pass

    def _apply_factors(self, f: Any, g: Any) -> Any:
        return self._apply(matmul(f, g.T))

    def _adjoint_matmul(self, z: Any, g: Any) -> Any:
        return matmul(self._adjoint(z), g)

    def _adjoint_factors(self, z: Any, f: Any, g: Any) -> Any:
        d = self._adjoint(z)
        return matmul(d, g), matmul(d.T, f)

    def _residual_adjoint(self, f, g, y, loss, huber_delta, implementation) -> Any:
        """`(loss, A*(psi))`; `implementation` is None unless there is a kernel."""
        del implementation
        gap = self._apply_factors(f, g) - y
        d = self._adjoint(loss_slope(loss, gap, huber_delta))
        return loss_value(loss, gap, huber_delta), d

    def _residual_gradient(self, f, g, y, loss, huber_delta, implementation) -> Any:
        del implementation
        gap = self._apply_factors(f, g) - y
        slope = loss_slope(loss, gap, huber_delta)
        return loss_value(loss, gap, huber_delta), *self._adjoint_factors(slope, f, g)

    def total(self, value: Any) -> Any:
        """The sum over all measurements, given that over those of this device.

        Within `run_sharded` a device holds a share of the measurements; elsewhere it
        holds all, and the sum is as it was.

        Args:
            value: A number or a pytree of arrays, such as `jnp.sum(gap**2)`.
        """
        return value

    def apply(self, x: Float[Array, "n1 n2"]) -> Float[Array, "..."]:
        """The measurements A(X).

        Raises:
            ValueError: If the shape of `x` is not `shape`, or if it is complex.
        """
        return self._apply(check_array("x", x, self.shape))

    def apply_factors(
        self, f: Float[Array, "n1 k"], g: Float[Array, "n2 k"]
    ) -> Float[Array, "..."]:
        """A(F G^T).

        Raises:
            ValueError: If `f` and `g` are not factors of a matrix of this `shape`, or
                complex.
        """
        return self._apply_factors(*check_factors(self, f, g))

    def adjoint(self, z: Float[Array, "..."]) -> Float[Array, "n1 n2"]:
        """A*(z) = sum_i z_i A_i.

        Raises:
            ValueError: If the shape of `z` is not `measurement_shape`, or if it is
                complex.
        """
        return self._adjoint(check_array("z", z, self.measurement_shape))

    def adjoint_matmul(
        self, z: Float[Array, "..."], g: Float[Array, "n2 k"]
    ) -> Float[Array, "n1 k"]:
        """A*(z) G.

        Raises:
            ValueError: If the shape of `z` is not `measurement_shape`, if `g` has not
                n2 rows, or if one is complex.
        """
        z = check_array("z", z, self.measurement_shape)
        return self._adjoint_matmul(z, check_array("g", g, (self.shape[1], "k")))

    def adjoint_factors(
        self, z: Float[Array, "..."], f: Float[Array, "n1 k"], g: Float[Array, "n2 k"]
    ) -> tuple[Float[Array, "n1 k"], Float[Array, "n2 k"]]:
        """`(D G, D^T F)` with D = A*(z): the gradient of <z, A(F G^T)> in F and G.

        Raises:
            ValueError: If `z`, `f` or `g` is not of a shape that belongs to A, or
                complex.
        """
        z = check_array("z", z, self.measurement_shape)
        return self._adjoint_factors(z, *check_factors(self, f, g))

    def rip_constant(
        self,
        key: Key[Array, ""],
        *,
        rank: int,
        num_samples: int = 8,
        num_steps: int = 20,
    ) -> Float[Array, ""]:
        """The largest found | ||A(X)||^2 / (c ||X||_F^2) - 1 | over rank-r matrices.

        Over symmetric ones, for an ensemble that sees nothing else.

        A lower bound on the constant of the restricted isometry property, which cannot
        be computed: the ratio is driven up, and down, by truncated power iterations
        from random matrices.

        Args:
            key: Source of the random starts.
            rank: Rank r of the matrices that are tried. Static.
            num_samples: Number of random starts, for either direction. Static.
            num_steps: Number of power iterations from each; 0 for random matrices
                alone. Static.

        Returns:
            The estimate, dimensionless. Costs 2 num_samples num_steps `apply`s,
            `adjoint`s and singular value decompositions of n1 x n2.

        Raises:
            ValueError: If `rank` is not in 1..min(n1, n2), `num_samples` < 1, or
                `num_steps` < 0.

        References:
            Recht, Fazel, Parrilo. "Guaranteed Minimum-Rank Solutions of Linear Matrix
            Equations via Nuclear Norm Minimization". 2010. arXiv:0706.4138.
        """
        num_steps = checks.count("num_steps", num_steps, least=0)
        starts = _random_low_rank(self, key, rank, num_samples)

        def normal(x):
            return self._adjoint(self._apply(x)) / self.isotropy

        def project(x):
            u, s, vt = jnp.linalg.svd(x, full_matrices=False)
            s = s[:rank] / jnp.linalg.norm(s[:rank])
            x = matmul(u[:, :rank] * s, vt[:rank])
            # Rounding alone would grow into the kernel of a symmetric ensemble.
            return (x + x.T) / 2 if _is_symmetric(self) else x

        def ratio(x):
            return self.total(jnp.sum(self._apply(x) ** 2)) / self.isotropy

        def up(x, _):
            return project(normal(x)), None

        def down(x, _):
            # The ratio is at most `top` along the way up: top I - A*A is positive.
            return project(top * x - normal(x)), None

        ends = jax.vmap(lambda x: jax.lax.scan(up, x, length=num_steps)[0])(starts)
        highest = jax.vmap(ratio)(ends)
        top = jnp.max(highest)
        ends = jax.vmap(lambda x: jax.lax.scan(down, x, length=num_steps)[0])(starts)
        lowest = jax.vmap(ratio)(ends)
        return jnp.maximum(top - 1, 1 - jnp.min(lowest))

    def sign_rip_scale(
        self, key: Key[Array, ""], *, rank: int, num_samples: int = 8
    ) -> Float[Array, ""]:
        """Mean of ||A(X)||_1 / (sqrt(c m) ||X||_F) over random rank-r matrices.

        The scale at which sign measurements keep inner products (sign-RIP):
        sqrt(2 / pi) for Gaussian ones, where it does not depend on X.

        Args:
            key: Source of the random matrices.
            rank: Rank r of the matrices. Static.
            num_samples: Number of matrices that the mean is over. Static.

        Returns:
            The estimate, dimensionless; see `theory.sign_rip_scale`. Costs
            `num_samples` `apply`s.

        Raises:
            ValueError: If `rank` is not in 1..min(n1, n2), or if `num_samples` < 1.

        References:
            Ma, Fattahi. "Global Convergence of Sub-gradient Method for Robust Matrix
            Recovery". 2022. arXiv:2202.08788.
        """
        x = _random_low_rank(self, key, rank, num_samples)
        z = jnp.abs(jax.vmap(self._apply)(x))
        num_measurements = self.total(float(np.prod(self.measurement_shape)))
        size = jnp.sqrt(self.isotropy * num_measurements)
        return self.total(jnp.sum(z)) / (num_samples * size)


def _is_symmetric(operator):
    """Whether only the symmetric part of a matrix is seen."""
    return getattr(operator, "is_symmetric", False)


def _random_low_rank(operator, key, rank, num_samples):
    """Matrices of unit Frobenius norm with Gaussian factors; symmetric if A is."""
    rank = checks.count("rank", rank, most=min(operator.shape))
    num_samples = checks.count("num_samples", num_samples)
    f_key, g_key = jr.split(key)
    n1, n2 = operator.shape
    f = jr.normal(f_key, (num_samples, n1, rank))
    if _is_symmetric(operator):
        signs = jr.rademacher(g_key, (num_samples, rank, 1), f.dtype)
        x = matmul(f, signs * f.swapaxes(1, 2))
    else:
        x = matmul(f, jr.normal(g_key, (num_samples, rank, n2)))
    return x / jnp.linalg.norm(x, axis=(1, 2), keepdims=True)


def check_shape(shape: Sequence[int]) -> tuple[int, int]:
    """`shape` as a tuple of ints.

    Raises:
        ValueError: Unless it is two sizes of at least 1.
    """
    try:
        n1, n2 = (checks.count("shape", size) for size in shape)
    except (TypeError, ValueError):  # not sizes; not two
        raise ValueError(
            f"`shape` must be two sizes (n1, n2) >= 1, got {shape}."
        ) from None
    return n1, n2


def check_real(name: str, x: Any) -> Array:
    """`x` as an array.

    Raises:
        ValueError: If it is complex.
    """
    x = jnp.asarray(x)
    if jnp.iscomplexobj(x):
        raise ValueError(
            f"`{name}` must be real, got {x.dtype}: real and imaginary parts can be "
            "measured separately."
        )
    return x


def check_factors(operator: Operator, f: Array, g: Array) -> tuple[Array, Array]:
    """`(f, g)` as arrays.

    Raises:
        ValueError: Unless F G^T is of the operator's shape and real.
    """
    g = check_array("g", g, (operator.shape[1], "k"))
    return check_array("f", f, (operator.shape[0], g.shape[1])), g


def check_array(name: str, x: Any, shape: tuple[int | str, ...]) -> Array:
    """`x` as an array of real numbers.

    Args:
        name: Name of the argument, for the error.
        x: What was given for it.
        shape: The sizes that it must have; "k" stands for any.

    Raises:
        ValueError: If it is of another shape, or complex.
    """
    x = check_real(name, x)
    if x.ndim != len(shape) or any(
        size not in ("k", found) for size, found in zip(shape, x.shape, strict=True)
    ):
        wanted = str(shape).replace("'", "")
        raise ValueError(f"`{name}` must have shape {wanted}, got {x.shape}.")
    return x
