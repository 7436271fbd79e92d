"""What Kronecker attention over pairs costs: exact by tiles, naive, by polynomials.

    python -m experiments.benchmarks.attention

One head, entries uniform in [-1, 1], scores divided by d. The exact form by tiles
against all scores at once by einsum; polynomials of (d, degree) against the exact form,
from short sequences on to where they are faster; long sequences, which should take time
and memory in proportion. Each pair is run in turn (A A B B A A ...; the first of two
calls is not timed, so that neither pays for memory that the other gave back) and the
median of the pairwise ratios kept. Memory is what compiled programs need beyond
arguments and results; gradients come with the value, but for the exact form's backward
pass, which is timed by itself. On GPUs and TPUs the kernel is timed against XLA's form
and as a share of the rate of a product of matrices of bfloat16, for d = 128 and
windows. Writes `results/attention-<platform>.json`.
"""

import functools as ft
from typing import Any

import jax
import jax.numpy as jnp
import jax.random as jr

from jaxlr import attention

from .timing import compiled, paired, provenance, with_verdict, write


NAIVE_LENGTH = 256
NAIVE_FEATURES = (4, 16, 64)
LENGTHS = (32, 64, 128, 256, 512)
POLYNOMIALS = {(4, 4): 64, (16, 3): 128}  # (d, degree), and faster from there
LONG = (16384, 32768, 65536)
MEMORY_LENGTHS = (128, 256, 512, 1024)
MATRIX = 8192  # rows of the matrices of bfloat16
# Sequences of the kernel: heads, of which all have the same keys; positions, features.
HEADS, POSITIONS, FEATURES = 8, 4096, 128
WINDOWS = (32, 512)


def attend(implementation, degree, arrays):
    """Attention over pairs."""
    query, *sets = arrays
    return attention.tensor_attention(
        query,
        sets[:2],
        sets[2:],
        scale=1 / query.shape[-1],
        implementation=implementation,
        degree=degree,
    )


def with_gradient(function):
    """Value, and the gradient of its sum of squares."""
    return jax.value_and_grad(lambda arrays: jnp.sum(function(arrays) ** 2))


def program(implementation, n, d, degree=0, *, is_gradient=False):
    """Call, and MiB of temporaries."""
    function = ft.partial(attend, implementation, degree)
    keys = jr.split(jr.key(0), 5)
    arrays = [jr.uniform(key, (1, n, 1, d), minval=-1.0) for key in keys]
    call, _, mib = compiled(
        with_gradient(function) if is_gradient else function, arrays
    )
    return call, mib


def backward(n, d):
    """Call of the exact form's pullback alone."""
    keys = jr.split(jr.key(0), 6)
    *arrays, d_out = [jr.uniform(key, (1, n, 1, d), minval=-1.0) for key in keys]
    with_pullback = jax.jit(ft.partial(jax.vjp, ft.partial(attend, "xla", 0)))
    _, pullback = with_pullback(arrays)
    return compiled(lambda pullback, x: pullback(x), pullback, d_out)[0]


def of_exact():
    """By tiles against all scores at once; gradients; memory."""
    found: dict[str, Any] = {}
    for d in NAIVE_FEATURES:
        sizes = NAIVE_LENGTH, d
        tiles, _ = program("xla", *sizes)
        slope, _ = program("xla", *sizes, is_gradient=True)
        naive, naive_mib = program("reference", *sizes)
        naive_slope, naive_slope_mib = program("reference", *sizes, is_gradient=True)
        over = paired(tiles, naive, 9, is_settled=True)
        cost = paired(backward(*sizes), tiles, 9, is_settled=True)
        found[f"d = {d}"] = {
            "tiles_over_naive": with_verdict(
                over, "ratio <= 1.2", over["ratio"] <= 1.2
            ),
            "backward_over_value": with_verdict(cost, "ratio <= 4", cost["ratio"] <= 4),
            "gradient_over_value": paired(slope, tiles, 9, is_settled=True),
            "gradient_over_naive": paired(slope, naive_slope, 5, is_settled=True),
            "naive_mib": {"value": naive_mib, "gradient": naive_slope_mib},
        }
    for name, is_gradient in (("value", False), ("gradient", True)):
        mib = {
            str(n): program("xla", n, NAIVE_FEATURES[1], is_gradient=is_gradient)[1]
            for n in MEMORY_LENGTHS
        }
        first, last = (mib[str(n)] for n in (MEMORY_LENGTHS[0], MEMORY_LENGTHS[-1]))
        most = MEMORY_LENGTHS[-1] / MEMORY_LENGTHS[0]
        found[f"{name}_mib"] = with_verdict(
            mib | {"ratio": last / first}, f"ratio <= {most:g}", last / first <= most
        )
    return found


def of_polynomials():
    """Over the exact form, length by length, value and gradient."""
    found: dict[str, Any] = {}
    for (d, degree), least in POLYNOMIALS.items():
        for name, is_gradient in (("value", False), ("gradient", True)):
            ratios = {}
            for n in LENGTHS:
                ours, _ = program("polynomial", n, d, degree, is_gradient=is_gradient)
                exact, _ = program("xla", n, d, is_gradient=is_gradient)
                ratios[str(n)] = paired(ours, exact, 15, is_settled=True)
            if not is_gradient:
                wanted = [ratios[str(n)]["ratio"] < 1 for n in LENGTHS if n >= least]
                ratios = with_verdict(ratios, f"ratio < 1 from {least}", all(wanted))
            found[f"d = {d}, degree {degree}, {name}"] = ratios
    return found


def of_long_sequences():
    """A polynomial's time and memory, as multiples of the shortest's."""
    (d, degree), *_ = POLYNOMIALS
    found: dict[str, Any] = {}
    for name, is_gradient in (("value", False), ("gradient", True)):
        calls = {
            n: program("polynomial", n, d, degree, is_gradient=is_gradient)
            for n in LONG
        }
        first, first_mib = calls[LONG[0]]
        for n, (call, mib) in calls.items():
            times = paired(call, first, 5, is_settled=True)
            most = 1.2 * n / LONG[0]
            found[f"{name}, n = {n}"] = with_verdict(
                times | {"mib": mib, "mib_ratio": mib / first_mib},
                f"ratio and mib_ratio <= {most:g}",
                max(times["ratio"], mib / first_mib) <= most,
            )
    return found


def of_kernel(implementation="pallas"):
    """Against XLA's form, and as a share of the rate of a product of matrices."""
    platform = jax.default_backend()
    matrix = jnp.ones((MATRIX, MATRIX), jnp.bfloat16)
    product, _, _ = compiled(jnp.matmul, matrix, matrix)
    keys = jr.split(jr.key(0), 5)
    heads = HEADS, 1, 1, 1, 1
    arrays = [
        jr.normal(key, (1, POSITIONS, num, FEATURES), jnp.bfloat16)
        for key, num in zip(keys, heads, strict=True)
    ]

    def windowed(implementation, arrays):
        query, *sets = arrays
        return attention.tensor_attention(
            query,
            sets[:2],
            sets[2:],
            local_window_size=tuple((size - 1, 0) for size in WINDOWS),
            implementation=implementation,
            precision="default",
        ).astype(jnp.float32)

    # Triples that count; the first queries see less than whole windows.
    triples = sum(
        min(i + 1, WINDOWS[0]) * min(i + 1, WINDOWS[1]) for i in range(POSITIONS)
    )
    least = {"gpu": 0.6, "tpu": 0.5}[platform]
    found: dict[str, Any] = {}
    for name, change, per_triple in (
        ("value", lambda fn: fn, 4),
        ("gradient", with_gradient, 16),
    ):
        kernel, xla = (
            compiled(change(ft.partial(windowed, form)), arrays)[0]
            for form in (implementation, "xla")
        )
        against = paired(product, kernel, 9, is_settled=True)
        flops = per_triple * FEATURES * HEADS * triples
        rate = flops / against["other_seconds"]
        report = {
            "matmul_tflops": 2e-12 * MATRIX**3 / against["seconds"],
            "tflops": 1e-12 * rate,
            # Ratio of times, by flops: that of the rates in neighboring runs.
            "share": against["ratio"] * flops / (2 * MATRIX**3),
            "kernel_over_xla": paired(kernel, xla, 3, is_settled=True),
        }
        if name == "value":
            report = with_verdict(report, f"share >= {least}", report["share"] >= least)
        found[name] = report
    return found


def main():
    """Measure, print, and keep as JSON."""
    platform = jax.default_backend()
    report = provenance() | {
        "exact": of_exact(),
        "polynomials": of_polynomials(),
        "long_sequences": of_long_sequences(),
    }
    if platform != "cpu":
        report["kernel"] = of_kernel()
    write("attention", report | {"others": f"not measured: all but {platform}"})


if __name__ == "__main__":
    main()
