"""The one way in for finished results: from here, from executors, from disk.

What comes in is checked - whose it is, names, types, shapes - and kept. Only the gate
says that a run is complete: when every chunk has come in, and is there.
"""

from collections.abc import Mapping
import functools as ft
from pathlib import Path
from typing import Any, TYPE_CHECKING

import numpy as np

from jaxlr.lab import manifest as manifests, results, store
from jaxlr.lab.store import Chunk


if TYPE_CHECKING:
    import xarray as xr


class Gate:
    """Keeps finished chunks, on disk or in memory, and gives them back.

    Args:
        manifest: The manifest of the run.
        root: The run directory; None keeps the chunks in memory.
    """

    def __init__(self, manifest: dict[str, Any], root: Path | None = None):
        self.manifest, self.root = manifest, root
        self._held: set[Chunk] = set()
        self._seen: tuple[int, ...] | None = None

    @ft.cached_property
    def _results(self) -> results.Results:
        return results.Results(self.manifest)

    @ft.cached_property
    def _dtypes(self) -> dict[str, np.dtype]:
        """Name -> the dtype that a metric has once all chunks are there."""
        _, groups = results.from_manifest(self.manifest)
        merged = results.merged_metrics(groups)
        return {name: dtype for name, (_, dtype) in merged.items()}

    def is_done(self, chunk: Chunk) -> bool:
        """Whether the chunk has come in, and is there."""
        if self.root is None:
            return chunk in self._held
        return (self.root / "chunks" / chunk.filename).exists()

    def has_begun(self, chunk: Chunk) -> bool:
        """Whether the chunk is done, or its checkpoint is there."""
        if self.root is None:
            return self.is_done(chunk)
        segment = self.root / "segments" / chunk.filename
        return self.is_done(chunk) or segment.exists()

    def missing(self) -> list[Chunk]:
        """The chunks that are not done."""
        return [c for c in manifests.chunks(self.manifest) if not self.is_done(c)]

    def admit(self, chunk: Chunk, arrays: Mapping[str, np.ndarray]) -> None:
        """Keep the metrics of a finished chunk, leaves (seed, cell, ...).

        Raises:
            ValueError: If they are not what the chunk's must be.
            RunDirectoryError: If they cannot be kept.
        """
        if lines := manifests.misfits(self.manifest, chunk, arrays):
            raise ValueError(
                f"What was computed for cells {chunk.start}..{chunk.stop - 1} of block "
                f"{chunk.block} does not fit: {'; '.join(lines)}."
            )
        if self.root is None:
            self._results.insert(chunk, arrays)
            self._held.add(chunk)
            return
        self._check_whole(arrays)
        self.check_place()
        self._place("chunks", chunk).write(arrays)
        (self.root / "segments" / chunk.filename).unlink(missing_ok=True)

    def read(self, chunk: Chunk) -> dict[str, np.ndarray]:
        """The metrics of a finished chunk of a run directory.

        Raises:
            RunDirectoryError: If they are corrupt, another's, or not what they must be.
        """
        place = self._place("chunks", chunk)
        arrays = place.read()
        if lines := manifests.misfits(self.manifest, chunk, arrays):
            raise place.refused("; ".join(lines))
        return arrays

    def checkpoint(self, chunk: Chunk) -> store.Stored | None:
        """Where a long run keeps the state of the chunk; None: nowhere."""
        return None if self.root is None else self._place("segments", chunk)

    def close(self, timings: Mapping[str, float]) -> None:
        """Say that the run is complete, if it is.

        Raises:
            RuntimeError: If chunks are missing.
        """
        if missing := self.missing():
            raise RuntimeError(
                f"{len(missing)} of {len(manifests.chunks(self.manifest))} chunks are "
                f"missing at the end, the first of them with cells {missing[0].start}.."
                f"{missing[0].stop - 1} of block {missing[0].block}. Go on with resume."
            )
        if not self.manifest["is_complete"]:
            self.check_place()
            self.manifest |= {"is_complete": True, "timings": dict(timings)}
            self.write_manifest()

    def write_manifest(self) -> None:
        """Keep the manifest, where there is a directory."""
        if self.root is not None:
            path = self.root / store.MANIFEST
            store.write_json(path, self.manifest)
            self._seen = store.stamp(path)

    def check_place(self) -> None:
        """Refuse to go on where the directory has gone, or is another run's by now.

        Raises:
            RunDirectoryError: If it has, or is.
        """
        if self.root is None:
            return
        path = self.root / store.MANIFEST
        if not path.exists():
            raise store.RunDirectoryError(
                f"{path} has gone: its directory was deleted or moved while the run "
                "went on. Begin again, in another directory."
            )
        if (stamp := store.stamp(path)) != self._seen:
            if store.read_manifest(self.root)["run"] != self.manifest["run"]:
                raise store.RunDirectoryError(
                    f"{self.root} holds another run by now: it was deleted and begun "
                    "anew while this one went on. Use another directory."
                )
            self._seen = stamp

    def so_far(self, chunk: Chunk) -> tuple[dict[str, np.ndarray], float] | None:
        """What a run directory has of a chunk, and what share of it; None: nothing.

        Raises:
            RunDirectoryError: If a file is not what it must be.
        """
        if self.is_done(chunk):
            return self.read(chunk), 1.0
        place = self._place("segments", chunk)
        if not place.path.exists():
            return (self.read(chunk), 1.0) if self.is_done(chunk) else None
        saved = place.read()
        try:
            return results.so_far(self.manifest, chunk, saved)
        except (KeyError, TypeError, ValueError) as e:
            if not place.is_named:  # as format 1 kept it
                return None
            raise place.refused(f"it holds no curves of its metrics ({e})") from e

    def stamp(self, chunk: Chunk) -> tuple[int, ...]:
        """What tells the file that `so_far` reads from those before; () for none."""
        folders = (self._folder / name for name in ("chunks", "segments"))
        stamps = (store.stamp(folder / chunk.filename) for folder in folders)
        return next(filter(None, stamps), ())

    def dataset(self) -> "xr.Dataset":
        """The labelled results; what is not there is NaN.

        Raises:
            RunDirectoryError: If a file is not what it must be.
        """
        if self.root is None:
            return self._results.dataset()
        try:
            results.check_labels(*results.from_manifest(self.manifest))
            missing = {*self.missing()}
            found = results.Results(self.manifest, has_gaps=bool(missing))
        except ValueError as e:
            path = self.root / store.MANIFEST
            raise store.RunDirectoryError(f"{path} cannot be used: {e}") from e
        for chunk in manifests.chunks(self.manifest):
            is_done = chunk not in missing
            part = (self.read(chunk), 1.0) if is_done else self.so_far(chunk)
            if part is None:
                continue
            try:
                self._check_whole(part[0])
                found.insert(chunk, *part)
            except ValueError as e:
                what = f"{self.root} cannot be loaded: {e}"
                raise store.RunDirectoryError(what) from e
        return found.dataset()

    def _check_whole(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Refuse integers that will be too large once all chunks are there."""
        for name, dtype in self._dtypes.items():
            if name in arrays:  # else it is of other groups alone
                results.check_whole(name, arrays[name], dtype)

    @property
    def _folder(self) -> Path:
        if self.root is None:
            raise ValueError("The run is kept in memory: it has no files.")
        return self.root

    def _place(self, folder: str, chunk: Chunk) -> store.Stored:
        return store.Stored(
            self._folder / folder / chunk.filename,
            manifests.identity(self.manifest, chunk),
            is_named=self.manifest["format"] > 1,
        )


def load(directory: str | Path) -> "xr.Dataset":
    """The results of a run directory, finished or not; runs no code of its author.

    Also while another process writes there. What is not computed yet is NaN (integers
    become floats for it; counters are -1): whole cells, and the steps that a long run's
    cells have not reached, or had not when they were last kept
    (`Experiment.checkpoint_seconds`). `attrs["is_complete"]` says whether there are any
    gaps, and if so `share_done` what share of its steps every lane has.

    Args:
        directory: The run directory.

    Raises:
        RunDirectoryError: If there is no run, or a file of it is corrupt or another's.
    """
    root = store.folder(directory)
    return store.settled(root, lambda: Gate(store.read_manifest(root), root).dataset())
