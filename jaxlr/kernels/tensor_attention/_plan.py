"""What all forms share: sizes of tiles, the arrays of heads, and which scores count."""

import dataclasses
import functools as ft
from typing import Any, NamedTuple, TypeAlias

import jax.numpy as jnp
from jaxtyping import Array, Bool, Int


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
    outer: int = 16
    inner: int = 128

    def __post_init__(self):
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if not isinstance(value, int) or value < 1:
                raise ValueError(
                    f"`{field.name}` must be an integer >= 1, got {value!r}."
                )


class Plan(NamedTuple):
    """All that is static."""

    windows: tuple[Window, ...]
    is_ordered: bool
    num_queries: int  # of a tile
    sizes: tuple[int, ...]  # of a tile, mode by mode
    precision: str | None
    implementation: str


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
    lengths: list[Int[Array, ""]],
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
