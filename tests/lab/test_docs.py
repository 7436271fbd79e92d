"""Docs and units of fields, read from their docstrings."""

import equinox as eqx

from jaxlr.core import errors
from jaxlr.lab.docs import field_docs, FieldDoc


class Base(eqx.Module):
    """Base."""

    alpha: float = 1.0
    """Initial scale [1]."""


class Derived(Base):
    """Derived."""

    eta: float = 0.1
    """Step size, over
    two lines [1/||M||]."""
    plain: int = 3
    silent = 4
    note: str = ""
    """No units here."""


def test_docs_units_and_inheritance():
    assert field_docs(Derived) == {
        "alpha": FieldDoc("Initial scale", "1"),
        "eta": FieldDoc("Step size, over two lines", "1/||M||"),
        "note": FieldDoc("No units here", ""),
    }


def test_no_source_no_docs():
    assert field_docs(int) == {}


def test_unknown_names_the_nearest():
    sentence = errors.unknown("axis", "alhpa", ["eta", "alpha"])
    assert sentence == "Unknown axis 'alhpa'; did you mean 'alpha'? valid: alpha, eta."
