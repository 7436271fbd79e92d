"""The fields of HParams by name; those of a dataclass inside have dots: `opt.lr`."""

from collections.abc import Mapping
import dataclasses
import functools as ft
import itertools
import math
import numbers
import types
from typing import Any, get_args, get_origin, get_type_hints, Literal, Union

import jax
import numpy as np

from jaxlr.lab import docs, modules


PLAIN = bool, int, float, str
ARRAYS = np.generic, np.ndarray, jax.Array
_NOT_FINITE = "inf", "-inf", "nan"  # as which JSON holds them


@dataclasses.dataclass(frozen=True)
class Field:
    """One field of HParams, or of a dataclass inside it.

    Attributes:
        default: What it is where nothing else is asked for.
        hint: Its annotation; None where that cannot be evaluated.
        is_marked_static: Whether it, or a field around it, says `static=True`.
        doc: Its doc and units.
    """

    default: Any
    hint: Any
    is_marked_static: bool
    doc: docs.FieldDoc

    @ft.cached_property
    def _alternatives(self) -> set[Any]:
        """The types of its annotation, those of the words of a `Literal` included."""
        is_union = get_origin(self.hint) in (Union, types.UnionType)
        found = get_args(self.hint) if is_union else (self.hint,)
        words = [get_args(x) for x in found if get_origin(x) is Literal]
        return {*found, *map(type, itertools.chain(*words))}

    @property
    def is_optional(self) -> bool:
        """Whether None is a value of it."""
        return self.default is None or type(None) in self._alternatives

    @ft.cached_property
    def kind(self) -> type | None:
        """Type of its plain values: bool, int, float or str; None for any of these."""
        if self.default is None:
            kinds = self._alternatives & {*PLAIN}
            kinds = {float} if kinds == {int, float} else kinds
            return kinds.pop() if len(kinds) == 1 else None
        if isinstance(self.default, ARRAYS):
            by_letter = {"b": bool, "i": int, "u": int}
            return by_letter.get(self.default.dtype.kind, float)
        kinds = (kind for kind in PLAIN if isinstance(self.default, kind))
        is_number = isinstance(self.default, numbers.Number)
        return next(kinds, float if is_number else None)

    @property
    def is_static(self) -> bool:
        """Whether a new value, and not only None, needs a new program."""
        return self.is_marked_static or self.kind in (None, str)


@ft.cache
def _hints(cls: type) -> dict[str, Any]:
    try:
        return get_type_hints(cls)
    except Exception:  # an annotation that cannot be evaluated: the default has to do
        return {}


def of(hparams: Any) -> dict[str, Field]:
    """Every field that can be set, by name; those of dataclasses inside too."""
    found: dict[str, Field] = {}
    cls = type(hparams)
    for field in dataclasses.fields(hparams):
        if not field.init:
            continue
        value = getattr(hparams, field.name)
        is_static = bool(field.metadata.get("static", False))
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            for name, inner in of(value).items():
                either = is_static or inner.is_marked_static
                inner = dataclasses.replace(inner, is_marked_static=either)
                found[f"{field.name}.{name}"] = inner
        else:
            doc = docs.field_docs(cls).get(field.name, docs.FieldDoc("", ""))
            hint = _hints(cls).get(field.name)
            found[field.name] = Field(value, hint, is_static, doc)
    return found


def replace(hparams: Any, values: Mapping[str, Any]) -> Any:
    """A copy of HParams with some fields changed, by name."""
    changes: dict[str, Any] = {}
    inside: dict[str, dict[str, Any]] = {}
    for name, value in values.items():
        outer, _, inner = name.partition(".")
        if inner:
            inside.setdefault(outer, {})[inner] = value
        else:
            changes[name] = value
    for name, inner in inside.items():
        changes[name] = replace(getattr(hparams, name), inner)
    return dataclasses.replace(hparams, **changes)


def plain(hparams: Any) -> dict[str, Any]:
    """Every field as something that JSON can hold; arrays and tuples as lists."""
    return {name: _plain(field.default) for name, field in of(hparams).items()}


def _plain(value: Any) -> Any:
    if isinstance(value, ARRAYS):
        return np.asarray(value).tolist()
    if isinstance(value, tuple | list):
        return [_plain(x) for x in value]
    if isinstance(value, float) and not math.isfinite(value):
        return repr(value)
    if value is None or isinstance(value, PLAIN):
        return value
    has_name = hasattr(value, "__qualname__")
    return modules.named(value) if has_name else modules.shown(value)


def restored(recorded: Any, field: Field) -> Any:
    """The value of a field of which `plain` recorded this.

    What JSON cannot say, such as a function, is the field's default.
    """
    return _restored(recorded, field.default, field.kind)


def _restored(recorded: Any, like: Any, kind: type | None) -> Any:
    if recorded is None:
        return None
    if isinstance(like, ARRAYS):
        return np.asarray(recorded, like.dtype)
    if isinstance(recorded, list) and isinstance(like, tuple | list | None):
        first = next(iter(like or ()), None)
        make = list if isinstance(like, list) else tuple
        kinds = [type(first) if x in _NOT_FINITE else type(x) for x in recorded]
        pairs = zip(recorded, kinds, strict=True)
        return getattr(like, "_make", make)(_restored(x, first, k) for x, k in pairs)
    if isinstance(recorded, str) and kind is not str:
        return float(recorded) if recorded in _NOT_FINITE else like
    return recorded if like is None or isinstance(like, PLAIN) else like
