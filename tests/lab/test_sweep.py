"""The sweep against plain loops: values, labels, traces, compiles, isolation."""

from collections import Counter
import contextlib
import dataclasses
import json
import math
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from jaxlr import lab
from jaxlr.core import Axis, Claim, Experiment, LogUniform, Uniform
from jaxlr.lab import compiled


class HParams(eqx.Module):
    """One cell."""

    eta: float = 0.1
    """Step size [1]."""
    shift: float = 0.0
    width: int = eqx.field(static=True, default=3)
    """Number of entries."""
    kind: str = "plain"
    num: int = 2
    flag: bool = False


class Metrics(NamedTuple):
    """Metrics of `run`."""

    loss: jax.Array
    """Half the squared norm [nat]."""
    final: jax.Array


def run(key, hparams):
    scale = {"plain": 1.0, "double": 2.0}[hparams.kind]

    def body(x, _):
        new = x - hparams.eta * scale * (x - hparams.shift) + hparams.num * 0.0
        return jnp.where(hparams.flag, -new, new), 0.5 * jnp.sum(x**2)

    x, loss = jax.lax.scan(body, jr.normal(key, (hparams.width,)), length=12)
    return Metrics(loss, x[0])


EXPERIMENT = Experiment(run=run, hparams=HParams(), num_seeds=2)
AXES = {"eta": [0.1, 0.2, 0.3], "width": [2, 3], "kind": ["plain", "double"]}


def alone(seed, **fields):
    """One lane by itself."""
    key = jr.fold_in(jr.key(0), seed)
    return jax.jit(lambda: run(key, HParams(**fields)))()


@pytest.mark.parametrize("backend", ["shard_map", "pmap"])
@pytest.mark.parametrize("chunk", [None, 1, 2])
def test_every_lane_equals_that_lane_alone(backend, chunk):
    results = lab.sweep(EXPERIMENT, AXES, backend=backend, chunk=chunk)
    assert results.loss.dims == ("eta", "width", "kind", "seed", "step")
    for eta in AXES["eta"]:
        for width in AXES["width"]:
            for kind in AXES["kind"]:
                at = {"eta": eta, "width": width, "kind": kind, "seed": 1}
                want = alone(1, eta=eta, width=width, kind=kind)
                got = results.sel(at)
                np.testing.assert_allclose(got.loss, want.loss, rtol=1e-5)
                np.testing.assert_allclose(got.final, want.final, rtol=1e-5)


def test_axes_may_be_given_in_any_order_and_form():
    dims = [Axis("kind", ("double", "plain")), Axis("eta", np.array([0.3, 0.1]))]
    results = lab.sweep(EXPERIMENT, dims)
    assert results.final.dims == ("kind", "eta", "seed")
    want = lab.sweep(EXPERIMENT, AXES).sel(width=3).transpose("kind", "eta", ...)
    got = results.final.sel(kind="plain", eta=[0.1, 0.3])
    np.testing.assert_allclose(got, want.final.sel(kind="plain", eta=[0.1, 0.3]), 1e-6)


def test_zipped_axes_move_together_and_mix_static_with_traced():
    points = [(2, 0.1, "plain"), (3, 0.2, "double"), (2, 0.3, "plain")]
    results = lab.sweep(EXPERIMENT, {("width", "eta", "kind"): points})
    assert results.final.dims == ("width_eta_kind", "seed")
    assert results.width.values.tolist() == [2, 3, 2]
    assert results.kind.values.tolist() == ["plain", "double", "plain"]
    for i, (width, eta, kind) in enumerate(points):
        want = alone(1, width=width, eta=eta, kind=kind)
        np.testing.assert_allclose(results.final[i, 1], want.final, rtol=1e-5)


def test_sampled_axes_draw_points_of_a_random_search():
    axes = {("eta", "shift"): (LogUniform(1e-3, 1.0, 5), Uniform(-1.0, 1.0, 5))}
    results = lab.sweep(EXPERIMENT, axes)
    assert results.final.shape == (5, 2)
    assert np.all((results.eta >= 1e-3) & (results.eta < 1))
    assert np.all(np.abs(results["shift"]) < 1)
    single = lab.sweep(EXPERIMENT, {"eta": LogUniform(1e-3, 1.0, 5)})
    np.testing.assert_array_equal(single.eta, results.eta)
    again = lab.sweep(EXPERIMENT, axes)
    assert again.identical(results.assign_attrs(again.attrs))


def test_integers_and_booleans_may_be_traced():
    results = lab.sweep(EXPERIMENT, {"num": [1, 2], "flag": [False, True]})
    assert results.num.dtype.kind == "i"
    want = alone(0, flag=True)
    np.testing.assert_allclose(results.final.sel(num=2, flag=True)[0], want.final, 1e-5)


def test_seed_i_is_the_same_key_in_every_cell():
    def draw(key, hparams):
        return {"x": jr.normal(key) + 0 * hparams.eta}

    few = Experiment(run=draw, hparams=HParams(), num_seeds=3)
    results = lab.sweep(few, {"eta": [0.1, 0.2], "width": [1, 2]})
    want = [jr.normal(jr.fold_in(jr.key(0), i)) for i in range(3)]
    for cell in results.x.values.reshape(-1, 3):
        np.testing.assert_array_equal(cell, want)
    more = lab.sweep(few, {"eta": [0.1]}, num_seeds=5)
    np.testing.assert_array_equal(more.x[0, :3], results.x[0, 0])
    other = lab.sweep(few, {"eta": [0.1]}, seed=1)
    assert not np.any(other.x.values == results.x[0, 0].values)


def test_labels_units_and_provenance():
    results = lab.sweep(EXPERIMENT.replace(name="toy"), AXES)
    assert results.loss.attrs == {"long_name": "Half the squared norm", "units": "nat"}
    assert results.eta.attrs == {"long_name": "Step size", "units": "1"}
    assert results.step.values.tolist() == list(range(12))
    attrs = results.attrs
    assert attrs["experiment"] == "toy"
    assert attrs["jax"] == jax.__version__
    assert attrs["platform"] == jax.devices()[0].platform
    assert json.loads(attrs["hparams"])["shift"] == 0.0
    assert attrs["is_complete"] == 1
    assert (attrs["x64"], attrs["num_seeds"], attrs["seed"]) == (0, 2, 0)
    assert all(isinstance(v, int | float | str) for v in attrs.values())


def test_metrics_of_any_structure_and_named_dims():
    def nested(key, hparams):
        return {
            "inner": {"curve": jnp.ones(7), "last": 1.0},
            "spectrum": jnp.arange(4.0) * hparams.eta,
            "image": jnp.zeros((2, 5)),
            "curves": jnp.zeros((7, 2)),
        }

    experiment = Experiment(
        run=nested, hparams=HParams(), dims={"spectrum": ("mode",)}, every=10
    )
    results = lab.sweep(experiment, {"eta": [1.0, 2.0]})
    assert results.inner_curve.dims == ("eta", "seed", "step")
    assert results.inner_last.dims == ("eta", "seed")
    assert results.spectrum.dims == ("eta", "seed", "mode")
    assert results.image.dims == ("eta", "seed", "image_dim_0", "image_dim_1")
    assert results.curves.dims == ("eta", "seed", "step", "curves_dim_1")
    assert results.step.values.tolist() == [0, 10, 20, 30, 40, 50, 60]


def test_lengths_that_differ_between_groups_are_padded_and_kept():
    def ragged(key, hparams):
        loss = jnp.ones(hparams.width) * hparams.eta
        return {"loss": loss, "counts": jnp.arange(hparams.width)}

    experiment = Experiment(run=ragged, hparams=HParams())
    results = lab.sweep(experiment, {"width": [2, 4], "eta": [1.0, 2.0]})
    assert results.step_length.sel(eta=1.0).values.tolist() == [2, 4]
    short = results.loss.sel(width=2, eta=2.0, seed=0).values
    np.testing.assert_array_equal(short, [2, 2, np.nan, np.nan])
    counts = results.counts.sel(width=2, eta=2.0, seed=0).values
    np.testing.assert_array_equal(counts, [0, 1, np.nan, np.nan])
    assert (results.diverged_at == -1).all()


def counting(key, hparams):
    """Metrics of integers and booleans beside a float."""
    loss = jnp.ones(hparams.width)
    return {
        "loss": loss * hparams.eta,
        "counts": jnp.arange(hparams.width),
        "has_ended": loss > 0,
        "best": jnp.argmin(loss),
        "is_good": hparams.eta < 2,
        "mixed": 1.5 if hparams.kind == "double" else 1,
    }


COUNTING = Experiment(run=counting, hparams=HParams())


@pytest.mark.parametrize(
    ("axes", "padded"),
    [
        ({"eta": [1.0, 2.0]}, ()),
        ({"eta": [1.0, 2.0], "width": [4]}, ()),
        ({"eta": [1.0, 2.0], "width": [2, 4]}, ("counts", "has_ended")),
    ],
)
def test_integers_and_booleans_stay_what_they_are_unless_padded(axes, padded):
    results = lab.sweep(COUNTING, axes)
    for name, kind in (
        *(("counts", "i"), ("has_ended", "b"), ("best", "i"), ("is_good", "b")),
        *(("mixed", "i"), ("diverged_at", "i")),
    ):
        wanted = "f" if name in padded else kind
        assert results[name].dtype.kind == wanted, name
    for name in padded:
        assert np.isnan(results[name].sel(width=2).values[..., 2:]).all()
        assert not np.isnan(results[name].sel(width=4).values).any()


def test_groups_that_differ_in_dtype_share_one_that_holds_both():
    results = lab.sweep(COUNTING, {"kind": ["plain", "double"], "eta": [1.0]})
    assert results["mixed"].values.ravel().tolist() == [1.0, 1.5]


def test_hyper_parameters_that_all_cells_share_come_back_typed():
    hparams = HParams(shift=math.inf, width=4, flag=True)
    experiment = COUNTING.replace(hparams=hparams)
    results = lab.sweep(experiment, {"eta": [1.0, 2.0], ("num", "kind"): [(3, "x")]})
    found = lab.hparams(results)
    wanted = {"shift": math.inf, "width": 4, "kind": "x", "num": 3, "flag": True}
    assert found == wanted
    assert [type(found[k]) for k in ("width", "num", "flag")] == [int, int, bool]
    assert lab.hparams(results.isel(eta=1))["eta"] == 2.0
    assert lab.hparams(lab.select(results, eta=1.0))["eta"] == 1.0


def test_one_function_names_the_dimension_of_an_axis():
    fields = ("eta", "shift")
    results = lab.sweep(EXPERIMENT, {fields: [(0.1, 0.0)], "num": [1, 2]})
    wanted = [lab.dimension_name(name) for name in (fields, "num")]
    assert list(results.loss.dims[:2]) == wanted == ["eta_shift", "num"]


@pytest.fixture
def fresh():
    """Forget the programs that earlier tests compiled."""
    compiled._KEPT.clear()


@contextlib.contextmanager
def count_compiles():
    """Programs compiled inside, by jax's own account."""
    counts = Counter()

    def listen(event, duration, **_):
        counts[event] += 1

    jax.monitoring.register_event_duration_secs_listener(listen)
    found = []
    try:
        yield found
    finally:
        found.append(counts["/jax/core/compile/backend_compile_duration"])
        jax.monitoring.clear_event_listeners()


def counted():
    """The experiment with a fresh function that counts its traces."""
    traces = []

    def fresh(key, hparams):
        traces.append(1)
        return run(key, hparams)

    return EXPERIMENT.replace(run=fresh), traces


def test_one_trace_and_one_compile_a_group(fresh):
    experiment, traces = counted()
    with count_compiles() as compiles:
        lab.sweep(experiment, AXES)
    assert len(traces) == 4
    assert compiles == [4]  # three cells a group: they need no fit


def test_the_fit_compiles_twice_and_is_kept(fresh):
    experiment, traces = counted()
    axes = {"eta": np.linspace(0.1, 0.5, 40), "width": [2, 3]}
    with count_compiles() as compiles:
        lab.plan(experiment, axes)
    assert compiles == [2]
    with count_compiles() as compiles:
        lab.sweep(experiment, axes)
    assert compiles == [2]  # one a group
    with count_compiles() as compiles:
        lab.sweep(experiment, axes)
    assert compiles == [0]
    assert len(traces) == 3 * 2  # once a group, every time


def test_a_changed_helper_is_not_mistaken_for_the_old_one():
    scale = [1.0]

    def scaled(key, hparams):
        return {"x": scale[0] * hparams.eta}

    experiment = Experiment(run=scaled, hparams=HParams())
    first = lab.sweep(experiment, {"eta": [1.0, 2.0]})
    scale[0] = 100.0
    second = lab.sweep(experiment, {"eta": [1.0, 2.0]})
    np.testing.assert_allclose(second.x, 100 * first.x)


def test_arrays_among_the_hyper_parameters_count(tmp_path):
    class Data(eqx.Module):
        x: jax.Array

    class WithData(eqx.Module):
        data: Data
        eta: float = 1.0

    def summed(key, hparams):
        return {"x": hparams.eta * hparams.data.x.sum()}

    def sweep(value, **where):
        hparams = WithData(Data(jnp.full(3, value)))
        experiment = Experiment(run=summed, hparams=hparams)
        return lab.sweep(experiment, {"eta": [1.0, 2.0]}, **where)

    assert sweep(1.0, directory=tmp_path / "r").x.values.tolist() == [[3.0], [6.0]]
    assert sweep(100.0).x.values.tolist() == [[300.0], [600.0]]
    with pytest.raises(lab.RunDirectoryError, match=r"computation.all cells"):
        sweep(100.0, directory=tmp_path / "r", resume=True)


def test_what_depends_on_the_seed_alone_exists_once_a_seed():
    shapes = []

    @jax.custom_batching.custom_vmap
    def ensemble(key_data):
        return jr.normal(jr.wrap_key_data(key_data), (4,))

    @ensemble.def_vmap
    def _(axis_size, in_batched, key_data):
        shapes.append(axis_size)
        return jax.lax.map(ensemble, key_data), True

    def sensed(key, hparams):
        return {"x": hparams.eta * ensemble(jr.key_data(key)).sum()}

    experiment = Experiment(run=sensed, hparams=HParams(), num_seeds=3)
    lab.sweep(experiment, {"eta": [0.1, 0.2, 0.3, 0.4, 0.5]}, chunk=5)
    assert set(shapes) == {3}


def test_divergence_is_data_and_stays_in_its_lane():
    calm = lab.sweep(EXPERIMENT, {"eta": [0.1, 0.2, 0.3]}, num_seeds=2)
    wild = lab.sweep(EXPERIMENT, {"eta": [0.1, 1e20, 0.3]}, num_seeds=2)
    for eta in (0.1, 0.3):
        for name in ("loss", "final"):
            got, want = wild[name].sel(eta=eta), calm[name].sel(eta=eta)
            np.testing.assert_array_equal(got.values, want.values)
    at = wild.diverged_at.sel(eta=1e20)
    first = np.isfinite(wild.loss.sel(eta=1e20)).argmin("step")
    np.testing.assert_array_equal(at, first)
    assert (wild.diverged_at.sel(eta=[0.1, 0.3]) == -1).all()


def test_a_scalar_that_is_not_finite_counts_as_diverged_at_the_end():
    def late(key, hparams):
        return {"loss": jnp.ones(5), "final": jnp.log(hparams.eta)}

    results = lab.sweep(Experiment(run=late, hparams=HParams()), {"eta": [0.0, 1.0]})
    assert results.diverged_at.values.tolist() == [[4], [-1]]


@pytest.mark.parametrize("x64", [False, True])
def test_precision_is_the_experiments(x64):
    results = lab.sweep(EXPERIMENT.replace(x64=x64), {"eta": [0.1, 0.2]})
    assert results.loss.dtype == (np.float64 if x64 else np.float32)
    assert results.attrs["x64"] == int(x64)
    assert jnp.ones(1).dtype == jnp.float32  # nothing outside has changed


def test_no_axes_is_one_cell():
    results = lab.sweep(EXPERIMENT)
    assert results.loss.dims == ("seed", "step")
    np.testing.assert_allclose(results.loss[1], alone(1).loss, rtol=1e-6)


def test_a_plain_dataclass_will_do_for_hparams():
    @dataclasses.dataclass(frozen=True)
    class Plain:
        eta: float = 0.1

    experiment = Experiment(run=lambda key, h: {"x": h.eta * 2.0}, hparams=Plain())
    results = lab.sweep(experiment, {"eta": [1.0, 2.0]})
    assert results.x.values.tolist() == [[2.0], [4.0]]


def test_claims_are_judged_and_checked():
    results = lab.sweep(EXPERIMENT, {"eta": [0.1]})
    assert lab.claims(EXPERIMENT, results) == []
    claiming = EXPERIMENT.replace(claims=lambda r: [Claim("c", r.loss, high=0.0)])
    assert not lab.claims(claiming, results)[0].holds
    silent = EXPERIMENT.replace(claims=lambda r: [])
    with pytest.raises(ValueError, match="no claim"):
        lab.claims(silent, results)
    wrong = EXPERIMENT.replace(claims=lambda r: [True])
    with pytest.raises(ValueError, match="list of Claim"):
        lab.claims(wrong, results)


def test_cells_are_selected_by_coordinates_and_never_none():
    """Also by those of fields that move together."""
    results = lab.sweep(EXPERIMENT, {("eta", "shift"): [(0.1, 0.0), (0.2, 0.5)]})
    one = lab.select(results, eta=0.2, shift=0.5)
    assert one.sizes["eta_shift"] == 1
    np.testing.assert_array_equal(one.loss[0], results.loss[1])
    assert lab.select(results, eta=[0.1, 0.2]).equals(results)
    with pytest.raises(ValueError, match=r"has shift = 0\.5; they have \[0\.0\]"):
        lab.select(results, eta=0.1, shift=0.5)
