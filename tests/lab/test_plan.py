"""The plan says what the sweep then does."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlr import lab
from jaxlr.core import Experiment
from jaxlr.lab import planning


class HParams(eqx.Module):
    """One cell."""

    eta: float = 0.1
    width: int = eqx.field(static=True, default=3)


def run(key, hparams):
    return {"loss": jnp.ones(hparams.width) * hparams.eta}


EXPERIMENT = Experiment(run=run, hparams=HParams(), num_seeds=2, name="toy")


def test_cells_groups_and_chunks():
    axes = {"eta": np.linspace(0.1, 1.0, 10), "width": [2, 3, 4]}
    plan = lab.plan(EXPERIMENT, axes, chunk=4)
    assert plan.num_cells == 30
    assert [g.static for g in plan.groups] == [{"width": w} for w in (2, 3, 4)]
    # Ten cells in chunks of at most four: four, four and two.
    cut = [(g.num_cells, g.width, g.num_chunks) for g in plan.groups]
    assert cut == [(10, 4, 3)] * 3
    assert plan.num_chunks == 9
    text = str(plan)
    for piece in ("toy", "30 (10 eta x 3 width)", "2 seeds", "3 to compile", "9 of 4"):
        assert piece in text


def test_chunks_are_evened_out():
    plan = lab.plan(EXPERIMENT, {"eta": np.linspace(0.1, 1.0, 9)}, chunk=8)
    assert [(g.width, g.num_chunks) for g in plan.groups] == [(5, 2)]


def test_the_result_size_is_what_the_sweep_returns():
    axes = {"eta": [0.1, 0.2], "width": [2, 3]}
    results = lab.sweep(EXPERIMENT, axes)
    assert lab.plan(EXPERIMENT, axes).result_bytes == results.loss.nbytes


def test_long_groups_are_cut_on_a_cpu(monkeypatch):
    axes = {"eta": np.linspace(0.1, 1.0, 256)}
    assert lab.plan(EXPERIMENT, axes).num_chunks == 1
    monkeypatch.setattr(planning, "BYTES_PER_SECOND", 1e-3)
    assert lab.plan(EXPERIMENT, axes).num_chunks == 256 // 32  # 64 lanes, 2 seeds


@pytest.mark.misuse
def test_misuse_is_the_sweeps():
    with pytest.raises(ValueError, match="'etta'"):
        lab.plan(EXPERIMENT, {"etta": [1.0]})


def test_a_chunk_function_is_the_largest_groups():
    axes = {"width": [3, 5], "eta": [0.1, 0.2, 0.3]}
    fn, arguments = lab.chunk_function(EXPERIMENT.replace(x64=True), axes, chunk=2)
    (out,) = jax.eval_shape(fn, *arguments)
    assert (out.shape, out.dtype) == ((2, 2, 5), jnp.float32)


ETAS = {"eta": [0.1, 0.2, 0.3, 0.4]}


def test_the_plan_of_a_run_that_goes_on_is_the_directorys(tmp_path):
    lab.sweep(EXPERIMENT, ETAS, directory=tmp_path / "run", chunk=1)
    for index in (1, 3):
        (tmp_path / f"run/chunks/g000-c{index:05d}.npz").unlink()
    kept = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    plan = lab.plan(EXPERIMENT, ETAS, directory=tmp_path / "run", resume=True)
    (group,) = plan.groups
    assert (group.width, group.num_chunks, group.num_done) == (1, 4, 2)
    assert "4 of 1 cells, on 1 cpu; 2 are done" in str(plan)
    assert kept == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    one = lab.plan(EXPERIMENT, ETAS, chunk=1).groups[0]
    assert group.bytes == one.bytes
    lab.sweep(EXPERIMENT, ETAS, directory=tmp_path / "run", resume=True)
    plan = lab.plan(EXPERIMENT, ETAS, directory=tmp_path / "run", resume=True)
    assert plan.num_done == plan.num_chunks == 4


def test_the_plan_of_a_new_run_leaves_no_directory(tmp_path):
    for resume in (False, True):
        plan = lab.plan(EXPERIMENT, ETAS, directory=tmp_path / "new", resume=resume)
        assert (plan.num_chunks, plan.num_done) == (1, 0)
        assert "done" not in str(plan)
    assert not list(tmp_path.iterdir())


@pytest.mark.misuse
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "already holds a run"),
        ({"resume": True, "seed": 1}, "seed: 0 -> 1"),
        ({"resume": True, "num_seeds": 3}, "num_seeds: 2 -> 3"),
        ({"resume": "force", "seed": 1}, "seed: 0 -> 1"),
        ({"directory": "other"}, "is no run directory"),
        ({"directory": None, "resume": True}, "`resume` needs the `directory`"),
        ({"resume": "yes"}, "Unknown `resume`"),
    ],
)
def test_the_plan_refuses_what_the_sweep_refuses(
    tmp_path, monkeypatch, arguments, message
):
    monkeypatch.chdir(tmp_path)
    lab.sweep(EXPERIMENT, ETAS, directory="run")
    (tmp_path / "other").mkdir()
    (tmp_path / "other/thesis.tex").touch()
    arguments = {"directory": "run"} | arguments
    for use in (lab.plan, lab.sweep):
        with pytest.raises((ValueError, lab.RunDirectoryError), match=message):
            use(EXPERIMENT, ETAS, **arguments)


def test_a_home_directory_is_written_as_a_tilde(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    lab.sweep(EXPERIMENT, ETAS, directory=tmp_path / "run")
    assert lab.plan(EXPERIMENT, ETAS, directory="~/run", resume=True).num_done == 1


def test_a_notebook_shows_the_summary():
    plan = lab.plan(EXPERIMENT, ETAS)
    assert repr(plan) == str(plan)
    assert "4 (4 eta), 2 seeds each" in repr(plan)
