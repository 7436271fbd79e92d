"""Networks that read handwritten digits: sizes, training, and what they end in."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key
import numpy as np
import optax

from jaxlr import lab, sharpness, ssm
from jaxlr.core import Hyper

from . import training


class SequenceHParams(eqx.Module):
    """Sizes and rates of a state-space model that reads digits pixel by pixel."""

    learning_rate: Hyper = 4e-3
    """Learning rate of all but the systems at the start; it falls to 0 [1]."""
    system_learning_rate: Hyper = 1e-3
    """Learning rate of eigenvalues, input weights and steps at the start [1]."""
    weight_decay: Hyper = 0.01
    """Weight decay of all but the systems [1]."""
    num_features: int = eqx.field(static=True, default=32)
    """Number of features of a layer."""
    num_states: int = eqx.field(static=True, default=32)
    """Number of states of a feature, or of a layer of S5."""
    num_layers: int = eqx.field(static=True, default=2)
    """Number of residual blocks."""
    num_epochs: int = eqx.field(static=True, default=30)
    """Number of passes over the training digits."""
    batch_size: int = eqx.field(static=True, default=64)
    """Number of digits in a batch."""


class Metrics(eqx.Module):
    """Training over epochs, and what it ends in."""

    loss: Float[Array, " step"]
    """Training loss on the batch before the epoch's first step [nat]."""
    test_accuracy: Float[Array, " step"]
    """Share of the test digits that are recognized, before the epoch [1]."""
    accuracy: Float[Array, ""]
    """Share of the test digits that are recognized, at the end [1]."""


class FlatnessMetrics(Metrics):
    """Training on labels of which some are redrawn."""

    curvature: Float[Array, ""]
    """Largest eigenvalue of the Hessian of the training loss, at the end [nat]."""
    memorized: Float[Array, ""]
    """Share of the redrawn labels that are reproduced, at the end; 0 of none [1]."""


def sequence_loss(model, x, labels) -> Float[Array, ""]:
    """Mean cross-entropy of a model that reads one sequence [nat]."""
    return sharpness.cross_entropy(jax.vmap(model), x, labels)


def sequence_accuracy(model, x, labels) -> Float[Array, ""]:
    """Share of the sequences that are recognized [1]."""
    return sharpness.accuracy(jax.vmap(model), x, labels)


def train_sequences(
    order_key: Key[Array, ""],
    solve_key: Key[Array, ""],
    hparams: Any,
    data: Any,
    layer_fn: Callable[[Key[Array, ""]], Any],
    value_and_grad_fn: Callable[..., Any] | None = None,
):
    """Train a stack of layers on digits, pixel by pixel, tested before every epoch.

    Args:
        order_key: Key that draws every epoch's order of digits.
        solve_key: Key of the run, which draws the first parameters.
        hparams: Hyper-parameters with the fields of `SequenceHParams`.
        data: Digits to train on and to test with.
        layer_fn: `layer_fn(key)` draws a layer.
        value_and_grad_fn: `value_and_grad_fn(model, x, labels)` gives loss and
            gradient; None stands for those of `sequence_loss`.

    Returns:
        As `training.train_epochs`; what was measured is the test accuracy.
    """
    return training.train_epochs(
        order_key,
        solve_key,
        hparams,
        data,
        loss_fn=sequence_loss,
        params_fn=lambda key: ssm.Stack(
            key,
            layer_fn,
            hparams.num_features,
            10,
            num_inputs=1,
            num_layers=hparams.num_layers,
        ),
        optimizer_fn=lambda num_steps: ssm.adamw(
            hparams.learning_rate,
            hparams.system_learning_rate,
            weight_decay=hparams.weight_decay,
            schedule=optax.cosine_decay_schedule(1.0, num_steps),
        ),
        watch_fn=lambda model: sequence_accuracy(model, data.test_x, data.test_labels),
        value_and_grad_fn=value_and_grad_fn,
    )


def flatness_metrics(
    read_fn, data, is_redrawn, loss, test_accuracy, curvature
) -> FlatnessMetrics:
    """What training ended in.

    Args:
        read_fn: `read_fn(x)` gives the trained model's logits of a batch.
        data: Examples that it was trained on and is tested with.
        is_redrawn: Which of the training labels were redrawn.
        loss: Curve of the training loss over epochs.
        test_accuracy: Curve of the share of test examples recognized.
        curvature: Largest eigenvalue of the loss's Hessian at the end.
    """
    is_right = jnp.argmax(read_fn(data.x), axis=1) == data.labels
    return FlatnessMetrics(
        loss=loss,
        test_accuracy=test_accuracy,
        accuracy=sharpness.accuracy(read_fn, data.test_x, data.test_labels),
        curvature=curvature,
        memorized=jnp.sum(is_right & is_redrawn) / jnp.maximum(jnp.sum(is_redrawn), 1),
    )


def flatness_figure(results, title: str, plain: str):
    """Test accuracy over epochs; where each method ends, curvature against accuracy.

    Args:
        results: Results of a sweep with an axis of numbers of shards and radii.
        title: Title of the page.
        plain: Name of what is trained without a perturbation.

    Returns:
        The page, and its two axes.
    """
    page, (over_epochs, ends) = lab.panels(1, 2, size=(12, 4.6))
    for i, color in zip(range(results.sizes[FLATNESS_DIM]), _COLORS, strict=False):
        cell = by_epoch(results).isel({FLATNESS_DIM: i})
        shards, rho = cell["num_shards"].item(), cell["rho"].item()
        name = f"mSAM, {shards} shards" if shards > 1 else "SAM"
        name = f"{name}, rho = {rho:g}" if rho else plain
        style = {"color": color, "label": name}
        lab.draw_seeds(over_epochs, cell["test_accuracy"], "epoch", **style)
        ends.plot(cell["curvature"], cell["accuracy"], "o" if rho else "s", **style)
    over_epochs.set(xlabel="epoch", ylabel="test accuracy [1]")
    over_epochs.set_title("medians, ranges of seeds")
    ends.set(xlabel="largest eigenvalue of the Hessian [nat]")
    ends.set(ylabel="test accuracy [1]", title="at the end, each seed")
    page.suptitle(title)
    return page, over_epochs, ends


FLATNESS_DIM = lab.dimension_name(("num_shards", "rho"))
_COLORS = ("#000000", "#0072B2", "#56B4E9", "#009E73", "#E69F00", "#D55E00")


def by_epoch(results, first: int = 0):
    """The results, with numbers of epochs beside the steps."""
    epochs = np.arange(results.sizes["step"]) + first
    return results.assign_coords(epoch=("step", epochs))
