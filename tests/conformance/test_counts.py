"""Counts are integers, Python's or NumPy's, never floats: public functions are called.

`tests/<folder>/examples.py` has arguments with which functions of `jaxlr.<folder>` can
be called: EXAMPLES[name] = function of no arguments that returns them, by name.
That every count of every public signature is checked at all, `vocabulary.counts` holds.
"""

import functools as ft
import importlib
import inspect
import operator
from pathlib import Path
import types
import typing

import jax
import numpy as np
import pytest

import jaxlr


TESTS = Path(__file__).parents[1]


def examples():
    """(name, function, its arguments) of every example."""
    for path in sorted(TESTS.glob("*/examples.py")):
        folder = path.parent.name
        table = importlib.import_module(f"tests.{folder}.examples").EXAMPLES
        for name, arguments in table.items():
            function = operator.attrgetter(name)(getattr(jaxlr, folder))
            yield f"{folder}.{name}", function, arguments


def is_count(annotation):
    """Whether it is `int`, alone or in a union with neither floats nor tuples."""
    is_union = typing.get_origin(annotation) in (typing.Union, types.UnionType)
    members = typing.get_args(annotation) if is_union else (annotation,)
    is_index = any(typing.get_origin(member) for member in members)
    return int in members and float not in members and not is_index


def counts(function):
    parameters = inspect.signature(function).parameters.values()
    return [p.name for p in parameters if is_count(p.annotation)]


EXAMPLES = {name: (function, given) for name, function, given in examples()}
CASES = [
    (name, count)
    for name, (function, _) in EXAMPLES.items()
    for count in counts(function)
]


def test_there_are_examples():
    assert len(CASES) >= 30


@ft.cache
def arguments_of(name):
    return EXAMPLES[name][1]()


def called(name, **changes):
    function = EXAMPLES[name][0]
    bound = inspect.signature(function).bind_partial()
    bound.arguments.update(arguments_of(name) | changes)
    return function(*bound.args, **bound.kwargs)


@pytest.mark.parametrize("name", EXAMPLES)
def test_numpy_integers_are_counts(name):
    function = EXAMPLES[name][0]
    given = {n: v for n, v in arguments_of(name).items() if n in counts(function)}
    assert given
    same = called(name, **{n: np.int64(v) for n, v in given.items()})
    for a, b in zip(jax.tree.leaves(same), jax.tree.leaves(called(name)), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.misuse
@pytest.mark.parametrize(("name", "count"), CASES)
@pytest.mark.parametrize("value", [2.5, 3.0, True])
def test_nothing_else_is(name, count, value):
    with pytest.raises(ValueError, match=f"`{count}`"):
        called(name, **{count: value})
