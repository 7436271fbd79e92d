"""What the sweep engine costs, against programs written by hand: ratios in one run.

    python -m experiments.benchmarks.sweep_engine

Factorized gradient descent, n = 50, k = 5, 2000 steps, 256 cells: `lab.sweep` against
one hand-written `jit(vmap(run))`, and against a Python loop of jitted single runs. Each
pair is measured in turn (A B A B ...) and the median of the pairwise ratios is kept,
with the start-up times of the command line. Writes
`results/sweep_engine-<platform>.json` beside this file.
"""

from pathlib import Path
import subprocess
import sys

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np

from jaxlr import lab
from jaxlr.core import Experiment

from .timing import paired, provenance, write


N, RANK, WIDTH, NUM_STEPS, NUM_CELLS = 50, 3, 5, 2000, 256


class HParams(eqx.Module):
    """One cell."""

    alpha: float = 1.0
    """Initial scale [1]."""
    eta: float = 0.1
    """Step size [1/||M||]."""


def run(key, hparams):
    """Symmetric gradient descent on a fully observed matrix; the squared error."""
    truth_key, init_key = jr.split(key)
    basis, _ = jnp.linalg.qr(jr.normal(truth_key, (N, RANK)))
    truth = basis @ basis.T

    def step(x, _):
        error = x @ x.T - truth
        return x - hparams.eta * error @ x, jnp.sum(error**2)

    start = hparams.alpha * jr.normal(init_key, (N, WIDTH)) / N**0.5
    return {"squared_error": jax.lax.scan(step, start, length=NUM_STEPS)[1]}


EXPERIMENT_ = Experiment(run=run, hparams=HParams())
ALPHAS = np.geomspace(1e-3, 1.0, NUM_CELLS)


def count_compiles(function):
    """How many programs the call compiles."""
    events = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, duration_secs, **_: events.append(event)
    )
    function()
    jax.monitoring.clear_event_listeners()
    return events.count("/jax/core/compile/backend_compile_duration")


def start(*command):
    """Run a process to its end."""
    subprocess.run(command, check=True, capture_output=True)


def main():
    """Measure, print, and keep as JSON."""
    key = jr.fold_in(jr.key(0), 0)
    alphas = jnp.asarray(ALPHAS, jnp.float32)
    by_hand = jax.jit(jax.vmap(lambda a: run(key, HParams(alpha=a))))
    single = jax.jit(lambda a: run(key, HParams(alpha=a)))

    def engine():
        return lab.sweep(EXPERIMENT_, {"alpha": ALPHAS}).squared_error.values

    def hand_written():
        return np.asarray(by_hand(alphas)["squared_error"])

    def python_loop():
        return np.stack([np.asarray(single(a)["squared_error"]) for a in alphas])

    num_compiles = count_compiles(engine)
    np.testing.assert_allclose(engine()[:, 0], hand_written(), rtol=1e-3, atol=1e-9)

    python, jaxlr = sys.executable, str(Path(sys.executable).with_name("jaxlr"))
    imports = paired(
        lambda: start(python, "-c", "import jax, jaxlr"),
        lambda: start(python, "-c", "import jax"),
        9,
    )
    commands = paired(lambda: start(jaxlr, "--help"), lambda: start(jaxlr, "list"), 9)
    report = provenance() | {
        "size": {"n": N, "width": WIDTH, "steps": NUM_STEPS, "cells": NUM_CELLS},
        "against_jit_vmap": paired(engine, hand_written, 9),
        "against_python_loop": paired(engine, python_loop, 3),
        "compile_groups": 1,
        "compiles_with_the_fit": num_compiles,
        "import_jax_and_jaxlr_against_import_jax": imports,
        "help_against_list": commands,
    }
    write("sweep_engine", report)


if __name__ == "__main__":
    main()
