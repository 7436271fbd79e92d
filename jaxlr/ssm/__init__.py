"""Diagonal state-space models: starts, discretization, sequence forms, theory."""

from jaxlr.ssm import theory as theory
from jaxlr.ssm.discretize import (
    Discretization as Discretization,
    discretize as discretize,
)
from jaxlr.ssm.init import (
    DPLR as DPLR,
    dplr_legs as dplr_legs,
    hippo_legs as hippo_legs,
    Kind as Kind,
    s4d as s4d,
)
from jaxlr.ssm.model import (
    adamw as adamw,
    Block as Block,
    Layer as Layer,
    param_labels as param_labels,
    Pooling as Pooling,
    S4D as S4D,
    S4DPTD as S4DPTD,
    S5 as S5,
    S5PTD as S5PTD,
    Stack as Stack,
    StackState as StackState,
)
from jaxlr.ssm.ptd import Method as Method, ptd as ptd, PTDInfo as PTDInfo
from jaxlr.ssm.sequence import (
    dplr_kernel as dplr_kernel,
    fft_conv as fft_conv,
    kernel as kernel,
    scan as scan,
    step as step,
)
