"""What is missing where a library that brings data is not installed."""

from collections.abc import Iterator
import contextlib


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
