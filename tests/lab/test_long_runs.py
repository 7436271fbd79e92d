from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from jaxlr.core import Experiment, loop, Solver
from jaxlr.lab import chunks, store, sweep
from jaxlr.lab.compiled import Compiled
from jaxlr.lab.request import Request
from tests.lab import _toys as toys


@pytest.fixture
def segments(monkeypatch):
    """Every (first, last) step that a program is called with."""
    calls = []
    program = Compiled.program

    def counted(self, group, width, num_seeds=None):
        made = program(self, group, width, num_seeds)

        class Counted:
            def __getattr__(self, name):
                return getattr(made, name)

            def call(self, *arguments):
                calls.append(tuple(int(t) for t in arguments[-1]))
                return made.call(*arguments)

        return Counted()

    monkeypatch.setattr(Compiled, "program", counted)
    return calls


@pytest.fixture
def one_step(monkeypatch):
    """Segments stay one step long."""
    monkeypatch.setattr(chunks, "SEGMENT_SECONDS", 0)


CUTS = {
    "one": [50],
    "steps": range(1, 51),
    "sevens": [*range(7, 50, 7), 50],
    "uneven": [1, 2, 4, 49, 50],
}


@pytest.mark.parametrize("every", [1, 4])
def test_segments_of_any_partition_hold_the_same_bits(every):
    request = Request.make(toys.long().replace(every=every))
    program = Compiled(request).program(0, 3)
    cells = chunks.pad(request, program, 0, np.arange(3))
    ends = {}
    for name, cuts in CUTS.items():
        t, state = 0, program.initial_state()
        for stop in cuts:
            times = np.int32(t), np.int32(stop)
            state = program.call(
                np.uint32(0), np.arange(2, dtype=np.int32), cells, state, times
            )
            t = stop
        ends[name] = [np.asarray(x).tobytes() for x in state]
    assert len({tuple(end) for end in ends.values()}) == 1


@pytest.mark.parametrize("seconds", [0, np.inf])
def test_a_sweep_does_not_depend_on_its_segments(monkeypatch, segments, seconds):
    monkeypatch.setattr(chunks, "SEGMENT_SECONDS", seconds)
    found = sweep(toys.long(), chunk=3)
    assert segments[:2] == ([(0, 1), (1, 2)] if seconds == 0 else [(0, 1), (1, 3)])
    toys.assert_equal(found, sweep(toys.long().replace(checkpoint_seconds=30), chunk=3))


@pytest.mark.parametrize("x64", [False, True])
@pytest.mark.parametrize("every", [1, 4])
def test_segments_agree_with_the_closed_form(every, x64):
    experiment = toys.long().replace(every=every, x64=x64)
    found = sweep(experiment, chunk=3)
    closed = Experiment(
        run=loop.closed_form(experiment),
        hparams=experiment.hparams,
        every=every,
        x64=x64,
    )
    wanted = sweep(closed, {"rate": toys.RATES}, num_seeds=2, chunk=3)
    assert found.loss.dtype == (np.float64 if x64 else np.float32)
    np.testing.assert_array_equal(found.step, wanted.step)
    tolerance = 1e-9 if x64 else 1e-3
    np.testing.assert_allclose(found.loss, wanted.loss, rtol=tolerance)
    assert float(found.loss.std()) > 0.1


@pytest.mark.parametrize("num_steps", [48, 50])
def test_thinned_curves_are_the_whole_ones_subsampled(num_steps):
    experiment = toys.long(num_steps=num_steps)
    whole = sweep(experiment, chunk=3)
    thin = sweep(experiment.replace(every=4), chunk=3)
    wanted = whole.isel(step=slice(None, None, 4))
    assert thin.step.values.tolist() == list(range(0, num_steps, 4))
    assert thin.loss.values.tobytes() == wanted.loss.values.tobytes()


def test_lengths_come_from_static_fields():
    axes = {"num_steps": (20, 50), "rate": toys.RATES}
    found = sweep(toys.long(), axes, chunk=3)
    assert found.step_length.values[:, 0].tolist() == [20, 50]
    short = found.loss.sel(num_steps=20)
    assert np.isnan(short.isel(step=slice(20, None)).values).all()
    alone = sweep(toys.long(num_steps=20), chunk=3)
    assert short.values[..., :20].tobytes() == alone.loss.values.tobytes()


class Count(NamedTuple):
    value: Any


class CountInfo(NamedTuple):
    value: Any
    index: Any


class Ending(eqx.Module):
    limit: float = 5.0
    """Steps before a lane ends."""
    growth: float = 2.0
    """Of the value, every step."""


def counting(key, hparams):
    del key

    def step(key, state):
        del key
        index = jnp.round(jnp.log2(state.value)).astype(jnp.int32)
        return Count(state.value * hparams.growth), CountInfo(state.value, index)

    def has_ended(state):
        return state.value >= 2.0**hparams.limit

    return Solver(lambda key: Count(1.0), step, has_ended)


COUNTING = Experiment(
    solver=counting, num_steps=1000, hparams=Ending(), checkpoint_seconds=0
)


@pytest.mark.parametrize("every", [1, 3])
def test_ended_lanes_stand_still(every):
    found = sweep(COUNTING.replace(every=every), {"limit": (3.0, 7.0, 20.0)})
    assert found.ended_at.values.ravel().tolist() == [3, 7, 20]
    assert (found.diverged_at == -1).all()
    for name in ("value", "index"):
        for limit, curve in zip((3, 7, 20), found[name].values[:, 0], strict=True):
            steps = np.minimum(np.arange(0, 1000, every), limit - 1)
            # A row between two kept ones may be a lane's last.
            last = curve[-(-limit // every) :]
            assert (last == last[0]).all()
            wanted = 2**steps if name == "value" else steps
            rows = np.arange(0, limit, every) // every
            np.testing.assert_array_equal(curve[rows], wanted[rows])
            assert last[0] == (2 ** (limit - 1) if name == "value" else limit - 1)


def test_a_lane_that_ends_last_does_not_move_the_others():
    short = sweep(COUNTING, {"limit": (3.0, 7.0)})
    long = sweep(COUNTING, {"limit": (3.0, 7.0, 900.0)})
    both = long.isel(limit=slice(2)).drop_vars("index")
    toys.assert_equal(both, short.drop_vars("index"))
    assert int(long.diverged_at[2, 0]) == 128  # float32 ends at 2^128


def test_the_sweep_stops_when_all_lanes_have_ended(segments, one_step):
    sweep(COUNTING, {"limit": (3.0, 7.0)})
    assert segments == [(t, t + 1) for t in range(7)]


def test_the_sweep_stops_when_all_lanes_have_diverged(segments, one_step):
    forever = {"limit": (1e9,), "growth": (2.0**60, 2.0**70)}
    found = sweep(COUNTING, forever)
    assert segments == [(0, 1), (1, 2), (2, 3)]
    assert found.diverged_at.values.ravel().tolist() == [3, 2]
    assert found.ended_at.values.ravel().tolist() == [3, 2]


def test_divergence_is_data_and_stays_in_its_lane():
    def run(worst):
        rates = (0.1, 0.2, worst, 0.3)
        return sweep(explosive, {"rate": rates}, num_seeds=2, chunk=4)

    explosive = toys.long().replace(solver=_explosive)
    calm, wild = run(0.4), run(-8.0)
    others = [0, 1, 3]
    for name in ("loss", "diverged_at", "ended_at"):
        one, two = (x[name].values[others] for x in (calm, wild))
        assert one.tobytes() == two.tobytes(), name
    at, ended = wild.diverged_at.values[2], wild.ended_at.values[2]
    assert (at > 0).all()
    assert (ended > 0).all()
    for seed in range(2):
        curve = wild.loss.values[2, seed]
        assert np.isfinite(curve[: at[seed]]).all()
        assert not np.isfinite(curve[at[seed]])
        assert np.isnan(curve[ended[seed] :]).all()
    assert (calm.diverged_at == -1).all()


def _explosive(key, hparams):
    def step(key, state):
        x = state - hparams.rate * state**3
        return x, toys.Info(jnp.sum(state**2))

    return Solver(lambda key: jr.normal(key, (hparams.size,)), step)


def _measured_badly(key, hparams):
    """Its state is finite, what is measured of it is not, at most steps."""
    del key

    def step(key, state):
        del key
        is_good = jnp.round(jnp.log2(state.value)) % 5 == 0
        loss = jnp.where(is_good, state.value, jnp.nan)
        return Count(state.value * hparams.growth), toys.Info(loss)

    return Solver(lambda key: Count(1.0), step)


def _exploding(key, hparams):
    del key

    def step(key, state):
        del key
        return Count(state.value * hparams.growth), toys.Info(state.value)

    return Solver(lambda key: Count(1.0), step)


@pytest.mark.parametrize("every", [1, 3, 5])
@pytest.mark.parametrize("solver", [_measured_badly, _exploding])
def test_only_the_state_ends_a_lane_and_the_closed_form_agrees(solver, every):
    growth = (2.0, 1.0) if solver is _measured_badly else (2.0, 2.0**30)
    experiment = Experiment(
        solver=solver, num_steps=40, hparams=Ending(), every=every, checkpoint_seconds=0
    )
    closed = Experiment(run=loop.closed_form(experiment), hparams=Ending(), every=every)
    found, wanted = (sweep(x, {"growth": growth}) for x in (experiment, closed))
    np.testing.assert_array_equal(found.diverged_at, wanted.diverged_at)
    is_finite = np.isfinite(wanted.loss.values)
    np.testing.assert_array_equal(np.isfinite(found.loss.values), is_finite)
    np.testing.assert_array_equal(
        found.loss.values[is_finite], wanted.loss.values[is_finite]
    )
    if solver is _measured_badly:
        assert (found.ended_at == -1).all()
        assert found.diverged_at.values[:, 0].tolist() == [
            -1 if every == 5 else every,
            -1,
        ]
    else:
        # 2^150 is infinite: the state after step 4.
        assert found.ended_at.values[:, 0].tolist() == [-1, 5]
        assert found.diverged_at.values[:, 0].tolist() == [-1, -(-5 // every) * every]


def test_what_a_step_after_the_end_would_do_leaves_no_trace():
    """An exact solution is where the next step divides by zero."""

    def solver(key, hparams):
        del key

        def step(key, state):
            del key
            rest = hparams.limit - state.value
            return Count(state.value + rest / rest), toys.Info(state.value)

        return Solver(lambda key: Count(0.0), step, lambda s: s.value >= hparams.limit)

    experiment = COUNTING.replace(solver=solver, num_steps=9)
    found = sweep(experiment, {"limit": (3.0, 7.0)})
    assert found.ended_at.values.ravel().tolist() == [3, 7]
    assert (found.diverged_at == -1).all()
    curves = [np.minimum(np.arange(9), limit - 1) for limit in (3, 7)]
    np.testing.assert_array_equal(found.loss.values[:, 0], curves)


class Written(list):
    """Files that the sweep wrote; it is interrupted after the `stop`-th checkpoint."""

    stop = -1


@pytest.fixture
def written(monkeypatch):
    files = Written()
    write = store.write_arrays

    def spy(path, arrays, identity):
        write(path, arrays, identity)
        files.append(path.parent.name)
        if files.count("segments") == files.stop:
            raise KeyboardInterrupt

    monkeypatch.setattr(store, "write_arrays", spy)
    return files


def test_checkpoints_are_as_frequent_as_asked(tmp_path, written, one_step):
    sweep(toys.long(), directory=tmp_path / "each", chunk=3)
    assert written == (["segments"] * 49 + ["chunks"]) * 2
    assert not list((tmp_path / "each/segments").iterdir())
    written.clear()
    rare = toys.long().replace(checkpoint_seconds=1e6)
    sweep(rare, directory=tmp_path / "none", chunk=3)
    assert written == ["chunks"] * 2


@pytest.mark.parametrize("x64", [False, True])
@pytest.mark.parametrize("backend", ["shard_map", "pmap"])
def test_a_run_goes_on_from_its_checkpoint(
    tmp_path, written, segments, one_step, x64, backend
):
    experiment = toys.long().replace(x64=x64)
    same = {"chunk": 2, "backend": backend}
    wanted = sweep(experiment, directory=tmp_path / "whole", **same)
    written.stop = written.count("segments") + 60  # in the second chunk
    with pytest.raises(KeyboardInterrupt, match=r"1 of 3 chunks are kept.*resume=True"):
        sweep(experiment, directory=tmp_path / "cut", **same)
    checkpoint = tmp_path / "cut/segments/g000-c00001.npz"
    saved, _ = store.read_arrays(checkpoint)
    assert saved["t"] == 11
    assert any(x.dtype == np.uint32 for x in saved.values())  # the key in the state
    segments.clear()
    written.stop = -1
    found = sweep(experiment, directory=tmp_path / "cut", resume=True, backend=backend)
    assert segments[0] == (11, 12)
    toys.assert_equal(found, wanted)
    assert not checkpoint.exists()


def test_a_corrupt_checkpoint_is_named_and_costs_its_chunk(tmp_path, written, one_step):
    written.stop = 30
    with pytest.raises(KeyboardInterrupt):
        sweep(toys.long(), directory=tmp_path, chunk=3)
    checkpoint = tmp_path / "segments/g000-c00000.npz"
    content = bytearray(checkpoint.read_bytes())
    content[len(content) // 2] ^= 0xFF
    checkpoint.write_bytes(content)
    written.stop = -1
    with pytest.raises(store.RunDirectoryError, match="Delete that one file") as e:
        sweep(toys.long(), directory=tmp_path, resume=True)
    assert str(checkpoint) in str(e.value)
    checkpoint.unlink()
    found = sweep(toys.long(), directory=tmp_path, resume=True)
    toys.assert_equal(found, sweep(toys.long(), chunk=3))


def test_a_checkpoint_of_another_solver_is_named(tmp_path, written, one_step):
    """Forced to go on with a changed source, whose state looks otherwise."""
    written.stop = 30
    with pytest.raises(KeyboardInterrupt):
        sweep(toys.long().replace(name="x"), directory=tmp_path, chunk=3)
    other = toys.long().replace(name="x", solver=_explosive)
    written.stop = -1
    with pytest.raises(store.RunDirectoryError, match=r"another solver.*Delete") as e:
        sweep(other, directory=tmp_path, resume="force")
    (checkpoint,) = (tmp_path / "segments").iterdir()
    assert str(checkpoint) in str(e.value)
    checkpoint.unlink()
    found = sweep(other, directory=tmp_path, resume="force")
    toys.assert_equal(found, sweep(other, chunk=3))


class Kinds(NamedTuple):
    """Metrics that are no floats, some of them plain numbers of Python."""

    flag: Any
    count: Any
    always: Any
    three: Any


def test_numbers_keep_their_kind_and_functions_of_a_state_stay():
    """An Equinox module is a state, its activation function included."""

    def solver(key, hparams):
        def init(key):
            model = eqx.nn.MLP(2, 2, 3, 1, activation=jnp.sin, key=key)
            return model, jnp.zeros((), int)

        def step(key, state):
            model, t = state
            x = model(jnp.ones(2)) * hparams.growth
            model = eqx.tree_at(lambda m: m.layers[-1].bias, model, x)
            return (model, t + 1), Kinds(t % 2 == 0, t, True, 3)

        return Solver(init, step, lambda state: jnp.isnan(state[0](jnp.ones(2))).any())

    experiment = Experiment(solver=solver, num_steps=5, hparams=Ending())
    found = sweep(experiment)
    kinds = {name: found[name].dtype.kind for name in Kinds._fields}
    assert kinds == {"flag": "b", "count": "i", "always": "b", "three": "i"}
    assert found["count"].values[0].tolist() == [0, 1, 2, 3, 4]
    assert found["flag"].values[0].tolist() == [True, False, True, False, True]


def test_the_step_key_is_folded_in_by_the_step():
    def drawing(key, hparams):
        del key, hparams
        return Solver(lambda key: key, lambda key, state: (state, {"key": key}))

    experiment = Experiment(solver=drawing, num_steps=4, hparams=Ending())
    words = sweep(experiment).key.values[0]
    _, solve_key = jr.split(jr.fold_in(jr.key(0), 0))
    _, loop_key = loop.split_key(solve_key)
    wanted = jax.vmap(lambda t: jr.key_data(jr.fold_in(loop_key, t)))(jnp.arange(4))
    np.testing.assert_array_equal(words, wanted)


def test_a_checkpoint_whose_arrays_have_other_names_is_refused(
    tmp_path, written, one_step
):
    """Of the same shapes, in another order: two metrics would be exchanged."""
    written.stop = 30
    with pytest.raises(KeyboardInterrupt):
        sweep(toys.long(), directory=tmp_path, chunk=3)
    written.stop = -1
    (checkpoint,) = (tmp_path / "segments").iterdir()
    arrays, identity = store.read_arrays(checkpoint)
    names = [f"leaf{i}" if name != "t" else name for i, name in enumerate(arrays)]
    renamed = dict(zip(names, arrays.values(), strict=True))
    store.write_arrays(checkpoint, renamed, identity)
    with pytest.raises(store.RunDirectoryError, match="Delete that one file"):
        sweep(toys.long(), directory=tmp_path, resume=True)


def test_the_number_of_steps_may_be_an_integer_of_numpy():
    num_steps = np.int64(4)
    found = sweep(toys.long().replace(num_steps=num_steps))
    assert found.sizes["step"] == num_steps
