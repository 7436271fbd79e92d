"""Which precision do the products need?

Gradient descent on factors of k = r columns recovers a matrix of rank r from m = 1500
measurements, n = 50 and r = 3. The measurements are taken in float32 throughout (in
float64 for the reference); what changes is the arithmetic of the two products of a
step with the measurement matrices, A(F G^T) and A*(z). In "bfloat16" both operands of
both are rounded to bfloat16, products are summed in float32: what accelerators do with
float32 operands unless told otherwise. "bfloat16 adjoint" does so in A*(z) alone. (The
products of the factors with one another stay in float32, and it is plain descent:
the question is about the measurements.) Gaussian entries suffer from that rounding;
Rademacher entries, +-1, are exact in bfloat16, so that only vectors are rounded.

Claims. The relative error falls to rounding: below 1e-12 in float64, below 3e-6 in
float32, and to about 1e-3 in bfloat16, where rounding acts as noise on the measurements
of the matrix X that is sought. Independent errors of relative size rho on q operands of
A(X) are noise of standard deviation rho sqrt(q) ||X|| / sqrt(m), as in
`theory.noise_floor`; and the part of X's own error in the tangent space, of d of n^2
dimensions, stays. Hence the floor

    rho sqrt(q d / (m - d - 1) + d / n^2),     q = 2 (Gaussian), 1 (Rademacher).

The adjoint does not need precision: it multiplies a residual that vanishes, so that its
errors do too. With A* in bfloat16 the floor is float32's. So ask for
`precision="highest"` in A(F G^T).

Falsified if a floor leaves these bounds for any seed, if bfloat16's leaves the formula
by 25 % in the median over seeds, or if a step down in precision, from float64 to
float32 to bfloat16, raises it by a factor of less than 100.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, Key
import numpy as np

from jaxlr import lab, sensing
from jaxlr.core import checks, Claim, Experiment, Hyper, loop
from jaxlr.sensing import theory


ENSEMBLES = ("gaussian", "rademacher")
PRECISIONS = ("float64", "float32", "bfloat16 adjoint", "bfloat16")

# The relative error of rounding to 8 significant bits: uniform within half a unit of
# the last place, 2^-7 times the power of two below x; root mean square over mantissas
# that are uniform in the logarithm.
RHO = 2**-7 * np.sqrt((1 - 1 / 4) / (2 * np.log(2)) / 12)


class HParams(eqx.Module):
    """One cell. Static fields fix shapes; all others may be swept without compiling."""

    ensemble: str = eqx.field(static=True, default="gaussian")
    """Entries of the measurement matrices: gaussian or rademacher."""
    precision: str = eqx.field(static=True, default="float32")
    """Products in float64, float32, bfloat16 adjoint (of A* alone) or bfloat16."""
    eta: Hyper = 0.5
    """Step size [1/||M||]."""
    num_steps: int = eqx.field(static=True, default=180)
    """Number of steps of gradient descent."""
    n: int = eqx.field(static=True, default=50)
    """Side of the matrix."""
    rank: int = eqx.field(static=True, default=3)
    """Rank r of the truth, and number of columns of the factors."""
    num_measurements: int = eqx.field(static=True, default=1500)
    """Number of measurements m."""


class Metrics(eqx.Module):
    """The error over steps, and where it ends."""

    error: Float[Array, " step"]
    """Relative error ||F G^T - M||_F / ||M||_F [1]."""
    floor: Float[Array, ""]
    """Its median over the last ten steps [1]."""
    predicted: Float[Array, ""]
    """The floor of bfloat16 by the formula; 0 for other precisions [1]."""


class Mixed(sensing.Operator):
    """A(X) by one operator, A*(z) by another: the same but for their precision.

    Attributes:
        shape: Sizes (n1, n2) of the matrices. Static.
        forward: The operator that gives A(X).
        backward: The operator that gives A*(z).
    """

    shape: tuple[int, int] = eqx.field(static=True)
    forward: sensing.Operator
    backward: sensing.Operator

    @property
    def measurement_shape(self) -> tuple[int, ...]:
        """The shape of `forward`'s measurements."""
        return self.forward.measurement_shape

    @property
    def isotropy(self) -> Hyper:
        """The isotropy of `forward`."""
        return self.forward.isotropy

    def _apply(self, x):
        return self.forward.apply(x)

    def _adjoint(self, z):
        return self.backward.adjoint(z)


def run(key: Key[Array, ""], hparams: HParams) -> Metrics:
    """One cell.

    Raises:
        ValueError: For an unknown `ensemble` or `precision`, or as the solver does.
    """
    checks.choice("ensemble", hparams.ensemble, ENSEMBLES)
    checks.choice("precision", hparams.precision, PRECISIONS)
    shape, m = (hparams.n, hparams.n), hparams.num_measurements
    truth_key, operator_key, solve_key = jr.split(key, 3)
    draw = getattr(sensing, hparams.ensemble)
    drawn = draw(operator_key, shape, m)

    def cast(dtype):
        return jax.tree.map(lambda x: x.astype(dtype), drawn)

    dtype = float if hparams.precision == "float64" else jnp.float32
    operator, rounded = cast(dtype), cast(jnp.bfloat16)
    truth = sensing.low_rank(truth_key, shape, hparams.rank).astype(dtype)
    problem = sensing.measure(operator, truth)
    if hparams.precision == "bfloat16":
        operator = rounded
    elif hparams.precision == "bfloat16 adjoint":
        operator = Mixed(shape, operator, rounded)
    solver = sensing.gd(
        sensing.SensingProblem(operator, problem.y, truth),
        num_columns=hparams.rank,
        eta=hparams.eta,
        start="spectral",
        imbalance=1.0,
    )
    error = loop.run(solve_key, solver, hparams.num_steps)[1].relative_error

    predicted = jnp.zeros(())
    if hparams.precision == "bfloat16":
        freedom = theory.degrees_of_freedom(shape, hparams.rank)
        # Both in units of ||X||_F.
        num_operands = {"gaussian": 2, "rademacher": 1}[hparams.ensemble]
        noise = theory.noise_floor(
            shape, hparams.rank, m, std=RHO * (num_operands / m) ** 0.5
        )
        predicted = jnp.sqrt(noise + RHO**2 * freedom / hparams.n**2)
    return Metrics(error=error, floor=jnp.median(error[-10:]), predicted=predicted)


def claims(results) -> list[Claim]:
    """The floor of each precision, where it comes from, and which product decides."""
    found = []
    for ensemble in results["ensemble"].values:
        cells = results.sel(ensemble=ensemble)
        double, single, adjoint, half = (
            cells["floor"].sel(precision=precision) for precision in PRECISIONS
        )
        predicted = cells["predicted"].sel(precision="bfloat16")
        found += [
            Claim(f"{ensemble}: floor in float64", double, high=1e-12),
            Claim(f"{ensemble}: floor in float32", single, high=3e-6),
            Claim(f"{ensemble}: floor in bfloat16", half, low=3e-4, high=3e-3),
            Claim(
                f"{ensemble}: floor in bfloat16 / formula is 1 (median)",
                (half / predicted).median("seed", skipna=False),
                low=0.75,
                high=1.25,
                source="theory.noise_floor",
            ),
            Claim(f"{ensemble}: floor with A* alone in bfloat16", adjoint, high=3e-6),
            Claim(f"{ensemble}: floor of float32 / float64", single / double, low=100),
            Claim(f"{ensemble}: floor of bfloat16 / float32", half / single, low=100),
        ]
    return found


def figure(results):
    """Error against steps, a panel for each ensemble, a color for each precision."""
    ensembles = results["ensemble"].values
    page, axes = lab.panels(
        1, len(ensembles), has_shared_y=True, size=(5.2 * len(ensembles), 4.4)
    )
    for axis, ensemble in zip(axes, ensembles, strict=True):
        cells = results.sel(ensemble=ensemble)
        for precision, color, style in zip(
            PRECISIONS,
            ("#000000", "#0072B2", "#E69F00", "#D55E00"),
            ("-", "-", "--", "-"),
            strict=True,
        ):
            cell = cells.sel(precision=precision)
            lab.draw_seeds(axis, cell["error"], color=color, ls=style, label=precision)
        predicted = cells["predicted"].sel(precision="bfloat16").values.flat[0]
        axis.axhline(predicted, color="gray", ls=":", label="bfloat16, formula")
        axis.set(yscale="log", ylim=(1e-14, 3), xlabel="step", title=ensemble)
        axis.legend(fontsize=9, title="products with A")
    axes[0].set_ylabel(r"$\|FG^T - M\|_F\,/\,\|M\|_F$ [1]")
    page.suptitle("Rounding in A(X) sets the floor, rounding in A* does not")
    return page


EXPERIMENT = Experiment(
    run=run,
    hparams=HParams(),
    axes={"ensemble": ENSEMBLES, "precision": PRECISIONS},
    num_seeds=5,
    x64=True,
    smoke={
        "num_seeds": 2,
        "axes": {"ensemble": ("gaussian",), "precision": PRECISIONS},
        "hparams": HParams(n=20, rank=2, num_measurements=400),
    },
    claims=claims,
    figure=figure,
)
