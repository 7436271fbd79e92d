"""What all methods on factors share: start, objective, infos, one optax step."""

from collections.abc import Callable
from typing import Any, get_args, Literal, NamedTuple, TypedDict

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key
import numpy as np
import optax

from jaxlr.core import checks, Count, Hyper, Solver
from jaxlr.kernels import Implementation, Loss, loss_value
from jaxlr.sensing import init as starts
from jaxlr.sensing.operator import check_implementation, residual_gradient
from jaxlr.sensing.problem import relative, relative_error, SensingProblem


Start = Literal["random", "spectral", "sign_spectral"]


class FactorSettings(TypedDict, total=False):
    """Keywords of all methods on two factors; `descend` says what they mean."""

    start: Start
    alpha: Hyper
    imbalance: Hyper
    num_active: Count | None
    loss: Loss | None
    huber_delta: Hyper
    implementation: Implementation | None


class DescentSettings(FactorSettings, total=False):
    """Keywords of methods that take one factor, too."""

    is_symmetric: bool


class Factors(NamedTuple):
    """Parameters of M = F G^T, or of M = F F^T where `g` is None.

    Attributes:
        f: Left factor F [sqrt(||M||)].
        g: Right factor G.
    """

    f: Float[Array, "n1 k"]
    g: Float[Array, "n2 k"] | None


class FactorState(NamedTuple):
    """The iterate, and what its method remembers.

    Attributes:
        f: Left factor F [sqrt(||M||)].
        g: Right factor G; None in the symmetric form, where it is F too.
        memory: What the method remembers: an optax state, a count, or nothing.
    """

    f: Float[Array, "n1 k"]
    g: Float[Array, "n2 k"] | None
    memory: Any = ()

    @property
    def factors(self) -> tuple[Float[Array, "n1 k"], Float[Array, "n2 k"]]:
        """`(F, G)`, in either form."""
        return self.f, self.f if self.g is None else self.g


class FactorInfo(NamedTuple):
    """Measured at the iterate before the step.

    Attributes:
        loss: The method's objective, in its units.
        residual: How much of the measurements is not fitted [1]: for squared losses
            ||A(F G^T) - y|| / ||y||; for the others the loss over that of the zero
            matrix.
        relative_error: ||F G^T - M||_F / ||M||_F; None if the truth is not known.
    """

    loss: Float[Array, ""]
    residual: Float[Array, ""]
    relative_error: Float[Array, ""] | None


class Objective(NamedTuple):
    """A loss of factors, with its gradients.

    Attributes:
        evaluate: `(f, g) -> (loss, grad_f, grad_g)`.
        residual: `loss -> residual` of `FactorInfo`.
    """

    evaluate: Callable[..., tuple[Array, Array, Array]]
    residual: Callable[[Array], Array]


def objective(
    problem: SensingProblem,
    *,
    loss: Loss | None = None,
    huber_delta: Hyper = 1.0,
    implementation: Implementation | None = None,
) -> Objective:
    """The loss that a problem calls for: the one named, else l2 or the likelihood.

    Raises:
        ValueError: If one is named for quantized measurements.
    """
    operator, y, quantizer = problem.operator, problem.y, problem.quantizer
    if quantizer is None:
        loss = loss or "l2"
        zero = operator.total(loss_value(loss, y, huber_delta))

        def evaluate(f, g):
            return residual_gradient(
                operator,
                f,
                g,
                y,
                loss=loss,
                huber_delta=huber_delta,
                implementation=implementation,
            )

        if loss == "l2":
            return Objective(evaluate, lambda value: jnp.sqrt(relative(value, zero)))
        return Objective(evaluate, lambda value: relative(value, zero))

    if loss is not None or implementation is not None:
        raise ValueError(
            "`loss` and `implementation` must be None for quantized measurements, "
            f"whose likelihood is the loss; got {loss!r}, {implementation!r}."
        )

    def negative_log_likelihood(x):
        return -operator.total(jnp.sum(quantizer.log_likelihood(y, x)))

    def evaluate_likelihood(f, g):
        x = operator.apply_factors(f, g)
        value, slope = jax.value_and_grad(negative_log_likelihood)(x)
        return value, *operator.adjoint_factors(slope, f, g)

    zero = negative_log_likelihood(jnp.zeros(y.shape, _dtype(problem)))
    return Objective(evaluate_likelihood, lambda value: relative(value, zero))


def _dtype(problem):
    """The problem's type, not the default one nor that of a hyperparameter."""
    return jnp.result_type(problem.y, 0.0)


def check_symmetric(problem: SensingProblem) -> None:
    """Raises `ValueError` for a target that no X X^T is, as far as it is known."""
    n1, n2 = problem.operator.shape
    if n1 != n2:
        raise ValueError(f"`is_symmetric` needs a square matrix, got {(n1, n2)}.")
    truth = problem.truth
    if truth is None or not checks.known(truth):
        return
    truth = np.asarray(truth, np.float64)
    asymmetry = np.abs(truth - truth.T).max()
    values = np.linalg.eigvalsh((truth + truth.T) / 2)
    rounding = 1e-4 * np.abs(values).max()
    if asymmetry > rounding or values.min() < -rounding:
        raise ValueError(
            "`is_symmetric` needs a positive semi-definite `truth`, got one with "
            f"eigenvalues from {values.min():.3g} to {values.max():.3g} and an "
            f"asymmetry of {asymmetry:.3g}; use the form with two factors."
        )


def starting_factors(
    problem: SensingProblem,
    *,
    num_columns: int,
    start: Start,
    alpha: Hyper = 1.0,
    imbalance: Hyper = 1.0,
    is_symmetric: bool = False,
    num_active: Count | None = None,
) -> Callable[[Key[Array, ""]], Factors]:
    """`key -> Factors`, where a method on factors starts; arguments as `descend`.

    The widest start is drawn, then masked: a width does not change the columns that it
    shares with another. A zero column of both factors has a zero gradient: it stays.

    Raises:
        ValueError: As `descend`, at once.
    """
    operator, y = problem.operator, problem.y
    most = min(operator.shape) if start != "random" else None
    num_columns = checks.count("num_columns", num_columns, most=most)
    checks.choice("start", start, get_args(Start))
    if start == "sign_spectral" and not is_symmetric:
        raise ValueError("`start` 'sign_spectral' is for the symmetric form only.")
    if start != "random" and problem.quantizer is not None:
        raise ValueError(
            f"`start` must be 'random' for quantized measurements, got {start!r}."
        )
    if num_active is not None and checks.known(num_active):
        checks.count("num_active", num_active, most=num_columns)

    def draw(key):
        if start == "random":
            f, g = starts.small_random(
                key,
                operator.shape,
                num_columns,
                alpha=alpha,
                imbalance=imbalance,
                dtype=_dtype(problem),
                is_symmetric=is_symmetric,
            )
        elif start == "spectral":
            f, g = starts.spectral(operator, y, num_columns, is_symmetric=is_symmetric)
        else:
            f = g = starts.sign_spectral(operator, y, num_columns, alpha=alpha)
        if num_active is not None:
            is_active = jnp.arange(num_columns) < num_active
            f, g = jnp.where(is_active, f, 0), jnp.where(is_active, g, 0)
        return Factors(f, None if is_symmetric else g)

    return draw


def factor_info(problem, f, g, loss, residual) -> FactorInfo:
    """The metrics at (F, G), its error being measured here."""
    truth = problem.truth
    error = None if truth is None else relative_error(f, g, truth)
    return FactorInfo(loss, residual, error)


def descend(
    problem: SensingProblem,
    transformation: optax.GradientTransformation,
    *,
    num_columns: int,
    start: Start = "random",
    alpha: Hyper = 0.1,
    imbalance: Hyper = 1 / 3,
    is_symmetric: bool = False,
    num_active: Count | None = None,
    loss: Loss | None = None,
    huber_delta: Hyper = 1.0,
    implementation: Implementation | None = None,
) -> Solver:
    """Minimize a loss of factors by any optax transformation of its gradient.

    In the symmetric form the loss is half of that of (X, X), as is customary: its
    gradient then is sym(D) X.

    Args:
        problem: The instance to solve (`jax.vmap` the caller for many).
        transformation: An optax chain on `Factors`. It is given the current factors as
            parameters, and the loss as `value`.
        num_columns: Number k of columns of the factors. Static.
        start: Where the factors start. "random": entries of F are drawn from
            alpha N(0, 1/n1), those of G from imbalance alpha N(0, 1/n2). "spectral":
            the leading singular vectors of A*(y), scaled to approximate M.
            "sign_spectral": alpha times those of A*(sign(y)), for the symmetric form
            alone. Static.
        alpha: Scale of F at a "random" or "sign_spectral" start [sqrt(||M||)].
        imbalance: Scale of G over that of F at a "random" start [1].
        is_symmetric: Whether one factor X is sought, with M = X X^T. Static.
        num_active: Number of columns in use, 1..k; the others are zero and stay so.
            None for all. May be traced: one program then serves all widths.
        loss: What is summed over the gaps A(F G^T) - y: "l2", "l1" or "huber". None
            for "l2", or for the likelihood of quantized measurements. Static.
        huber_delta: Gap at which "huber" turns linear, in the units of y.
        implementation: How `residual_gradient` runs: "xla", "pallas" or
            "pallas_interpret"; None to let it choose. Static.

    Returns:
        A `Solver` with `FactorState` and `FactorInfo`.

    Raises:
        ValueError: If `num_columns` is not an integer >= 1; if the symmetric form is
            asked for a target that is not square, or known and not positive
            semi-definite; on an unknown `start`, `loss` or `implementation`; if
            `num_active` is known and not in 1..k; for quantized measurements, if a
            `loss`, an `implementation` or another start than "random" is given.

    References:
        Chi, Lu, Chen. "Nonconvex Optimization Meets Low-Rank Matrix Factorization: An
        Overview". 2019. arXiv:1809.09573.
    """
    start_fn = starting_factors(
        problem,
        num_columns=num_columns,
        start=start,
        alpha=alpha,
        imbalance=imbalance,
        is_symmetric=is_symmetric,
        num_active=num_active,
    )
    check_implementation(problem.operator, implementation)
    if is_symmetric:
        check_symmetric(problem)
    transformation = optax.with_extra_args_support(transformation)
    evaluate, residual = objective(
        problem, loss=loss, huber_delta=huber_delta, implementation=implementation
    )

    def init(key: Key[Array, ""]) -> FactorState:
        factors: Any = start_fn(key)
        return FactorState(factors.f, factors.g, transformation.init(factors))

    def step(key: Key[Array, ""], state: FactorState) -> tuple[FactorState, FactorInfo]:
        del key
        f, g = state.factors
        value, f_grad, g_grad = evaluate(f, g)
        half = value / 2 if is_symmetric else value
        info = factor_info(problem, f, g, half, residual(value))
        factors: Any = Factors(state.f, state.g)
        if is_symmetric:
            grad: Any = Factors((f_grad + g_grad) / 2, None)
        else:
            grad = Factors(f_grad, g_grad)
        updates, memory = transformation.update(grad, state.memory, factors, value=half)
        updated: Any = optax.apply_updates(factors, updates)
        return FactorState(updated.f, updated.g, memory), info

    return Solver(init, step)


def scale_by_rate(problem: SensingProblem, eta: Hyper) -> optax.GradientTransformation:
    """Updates times -eta / c, c the operator's isotropy, in the problem's type."""
    return optax.scale(-jnp.asarray(eta / problem.operator.isotropy, _dtype(problem)))
