"""Small models with losses, and SAM of least squares in NumPy."""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np

from jaxlr import sharpness


def data(num_rows=24, dtype=float):
    x = jr.normal(jr.key(1), (num_rows, 6), dtype)
    return x, jr.randint(jr.key(2), (num_rows,), 0, 3)


def cross_entropy(scores, y):
    return -jnp.mean(
        jnp.sum(jax.nn.log_softmax(scores) * jax.nn.one_hot(y, scores.shape[-1]), -1)
    )


def mlp(sizes=(6, 8, 7, 3), dtype=float):
    keys = jr.split(jr.key(0), len(sizes) - 1)
    return [
        (jr.normal(k, (n, m), dtype) / n**0.5, jnp.full(m, 0.1, dtype))
        for k, n, m in zip(keys, sizes, sizes[1:], strict=False)
    ]


def mlp_loss(params, x, y):
    for i, (w, b) in enumerate(params):
        x = sharpness.dense(jax.nn.relu(x) if i else x, w, b)
    return cross_entropy(x, y)


class Net(eqx.Module):
    """An Equinox model: applied to one row, with leaves that are no arrays."""

    first: jax.Array
    norm: eqx.nn.LayerNorm
    last: jax.Array
    num_calls: jax.Array
    activation: Callable[[jax.Array], jax.Array]
    name: str = eqx.field(static=True)

    def __init__(self):
        keys = jr.split(jr.key(0))
        self.first = jr.normal(keys[0], (6, 9)) / 2
        self.norm = eqx.nn.LayerNorm(9)
        self.last = jr.normal(keys[1], (9, 3)) / 3
        self.num_calls = jnp.zeros((), int)
        self.activation = jax.nn.gelu
        self.name = "net"

    def __call__(self, x):
        h = self.activation(self.norm(sharpness.dense(x, self.first)))
        return sharpness.dense(h, self.last)


def net_loss(net, x, y):
    return cross_entropy(jax.jit(jax.vmap(net))(x), y)


def conv():
    keys = jr.split(jr.key(0))
    return {"k": jr.normal(keys[0], (5, 1, 2)), "w": jr.normal(keys[1], (4, 3))}


def conv_loss(params, x, y):
    h = jax.lax.conv_general_dilated(
        x[..., None], params["k"], (1,), "SAME", dimension_numbers=("NHC", "HIO", "NHC")
    )
    h = jnp.tanh(h).reshape(len(x), 3, 2, 2).mean(1).reshape(len(x), 4)
    return cross_entropy(h @ params["w"], y)


def problem():
    """Least squares with two leaves: w (3, 1) and the intercept b (1,)."""
    rng = np.random.default_rng(0)
    params = {"w": rng.normal(size=(3, 1)), "b": rng.normal(size=1)}
    return params, rng.normal(size=(8, 3)), rng.normal(size=(8, 1))


def squares(params, x, y):
    return jnp.mean((sharpness.dense(x, params["w"], params["b"]) - y) ** 2) / 2


def numpy_sam(
    params, x, y, rho, *, num_shards=1, is_normalized=True, is_adaptive=False
):
    """(value, gradient, first norms, perturbed values) as the formulas have it."""

    def at(v, x, y):
        r = x @ v[:-1] + v[-1] - y[:, 0]
        return np.mean(r**2) / 2, np.append(x.T @ r, r.sum()) / len(y)

    v = np.append(params["w"][:, 0], params["b"])
    grads, norms, values = [], [], []
    for part, out in zip(np.split(x, num_shards), np.split(y, num_shards), strict=True):
        g = at(v, part, out)[1]
        e = rho * (v**2 * g if is_adaptive else g)
        if is_normalized:
            e = e / (np.linalg.norm(np.abs(v) * g if is_adaptive else g) + 1e-12)
        value, grad = at(v + e, part, out)
        grads.append(grad)
        norms.append(np.linalg.norm(g))
        values.append(value)
    g = np.mean(grads, 0)
    return (
        at(v, x, y)[0],
        {"w": g[:-1, None], "b": g[-1:]},
        np.array(norms),
        np.array(values),
    )
