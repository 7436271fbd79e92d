"""Small experiments that the tests of the lab share, and processes that sweep them."""

import itertools
import os
from pathlib import Path
import subprocess
import sys
import time
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np

from jaxlr.core import Experiment, Solver


ROOT = Path(__file__).resolve().parents[2]


class HParams(eqx.Module):
    """One cell of the toys."""

    rate: float = 0.1
    """Step size."""
    size: int = eqx.field(static=True, default=3)
    """Length of the vector."""
    num_steps: int = eqx.field(static=True, default=50)
    """Length of the run."""


class Metrics(NamedTuple):
    """What the closed toy returns."""

    loss: Any
    """Squared norm."""
    last: Any
    """The vector at the end."""


class Info(NamedTuple):
    """What the long toy returns every step."""

    loss: Any
    """Squared distance to the target."""


class State(NamedTuple):
    """Of the long toy: it carries a typed key of its own."""

    x: Any
    key: Any


def run(key, hparams):
    """A descent with curved dynamics, so that rounding shows."""

    def step(x, _):
        return x - hparams.rate * jnp.sin(3 * x), jnp.sum(x * x)

    start = jr.normal(key, (hparams.size,))
    last, loss = jax.lax.scan(step, start, None, hparams.num_steps)
    return Metrics(loss, last)


def solver(key, hparams):
    """A noisy descent that draws from the step key and from the key in its state."""
    target = jr.uniform(key, (hparams.size,))

    def init(key):
        return State(2 * jnp.ones(hparams.size), key)

    def step(key, state):
        assert jnp.issubdtype(state.key.dtype, jax.dtypes.prng_key)
        own = jr.fold_in(state.key, 1)
        drift = jnp.sum(jr.key_data(own).astype(target.dtype)) / 2.0**33
        noise = jr.uniform(key, target.shape, minval=-1.0) + drift
        x = state.x - hparams.rate * (jnp.sin(3 * (state.x - target)) + 0.1 * noise)
        return State(x, own), Info(jnp.sum((state.x - target) ** 2))

    return Solver(init, step)


def num_steps(hparams):
    """Length of the long toy, from a static field."""
    return hparams.num_steps


NUM_SEEN = 8
RATES = (0.1, 0.2, 0.3, 0.4, 0.5)


def closed(**fields: Any) -> Experiment:
    """Five cells, two seeds; `fields` are those of HParams."""
    hparams = HParams(**fields)
    return Experiment(run=run, hparams=hparams, axes={"rate": RATES}, num_seeds=2)


def long(**fields: Any) -> Experiment:
    """The same as a long run that is checkpointed after every segment."""
    return Experiment(
        solver=solver,
        num_steps=num_steps,
        hparams=HParams(**fields),
        axes={"rate": RATES},
        num_seeds=2,
        checkpoint_seconds=0,
    )


def slow(kind: str) -> Experiment:
    """One or two seconds of work in twelve chunks of two cells."""
    fields = {"size": 4096, "num_steps": 2000}
    toy = closed(**fields) if kind == "closed" else long(num_steps=4000)
    return toy.replace(axes={"rate": np.linspace(0.01, 0.3, 24)})


def sweep_slowly(kind: str, directory: str, **hooks: Any) -> None:
    """What the processes do that are killed."""
    from jaxlr.lab import chunks, sweep

    chunks.SEGMENT_SECONDS = 0.02
    print("ready", flush=True)
    sweep(slow(kind), directory=directory, resume=True, chunk=2, **hooks)
    print("done", flush=True)


def sweep_when_seen(kind: str, directory: str) -> None:
    """The same; the first hooks say `at<n>`, and go on once `go<n>` is there."""
    numbers = itertools.count()

    def wait(*_):
        if (number := next(numbers)) < NUM_SEEN:
            Path(f"{directory}-at{number}").touch()
            while not Path(f"{directory}-go{number}").exists():
                time.sleep(0.005)

    hook = {"closed": "on_chunk", "long": "on_segment"}[kind]
    sweep_slowly(kind, directory, **{hook: wait})


def grow_slowly(kind: str, directory: str) -> None:
    """The same, into a run of some of the cells with two seeds."""
    from jaxlr.lab import chunks, sweep

    chunks.SEGMENT_SECONDS = 0.02
    sweep(slow(kind), directory=directory, resume="grow", num_seeds=3)


def start(code: str, **env: str) -> subprocess.Popen:
    """Run code in another process, `toys` being this module."""
    return subprocess.Popen(
        [sys.executable, "-c", f"from tests.lab import _toys as toys\n{code}"],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"} | env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen) -> str:
    """What a process printed, once it has ended well."""
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    return out


def is_complete(directory: Path) -> bool:
    """Whether a run there says that it is."""
    from jaxlr.lab import store

    manifest = directory / store.MANIFEST
    return manifest.exists() and store.read_manifest(directory)["is_complete"]


def has_progressed(kind: str, directory: Path, is_running) -> bool:
    """Waits for a file that is not there yet; False if the run ends without one."""
    folder = directory / ("chunks" if kind == "closed" else "segments")
    before = {p.stat().st_ino for p in folder.glob("*.npz")}
    until = time.perf_counter() + 60
    while time.perf_counter() < until and is_running():
        for path in folder.glob("*.npz"):
            try:
                if path.stat().st_ino not in before:
                    return True
            except FileNotFoundError:  # a checkpoint, just removed
                continue
        time.sleep(0.005)
    return False


def assert_equal(found, wanted) -> None:
    """Two datasets hold the same bits; provenance aside."""
    assert set(found.variables) == set(wanted.variables)
    for name in wanted.variables:
        one, two = found[name], wanted[name]
        assert one.dims == two.dims, name
        assert one.dtype == two.dtype, name
        assert one.values.tobytes() == two.values.tobytes(), name
