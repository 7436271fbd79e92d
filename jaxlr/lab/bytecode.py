"""The code of functions as plain values that mean the same in every file and cell."""

import bisect
import dis
import functools as ft
import re
import types
from typing import Any, NamedTuple


_FILLERS = {"NOP", "CACHE", "PRECALL", "PUSH_NULL", "EXTENDED_ARG", "RESUME"}
_FAST = re.compile("(?:LOAD|STORE)_FAST")
_KIND = 0x3AC  # flags: what the arguments are, and whether it is a generator


def normal(code: types.CodeType) -> tuple[Any, ...]:
    """Instructions, guarded ranges and arguments, docstrings and line numbers left out.

    Which names a file or cell imports, and where its lines end, decides how calls and
    pairs of local variables are written; here they are all written in one way.
    """
    found = _ops(code)
    offsets = [offset for _, _, offset in found]
    jumps, at = {*dis.hasjabs, *dis.hasjrel}, ft.partial(bisect.bisect_left, offsets)
    ops = [
        (name, at(value) if dis.opmap.get(name) in jumps else value)
        for name, value, _ in found
    ]
    guards = [
        (at(entry.start), at(entry.end), at(entry.target), entry.depth, entry.lasti)
        for entry in dis.Bytecode(code).exception_entries  # pyright: ignore
    ]
    counts = code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount
    arguments = code.co_varnames[: counts[0] + counts[2]]
    return tuple(ops), tuple(guards), counts, arguments, code.co_flags & _KIND


def _ops(code: types.CodeType) -> list[tuple[str, Any, int]]:
    """Instructions, their arguments and offsets; two in one are two."""
    ops = []
    for op in dis.get_instructions(code):
        name, value = op.opname.replace("LOAD_METHOD", "LOAD_ATTR"), op.argval
        if name == "KW_NAMES":  # which `dis` leaves to others
            value = code.co_consts[op.arg or 0]
        parts = _FAST.findall(name)
        pairs = zip(parts, value, strict=True) if len(parts) == 2 else [(name, value)]
        if name not in _FILLERS:
            ops += [(*pair, op.offset) for pair in pairs]
    return ops


class Names(NamedTuple):
    """What code reaches by name, that of the functions inside it included.

    Attributes:
        reads: Globals that it reads.
        writes: Outer variables that it writes.
        attributes: Everything that it asks of anything.
        whole: What it reads for more than an attribute, as in `getattr(module, name)`.
        imports: Level, name and members of what it imports, and as what.
    """

    reads: set[str]
    writes: set[str]
    attributes: set[str]
    whole: set[str]
    imports: set[tuple[int, str, tuple[str, ...], str]]


def names(code: types.CodeType) -> Names:
    """What code reaches by name."""
    found = Names(set(), set(), set(code.co_names), set(), set())
    ops, renamed = _ops(code), set()
    cells = {*code.co_cellvars, *code.co_freevars}
    for i, (name, value, _) in enumerate(ops):
        kind, _, where = name.partition("_")
        if name == "IMPORT_NAME":
            level, members = (x for _, x, _ in ops[i - 2 : i])
            bound = _bound(ops[i + 1 : i + 2])  # not by `from`
            found.imports.add((level, value, tuple(members or ()), bound))
        elif name == "IMPORT_FROM":
            renamed.add((value, _bound(ops[i:])))
        elif kind == "LOAD":
            if "GLOBAL" in where or where == "NAME":
                found.reads.add(value)
            is_passed_on = where == "CLOSURE" or ("FAST" in where and value in cells)
            is_asked = ops[i + 1][0] == "LOAD_ATTR" or where == "CONST"
            if not is_passed_on and not is_asked:
                found.whole.add(value)
        elif kind in ("STORE", "DELETE") and where in ("GLOBAL", "DEREF"):
            found.writes.add(value)
    found.whole.update(name for name, bound in renamed if bound in found.whole)
    for inner in code.co_consts:
        if isinstance(inner, types.CodeType):
            for mine, more in zip(found, names(inner), strict=True):
                mine |= more
    return found


def _bound(ops: list[tuple[str, Any, int]]) -> str:
    """The variable that is assigned to next."""
    return next((x for name, x, _ in ops if name.startswith("STORE_")), "")
