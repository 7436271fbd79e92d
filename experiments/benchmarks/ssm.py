"""What diagonal state-space models cost: kernel, scan, and a step of training.

    python -m experiments.benchmarks.ssm

The kernel by two levels against one that materializes all powers (N, L); the chunked
scan against `jax.lax.associative_scan`, compilation too; a step of training of a
network of four S4D layers on sequences of 1024 against the same network on either. Each
pair is run in turn (A A B B A A ...; the first of two calls is not timed, so that
neither pays for memory that the other gave back) and the median of the pairwise ratios
kept. Compilation is timed once; memory is what compiled programs need beyond arguments
and results; bandwidth is the bytes of arguments and results per second, as a share of
what a copy reaches. On a TPU kernels are timed against XLA too. Writes
`results/ssm-<platform>.json`.
"""

import functools as ft
from typing import Any

import equinox as eqx
import jax
from jax import lax
import jax.numpy as jnp
import jax.random as jr

from jaxlr import kernels, ssm
from jaxlr.ssm import sequence
from jaxlr.ssm.discretize import log_discretize

from .timing import compiled, paired, provenance, with_verdict, write


CHANNELS, STATES, LENGTH = 256, 64, 16384
SCAN = (8, 4096, 64)  # sequences, steps, states
FEATURES, LAYERS, STEPS, BATCH = 64, 4, 1024, 4


def against_a_copy(function, *args):
    """Share of a copy's bytes per second, of 256 MiB; a kernel's time over XLA's."""
    call, _, _ = compiled(function, *args)
    block = jnp.ones(2**26, jnp.float32)
    copy, _, _ = compiled(lambda x: x + 1, block)
    num_bytes = sum(x.nbytes for x in jax.tree.leaves((args, call())))
    rates = paired(copy, call, 9, is_settled=True)
    factor = num_bytes / (2 * block.nbytes)
    report: dict[str, Any] = {
        name.replace("ratio", "share"): rates[name] * factor
        for name in ("ratio", "ratio_min", "ratio_max")
    }
    report |= {"seconds": rates["other_seconds"], "copy_seconds": rates["seconds"]}
    if jax.default_backend() == "tpu":
        kernel, _, _ = compiled(ft.partial(function, implementation="pallas"), *args)
        report["pallas_over_xla"] = paired(kernel, call, 9, is_settled=True)
    return report


def materialized(lam, b, c, dt, length):
    """The kernel as its definition says: all powers at once."""
    exponent, bbar = log_discretize(lam, b, dt[:, None], "zoh")
    powers = jnp.exp(exponent[..., None] * jnp.arange(length))
    return 2 * jnp.einsum("hn,hnl->hl", c * bbar, powers, precision="highest").real


def of_kernel():
    """Value and gradient, two-level and materialized."""
    lam, b = ssm.s4d(STATES, "lin")
    lam, b = (jnp.tile(jnp.asarray(x, jnp.complex64), (CHANNELS, 1)) for x in (lam, b))
    c = jr.normal(jr.key(0), b.shape) + 0j
    dt = jnp.exp(jr.uniform(jr.key(1), (CHANNELS,), minval=-6.9, maxval=-2.3))
    weights = jr.normal(jr.key(2), (CHANNELS, LENGTH))

    def gradient(fn):
        def loss(parts, c, dt):
            return jnp.sum(weights * fn(lax.complex(*parts), b, c, dt, LENGTH))

        return lambda parts, c, dt: jax.grad(loss, argnums=(0, 1, 2))(parts, c, dt)

    def value(fn):
        return lambda parts, c, dt: fn(lax.complex(*parts), b, c, dt, LENGTH)

    args = (lam.real, lam.imag), c, dt
    ours, _, temporaries = compiled(value(ssm.kernel), *args)
    theirs, _, naive_temporaries = compiled(value(materialized), *args)
    slope, _, slope_temporaries = compiled(gradient(ssm.kernel), *args)
    speed = paired(theirs, ours, 5, is_settled=True)
    cost = paired(slope, ours, 9, is_settled=True)

    def by_arrays(parts, c, dt, implementation=None):
        lam = lax.complex(*parts)
        return ssm.kernel(lam, b, c, dt, LENGTH, implementation=implementation)

    return {
        "bandwidth": against_a_copy(by_arrays, *args),
        "materialized_over_two_level": with_verdict(
            speed, "ratio >= 15", speed["ratio"] >= 15
        ),
        "gradient_over_value": with_verdict(cost, "ratio <= 4", cost["ratio"] <= 4),
        "temporaries_mib": with_verdict(
            {
                "two_level": temporaries,
                "two_level_gradient": slope_temporaries,
                "materialized": naive_temporaries,
            },
            "two_level <= 64",
            temporaries <= 64,
        ),
    }


def by_associative_scan(a, u):
    """h_l = a h_{l-1} + u_l over axis -2, complex."""

    def combine(left, right):
        return left[0] * right[0], right[0] * left[1] + right[1]

    a = jnp.broadcast_to(a, u.shape)
    return lax.associative_scan(combine, (a, u), axis=u.ndim - 2)[1]


def by_chunks(a, u):
    """The same by `kernels.diagonal_scan`."""
    h, _ = kernels.diagonal_scan((a.real, a.imag), (u.real, u.imag))
    return lax.complex(*h)


def of_scan():
    """Value and gradient, by chunks and by the associative scan."""
    _, _, states = SCAN
    a = jnp.exp(jnp.asarray(ssm.s4d(2 * states, "lin")[0] * 1e-3, jnp.complex64))
    parts = jr.normal(jr.key(0), (2, *SCAN))
    u = lax.complex(parts[0], parts[1])

    def gradient(fn):
        return jax.grad(lambda a, u: jnp.sum(jnp.abs(fn(a, u)) ** 2), argnums=(0, 1))

    found: dict[str, Any] = {
        "bandwidth": against_a_copy(
            kernels.diagonal_scan, (a.real, a.imag), (u.real, u.imag)
        )
    }
    for name, change in (("value", lambda fn: fn), ("gradient", gradient)):
        ours, our_compilation, ours_mib = compiled(change(by_chunks), a, u)
        theirs, compilation, theirs_mib = compiled(change(by_associative_scan), a, u)
        speed = paired(ours, theirs, 9, is_settled=True)
        found[name] = {
            "chunks_over_associative": with_verdict(
                speed, "ratio < 1", speed["ratio"] < 1
            ),
            "compilation": with_verdict(
                {
                    "seconds": our_compilation,
                    "other_seconds": compilation,
                    "ratio": our_compilation / compilation,
                },
                "ratio <= 1/3",
                our_compilation <= compilation / 3,
            ),
            "temporaries_mib": {"chunks": ours_mib, "associative": theirs_mib},
        }
    return found


class Materialized(ssm.S4D):
    """S4D on the materialized kernel."""

    def __call__(self, u, *, dt_scale=1.0):
        """The outputs for an input u, as `S4D` gives them."""
        k = materialized(*self.system(dt_scale), u.shape[0])
        return sequence.fft_conv(u.T, k).T + self.d * u


class Associative(ssm.S4D):
    """S4D on the associative scan of all states."""

    def __call__(self, u, *, dt_scale=1.0):
        """The outputs for an input u, as `S4D` gives them."""
        lam, b, c, dt = self.system(dt_scale)
        abar, bbar = ssm.discretize(lam, b, dt[:, None])
        x = by_associative_scan(abar[:, None], u.T[..., None] * bbar[:, None])
        return 2 * jnp.sum((c[:, None] * x).real, -1).T + self.d * u


def of_training():
    """A step of SGD of the same network on three forms of its layers."""
    x = jr.normal(jr.key(1), (BATCH, STEPS, 1))

    def step_of(layer):
        model = ssm.Stack(
            jr.key(0),
            lambda key: layer(key, FEATURES, STATES),
            FEATURES,
            1,
            num_inputs=1,
            num_layers=LAYERS,
        )
        params, static = eqx.partition(model, eqx.is_inexact_array)

        def step(params, x):
            def loss(params):
                return jnp.mean(jax.vmap(eqx.combine(params, static))(x) ** 2)

            value, grads = jax.value_and_grad(loss)(params)
            return value, jax.tree.map(lambda w, g: w - 1e-3 * g, params, grads)

        return compiled(step, params, x)

    ours, seconds, mib = step_of(ssm.S4D)
    found = {"compilation_seconds": seconds, "temporaries_mib": mib}
    for name, layer in (("materialized", Materialized), ("associative", Associative)):
        theirs, other_seconds, other_mib = step_of(layer)
        speed = paired(ours, theirs, 5, is_settled=True)
        found[f"ours_over_{name}"] = with_verdict(
            speed, "ratio < 1", speed["ratio"] < 1
        ) | {"other_compilation_seconds": other_seconds, "other_mib": other_mib}
    return found


if __name__ == "__main__":
    write(
        "ssm",
        provenance()
        | {
            "sizes": {
                "kernel": [CHANNELS, STATES, LENGTH],
                "scan": SCAN,
                "training": [BATCH, STEPS, FEATURES, STATES, LAYERS],
            },
            "kernel": of_kernel(),
            "scan": of_scan(),
            "training": of_training(),
            "others": f"not measured: all but {jax.default_backend()}",
        },
    )
