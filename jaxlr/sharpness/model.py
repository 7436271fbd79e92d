"""Small networks whose layers say that they are dense, and their losses."""

from collections.abc import Callable, Sequence
import itertools
import math

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, Int, Key
import optax

from jaxlr.core import checks
from jaxlr.sharpness._ghost import dense


class MLP(eqx.Module):
    """Dense layers with ReLU between them, for whole batches.

    Weights are drawn as He et al. do, N(0, 2 / inputs); biases start at zero.

    Args:
        key: Random key that the weights are drawn from.
        sizes: Number of inputs, of hidden units of each layer, and of outputs: one more
            number than there are layers. Static.

    Raises:
        ValueError: Unless there are two sizes at least, each at least 1.

    References:
        He, Zhang, Ren, Sun. "Delving Deep into Rectifiers: Surpassing Human-Level
        Performance on ImageNet Classification". 2015. arXiv:1502.01852.
    """

    weights: list[Float[Array, "inputs outputs"]]
    biases: list[Float[Array, " outputs"]]

    def __init__(self, key: Key[Array, ""], sizes: Sequence[int]):
        if len(sizes) < 2:
            raise ValueError(f"`sizes` must be two numbers or more, got {sizes}.")
        sizes = [checks.count("sizes", size) for size in sizes]
        shapes = list(itertools.pairwise(sizes))
        # One draw for all: one a layer takes many times as long to compile.
        ends = list(itertools.accumulate(map(math.prod, shapes)))
        draws = jnp.split(jr.normal(key, (ends[-1],)), ends[:-1])
        self.weights = [
            draw.reshape(shape) * (2 / shape[0]) ** 0.5
            for draw, shape in zip(draws, shapes, strict=True)
        ]
        self.biases = [jnp.zeros(num_outputs) for _, num_outputs in shapes]

    def __call__(self, x: Float[Array, "*batch inputs"]) -> Float[Array, "*batch out"]:
        """Outputs for each example of a batch; 2 flops a weight and example.

        Args:
            x: Inputs of every example.
        """
        layers = list(zip(self.weights, self.biases, strict=True))
        for weight, bias in layers[:-1]:
            x = jax.nn.relu(dense(x, weight, bias))
        return dense(x, *layers[-1])


def cross_entropy(
    model: Callable[[Array], Float[Array, "n out"]],
    x: Float[Array, "n ..."],
    labels: Int[Array, " n"],
) -> Float[Array, ""]:
    """Mean over examples of -log of the label's probability, in nats.

    Args:
        model: Network that gives a logit for each class.
        x: Inputs of n examples.
        labels: Class of every example, counted from 0.
    """
    logits = model(x)
    losses = optax.losses.softmax_cross_entropy_with_integer_labels(logits, labels)
    return jnp.mean(losses)


def accuracy(
    model: Callable[[Array], Float[Array, "n out"]],
    x: Float[Array, "n ..."],
    labels: Int[Array, " n"],
) -> Float[Array, ""]:
    """Share of the examples whose largest output is the label's, 0..1.

    Args:
        model: Network that gives a logit for each class.
        x: Inputs of n examples.
        labels: Class of every example, counted from 0.
    """
    return jnp.mean(jnp.argmax(model(x), axis=-1) == labels)
