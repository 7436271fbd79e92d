"""Hot loops, each with an XLA form and a Pallas kernel, and what they read."""

from jaxlr.kernels._loss import (
    Loss as Loss,
    loss_slope as loss_slope,
    loss_value as loss_value,
)
from jaxlr.kernels._rows import (
    draw_normals as draw_normals,
    draw_signs as draw_signs,
    NormalRows as NormalRows,
    PackedSigns as PackedSigns,
    Rows as Rows,
    StoredRows as StoredRows,
)
from jaxlr.kernels.diagonal_scan import diagonal_scan as diagonal_scan
from jaxlr.kernels.mode_product import (
    mode_product as mode_product,
    mode_products as mode_products,
    ModeBlocks as ModeBlocks,
)
from jaxlr.kernels.residual_adjoint import (
    Implementation as Implementation,
    residual_adjoint as residual_adjoint,
)
from jaxlr.kernels.tensor_attention import (
    tensor_attention as tensor_attention,
    TensorBlocks as TensorBlocks,
)
from jaxlr.kernels.vandermonde import vandermonde as vandermonde
