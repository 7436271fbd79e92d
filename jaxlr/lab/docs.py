"""One-line docs and units of a dataclass's fields, read from their docstrings.

    class HParams(eqx.Module):
        eta: Hyper = 0.1
        \"\"\"Step size [1/||M||].\"\"\"

The bracket at the end, if there is one, holds the units.
"""

import ast
import functools as ft
import inspect
import itertools
import re
import textwrap
from typing import NamedTuple


class FieldDoc(NamedTuple):
    """What a field is, and its units ("1" for dimensionless, "" for not said)."""

    text: str
    units: str


_UNITS = re.compile(r"\s*\[([^\[\]]*)\]\s*\.?$")


@ft.cache
def field_docs(cls: type) -> dict[str, FieldDoc]:
    """Field name -> doc, base classes included; empty where no source can be had."""
    docs: dict[str, FieldDoc] = {}
    for base in reversed(cls.__mro__):
        try:
            source = textwrap.dedent(inspect.getsource(base))
            body = getattr(ast.parse(source).body[0], "body", [])
        except (OSError, TypeError, SyntaxError, IndexError):
            continue  # built in, or typed in where no file holds it
        for field, below in itertools.pairwise(body):
            match field, below:
                case (
                    ast.AnnAssign(target=ast.Name(id=name)),
                    ast.Expr(value=ast.Constant(value=str(text))),
                ):
                    text = " ".join(inspect.cleandoc(text).split())
                    units = _UNITS.search(text)
                    docs[name] = FieldDoc(
                        _UNITS.sub("", text).rstrip("."), units[1] if units else ""
                    )
    return docs
