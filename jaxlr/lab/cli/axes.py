"""`--axis NAME=SPEC`: the grammar, and how given axes meet an experiment's own."""

from collections.abc import Mapping
from typing import Any


GRAMMAR = (
    "An axis is NAME=SPEC. SPEC is a list, `alpha=0.1,0.2` or `method=gd,sgd`; or a "
    "range with both ends, `alpha=log:1e-3:1:8` or `alpha=lin:0:1:5`; or a random "
    "search, `alpha=loguniform:1e-3:1:8` or `alpha=uniform:0:1:8`. Fields that move "
    "together: `alpha/beta=log:1e-3:1:8/lin:0:1:8`. Fields inside a field have dots: "
    "`opt.lr=0.1,0.2`."
)
_RANGES = ("log", "lin", "uniform", "loguniform")


def parse_axis(text: str) -> tuple[str | tuple[str, ...], Any]:
    """`NAME=SPEC` as a key and a value of a sweep's `axes`.

    Integers stay integers (in a range too, where every value is one); `true` and
    `false` are booleans, `None` is None; what is no number is a string.

    Returns:
        A field's name and its values; a tuple of names and tuples of values where
        fields move together. A random search gives a `Uniform`, or a tuple of them.

    Raises:
        ValueError: On anything malformed, with the grammar.
    """
    try:
        return _parse_axis(text)
    except ValueError as e:
        raise ValueError(f"Cannot read the axis {text!r}: {e} {GRAMMAR}") from e


def _parse_axis(text):
    from jaxlr.core import Uniform

    left, has_equals, right = text.partition("=")
    names = tuple(name.strip().replace("-", "_") for name in left.split("/"))
    words = [word for name in names for word in name.split(".")]
    if not has_equals or not all(word.isidentifier() for word in words):
        raise ValueError("no NAME= with a field's name in front.")
    if len(names) == 1:
        return names[0], _values(right)
    if len(set(names)) < len(names):
        raise ValueError("a field is named twice.")
    specs = right.split("/")
    if len(specs) != len(names):
        raise ValueError(f"{len(names)} fields, but {len(specs)} specs.")
    columns = [_values(spec) for spec in specs]
    if all(isinstance(column, Uniform) for column in columns):
        return names, tuple(columns)
    columns = [
        column.draw(name) if isinstance(column, Uniform) else column
        for name, column in zip(names, columns, strict=True)
    ]
    if len({len(column) for column in columns}) > 1:
        raise ValueError(f"the specs differ in length: {[len(c) for c in columns]}.")
    return names, tuple(zip(*columns, strict=True))


def _values(spec: str) -> Any:
    if ":" not in spec:
        return tuple(scalar(token) for token in spec.split(","))
    import numpy as np

    from jaxlr.core import checks, LogUniform, Uniform

    kind, *rest = spec.split(":")
    checks.choice("range", kind, _RANGES)
    try:
        low, high, num = rest
        ends, num = (scalar(low), scalar(high)), int(num)
        low, high = (float(end) for end in ends if end is not None)
    except ValueError:
        raise ValueError(f"{spec!r} is not {kind}:LOW:HIGH:NUM.") from None
    if kind == "uniform":
        return Uniform(low, high, num)
    if kind == "loguniform":
        return LogUniform(low, high, num)
    checks.count("NUM", num, least=2)
    if kind == "log":
        checks.positive("LOW:HIGH", (low, high))
    else:
        checks.within("LOW:HIGH", (low, high), -np.inf, np.inf, ends="()")
    values = (np.geomspace if kind == "log" else np.linspace)(low, high, num)
    whole = np.rint(values)
    if all(isinstance(end, int) for end in ends) and np.allclose(values, whole, 1e-12):
        return tuple(int(value) for value in whole)
    return tuple(values.tolist())


def scalar(token: str) -> bool | int | float | str | None:
    """A word as the boolean, integer, float, None or string that it spells.

    Raises:
        ValueError: If it is empty.
    """
    token = token.strip()
    if not token:
        raise ValueError("a value is empty.")
    if token.lower() in ("true", "false"):
        return token.lower() == "true"
    if token == "None":
        return None
    for kind in (int, float):
        try:
            return kind(token)
        except ValueError:
            pass
    return token


def merge(
    own: Any, given: list[tuple[Any, Any]], fixed: Mapping[str, Any]
) -> tuple[Any, list[str]]:
    """An experiment's own axes, given axes and fixed fields as one sweep.

    A given axis takes the place of the own axes of its fields; a fixed field's own axis
    is dropped.

    Returns:
        The axes, and the names of the dropped ones.

    Raises:
        ValueError: If a field is given twice, or if an own axis that moves several
            fields together would lose only some of them.
    """
    taken = dict.fromkeys(fixed, "its flag")
    for name, _ in given:
        for field in _fields(name):
            if field in taken:
                raise ValueError(
                    f"{field!r} is given twice, by --axis and by {taken[field]}; keep "
                    "one."
                )
            taken[field] = "another --axis"
    if not taken:
        return own, []
    pairs = dict(own.items() if isinstance(own, Mapping) else own)
    merged: dict[Any, Any] = {}
    dropped: list[str] = []
    for name, values in pairs.items():
        fields = _fields(name)
        lost = [field for field in fields if field in taken]
        if not lost:
            merged[name] = values
        elif len(lost) < len(fields):
            left = [field for field in fields if field not in taken]
            raise ValueError(
                f"The experiment moves {'/'.join(fields)} together; {', '.join(lost)} "
                f"cannot change alone. Give {', '.join(left)} too: one axis "
                f"--axis {'/'.join(fields)}=..., or a flag or an axis each."
            )
        elif all(field in fixed for field in fields):
            dropped.append("/".join(fields))
        else:
            merged |= {n: v for n, v in given if set(_fields(n)) & set(fields)}
    return merged | dict(given), dropped


def _fields(name: str | tuple[str, ...]) -> tuple[str, ...]:
    return (name,) if isinstance(name, str) else tuple(name)
