"""Keywords that are passed on stand in the signature and in the docstring."""

import inspect
from typing import TypedDict, Unpack

import pytest

from jaxlr.core import signatures


class Settings(TypedDict, total=False):
    start: str
    alpha: float


def target(x, *, width=3, start="random", alpha=0.1):
    """Return all.

    Args:
        x: First.
        width: Not passed on.
        start: Where it starts:
            in two lines.
        alpha: How large it is.

    Returns:
        A tuple.
    """
    return x, width, start, alpha


@signatures.passes_on(target, start="spectral")
def outer(x: int, *, eta: float = 0.5, **settings: Unpack[Settings]) -> tuple:
    """Pass on.

    Args:
        x: First.
        eta: Step size.
        **settings: Passed on.

    Returns:
        What `target` does.
    """
    return eta, *target(x, **settings)


@signatures.passes_on(outer, alpha=2.0)
def outermost(x: int, **settings: Unpack[Settings]) -> tuple:
    """Pass on again.

    Args:
        x: First.
        **settings: Passed on.
    """
    return outer(x, **settings)


def test_the_signature_lists_what_is_passed_on():
    assert str(inspect.signature(outer)) == (
        "(x: int, *, eta: float = 0.5, start='spectral', alpha=0.1) -> tuple"
    )
    assert str(inspect.signature(outermost)) == (
        "(x: int, *, start='spectral', alpha=2.0) -> tuple"
    )


def test_defaults_are_those_that_the_signature_shows():
    assert outer(1) == (0.5, 1, 3, "spectral", 0.1)
    assert outer(1, alpha=3.0, start="a", eta=0.0) == (0.0, 1, 3, "a", 3.0)
    assert outermost(1) == (0.5, 1, 3, "spectral", 2.0)


def test_the_docstring_describes_what_is_passed_on():
    assert inspect.getdoc(outer) == inspect.cleandoc(
        """Pass on.

        Args:
            x: First.
            eta: Step size.
            start: Where it starts:
                in two lines.
            alpha: How large it is.

        Returns:
            What `target` does.
        """
    )
    assert inspect.getdoc(outermost).endswith("alpha: How large it is.")


@pytest.mark.parametrize(("name", "hint"), [("strat", "'start'"), ("etta", "'eta'")])
def test_an_unknown_keyword_names_the_nearest(name, hint):
    with pytest.raises(TypeError, match=rf"outer\(\) .* {name!r}; did you mean {hint}"):
        outer(1, **{name: 1})
    with pytest.raises(TypeError, match="unexpected keyword argument 'width'"):
        outer(1, width=3)


def test_a_keyword_that_the_target_does_not_take_is_refused_at_once():
    class More(Settings, total=False):
        other: int

    def wrong(**settings: Unpack[More]):
        return target(1, **settings)

    with pytest.raises(KeyError, match="other"):
        signatures.passes_on(target)(wrong)
