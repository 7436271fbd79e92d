"""What decides a result's bits, as plain values: compared at resume, then kept."""

from collections.abc import Sequence
import datetime
import functools as ft
import hashlib
import importlib.metadata
import inspect
from pathlib import Path
import platform
import sys
from typing import Any

import equinox
import jax
import numpy as np

import jaxlr
from jaxlr.core.types import Experiment
from jaxlr.lab import grid


def name_of(experiment: Experiment) -> str:
    """The experiment's name; its function's where nobody named it."""
    function = plain_function(experiment)
    return experiment.name or f"{function.__module__}.{function.__qualname__}"


def plain_function(experiment: Experiment) -> Any:
    """The function inside `jit`, `functools.partial` or a callable object."""
    function = inspect.unwrap(experiment.function)
    while isinstance(function, ft.partial):
        function = inspect.unwrap(function.func)
    is_plain = hasattr(function, "__qualname__")
    return function if is_plain else type(function).__call__


def source_path(experiment: Experiment) -> str | None:
    """The file that defines the experiment; None in a notebook."""
    try:
        path = inspect.getsourcefile(plain_function(experiment))
    except TypeError:
        path = None
    return str(Path(path).resolve()) if path and Path(path).is_file() else None


def _digest(text: bytes) -> str:
    return hashlib.sha256(text).hexdigest()[:16]


def source_digest(experiment: Experiment) -> str:
    """Digest of the experiment's whole file; in a notebook, of its function."""
    if path := source_path(experiment):
        return _digest(Path(path).read_bytes())
    try:
        return _digest(inspect.getsource(plain_function(experiment)).encode())
    except (OSError, TypeError):
        code = plain_function(experiment).__code__
        return _digest(code.co_code + repr((code.co_consts, code.co_names)).encode())


def settings() -> dict[str, Any]:
    """Jax's own switches that decide bits; a worker is given the same."""
    names = "default_matmul_precision", "default_prng_impl", "threefry_partitionable"
    return {name: getattr(jax.config, f"jax_{name}") for name in names}


def config(
    experiment: Experiment,
    dims: Sequence[grid.Dimension],
    num_seeds: int,
    seed: int,
    devices: Sequence[jax.Device],
) -> dict[str, Any]:
    """Everything that must be equal for a run to go on."""
    num_steps = experiment.num_steps
    return {
        "experiment": name_of(experiment),
        "source": source_digest(experiment),
        "jaxlr": jaxlr.__version__,
        "hparams": grid.plain_fields(experiment.hparams),
        "axes": {
            dim.name: [list(dim.fields), list(map(list, dim.points))] for dim in dims
        },
        "num_seeds": num_seeds,
        "seed": seed,
        "num_steps": "from hparams" if callable(num_steps) else num_steps,
        "every": experiment.every,
        "dims": {name: list(names) for name, names in experiment.dims.items()},
        "x64": experiment.x64,
        **settings(),
        "jax": jax.__version__,
        "jaxlib": importlib.metadata.version("jaxlib"),
        "platform": devices[0].platform,
        "device_kind": devices[0].device_kind,
    }


def environment(devices: Sequence[jax.Device], backend: str) -> dict[str, Any]:
    """Who ran it, on what; for the reader, not compared."""
    now = datetime.datetime.now(datetime.UTC)
    return {
        "python": platform.python_version(),
        "numpy": np.__version__,
        "equinox": equinox.__version__,
        "machine": f"{platform.system()} {platform.machine()}",
        "num_devices": len(devices),
        "backend": backend,
        "begun": now.isoformat(timespec="seconds"),
        "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
    }
