"""What every part of jaxlr shares: `Solver`, `Experiment`, the loops."""

from jaxlr.core import loop as loop, tree as tree
from jaxlr.core.loop import Status as Status
from jaxlr.core.multistart import (
    Fitted as Fitted,
    lbfgs as lbfgs,
    Minimum as Minimum,
    multistart as multistart,
)
from jaxlr.core.optimizer import (
    epoch_batch as epoch_batch,
    from_optax as from_optax,
    OptaxInfo as OptaxInfo,
    OptaxState as OptaxState,
)
from jaxlr.core.types import (
    Axis as Axis,
    Claim as Claim,
    Count as Count,
    Experiment as Experiment,
    Hyper as Hyper,
    LogUniform as LogUniform,
    Solver as Solver,
    Uniform as Uniform,
)
