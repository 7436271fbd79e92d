"""A run directory: a manifest, one file a finished chunk, one a chunk in flight.

    manifest.json              what is run, where and how; written before any chunk
    source.py                  the experiment's file as it was: to be read, never run
    chunks/g000-c00000.npz     all metrics of one finished chunk
    segments/g000-c00000.npz   the state of a long run's chunk in flight
    sent-.../sweep             what workers are being sent, until they are done
    .lock, .owner              held by the one process that writes here; which it is

A file appears whole or not at all (written beside, synced, renamed). Reading never
executes anything: npz without pickle, JSON. A file of arrays says whose they are, and
the checksum of each.
"""

from collections.abc import Callable, Mapping
import contextlib
import dataclasses
import errno
import hashlib
import io
import json
import os
from pathlib import Path
import socket
from typing import Any, TypeVar
from urllib.parse import quote
import zipfile

import filelock
import jax.numpy as jnp
import numpy as np

from jaxlr.lab import modules, signals
from jaxlr.lab.manifest import (
    brief,
    Chunk as Chunk,
    chunks as chunks,
    differing,
    label,
    signed,
    validated,
)


MANIFEST = "manifest.json"
SENT = "sent-"  # so begin folders of what is being sent to workers
SOURCE = "source.py"
_HEADER = "header.json"
_BITS = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EIO}
_NO_FLOCK = {errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL}
_DAMAGED = {None, errno.EINVAL}  # seeking where damaged bytes say raises this
_DELETE = (
    "Delete that one file and go on with resume (`--resume`): only its cells are "
    "computed again."
)


_T = TypeVar("_T")


class RunDirectoryError(RuntimeError):
    """A run directory cannot be used as asked; the message says what to do."""


def folder(directory: str | Path) -> Path:
    """A directory as the user wrote it, `~` expanded."""
    return Path(directory).expanduser()


@signals.held()
def write_atomically(path: Path, write) -> None:
    """Have `write(file)` fill a new file, then let it take `path`'s place.

    Raises:
        RunDirectoryError: If the disk refuses; what stood at `path` still stands.
    """
    beside = path.with_name(path.name + ".tmp")
    try:
        path.parent.mkdir(exist_ok=True)
        with beside.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
        _sync_folder(path.parent)
    except OSError as e:
        with contextlib.suppress(OSError):
            beside.unlink(missing_ok=True)
        raise RunDirectoryError(
            f"Could not write {path}: {e.strerror or e}. What was finished before is "
            "kept; make room, or repair the disk, and go on with resume (`--resume`)."
        ) from e


def _sync_folder(path: Path) -> None:
    """Make a new name durable, where folders can be synced: FUSE and Windows cannot."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as e:
        if e.errno in _FULL:
            raise


def write_arrays(
    path: Path,
    arrays: Mapping[str, Any],
    identity: Mapping[str, Any] | None = None,
) -> None:
    """Store arrays, whatever their names and dtypes: what npz has not goes as bits.

    Args:
        path: The file.
        arrays: Name -> array.
        identity: Whose they are, as JSON.
    """
    plain, records = {}, {}
    for name, array in arrays.items():
        array = np.asarray(array)
        is_known = array.dtype.kind in "biufc"
        plain[name] = array if is_known else array.view(_BITS[array.dtype.itemsize])
        records[name] = _record(plain[name], array.dtype)
    header = json.dumps({"identity": identity, "arrays": records})

    def write(file):  # `np.savez`, whose own arguments forbid some names
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr(_HEADER, header)
            for name, array in plain.items():
                with archive.open(_member(name), "w", force_zip64=True) as entry:
                    np.lib.format.write_array(entry, array, allow_pickle=False)

    write_atomically(path, write)


def _record(plain: np.ndarray, dtype: np.dtype) -> dict[str, Any]:
    """What an array is, and the checksum of its bits."""
    content = np.ascontiguousarray(plain).reshape(-1).view(np.uint8)
    sha = hashlib.sha256(content.data).hexdigest()
    return {"dtype": dtype.name, "shape": list(plain.shape), "sha256": sha}


def _member(name: str) -> str:
    return quote(name, safe=" ", errors="surrogatepass") + ".npy"


def read_arrays(path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any] | None]:
    """What `write_arrays` stored, and whose it is; None in a file of format 1.

    Raises:
        RunDirectoryError: If the file cannot be read, or is corrupt.
    """
    try:
        with path.open("rb") as raw, zipfile.ZipFile(raw) as archive:
            if _HEADER in archive.namelist():
                header = json.loads(archive.read(_HEADER))
                names = {name: _member(name) for name in header["arrays"]}
                kinds = {name: r["dtype"] for name, r in header["arrays"].items()}
            else:
                header = {"identity": None, "arrays": {}}
                kinds = json.loads(_array(archive, "__dtypes__.npy").tobytes())
                names = {name: f"{name}.npy" for name in kinds}
            plain = {name: _array(archive, member) for name, member in names.items()}
            dtypes = {name: np.dtype(jnp.dtype(kind)) for name, kind in kinds.items()}
            for name, record in header["arrays"].items():
                if record != _record(plain[name], dtypes[name]):
                    raise ValueError(f"{name!r} is not what was written")
            arrays = {name: x.view(dtypes[name]) for name, x in plain.items()}
            return arrays, header["identity"]
    except MemoryError:
        raise
    except Exception as e:  # damaged bytes raise a dozen kinds
        if isinstance(e, OSError) and e.errno not in _DAMAGED:
            raise _unreadable(path, e) from e
        what = f"{type(e).__name__}: {e}"
        raise RunDirectoryError(f"{path} is corrupt ({what}). {_DELETE}") from e


def _unreadable(path: Path, error: OSError) -> RunDirectoryError:
    """The error for a file whose storage fails: what is in it may be well."""
    reason = error.strerror or error
    return RunDirectoryError(f"{path} cannot be read ({reason}); try again.")


def _array(archive: zipfile.ZipFile, member: str) -> np.ndarray:
    content = io.BytesIO(
        archive.read(member)
    )  # whole, so that zip's own sum is checked
    return np.lib.format.read_array(content, allow_pickle=False)


@dataclasses.dataclass(frozen=True)
class Stored:
    """A place for arrays of which it is known whose they must be.

    Attributes:
        path: The file.
        identity: Whose the arrays in it must be.
        is_named: Whether a file that does not say whose it is will be refused.
    """

    path: Path
    identity: Mapping[str, Any]
    is_named: bool

    def write(self, arrays: Mapping[str, Any]) -> None:
        """Store arrays under their name."""
        write_arrays(self.path, arrays, self.identity)

    def read(self) -> dict[str, np.ndarray]:
        """The arrays that are stored.

        Raises:
            RunDirectoryError: If they are corrupt, or another's.
        """
        arrays, found = read_arrays(self.path)
        if found is None and self.is_named:
            raise self.refused("it does not say whose it is")
        if found is not None and (names := differing(found, self.identity)):
            sides = ((n, brief(found.get(n)), self.identity.get(n)) for n in names)
            pairs = (f"{n} {theirs}, not {brief(ours)}" for n, theirs, ours in sides)
            raise self.refused("it is of " + "; of ".join(pairs))
        return arrays

    def refused(self, reason: str) -> RunDirectoryError:
        """The error for a file whose arrays are not those that belong there."""
        return RunDirectoryError(
            f"{self.path} does not belong to this run: {reason}. {_DELETE}"
        )


def write_json(path: Path, manifest: Mapping[str, Any]) -> None:
    """Store a manifest, readable, with its digest."""
    text = json.dumps(signed(manifest), indent=1).encode()
    write_atomically(path, lambda file: file.write(text))


def read_manifest(directory: Path, name: str = MANIFEST) -> dict[str, Any]:
    """The manifest of a run directory.

    Args:
        directory: The run directory.
        name: Name of the manifest's file.

    Raises:
        RunDirectoryError: If there is none, or it is unreadable, of another format, or
            has been edited into what no run has.
    """
    path = directory / name
    try:
        return validated(json.loads(path.read_bytes()))
    except FileNotFoundError as e:
        raise RunDirectoryError(f"{directory} holds no run: no {name}.") from e
    except OSError as e:
        raise _unreadable(path, e) from e
    except ValueError as e:
        raise RunDirectoryError(
            f"{path} cannot be read: {e}. Restore it, or use another directory."
        ) from e


def stamp(path: Path) -> tuple[int, ...]:
    """What tells a file from those that had its name before; () if there is none."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return ()
    return found.st_ino, found.st_mtime_ns


def settled(directory: Path, read_fn: Callable[[], _T]) -> _T:
    """What `read_fn()` returns, called again where a sweep changed what it reads.

    Raises:
        RunDirectoryError: By `read_fn`, for files that stand still.
    """
    while True:
        before = _changing(directory)
        try:
            return read_fn()
        except RunDirectoryError:
            if _changing(directory) == before:
                raise


def _changing(directory: Path) -> dict[Path, tuple[int, ...]]:
    """The files that a running sweep replaces or removes, with their stamps."""
    paths = [directory / MANIFEST, *directory.glob("segments/*.npz")]
    return {path: stamp(path) for path in paths}


def is_run(directory: Path) -> bool:
    """Whether a run lives there; what a start left that died at once is none.

    Raises:
        RunDirectoryError: If something else lives there.
    """
    if (directory / MANIFEST).exists():
        return True
    if directory.exists() and not directory.is_dir():
        raise RunDirectoryError(f"{directory} is not a directory.")
    names = ".lock", ".lock.soft", ".owner", "chunks", "segments", SOURCE
    ours = {*names, f"{MANIFEST}.tmp", f"{SOURCE}.tmp"}
    found = sorted(p.name for p in directory.iterdir()) if directory.exists() else []
    found = [name for name in found if not name.startswith(SENT)]
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


def clean(directory: Path) -> None:
    """Remove half-written files that a killed process left."""
    names = "*.json.tmp", f"{SOURCE}.tmp", "chunks/*.npz.tmp", "segments/*.npz.tmp"
    for pattern in names:
        for path in directory.glob(pattern):
            path.unlink(missing_ok=True)


@contextlib.contextmanager
def lock(directory: Path):
    """Be the one process that writes here; the lock of a dead one is free.

    Where the file system has no locks, a file that exists while the lock is held stands
    in; one that a dead process of this host left counts for nothing.

    Raises:
        RunDirectoryError: If another process holds it, with its host and process id.
    """
    owner = directory / ".owner"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with contextlib.ExitStack() as stack:
            # Somebody may be asking whether it is in use.
            _enter_lock(stack, directory / ".lock", timeout=0.2)
            owner.write_text(f"host {socket.gethostname()}, process {os.getpid()}")
            held = stack.pop_all()
    except filelock.Timeout as e:
        whose = owner.read_text() if owner.exists() else "another process"
        raise RunDirectoryError(
            f"{directory} is in use by {whose}. Wait for it, or use another directory. "
            f"If that process has ended, delete {e.lock_file} and try again."
        ) from e
    except OSError as e:
        raise RunDirectoryError(f"Could not lock {directory}: {e.strerror}.") from e
    with held:
        yield


def _enter_lock(stack: contextlib.ExitStack, path: Path, timeout: float) -> None:
    try:
        hard = filelock.FileLock(path, timeout=timeout, fallback_to_soft=False)
        stack.enter_context(hard)
    except (NotImplementedError, OSError) as e:
        is_missing = isinstance(e, NotImplementedError) or e.errno in _NO_FLOCK
        if isinstance(e, filelock.Timeout) or not is_missing:
            raise
        soft = path.with_name(path.name + ".soft")
        stack.enter_context(filelock.SoftFileLock(soft, timeout=timeout))


def is_in_use(directory: Path) -> bool:
    """Whether a process holds the lock; so it seems where this one may not ask."""
    path = directory / ".lock"
    if not (path.exists() or path.with_name(".lock.soft").exists()):
        return False
    try:
        with contextlib.ExitStack() as stack:
            _enter_lock(stack, path, timeout=0)
    except OSError:  # a timeout, or storage that this process may not write to
        return True
    return False


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
    if not modules.is_same(name, other):
        raise RunDirectoryError(
            f"{directory} holds a run of {name!r}, not of {other!r}; use another "
            "directory."
        )
    old, new = (_flat(json.loads(json.dumps(m))) for m in (recorded, now))
    changed = [k for k in sorted({*old, *new}) if repr(old.get(k)) != repr(new.get(k))]
    changed = [k for k in changed if k != "experiment"]  # it is the same, see above
    if not any(k.startswith("computation.") for k in changed):
        changed = [k for k in changed if k != "source"]
    lanes = ("axes", "num_seeds", "seed", "metrics", "halving")
    fixed = [k for k in changed if k.split(".")[0] in lanes]
    lines = [
        f"{k}: {brief(old.get(k, 'absent'))} -> {brief(new.get(k, 'absent'))}"
        for k in changed
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
    for block in manifest["layout"]:
        for name, metric in block["metrics"].items():
            group = label(block["static"])
            flat[f"metrics.{name} ({group})"] = [metric["shape"], metric["dtype"]]
    return flat
