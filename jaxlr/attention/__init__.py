"""Kronecker attention: exact in linear memory, polynomial in near-linear time."""

from jaxlr.attention.decode import (
    init_state as init_state,
    PolynomialState as PolynomialState,
    query as query,
    update as update,
)
from jaxlr.attention.model import (
    TensorMultiheadAttention as TensorMultiheadAttention,
    TransformerBlock as TransformerBlock,
)
from jaxlr.attention.tensor import (
    Implementation as Implementation,
    LocalWindow as LocalWindow,
    tensor_attention as tensor_attention,
)
from jaxlr.attention.theory import (
    certified_error as certified_error,
    entry_score_bound as entry_score_bound,
    num_features as num_features,
    score_bound as score_bound,
)
