"""Functions of the user's that a sweep calls: with what, when, and how they stop it."""

from concurrent import futures
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlr import lab
from jaxlr.core import Experiment, Solver
from jaxlr.lab import chunks, load, store, sweep
from tests.lab import _toys as toys


@pytest.fixture(autouse=True)
def one_step(monkeypatch):
    """Segments stay one step long."""
    monkeypatch.setattr(chunks, "SEGMENT_SECONDS", 0)


def assert_part(part, whole):
    """A hook's Dataset holds the bits of the results' cells of the same coordinates."""
    names = [str(name) for name, c in part.coords.items() if c.dims == ("cell",)]
    for i in range(part.sizes["cell"]):
        one = part.isel(cell=i)
        cell = lab.select(whole, **{name: one[name].item() for name in names})
        cell = cell.sel(seed=part.seed).squeeze([d for d in names if d in cell.dims])
        for name, found in one.data_vars.items():
            wanted = cell[name]
            if "step" in found.dims:
                wanted = wanted.isel(step=slice(found.sizes["step"]))
                np.testing.assert_array_equal(part.step, wanted.step)
            assert found.dtype == wanted.dtype
            assert found.dims == wanted.dims
            assert found.values.tobytes() == wanted.values.tobytes()


@pytest.mark.parametrize("has_directory", [False, True])
@pytest.mark.parametrize("make", [toys.closed, toys.long])
def test_every_finished_chunk_is_told_of_once(tmp_path, make, has_directory):
    axes = {"rate": toys.RATES, "size": (3, 2)}
    directory = tmp_path / "run" if has_directory else None
    heard = []
    found = sweep(make(), axes, chunk=2, directory=directory, on_chunk=heard.append)
    cells = [
        cell
        for part in heard
        for cell in zip(part.rate.values.tolist(), part["size"].values, strict=True)
    ]
    assert len(heard) == 6
    assert sorted(cells) == [(rate, size) for rate in toys.RATES for size in (2, 3)]
    for part in heard:
        assert part.loss.dims == ("cell", "seed", "step")
        assert part.seed.values.tolist() == [0, 1]
        if make is toys.closed and part["size"][0] == 2:
            part = part.drop_vars("last")  # padded in the results
        assert_part(part, found)
    wanted = {"rate": 0.5, "size": 2, "num_steps": 50}
    assert lab.hparams(heard[-1].isel(cell=-1)) == wanted


def test_a_finished_chunk_is_kept_before_it_is_told_of(tmp_path):
    counts = []

    def count(_):
        counts.append(len(list((tmp_path / "chunks").glob("*.npz"))))

    sweep(toys.closed(), chunk=2, directory=tmp_path, on_chunk=count)
    assert counts == [1, 2, 3]


def test_segments_are_told_of_with_the_curves_so_far():
    heard = []
    experiment = toys.long(num_steps=6).replace(every=2)
    found = sweep(
        experiment,
        chunk=3,
        on_segment=lambda curves, step: heard.append((curves, step)),
    )
    assert [step for _, step in heard] == [*range(1, 7)] * 2
    sizes = [part.sizes["step"] for part, _ in heard]
    assert sizes == [1, 1, 2, 2, 3, 3] * 2
    assert [part.rate.values.tolist() for part, _ in heard[::6]] == [
        [0.1, 0.2, 0.3],
        [0.4, 0.5],
    ]
    for part, _ in heard:
        assert_part(part, found)


class Ending(eqx.Module):
    limit: float = 3.0
    """Steps before a lane ends."""


def ending(key, hparams):
    del key

    def step(key, count):
        del key
        return count + 1, {"count": count, "inverse": 1 / (count - 1.0)}

    return Solver(lambda key: jnp.zeros((), int), step, lambda x: x >= hparams.limit)


ENDING = Experiment(solver=ending, num_steps=9, hparams=Ending(), checkpoint_seconds=0)


def test_counters_say_what_is_known_so_far():
    heard = []
    sweep(ENDING, {"limit": (2.0, 4.0)}, on_segment=lambda *x: heard.append(x))
    ended = {step: part.ended_at.values[:, 0].tolist() for part, step in heard}
    assert ended == {1: [-1, -1], 2: [2, -1], 3: [2, -1], 9: [2, 4]}
    diverged = {step: part.diverged_at.values[0, 0] for part, step in heard}
    assert diverged == {1: -1, 2: 1, 3: 1, 9: 1}
    curves = heard[-1][0]["count"].values[:, 0].tolist()
    assert curves == [[0] + [1] * 8, [0, 1, 2] + [3] * 6]


class OfMine(Exception):
    pass


def refusing(error, number):
    """A hook that raises an error when it is called for that time."""
    calls = []

    def hook(*_):
        calls.append(None)
        if len(calls) == number:
            raise error

    return hook


@pytest.mark.parametrize("make", [toys.closed, toys.long])
@pytest.mark.parametrize(
    "error", [OfMine("no more"), ValueError("no more"), RuntimeError("x")]
)
def test_what_a_hook_raises_stops_the_sweep_which_goes_on_behind_it(
    tmp_path, make, error
):
    with pytest.raises(type(error)) as caught:
        sweep(make(), chunk=2, directory=tmp_path, on_chunk=refusing(error, 2))
    assert caught.value is error
    assert caught.value.__context__ is None
    (note,) = caught.value.__notes__
    assert note.startswith(f"Stopped. 2 of 3 chunks are kept in {tmp_path}.")
    del error.__notes__
    heard = []
    found = sweep(
        make(), chunk=2, directory=tmp_path, resume=True, on_chunk=heard.append
    )
    assert [part.rate.values.tolist() for part in heard] == [[0.5]]
    toys.assert_equal(found, sweep(make(), chunk=2))


def test_a_hook_stops_a_long_run_within_a_chunk_and_its_state_is_kept(tmp_path):
    experiment = toys.long().replace(checkpoint_seconds=1e6)  # nothing but the stop
    reached = []

    def stop(curves, step):
        if curves.rate[0] == 0.3 and step >= 5:
            reached.append(step)
            raise OfMine

    with pytest.raises(OfMine):
        sweep(experiment, chunk=2, directory=tmp_path, on_segment=stop)
    (at,) = reached
    assert at < 50
    found = load(tmp_path).share_done.values[:, 0]
    assert found.tolist() == [1, 1, at / 50, at / 50, 0]
    steps = []
    found = sweep(
        experiment,
        chunk=2,
        directory=tmp_path,
        resume=True,
        on_segment=lambda _, step: steps.append(step),
    )
    assert steps[0] > at
    assert steps.count(50) == 2
    toys.assert_equal(found, sweep(experiment, chunk=2))


def test_a_hook_that_stops_at_the_end_of_a_chunk_loses_nothing(tmp_path):
    with pytest.raises(OfMine):
        sweep(toys.long(), directory=tmp_path, on_segment=refusing(OfMine(), 50))
    steps = []
    found = sweep(
        toys.long(),
        directory=tmp_path,
        resume=True,
        on_segment=lambda _, step: steps.append(step),
    )
    assert not steps
    toys.assert_equal(found, sweep(toys.long()))


@pytest.mark.parametrize("hook", ["on_chunk", "on_segment"])
def test_a_hook_may_press_ctrl_c(tmp_path, hook):
    hooks: dict[str, Any] = {hook: refusing(KeyboardInterrupt("enough"), 1)}
    with pytest.raises(KeyboardInterrupt, match="Go on with") as caught:
        sweep(toys.long(), chunk=2, directory=tmp_path, **hooks)
    assert str(caught.value.__cause__) == "enough"


def test_without_a_directory_the_error_comes_through_too():
    with pytest.raises(OfMine) as caught:
        sweep(toys.closed(), chunk=2, on_chunk=refusing(OfMine(), 1))
    assert caught.value.__notes__ == [
        "Stopped. Nothing was kept: the sweep had no `directory`."
    ]


@pytest.mark.parametrize(
    "hooks", [{"on_chunk": 3}, {"on_segment": "print"}, {"on_segment": print}]
)
def test_hooks_that_cannot_be_called_are_refused(hooks):
    ((name, _),) = hooks.items()
    with pytest.raises(ValueError, match=f"`{name}`"):
        sweep(toys.closed(), **hooks)


def test_segments_of_an_executor_are_not_heard_of():
    with futures.ThreadPoolExecutor() as executor:
        with pytest.raises(ValueError, match=r"`on_segment`.*`executor`"):
            sweep(toys.long(), executor=executor, on_segment=print)


def test_chunks_of_an_executor_are_told_of_here(tmp_path):
    heard = []
    with futures.ThreadPoolExecutor(1) as executor:
        how: dict[str, Any] = {"chunk": 1, "directory": tmp_path, "executor": executor}
        with pytest.raises(OfMine):
            sweep(toys.long(), **how, on_chunk=refusing(OfMine(), 2))
        assert len(list(tmp_path.glob("chunks/*.npz"))) == 2
        found = sweep(toys.long(), **how, resume=True, on_chunk=heard.append)
    assert [part.rate.item() for part in heard] == [0.3, 0.4, 0.5]
    for part in heard:
        assert_part(part, found)
    assert store.read_manifest(tmp_path)["is_complete"]
