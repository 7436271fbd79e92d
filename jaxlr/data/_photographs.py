"""Photographs that scikit-learn brings along."""

import jax.numpy as jnp
from jaxtyping import Array, Float
import numpy as np

from jaxlr.core import checks
from jaxlr.data._extra import needs_data_extra


PHOTOGRAPHS = ("china", "flower")
"""Names that `photograph` knows."""


def photograph(name: str, size: int = 256) -> Float[Array, "{size} {size}"]:
    """A real photograph in greyscale: the central square, scaled down.

    Read on the host while tracing, so that inside `jit` it is a constant.

    Args:
        name: "china" (a temple; edges at right angles) or "flower" (a dahlia; smooth).
        size: Side [pixels], at most the photograph's own, 427. Static.

    Returns:
        Luma (ITU-R BT.601), from 0 (black) to 1 (white).

    Raises:
        ValueError: For an unknown name, or a `size` that is not in 1..427.
        ImportError: Without scikit-learn, whose sample images these are, or Pillow.
    """
    checks.choice("photograph", name, PHOTOGRAPHS)
    with needs_data_extra("photograph"):
        from PIL import Image
        from sklearn.datasets import load_sample_image

    color = load_sample_image(f"{name}.jpg").astype(np.float64) / 255
    luma = color @ np.array([0.299, 0.587, 0.114])
    side = min(luma.shape)
    size = checks.count("size", size, most=side)
    top, left = ((n - side) // 2 for n in luma.shape)
    square = Image.fromarray(
        luma[top : top + side, left : left + side].astype(np.float32)
    )
    small = square.resize((size, size), Image.Resampling.BOX)
    return jnp.asarray(np.asarray(small), float)
