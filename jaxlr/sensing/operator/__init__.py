"""Measurement ensembles: linear maps A from matrices to measurements.

Each constructor returns an `Operator`, a pytree with `apply`, `adjoint` and the forms
of both that take factors.
"""

from jaxlr.sensing.operator._base import (
    check_array as check_array,
    check_shape as check_shape,
    Operator as Operator,
)
from jaxlr.sensing.operator._entries import (
    entries as entries,
    entry_sampling as entry_sampling,
    EntrySampling as EntrySampling,
)
from jaxlr.sensing.operator._gradient import (
    check_implementation as check_implementation,
    residual_adjoint as residual_adjoint,
    residual_gradient as residual_gradient,
)
from jaxlr.sensing.operator._identity import Identity as Identity, identity as identity
from jaxlr.sensing.operator._incoherent import (
    dct as dct,
    hadamard as hadamard,
    Incoherent as Incoherent,
)
from jaxlr.sensing.operator._kronecker import (
    Kronecker as Kronecker,
    kronecker as kronecker,
)
from jaxlr.sensing.operator._rank_one import rank_one as rank_one, RankOne as RankOne
from jaxlr.sensing.operator._rows import (
    gaussian as gaussian,
    rademacher as rademacher,
    RowEnsemble as RowEnsemble,
    symmetric_gaussian as symmetric_gaussian,
)
