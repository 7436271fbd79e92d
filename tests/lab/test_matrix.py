"""Runs begun in one place and gone on with in another, wherever people work.

Places: a script on a terminal or in a pipe, a notebook; experiments imported, defined
in the script, or in a cell. Ways to go on: resume, replay, a spawned process.
"""

from pathlib import Path
import time

import numpy as np
import pytest

from jaxlr.lab import find, load, sweep
from tests.lab import _going_on as going_on, _places as places, _toys as toys


pytestmark = [
    pytest.mark.slow,
    # Kernels and their clients close their sockets and loops late.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]

# Classes, a rule of one's own, and code for the host: all count in a computation.
MINE = """
import dataclasses
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxlr.core import Experiment, Solver

SHIFT = np.float32(0.25)

class Settings(eqx.Module):
    rate: float = 0.1
    size: int = eqx.field(static=True, default=3)
    num_steps: int = eqx.field(static=True, default=60)

@jax.tree_util.register_dataclass
@dataclasses.dataclass
class State:
    x: jax.Array
    energy: jax.Array

@jax.custom_jvp
def energy(x):
    return jnp.sum(jnp.sin(3 * x))

@energy.defjvp
def slope(primals, tangents):
    return energy(*primals), jnp.sum(jnp.cos(3 * primals[0]) * tangents[0])

def shifted(x):
    return np.asarray(x) + SHIFT

def draw(key, settings):
    shape = jax.ShapeDtypeStruct((settings.size,), np.float32)
    start = jr.normal(key, shape.shape)
    return jax.pure_callback(shifted, shape, start, vmap_method="broadcast_all")

def descend(x, settings):
    x = x - settings.rate * jax.grad(energy)(x)
    return State(x, energy(x))

def run(key, settings):
    def step(state, _):
        return descend(state.x, settings), state.energy

    x = draw(key, settings)
    last, curve = jax.lax.scan(step, State(x, energy(x)), None, settings.num_steps)
    return {"energy": curve, "last": last.x}

def solver(key, settings):
    def step(key, state):
        x = state.x + 0.01 * jr.normal(key, state.x.shape)
        return descend(x, settings), {"energy": state.energy}

    def init(key):
        x = 2 * jr.normal(key, (settings.size,))
        return State(x, energy(x))

    return Solver(init, step)

SHARED = dict(name="mine", num_seeds=2, axes={"rate": (0.1, 0.2, 0.3, 0.4, 0.5)})
CLOSED = Experiment(run=run, hparams=Settings(), **SHARED)
LONG = Experiment(
    solver=solver,
    num_steps=lambda settings: settings.num_steps,
    hparams=Settings(),
    checkpoint_seconds=0,
    **SHARED,
)
EXPERIMENTS = {"closed": CLOSED, "long": LONG}
SIZES = {"closed": dict(size=4096, num_steps=2000), "long": dict(num_steps=4000)}
AXES = {"rate": np.linspace(0.01, 0.3, 24)}
SLOW = {
    kind: experiment.replace(hparams=Settings(**SIZES[kind]), axes=AXES)
    for kind, experiment in EXPERIMENTS.items()
}
"""


def _module(folder: Path):
    """What MINE defines, in this process."""
    path = folder / "mine.py"
    path.write_text(MINE)
    return find.load_module("mine_of_the_matrix", path)


@pytest.fixture(scope="module")
def wanted(tmp_path_factory):
    """The results of runs that nobody disturbed."""
    mine = _module(tmp_path_factory.mktemp("here"))
    return {
        kind: sweep(experiment, chunk=going_on.CHUNK)
        for kind, experiment in mine.EXPERIMENTS.items()
    }


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    """Place -> kind -> a run that was begun there."""
    root = tmp_path_factory.mktemp("begun")
    for name in places.NAMES:
        code = f"""
from pathlib import Path
from tests.lab import _going_on
_going_on.begin(EXPERIMENTS, Path({str(root / name)!r}))
"""
        folder = tmp_path_factory.mktemp(f"begins-{name}")
        (root / name).mkdir()
        assert "begun" in places.start(name, folder, MINE, code).finish()
    return root


@pytest.mark.parametrize("name", places.NAMES)
def test_what_was_begun_anywhere_goes_on_here(tmp_path, begun, wanted, name):
    """Resumed here, resumed by a spawned process, replayed: to the same bits."""
    root = tmp_path / "runs"
    code = f"""
from pathlib import Path
from tests.lab import _going_on
_going_on.go_on(EXPERIMENTS, Path({str(begun)!r}), Path({str(root)!r}))
"""
    process = places.start(name, tmp_path / "here", MINE, code)
    assert "went on" in process.finish()
    num_found = 0
    for directory in sorted(root.glob("*/*/*")):
        found = load(directory)
        assert found.attrs["is_complete"] == 1
        toys.assert_equal(found, wanted[directory.name])
        kept = begun / directory.parent.name / directory.name
        for path in kept.glob("chunks/*.npz"):
            assert (directory / "chunks" / path.name).read_bytes() == path.read_bytes()
        num_found += 1
    assert num_found == 2 * 2 * len(places.NAMES)


@pytest.mark.parametrize(
    "num_kills",
    [pytest.param(4), pytest.param(20, marks=pytest.mark.full)],
)
@pytest.mark.parametrize("kind", ["closed", "long"])
def test_kills_across_places_leave_no_trace(tmp_path, kind, num_kills):
    """Every life of a run is at another place, drawn at random, and ends by `kill -9`.

    Half of them end just after something new was kept, the others at any time at all.
    """
    experiment = _module(tmp_path).SLOW[kind]
    begun = time.perf_counter()
    wanted = sweep(experiment, chunk=going_on.CHUNK)
    duration = time.perf_counter() - begun
    rng = np.random.default_rng(num_kills)
    lives, num_killed, num_midway, num_runs = [], 0, 0, 0
    while num_killed < num_kills:
        num_runs += 1
        directory = tmp_path / f"run{num_runs}"
        while num_killed < num_kills and not toys.is_complete(directory):
            name = places.NAMES[rng.integers(len(places.NAMES))]
            lives.append(name)
            code = f"""
from tests.lab import _going_on
_going_on.sweep_slowly(SLOW[{kind!r}], {str(directory)!r})
"""
            folder = tmp_path / f"life{len(lives)}"
            process = places.start(name, folder, MINE, code)
            while not (folder / "ready").exists():
                assert process.is_running(), process.finish()
                time.sleep(0.01)
            is_midway = len(lives) % 2 and toys.has_progressed(
                kind, directory, process.is_running
            )
            time.sleep(rng.uniform(0, 0.02 if is_midway else duration))
            if process.kill():
                num_killed += 1
                num_midway += bool(is_midway)
        found = sweep(experiment, directory=directory, resume=True)
        toys.assert_equal(found, wanted)
        toys.assert_equal(load(directory), wanted)
        assert not list(directory.rglob("*.tmp"))
    print(
        f"{kind}: {num_killed} kills of {num_runs} runs, {num_midway} in their midst, "
        f"at {len(set(lives))} places, in {time.perf_counter() - begun:.0f} s"
    )
    assert num_midway >= num_kills // 4
