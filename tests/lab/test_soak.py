"""A run to which everything happens that happens to runs, time and again."""

from collections import Counter
import errno
import itertools
import os
from pathlib import Path
import re
import resource
import signal
import time

import numpy as np
import pytest

from jaxlr.lab import chunks, load, RunDirectoryError, store, sweep
from tests.lab import _toys as toys


NUM_CHUNKS = 100


def _experiment(kind: str, num_cells: int):
    toy = toys.closed(num_steps=20) if kind == "closed" else toys.long(num_steps=8)
    return toy.replace(axes={"rate": np.linspace(0.01, 0.5, num_cells)})


def live(kind: str, num_cells: int, directory: str, trouble: str, after: int) -> None:
    """What a process does: sweep, on a disk that is full after some files.

    Args:
        kind: Closed or long.
        num_cells: Number of cells.
        directory: The run directory.
        trouble: What a full disk does: `"cut"` a file, or refuse to `"sync"` it.
        after: Number of files that there is room for.
    """
    chunks.SEGMENT_SECONDS = 1e-9  # every step of a long run has its checkpoint
    write, written = store.write_arrays, []

    def refuse(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def write_arrays(*args):
        if len(written) == after and trouble == "cut":
            _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
            resource.setrlimit(resource.RLIMIT_FSIZE, (1000, most))
        if len(written) == after and trouble == "sync":
            os.fsync = refuse
        written.append(args)
        write(*args)

    store.write_arrays = write_arrays
    experiment, chunk = _experiment(kind, num_cells), num_cells // NUM_CHUNKS
    sweep(experiment, directory=directory, resume=True, chunk=chunk)


class Soak:
    """One run, what is done to it, and what must then be true of it."""

    def __init__(self, kind: str, num_cells: int, directory: Path, seed: int):
        self.kind, self.num_cells, self.directory = kind, num_cells, directory
        self.rng, self.figures = np.random.default_rng(seed), Counter()
        self.ways = itertools.cycle((self._corrupt, self._truncate, self._swap))
        self.injured: set[Path] = set()
        self.sound: dict[Path, tuple[int, int]] = {}
        self.wanted = sweep(_experiment(kind, num_cells), chunk=num_cells // NUM_CHUNKS)

    def live(self, trouble: str) -> bool:
        """A process goes on with the run, less what is refused; whether to its end."""
        most = 8 if self.kind == "closed" else 40  # files of arrays
        after = int(self.rng.integers(0, most))
        words = self.kind, self.num_cells, str(self.directory), trouble, after
        code = f"from tests.lab import test_soak\ntest_soak.live(*{words!r})"
        process = toys.start(code)
        if trouble == "kill":
            self._wait_for_chunks(int(self.rng.integers(0, 8)), process)
            time.sleep(self.rng.uniform(0, 0.03))
            process.kill()
        _, err = process.communicate(timeout=600)
        if process.returncode == -signal.SIGKILL:
            self.figures["kills"] += 1
        self._nothing_sound_has_changed()
        if process.returncode in (0, -signal.SIGKILL):
            return process.returncode == 0
        if self._was_full(err.strip().splitlines()[-1], trouble):
            return False
        return self.live(trouble)

    def _wait_for_chunks(self, number, process):
        folder = self.directory / "chunks"
        wanted = len(list(folder.glob("*.npz"))) + number
        while process.poll() is None and len(list(folder.glob("*.npz"))) < wanted:
            time.sleep(0.002)

    def _was_full(self, line: str, trouble: str) -> bool:
        assert line.startswith("jaxlr.lab.store.RunDirectoryError"), line
        if "Could not write" not in line:
            self._delete_what_is_named(line)
            return False
        reason = {"cut": errno.EFBIG, "sync": errno.ENOSPC}[trouble]
        assert os.strerror(reason) in line
        assert not list(self.directory.rglob("*.tmp"))
        self.figures["full disks"] += 1
        return True

    def _delete_what_is_named(self, line: str) -> None:
        [name] = re.findall(r"(/\S+\.npz) (?:is corrupt|does not belong)", line)
        assert "Delete that one file" in line
        self.injured.remove(Path(name))  # no other may be named
        Path(name).unlink()
        self.figures["refused"] += 1

    def injure(self) -> None:
        """Corrupt, truncate or swap files."""
        for _ in range(self.rng.integers(1, 4)):
            files = sorted(self.directory.glob("*/*.npz"))
            if len(files) < 2:
                return
            two = [files[i] for i in self.rng.choice(len(files), 2, replace=False)]
            way = next(self.ways)
            for path in way(*two):
                self.injured.add(path)
                self.sound.pop(path, None)
            self.figures[way.__name__] += 1

    def _corrupt(self, path, _):
        content = bytearray(path.read_bytes())
        if content:
            at = self.rng.integers(len(content))
            content[at] ^= 1 << int(self.rng.integers(8))
        path.write_bytes(content)
        return [path]

    def _truncate(self, path, _):
        os.truncate(path, self.rng.integers(path.stat().st_size + 1))
        return [path]

    def _swap(self, path, other):
        content = path.read_bytes()
        path.write_bytes(other.read_bytes())
        other.write_bytes(content)
        return path, other

    def watch(self) -> None:
        """Load what is there: by the wanted bits, or not at all."""
        while True:
            try:
                found = load(self.directory)
            except RunDirectoryError as e:
                self._delete_what_is_named(str(e))
            else:
                break
        is_there = ~np.isnan(found.loss.values)
        lengths = np.repeat(self._num_rows(), self.num_cells // NUM_CHUNKS)
        steps = np.arange(is_there.shape[-1])
        assert (is_there == (steps < lengths[:, None, None])).all()
        assert (found.loss.values == self.wanted.loss.values)[is_there].all()
        assert found.attrs["is_complete"] == is_there.all()
        self.figures["watched"] += 1

    def _num_rows(self) -> list[int]:
        """How many steps of every chunk's curves are on disk."""
        names = [f"g000-c{i:05d}.npz" for i in range(NUM_CHUNKS)]
        rows = []
        for done, begun in ((f"chunks/{x}", f"segments/{x}") for x in names):
            segment = self.directory / begun
            if (self.directory / done).exists():
                rows.append(self.wanted.sizes["step"])
            else:
                rows.append(_step(segment) if segment.exists() else 0)
        return rows

    def _nothing_sound_has_changed(self):
        files = set(self.directory.glob("chunks/*.npz")) - self.injured
        now = {path: _stamp(path) for path in files}
        assert self.sound.items() <= now.items()
        self.sound = now


def _step(checkpoint: Path) -> int:
    return int(store.read_arrays(checkpoint)[0]["t"])


def _stamp(path: Path) -> tuple[int, int]:
    return path.stat().st_ino, path.stat().st_mtime_ns


@pytest.mark.parametrize(
    ("num_cells", "num_lives"),
    [
        pytest.param(400, 5, marks=pytest.mark.slow),
        pytest.param(10_000, 40, marks=pytest.mark.full),
    ],
)
@pytest.mark.parametrize("kind", ["closed", "long"])
def test_nothing_is_lost_and_nothing_wrong(tmp_path, kind, num_cells, num_lives):
    """Kills, full disks, and files corrupted, cut and swapped in between.

    What is wrong is refused by name; without that one file the run goes on, and keeps
    every other. In the end it is the run that nobody disturbed.
    """
    begun = time.perf_counter()
    soak = Soak(kind, num_cells, tmp_path / "run", num_lives)
    troubles = itertools.cycle(("kill", "cut", "kill", "sync"))
    for trouble in itertools.islice(troubles, num_lives):
        soak.live(trouble)
        soak.injure()
        if soak.rng.integers(2) and store.is_run(soak.directory):
            soak.watch()
    assert soak.live("none")
    toys.assert_equal(load(soak.directory), soak.wanted)
    assert not list(soak.directory.rglob("*.tmp"))
    seconds = time.perf_counter() - begun
    print(f"\n{kind}, {num_cells} cells: {dict(soak.figures)}, {seconds:.0f} s")
    for name in ("kills", "full disks", "refused", "_corrupt", "_truncate", "_swap"):
        assert soak.figures[name], name
