"""What sharpness-aware gradients cost: against a plain one, by backend, against optax.

    python -m experiments.benchmarks.sharpness

A step is a gradient and an update of SGD, compiled together, of a dense network
256-512-512-512-10 and of a small convolutional one, batch 256. Each pair is measured in
turn (A B A B ...) and the median of the pairwise ratios kept; memory is what the
compiled step needs beyond its arguments and results, in copies of the parameters.
Writes `results/sharpness-<platform>.json`.
"""

from typing import Any

import jax
import jax.numpy as jnp
import jax.random as jr
import optax
import optax.contrib

from jaxlr import sharpness

from .timing import paired, provenance, write


BATCH, RHO, ETA, REPEATS = 256, 0.05, 0.01, 15
SIDE = 8  # of the images of the convolutional network
SHARDS = (4, 8, 32)


def dense_network():
    """Parameters, loss and batch of the dense network."""
    model = sharpness.MLP(jr.key(0), (256, 512, 512, 512, 10))
    x = jr.normal(jr.key(1), (BATCH, 256))
    return model, sharpness.cross_entropy, (x, jr.randint(jr.key(2), (BATCH,), 0, 10))


def convolutional_network():
    """Parameters, loss and batch: three convolutions 3 x 3 of 32 channels."""
    sizes = (3, 32, 32, 32)
    keys = jr.split(jr.key(0), len(sizes))
    params = {
        "kernels": [
            jr.normal(key, (3, 3, a, b)) * (2 / (9 * a)) ** 0.5
            for key, a, b in zip(keys, sizes[:-1], sizes[1:], strict=False)
        ],
        "last": jr.normal(keys[-1], (sizes[-1], 10)) / sizes[-1] ** 0.5,
    }

    def loss(params, x, labels):
        for kernel in params["kernels"]:
            dims = ("NHWC", "HWIO", "NHWC")
            x = jax.nn.relu(
                jax.lax.conv_general_dilated(
                    x, kernel, (1, 1), "SAME", dimension_numbers=dims
                )
            )
        scores = jnp.mean(x, axis=(1, 2)) @ params["last"]
        return jnp.mean(
            optax.losses.softmax_cross_entropy_with_integer_labels(scores, labels)
        )

    x = jr.normal(jr.key(1), (BATCH, SIDE, SIDE, 3))
    return params, loss, (x, jr.randint(jr.key(2), (BATCH,), 0, 10))


def step_of(value_and_grad, params, batch):
    """A compiled step of SGD, called on these; and its memory in parameter copies."""

    @jax.jit
    def step(params, *batch):
        value, grads = value_and_grad(params, *batch)
        return value, jax.tree.map(lambda w, g: w - ETA * g, params, grads)

    sizes: Any = step.lower(params, *batch).compile().memory_analysis()
    copy = sum(w.nbytes for w in jax.tree.leaves(params))
    call = lambda: jax.block_until_ready(step(params, *batch))  # noqa: E731
    return call, sizes.temp_size_in_bytes / copy


def optax_step(params, loss, batch):
    """The same step by `optax.contrib.sam` in opaque mode."""
    adversary = optax.chain(optax.contrib.normalize(), optax.sgd(RHO))
    optimizer = optax.contrib.sam(optax.sgd(ETA), adversary, opaque_mode=True)

    @jax.jit
    def step(params, state, *batch):
        value, grads = jax.value_and_grad(loss)(params, *batch)

        def grad_fn(params, _):
            return jax.grad(loss)(params, *batch)

        updates, state = optimizer.update(grads, state, params, grad_fn=grad_fn)
        return value, optax.apply_updates(params, updates), state

    state = optimizer.init(params)
    return lambda: jax.block_until_ready(step(params, state, *batch))


def target(timing, most):
    """The timing, its target and the verdict."""
    return timing | {"target": f"ratio <= {most}", "holds": timing["ratio"] <= most}


def costs(params, loss, batch, backends, **copy_targets):
    """One network: SAM over SGD and over optax, every backend over SAM."""

    def sam(**settings):
        gradient = sharpness.sam_value_and_grad(loss, RHO, **settings)
        return step_of(gradient, params, batch)

    sgd, sgd_copies = step_of(jax.value_and_grad(loss), params, batch)
    one, one_copies = sam()
    found: dict[str, Any] = {
        "sam_over_sgd": target(paired(one, sgd, REPEATS), 2.1),
        "sam_over_optax": target(
            paired(one, optax_step(params, loss, batch), REPEATS), 1.0
        ),
        "copies": {"sgd": sgd_copies, "sam": one_copies},
        "msam_over_sam": {},
    }
    for backend in backends:
        for num_shards in SHARDS:
            step, copies = sam(num_shards=num_shards, backend=backend)
            timing = paired(step, one, REPEATS)
            if backend == "ghost":
                timing = target(timing, 1.15)
            if backend in copy_targets:
                most = copy_targets[backend]
                timing |= {
                    "copies_target": f"<= {most}",
                    "copies_hold": copies <= most,
                }
            found["msam_over_sam"][f"{backend}, {num_shards} shards"] = timing | {
                "copies": copies
            }
    return found


def main():
    """Measure, print, and keep as JSON."""
    jax.config.update("jax_enable_compilation_cache", False)
    dense = dense_network()
    write(
        "sharpness",
        provenance()
        | {
            "batch": BATCH,
            "dense 256-512-512-512-10": costs(
                *dense, ("scan", "vmap", "unroll", "ghost"), scan=1.3, ghost=2
            ),
            f"convolutional, 3 layers of 32 channels, {SIDE} x {SIDE}": costs(
                *convolutional_network(), ("scan", "vmap", "unroll")
            ),
            "gpu": "not measured",
            "tpu": "not measured",
        },
    )


if __name__ == "__main__":
    main()
