"""Chunks as tasks for an executor: processes, Dask, SLURM by submitit, or any other.

Workers are sent a sweep once, not with every task: by a file that they see, or by Dask.
They say what they are, and give back arrays. A task may run twice, anywhere: the same
width and executable give the same bits.
"""

from collections.abc import Callable, Generator, Iterator, Mapping
import contextlib
import dataclasses
import hashlib
import json
import os
from pathlib import Path
import pickle
import shutil
import sys
import sysconfig
import tempfile
import time
from typing import Any
import warnings
import weakref

import jax
import numpy as np

from jaxlr.core.types import Experiment
from jaxlr.lab import chunks, find, manifest as manifests, modules, provenance, store
from jaxlr.lab.compiled import Compiled, kept, settings
from jaxlr.lab.memory import Machine
from jaxlr.lab.request import Request


SMALL = 2**16  # bytes that travel with every task, rather than by a file
# (Digest, settings) -> what this process has sent: its own threads are workers too.
_SENT: weakref.WeakValueDictionary[Any, Compiled] = weakref.WeakValueDictionary()
# Module of one's own -> digest of the file it was loaded from, in a worker.
_LOADED: dict[str, str] = {}
# Of no interest to a worker: it is told them, or has no files.
_TOLD = "axes", "hparams", "source"


@dataclasses.dataclass(frozen=True)
class _Sweep:
    """A sweep that travels.

    Attributes:
        module: Name of the module that defines the experiment's functions.
        file: File of the module; None for a notebook or script, whose functions travel
            whole.
        sources: Modules of one's own, as (name, digest of the file): a worker may have
            loaded earlier versions.
        folders: Where modules of one's own lie.
        request: The request, pickled.
    """

    module: str
    file: str | None
    sources: tuple[tuple[str, str], ...]
    folders: tuple[str, ...]
    request: bytes


@dataclasses.dataclass(frozen=True)
class _Parcel:
    """What travels with every task.

    Attributes:
        digest: Digest of the sweep that was sent.
        file: Where the sweep lies; None if it comes along.
        main: What the coordinator calls its own `__main__`.
        settings: Switches of jax, as (name, value), that the worker takes over.
    """

    digest: str
    file: str | None
    main: str
    settings: tuple[tuple[str, Any], ...]


class _Unseen(Exception):
    """The worker does not see the file in which the sweep lies."""


def _pack(request: Request) -> bytes:
    """A sweep, ready to travel.

    Raises:
        ValueError: If the experiment cannot be sent to another process.
    """
    # Claims and figures are not needed there, and may not be able to travel.
    experiment = request.experiment.replace(claims=None, figure=None, smoke={})
    name, file = _module_of(experiment)
    try:
        from jaxlr.lab.pickling import dumps
    except ImportError:
        dumps = pickle.dumps
        if file is None:
            raise ValueError(
                "An experiment defined in a notebook or script travels to an executor "
                'only with cloudpickle (`pip install "jaxlr[cluster]"`); or put it '
                "into a file and import it."
            ) from None
    try:
        content = dumps(dataclasses.replace(request, experiment=experiment, devices=()))
    except (pickle.PicklingError, AttributeError, TypeError) as e:
        raise ValueError(f"The experiment cannot be sent to an executor: {e}.") from e
    folders = [os.path.abspath(folder) for folder in sys.path]
    sweep = _Sweep(
        name,
        file,
        _sources(),
        tuple(folder for folder in folders if _is_own(folder)),
        content,
    )
    return pickle.dumps(sweep)


def _module_of(experiment: Experiment) -> tuple[str, str | None]:
    name = provenance.plain_function(experiment).__module__
    file = getattr(sys.modules.get(name), "__file__", None)
    return name, None if name == "__main__" else file


def _is_own(path: str) -> bool:
    """Whether the user wrote it, rather than installed it."""
    paths = sysconfig.get_paths()
    libraries = {paths[k] for k in ("stdlib", "platstdlib", "purelib", "platlib")}
    libraries.add(str(Path(__file__).parents[1]))
    return not any(Path(path).is_relative_to(library) for library in libraries)


def _sources() -> tuple[tuple[str, str], ...]:
    found = []
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__dict__", {}).get("__file__")
        is_main = name in ("__main__", "__mp_main__")
        if not is_main and file and str(file).endswith(".py") and _is_own(file):
            with contextlib.suppress(OSError):
                digest = hashlib.sha256(Path(file).read_bytes()).hexdigest()
                found.append((name, digest))
    return tuple(found)


def _unpack(parcel: _Parcel, content: bytes | None) -> Compiled:
    """In a worker: the sweep that was sent.

    Raises:
        _Unseen: If it was sent by a file that is not here.
    """
    if content is None:
        try:
            content = Path(str(parcel.file)).read_bytes()
        except OSError:
            raise _Unseen from None
        if hashlib.sha256(content).hexdigest() != parcel.digest:
            raise _Unseen
    sweep: _Sweep = pickle.loads(content)
    if any(_LOADED.get(name, source) != source for name, source in sweep.sources):
        for name, _ in sweep.sources:
            _forget(name)
    sys.path += [folder for folder in sweep.folders if folder not in sys.path]
    if sweep.file is not None and sweep.module not in sys.modules:
        find.load_module(sweep.module, sweep.file)
    _LOADED.update(sweep.sources)
    request = pickle.loads(sweep.request)
    return Compiled(dataclasses.replace(request, devices=tuple(jax.local_devices())))


def _forget(module: str) -> None:
    sys.modules.pop(module, None)
    parent, _, child = module.rpartition(".")
    if parent in sys.modules:
        vars(sys.modules[parent]).pop(child, None)


_UNSEEN = "the file of the sweep is not seen"


def _in_worker(
    function: Callable[..., Any],
    parcel: _Parcel,
    content: bytes | None,
    *arguments: Any,
) -> Any:
    """`function(sweep, *arguments)`; `_UNSEEN` where the sweep's file is not seen."""
    with contextlib.ExitStack() as stack:
        for name, value in parcel.settings:  # of this thread alone
            stack.enter_context(getattr(jax, name)(value))
        stack.callback(modules.MAIN.reset, modules.MAIN.set(parcel.main))
        try:
            key = parcel.digest, parcel.settings  # traces are made under these
            compiled = _SENT.get(key) or kept(key, lambda: _unpack(parcel, content))
        except _Unseen:
            return _UNSEEN
        return function(compiled, *arguments)


def _describe(compiled: Compiled) -> tuple[Machine, dict[str, Any], dict[str, Any]]:
    """What a worker is, what decides its bits, and what else is recorded of it."""
    devices = compiled.request.devices
    experiment, backend = compiled.request.experiment, compiled.request.backend
    environment = provenance.environment(experiment, devices, backend)
    for name in ("begun", "command", "commit"):  # the coordinator's
        del environment[name]
    return Machine.of(devices), provenance.config(compiled), environment


def _run_chunk(
    compiled: Compiled, wanted: Mapping[str, Any], work: chunks.Work
) -> dict[str, np.ndarray]:
    """Run one chunk in a worker.

    Raises:
        RuntimeError: If the worker would compute something else than is recorded:
            other versions, another platform, other files.
    """
    _refuse_differences(wanted, provenance.config(compiled, [work.group]))
    program = compiled.program(work.group, work.width, work.num_seeds)
    return chunks.run(compiled.request, program, work)


def _refuse_differences(wanted: Mapping[str, Any], found: Mapping[str, Any]) -> None:
    wanted, found = (json.loads(json.dumps(config)) for config in (wanted, found))
    if names := [n for n in wanted if n not in _TOLD and wanted[n] != found[n]]:
        pairs = ", ".join(f"{n}: {wanted[n]!r} / {found[n]!r}" for n in names)
        raise RuntimeError(f"The worker differs from the coordinator in {pairs}.")


class Team:
    """The workers of an executor, to which one sweep has been sent.

    Attributes:
        machine: What one of the workers is.
    """

    def __init__(
        self, executor: Any, compiled: Compiled, content: bytes, file: str | None
    ):
        digest = hashlib.sha256(content).hexdigest()
        main = modules.plain("__main__")
        self._parcel = _Parcel(digest, file, main, tuple(settings().items()))
        _SENT[digest, self._parcel.settings] = self._compiled = compiled
        self._executor, self._content, self._keywords = executor, content, {}
        client = getattr(executor, "_client", executor)
        if type(client).__module__.partition(".")[0] == "distributed":
            with warnings.catch_warnings():  # that it is large
                warnings.simplefilter("ignore")
                self._content = client.submit(bytes, content, pure=False)
            self._keywords = {"pure": False}  # or a failure would be remembered
        ((_, found),) = self._each(_describe, {None: ()})
        if isinstance(found, BaseException):
            raise RuntimeError(
                f"A worker could not take over the experiment: {found!r}."
            ) from found
        self.machine, self._config, self._environment = found

    def adopt(self, manifest: Mapping[str, Any]) -> dict[str, Any]:
        """The manifest of a run here as that of a run on the workers.

        Raises:
            RuntimeError: If they would compute something else.
        """
        config, theirs = manifest["config"], ["platform", "device_kind"]
        if config["platform"] != self._config["platform"]:
            theirs.append("computation")  # kernels are chosen by the platform
        found, same = self._config, [name for name in config if name not in theirs]
        _refuse_differences({name: config[name] for name in same}, found)
        self._config = config | {name: found[name] for name in theirs}
        return {
            **manifest,
            "config": self._config,
            "environment": manifest["environment"] | self._environment,
        }

    def run(
        self, works: Mapping[store.Chunk, chunks.Work]
    ) -> Generator[tuple[store.Chunk, dict[str, np.ndarray] | BaseException]]:
        """Run chunks; each with its arrays, or what went wrong, as they end.

        Args:
            works: Chunk -> its lanes and their program.
        """
        calls, groups = {}, self._compiled.request.groups
        for chunk, work in works.items():
            name = manifests.label(groups[work.group].static)
            one = {"computation": {name: self._config["computation"][name]}}
            wanted = {k: x for k, x in self._config.items() if k not in _TOLD} | one
            calls[chunk] = wanted, work
        return self._each(_run_chunk, calls)

    def _each(
        self, function: Callable[..., Any], calls: Mapping[Any, tuple[Any, ...]]
    ) -> Generator[tuple[Any, Any]]:
        """(key, what the function returned or raised), as the calls end."""
        waiting = {self._submit(function, calls[key]): key for key in calls}
        since = time.monotonic()
        try:
            while waiting:
                ended = [future for future in waiting if future.done()]
                for future in ended:
                    key = waiting.pop(future)
                    try:
                        result = future.result()
                    except (Exception, SystemExit) as e:
                        result = e
                    if not isinstance(result, str) or result != _UNSEEN:
                        yield key, result
                        continue
                    self._parcel = dataclasses.replace(self._parcel, file=None)
                    waiting[self._submit(function, calls[key])] = key
                if ended:
                    since = time.monotonic()
                else:  # a tenth of the time may be lost, a second at most
                    waited = time.monotonic() - since
                    time.sleep(min(max(waited / 10, 1e-3), 1.0))
        finally:
            for future in waiting:
                future.cancel()

    def _submit(self, function, arguments):
        content = None if self._parcel.file is not None else self._content
        arguments = function, self._parcel, content, *arguments
        return self._executor.submit(_in_worker, *arguments, **self._keywords)


@contextlib.contextmanager
def team(executor: Any, compiled: Compiled, root: Path | None) -> Iterator[Team]:
    """Send a sweep to the workers of an executor.

    Args:
        executor: Has `submit(function, *arguments)`, whose futures have `done`,
            `result` and `cancel`.
        compiled: The sweep.
        root: The run directory, where workers on other machines see what is sent; None
            for this machine's folder of temporary files.

    Raises:
        ValueError: If it is no executor, or one that forks, or if the experiment
            cannot be sent.
        RuntimeError: If a worker cannot take it over.
    """
    if not hasattr(executor, "submit"):
        raise ValueError(
            "`executor` must be a concurrent.futures.Executor, or one of submitit or "
            f"Dask, got {executor!r}."
        )
    context = getattr(executor, "_mp_context", None)
    if context is not None and context.get_start_method() == "fork":
        raise ValueError(
            "`executor` forks this process, which hangs once jax has threads. Use "
            'ProcessPoolExecutor(mp_context=multiprocessing.get_context("spawn")).'
        )
    for group in range(len(compiled.request.groups)):
        compiled.lane(group)  # imports what functions import when they are called
    content = _pack(compiled.request)
    with contextlib.ExitStack() as stack:
        file = None
        for left in [] if root is None else root.glob(store.SENT + "*"):
            shutil.rmtree(left, ignore_errors=True)
        if len(content) > SMALL:
            folder = tempfile.TemporaryDirectory(
                prefix=store.SENT, dir=root, ignore_cleanup_errors=True
            )
            file = Path(stack.enter_context(folder), "sweep").resolve()
            store.write_atomically(file, lambda written: written.write(content))
        yield Team(executor, compiled, content, file and str(file))
