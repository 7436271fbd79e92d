"""Sentences for misuse: the name, the valid ones, the nearest; what is missing."""

from collections.abc import Iterable, Iterator
import contextlib
import difflib


def unknown(kind: str, name: object, valid: Iterable[object]) -> str:
    """The sentence `Unknown <kind> 'nmae'; did you mean 'name'? valid: a, b`."""
    names = sorted(map(str, valid))
    nearest = difflib.get_close_matches(str(name), names, 1)
    hint = f" did you mean {nearest[0]!r}?" if nearest else ""
    return f"Unknown {kind} {name!r};{hint} valid: {', '.join(names) or 'none'}."


@contextlib.contextmanager
def needs_data_extra(name: str) -> Iterator[None]:
    """Around imports of libraries that bring data, which `name` needs.

    Raises:
        ModuleNotFoundError: If one is not installed.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f'`{name}` needs {error.name}: run `pip install "jaxlr[data]"`.',
            name=error.name,
        ) from error
