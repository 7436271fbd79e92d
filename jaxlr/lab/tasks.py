"""Chunks as tasks for any `concurrent.futures.Executor`.

A task carries the sweep as bytes, and the file that its functions come from, so that a
worker that has never seen them can load them; it gives back arrays. It may run twice,
anywhere: the same width and executable give the same bits.
"""

import dataclasses
import json
import os
import pickle
import socket
import sys
from typing import Any

import jax
import numpy as np

from jaxlr.lab import chunks, find, provenance, store
from jaxlr.lab.compiled import Compiled, kept, settings


# Module -> digest of the file it was loaded from, in a worker.
_LOADED: dict[str, str] = {}


@dataclasses.dataclass(frozen=True)
class Payload:
    """A sweep that travels.

    Attributes:
        module: Name of the module that defines the experiment's functions.
        file: File of the module; None for a notebook or script, whose functions travel
            whole.
        source: Digest of the file: a worker may have loaded an earlier version.
        process: Host and process id of the sender, whose module is as it should be.
        settings: Switches of jax, as (name, value), that the worker takes over.
        config: What must be equal in the worker, as JSON.
        content: The request, pickled.
    """

    module: str
    file: str | None
    source: str
    process: tuple[str, int]
    settings: tuple[tuple[str, Any], ...]
    config: str
    content: bytes


def pack(compiled: Compiled) -> Payload:
    """Make a sweep ready to travel.

    Raises:
        ValueError: If the experiment cannot be sent to another process.
    """
    # Claims and figures are not needed there, and may not be able to travel.
    request = compiled.request
    experiment = request.experiment.replace(claims=None, figure=None, smoke={})
    name = experiment.function.__module__
    file = getattr(sys.modules.get(name), "__file__", None)
    file = None if name == "__main__" else file
    try:
        import cloudpickle as pickler
    except ImportError:
        pickler = pickle
        if file is None:
            raise ValueError(
                "An experiment defined in a notebook or script travels to an executor "
                'only with cloudpickle (`pip install "jaxlr[cluster]"`); or put it '
                "into a file and import it."
            ) from None
    try:
        content = pickler.dumps(
            dataclasses.replace(request, experiment=experiment, devices=())
        )
    except (pickle.PicklingError, AttributeError, TypeError) as e:
        raise ValueError(f"The experiment cannot be sent to an executor: {e}.") from e
    return Payload(
        name,
        file,
        provenance.source_digest(request.experiment),
        _this_process(),
        tuple(settings().items()),
        json.dumps(provenance.config(compiled)),
        content,
    )


def _this_process() -> tuple[str, int]:
    return socket.gethostname(), os.getpid()


def run_chunk(
    payload: Payload, width: int, chunk: store.Chunk
) -> dict[str, np.ndarray]:
    """Run one chunk in a worker, `width` cells on each of its devices.

    Raises:
        RuntimeError: If the worker would compute something else than the coordinator:
            other versions, another platform, other files.
    """
    compiled = kept(payload, lambda: _unpack(payload))
    program = compiled.program(chunk.group, width)
    return chunks.run(compiled.request, program, chunk)


def _unpack(payload: Payload) -> Compiled:
    if payload.file is not None and payload.process != _this_process():
        if _LOADED.get(payload.module, payload.source) != payload.source:
            sys.modules.pop(payload.module, None)
        if payload.module not in sys.modules:
            find.load_module(payload.module, payload.file)
        _LOADED[payload.module] = payload.source
    for name, value in payload.settings:
        jax.config.update(f"jax_{name}", value)
    request = pickle.loads(payload.content)
    request = dataclasses.replace(request, devices=tuple(jax.local_devices()))
    compiled = Compiled(request)
    wanted = json.loads(payload.config)
    found = json.loads(json.dumps(provenance.config(compiled)))
    if provenance.source_path(request.experiment) is None:
        found["source"] = wanted["source"]  # it came along, by value, without its file
    if differing := [name for name in wanted if wanted[name] != found[name]]:
        pairs = ", ".join(f"{n}: {wanted[n]!r} / {found[n]!r}" for n in differing)
        raise RuntimeError(f"The worker differs from the coordinator in {pairs}.")
    return compiled
