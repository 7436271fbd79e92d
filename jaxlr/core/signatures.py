"""Keywords that a function passes on, listed in full where they are accepted."""

from collections.abc import Callable
import difflib
import functools as ft
import inspect
import re
from typing import Any, get_args, ParamSpec, TypeVar


P = ParamSpec("P")
T = TypeVar("T")


def passes_on(
    target: Callable[..., Any], **defaults: Any
) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Decorate `f(..., **settings: Unpack[Settings])` that calls `target(**settings)`.

    The keywords of the TypedDict `Settings` stand in the signature in place of
    `settings`, where completion finds them, with the types and the defaults that
    `target` gives them; their entries in the Args of `target`'s docstring stand in
    place of the entry `**settings:`. Type checkers read `Unpack[Settings]` as it is.

    Args:
        target: Function that takes each keyword of `Settings`, and documents it.
        **defaults: Defaults that differ from those of `target`.

    Returns:
        The decorator. What it returns raises a `TypeError` on a keyword that it does
        not take; the error names the nearest that it does.
    """

    def decorate(function: Callable[P, T]) -> Callable[P, T]:
        signature = inspect.signature(function)
        *named, rest = signature.parameters.values()
        (settings,) = get_args(rest.annotation)
        accepted = inspect.signature(target).parameters
        passed = [
            accepted[name].replace(default=defaults.get(name, accepted[name].default))
            for name in settings.__annotations__
        ]
        full = signature.replace(parameters=[*named, *passed])

        @ft.wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> T:
            for name in kwargs:
                if name not in full.parameters:
                    nearest = difflib.get_close_matches(name, full.parameters, 1)
                    hint = f"; did you mean {nearest[0]!r}?" if nearest else "."
                    raise TypeError(
                        f"{function.__qualname__}() got an unexpected keyword argument "
                        f"{name!r}{hint}"
                    )
            return function(*args, **{**defaults, **kwargs})  # pyright: ignore

        vars(call)["__signature__"] = full
        theirs, own = _entries(target), _entries(function)
        call.__doc__ = (inspect.getdoc(function) or "").replace(
            own.get(f"**{rest.name}", "\0"),
            "\n".join(theirs.get(p.name, "") for p in passed),
        )
        return call

    return decorate


def _entries(function):
    """Name -> its entry in the Args section of the docstring, indented by 4."""
    _, _, below = (inspect.getdoc(function) or "").partition("\nArgs:\n")
    section, _, _ = below.partition("\n\n")
    entries = re.findall(r"^ {4}\S.*(?:\n {8}.*)*", section, re.M)
    return {entry.split(":")[0].strip(): entry for entry in entries}
