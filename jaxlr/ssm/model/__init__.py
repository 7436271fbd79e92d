"""Layers of diagonal state spaces, and networks of them."""

from jaxlr.ssm.model.layer import (
    Layer as Layer,
    S4D as S4D,
    S4DPTD as S4DPTD,
    S5 as S5,
    S5PTD as S5PTD,
)
from jaxlr.ssm.model.stack import (
    adamw as adamw,
    Block as Block,
    param_labels as param_labels,
    Pooling as Pooling,
    Stack as Stack,
    StackState as StackState,
)
