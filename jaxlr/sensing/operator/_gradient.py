"""The hot loop of every solver: a loss of the gap, and its gradient in the factors."""

from typing import get_args

from jaxtyping import Array, Float

from jaxlr.core import checks, Hyper
from jaxlr.kernels import Implementation, Loss
from jaxlr.sensing.operator import _base
from jaxlr.sensing.operator._base import Operator


def residual_gradient(
    operator: Operator,
    f: Float[Array, "n1 k"],
    g: Float[Array, "n2 k"],
    y: Float[Array, "..."],
    *,
    loss: Loss = "l2",
    huber_delta: Hyper = 1.0,
    implementation: Implementation | None = None,
) -> tuple[Float[Array, ""], Float[Array, "n1 k"], Float[Array, "n2 k"]]:
    """The loss of A(F G^T) against y, and its gradients in F and G.

    With the gap z = A(F G^T) - y and D = A*(psi(z)), psi the slope of the loss, the
    gradients are D G and D^T F. Ensembles of independent entries read (or draw) each
    measurement matrix once where `implementation` says so; the others have closed
    forms in the factors, which form no n1-by-n2 matrix.

    Args:
        operator: The linear map A.
        f: Left factor F.
        g: Right factor G.
        y: The measurements that A(F G^T) is compared with.
        loss: "l2", 1/2 sum z^2; "l1", sum |z|, with sign(z), 0 at 0, for its slope;
            "huber", sum of z^2 / 2 where |z| <= delta, else delta (|z| - delta / 2).
        huber_delta: delta > 0, in the units of `y`. Only "huber" reads it.
        implementation: "xla"; "pallas", a TPU kernel; "pallas_interpret", the same
            kernel anywhere, slow, for tests; the last two for ensembles of independent
            entries only. None is "xla": no kernel was measured on an accelerator yet.
            See `jaxlr.kernels.residual_adjoint`.

    Returns:
        `(loss, grad_f, grad_g)`: on top of one `apply_factors` and one
        `adjoint_factors`, nothing but the slope.

    Raises:
        ValueError: On shapes, complex input, an unknown `loss` or `implementation`, or
            a kernel where the ensemble has none.
    """
    y = _base.check_array("y", y, operator.measurement_shape)
    check_implementation(operator, implementation)
    return operator._residual_gradient(
        *_base.check_factors(operator, f, g), y, loss, huber_delta, implementation
    )


def residual_adjoint(
    operator: Operator,
    f: Float[Array, "n1 k"],
    g: Float[Array, "n2 k"],
    y: Float[Array, "..."],
    *,
    loss: Loss = "l2",
    huber_delta: Hyper = 1.0,
    implementation: Implementation | None = None,
) -> tuple[Float[Array, ""], Float[Array, "n1 n2"]]:
    """The loss of A(F G^T) against y, and D = A*(psi(A(F G^T) - y)) itself.

    For methods that need D, such as its norm; n1 n2 numbers.

    Args:
        operator: The linear map A.
        f: Left factor F.
        g: Right factor G.
        y: The measurements that A(F G^T) is compared with.
        loss: "l2", "l1" or "huber", as `residual_gradient` defines them.
        huber_delta: Gap at which "huber" turns linear, in the units of `y`.
        implementation: "xla", "pallas" or "pallas_interpret", as `residual_gradient`
            defines them; None for "xla".

    Raises:
        ValueError: As `residual_gradient`.
    """
    y = _base.check_array("y", y, operator.measurement_shape)
    check_implementation(operator, implementation)
    return operator._residual_adjoint(
        *_base.check_factors(operator, f, g), y, loss, huber_delta, implementation
    )


def check_implementation(
    operator: Operator, implementation: Implementation | None
) -> None:
    """Refuse what `residual_gradient` cannot run.

    Args:
        operator: The linear map A.
        implementation: "xla", "pallas" or "pallas_interpret"; None is always fine.

    Raises:
        ValueError: On an unknown implementation, or a kernel where there is none.
    """
    checks.choice("implementation", implementation, (None, *get_args(Implementation)))
    if implementation not in (None, "xla") and not operator.has_kernel:
        raise ValueError(
            f"`implementation` {implementation!r} is for ensembles of independent "
            f"entries, not for {type(operator).__name__}; use 'xla' or None."
        )
