"""One writer a directory, on every file system; readers need none."""

import errno
import fcntl
import os
import shutil
import signal
import socket
import subprocess
import sys

import pytest

from jaxlr.lab import load, replay, RunDirectoryError, store, sweep
from tests.lab import _toys as toys


HOLD = """
from pathlib import Path
import time
from jaxlr.lab import store
{before}
with store.lock(Path({directory!r})):
    {inside}
    print("held", flush=True)
    time.sleep(600)
"""

# What Lustre and FUSE answer, which have no locks.
NO_FLOCK = """
import errno, fcntl, os
def flock(*args):
    raise OSError(errno.{name}, os.strerror(errno.{name}))
fcntl.flock = flock
"""


def _hold(directory, before="", inside="pass"):
    code = HOLD.format(directory=str(directory), before=before, inside=inside)
    process = toys.start(code)
    assert process.stdout is not None
    return process


@pytest.fixture(params=["ENOSYS", "ENOTSUP", "ENOLCK"])
def no_flock(request, monkeypatch):
    def flock(*args):
        number = getattr(errno, request.param)
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)
    return request.param


def test_without_flock_a_directory_has_one_writer_too(tmp_path, no_flock):
    wanted = sweep(toys.closed(), directory=tmp_path / "run", chunk=2)
    (tmp_path / "run/chunks/g000-c00001.npz").unlink()
    with store.lock(tmp_path / "run"), pytest.raises(RunDirectoryError) as caught:
        sweep(toys.closed(), directory=tmp_path / "run", resume=True)
    owner = f"in use by host {socket.gethostname()}, process {os.getpid()}."
    assert owner in str(caught.value)
    found = sweep(toys.closed(), directory=tmp_path / "run", resume=True)
    toys.assert_equal(found, wanted)


@pytest.mark.slow
@pytest.mark.parametrize("before", ["", NO_FLOCK.format(name="ENOLCK")])
def test_the_lock_of_a_killed_process_is_free(tmp_path, monkeypatch, before):
    with _hold(tmp_path, before) as process:
        try:
            assert process.stdout.readline() == "held\n"
            if before:
                exec(before, {})
            with pytest.raises(RunDirectoryError, match=f"process {process.pid}"):
                sweep(toys.closed(), directory=tmp_path)
        finally:
            process.kill()
    sweep(toys.closed(), directory=tmp_path)


@pytest.fixture(autouse=True)
def _flock_is_put_back(monkeypatch):
    monkeypatch.setattr(fcntl, "flock", fcntl.flock)


@pytest.mark.slow
def test_a_child_that_outlives_the_writer_does_not_hold_its_lock(tmp_path):
    child = "child = os.fork() or time.sleep(600)"
    with _hold(tmp_path, "import os", f"{child}; print(child)") as process:
        orphan = int(process.stdout.readline())
        assert process.stdout.readline() == "held\n"
        process.kill()
    try:
        sweep(toys.closed(), directory=tmp_path)
    finally:
        os.kill(orphan, signal.SIGKILL)


def test_a_lock_that_stays_says_what_to_delete(tmp_path):
    """Whatever holds it: deleting what the sentence names is a way out."""
    with (tmp_path / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(RunDirectoryError, match=r"delete .*\.lock and") as caught:
            sweep(toys.closed(), directory=tmp_path)
        assert str(tmp_path / ".lock") in str(caught.value)
        (tmp_path / ".lock").unlink()
        sweep(toys.closed(), directory=tmp_path)


def test_the_lock_is_imported_without_fcntl():
    """As on Windows."""
    code = (
        "import sys; sys.modules['fcntl'] = None; import jaxlr.lab.store; print('in')"
    )
    command = [sys.executable, "-Wignore", "-c", code]
    assert subprocess.check_output(command, text=True) == "in\n"


@pytest.mark.parametrize("number", [errno.EINVAL, errno.EACCES, errno.ENOTSUP])
def test_folders_that_cannot_be_synced_are_no_obstacle(tmp_path, monkeypatch, number):
    fsync = os.fsync

    def picky(descriptor):
        if os.path.isdir(f"/proc/self/fd/{descriptor}"):
            raise OSError(number, os.strerror(number))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", picky)
    found = sweep(toys.closed(), directory=tmp_path / "run", chunk=2)
    toys.assert_equal(found, sweep(toys.closed(), chunk=2))


def test_every_file_and_its_folder_are_synced_before_they_count(tmp_path, monkeypatch):
    synced, fsync, replace = [], os.fsync, os.replace

    def path_of(descriptor):
        return os.readlink(f"/proc/self/fd/{descriptor}")

    def noted(descriptor):
        synced.append(path_of(descriptor))
        fsync(descriptor)

    def renamed(one, two):
        assert synced[-1] == str(one)
        replace(one, two)
        synced.append(str(two))

    monkeypatch.setattr(os, "fsync", noted)
    monkeypatch.setattr(os, "replace", renamed)
    sweep(toys.closed(), directory=tmp_path, chunk=3)
    files = ["source.py", "manifest.json"]
    files += [f"chunks/g000-c0000{i}.npz" for i in range(2)] + ["manifest.json"]
    wanted = []
    for path in (tmp_path / file for file in files):
        wanted += [f"{path}.tmp", str(path), str(path.parent)]
    assert synced == wanted


@pytest.fixture
def read_only(tmp_path):
    """Makes a directory one that nobody can write to, where this process may."""
    mounted = []

    def freeze(directory):
        mount = shutil.which("mount")
        for options in (["--bind"], ["-o", "remount,bind,ro"]):
            command = [mount, *options, str(directory), str(directory)]
            if mount is None or subprocess.run(command, capture_output=True).returncode:
                pytest.skip("may not mount a file system here")
            mounted.append(directory)
        mounted.pop()

    yield freeze
    for directory in mounted:
        subprocess.run(["umount", str(directory)], check=True)


def test_a_complete_run_is_used_on_read_only_storage(tmp_path, read_only):
    root = tmp_path / "run"
    wanted = sweep(toys.closed(), directory=root, chunk=2)
    read_only(root)
    with pytest.raises(OSError, match="Read-only"):
        (root / "x").touch()
    toys.assert_equal(load(root), wanted)
    toys.assert_equal(sweep(toys.closed(), directory=root, resume=True), wanted)
    assert replay(root, {"rate": 0.2}, 1).attrs["is_equal"] == 1


def test_an_unfinished_run_on_read_only_storage_says_so(tmp_path, read_only):
    root = tmp_path / "run"
    sweep(toys.closed(), directory=root, chunk=2)
    (root / "chunks/g000-c00001.npz").unlink()
    read_only(root)
    assert load(root).attrs["is_complete"] == 0
    with pytest.raises(RunDirectoryError, match=r"run.*Read-only"):
        sweep(toys.closed(), directory=root, resume=True)


def test_a_complete_run_is_read_while_another_holds_it(tmp_path):
    wanted = sweep(toys.closed(), directory=tmp_path, chunk=2)
    with store.lock(tmp_path):
        toys.assert_equal(load(tmp_path), wanted)
        toys.assert_equal(sweep(toys.closed(), directory=tmp_path, resume=True), wanted)


def test_a_tilde_is_the_home_directory(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    wanted = sweep(toys.closed(), directory="~/run", chunk=2)
    assert (tmp_path / "run/manifest.json").exists()
    assert not (tmp_path / "~").exists()
    toys.assert_equal(load("~/run"), wanted)
    toys.assert_equal(sweep(toys.closed(), directory="~/run", resume=True), wanted)
    assert replay("~/run", {"rate": 0.2}, 1).attrs["is_equal"] == 1
