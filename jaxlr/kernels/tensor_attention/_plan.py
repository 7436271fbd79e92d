"""What all forms share: sizes of tiles, the arrays of heads, and which scores count."""

from collections.abc import Sequence
import dataclasses
import functools as ft
from typing import Any, NamedTuple, TypeAlias

from jax import lax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Bool, Float, Int
import numpy as np

from jaxlr.core import checks


Window: TypeAlias = tuple[int | None, int | None]


@dataclasses.dataclass(frozen=True)
class TensorBlocks:
    """Sizes of a tile of scores.

    Attributes:
        query: Number of queries in it.
        outer: Number of positions of every mode but the last.
        inner: Number of positions of the last mode.

    Raises:
        ValueError: Unless all are integers of at least 1.
    """

    query: int = 16
    outer: int = 8
    inner: int = 256

    def __post_init__(self):
        for name in ("query", "outer", "inner"):
            object.__setattr__(self, name, checks.count(name, getattr(self, name)))


def check_two_modes(query: Float[Array, "Z T d"], num_modes: int) -> None:
    """What kernels take.

    Raises:
        ValueError: On other than two modes, or another type than theirs.
    """
    if num_modes != 2:
        raise ValueError(f"The kernel takes two modes, got {num_modes}; use 'xla'.")
    if query.dtype not in (jnp.float32, jnp.bfloat16):
        raise ValueError(
            f"The kernel's `query` must be float32 or bfloat16, got {query.dtype}."
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
