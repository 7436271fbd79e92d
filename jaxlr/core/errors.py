"""Sentences for misuse: the name, the valid ones, the nearest."""

from collections.abc import Iterable
import difflib


def unknown(kind: str, name: object, valid: Iterable[object]) -> str:
    """The sentence `Unknown <kind> 'nmae'; did you mean 'name'? valid: a, b`."""
    names = sorted(map(str, valid))
    nearest = difflib.get_close_matches(str(name), names, 1)
    hint = f" did you mean {nearest[0]!r}?" if nearest else ""
    return f"Unknown {kind} {name!r};{hint} valid: {', '.join(names) or 'none'}."
