"""What cannot be swept is named before anything runs."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxlr import lab
from jaxlr.core import Axis, Experiment, Uniform
from tests.lab.test_sweep import EXPERIMENT, HParams, run


@pytest.mark.misuse
@pytest.mark.parametrize(
    ("axes", "message"),
    [
        ({"etta": [0.1]}, "Unknown axis 'etta'; did you mean 'eta'.*width"),
        ({"width": [2.5, 3.0]}, "'width': the static field.*int.*2.5"),
        ({"width": [2.0]}, "'width': the static field.*int.*2.0"),
        ({"num": [0.5]}, "'num': the field.*int"),
        ({"num": [True]}, "'num': the field.*int"),
        ({"eta": ["fast"]}, "'eta': the field.*float.*'fast'"),
        ({"eta": [0.1, float("nan")]}, "'eta' has a NaN"),
        ({"kind": [1]}, "'kind': the static field.*str"),
        ({"eta": []}, "'eta' is empty"),
        ({"eta": 0.1}, "'eta' needs a sequence"),
        ({"kind": "plain"}, "'kind' needs a sequence"),
        ({"eta": np.ones((2, 2))}, "'eta' takes scalars"),
        ({"num": [2**31]}, "'num' is computed in int32, which cannot hold 2147483648"),
        ({"eta": [1e300]}, "'eta' is computed in float32, which cannot hold 1e.300"),
        ({"eta": [1e-60]}, "'eta' is computed in float32, which cannot hold 1e-60"),
        ({3: [0.1]}, "Unknown axis 3"),
        (["eta"], "`axes` must be a dict"),
        ("eta", "`axes` must be a dict"),
        (Axis("eta", [0.1]), "`axes` must be a dict"),
        ([Axis("eta", [0.1]), Axis("eta", [0.2])], "Two axes.*'eta'"),
        ({("eta", "num"): [(0.1, 1)], "eta": [0.2]}, "Two axes.*'eta'"),
        ({("eta", "num"): [(0.1,)]}, "2 entries"),
        ({("eta", "shift"): (Uniform(0.0, 1.0, 2), Uniform(0.0, 1.0, 3))}, "`num`"),
        ({("eta", "shift"): (Uniform(0.0, 1.0, 2),)}, "1 samplers"),
    ],
)
def test_bad_axes_are_named(axes, message):
    with pytest.raises(ValueError, match=message):
        lab.sweep(EXPERIMENT, axes)


@pytest.mark.misuse
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_seeds": 0}, "`num_seeds`"),
        ({"seed": -1}, "`seed`"),
        ({"seed": 2**32}, "`seed`"),
        ({"chunk": 0}, "`chunk`"),
        ({"backend": "pmapp"}, "did you mean 'pmap'"),
        ({"devices": []}, "`devices`"),
        ({"devices": "cpu"}, "`devices`"),
        ({"resume": True}, "`directory`"),
        ({"resume": "yes"}, "`resume`"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        lab.sweep(EXPERIMENT, {"eta": [0.1]}, **arguments)


@pytest.mark.misuse
def test_a_function_is_no_experiment():
    with pytest.raises(ValueError, match="`experiment`"):
        lab.sweep(run, {"eta": [0.1]})


@pytest.mark.misuse
@pytest.mark.parametrize(
    ("metrics", "message"),
    [
        (jnp.ones(3), "dict, NamedTuple or eqx.Module"),
        ((jnp.ones(3),), "dict, NamedTuple or eqx.Module"),
        ({}, "no metrics"),
        ({"name": "text"}, "'name' is no array"),
        ({"eta": jnp.ones(3)}, "called 'eta'"),
        ({"seed": jnp.ones(3)}, "called 'seed'"),
        ({"a": {"b": jnp.ones(3)}, "a_b": jnp.ones(3)}, "Two metrics"),
        ({"x": jnp.ones(3), "step_length": jnp.ones(3)}, "called 'step_length'"),
    ],
)
def test_bad_metrics_are_named(metrics, message):
    experiment = Experiment(run=lambda key, hparams: metrics, hparams=HParams())
    with pytest.raises(ValueError, match=message):
        lab.sweep(experiment, {"eta": [0.1]})


@pytest.mark.misuse
def test_wrong_dims_are_named():
    experiment = EXPERIMENT.replace(dims={"loss": ("a", "b")})
    with pytest.raises(ValueError, match=r"`dims`.*'loss'.*\(12,\)"):
        lab.sweep(experiment, {"eta": [0.1]})


@pytest.mark.misuse
@pytest.mark.parametrize(
    ("dims", "message"),
    [
        ({"loss": ("eta",)}, "'eta', which is an axis"),
        ({"loss": ("n",), "other": ("n",)}, "'n' has lengths 12 and 5"),
    ],
)
def test_labels_that_collide_are_named_before_anything_runs(dims, message):
    def two(key, hparams):
        return {"loss": jnp.ones(12) * hparams.eta, "other": jnp.ones(5)}

    experiment = Experiment(run=two, hparams=HParams(), dims=dims)
    with pytest.raises(ValueError, match=message):
        lab.plan(experiment, {"eta": [0.1]})
