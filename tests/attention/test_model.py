"""Layers against their projections and the attention itself."""

import inspect
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from jaxlr import attention


@pytest.mark.parametrize("num_modes", [1, 2, 3])
def test_attention_of_projections(num_modes):
    layer = attention.TensorMultiheadAttention(
        jr.key(0), 12, 4, num_modes=num_modes, num_kv_heads=2
    )
    x = jr.normal(jr.key(1), (5, 12))
    q = (x @ layer.query.weight.T).reshape(1, 5, 4, 3)
    keys, values = (
        [(x @ part.weight.T).reshape(1, 5, 2, 3) for part in parts]
        for parts in (layer.keys, layer.values)
    )
    options = {"is_causal": True, "implementation": "reference"}
    want = attention.tensor_attention(q, keys, values, **options)
    want = want.reshape(5, 12) @ layer.output.weight.T
    np.testing.assert_allclose(layer(x, is_causal=True), want, atol=1e-5)


def test_one_mode_is_equinox_attention():
    ours = attention.TensorMultiheadAttention(jr.key(0), 8, 2, num_modes=1)
    theirs = eqx.nn.MultiheadAttention(2, 8, key=jr.key(1))
    theirs = eqx.tree_at(
        lambda m: (m.query_proj, m.key_proj, m.value_proj, m.output_proj),
        theirs,
        (ours.query, ours.keys[0], ours.values[0], ours.output),
    )
    x = jr.normal(jr.key(2), (6, 8))
    np.testing.assert_allclose(ours(x), theirs(x, x, x), atol=1e-5)


def test_a_block_trains_over_a_batch():
    block = attention.TransformerBlock(jr.key(0), 8, 2, head_dim=3, num_hidden=16)
    x = jr.normal(jr.key(1), (3, 5, 8))

    @eqx.filter_jit
    @eqx.filter_value_and_grad
    def loss(block):
        return jnp.mean(jax.vmap(lambda x: block(x, is_causal=True))(x)[..., 0] ** 2)

    before, grads = loss(block)
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(grads))
    after, _ = loss(eqx.apply_updates(block, jax.tree.map(lambda g: -0.05 * g, grads)))
    assert after < before
    late = block(x[0].at[4].add(1.0), is_causal=True) - block(x[0], is_causal=True)
    np.testing.assert_allclose(late[:4], 0, atol=1e-6)
    assert np.abs(late[4]).max() > 0.1


@pytest.mark.misuse
@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"num_heads": 5}, "`num_heads` must divide `num_features`"),
        ({"num_heads": 0}, "`num_heads` must be an integer >= 1, got 0"),
        ({"num_heads": 2, "num_kv_heads": 3}, "`num_kv_heads` must divide"),
        ({"num_heads": 2, "num_modes": 0}, "`num_modes` must be an integer >= 1"),
        ({"num_heads": 2, "num_hidden": 0}, "`num_hidden` must be an integer >= 1"),
        ({"num_heads": 2, "head_dim": 4.0}, "`head_dim` must be an integer >= 1"),
        ({"num_heads": True}, "`num_heads` must be an integer >= 1, got True"),
    ],
)
def test_misuse(options, sentence):
    with pytest.raises(ValueError, match=sentence):
        attention.TransformerBlock(jr.key(0), 8, **options)


@pytest.mark.misuse  # of the type, that is
def test_sizes_may_be_those_of_numpy():
    def make(of: Any):
        sizes = {"num_kv_heads": of(2), "num_hidden": of(6)}
        return attention.TransformerBlock(jr.key(0), of(8), of(4), **sizes)

    made = make(int), make(np.int64)
    assert eqx.tree_equal(*made)
    assert isinstance(made[1].attention.num_heads, int)


def test_what_is_passed_on_is_listed():
    call = inspect.signature(attention.TransformerBlock.__call__).parameters
    theirs = inspect.signature(attention.tensor_attention).parameters
    assert [*call] == ["self", "x", "key", *[*theirs][3:-1]]
    assert call["precision"] == theirs["precision"]
    made = inspect.signature(attention.TransformerBlock.__init__).parameters
    assert made["num_modes"].default == 2
    block = attention.TransformerBlock(jr.key(0), 8, 2)
    with pytest.raises(TypeError, match="'causal'; did you mean 'is_causal'"):
        block(jnp.ones((5, 8)), causal=True)  # pyright: ignore


def test_layers_in_a_row_are_called_as_those_of_equinox():
    keys = jr.split(jr.key(0), 2)
    layers = [attention.TensorMultiheadAttention(key, 8, 2) for key in keys]
    x = jr.normal(jr.key(2), (5, 8))
    found = eqx.nn.Sequential(layers)(x, key=jr.key(3))
    np.testing.assert_allclose(found, layers[1](layers[0](x)), atol=1e-6)
