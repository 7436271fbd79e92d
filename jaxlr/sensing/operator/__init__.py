"""Measurement ensembles: linear maps A from matrices to measurements.

Each constructor returns an `Operator`, a pytree with `apply`, `adjoint` and the forms
of both that take factors.
"""

from jaxlr.sensing.operator._base import Operator as Operator
from jaxlr.sensing.operator._entries import (
    entries as entries,
    entry_sampling as entry_sampling,
    EntrySampling as EntrySampling,
)
from jaxlr.sensing.operator._gaussian import Gaussian as Gaussian, gaussian as gaussian
from jaxlr.sensing.operator._identity import Identity as Identity, identity as identity
