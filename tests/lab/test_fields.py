"""Fields of HParams that are nested, optional, or equal in Python's eyes alone."""

import functools as ft
import json
from typing import Any, Literal, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from jaxlr import lab
from jaxlr.core import Experiment, Solver
from jaxlr.lab import fields, grid
from tests.lab import _toys as toys


class Schedule(eqx.Module):
    """Two levels down."""

    warmup: int = 5
    """Steps before the full rate."""
    shape: str = "flat"


class Opt(eqx.Module):
    """One level down."""

    lr: float = 0.1
    """Step size [1/L]."""
    betas: tuple[float, ...] = eqx.field(static=True, default=(0.9, 0.99))
    schedule: Schedule = Schedule()


class HParams(eqx.Module):
    """One cell."""

    opt: Opt = Opt()
    wd: float | None = None
    """Weight decay [1]."""
    depth: int = 3
    form: Literal["a", "b"] | None = eqx.field(static=True, default=None)
    other: Any = eqx.field(static=True, default=None)


def run(key, hparams):
    opt, decay = hparams.opt, 0.0 if hparams.wd is None else 1 + hparams.wd
    x = jr.normal(key) * opt.lr + 10 * decay + 100 * opt.schedule.warmup
    return {"x": x * sum(opt.betas) + {"flat": 0, "cosine": 1e4}[opt.schedule.shape]}


EXPERIMENT = Experiment(run=run, hparams=HParams(), num_seeds=2)
NESTED = {"opt.lr": (0.1, 0.2), "opt.schedule.shape": ("flat", "cosine")}


def alone(seed, **values):
    key = jr.fold_in(jr.key(0), seed)
    hparams = fields.replace(HParams(), values)
    return jax.jit(lambda: run(key, hparams))()["x"]


def test_nested_fields_sweep_by_their_dotted_names(tmp_path):
    found = lab.sweep(EXPERIMENT, NESTED, directory=tmp_path / "run")
    assert found.x.dims == ("opt.lr", "opt.schedule.shape", "seed")
    for lr in (0.1, 0.2):
        for shape in ("flat", "cosine"):
            cell = {"opt.lr": lr, "opt.schedule.shape": shape}
            want = alone(1, **cell)
            np.testing.assert_allclose(found.x.sel(cell)[1], want, rtol=1e-6)
            one = lab.select(found, **cell)
            assert one.x.shape == (1, 1, 2)
            hparams = lab.hparams(one)
            assert (hparams["opt.lr"], hparams["opt.schedule.shape"]) == (lr, shape)
            again = lab.replay(tmp_path / "run", cell, 1)
            assert again.attrs["is_equal"] == 1
            assert again.x.values.tobytes() == found.x.sel(cell)[1].values.tobytes()
    notes = {"units": "1/L", "long_name": "Step size"}
    assert found["opt.lr"].attrs == notes
    assert lab.hparams(found)["opt.schedule.warmup"] == 5
    assert lab.hparams(found)["opt.betas"] == [0.9, 0.99]


def test_dotted_names_move_together_and_leave_for_files(tmp_path):
    axes = {("opt.lr", "wd"): [(0.1, 0.5), (0.2, None)]}
    found = lab.sweep(EXPERIMENT, axes)
    assert found.x.dims == ("opt.lr_wd", "seed")
    np.testing.assert_allclose(found.x[0, 1], alone(1, wd=0.5), rtol=1e-6)
    np.testing.assert_allclose(found.x[1, 1], alone(1, **{"opt.lr": 0.2}), rtol=1e-6)
    found.to_netcdf(tmp_path / "found.nc", engine="scipy")
    kept = lab.sweep(EXPERIMENT, axes, directory=tmp_path / "run")
    toys.assert_equal(kept, found)


@pytest.mark.parametrize(
    ("changes", "cell"),
    [
        ({"opt.lr": 0.7, "opt.betas": (0.5, 0.6)}, {}),
        ({"wd": 0.25, "opt.schedule.shape": "cosine"}, {}),
        ({"opt.betas": (0.25, float("inf"))}, {}),
        ({"form": "b", "opt.betas": ()}, {"wd": 0.5}),
        ({"opt.lr": float("inf"), "wd": None}, {"wd": 0.5}),
    ],
)
def test_the_recorded_fields_are_replayed_by_their_types(tmp_path, changes, cell):
    hparams = fields.replace(HParams(wd=1.0), changes)
    axes = {"wd": (0.5, 0.75)} if cell else {}
    kept = lab.sweep(EXPERIMENT.replace(hparams=hparams), axes, directory=tmp_path)
    again = lab.replay(tmp_path, cell, 1, experiment=EXPERIMENT)
    assert again.attrs["is_equal"] == 1, again.attrs["replay"]
    assert "expected bit by bit" in again.attrs["replay"]
    assert again.x.values.tobytes() == kept.x.values.reshape(-1, 2)[0, 1].tobytes()


class Pair(NamedTuple):
    """A tuple with names."""

    low: float
    high: float


@pytest.mark.parametrize(
    ("default", "value"),
    [
        ((0.9, 0.99), (0.5, 0.6)),
        ([1, 2], [3]),
        (Pair(0.0, 1.0), Pair(0.5, float("inf"))),
        (("a", 0.5), ("b", 0.25)),
        (((1, 2), (3, 4)), ((5, 6),)),
        (("inf",), ("nan", "x")),
        (None, (1, 2)),
        (None, None),
        (None, 3),
        (1, 0.5),
        (0.5, float("-inf")),
        ("inf", "nan"),
        (np.float32(1), np.float32(2)),
        (True, False),
        (jnp.arange(3), np.arange(3) + 1),
    ],
)
def test_what_is_recorded_is_restored(default, value):
    class Any_(eqx.Module):
        field: Any

    (recorded,) = json.loads(json.dumps(list(fields.plain(Any_(value)).values())))
    found = fields.restored(recorded, fields.of(Any_(default))["field"])
    if isinstance(default, np.generic | jax.Array):
        assert found.dtype == default.dtype
        np.testing.assert_array_equal(found, value)
    else:
        assert repr(found) == repr(value)


def test_what_only_python_can_say_is_the_default():
    class Function(eqx.Module):
        field: Any = jnp.sin

    recorded = fields.plain(Function(jnp.cos))["field"]
    assert fields.restored(recorded, fields.of(Function())["field"]) is jnp.sin


def test_an_optional_field_takes_none(tmp_path):
    axes = {"wd": [None, 0.1, 0.2], "depth": [1, 2]}
    plan = lab.plan(EXPERIMENT, axes)
    # None by itself, the numbers in one program.
    assert [(g.static, g.num_cells) for g in plan.groups] == [
        ({"wd": None}, 2),
        ({}, 4),
    ]
    found = lab.sweep(EXPERIMENT, axes, directory=tmp_path)
    assert np.array_equal(found.wd, [np.nan, 0.1, 0.2], equal_nan=True)
    for wd in axes["wd"]:
        one = lab.select(found, wd=wd, depth=2)
        np.testing.assert_allclose(one.x[0, 0, 1], alone(1, wd=wd), rtol=1e-6)
        assert lab.hparams(one)["wd"] == wd
        assert lab.replay(tmp_path, {"wd": wd, "depth": 2}, 1).attrs["is_equal"] == 1
    assert lab.replay(tmp_path, {"wd": np.nan, "depth": 2}, 1).attrs["is_equal"] == 1
    both = lab.select(found, wd=[None, 0.2])
    np.testing.assert_array_equal(both.x, found.x[[0, 2]])


def test_an_optional_field_of_words_takes_none():
    found = lab.sweep(EXPERIMENT, {"form": ["a", None]})
    assert found.form.values.tolist() == ["a", "None"]
    assert lab.select(found, form=None).form.values.tolist() == ["None"]


def typed(key, hparams):
    """Tells apart what Python holds equal."""
    value = hparams.other
    kind = {bool: 1.0, int: 2.0, float: 3.0, str: 4.0}[type(value)]
    sign = np.copysign(1.0, 0.0 if kind == 4 else value)
    return {"x": jnp.asarray(kind * sign * (1 + len(str(value))))}


@pytest.mark.parametrize(
    ("values", "labels"),
    [
        ([True, 1, 1.0], ["True", "1", "1.0"]),
        ([0.0, -0.0], [0.0, -0.0]),
        ([1, 2.5], [1.0, 2.5]),
        (["1", 1], ["1", "1"]),
        ([1, 2**70], ["1", str(2**70)]),
        ([2**63, 1], ["9223372036854775808", "1"]),
        ([False, True], [False, True]),
    ],
)
def test_static_values_are_told_apart_by_type_and_bits(tmp_path, values, labels):
    experiment = Experiment(run=typed, hparams=HParams())
    found = lab.sweep(experiment, {"other": values}, directory=tmp_path)
    assert found.other.values.tolist() == labels
    assert [str(x) for x in found.other.values] == [str(x) for x in labels]
    for i, value in enumerate(values):
        want = typed(None, HParams(other=value))["x"]
        assert found.x[i, 0] == want, value
        again = lab.replay(tmp_path, {"other": value}, 0)
        assert again.attrs["is_equal"] == 1
        assert again.x == want


@pytest.mark.misuse
@pytest.mark.parametrize(
    ("axes", "message"),
    [
        ({"opt": [1]}, "'opt': the field holds a dataclass.*opt.lr, opt.betas"),
        ({"opt.schedule": [1]}, "it: opt.schedule.warmup, opt.schedule.shape"),
        ({"opt.lrr": [1.0]}, "Unknown axis 'opt.lrr'; did you mean 'opt.lr'"),
        (
            {"opt.lr": [1.0], "opt.schedule.warmup": [0.5]},
            "warmup': the field.*int.*0.5",
        ),
        ({"opt.betas": [(0.5, 0.6)]}, "'opt.betas' takes scalars"),
        ({"wd": ["x"]}, r"'wd': the field.*type float or None \(its default is None\)"),
        (
            {"depth": [None]},
            r"'depth': the field.*type int \(its default is 3\), got N",
        ),
        ({"opt.schedule.shape": ["a\0"]}, r"NUL character: 'a\\x00'"),
        ({"opt.lr": [0.1, 0.2, 0.1]}, "'opt.lr' has 0.1 2 times.*`num_seeds`"),
        ({"opt.lr": [1, 1.0]}, "'opt.lr' has 1.0 2 times"),
        ({"other": ["a", "a"]}, "'other' has 'a' 2 times"),
        ({"other": [float("nan")]}, "'other' has a NaN"),
        ({("depth", "opt.lr"): [(1, 0.1), (1, 0.1)]}, r"has \(1, 0.1\) 2 times"),
        ({"depth": [2**63]}, "'depth' is computed in int64, which cannot hold 9223372"),
        ({"depth": [-(2**70)]}, "'depth' is computed in int64, which cannot hold -118"),
        (
            {"depth": [2**40]},
            "'depth' is computed in int32, which cannot hold 10995116",
        ),
        ({"opt.lr": [10**400]}, "'opt.lr': no float can hold 1000"),
        ({"opt.lr": ()}, "'opt.lr' is empty"),
        ({("opt.lr", "wd"): []}, "is empty"),
        ({(): [()]}, r"Axis \(\) names no field"),
        ([((), [1])], r"Axis \(\) names no field"),
    ],
)
def test_bad_axes_are_named(axes, message):
    with pytest.raises(ValueError, match=message):
        lab.sweep(EXPERIMENT, axes)


def test_integers_keep_the_dtype_of_their_field():
    class Wide(eqx.Module):
        """One cell."""

        n: Any = np.uint64(3)

    experiment = Experiment(
        run=lambda key, hparams: {"x": hparams.n + jnp.uint64(0)},
        hparams=Wide(),
        x64=True,
    )
    found = lab.sweep(experiment, {"n": [1, 2**64 - 1]})
    assert found.x.dtype == np.uint64
    assert found.x.values.ravel().tolist() == [1, 2**64 - 1]
    with pytest.raises(ValueError, match="computed in uint64, which cannot hold -1"):
        lab.sweep(experiment, {"n": [-1]})


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32", "uint8"])
@pytest.mark.parametrize("name", ["opt.lr", "depth"])
def test_a_swept_number_decides_no_dtype(dtype, name):
    """As Python's number does not: a scan whose carry it scales keeps its dtype."""

    def scanned(key, hparams):
        rate = hparams.opt.lr if name == "opt.lr" else hparams.depth
        start = jnp.ones(3, dtype)

        def step(x, _):
            return x - (rate * x).astype(dtype) if dtype == "uint8" else x - rate * x, 0

        return {"x": jax.lax.scan(step, start, length=4)[0], "y": rate * start}

    experiment = Experiment(run=scanned, hparams=HParams())
    axes = {"opt.lr": [0.25, 0.5], "depth": [3, 4]}
    found = lab.sweep(experiment, {name: axes[name]})
    for i, value in enumerate(axes[name]):
        hparams = fields.replace(HParams(), {name: value})
        want = jax.jit(lambda hparams=hparams: scanned(None, hparams))()
        assert found.y.attrs.get("stored_dtype", str(found.y.dtype)) == want["y"].dtype
        for metric in ("x", "y"):
            np.testing.assert_array_equal(found[metric][i, 0], want[metric])


WANTS = {
    "if": lambda h: 1.0 if h.opt.lr > 0.15 else 2.0,
    "range": lambda h: sum(1.0 for _ in range(h.depth)),
    "shape": lambda h: jnp.zeros(h.depth).sum(),
    "float": lambda h: float(h.opt.lr),
    "numpy": lambda h: np.sin(h.opt.lr),
    "mask": lambda h: jnp.arange(4.0)[np.arange(4) < h.depth].sum(),
    "index": lambda h: [1.0, 2.0, 3.0, 4.0][h.depth],
    "static": lambda h: jax.jit(lambda n: 1.0 * n, static_argnums=0)(h.depth),
}


@pytest.mark.misuse
@pytest.mark.parametrize("want", WANTS)
def test_a_swept_field_that_python_needs_is_named(want):
    needed = "opt.lr" if want in ("if", "float", "numpy") else "depth"
    axes = {"wd": [0.1, 0.2], "opt.lr": [0.1, 0.2], "depth": [2, 3]}
    experiment = Experiment(
        run=lambda key, hparams: {"x": jnp.asarray(WANTS[want](hparams) + hparams.wd)},
        hparams=HParams(),
    )
    mark = f"`{needed.split('.')[-1]}: ... = eqx.field\\(static=True"
    with pytest.raises(ValueError, match=f"needs {needed} in Python.*{mark}"):
        lab.sweep(experiment, axes)
    del axes[needed]
    lab.sweep(experiment, axes)  # as it is, unswept, it is Python's


@pytest.mark.misuse
def test_two_fields_that_python_needs_are_both_named():
    def both(key, hparams):
        return {"x": jnp.ones(hparams.depth) * (1 if hparams.wd else 2)}

    experiment = Experiment(run=both, hparams=HParams())
    with pytest.raises(ValueError, match="needs wd and depth in Python"):
        lab.sweep(experiment, {"wd": [0.1], "opt.lr": [0.1], "depth": [2]})


@pytest.mark.misuse
def test_an_error_that_no_swept_field_causes_stays_as_it_is():
    def drawn(key, hparams):
        return {"x": 1.0 if jr.normal(key) > 0 else hparams.opt.lr}

    experiment = Experiment(run=drawn, hparams=HParams())
    with pytest.raises(jax.errors.TracerBoolConversionError):
        lab.sweep(experiment, {"opt.lr": [0.1, 0.2]})


def _long(num_steps):
    def solver(key, hparams):
        return Solver(lambda key: jnp.zeros(()), lambda key, x: (x + 1.0, {"x": x}))

    return Experiment(solver=solver, num_steps=num_steps, hparams=HParams())


@pytest.mark.misuse
def test_steps_that_depend_on_a_traced_field_are_refused():
    """Every cell was run for as many steps as the field's default says."""
    with pytest.raises(ValueError, match="needs depth in Python"):
        lab.sweep(_long(lambda hparams: 2 * hparams.depth), {"depth": [2, 4]})
    found = lab.sweep(_long(lambda hparams: 2 * hparams.depth), {"depth": [4]})
    assert found.sizes["step"] == 8


def test_a_dimension_of_several_fields_is_not_called_like_a_field():
    class Joined(eqx.Module):
        """One cell."""

        a: float = 1.0
        b: float = 1.0
        a_b: float = 1.0

    experiment = Experiment(run=lambda key, h: {"x": h.a + h.b}, hparams=Joined())
    with pytest.raises(ValueError, match="would be called 'a_b', as a field is"):
        lab.sweep(experiment, {("a", "b"): [(1.0, 2.0)]})


def test_a_field_called_like_a_coordinate_is_still_a_hyper_parameter():
    class Seeded(eqx.Module):
        """One cell."""

        seed: int = 7
        rate: float = 0.1

    experiment = Experiment(run=lambda key, h: {"x": h.rate}, hparams=Seeded())
    found = lab.sweep(experiment, {"rate": [0.1, 0.2]}, num_seeds=2)
    assert lab.hparams(found)["seed"] == 7


def test_kinds_come_from_defaults_and_annotations():
    class Kinds(eqx.Module):
        """One cell."""

        a: float | None = None
        b: int | float | None = None
        c: str | None = None
        d: float | str | None = None
        e: Literal["x", "y"] | None = None
        f: "Unknown | None" = None  # noqa: F821  # pyright: ignore
        g: Any = 2
        derived: int = eqx.field(init=False, default=3)

    found = fields.of(Kinds())
    kinds = {name: field.kind for name, field in found.items()}
    assert kinds == dict.fromkeys("abcdef", None) | {"g": int}  # none can be evaluated
    Kinds.__annotations__["f"] = Any
    fields._hints.cache_clear()
    kinds = {name: field.kind for name, field in fields.of(Kinds()).items()}
    assert [kinds[x] for x in "abcdefg"] == [float, float, str, None, str, None, int]
    assert "derived" not in kinds


def test_labels_tell_values_apart():
    for values in ([1, 1.0], [True, 1], ["1", 1, None], [2**64], [-1, 2**63]):
        assert grid.labels(values).tolist() == [str(value) for value in values]
    assert grid.labels([1, 2]).dtype == np.int64
    assert grid.labels(["a"]).tolist() == ["a"]


class Leaky:
    def __init__(self, slope):
        self.slope = slope


def test_no_address_is_recorded():
    """Two objects of one value, of which no other process has the first's address."""

    class Odd(eqx.Module):
        field: Any

    makes = (
        lambda: ft.partial(lambda x, slope: x, slope=0.1),
        lambda: ft.partial(jax.nn.leaky_relu, negative_slope=0.1),
        lambda: {"act": Leaky(0.1)},
        lambda: Leaky(0.1),
        lambda: Leaky(0.1).__init__,
        lambda: np.sin,
    )
    for make in makes:
        kept = make(), make()  # each at its own place
        one, two = (fields.plain(Odd(x))["field"] for x in kept)
        assert one == two
        assert "0x" not in one
    assert "negative_slope=0.1" in fields.plain(Odd(makes[1]()))["field"]
    words = frozenset(("c", "a", "b"))
    assert fields.plain(Odd(words))["field"] == "frozenset({'a', 'b', 'c'})"
