"""What host code is given, or imports, counts as far as it can tell."""

import collections
import functools as ft
import importlib
import importlib.metadata
import re
import sys
import types

import jax
import numpy as np
import pytest

from jaxlr.lab import fingerprint, modules, packages
from tests.lab._digests import captured, defaults, digest, host, Scaler, Settings


def written(folder, monkeypatch, **texts):
    """Files of one's own, imported anew."""
    monkeypatch.syspath_prepend(folder)
    for name, text in texts.items():
        (folder / f"{name}.py").write_text(text)
        monkeypatch.delitem(sys.modules, name, raising=False)
    importlib.invalidate_caches()


IMPORTS = (
    "import its_own; return its_own.f(x)",
    "import its_own as other; return other.f(x)",
    "from its_own import f; return f(x)",
    "from its_own import f as g; return g(x)",
    "import its_own; return getattr(its_own, 'f')(x)",
    "import its_own as other; return vars(other)['f'](x)",
    "return (lambda: __import__)()('os') if x < 0 else late(x)",
)


@pytest.mark.parametrize("body", IMPORTS)
def test_what_a_function_imports_counts(tmp_path, monkeypatch, body):
    def of(text):
        with monkeypatch.context() as patch:
            patch.setattr(sys, "dont_write_bytecode", True)
            written(tmp_path, patch, its_own=text)
            space = {"__name__": "mine"}
            late = "def late(x):\n    def inner():\n        from its_own import f\n"
            exec(f"{late}        return f(x)\n    return inner()", space)
            exec(f"def callback(x):\n    {body}", space)
            return digest(host(space["callback"]))

    text = "def f(x):\n    return 2 * x\n\ndef g(x):\n    return x\n"
    assert of(text) == of(text)
    assert of(text) != of(text.replace("2 * x", "3 * x"))
    is_whole = "getattr" in body or "vars" in body
    assert (of(text) != of(text.replace("return x", "return -x"))) == is_whole


def test_what_a_function_imports_from_beside_it_counts(tmp_path):
    digests = []
    for factor in (2, 2, 3):
        folder = tmp_path / str(len(digests))
        folder.mkdir()
        (folder / "its_own.py").write_text(f"def f(x):\n    return {factor} * x\n")
        lines = "def callback(x):\n    import its_own\n    return its_own.f(x)\n"
        (folder / "mine.py").write_text(lines)
        path = folder / "mine.py"
        module = modules.load(modules.name_of(path), path)
        digests.append(digest(host(module.callback)))
    assert digests[0] == digests[1] != digests[2]


def test_an_import_that_fails_is_no_error():
    def callback(x):
        try:
            import no_such_module_anywhere as missing  # pyright: ignore
        except ImportError:
            return x
        return missing.f(x)

    assert digest(host(callback)) == digest(host(callback))


def test_the_order_of_a_dict_counts():
    one, two = {"a": 1, "b": 2}, {"b": 2, "a": 1}
    for make in (dict, types.MappingProxyType, collections.OrderedDict):
        assert digest(host(captured(make(one)))) != digest(host(captured(make(two))))
    assert digest(host(captured([one]))) != digest(host(captured([two])))
    partial = (
        ft.partial(defaults(1.0), **x)
        for x in ({"x": 1, "scale": 2}, {"scale": 2, "x": 1})
    )
    assert len({digest(host(x)) for x in partial}) == 1


def by_hand(factor):
    module = types.ModuleType("by_hand")
    module.f = lambda x: np.float32(factor * x)  # pyright: ignore
    return module


def test_a_module_that_is_asked_in_any_way_is_itself(tmp_path, monkeypatch):
    def through(module):
        holder = types.SimpleNamespace(module=module)
        return (
            lambda x: getattr(module, "f")(x),  # noqa: B009
            lambda x: (module,)[0].f(x),
            lambda x: {"m": module}["m"].f(x),
            captured((module,)),
            captured({"m": module}),
            captured(holder),
        )

    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    found = []
    for factor in (2, 3, 3):
        written(tmp_path, monkeypatch, asked=f"def f(x):\n    return {factor} * x")
        import asked  # pyright: ignore

        traced = [jax.make_jaxpr(host(fn))(1.0) for fn in through(asked)]
        prints = list(map(fingerprint.of, traced))
        assert all(p.held for p in prints)  # the module, or what holds it
        found.append([p.digest for p in prints])
    assert all(x != y for x, y in zip(*found[:2], strict=True))
    assert found[1] == found[2]
    one, two = (
        [digest(host(fn)) for fn in through(by_hand(factor))] for factor in (2, 3)
    )
    assert all(x != y for x, y in zip(one, two, strict=True))


class Labelled(tuple):
    factor = 1.0

    def __new__(cls, items, factor):
        self = super().__new__(cls, items)
        self.factor = factor
        return self


class Listed(list):
    def total(self):
        return sum(self)


class Tabled(dict):
    def total(self):
        return sum(self.values())


def with_attribute(x, value):
    object.__setattr__(x, "factor", value)
    return x


@pytest.mark.parametrize(
    "make",
    [
        lambda factor: Labelled((1, 2), factor),
        lambda factor: with_attribute(Listed([1, 2]), factor),
        lambda factor: with_attribute(Tabled(a=1), factor),
        lambda factor: with_attribute(type("S", (set,), {})([1]), factor),
        lambda factor: with_attribute(type("F", (frozenset,), {})([1]), factor),
        lambda factor: with_attribute(Settings(True), factor),
        lambda factor: with_attribute(Scaler(1.0), factor),
        lambda factor: type("L", (list,), {"total": lambda self: factor})(),
        lambda factor: type("D", (dict,), {"total": lambda self: factor})(),
        lambda factor: collections.defaultdict(lambda: factor),
        lambda factor: re.compile("a" * factor),
        lambda factor: re.compile("a", re.IGNORECASE * (factor - 1)),
        lambda factor: ft.cached_property(lambda self: factor),
    ],
)
def test_all_that_an_object_has_counts(make):
    one, two, again = (digest(host(captured(make(n)))) for n in (1, 2, 1))
    assert one == again != two
    assert "alone" not in one


def test_everyday_objects_are_the_same_in_every_process():
    class Cached:
        @ft.cached_property
        def value(self):
            return 1

    everyday = re.compile("a+"), ft.cached_property(len), Cached(), Cached
    for x in (*everyday, np.random.default_rng, np.random.Generator, collections.deque):
        assert "alone" not in digest(host(captured(x))), x


def test_a_package_counts_by_the_version_it_was_installed_as(monkeypatch):
    import rich.text
    import typing_extensions

    for module in (rich.text, typing_extensions):
        assert not hasattr(
            sys.modules[module.__name__.partition(".")[0]], "__version__"
        )
        distribution = module.__name__.partition(".")[0]
        wanted = f"{distribution} {importlib.metadata.version(distribution)}"
        assert packages.library(module.__name__) == wanted


def test_long_lists_of_plain_values_are_walked_at_once(monkeypatch):
    calls, hashed = [], fingerprint._hash
    monkeypatch.setattr(fingerprint, "_hash", lambda *x: calls.append(x) or hashed(*x))
    for make in (list, tuple, set, frozenset):
        digest(host(captured(make(map(float, range(10_000))))))
    assert 0 < len(calls) < 5_000
