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
from jaxlr.ssm.problem import (
    Digits as Digits,
    fourier_modes as fourier_modes,
    fourier_noise as fourier_noise,
    FourierModes as FourierModes,
    listops as listops,
    listops_value as listops_value,
    LISTOPS_VOCABULARY as LISTOPS_VOCABULARY,
    ListOpsSplits as ListOpsSplits,
    read_cifar as read_cifar,
    read_listops as read_listops,
    read_pathfinder as read_pathfinder,
    read_retrieval as read_retrieval,
    read_text as read_text,
    root_operator_accuracy as root_operator_accuracy,
    sequential_digits as sequential_digits,
    Signals as Signals,
    Tokens as Tokens,
)
from jaxlr.ssm.ptd import Method as Method, ptd as ptd, PTDInfo as PTDInfo
from jaxlr.ssm.sequence import (
    dplr_kernel as dplr_kernel,
    fft_conv as fft_conv,
    kernel as kernel,
    scan as scan,
    step as step,
)
