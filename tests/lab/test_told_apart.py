"""Sweeps, resumes and replays take a computation for what it is: no more, no less."""

import hashlib
import importlib
import json
import logging
import re
import subprocess
import sys
import threading
import types

import jax
from jax.experimental import io_callback
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlr.lab import (
    compiled,
    find,
    fingerprint,
    modules,
    replay,
    RunDirectoryError,
    store,
    sweep,
)
from jaxlr.lab.compiled import Compiled
from jaxlr.lab.request import Request
from tests.lab import _toys as toys


RATES = (0.25, 0.5)
SCALAR = jax.ShapeDtypeStruct((), np.float32)


@pytest.fixture
def fresh(monkeypatch):
    """No program is kept yet; the list of those that are compiled."""
    monkeypatch.setattr(compiled, "_KEPT", type(compiled._KEPT)())
    made, compile_program = [], compiled.program.compile_program

    def counted(*args, **settings):
        made.append(settings)
        return compile_program(*args, **settings)

    monkeypatch.setattr(compiled.program, "compile_program", counted)
    return made


def toy(run, **settings):
    hparams, axes = toys.HParams(), {"rate": RATES}
    experiment = toys.closed().replace(run=run, hparams=hparams, axes=axes, num_seeds=1)
    return experiment.replace(**settings)


def through(callback, make):
    """An experiment whose metric the host computes."""

    def run(key, hparams):
        x = jnp.float32(hparams.rate)
        settings = {"vmap_method": "sequential"} if make is jax.pure_callback else {}
        return {"x": make(callback, SCALAR, x, **settings)}

    return toy(run)


def by_rule(factor):
    """An experiment whose `vmap` is what its rule makes it."""

    @jax.custom_batching.custom_vmap
    def scaled(x):
        return x

    @scaled.def_vmap
    def rule(axis_size, is_batched, x):
        return factor * x, is_batched[0]

    return toy(lambda key, hparams: {"x": scaled(hparams.rate)})


def by_host(make):
    return lambda factor: through(lambda x: np.float32(factor * x), make)


def by_table(factor):
    """The factor is what a list holds when the host looks."""
    table = [factor]
    return through(lambda x: np.float32(table[0] * x), jax.pure_callback)


MAKE = {
    "pure_callback": by_host(jax.pure_callback),
    "io_callback": by_host(io_callback),
    "custom_vmap": by_rule,
    "table": by_table,
}


@pytest.mark.parametrize("kind", MAKE)
def test_what_a_trace_does_not_show_is_told_apart(fresh, kind):
    for factor in (1, 100, 1):
        found = sweep(MAKE[kind](factor)).x.values.ravel()
        np.testing.assert_array_equal(found, np.float32(factor) * np.float32(RATES))
    tables = kind == "table"  # each of them is one that somebody else may change
    assert len({tuple(made.items()) for made in fresh}) == 1
    assert len(fresh) == (3 if tables else 2)


def test_a_table_that_has_changed_since_is_not_that_of_another(fresh):
    """Two lists were equal when the first program was kept; the first is not now."""
    tables = [[1.0], [1.0]]

    def reading(table):
        return through(lambda x: np.float32(table[0] * x), jax.pure_callback)

    sweep(reading(tables[0]))
    tables[0][0] = 7.0
    found = sweep(reading(tables[1])).x.values.ravel()
    np.testing.assert_array_equal(found, np.float32(RATES))


def test_every_sink_gets_its_own(fresh):
    def telling(sink):
        def run(key, hparams):
            jax.debug.callback(lambda x: sink.append(float(x)), hparams.rate)
            return {"x": hparams.rate * 2}

        return toy(run)

    sinks = [], []
    for sink in sinks:
        sweep(telling(sink))
        jax.effects_barrier()
        assert sorted(sink) == list(RATES)
    num_compiled = len(fresh)
    sweep(telling(sinks[0]))  # which is not empty any more
    jax.effects_barrier()
    assert sorted(sinks[0]) == sorted(2 * RATES)
    assert sorted(sinks[1]) == list(RATES)
    assert len(fresh) == num_compiled


def test_fields_of_other_names_are_other_fields(fresh):
    def run(name):
        return lambda key, hparams: {"x": 2 * getattr(hparams, name)}

    class Other(toys.HParams):
        pace: float = 0.0
        """Another field."""

    sweep(toy(run("rate")))
    other = toy(run("pace"), hparams=Other(), axes={"pace": RATES})
    np.testing.assert_array_equal(sweep(other).x.values[:, 0], 2 * np.float32(RATES))


def test_jaxs_own_settings_are_part_of_a_kept_program(fresh):
    """A rule of `vmap` is traced late, under what is set then."""

    @jax.custom_batching.custom_vmap
    def scaled(x):
        return x

    @scaled.def_vmap
    def rule(axis_size, is_batched, x):
        is_set = jax.config.jax_default_matmul_precision == "float32"  # pyright: ignore
        return (10 if is_set else 1) * x, is_batched[0]

    experiment = toy(lambda key, hparams: {"x": scaled(hparams.rate)})
    for precision, factor in ((None, 1), ("float32", 10), (None, 1)):
        with jax.default_matmul_precision(precision):
            digest = Compiled(Request.make(experiment)).lane(0).fingerprint.digest
            found = sweep(experiment).x.values.ravel()
        np.testing.assert_array_equal(found, factor * np.float32(RATES))
        assert digest == Compiled(Request.make(experiment)).lane(0).fingerprint.digest


@pytest.mark.parametrize("kind", MAKE)
def test_resume_and_replay_see_what_a_trace_does_not_show(tmp_path, kind):
    sweep(MAKE[kind](1), directory=tmp_path, chunk=1)
    (tmp_path / "chunks/g000-c00001.npz").unlink()
    changed = r"(?m)^  computation.all cells: 'v2:\w+' -> 'v2:\w+'$"
    with pytest.raises(RunDirectoryError, match=changed):
        sweep(MAKE[kind](100), directory=tmp_path, resume=True)
    found = sweep(MAKE[kind](1), directory=tmp_path, resume=True)
    np.testing.assert_array_equal(found.x.values.ravel(), np.float32(RATES))
    again = replay(tmp_path, {"rate": 0.5}, 0, experiment=MAKE[kind](1))
    assert again.attrs["replay"].startswith("Equal bit by bit (expected bit by bit")
    again = replay(tmp_path, {"rate": 0.5}, 0, experiment=MAKE[kind](100))
    assert "computation changed" in again.attrs["replay"]
    assert again.attrs["is_equal"] == 0


def test_what_no_other_process_has_is_resumed_in_this_one_alone(tmp_path, monkeypatch):
    lock = threading.Lock()

    def locked(x):
        with lock:
            return x

    experiment = through(locked, jax.pure_callback)
    sweep(experiment, directory=tmp_path, chunk=1)
    (tmp_path / "chunks/g000-c00001.npz").unlink()
    sweep(experiment, directory=tmp_path, resume=True)
    (tmp_path / "chunks/g000-c00001.npz").unlink()
    monkeypatch.setattr(fingerprint, "_PROCESS", "another")
    with pytest.raises(RunDirectoryError, match=r"of process another alone.* lock\)"):
        sweep(experiment, directory=tmp_path, resume=True)
    sweep(experiment, directory=tmp_path, resume="force")


def _text_digest(lane, use_color):
    """What format 1 recorded: of the text, as a terminal, or a pipe, would have it."""
    closed, parts = lane.is_of_text.args
    shown = closed.jaxpr.pretty_print(use_color=use_color)
    sha = hashlib.sha256(re.sub(r" at 0x[0-9a-f]+", "", f"{shown} {parts}").encode())
    for const in closed.consts:
        array = np.asarray(const)
        sha.update(f"{array.dtype} {array.shape}".encode())
        sha.update(array.tobytes())
    return sha.hexdigest()[:16]


@pytest.mark.parametrize("use_color", [False, True])
def test_digests_of_format_1_are_understood(tmp_path, use_color):
    table = np.arange(3, dtype=np.float32)

    def experiment(shift):
        return toy(lambda key, hparams: {"x": hparams.rate * (table + shift)})

    wanted = sweep(experiment(table), directory=tmp_path, chunk=1)
    path = tmp_path / "manifest.json"
    manifest = json.loads(path.read_text())
    lane = Compiled(Request.make(experiment(table))).lane(0)
    manifest["config"]["computation"] = {"all cells": _text_digest(lane, use_color)}
    store.write_json(path, manifest)
    (tmp_path / "chunks/g000-c00001.npz").unlink()
    with pytest.raises(RunDirectoryError, match=r"(?m)^  computation.all cells: "):
        sweep(experiment(table + 1), directory=tmp_path, resume=True)
    found = sweep(experiment(table), directory=tmp_path, resume=True)
    toys.assert_equal(found, wanted)
    again = replay(tmp_path, {"rate": 0.5}, 0, experiment=experiment(table))
    assert again.attrs["replay"].startswith("Equal bit by bit (expected bit by bit")


FILE = """
import dataclasses
from typing import Any, NamedTuple
import jax
import numpy as np
from jaxlr.core import Claim, Experiment

FACTOR = 2.0

@dataclasses.dataclass(frozen=True)
class HParams:
    x: float = 1.0

class Metrics(NamedTuple):
    y: Any
    '''What comes out.'''

def twice(x):
    return np.float32(FACTOR * x)

def run(key, hparams):
    shape = jax.ShapeDtypeStruct((), np.float32)
    x = np.float32(1) * hparams.x
    return Metrics(jax.pure_callback(twice, shape, x, vmap_method="sequential"))

def claims(results):
    return [Claim("y is twice x", results.y / results.x, 1, 1)]

AXES = {"x": (1.0, 2.0)}
EXPERIMENT = Experiment(run=run, hparams=HParams(), axes=AXES, claims=claims)
"""


@pytest.mark.parametrize(
    "edit",
    [
        ("\nFACTOR", "\n\n# Two is right.\nFACTOR"),
        ("1, 1)]", "2, 2)]"),
        ("What comes out.", "The result."),
        ("def claims", "def figure(results):\n    return None\n\ndef claims"),
        ("    return np.float32(FACTOR * x)", "    return np.float32(\n FACTOR * x)"),
    ],
)
def test_an_edit_that_computes_the_same_is_noted_and_no_more(tmp_path, caplog, edit):
    file, root = tmp_path / "mine.py", tmp_path / "run"
    file.write_text(FILE)
    wanted = sweep(find.find(file), directory=root, chunk=1)
    (root / "chunks/g000-c00001.npz").unlink()
    assert FILE.replace(*edit) != FILE
    file.write_text(FILE.replace(*edit))
    with caplog.at_level(logging.WARNING):
        found = sweep(find.find(file), directory=root, resume=True)
    toys.assert_equal(found, wanted)
    sentence = "The source has been edited"
    assert caplog.text.count(sentence) == 1
    assert sentence in found.attrs["history"]
    assert "forced" not in found.attrs
    manifest = json.loads((root / "manifest.json").read_text())
    assert len(manifest["history"]) == 1
    caplog.clear()  # it is noted once
    (root / "chunks/g000-c00001.npz").unlink()
    sweep(find.find(file), directory=root, resume=True)
    assert sentence not in caplog.text
    file.write_text(FILE)
    again = replay(root, {"x": 2.0}, 0, experiment=find.find(file))
    assert again.attrs["replay"].startswith("Equal bit by bit (expected bit by bit")


@pytest.mark.parametrize(
    "edit", [("FACTOR = 2.0", "FACTOR = 3.0"), ("* x)", "* x + 1)")]
)
def test_an_edit_of_what_the_host_calls_is_refused(tmp_path, edit):
    file, root = tmp_path / "mine.py", tmp_path / "run"
    file.write_text(FILE)
    sweep(find.find(file), directory=root, chunk=1)
    (root / "chunks/g000-c00001.npz").unlink()
    file.write_text(FILE.replace(*edit))
    with pytest.raises(RunDirectoryError, match=r"(?m)^  computation.all cells: "):
        sweep(find.find(file), directory=root, resume=True)


@pytest.mark.parametrize("every", [1, 4])
def test_a_thinned_curve_diverges_at_a_step_and_not_at_a_row(every):
    def run(key, hparams):
        steps = jnp.arange(0, 40, every)
        return {"loss": jnp.where(steps >= 12, jnp.inf, hparams.rate * steps)}

    found = sweep(toy(run, every=every))
    assert found.diverged_at.values.ravel().tolist() == [12, 12]
    assert found.step.values[np.isinf(found.loss.values[0, 0])].min() == 12


FIRST = {name.partition(".")[0]: name for name in reversed(find.names())}.values()


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(
            name, marks=pytest.mark.slow if name in FIRST else pytest.mark.full
        )
        for name in find.names()
    ],
)
def test_shipped_experiments_have_digests_of_every_process(name):
    """Traced twice they are one computation, of which nothing is this process's own."""
    experiment = find.find(name)
    experiment = experiment.replace(**experiment.smoke)
    one, two = (
        Compiled(Request.make(experiment)).lane(0).fingerprint for _ in range(2)
    )
    assert one.digest == two.digest
    assert re.fullmatch(r"v2:[0-9a-f]{16}", one.digest)
    assert not one.held


SCRIPT = """
import dataclasses, functools as ft, sys
import jax
from typing import Any
from jaxlr import lab
from jaxlr.core import Experiment

def act(x):
    return 2 * x

class Power:
    def __call__(self, x):
        return x**2

@dataclasses.dataclass(frozen=True)
class HParams:
    x: float = 1.0
    act: Any = act
    partial: Any = ft.partial(jax.nn.leaky_relu, negative_slope=0.1)
    power: Any = Power()

def run(key, hparams):
    return {"y": hparams.power(hparams.partial(hparams.act(hparams.x)))}

EXPERIMENT = Experiment(run=run, hparams=HParams(), axes={"x": (1.0, 2.0)})

if __name__ == "__main__":
    lab.sweep(EXPERIMENT, directory="run", chunk=1, resume=len(sys.argv) > 1)
"""


@pytest.mark.slow
def test_a_script_goes_on_wherever_it_is_imported(tmp_path, monkeypatch):
    (tmp_path / "its_script.py").write_text(SCRIPT)
    monkeypatch.setenv("PYTHONPATH", str(toys.ROOT))
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")

    def call(*words):
        command = [sys.executable, *words]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr

    script, module = ("its_script.py", "on"), ("-m", "its_script", "on")
    sweep = "s.lab.sweep(s.EXPERIMENT, directory='run', chunk=1, resume=True)"
    call("its_script.py")
    for words in (("-c", f"import its_script as s; {sweep}"), script, module):
        (tmp_path / "run/chunks/g000-c00001.npz").unlink()
        call(*words)
    replay = "s.lab.replay('run', {'x': 2.0}, 0, experiment=s.EXPERIMENT)"
    equal = "assert found.attrs['is_equal'] == 1"
    same = "assert 'changed' not in found.attrs['replay']"
    call("-c", f"import its_script as s; found = {replay}; {equal}; {same}")


def test_a_notebook_does_not_know_a_modules_name():
    for one, other in (("run", "mine.run"), ("__main__.run", "a.mine.run")):
        assert modules.is_same(one, other)
        assert modules.is_same(other, one)
    for one, other in (("run", "mine.rerun"), ("a.run", "b.run"), ("", "run")):
        assert not modules.is_same(one, other)


def test_kept_programs_and_resumed_runs_see_what_a_function_imports(
    fresh, tmp_path, monkeypatch
):
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.syspath_prepend(tmp_path)
    for factor in (2, 3):
        text = "import numpy as np\n\ndef f(x):\n    return np.float32(FACTOR * x)\n"
        (tmp_path / "silent.py").write_text(text.replace("FACTOR", str(factor)))
        importlib.invalidate_caches()
        monkeypatch.delitem(sys.modules, "silent", raising=False)

        def callback(x):
            import silent  # pyright: ignore

            return silent.f(x)

        experiment = through(callback, jax.pure_callback)
        found = sweep(experiment).x.values.ravel()
        np.testing.assert_array_equal(found, np.float32(factor) * np.float32(RATES))
        if factor == 2:
            sweep(experiment, directory=tmp_path / "run", chunk=1)
            (tmp_path / "run/chunks/g000-c00001.npz").unlink()
        else:
            with pytest.raises(RunDirectoryError, match=r"computation\.all cells: "):
                sweep(experiment, directory=tmp_path / "run", resume=True)


def test_modules_that_are_passed_on_do_not_share_a_program(fresh):
    def reading(factor):
        module = types.ModuleType("mine")
        module.f = lambda x: np.float32(factor * x)  # pyright: ignore
        return through(lambda x: getattr(module, "f")(x), jax.pure_callback)  # noqa: B009

    for factor in (2, 3):
        found = sweep(reading(factor)).x.values.ravel()
        np.testing.assert_array_equal(found, np.float32(factor) * np.float32(RATES))
