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
