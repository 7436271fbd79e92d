"""Runs that are asked for more: what they had stays, what is new is as if begun so."""

from concurrent.futures import ThreadPoolExecutor
import json
import re
import signal
import time

import equinox as eqx
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlr.core import Experiment
from jaxlr.lab import (
    chunks,
    judging,
    load,
    plan,
    program,
    provenance,
    replay,
    RunDirectoryError,
    store,
    sweep,
)
from jaxlr.lab.cli import main
from jaxlr.lab.compiled import Compiled
from tests.devices import Forced
from tests.lab import _toys as toys
from tests.lab._files import MINE


FOUR = Forced(4)
MORE = (2, 2), (1, 1), (4, 5)
KINDS = pytest.mark.parametrize("make", [toys.closed, toys.long])
# Seeds, rates, sizes: in another order than in the end, and neither first nor last.
FEW, SEEDS = (
    (2, {"size": (3,), "rate": (0.4, 0.2)}),
    (5, {"size": (3,), "rate": (0.2, 0.4)}),
)
VALUES = 5, {"rate": (0.3, 0.4, 0.1, 0.2, 0.5), "size": (3,)}
WHOLE = 5, {"rate": (0.1, 0.2, 0.3, 0.4, 0.5), "size": (4, 3)}


def asked(make, what, directory=None, **settings):
    num_seeds, axes = what
    return sweep(make(), axes, num_seeds=num_seeds, directory=directory, **settings)


def files(directory):
    """What the directory's chunks are, and when they were written."""
    paths = directory.glob("chunks/*.npz")
    return {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in paths}


def blocks(directory):
    return store.read_manifest(directory)["layout"]


@FOUR.starter
@pytest.mark.slow
def test_on_four_devices():
    FOUR.rerun(__file__)


@KINDS
@pytest.mark.parametrize(
    "lanes", [(3, 2), *(pytest.param(x, marks=pytest.mark.slow) for x in MORE)]
)
def test_a_run_that_grew_is_bit_by_bit_the_one_begun_whole(tmp_path, make, lanes):
    wanted = asked(make, WHOLE, lanes=lanes)
    asked(make, FEW, tmp_path, lanes=lanes)
    for what in (SEEDS, VALUES, WHOLE):
        before = files(tmp_path)
        found = asked(make, what, tmp_path, resume="grow")
        after = files(tmp_path)
        assert before.items() < after.items()
    toys.assert_equal(found, wanted)
    toys.assert_equal(load(tmp_path), wanted)
    assert load(tmp_path).attrs["is_complete"] == 1
    assert {(b["num_seeds"], b["width"]) for b in blocks(tmp_path)} == {lanes}
    cells = ((0.2, 3, 1), (0.2, 3, 4), (0.5, 3, 0), (0.5, 4, 3))
    for rate, size, seed in cells:
        again = replay(tmp_path, {"rate": rate, "size": size}, seed)
        assert again.attrs["replay"].startswith("Equal bit by bit (expected bit")
        stored = wanted.loss.sel(rate=rate, size=size, seed=seed)
        assert again.loss.values.tobytes() == stored.values.tobytes()


@KINDS
@pytest.mark.parametrize("more", [{}, {"chunk": 3}])
def test_given_lanes_are_those_of_every_program(monkeypatch, make, more):
    """And what else is asked for changes no bit, also where they are more than that."""
    lanes, made = (3, 2), []
    compile_program = program.compile_program

    def spy(experiment, lane, **layout):
        made.append((layout["num_seeds"], layout["width"]))
        return compile_program(experiment, lane, **layout)

    monkeypatch.setattr(program, "compile_program", spy)
    make = make(num_steps=23 + len(more)).replace  # of no other test
    whole = asked(make, VALUES, lanes=lanes, **more)
    one = asked(make, (1, {"rate": (0.3,)}), lanes=lanes, **more)
    assert set(made) == {lanes}
    picked = whole.isel(seed=[0], size=0, drop=True).sel(rate=[0.3])
    toys.assert_equal(one, picked)


@KINDS
def test_without_lanes_new_ones_are_computed_as_wide_as_the_run_s(tmp_path, make):
    first = asked(make, FEW, tmp_path)
    found = asked(make, VALUES, tmp_path, resume="grow")
    (lanes,) = {(b["num_seeds"], b["width"]) for b in blocks(tmp_path)}
    assert lanes[0] == 2
    wanted = asked(make, VALUES, lanes=lanes)
    toys.assert_equal(found, wanted)
    kept = found.isel(seed=slice(2)).sel(first.coords)
    for name in first.data_vars:
        kept_bits = kept[name].transpose(*first[name].dims).values.tobytes()
        assert kept_bits == first[name].values.tobytes()
    # A compile group that is new has a width of its own, and the seeds at once.
    asked(make, WHOLE, tmp_path, resume="grow")
    assert {b["num_seeds"] for b in blocks(tmp_path)} == {2}
    assert load(tmp_path).attrs["is_complete"] == 1


@KINDS
def test_an_unfinished_run_grows_and_goes_on_after_an_interrupt(
    tmp_path, monkeypatch, make
):
    wanted = asked(make, WHOLE, lanes=(2, 1))
    run, left = chunks.run, []

    def interrupted(*args, **kwargs):
        if not left:
            raise KeyboardInterrupt
        left.pop()
        return run(*args, **kwargs)

    monkeypatch.setattr(chunks, "run", interrupted)
    left += [None]
    with pytest.raises(KeyboardInterrupt, match=r"1 of \d chunks are kept"):
        asked(make, FEW, tmp_path, lanes=(2, 1), chunk=1)
    for what, mode in (
        (SEEDS, "grow"),
        (WHOLE, "grow"),
        (WHOLE, "grow"),
        (WHOLE, True),
    ):
        kept, left[:] = files(tmp_path), [None]
        with pytest.raises(KeyboardInterrupt):
            asked(make, what, tmp_path, resume=mode)
        assert kept.items() < files(tmp_path).items()
        found = load(tmp_path)
        assert found.sizes["seed"] == 5
        assert found.attrs["is_complete"] == 0
        there = found.loss.notnull().all("step").broadcast_like(wanted.diverged_at)
        assert 0 < there.sum() < there.size
        is_there = found.loss.notnull()
        two = wanted.loss.sel(found.coords).transpose(*found.loss.dims)
        one, two = (x.values[is_there.values] for x in (found.loss, two))
        assert one.tobytes() == two.tobytes()
    left += [None] * 100
    toys.assert_equal(asked(make, WHOLE, tmp_path, resume=True), wanted)
    history = store.read_manifest(tmp_path)["history"]
    assert [entry["num_seeds"] for entry in history] == [[2, 5], [5, 5]]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["closed", "long"])
def test_a_run_killed_while_it_grows_goes_on(tmp_path, kind):
    experiment = toys.slow(kind)
    axes = {"rate": np.linspace(0.01, 0.3, 24)}
    few = {"rate": axes["rate"][::5]}
    settings = {"lanes": (2, 1), "num_seeds": 2}
    sweep(experiment, few, directory=tmp_path, chunk=1, **settings)
    before = files(tmp_path)
    code = f"toys.grow_slowly({kind!r}, {str(tmp_path)!r})"
    for _ in range(3):
        known, process = set(tmp_path.rglob("*.npz")), toys.start(code)
        until = time.perf_counter() + 120
        while set(tmp_path.rglob("*.npz")) <= known and time.perf_counter() < until:
            assert process.poll() is None, process.communicate()
            time.sleep(0.005)
        process.kill()
        process.communicate()
        assert process.returncode == -signal.SIGKILL
        assert load(tmp_path).attrs["is_complete"] == 0
        assert before.items() <= files(tmp_path).items()
    found = sweep(experiment, axes, directory=tmp_path, resume="grow", num_seeds=3)
    toys.assert_equal(found, sweep(experiment, axes, lanes=(2, 1), num_seeds=3))
    assert before.items() < files(tmp_path).items()


def test_a_run_grows_on_workers(tmp_path):
    with ThreadPoolExecutor(2) as executor:
        asked(toys.closed, FEW, tmp_path, lanes=(3, 2))
        before = files(tmp_path)
        found = asked(toys.closed, WHOLE, tmp_path, resume="grow", executor=executor)
    assert before.items() < files(tmp_path).items()
    toys.assert_equal(found, asked(toys.closed, WHOLE, lanes=(3, 2)))


def test_nothing_new_is_resume_and_an_empty_directory_a_start(tmp_path):
    first = asked(toys.closed, FEW, tmp_path, resume="grow")
    before = files(tmp_path), (tmp_path / "manifest.json").read_bytes()
    again = asked(toys.closed, FEW, tmp_path, resume="grow")
    toys.assert_equal(again, first)
    assert (files(tmp_path), (tmp_path / "manifest.json").read_bytes()) == before
    # The same in another order is in that order from then on.
    other = 2, {"rate": (0.2, 0.4), "size": (3,)}
    found = asked(toys.closed, other, tmp_path, resume="grow")
    toys.assert_equal(found, asked(toys.closed, other))
    toys.assert_equal(asked(toys.closed, other, tmp_path, resume=True), found)
    assert files(tmp_path) == before[0]


def test_axes_that_move_together_grow_and_become_two(tmp_path):
    zipped = {("rate", "size"): [(0.2, 3), (0.1, 4)]}
    more = {("rate", "size"): [(0.1, 4), (0.3, 3), (0.2, 3), (0.2, 4)]}
    product = {"size": (4, 3), "rate": (0.1, 0.2, 0.3)}
    sweep(toys.closed(), zipped, directory=tmp_path, lanes=(2, 1))
    for axes in (more, product):
        before = files(tmp_path)
        found = sweep(toys.closed(), axes, directory=tmp_path, resume="grow")
        assert before.items() < files(tmp_path).items()
        toys.assert_equal(found, sweep(toys.closed(), axes, lanes=(2, 1)))
    with pytest.raises(RunDirectoryError, match=r"the cell rate=0\.\d, size=\d, which"):
        sweep(toys.closed(), more, directory=tmp_path, resume="grow")


@KINDS
def test_an_axis_of_a_static_field_can_be_added(tmp_path, make):
    axes = {"rate": (0.1, 0.2)}
    sweep(make(), axes, directory=tmp_path, lanes=(2, 1))
    before = files(tmp_path)
    axes = {"size": (5, 3)} | axes
    found = sweep(make(), axes, directory=tmp_path, resume="grow")
    assert before.items() < files(tmp_path).items()
    toys.assert_equal(found, sweep(make(), axes, lanes=(2, 1)))
    toys.assert_equal(load(tmp_path), found)
    assert replay(tmp_path, {"rate": 0.2, "size": 3}, 1).attrs["is_equal"]
    with pytest.raises(RunDirectoryError, match=r"sweeps size, of which no axis"):
        sweep(make(), {"rate": (0.1, 0.2)}, directory=tmp_path, resume="grow")


@pytest.mark.misuse
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_seeds": 1}, r"has 2 seeds of every cell, and 1 were asked for: a run"),
        ({"axes": {"size": (3,), "rate": (0.2, 0.3)}}, r"has rate=0\.4, which was not"),
        ({"axes": {"rate": (0.2,), "size": (4,)}}, r"has size=3; rate=0\.4, which"),
        ({"axes": {"rate": (0.2, 0.4)}}, r"sweeps size, of which no axis"),
        ({"lanes": (2, 2)}, r"was begun with `lanes` None.* go on with \(2, 2\)"),
        ({"seed": 1, "num_seeds": 3}, r"(?s)cannot be resumed.*seed: 0 -> 1"),
        (
            {"experiment": toys.closed(num_steps=51), "num_seeds": 3},
            r"(?s)cannot be resumed.*computation\.size=3.*hparams\.num_steps: 50 -> 51",
        ),
    ],
)
def test_less_or_something_else_is_refused(tmp_path, settings, message):
    asked(toys.closed, FEW, tmp_path)
    before = files(tmp_path), (tmp_path / "manifest.json").read_bytes()
    given = {"experiment": toys.closed(), "axes": FEW[1], "num_seeds": 2} | settings
    for use in (plan, sweep):
        with pytest.raises(RunDirectoryError, match=message):
            use(**given, directory=tmp_path, resume="grow")
    assert (files(tmp_path), (tmp_path / "manifest.json").read_bytes()) == before


class Two(eqx.Module):
    """Two traced fields."""

    rate: float = 0.1
    """One."""
    scale: float = 2.0
    """The other."""


@pytest.mark.misuse
def test_an_axis_of_a_traced_field_cannot_be_added(tmp_path):
    """Its value is a constant of the programs that there are."""
    experiment = Experiment(
        run=lambda key, hp: {"x": jnp.sin(hp.rate) * hp.scale},
        hparams=Two(),
        axes={"rate": (0.1, 0.2)},
    )
    sweep(experiment, directory=tmp_path)
    axes = {"rate": (0.1, 0.2), "scale": (1.0, 2.0)}
    with pytest.raises(RunDirectoryError, match=r"one value of scale, a constant"):
        sweep(experiment, axes, directory=tmp_path, resume="grow")


@pytest.mark.misuse
@pytest.mark.parametrize("lanes", [2, (2,), "22", (2, 0), (True, 2), (2, 1.0)])
def test_lanes_are_two_counts(lanes):
    with pytest.raises(ValueError, match=r"`?lanes(\[[01]\])?`?.* must be"):
        sweep(toys.closed(), lanes=lanes)


@pytest.mark.misuse
def test_lanes_that_do_not_fit_are_refused(monkeypatch):
    monkeypatch.setattr("jaxlr.lab.memory.available_bytes", lambda devices: 2**20)
    sweep(toys.closed(size=100), lanes=(1, 1))
    with pytest.raises(ValueError, match=r"100000 cells at once .* (?s:.*)`lanes`"):
        sweep(toys.closed(size=100), lanes=(1, 10**5))


def test_given_lanes_are_not_narrowed(tmp_path, monkeypatch):
    monkeypatch.setattr(Compiled, "budget", 10)
    with pytest.raises(ValueError, match=r"2 cells at once .* 10 B may be used"):
        sweep(toys.closed(), directory=tmp_path, lanes=(2, 2))
    assert [block["width"] for block in blocks(tmp_path)] == [2]


def test_the_manifest_tells_how_the_run_grew(tmp_path, monkeypatch):
    asked(toys.closed, FEW, tmp_path)
    (tmp_path / judging.CLAIMS).write_text("[]")
    monkeypatch.setattr(provenance, "commit", lambda path: "c0ffee")
    asked(toys.closed, SEEDS, tmp_path, resume="grow")
    found = asked(toys.closed, WHOLE, tmp_path, resume="grow")
    manifest = store.read_manifest(tmp_path)
    one, two = manifest["history"]
    assert (one["num_seeds"], two["num_seeds"]) == ([2, 5], [5, 5])
    assert (one["axes"], two["axes"]) == (
        {},
        {"rate": [[0.1], [0.3], [0.5]], "size": [[4]]},
    )
    assert one["blocks"] + two["blocks"] == [1, 2, 2, len(manifest["layout"])]
    now = provenance.source_digest(toys.closed())
    for entry in (one, two):
        assert re.fullmatch(r"20\d\d-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", entry["grown"])
        assert (entry["commit"], entry["source"]) == ("c0ffee", now)
        assert entry.keys() >= {"command", "jaxlr", "jax", "jaxlib"}
    assert json.loads(found.attrs["history"]) == [one, two]
    # The verdicts are of what there was.
    assert not (tmp_path / judging.CLAIMS).exists()
    assert (tmp_path / "claims-1.json").read_text() == "[]"


def test_a_plan_of_growth_says_what_is_done_and_writes_nothing(tmp_path):
    asked(toys.closed, FEW, tmp_path, lanes=(2, 1))
    before = (tmp_path / "manifest.json").read_bytes()
    settings = {"directory": tmp_path, "resume": "grow", "num_seeds": 5}
    found = plan(toys.closed(), WHOLE[1], **settings)
    assert (tmp_path / "manifest.json").read_bytes() == before
    assert [group.num_cells for group in found.groups] == [5, 5]
    assert (found.num_cells, found.num_seeds) == (10, 5)
    done = len(files(tmp_path))
    assert [group.num_done for group in found.groups] == [0, done]
    asked(toys.closed, WHOLE, tmp_path, resume="grow")
    assert found.num_chunks == len(files(tmp_path))


def test_the_command_line_grows_a_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(MINE)
    words = ["run", "mine.py", "--directory", "d"]
    assert main([*words, "--axis", "eta=0.25", "--lanes", "2", "1"]) in (0, 1)
    before = files(tmp_path / "d")
    words += ["--axis", "eta=0.5,0.25", "--seeds", "3"]
    assert main(words) == 2
    assert main([*words, "--resume"]) == 2
    for wrong in (["--grow"], ["--resume", "--grow", "--force"]):
        assert main([*words, *wrong]) == 2
    assert main([*words, "--resume", "--grow"]) in (0, 1)
    assert before.items() < files(tmp_path / "d").items()
    assert load(tmp_path / "d").error.sizes["seed"] == 3
    assert len(json.loads((tmp_path / "d/claims.json").read_text())) == 1
    assert main(words[:2] + words[4:] + ["--resume", "--grow"]) == 2
    assert "--directory" in capsys.readouterr().err
