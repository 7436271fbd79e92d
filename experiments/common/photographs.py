"""Photographs seen in part: a tenth of what is seen tells when to stop."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree
import numpy as np

from jaxlr import sensing
from jaxlr.core import Solver, tree


class Kept(NamedTuple):
    """Where a solver is, and the best of the images that it came by.

    Attributes:
        state: State of the solver.
        image: Image of the least error, of all states before this one.
        error: Its error; infinite before the first step.
    """

    state: PyTree
    image: Float[Array, "..."]
    error: Float[Array, ""]


def hold_out(operator: Any) -> tuple[Any, Any, np.ndarray]:
    """Nine tenths of the measurements to fit, every tenth to stop by.

    Entries come in order: so the held-out ones are spread over the image.

    Args:
        operator: Operator whose leaves all have the measurements in front.

    Returns:
        Both parts, and which measurements are in the second.
    """
    is_held = np.arange(operator.measurement_shape[0]) % 10 == 9

    def part(which):
        return jax.tree.map(lambda leaf: leaf[np.flatnonzero(which)], operator)

    return part(~is_held), part(is_held), is_held


def normalized(operator: Any, y: Float[Array, " m"], level: Float[Array, ""]):
    """The problem less `level`, over its estimated spectral norm; and that norm."""
    scale = jnp.linalg.norm(operator.adjoint(y - level) / operator.isotropy, ord=2)
    return sensing.SensingProblem(operator, (y - level) / scale), scale


def keep_best(
    solver: Solver,
    image_fn: Callable[[PyTree], Float[Array, "..."]],
    error_fn: Callable[[Float[Array, "..."]], Float[Array, ""]],
) -> Solver:
    """A solver that remembers the image of least error, as early stopping returns it.

    Args:
        solver: Method to run.
        image_fn: `image_fn(state)` gives the image of one of its states.
        error_fn: `error_fn(image)` gives the error to stop by.

    Returns:
        A `Solver` whose state is `Kept` and whose infos are those of `solver`.
    """

    def init(key):
        state = solver.init(key)
        image = jax.eval_shape(image_fn, state)
        return Kept(state, jnp.zeros(image.shape, image.dtype), jnp.asarray(jnp.inf))

    def step(key, kept):
        image = image_fn(kept.state)
        error = error_fn(image)
        best = tree.select(error < kept.error, (image, error), kept[1:])  # no NaN
        state, info = solver.step(key, kept.state)
        return Kept(state, *best), info

    return Solver(init, step)


def page(photos, num_images: int, width: float):
    """A figure with a row of images for every photograph, and room for graphs below.

    Args:
        photos: Names of the photographs.
        num_images: Number of images of each.
        width: Width of the page [inch].

    Returns:
        The page, the part with the images, its axes row by row, the part below.
    """
    from matplotlib.figure import Figure

    heights = (2.9 * len(photos), 3.4)
    whole = Figure(figsize=(width, sum(heights)), layout="constrained")
    images, graphs = whole.subfigures(2, 1, squeeze=False, height_ratios=heights)[:, 0]
    rows = images.subplots(len(photos), num_images, squeeze=False)
    return whole, images, rows, graphs


def show(axis, image, title: str) -> None:
    """Draw an image of 0..255 in greys."""
    axis.imshow(np.asarray(image), cmap="gray", vmin=0, vmax=255)
    axis.set_title(title, fontsize=9)
    axis.set_axis_off()
