"""Layers of diagonal state spaces, and networks of them."""

from jaxlr.ssm.model._layer import Layer as Layer
from jaxlr.ssm.model._s4d import S4D as S4D, S4DPTD as S4DPTD
from jaxlr.ssm.model._s5 import S5 as S5, S5PTD as S5PTD
from jaxlr.ssm.model._stack import (
    adamw as adamw,
    Block as Block,
    param_labels as param_labels,
    Pooling as Pooling,
    Stack as Stack,
    StackState as StackState,
)
