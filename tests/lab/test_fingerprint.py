"""Computations are told apart by what they do, and by nothing that is only shown."""

import enum
import functools as ft
import io
from pathlib import Path
import sys
import threading
import types
from typing import NamedTuple

import equinox as eqx
import jax
from jax.experimental import io_callback
from jax.experimental.xla_metadata import set_xla_metadata
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from jaxlr.lab import fingerprint
from tests.lab._digests import captured, defaults, digest, host, Scaler, Settings, told


OFFSET, OTHER = 1.0, 1.0
TABLE = np.arange(3.0, dtype=np.float32)


def _helper(x):
    return x + OFFSET


def calls_a_helper(x):
    return _helper(x)


class Slotted:
    __slots__ = ("scale",)

    def __init__(self, scale):
        self.scale = scale

    def __call__(self, x):
        return np.float32(self.scale * x)


class Triple(Scaler):
    def twice(self, x):
        return self(self(self(x)))


class Color(enum.Enum):
    RED = 1.0
    BLUE = 2.0


class Pair(NamedTuple):
    one: float
    two: float


def closing(value):
    return lambda x: np.float32(x + np.sum(np.asarray(value)))


def keyword(value):
    def callback(x, *, shift=value):
        return np.float32(x + shift)

    return callback


def tried(x):
    try:
        x = float(x)
        x = float(x)
    except ValueError:
        return np.float32(0)
    return np.float32(x)


def less_tried(x):
    x = float(x)
    try:
        x = float(x)
    except ValueError:
        return np.float32(0)
    return np.float32(x)


def batched(factor):
    """A function whose rule of `vmap` is its own."""

    @jax.custom_batching.custom_vmap
    def fn(x):
        return x

    @fn.def_vmap
    def rule(axis_size, is_batched, x):
        return factor * x, is_batched[0]

    return fn


def forward(factor):
    @jax.custom_jvp
    def fn(x):
        return x

    @fn.defjvp
    def rule(primals, tangents):
        return primals[0], factor * tangents[0]

    return fn


def backward(factor):
    @jax.custom_vjp
    def fn(x):
        return x

    fn.defvjp(lambda x: (x, None), lambda _, g: (factor * g,))
    return fn


def stays(x):
    with set_xla_metadata(stays="true"):
        return x + 1


def precisely(precision):
    return lambda x: jnp.dot(jnp.ones(2) * x, jnp.ones(2), precision=precision)


def loop(length, shift=1.0):
    return lambda x: jax.lax.scan(lambda c, _: (c + shift, c), x, length=length)


def times(factor):
    return lambda x: x * factor


def array_of(*values, dtype=np.float32):
    return times(np.asarray(values, dtype))


DIFFERENT = {
    "add": lambda x: x + 1,
    "subtract": lambda x: x - 1,
    "twice": lambda x: x + 1 + 1,
    "another constant": lambda x: x + 2,
    "next constant": lambda x: x + np.nextafter(np.float32(1), np.float32(2)),
    "zero": lambda x: x * 0.0,
    "minus zero": lambda x: x * -0.0,
    "order": lambda x: (x, x + 1),
    "other order": lambda x: (x + 1, x),
    "result twice": lambda x: (x + 1, x + 1),
    "array": array_of(1, 2),
    "array, one bit": array_of(1, np.nextafter(np.float32(2), np.float32(3))),
    "array, type": array_of(1, 2, dtype=np.float16),
    "jax array": times(jnp.arange(3)),
    "other jax array": times(jnp.arange(1, 4)),
    "transposed": lambda x: (x * jnp.arange(6.0).reshape(2, 3)).T.sum(0),
    "not transposed": lambda x: (x * jnp.arange(6.0).reshape(2, 3)).T.sum(1),
    "loop": loop(3),
    "longer loop": loop(4),
    "inside of the loop": loop(3, 2.0),
    "branch": lambda x: jax.lax.cond(x > 0, lambda: x, lambda: x + 1),
    "other branch": lambda x: jax.lax.cond(x > 0, lambda: x, lambda: x + 2),
    "jit": jax.jit(lambda x: x + 1),
    "metadata": stays,
    "precision": precisely("highest"),
    "other precision": precisely("default"),
    "normal": lambda x: x * jr.normal(jr.key(0)),
    "other key": lambda x: x * jr.normal(jr.key(1)),
    "other generator": lambda x: x * jr.normal(jr.key(0, impl="rbg")),
    "callback": host(lambda x: x),
    "callback's code": host(lambda x: x + x),
    "callback's constant": host(lambda x: x + np.float32(2)),
    "callback of io": host(lambda x: x, io_callback),
    "ordered callback": host(lambda x: x, io_callback, ordered=True),
    "how it batches": host(lambda x: x, vmap_method="sequential"),
    **{
        f"callback with a {type(value).__name__} ({i})": host(captured(value))
        for i, value in enumerate(
            (
                *(
                    1,
                    True,
                    1.0,
                    2,
                    -0.0,
                    0.0,
                    "a",
                    "b",
                    "1",
                    b"a",
                    None,
                    1j,
                    (1,),
                    (1, 2),
                ),
                *([1], [1, 2], {"a": 1}, {"a": 2}, {"b": 1}, {1}, frozenset((1,))),
                *(Color.RED, Color.BLUE, Pair(1, 2), Pair(2, 1), Path("a"), Path("b")),
                *(
                    Settings(True),
                    Settings(False),
                    Scaler(1.0),
                    Scaler(3.0),
                    Slotted(1.0),
                    Slotted(3.0),
                    np.float32,
                    len,
                ),
                *(np.float32(1), np.float64(1), np.dtype("f4"), range(2), range(3)),
                *(np.arange(2), np.arange(3), np.arange(2.0), np.array([None]), np.sin),
                *(
                    types.MappingProxyType({"a": 1}),
                    bytearray(b"a"),
                    jnp.arange(2),
                    Scaler,
                ),
                *(
                    np.random.default_rng(0),
                    np.random.default_rng(1),
                    jr.key(0),
                    jr.key(1),
                ),
            )
        )
    },
    "closure": host(closing(1.0)),
    "other closure": host(closing(2.0)),
    "closed over array": host(closing(np.zeros(2))),
    "closed over array, one value": host(closing(np.array([0.0, 1e-300]))),
    "nested function": host(captured(lambda x: x + 1)),
    "other nested function": host(captured(lambda x: x + 2)),
    "nested closure": host(captured(captured(1))),
    "other nested closure": host(captured(captured(2))),
    "defaults": host(defaults(1.0)),
    "other defaults": host(defaults(2.0)),
    "keywords": host(keyword(1.0)),
    "other keywords": host(keyword(2.0)),
    "partial": host(ft.partial(max, 1.0)),
    "other partial": host(ft.partial(max, 2.0)),
    "partial's keywords": host(ft.partial(defaults(0.0), scale=1.0)),
    "other partial's keywords": host(ft.partial(defaults(0.0), scale=2.0)),
    "global": host(lambda x: x + OFFSET),
    "other global": host(lambda x: x + TABLE),
    "global in a lambda": host(lambda x: (lambda: x + OFFSET)()),
    "object": host(Scaler(2.0)),
    "other object": host(Scaler(3.0)),
    "slots": host(Slotted(2.0)),
    "other slots": host(Slotted(3.0)),
    "method": host(Scaler(2.0).twice),
    "method of another": host(Scaler(3.0).twice),
    "other method": host(Triple(2.0).twice),
    "called by keyword": host(lambda x: defaults(0.0)(x, scale=x)),
    "called by another keyword": host(lambda x: defaults(0.0)(x, shift=x)),
    "tried": host(tried),
    "less tried": host(less_tried),
    "builtin": host(float),
    "jitted": host(jax.jit(lambda x: x + 1)),
    "other jitted": host(jax.jit(lambda x: x + 2)),
    "cached": host(ft.lru_cache(lambda x: x + 1)),
    "other cached": host(ft.lru_cache(lambda x: x + 2)),
    "print": lambda x: jax.debug.print("{x}", x=x),
    "other print": lambda x: jax.debug.print("x = {x}", x=x),
    "sink": told(lambda x: None),
    "other sink": told(lambda x: print(x)),
    "rule of vmap": batched(1),
    "other rule of vmap": batched(2),
    "rule of jvp": forward(1),
    "other rule of jvp": forward(2),
    "rule of vjp": backward(1),
    "other rule of vjp": backward(2),
    "relu": jax.nn.relu,
    "relu6": jax.nn.relu6,
}


def test_whatever_differs_is_told_apart():
    found = {}
    for name, fn in DIFFERENT.items():
        found.setdefault(digest(fn), []).append(name)
    assert all(len(names) == 1 for names in found.values()), found


@pytest.mark.parametrize("name", DIFFERENT)
def test_what_is_traced_again_is_the_same(name):
    jax.clear_caches()
    first, second = (
        fingerprint.of(jax.make_jaxpr(DIFFERENT[name])(1.0)) for _ in range(2)
    )
    assert first.digest == second.digest
    assert first.digest.startswith(fingerprint.KIND)
    assert list(map(id, first.held)) == list(map(id, second.held))


def test_globals_count_as_far_as_they_are_named(monkeypatch):
    before = digest(host(calls_a_helper))
    monkeypatch.setattr(sys.modules[__name__], "OTHER", 2.0)
    assert digest(host(calls_a_helper)) == before
    monkeypatch.setattr(sys.modules[__name__], "OFFSET", 2.0)
    after = digest(host(calls_a_helper))
    assert after != before
    monkeypatch.setattr(sys.modules[__name__], "_helper", lambda x: x)
    assert digest(host(calls_a_helper)) not in (before, after)


def test_attributes_of_a_users_module_count(tmp_path, monkeypatch):
    helper = types.ModuleType("helper_of_mine")
    helper.factor, helper.unrelated = 2.0, 1.0  # pyright: ignore
    space = {"__name__": "mine", "helper": helper, "np": np}
    exec("def callback(x):\n    return np.float32(helper.factor * x)", space)
    before = digest(host(space["callback"]))
    helper.unrelated = 5.0  # pyright: ignore
    assert digest(host(space["callback"])) == before
    helper.factor = 3.0  # pyright: ignore
    assert digest(host(space["callback"])) != before


def test_functions_that_call_each_other_have_an_end():
    def even(n):
        return n == 0 or odd(n - 1)

    def odd(n):
        return n != 0 and even(n - 1)

    knot = []
    knot.append(knot)
    assert digest(host(even)) == digest(host(even)) != digest(host(odd))
    assert digest(host(captured(knot))) != digest(host(captured([])))


def test_what_changes_is_held_and_what_cannot_is_not():
    sink, table = [], np.arange(2)

    def held(fn):
        return list(fingerprint.of(jax.make_jaxpr(fn)(1.0)).held)

    for value in (sink, table, {}, set(), bytearray(), Scaler(), io.StringIO()):
        for make in (host, told):
            assert any(x is value for x in held(make(captured(value))))
    assert held(told(sink.append)) == [sink]
    for value in (
        1,
        "a",
        (1, "b"),
        None,
        jnp.arange(2),
        eqx.nn.Identity(),
        frozenset(),
    ):
        assert not held(host(captured(value)))
    assert not held(lambda x: x * table)


def test_what_a_sink_has_taken_in_is_no_part_of_the_computation():
    sink, count = [], 0

    def callback(x):
        nonlocal count
        global OTHER
        count, OTHER = count + 1, OTHER + 1
        sink.append(x)

    def fn(x):
        jax.debug.callback(callback, x)
        return x

    before = digest(fn)
    for _ in range(3):
        callback(1.0)
    assert digest(fn) == before
    # Whoever reads it computes something else by now.
    reading = host(lambda x: np.float32(x + len(sink)))
    before = digest(reading)
    sink.append(1.0)
    assert digest(reading) != before


def test_what_only_this_process_has_is_itself_and_says_so():
    one, two = threading.Lock(), threading.Lock()
    digests = [digest(host(captured(x))) for x in (one, two, one)]
    assert digests[0] == digests[2] != digests[1]
    assert all("alone: it reads lock)" in x for x in digests)
    # A sink may be one.
    named = digest(told(captured(one)))
    assert named == digest(told(captured(two)))
    assert "alone" not in named


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("jax_pprint_use_color", False),
        ("jax_traceback_in_locations_limit", 1),
        ("jax_check_tracer_leaks", True),
        ("jax_include_full_tracebacks_in_locations", False),
        ("jax_log_compiles", False),
    ],
)
def test_flags_that_only_show_or_keep_do_not_count(flag, value):
    fn = DIFFERENT["other precision"], DIFFERENT["relu"], DIFFERENT["normal"]
    twice = jax.jit(fn[2])
    wanted = [digest(f) for f in fn], digest(lambda x: twice(x) + twice(x))
    before = getattr(jax.config, flag)
    jax.clear_caches()
    jax.config.update(flag, value)
    try:
        with np.printoptions(precision=2):
            found = [digest(f) for f in fn], digest(lambda x: twice(x) + twice(x))
    finally:
        jax.config.update(flag, before)
    assert found == wanted
