"""What decides a result's bits, as plain values: compared at resume, then kept."""

from collections.abc import Iterable, Mapping, Sequence
import datetime
import functools as ft
import hashlib
import importlib.metadata
import inspect
import os
from pathlib import Path
import platform
import secrets
import subprocess
import sys
from typing import Any

import equinox
import jax
import numpy as np

import jaxlr
from jaxlr.core.types import Experiment
from jaxlr.lab import fields, fingerprint, manifest as manifests, modules, results
from jaxlr.lab.compiled import Compiled, settings


def name_of(experiment: Experiment) -> str:
    """The experiment's name; its function's where nobody named it."""
    return experiment.name or modules.named(plain_function(experiment))


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
    """Digest of `source_text`; of the function where there is none."""
    if text := source_text(experiment):
        return _digest(text)
    return fingerprint.of(plain_function(experiment)).digest


def config(compiled: Compiled, groups: Iterable[int] | None = None) -> dict[str, Any]:
    """Everything that must be equal for a run to go on.

    The source may differ where the computation does not: then it was only edited.

    Args:
        compiled: The sweep to describe.
        groups: Indices of the groups whose computation is included; None for all.
    """
    request = compiled.request
    groups = range(len(request.groups)) if groups is None else groups
    experiment, devices = request.experiment, request.devices
    num_steps = experiment.num_steps
    return {
        "experiment": name_of(experiment),
        "source": source_digest(experiment),
        "jaxlr": jaxlr.__version__,
        "hparams": fields.plain(experiment.hparams),
        "axes": {
            dim.name: [list(dim.fields), list(map(list, dim.points))]
            for dim in request.dims
        },
        "num_seeds": request.num_seeds,
        "seed": request.seed,
        "num_steps": "from hparams" if callable(num_steps) else num_steps,
        "every": experiment.every,
        "dims": {name: list(names) for name, names in experiment.dims.items()},
        "x64": experiment.x64,
        **settings(),
        "jax": jax.__version__,
        "jaxlib": importlib.metadata.version("jaxlib"),
        "platform": devices[0].platform,
        "device_kind": devices[0].device_kind,
        "computation": {
            manifests.label(request.groups[g].static): (
                compiled.lane(g).fingerprint.digest
            )
            for g in groups
        },
    }


def in_words_of(
    recorded: Mapping[str, Any], config: Mapping[str, Any], compiled: Compiled
) -> dict[str, Any]:
    """A configuration with the words of a recorded one, where they mean the same.

    Args:
        recorded: The configuration that was recorded: format 1 had other digests, and
            names of functions may lack a module's, as in a notebook.
        config: That of today.
        compiled: The sweep of today.
    """
    digests = dict(config["computation"])
    for g, group in enumerate(compiled.request.groups):
        name = manifests.label(group.static)
        old = recorded["computation"].get(name)
        if old is not None and name in digests and compiled.lane(g).is_of_text(old):
            digests[name] = old
    hparams = dict(config["hparams"])
    for name, field in fields.of(compiled.request.experiment.hparams).items():
        old, new = recorded["hparams"].get(name), hparams[name]
        is_name = hasattr(field.default, "__qualname__") and isinstance(old, str)
        if is_name and modules.is_same(old, new):
            hparams[name] = old
    name = config["experiment"]
    if modules.is_same(recorded["experiment"], name):
        name = recorded["experiment"]
    changes = {"experiment": name, "hparams": hparams, "computation": digests}
    return dict(config) | changes


def edit(then: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
    """What to say where a source was edited and computes what it did; else None.

    Args:
        then: The configuration that was recorded.
        now: That of today.
    """
    if then["source"] == now["source"] or then["computation"] != now["computation"]:
        return None
    pair = f"{then['source']} -> {now['source']}"
    return f"The source has been edited ({pair}); the computation is as it was."


def manifest(compiled: Compiled, cuts: Sequence[Mapping[str, int]]) -> dict[str, Any]:
    """What a run directory records before it starts.

    Args:
        compiled: The sweep to describe.
        cuts: For every group, what `planning.fit` says: the number of seeds and of
            cells of its program, and of cells of its chunks.
    """
    request = compiled.request
    experiment, devices = request.experiment, request.devices
    is_long = experiment.solver is not None
    lanes = request.lanes or (None, None)
    return {
        "format": manifests.FORMAT,
        "run": secrets.token_hex(8),
        "experiment": name_of(experiment),
        "source_path": source_path(experiment),
        "config": config(compiled),
        "counters": ["diverged_at", "ended_at"] if is_long else ["diverged_at"],
        "field_notes": results.notes_of(experiment.hparams),
        "layout": [
            results.to_layout(group, compiled.lane(g).metrics)
            | {"fields": [name for dim in request.dims for name in dim.fields]}
            | {"seeds": [0, request.num_seeds], **cut}
            for g, (group, cut) in enumerate(zip(request.groups, cuts, strict=True))
        ],
        "environment": environment(experiment, devices, request.backend),
        "lanes": dict(zip(("num_seeds", "num_cells"), lanes, strict=True)),
        "is_complete": False,
    }


def source_text(experiment: Experiment) -> bytes:
    """The experiment's whole file; in a notebook, its function; else nothing."""
    if path := source_path(experiment):
        return Path(path).read_bytes()
    try:
        return inspect.getsource(plain_function(experiment)).encode()
    except (OSError, TypeError):
        return b""


def commit(path: str | None) -> str:
    """The git commit of a file's checkout, "-dirty" if edited since; "" without one."""
    if path is None:
        return ""
    command = "git", "-C", str(Path(path).parent), "describe", "--always", "--dirty"
    try:
        done = subprocess.run(
            [*command, "--abbrev=40", "--exclude=*"],
            capture_output=True,
            text=True,
            timeout=10,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip()


def environment(
    experiment: Experiment, devices: Sequence[jax.Device], backend: str
) -> dict[str, Any]:
    """Who ran it, on what; for the reader, not compared."""
    now = datetime.datetime.now(datetime.UTC)
    return {
        "python": platform.python_version(),
        "numpy": np.__version__,
        "equinox": equinox.__version__,
        "machine": f"{platform.system()} {platform.machine()}",
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
        "commit": commit(source_path(experiment)),
        "num_devices": len(devices),
        "backend": backend,
        "begun": now.isoformat(timespec="seconds"),
        "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
    }
