"""Perturbations across four devices, in a process that sees four."""

import functools as ft

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
import numpy as np
import pytest

from jaxlr.core.compat import line_mesh
from jaxlr.sharpness import sam_value_and_grad
from tests.devices import Forced
from tests.sharpness import _models as models


FOUR = Forced(4)


@pytest.mark.slow
@FOUR.starter
def test_on_four_devices():
    FOUR.rerun(__file__, most_skipped=2)  # a newer jax may have no pmap


def spread(kind, transform, params, x, y):
    """Value and gradient of parameters that all devices share, rows spread."""
    if kind in ("shard_map", "unchecked"):
        mapped = jax.shard_map(
            transform,
            mesh=line_mesh(jax.devices(), "d"),
            in_specs=(P(), P("d"), P("d")),
            out_specs=P(),
            check_vma=kind == "shard_map",
        )
        return jax.jit(mapped)(params, x, y)
    parts = [z.reshape(4, -1, *z.shape[1:]) for z in (x, y)]
    mapper = {"pmap": getattr(jax, "pmap", None), "vmap": jax.vmap}[kind]
    if mapper is None:
        pytest.skip("this jax has no pmap")
    out = mapper(transform, axis_name="d", in_axes=(None, 0, 0))(params, *parts)
    first = jax.tree.map(lambda z: z[0], out)
    for a, b in zip(jax.tree.leaves(out), jax.tree.leaves(first), strict=True):
        np.testing.assert_allclose(a, np.broadcast_to(b, a.shape), rtol=1e-6)
    return first


def assert_close(got, want):
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5 * np.abs(b).max())


def arguments():
    return models.mlp(), *models.data(48)


make = ft.partial(sam_value_and_grad, models.mlp_loss, 0.5)
KINDS = pytest.mark.parametrize("kind", ["shard_map", "unchecked", "pmap"])


@FOUR.needed
@KINDS
def test_a_synchronized_perturbation_is_that_of_the_full_batch(kind):
    assert jax.device_count() == 4
    transform = make(perturb_axis_name="d", reduce_axis_name="d")
    assert_close(spread(kind, transform, *arguments()), jax.jit(make())(*arguments()))


@FOUR.needed
@pytest.mark.parametrize(
    ("kind", "num_shards", "backend"),
    [
        ("shard_map", 1, "scan"),
        ("shard_map", 2, "scan"),
        ("shard_map", 2, "vmap"),
        ("shard_map", 2, "ghost"),
        ("unchecked", 2, "ghost"),
        ("pmap", 1, "scan"),
        ("pmap", 2, "ghost"),
        ("vmap", 2, "scan"),
    ],
)
def test_devices_are_shards(kind, num_shards, backend):
    transform = make(reduce_axis_name="d", num_shards=num_shards, backend=backend)
    want = jax.jit(make(num_shards=4 * num_shards))(*arguments())
    assert_close(spread(kind, transform, *arguments()), want)


@FOUR.needed
@pytest.mark.parametrize("kind", ["pmap", "shard_map"])
def test_a_synchronized_perturbation_in_shards(kind):
    """Shard i of every device together, twelve rows each, have one perturbation."""
    params, x, y = arguments()
    transform = make(perturb_axis_name="d", reduce_axis_name=("d",), num_shards=2)
    mixed = [z.reshape(4, 2, 6, -1).swapaxes(0, 1).reshape(z.shape) for z in (x, y)]
    want = jax.jit(make(num_shards=2))(params, *mixed)
    assert_close(spread(kind, transform, params, x, y), want)


@FOUR.needed
def test_the_trap():
    """Without the cast the gradient is already summed: four times full-batch SAM."""
    params, x, y = arguments()
    full = jax.jit(make())(params, x, y)[1]
    shards = jax.jit(make(num_shards=4))(params, x, y)[1]
    naive = spread("shard_map", lambda *args: make()(*args)[1], params, x, y)
    assert_close(naive, jax.tree.map(lambda g: 4 * g, full))
    ours = spread("shard_map", make(reduce_axis_name="d"), params, x, y)[1]
    assert_close(ours, shards)
    gap = max(
        float(jnp.abs(a - b).max() / jnp.abs(b).max())
        for a, b in zip(jax.tree.leaves(shards), jax.tree.leaves(full), strict=True)
    )
    assert gap > 0.01  # the two meanings differ


@FOUR.needed
def test_the_first_average_alone_leaves_gradients_on_devices():
    params, x, y = arguments()
    out = jax.jit(
        jax.shard_map(
            lambda *args: jax.tree.map(
                lambda g: g[None], make(perturb_axis_name="d")(*args)[1]
            ),
            mesh=line_mesh(jax.devices(), "d"),
            in_specs=(P(), P("d"), P("d")),
            out_specs=P("d"),
        )
    )(params, x, y)
    want = jax.jit(make())(params, x, y)[1]
    assert np.abs(out[0][0] - out[0][0][0]).max() > 1e-3
    assert_close(jax.tree.map(lambda g: g.mean(0), out), want)


@FOUR.needed
def test_messages_of_a_step():
    """The value's, and those of one gradient or of two: six arrays each."""
    for sync, num in ((None, 7), ("d", 13)):
        mapped = jax.shard_map(
            make(perturb_axis_name=sync, reduce_axis_name="d"),
            mesh=line_mesh(jax.devices(), "d"),
            in_specs=(P(), P("d"), P("d")),
            out_specs=P(),
        )
        text = jax.jit(mapped).lower(*arguments()).as_text()
        assert text.count("stablehlo.all_reduce") == num


@FOUR.needed
@pytest.mark.misuse
def test_ghost_names_the_axis_that_it_needs():
    with pytest.raises(ValueError, match=r"`reduce_axis_name` must hold.*\['d'\]"):
        spread("shard_map", make(num_shards=2, backend="ghost"), *arguments())
