"""What all forms share: sizes of tiles, the arrays of heads, and which scores count."""

from collections.abc import Sequence
import dataclasses
import functools as ft
from typing import Any, NamedTuple, TypeAlias

from jax import lax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Bool, Float, Int
import numpy as np


Window: TypeAlias = tuple[int | None, int | None]


@dataclasses.dataclass(frozen=True)
class TensorBlocks:
    """Sizes of a tile of scores.

    Attributes:
        query: Queries.
        outer: Positions of every mode but the last.
        inner: Positions of the last mode.
    """

    query: int = 16
    outer: int = 8
    inner: int = 256

    def __post_init__(self):
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if not isinstance(value, int) or value < 1:
                raise ValueError(
                    f"`{field.name}` must be an integer >= 1, got {value!r}."
                )


class Options(NamedTuple):
    """All that is static, as the caller gave it."""

    windows: tuple[Window, ...]
    is_ordered: bool
    precision: str | None
    implementation: str
    blocks: TensorBlocks | None


class Plan(NamedTuple):
    """Options, and the sizes of a tile."""

    windows: tuple[Window, ...]
    is_ordered: bool
    precision: str | None
    implementation: str
    num_queries: int
    sizes: tuple[int, ...]  # mode by mode


class Head(NamedTuple):
    """The arrays of heads, whole tiles of them; or an axis, or a cotangent, of each."""

    query: Any
    keys: Any
    values: Any
    lengths: Any
    mask: Any


def is_seen(
    plan: Plan,
    i: Int[Array, "..."],
    places: list[Int[Array, "..."]],
    lengths: Sequence[Int[Array, "..."]] | Int[Array, " modes"],
) -> Bool[Array, "..."]:
    """Where scores count but for a mask; positions broadcast."""
    conditions = []
    for mode, (place, (left, right)) in enumerate(
        zip(places, plan.windows, strict=True)
    ):
        conditions.append(place < lengths[mode])
        if left is not None:
            conditions.append(place >= i - left)
        if right is not None:
            conditions.append(place <= i + right)
        if plan.is_ordered and mode:
            conditions.append(places[mode - 1] <= place)
    return ft.reduce(jnp.logical_and, conditions)


def dot(
    plan: Plan,
    a: Float[Array, "_ _"],
    b: Float[Array, "_ _"],
    axis_a: int,
    axis_b: int,
) -> Float[Array, "_ _"]:
    """A kernel's product over one axis of each, in float32."""
    return lax.dot_general(
        a,
        b,
        (((axis_a,), (axis_b,)), ((), ())),
        precision=plan.precision if a.dtype == jnp.float32 else None,
        preferred_element_type=jnp.float32,
    )


def div(x: ArrayLike, size: int) -> Array:
    """Quotients of int32, which with 64-bit types a plain int is not."""
    return lax.div(x, np.int32(size))
