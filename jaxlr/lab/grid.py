"""The cells of a sweep: axes -> dimensions -> groups that share one compiled program.

Every cell of the product of the dimensions is a flat index, C order. Cells whose static
fields (shapes, strings) are equal form a group; its traced fields become arrays.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
import dataclasses
import itertools
import math
from typing import Any

import numpy as np

from jaxlr.core import checks
from jaxlr.core.types import Axis, Uniform
from jaxlr.lab import fields


RESERVED = ("seed", "step", "diverged_at", "ended_at", "share_done")


def dimension_name(name: str | Sequence[str]) -> str:
    """Name, in the results, of the dimension that an axis has.

    Args:
        name: Name of the axis: a field of HParams, `alpha`, or several that move
            together, `("alpha", "beta")`, whose dimension is called `alpha_beta`.
    """
    return name if isinstance(name, str) else "_".join(name)


@dataclasses.dataclass(frozen=True)
class Dimension:
    """One dimension of the results: a field, or fields that move together.

    Attributes:
        fields: Names of the fields of HParams.
        points: Values of the fields: `points[i][j]` is that of `fields[j]` at index i.
    """

    fields: tuple[str, ...]
    points: tuple[tuple[Any, ...], ...]

    @property
    def name(self) -> str:
        """What `dimension_name` says of its fields."""
        return dimension_name(self.fields)


@dataclasses.dataclass(frozen=True)
class Group:
    """Cells that one program serves.

    Attributes:
        static: Name of a static field -> its value, equal in all the cells.
        traced: Name of a traced field -> its values, of shape (cells,).
        cells: Flat indices of the cells, of shape (cells,).
    """

    static: dict[str, Any]
    traced: dict[str, np.ndarray]
    cells: np.ndarray


def dimensions(
    hparams: Any, axes: Mapping[Any, Any] | Sequence[Axis]
) -> tuple[Dimension, ...]:
    """Validate axes against the fields of `hparams`.

    Raises:
        ValueError: On an unknown field, two axes of one field, an empty axis, unequal
            zipped lengths, a value that does not fit its field, or one given twice.
    """
    pairs = axes.items() if isinstance(axes, Mapping) else axes
    if isinstance(pairs, Axis | str) or not all(
        isinstance(pair, tuple) and len(pair) == 2 for pair in pairs
    ):
        raise ValueError(
            f"`axes` must be a dict of name -> values or a list of Axis, got {axes!r}."
        )
    known = fields.of(hparams)
    dims = []
    taken: set[str] = set()
    for name, values in pairs:
        names = tuple(name) if isinstance(name, tuple | list) else (name,)
        if not names:
            raise ValueError(f"Axis {name!r} names no field.")
        for field in names:
            if inner := [name for name in known if name.startswith(f"{field}.")]:
                raise ValueError(
                    f"Axis {field!r}: the field holds a dataclass; sweep the fields in "
                    f"it: {', '.join(inner)}."
                )
            checks.choice("axis", field, known)
            if field in taken:
                raise ValueError(f"Two axes sweep the field {field!r}; keep one.")
            taken.add(field)
        columns = [
            [_checked(field, known[field], value) for value in column]
            for field, column in zip(names, _columns(name, names, values), strict=True)
        ]
        dims.append(Dimension(names, tuple(zip(*columns, strict=True))))
    for dim in dims:
        if len(dim.fields) > 1 and dim.name in known:
            raise ValueError(
                f"The zipped axis {dim.fields} would be called {dim.name!r}, as a "
                "field is; rename one."
            )
        if dim.name in RESERVED:
            raise ValueError(f"An axis may not be called {dim.name!r}: it is reserved.")
        point, times = Counter(map(_said, dim.points)).most_common(1)[0]
        if times > 1:
            raise ValueError(
                f"Axis {dim.name!r} has {point} {times} times, cells that nothing "
                "tells apart; keep one. `num_seeds` says how often a cell is run."
            )
    return tuple(dims)


def _said(point: tuple[Any, ...]) -> str:
    """A point as Python writes it, which tells True, 1 and 1.0 apart."""
    return repr(point[0] if len(point) == 1 else point)


def _columns(name: Any, names: tuple[str, ...], values: Any) -> list[list[Any]]:
    """One list of values per field, all of one length."""
    if isinstance(values, Uniform):
        values = (values,)
    if isinstance(values, str) or not isinstance(values, Iterable):
        raise ValueError(f"Axis {name!r} needs a sequence of values, got {values!r}.")
    values = list(values.tolist() if isinstance(values, np.ndarray) else values)
    if not values:
        raise ValueError(f"Axis {name!r} is empty; give it at least one value.")
    if all(isinstance(v, Uniform) for v in values):
        if len(values) != len(names):
            raise ValueError(
                f"Axis {name!r} moves {len(names)} fields, got {len(values)} samplers."
            )
        columns = [list(v.draw(n)) for n, v in zip(names, values, strict=True)]
        if len({len(c) for c in columns}) > 1:
            raise ValueError(f"The samplers of axis {name!r} differ in `num`.")
        return columns
    if len(names) == 1:
        # A one-field axis given by a tuple of names has points of length one.
        is_zipped = not isinstance(name, str)
        return [[v[0] if is_zipped and _is_point(v) else v for v in values]]
    for point in values:
        if not _is_point(point) or len(point) != len(names):
            raise ValueError(
                f"Axis {name!r} moves {len(names)} fields together: each value must "
                f"have {len(names)} entries, got {point!r}."
            )
    return [list(column) for column in zip(*values, strict=True)]


def _is_point(value: Any) -> bool:
    return isinstance(value, tuple | list)


def _checked(name: str, field: fields.Field, value: Any) -> Any:
    """`value` as None or a plain Python number, bool or string that fits the field."""
    if _is_point(value) or getattr(value, "ndim", 0):
        raise ValueError(f"Axis {name!r} takes scalars, got {value!r}.")
    if isinstance(value, fields.ARRAYS):
        value = value.item()
    default, wanted = field.default, field.kind
    if isinstance(default, fields.ARRAYS) and np.ndim(default):
        raise ValueError(
            f"Axis {name!r}: the field is an array of shape {np.shape(default)}; only "
            "scalars can be swept."
        )
    if value is None:
        fits = field.is_optional
    elif wanted is None:  # a static field of some other type: any plain value
        fits = isinstance(value, fields.PLAIN)
    elif wanted is float:
        fits = isinstance(value, int | float) and not isinstance(value, bool)
    else:
        fits = type(value) is wanted
    if not fits:
        allowed = wanted.__name__ if wanted else "bool, int, float or str"
        allowed += " or None" if field.is_optional else ""
        raise ValueError(
            f"Axis {name!r}: the {'static ' * field.is_static}field takes values of "
            f"type {allowed} (its default is {default!r}), got {value!r}."
        )
    if isinstance(value, float) and math.isnan(value):
        raise ValueError(f"Axis {name!r} has a NaN.")
    if isinstance(value, str) and "\0" in value:
        raise ValueError(f"Axis {name!r} has a NUL character: {value!r}.")
    if wanted is float and value is not None:
        try:
            return float(value)
        except OverflowError:
            raise ValueError(f"Axis {name!r}: no float can hold {value}.") from None
    if type(value) is int and not field.is_static:
        limits = np.iinfo(_column_dtype(field))
        if not limits.min <= value <= limits.max:
            raise ValueError(
                f"Axis {name!r} is computed in {limits.dtype}, which cannot hold "
                f"{value!r}."
            )
    return value


def _column_dtype(field: fields.Field) -> np.dtype | None:
    """Dtype of an array of the field's values on the host; None for NumPy's choice."""
    if field.kind is not int:
        return None
    return np.dtype(getattr(field.default, "dtype", np.int64))


def groups(hparams: Any, dims: Sequence[Dimension]) -> list[Group]:
    """All cells, grouped by their static fields, in the order of first appearance."""
    known = fields.of(hparams)
    swept = {name: known[name] for dim in dims for name in dim.fields}
    is_static = {name: field.is_static for name, field in swept.items()}
    found: dict[str, list[tuple[int, dict[str, Any]]]] = {}
    for index, points in enumerate(itertools.product(*(dim.points for dim in dims))):
        cell = dict(zip(swept, itertools.chain(*points), strict=True))
        static = {n: x for n, x in cell.items() if is_static[n] or x is None}
        found.setdefault(repr(static), []).append((index, cell))

    def group(members):
        _, first = members[0]
        static = {n: x for n, x in first.items() if is_static[n] or x is None}
        traced = {
            n: np.asarray([cell[n] for _, cell in members], _column_dtype(swept[n]))
            for n in first
            if n not in static
        }
        return Group(static, traced, np.asarray([index for index, _ in members]))

    return [group(members) for members in found.values()]


def shape(dims: Sequence[Dimension]) -> tuple[int, ...]:
    """Lengths of the dimensions."""
    return tuple(len(dim.points) for dim in dims)


def find_cell(dims: Sequence[Dimension], cell: Mapping[str, Any]) -> int:
    """Flat index of the cell whose fields have these values.

    Dimensions of one point may be left out. Where no value is the very same, floats
    match to a relative 1e-9.

    Raises:
        ValueError: On an unknown field, a value that no point has, or a dimension
            that the given fields leave open.
    """
    swept = [name for dim in dims for name in dim.fields]
    for name in cell:
        checks.choice("field of the cell", name, swept)
    index = []
    for dim in dims:
        hits = _hits(dim, cell, lambda value, wanted: repr(value) == repr(wanted))
        hits = hits or _hits(dim, cell, _matches)
        given = {name: cell[name] for name in dim.fields if name in cell}
        listed = ", ".join(map(_said, dim.points))
        if not hits:
            raise ValueError(f"No cell has {given}; {dim.name} is one of {listed}.")
        if len(hits) > 1:
            raise ValueError(
                f"The cell leaves {dim.name!r} open: {given or 'nothing'} given; "
                f"it is one of {listed}."
            )
        index.append(hits[0])
    return int(np.ravel_multi_index(index, shape(dims))) if index else 0


def _hits(
    dim: Dimension, cell: Mapping[str, Any], is_same: Callable[[Any, Any], bool]
) -> list[int]:
    """Indices of the points that have the values of the cell, where it gives any."""
    return [
        i
        for i, point in enumerate(dim.points)
        if all(
            is_same(value, cell[name])
            for name, value in zip(dim.fields, point, strict=True)
            if name in cell
        )
    ]


def _matches(value: Any, wanted: Any) -> bool:
    if isinstance(value, float) and isinstance(wanted, int | float):
        return math.isclose(value, wanted, rel_tol=1e-9)
    if value is None:  # among numbers, its label is NaN
        return bool(wanted is None or wanted != wanted)
    return bool(value == wanted)


def labels(values: Sequence[Any]) -> np.ndarray:
    """A swept field's values as a coordinate, which any file can hold.

    None among numbers is NaN, which no axis has otherwise. Values of several types are
    words, and so are integers beyond 64 bits.
    """
    kinds = {type(value) for value in values}
    if len(kinds) == 1 and kinds <= {bool, str}:
        return np.asarray(values)
    if kinds <= {int, float, type(None)}:
        array = np.asarray([np.nan if value is None else value for value in values])
        pairs = zip(array.tolist(), values, strict=True)
        is_exact = all(value is None or found == value for found, value in pairs)
        is_clear = kinds != {int} or array.dtype.kind in "iu"
        if kinds >= {int, float}:
            is_clear = len({*values}) == len({*map(repr, values)})
        if is_exact and is_clear:
            return array
    return np.asarray([str(value) for value in values])


def is_labelled(labels: np.ndarray, value: Any) -> np.ndarray:
    """Which of a coordinate's labels, as `labels` makes them, stand for a value."""
    if labels.dtype.kind == "U":
        return labels == str(value)
    return np.isnan(labels) if value is None else labels == value
