"""What the processes of the matrix do: begin runs, go on with those of others."""

from concurrent.futures import ProcessPoolExecutor
import multiprocessing
from pathlib import Path
import shutil
import signal
from unittest import mock

import pytest

from jaxlr.lab import chunks, load, progress, replay, sweep
from tests.lab import _toys as toys


CHUNK, NUM_SEEDS = 2, 2
CELLS = 0, -1  # of them one was computed where the run was begun, one where it went on


def begin(experiments, root: Path) -> None:
    """Stop each by Ctrl-C in the midst of its second chunk."""
    for kind, experiment in experiments.items():
        lanes, advance = [], progress.Progress.advance

        def stopping(self, new, lanes=lanes, advance=advance):
            advance(self, new)
            lanes.append(new)
            if sum(lanes) > 1.4 * CHUNK * NUM_SEEDS:
                signal.raise_signal(signal.SIGINT)

        with mock.patch.object(progress.Progress, "advance", stopping):
            with pytest.raises(KeyboardInterrupt, match="1 of 3 chunks are kept"):
                sweep(experiment, directory=root / kind, chunk=CHUNK)
        assert (kind == "long") == any((root / kind / "segments").glob("*.npz"))
    print("begun")


def go_on(experiments, begun: Path, root: Path) -> None:
    """Resume copies of all runs, here and by a spawned process; replay their cells."""
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn) as pool:
        for first in sorted(p for p in begun.iterdir() if p.is_dir()):
            for kind, experiment in experiments.items():
                for how, executor in (("resume", None), ("executor", pool)):
                    directory = root / how / first.name / kind
                    shutil.copytree(first / kind, directory)
                    found = sweep(
                        experiment, directory=directory, resume=True, executor=executor
                    )
                    toys.assert_equal(found, load(directory))
                _replay(experiment, directory)
    print("went on")


def _replay(experiment, directory: Path) -> None:
    kept = load(directory)
    for at in CELLS:
        rate = kept.rate.values[at].item()
        found = replay(directory, {"rate": rate}, 1, experiment=experiment)
        said = found.attrs["replay"]
        assert said.startswith("Equal bit by bit (expected bit by bit"), said
        wanted = kept.sel(rate=rate, seed=1)
        for name in kept.data_vars:
            assert found[name].values.tobytes() == wanted[name].values.tobytes(), name


def sweep_slowly(experiment, directory: str) -> None:
    """What the processes do that are killed."""
    chunks.SEGMENT_SECONDS = 0.02
    Path("ready").touch()
    sweep(experiment, directory=directory, resume=True, chunk=CHUNK)
