"""The metrics of a lane: what they must be, and what is known of them beforehand."""

import dataclasses
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import PyTree
import numpy as np

from jaxlr.core.types import Experiment
from jaxlr.lab import docs, fields, grid


@dataclasses.dataclass(frozen=True)
class Metric:
    """What is known of one metric before anything has run.

    Attributes:
        dims: Names of its own dimensions (the axes and the seed come in front).
        shape: Its own shape.
        dtype: Name of its dtype; `key<impl>` for typed keys.
        long_name: Its one-line doc.
        units: Its units.
    """

    dims: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: str
    long_name: str = ""
    units: str = ""


def storage_dtype(dtype: str) -> np.dtype:
    """The NumPy dtype of a metric on the host; typed keys travel as their words."""
    return np.dtype(np.uint32) if dtype.startswith("key<") else jnp.dtype(dtype)


def is_key(x: Any) -> bool:
    """Whether it is an array of typed keys."""
    return jnp.issubdtype(x.dtype, jax.dtypes.prng_key)


def raw(x: jax.Array) -> jax.Array:
    """Typed keys as their words; everything else as it is."""
    return jr.key_data(x) if is_key(x) else x


def arrays(metrics: PyTree) -> PyTree:
    """The metrics, every leaf an array.

    Raises:
        ValueError: If they are no dict, NamedTuple or Module of arrays.
    """
    if isinstance(metrics, jax.Array | np.ndarray | float | int | list) or (
        isinstance(metrics, tuple) and not hasattr(metrics, "_fields")
    ):
        raise ValueError(
            "Metrics must be a dict, NamedTuple or eqx.Module of arrays, got "
            f"{type(metrics).__name__}."
        )
    for name, leaf in _named(metrics).items():
        if not eqx.is_array_like(leaf):
            raise ValueError(f"Metric {name!r} is no array: {leaf!r}.")
    return jax.tree.map(jnp.asarray, metrics)


def _named(metrics: PyTree) -> dict[str, Any]:
    """Leaves by name, in order."""
    named = {}
    for path, leaf in jax.tree_util.tree_flatten_with_path(metrics)[0]:
        name = jax.tree_util.keystr(path, simple=True, separator="_")
        if name in named:
            raise ValueError(f"Two metrics are called {name!r}; rename one.")
        named[name] = leaf
    if not named:
        raise ValueError(f"There are no metrics: got {metrics!r}.")
    return named


def described(experiment: Experiment, base: Any, shapes: PyTree) -> dict[str, Metric]:
    """The metrics by name, in order.

    Args:
        experiment: The experiment, which may name their dimensions.
        base: Its hyper-parameters, whose names are taken.
        shapes: What `run` returns, or the curves of a long run: shapes and dtypes.

    Raises:
        ValueError: If a name is taken, or `Experiment.dims` does not fit a shape.
    """
    field_docs = docs.field_docs(type(shapes))
    named = _named(shapes)
    dims = metric_dims(experiment, {name: x.shape for name, x in named.items()})
    metrics = {}
    for name, x in named.items():
        lengths = {f"{dim}_length" for own in dims.values() for dim in own}
        if name in {*grid.RESERVED, *fields.of(base), *lengths}.union(*dims.values()):
            raise ValueError(
                f"A metric may not be called {name!r}: that is a hyper-parameter, a "
                "dimension or reserved."
            )
        doc = field_docs.get(name, docs.FieldDoc("", ""))
        words = jax.eval_shape(raw, x).shape[len(x.shape) :]
        metrics[name] = Metric(
            dims=dims[name] + ("word",) * len(words),
            shape=(*x.shape, *words),
            dtype=str(x.dtype),
            long_name=doc.text,
            units=doc.units,
        )
    return metrics


def metric_dims(
    experiment: Experiment, shapes: dict[str, tuple[int, ...]]
) -> dict[str, tuple[str, ...]]:
    """Names for every metric's own dimensions.

    `Experiment.dims` decides. Without it, the length that most one-dimensional metrics
    share (the longest, in a tie) is `step`, as the first dimension of any metric; in a
    long run every first dimension is. The rest are `<metric>_dim_<i>`.

    Raises:
        ValueError: If `Experiment.dims` names another number of dimensions.
    """
    lengths = [
        s[0] for n, s in shapes.items() if len(s) == 1 and n not in experiment.dims
    ]
    steps = max(lengths, key=lambda n: (lengths.count(n), n), default=None)
    names = {}
    for name, shape in shapes.items():
        default = tuple(f"{name}_dim_{i}" for i in range(len(shape)))
        if shape and (experiment.solver or shape[0] == steps):
            default = ("step", *default[1:])
        names[name] = tuple(experiment.dims.get(name, default))
        if len(names[name]) != len(shape):
            raise ValueError(
                f"`dims` names {names[name]} for the metric {name!r} of shape {shape}."
            )
    return names
