"""The code of functions as plain values that mean the same in every file and cell."""

import bisect
import dis
import functools as ft
import re
import types
from typing import Any


_FILLERS = {"NOP", "CACHE", "PRECALL", "PUSH_NULL", "EXTENDED_ARG", "RESUME"}
_FAST = re.compile("(?:LOAD|STORE)_FAST")
_KIND = 0x3AC  # flags: what the arguments are, and whether it is a generator


def normal(code: types.CodeType) -> tuple[Any, ...]:
    """Instructions, guarded ranges and arguments, docstrings and line numbers left out.

    Which names a file or cell imports, and where its lines end, decides how calls and
    pairs of local variables are written; here they are all written in one way.
    """
    ops, offsets = [], []
    bytecode = dis.Bytecode(code)
    for op in bytecode:
        name, value = op.opname.replace("LOAD_METHOD", "LOAD_ATTR"), op.argval
        if name == "KW_NAMES":  # which `dis` leaves to others
            value = code.co_consts[op.arg or 0]
        parts = _FAST.findall(name)
        pairs = zip(parts, value, strict=True) if len(parts) == 2 else [(name, value)]
        if name not in _FILLERS:
            ops += pairs
            offsets += [op.offset] * (len(ops) - len(offsets))
    jumps, at = {*dis.hasjabs, *dis.hasjrel}, ft.partial(bisect.bisect_left, offsets)
    ops = [
        (name, at(value) if dis.opmap.get(name) in jumps else value)
        for name, value in ops
    ]
    guards = [
        (at(entry.start), at(entry.end), at(entry.target), entry.depth, entry.lasti)
        for entry in bytecode.exception_entries  # pyright: ignore
    ]
    counts = code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount
    arguments = code.co_varnames[: counts[0] + counts[2]]
    return tuple(ops), tuple(guards), counts, arguments, code.co_flags & _KIND


def names(code: types.CodeType) -> tuple[set[str], set[str], set[str]]:
    """Globals that code reads, outer variables that it writes, and all attributes."""
    reads, writes, attributes = set(), set(), set(code.co_names)
    for op in dis.get_instructions(code):
        kind, _, where = op.opname.partition("_")
        if kind == "LOAD" and ("GLOBAL" in where or where == "NAME"):
            reads.add(op.argval)
        elif kind in ("STORE", "DELETE") and where in ("GLOBAL", "DEREF"):
            writes.add(op.argval)
    for inner in code.co_consts:
        if isinstance(inner, types.CodeType):
            for found, more in zip(
                (reads, writes, attributes), names(inner), strict=True
            ):
                found |= more
    return reads, writes, attributes
