import contextlib
import errno
import json
import os
from pathlib import Path
import pickle
import shutil
import socket
import subprocess
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from jaxlr.core import Experiment
from jaxlr.lab import find, load, replay, RunDirectoryError, store, sweep
from tests.lab import _toys as toys


DTYPES = (
    *("bool", "int8", "uint8", "int16", "int32", "int64", "uint64"),
    *("float16", "float32", "float64", "complex64", "complex128"),
    *("bfloat16", "float8_e4m3fn"),
)


@pytest.mark.parametrize("shape", [(), (0, 3), (2, 3)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_arrays_of_any_dtype_come_back_bit_by_bit(tmp_path, dtype, shape):
    rng = np.random.default_rng(0)
    array = rng.normal(size=shape) * 10
    array = np.asarray(array).astype(jnp.dtype(dtype))
    store.write_arrays(tmp_path / "a.npz", {"x": array, "t": array.T})
    back, _ = store.read_arrays(tmp_path / "a.npz")
    for name, wanted in (("x", array), ("t", array.T)):
        assert back[name].dtype == wanted.dtype
        assert back[name].shape == wanted.shape
        assert back[name].tobytes() == wanted.tobytes()


@pytest.mark.parametrize("name", ["file", "allow_pickle", "args", "a b", "ä"])
def test_arrays_may_have_any_name(tmp_path, name):
    store.write_arrays(tmp_path / "a.npz", {name: np.arange(3)})
    np.testing.assert_array_equal(
        store.read_arrays(tmp_path / "a.npz")[0][name], np.arange(3)
    )


class Mixed(NamedTuple):
    key: Any
    half: Any
    flag: Any
    count: Any
    wave: Any


def mixed(key, hparams):
    x = hparams.rate * jr.normal(key, (7,))
    curve = x.astype(jnp.bfloat16)
    return Mixed(key, curve, x[0] > 0, jnp.arange(3), jnp.fft.fft(x))


def test_metrics_of_any_dtype_survive_the_directory(tmp_path):
    experiment = toys.closed().replace(run=mixed)
    kept = sweep(experiment, directory=tmp_path / "run", chunk=2)
    toys.assert_equal(kept, sweep(experiment, chunk=2))
    toys.assert_equal(load(tmp_path / "run"), kept)
    for seed in range(2):
        key = jr.fold_in(jr.key(0), seed)
        words = kept.key.sel(seed=seed).values
        np.testing.assert_array_equal(words, [jr.key_data(key)] * 5)
    assert kept.half.dtype == np.float32
    assert kept.half.attrs["stored_dtype"] == "bfloat16"
    assert (kept.half.values == kept.half.values.astype(jnp.bfloat16)).all()
    assert np.ptp(kept.half.values) > 0
    chunk, _ = store.read_arrays(tmp_path / "run/chunks/g000-c00000.npz")
    assert chunk["half"].dtype == jnp.bfloat16
    kinds = [kept[name].dtype.kind for name in ("flag", "count", "wave")]
    assert kinds == ["b", "i", "c"]


class Payload:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_loading_executes_nothing(tmp_path):
    sweep(toys.closed(), directory=tmp_path / "run", chunk=2)
    trap = tmp_path / "trap"
    pickle.loads(pickle.dumps(Payload(trap)))
    assert trap.exists()  # the payload works
    trap.unlink()
    chunk = tmp_path / "run/chunks/g000-c00001.npz"
    arrays = dict(np.load(chunk))
    arrays["loss"] = np.asarray([[Payload(trap)] * 2] * 2, object)
    np.savez(chunk, **arrays)
    with pytest.raises(RunDirectoryError, match=r"g000-c00001.npz is corrupt"):
        load(tmp_path / "run")
    assert not trap.exists()


def test_no_flipped_bit_goes_unseen(tmp_path):
    path = tmp_path / "a.npz"
    arrays = {"x": np.arange(6.0).reshape(2, 3), "h": np.ones(2, jnp.bfloat16)}
    store.write_arrays(path, arrays)
    whole = path.read_bytes()
    num_refused = 0
    for i in range(len(whole)):
        broken = bytearray(whole)
        broken[i] ^= 1 << (i % 8)
        path.write_bytes(broken)
        try:
            back, _ = store.read_arrays(path)
        except RunDirectoryError:
            num_refused += 1
            continue
        # Not all bytes of a zip file matter: dates and permissions do not.
        assert set(back) == set(arrays), i
        for name, array in arrays.items():
            assert back[name].dtype == array.dtype, i
            assert back[name].tobytes() == array.tobytes(), i
    assert num_refused > len(whole) / 2


def _flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)


def _truncate(path):
    path.write_bytes(path.read_bytes()[:-50])


def _empty(path):
    path.write_bytes(b"")


@pytest.mark.parametrize("damage", [_flip, _truncate, _empty])
def test_a_corrupt_chunk_is_named_and_costs_only_itself(tmp_path, damage):
    root = tmp_path / "run"
    wanted = sweep(toys.closed(), directory=root, chunk=2)
    broken = root / "chunks/g000-c00001.npz"
    damage(broken)
    for use in (load, lambda _: sweep(toys.closed(), directory=root, resume=True)):
        with pytest.raises(RunDirectoryError, match="Delete that one file") as caught:
            use(root)
        assert str(broken) in str(caught.value)
    broken.unlink()
    others = {p: p.stat().st_ino for p in (root / "chunks").iterdir()}
    toys.assert_equal(sweep(toys.closed(), directory=root, resume=True), wanted)
    assert broken.exists()
    assert all(p.stat().st_ino == inode for p, inode in others.items())


REASONS = "ESTALE", "EIO", "ETIMEDOUT", "EACCES", "EINTR", "ENOMEM"


@pytest.mark.parametrize("name", ["chunks/g000-c00001.npz", "manifest.json"])
@pytest.mark.parametrize("reason", REASONS)
def test_storage_that_fails_is_not_taken_for_damage(
    tmp_path, monkeypatch, reason, name
):
    sweep(toys.closed(), directory=tmp_path, chunk=2)
    number, path_open = getattr(errno, reason), Path.open

    def open_(path, *args, **kwargs):
        if path == tmp_path / name:
            raise OSError(number, os.strerror(number))
        return path_open(path, *args, **kwargs)

    monkeypatch.setattr(Path, "open", open_)
    with pytest.raises(RunDirectoryError) as caught:
        load(tmp_path)
    said = f"{tmp_path / name} cannot be read ({os.strerror(number)}); try again."
    assert str(caught.value) == said


@pytest.mark.parametrize("at", range(5))
def test_a_full_disk_loses_nothing_finished(tmp_path, monkeypatch, at):
    root = tmp_path / "run"
    fsync, calls = os.fsync, []

    def full(descriptor):
        # Every file that appears is synced twice: itself, then its folder.
        calls.append(descriptor)
        if len(calls) > 2 * at:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(RunDirectoryError, match="No space left on device") as e:
            sweep(toys.closed(), directory=root, chunk=2)
    assert "resume" in str(e.value)
    assert not list(root.rglob("*.tmp"))
    kept = sorted((root / "chunks").iterdir()) if at > 2 else []
    assert len(kept) == max(at - 2, 0)  # source and manifest come first
    inodes = [p.stat().st_ino for p in kept]
    found = sweep(toys.closed(), directory=root, resume=True, chunk=2)
    toys.assert_equal(found, sweep(toys.closed(), chunk=2))
    assert [p.stat().st_ino for p in kept] == inodes


@pytest.fixture
def tiny_disk(tmp_path):
    """A file system of 100 kB, where this process may mount one."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = shutil.which("mount")
    command = [mount, "-t", "tmpfs", "-o", "size=100k", "tmpfs", str(place)]
    if mount is None or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("may not mount a file system here")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_a_disk_that_really_fills_up(tmp_path, tiny_disk):
    toy = toys.closed(num_steps=2000)
    with pytest.raises(RunDirectoryError, match="No space left on device"):
        sweep(toy, directory=tiny_disk / "run", chunk=1)
    num_kept = len(list((tiny_disk / "run/chunks").iterdir()))
    assert 0 < num_kept < 5
    assert int(load(tiny_disk / "run").is_complete) == 0
    with pytest.raises(RunDirectoryError, match="No space left on device"):
        sweep(toy, directory=tiny_disk / "run", resume=True)  # still full
    shutil.copytree(tiny_disk / "run", tmp_path / "roomy")
    found = sweep(toy, directory=tmp_path / "roomy", resume=True)
    toys.assert_equal(found, sweep(toy, chunk=1))


def test_a_run_is_never_overwritten(tmp_path):
    sweep(toys.closed(), directory=tmp_path)
    with pytest.raises(RunDirectoryError, match=r"already holds a run.*resume=True"):
        sweep(toys.closed(), directory=tmp_path)


def test_resuming_nothing_starts_afresh(tmp_path):
    found = sweep(toys.closed(), directory=tmp_path / "a/b", resume=True)
    toys.assert_equal(found, sweep(toys.closed()))


def test_the_directory_of_another_experiment_is_refused(tmp_path):
    sweep(toys.closed(), directory=tmp_path)
    for resume in (True, "force"):
        with pytest.raises(RunDirectoryError, match=r"a run of .*_toys\.run'.*solver"):
            sweep(toys.long(), directory=tmp_path, resume=resume)


CHANGES = {
    r"axes\.rate": {"axes": {"rate": toys.RATES[:-1]}},
    r"axes\.size": {"axes": {"rate": toys.RATES, "size": (3,)}},
    "num_seeds": {"num_seeds": 3},
    r"metrics\.loss \(all cells\)": {"experiment": toys.closed(num_steps=49)},
    "seed": {"seed": 1},
    r"hparams\.rate": {"experiment": toys.closed(rate=0.7)},
    "x64": {"experiment": toys.closed().replace(x64=True)},
}


@pytest.mark.parametrize("field", CHANGES)
def test_a_changed_sweep_is_refused_by_field(tmp_path, field):
    sweep(toys.closed(), directory=tmp_path)
    change = {"experiment": toys.closed()} | CHANGES[field]
    with pytest.raises(RunDirectoryError, match=rf"(?m)^  {field}: .* -> "):
        sweep(directory=tmp_path, resume=True, **change)
    toys.assert_equal(load(tmp_path), sweep(toys.closed()))


@pytest.mark.parametrize("field", ["jaxlr", "jax", "jaxlib", "device_kind"])
def test_a_changed_version_is_refused_unless_forced(tmp_path, field):
    wanted = sweep(toys.closed(), directory=tmp_path, chunk=2)
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    now = manifest["config"][field]
    manifest["config"][field] = "of old"
    store.write_json(tmp_path / "manifest.json", manifest)
    (tmp_path / "chunks/g000-c00001.npz").unlink()
    with pytest.raises(RunDirectoryError, match="force") as caught:
        sweep(toys.closed(), directory=tmp_path, resume=True)
    assert f"  {field}: 'of old' -> {now!r}" in str(caught.value)
    found = sweep(toys.closed(), directory=tmp_path, resume="force")
    toys.assert_equal(found, wanted)
    assert "forced" not in wanted.attrs
    assert f"{field}: 'of old' -> " in found.attrs["forced"]


@pytest.mark.parametrize("field", list(CHANGES)[:5])
def test_the_shape_of_a_sweep_cannot_be_forced(tmp_path, field):
    sweep(toys.closed(), directory=tmp_path)
    change = {"experiment": toys.closed()} | CHANGES[field]
    with pytest.raises(RunDirectoryError, match=field) as caught:
        sweep(directory=tmp_path, resume="force", **change)
    assert "another directory" in str(caught.value)
    assert "--force" not in str(caught.value)


def test_where_it_ran_is_recorded(tmp_path, monkeypatch):
    """XLA's flags, and the commit of the experiment's file, edited since or not."""
    flags = "--xla_force_host_platform_device_count=1"
    monkeypatch.setenv("XLA_FLAGS", flags)
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]
    file = tmp_path / "mine.py"
    file.write_text(SOURCE)
    found = [sweep(find.find(file), directory=tmp_path / "run0")]
    for command in (["init", "-q"], ["add", "mine.py"], ["commit", "-qm", "first"]):
        subprocess.run([*git, *command], check=True)
    found.append(sweep(find.find(file), directory=tmp_path / "run1"))
    file.write_text(SOURCE + "\n")
    found.append(sweep(find.find(file), directory=tmp_path / "run2"))
    head = subprocess.check_output([*git, "rev-parse", "HEAD"], text=True).strip()
    assert [x.attrs["commit"] for x in found] == ["", head, f"{head}-dirty"]
    assert {x.attrs["xla_flags"] for x in found} == {flags}


def test_the_source_is_kept_and_never_run(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(SOURCE)
    experiment = find.find(file)
    wanted = sweep(experiment, directory=tmp_path / "run", chunk=1)
    kept = tmp_path / "run/source.py"
    assert kept.read_text() == SOURCE
    kept.write_text("raise SystemExit")
    (tmp_path / "run/chunks/g000-c00001.npz").unlink()
    found = sweep(experiment, directory=tmp_path / "run", resume=True)
    toys.assert_equal(found, wanted)
    toys.assert_equal(load(tmp_path / "run"), wanted)
    assert replay(tmp_path / "run", {"x": 2.0}, 0).attrs["is_equal"] == 1
    assert kept.read_text() == "raise SystemExit"


SOURCE = """
import dataclasses
from jaxlr.core import Experiment

@dataclasses.dataclass(frozen=True)
class HParams:
    x: float = 1.0

def run(key, hparams):
    return {"y": 2 * hparams.x}

EXPERIMENT = Experiment(run=run, hparams=HParams(), axes={"x": (1.0, 2.0)})
"""


def test_an_edited_file_is_refused_unless_forced(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(SOURCE)
    sweep(find.find(file), directory=tmp_path / "run", chunk=1)
    (tmp_path / "run/chunks/g000-c00001.npz").unlink()
    file.write_text(SOURCE.replace("2 * h", "3 * h"))
    with pytest.raises(RunDirectoryError, match=r"(?m)^  source: "):
        sweep(find.find(file), directory=tmp_path / "run", resume=True)
    forced = sweep(find.find(file), directory=tmp_path / "run", resume="force")
    assert forced.y.squeeze().values.tolist() == [2, 6]  # mixed, as it was told


def test_what_is_no_run_directory_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("precious")
    for resume in (False, True, "force"):
        with pytest.raises(RunDirectoryError, match=r"not empty.*'thesis.tex'"):
            sweep(toys.closed(), directory=tmp_path, resume=resume)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]
    with pytest.raises(RunDirectoryError, match="not a directory"):
        sweep(toys.closed(), directory=tmp_path / "thesis.tex")
    with pytest.raises(RunDirectoryError, match="holds no run"):
        load(tmp_path)


@pytest.mark.parametrize(
    "content", ["", "{", "[]", '{"format": 99}', '{"format": 1}', "\udcff"]
)
def test_an_unreadable_manifest_is_named(tmp_path, content):
    sweep(toys.closed(), directory=tmp_path)
    path = tmp_path / "manifest.json"
    path.write_bytes(content.encode(errors="surrogateescape"))
    for use in (load, lambda _: sweep(toys.closed(), directory=tmp_path, resume=True)):
        with pytest.raises(RunDirectoryError) as caught:
            use(tmp_path)
        assert str(path) in str(caught.value)


def test_chunks_without_their_manifest_are_not_taken_for_new_ones(tmp_path):
    sweep(toys.closed(), directory=tmp_path, chunk=2)
    (tmp_path / "manifest.json").unlink()
    other = toys.closed(rate=0.9).replace(axes={"rate": (0.7, 0.8, 0.9)})
    for resume in (False, True):
        with pytest.raises(RunDirectoryError, match=r"chunks.*manifest"):
            sweep(other, directory=tmp_path, resume=resume, chunk=2)
    assert len(list((tmp_path / "chunks").iterdir())) == 3


def test_what_a_kill_leaves_is_cleaned_up(tmp_path):
    (tmp_path / "chunks").mkdir()
    (tmp_path / ".lock").write_text("host far, process 1")
    (tmp_path / "manifest.json.tmp").write_text('{"form')
    wanted = sweep(toys.closed(), directory=tmp_path, chunk=2)  # no resume needed
    whole = tmp_path / "chunks/g000-c00001.npz"
    for name in ("g000-c00001.npz.tmp", "g000-c00002.npz.tmp"):
        (tmp_path / "chunks" / name).write_bytes(whole.read_bytes()[:100])
    whole.unlink()
    found = sweep(toys.closed(), directory=tmp_path, resume=True)
    toys.assert_equal(found, wanted)
    assert not list(tmp_path.rglob("*.tmp"))


def test_an_unfinished_run_loads_with_gaps(tmp_path):
    experiment = toys.closed().replace(run=mixed)
    whole = sweep(experiment, directory=tmp_path, chunk=2)
    assert whole.attrs["is_complete"] == 1
    (tmp_path / "chunks/g000-c00001.npz").unlink()  # cells 2 and 3
    part = load(tmp_path)
    assert part.attrs["is_complete"] == 0
    for name in ("key", "half", "flag", "count", "wave"):
        assert np.isnan(part[name].isel(rate=[2, 3]).values).all(), name
        there = part[name].isel(rate=[0, 1, 4]).values
        np.testing.assert_array_equal(there, whole[name].isel(rate=[0, 1, 4]).values)
    assert (part.diverged_at.isel(rate=[2, 3]) == -1).all()


HOLD = """
from pathlib import Path
import time
from jaxlr.lab import store
with store.lock(Path({!r})):
    print("held", flush=True)
    time.sleep(600)
"""


def test_a_directory_in_use_is_refused_and_that_of_the_dead_taken_over(tmp_path):
    with toys.start(HOLD.format(str(tmp_path))) as owner:
        try:
            assert owner.stdout is not None
            assert owner.stdout.readline() == "held\n"
            with pytest.raises(RunDirectoryError, match="in use") as caught:
                sweep(toys.closed(), directory=tmp_path)
            assert socket.gethostname() in str(caught.value)
            assert f"process {owner.pid}." in str(caught.value)
            assert not (tmp_path / "manifest.json").exists()
        finally:
            owner.kill()
    sweep(toys.closed(), directory=tmp_path)
    owner = f"host {socket.gethostname()}, process {os.getpid()}"
    assert (tmp_path / ".owner").read_text() == owner


def test_the_lock_is_released_however_a_sweep_ends(tmp_path):
    def fail(key, hparams):
        raise ZeroDivisionError

    broken = Experiment(run=fail, hparams=toys.HParams())
    for _ in range(2):
        with contextlib.suppress(ZeroDivisionError):
            sweep(broken, directory=tmp_path)
    sweep(toys.closed(), directory=tmp_path)
    sweep(toys.closed(), directory=tmp_path, resume=True)


def test_resuming_a_finished_run_compiles_nothing(tmp_path, monkeypatch):
    wanted = sweep(toys.closed(), directory=tmp_path)

    def refuse(*args, **kwargs):
        raise AssertionError("compiled")

    monkeypatch.setattr(jax, "jit", refuse)
    toys.assert_equal(sweep(toys.closed(), directory=tmp_path, resume=True), wanted)
