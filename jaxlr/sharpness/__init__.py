"""Sharpness: SAM and its relatives as gradients, measures of flatness, theory."""

from jaxlr.sharpness import theory as theory
from jaxlr.sharpness._ghost import dense as dense
from jaxlr.sharpness.flatness import (
    average_sharpness as average_sharpness,
    hessian_trace as hessian_trace,
    hvp as hvp,
    lambda_max as lambda_max,
    LargestEigenvalue as LargestEigenvalue,
    m_sharpness as m_sharpness,
    MSharpness as MSharpness,
    plot_density as plot_density,
    spectral_density as spectral_density,
    SpectralDensity as SpectralDensity,
)
from jaxlr.sharpness.model import (
    accuracy as accuracy,
    cross_entropy as cross_entropy,
    MLP as MLP,
)
from jaxlr.sharpness.optimizer import as_optax as as_optax, AsOptaxState as AsOptaxState
from jaxlr.sharpness.sam import (
    Backend as Backend,
    sam_value_and_grad as sam_value_and_grad,
    SAMInfo as SAMInfo,
)
