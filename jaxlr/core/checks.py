"""What arguments must be. Errors name the argument, its value and what is allowed.

Values that are traced cannot be looked at: of those, only a count or a choice is an
error, because it decides shapes or programs.
"""

from collections.abc import Iterable
import difflib
import operator
from typing import Any, TypeVar

import jax
from jax.core import Tracer
import jax.numpy as jnp
import numpy as np


T = TypeVar("T")
_REAL = np.floating, np.integer, np.bool_


def known(*values: Any) -> bool:
    """Whether every array in these pytrees is concrete, none of them traced."""
    return not any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(values))


def count(name: str, value: Any, *, least: int = 1, most: int | None = None) -> int:
    """`value` as Python's integer: how many of something there are.

    Args:
        name: Name of the argument, for the error.
        value: Python's or NumPy's integer. Booleans and floats are none.
        least: Smallest value allowed.
        most: Largest value allowed; None for no bound.

    Raises:
        ValueError: Unless `value` is a static integer in least..most.
    """
    try:
        if isinstance(value, bool | np.bool_):
            raise TypeError
        number = operator.index(value)
    except TypeError:
        number = None
    if number is not None and least <= number and (most is None or number <= most):
        return number
    allowed = f"an integer >= {least}" if most is None else f"in {least}..{most}"
    if number is None and most is not None:
        allowed = f"an integer {allowed}"
    static = "" if known(value) else ": it decides shapes and must not be traced"
    raise ValueError(f"`{name}` must be {allowed}, got {value!r}{static}.")


def _numbers(name: str, value: Any) -> np.ndarray:
    array = np.asarray(value)
    if not any(jnp.issubdtype(array.dtype, kind) for kind in _REAL):
        raise ValueError(f"`{name}` must be a real number, or several, got {value!r}.")
    return array


def positive(name: str, value: T, *, or_zero: bool = False) -> T:
    """`value` as it is, every element finite and > 0, or >= 0 if `or_zero`.

    Raises:
        ValueError: If a known element is not, or is no real number.
    """
    if known(value):
        array = _numbers(name, value)
        is_allowed = np.isfinite(array) & ((array >= 0) if or_zero else (array > 0))
        if not np.all(is_allowed):
            allowed = ">= 0" if or_zero else "positive"
            raise ValueError(f"`{name}` must be {allowed} and finite, got {value!r}.")
    return value


def within(name: str, value: T, low: Any, high: Any, *, ends: str = "[]") -> T:
    """`value` as it is, every element from `low` to `high`.

    Args:
        name: Name of the argument, for the error.
        value: A number or an array.
        low: Smallest value; not itself allowed if `ends` begins with "(".
        high: Largest value; not itself allowed if `ends` ends with ")".
        ends: "[]", "(]", "[)" or "()".

    Raises:
        ValueError: If a known element is outside, or is no real number.
    """
    if known(value, low, high):
        array = _numbers(name, value)
        above = array >= low if ends[0] == "[" else array > low
        below = array <= high if ends[1] == "]" else array < high
        if not np.all(above & below):
            interval = f"{ends[0]}{low}, {high}{ends[1]}"
            raise ValueError(f"`{name}` must be in {interval}, got {value!r}.")
    return value


def choice(kind: str, value: T, valid: Iterable[Any]) -> T:
    """`value` as it is, one of those that are valid.

    Args:
        kind: What is chosen, for the error: "backend".
        value: The choice.
        valid: All that could be chosen.

    Raises:
        ValueError: If it is none of them; the error names the nearest.
    """
    valid = list(valid)
    if known(value) and any(value is v or value == v for v in valid):
        return value
    if not known(value):
        raise ValueError(f"`{kind}` must be static to choose by it, got {value!r}.")
    names = sorted(map(str, valid))
    nearest = difflib.get_close_matches(str(value), names, 1)
    hint = f" did you mean {nearest[0]!r}?" if nearest else ""
    raise ValueError(
        f"Unknown {kind} {value!r};{hint} valid: {', '.join(names) or 'none'}."
    )
