"""A run directory: a manifest, one file a finished chunk, one a chunk in flight.

    manifest.json              what is run, where and how; written before any chunk
    chunks/g000-c00000.npz     all metrics of one finished chunk
    segments/g000-c00000.npz   the state of a long run's chunk in flight
    .lock                      held by the one process that writes here

A file appears whole or not at all (written beside, synced, renamed). Reading never
executes anything: npz without pickle, JSON. zip's own checksums reveal corruption.
"""

from collections.abc import Mapping
import contextlib
import dataclasses
import fcntl
import json
import os
from pathlib import Path
import signal
import socket
import threading
from typing import Any
import zipfile

import jax.numpy as jnp
import numpy as np


FORMAT = 1
MANIFEST = "manifest.json"
_BITS = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}


class RunDirectoryError(RuntimeError):
    """A run directory cannot be used as asked; the message says what to do."""


@contextlib.contextmanager
def _uninterrupted():
    """Ctrl-C waits to the end: within `zipfile` it may come out as a ValueError."""
    if threading.current_thread() is not threading.main_thread():
        yield  # Ctrl-C is never heard here
        return
    heard = []
    handler = signal.signal(signal.SIGINT, lambda *args: heard.append(args))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler or signal.default_int_handler)
    if heard and callable(handler):
        handler(*heard[0])


@_uninterrupted()
def write_atomically(path: Path, write) -> None:
    """Have `write(file)` fill a new file, then let it take `path`'s place.

    Raises:
        RunDirectoryError: If the disk refuses; what stood at `path` still stands.
    """
    beside = path.with_name(path.name + ".tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with beside.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as e:
        with contextlib.suppress(OSError):
            beside.unlink(missing_ok=True)
        raise RunDirectoryError(
            f"Could not write {path}: {e.strerror or e}. What was finished before is "
            "kept; make room, or repair the disk, and go on with resume (`--resume`)."
        ) from e


def write_arrays(path: Path, arrays: Mapping[str, Any]) -> None:
    """Store arrays, whatever their dtype: what npz does not know goes as bits."""
    kinds, plain = {}, {}
    for name, array in arrays.items():
        array = np.asarray(array)
        kinds[name] = array.dtype.name
        is_known = array.dtype.kind in "biufc"
        plain[name] = array if is_known else array.view(_BITS[array.dtype.itemsize])
    header = np.frombuffer(json.dumps(kinds).encode(), np.uint8)

    def write(file):  # `np.savez`, whose own arguments forbid some names
        with zipfile.ZipFile(file, "w") as archive:
            for name, array in {"__dtypes__": header, **plain}.items():
                with archive.open(f"{name}.npy", "w", force_zip64=True) as entry:
                    np.lib.format.write_array(entry, array, allow_pickle=False)

    write_atomically(path, write)


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """What `write_arrays` stored.

    Raises:
        RunDirectoryError: If the file is corrupt.
    """
    try:
        with path.open("rb") as raw, np.load(raw, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        kinds = json.loads(arrays.pop("__dtypes__").tobytes())
        return {
            name: arrays[name].view(jnp.dtype(kind)) for name, kind in kinds.items()
        }
    except Exception as e:  # damaged bytes raise a dozen kinds
        raise RunDirectoryError(
            f"{path} is corrupt ({type(e).__name__}: {e}). Delete that one file and go "
            "on with resume (`--resume`): only its cells are computed again."
        ) from e


def write_json(path: Path, content: Any) -> None:
    """Store JSON, readable."""
    text = json.dumps(content, indent=1).encode()
    write_atomically(path, lambda file: file.write(text))


def read_manifest(directory: Path) -> dict[str, Any]:
    """The manifest of a run directory.

    Raises:
        RunDirectoryError: If there is none, or it is unreadable or of another format.
    """
    path = directory / MANIFEST
    try:
        manifest = json.loads(path.read_text())
    except FileNotFoundError as e:
        raise RunDirectoryError(f"{directory} holds no run: no {MANIFEST}.") from e
    except (OSError, ValueError) as e:
        raise RunDirectoryError(
            f"{path} cannot be read: {e}. Restore it, or use another directory."
        ) from e
    is_whole = isinstance(manifest, dict) and {"config", "layout"} <= manifest.keys()
    if not is_whole or manifest.get("format") != FORMAT:
        raise RunDirectoryError(
            f"{path} is no manifest of format {FORMAT}. Restore it, or use another "
            "directory."
        )
    return manifest


def is_run(directory: Path) -> bool:
    """Whether a run lives there; what a start left that died at once is none.

    Raises:
        RunDirectoryError: If something else lives there.
    """
    if (directory / MANIFEST).exists():
        return True
    if directory.exists() and not directory.is_dir():
        raise RunDirectoryError(f"{directory} is not a directory.")
    ours = {".lock", "chunks", "segments", MANIFEST + ".tmp"}
    found = sorted(p.name for p in directory.iterdir()) if directory.exists() else []
    if others := [name for name in found if name not in ours]:
        raise RunDirectoryError(
            f"{directory} is no run directory and not empty: it holds {others[0]!r}."
        )
    if any(directory.glob("chunks/*.npz")) or any(directory.glob("segments/*.npz")):
        raise RunDirectoryError(  # of which sweep, nobody knows
            f"{directory} holds chunks, but not their {MANIFEST}. Restore it, or use "
            "another directory."
        )
    return False


@dataclasses.dataclass(frozen=True)
class Chunk:
    """Cells `start:stop` of a group.

    Attributes:
        group: Index of the group.
        index: Index of the chunk in its group.
        start: Index of the first cell, counted in the group.
        stop: Index after the last cell.
    """

    group: int
    index: int
    start: int
    stop: int

    @property
    def filename(self) -> str:
        """Name of the file of the finished chunk, and of that of its checkpoint."""
        return f"g{self.group:03d}-c{self.index:05d}.npz"


def chunks(manifest: Mapping[str, Any], group: int | None = None) -> list[Chunk]:
    """The chunks of a run, in order.

    Args:
        manifest: The manifest of the run.
        group: Index of the group whose chunks are wanted; None for all groups.
    """
    found = []
    for g, layout in enumerate(manifest["layout"]):
        size, num_cells = layout["chunk"], len(layout["cells"])
        found += [
            Chunk(g, i, start, min(start + size, num_cells))
            for i, start in enumerate(range(0, num_cells, size))
            if group in (None, g)
        ]
    return found


def clean(directory: Path) -> None:
    """Remove half-written files that a killed process left."""
    for pattern in (MANIFEST + ".tmp", "chunks/*.npz.tmp", "segments/*.npz.tmp"):
        for path in directory.glob(pattern):
            path.unlink(missing_ok=True)


@contextlib.contextmanager
def lock(directory: Path):
    """Be the one process that writes here; the lock of a dead one is free.

    Raises:
        RunDirectoryError: If another process holds it, with its host and process id.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        file = (directory / ".lock").open("a+")
    except OSError as e:
        raise RunDirectoryError(f"Could not open {directory}: {e.strerror}.") from e
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as e:
            file.seek(0)
            owner = file.read().strip() or "another process"
            raise RunDirectoryError(
                f"{directory} is in use by {owner}. Wait for it, or use another "
                "directory."
            ) from e
        owner = f"host {socket.gethostname()}, process {os.getpid()}"
        try:
            file.truncate(0)
            os.write(file.fileno(), owner.encode())
        except OSError as e:
            raise RunDirectoryError(f"Could not lock {directory}: {e.strerror}.") from e
        yield


def refuse_changes(
    directory: Path,
    recorded: Mapping[str, Any],
    now: Mapping[str, Any],
    is_forced: bool,
) -> list[str]:
    """Compare two manifests, field by field.

    What decides which lanes there are, and what their metrics look like, cannot be
    forced; source, hyper-parameters and versions can. A source that was edited and
    computes what it did is no change.

    Returns:
        A line for every change that was forced.

    Raises:
        RunDirectoryError: Naming every field that differs.
    """
    name, other = recorded["experiment"], now["experiment"]
    if name != other:
        raise RunDirectoryError(
            f"{directory} holds a run of {name!r}, not of {other!r}; use another "
            "directory."
        )
    old, new = (_flat(json.loads(json.dumps(m))) for m in (recorded, now))
    changed = [k for k in sorted({*old, *new}) if repr(old.get(k)) != repr(new.get(k))]
    if not any(k.startswith("computation.") for k in changed):
        changed = [k for k in changed if k != "source"]
    lanes = ("axes", "num_seeds", "seed", "metrics")
    fixed = [k for k in changed if k.split(".")[0] in lanes]
    lines = [
        f"{k}: {old.get(k, 'absent')!r} -> {new.get(k, 'absent')!r}" for k in changed
    ]
    if not changed or (is_forced and not fixed):
        return lines
    listed = "\n  ".join(lines)
    advice = "Start afresh in another directory"
    if not fixed:
        advice += (
            ', or force it (resume="force", `--resume --force`): old and new results '
            "are then mixed"
        )
    raise RunDirectoryError(
        f"{directory} cannot be resumed; since it was begun, these have changed:\n  "
        f"{listed}\n{advice}."
    )


def _flat(manifest: Mapping[str, Any]) -> dict[str, Any]:
    flat = {}
    for name, value in manifest["config"].items():
        nested = value if isinstance(value, dict) else {"": value}
        flat |= {f"{name}.{k}" if k else name: v for k, v in nested.items()}
    for group, layout in enumerate(manifest["layout"]):
        for name, metric in layout["metrics"].items():
            flat[f"metrics.{name} (group {group})"] = [metric["shape"], metric["dtype"]]
    return flat
