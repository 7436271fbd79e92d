"""What the benchmarks share: timing in pairs, provenance, the file of results."""

import datetime
import json
import os
from pathlib import Path
import platform
import statistics
import time
from typing import Any

import jax


def seconds(function):
    """Wall time of one call."""
    begun = time.perf_counter()
    function()
    return time.perf_counter() - begun


def paired(ours, theirs, repeats, *, is_settled=False):
    """Median seconds of both, and the median of the ratios of neighbors.

    With `is_settled` an untimed call goes before every timed one, so that neither pays
    for memory that the other gave back to the system.
    """

    def timed(function):
        if is_settled:
            function()
        return seconds(function)

    ours()
    theirs()
    pairs = [(timed(ours), timed(theirs)) for _ in range(repeats)]
    ratios = [a / b for a, b in pairs]
    return {
        "seconds": statistics.median(a for a, _ in pairs),
        "other_seconds": statistics.median(b for _, b in pairs),
        "ratio": statistics.median(ratios),
        "ratio_min": min(ratios),
        "ratio_max": max(ratios),
        "repeats": repeats,
    }


def compiled(function, *args):
    """A call of the compiled function, seconds of compilation, MiB of temporaries."""
    lowered = jax.jit(function).lower(*args)
    begun = time.perf_counter()
    program = lowered.compile()
    duration = time.perf_counter() - begun
    sizes: Any = program.memory_analysis()
    call = lambda: jax.block_until_ready(program(*args))  # noqa: E731
    return call, duration, sizes.temp_size_in_bytes / 2**20


def with_verdict(report, sentence, holds):
    """The report, its target and whether it is met."""
    return report | {"target": sentence, "holds": bool(holds)}


def provenance():
    """Where and when the figures were measured."""
    return {
        "date": datetime.date.today().isoformat(),
        "device": jax.devices()[0].device_kind,
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "jax": jax.__version__,
        "python": platform.python_version(),
    }


def write(name, report):
    """Print the figures, and keep them as `results/<name>-<platform>.json`."""
    folder = Path(__file__).parent / "results"
    folder.mkdir(exist_ok=True)
    text = json.dumps(report, indent=1)
    (folder / f"{name}-{jax.devices()[0].platform}.json").write_text(text + "\n")
    print(text)
