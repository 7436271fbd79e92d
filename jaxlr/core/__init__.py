"""What every part of jaxlr shares: `Solver`, `Experiment`, the loops."""

from jaxlr.core import loop as loop, tree as tree
from jaxlr.core.loop import Status as Status
from jaxlr.core.optimizer import (
    from_optax as from_optax,
    OptaxInfo as OptaxInfo,
    OptaxState as OptaxState,
)
from jaxlr.core.training import (
    epoch_batch as epoch_batch,
    train as train,
    TrainInfo as TrainInfo,
    TrainState as TrainState,
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
