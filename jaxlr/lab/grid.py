"""The cells of a sweep: axes -> dimensions -> groups that share one compiled program.

Every cell of the product of the dimensions is a flat index, C order. Cells whose static
fields (shapes, strings) are equal form a group; its traced fields become arrays.
"""

from collections.abc import Iterable, Mapping, Sequence
import dataclasses
import itertools
import math
import numbers
from typing import Any

import jax
import numpy as np

from jaxlr.core import checks
from jaxlr.core.types import Axis, Uniform


RESERVED = ("seed", "step", "diverged_at", "ended_at")


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
            zipped lengths, or a value that does not fit its field.
    """
    pairs = axes.items() if isinstance(axes, Mapping) else axes
    if isinstance(pairs, Axis | str) or not all(
        isinstance(pair, tuple) and len(pair) == 2 for pair in pairs
    ):
        raise ValueError(
            f"`axes` must be a dict of name -> values or a list of Axis, got {axes!r}."
        )
    fields = {f.name: f for f in dataclasses.fields(hparams)}
    dims = []
    taken: set[str] = set()
    for name, values in pairs:
        names = tuple(name) if isinstance(name, tuple | list) else (name,)
        for field in names:
            checks.choice("axis", field, fields)
            if field in taken:
                raise ValueError(f"Two axes sweep the field {field!r}; keep one.")
            taken.add(field)
        columns = _columns(name, names, values)
        checked = [
            [_checked(fields[field], getattr(hparams, field), v) for v in column]
            for field, column in zip(names, columns, strict=True)
        ]
        dims.append(Dimension(names, tuple(zip(*checked, strict=True))))
    for dim in dims:
        if len(dim.fields) > 1 and dim.name in taken:
            raise ValueError(
                f"The zipped axis {dim.fields} would be called {dim.name!r}, as "
                "another axis is; rename a field."
            )
        if dim.name in RESERVED:
            raise ValueError(f"An axis may not be called {dim.name!r}: it is reserved.")
    return tuple(dims)


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


def is_static(field: dataclasses.Field, default: Any) -> bool:
    """Whether a new value of the field needs a new program."""
    is_number = isinstance(
        default, numbers.Number | np.generic | np.ndarray | jax.Array
    )
    return bool(field.metadata.get("static", False)) or not is_number


def _checked(field: dataclasses.Field, default: Any, value: Any) -> Any:
    """`value` as a plain Python number, bool or string that fits the field."""
    if _is_point(value) or getattr(value, "ndim", 0):
        raise ValueError(f"Axis {field.name!r} takes scalars, got {value!r}.")
    if isinstance(value, np.generic | np.ndarray | jax.Array):
        value = value.item()
    if np.ndim(default):
        raise ValueError(
            f"Axis {field.name!r}: the field is an array of shape {np.shape(default)}; "
            "only scalars can be swept."
        )
    kind = "static field" if is_static(field, default) else "field"
    wanted = _kind(default)
    if wanted is None:  # a static field of some other type: any plain value
        fits = isinstance(value, bool | int | float | str)
    elif wanted is float:
        fits = isinstance(value, int | float) and not isinstance(value, bool)
        if fits and math.isnan(value):
            raise ValueError(f"Axis {field.name!r} has a NaN.")
        value = float(value) if fits else value
    else:
        fits = type(value) is wanted
    if not fits:
        name = wanted.__name__ if wanted else "bool, int, float or str"
        raise ValueError(
            f"Axis {field.name!r}: the {kind} takes values of type {name} "
            f"(its default is {default!r}), got {value!r}."
        )
    return value


def _kind(default: Any) -> type | None:
    if isinstance(default, np.generic | np.ndarray | jax.Array):
        kinds = {"b": bool, "i": int, "u": int}
        return kinds.get(np.dtype(default.dtype).kind, float)
    return next((t for t in (bool, int, float, str) if isinstance(default, t)), None)


def groups(hparams: Any, dims: Sequence[Dimension]) -> list[Group]:
    """All cells, grouped by their static fields, in the order of first appearance."""
    fields = {f.name: f for f in dataclasses.fields(hparams)}
    swept = [name for dim in dims for name in dim.fields]
    static = [n for n in swept if is_static(fields[n], getattr(hparams, n))]
    found: dict[tuple, list[tuple[int, dict[str, Any]]]] = {}
    for index, points in enumerate(itertools.product(*(dim.points for dim in dims))):
        cell = dict(zip(swept, itertools.chain(*points), strict=True))
        found.setdefault(tuple(cell[n] for n in static), []).append((index, cell))
    return [
        Group(
            static=dict(zip(static, key, strict=True)),
            traced={
                n: np.asarray([cell[n] for _, cell in members])
                for n in swept
                if n not in static
            },
            cells=np.asarray([index for index, _ in members]),
        )
        for key, members in found.items()
    ]


def shape(dims: Sequence[Dimension]) -> tuple[int, ...]:
    """Lengths of the dimensions."""
    return tuple(len(dim.points) for dim in dims)


def find_cell(dims: Sequence[Dimension], cell: Mapping[str, Any]) -> int:
    """Flat index of the cell whose fields have these values.

    Dimensions of one point may be left out. Floats match to a relative 1e-9.

    Raises:
        ValueError: On an unknown field, a value that no point has, or a dimension
            that the given fields leave open.
    """
    swept = [name for dim in dims for name in dim.fields]
    for name in cell:
        checks.choice("field of the cell", name, swept)
    index = []
    for dim in dims:
        hits = [
            i
            for i, point in enumerate(dim.points)
            if all(
                _matches(value, cell[name])
                for name, value in zip(dim.fields, point, strict=True)
                if name in cell
            )
        ]
        given = {name: cell[name] for name in dim.fields if name in cell}
        listed = ", ".join(str(p[0] if len(p) == 1 else p) for p in dim.points)
        if not hits:
            raise ValueError(f"No cell has {given}; {dim.name} is one of {listed}.")
        if len(hits) > 1:
            raise ValueError(
                f"The cell leaves {dim.name!r} open: {given or 'nothing'} given; "
                f"it is one of {listed}."
            )
        index.append(hits[0])
    return int(np.ravel_multi_index(index, shape(dims))) if index else 0


def _matches(value: Any, wanted: Any) -> bool:
    if isinstance(value, float) and isinstance(wanted, int | float):
        return math.isclose(value, wanted, rel_tol=1e-9)
    return value == wanted


def plain_fields(hparams: Any) -> dict[str, Any]:
    """Every field as something that JSON can hold; arrays as lists."""

    def plain(value):
        if isinstance(value, np.generic | np.ndarray | jax.Array):
            return np.asarray(value).tolist()
        if isinstance(value, float) and not math.isfinite(value):
            return repr(value)
        if isinstance(value, bool | int | float | str):
            return value
        name = getattr(value, "__qualname__", None)  # a repr would hold an address
        return f"{value.__module__}.{name}" if name else repr(value)

    return {
        f.name: plain(getattr(hparams, f.name)) for f in dataclasses.fields(hparams)
    }
