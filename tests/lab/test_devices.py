"""Many devices: run in one process that sees eight, which the first test starts."""

import re
from typing import Any

import jax
import numpy as np
import pytest

from jaxlr.lab import chunks, load, plan, replay, store, sweep
from jaxlr.lab.compiled import Compiled
from jaxlr.lab.request import Request
from tests.devices import Forced
from tests.lab import _toys as toys


EIGHT = Forced(8)


@EIGHT.starter
def test_on_eight_devices():
    EIGHT.rerun(__file__)


MAKERS = pytest.mark.parametrize("make", [toys.closed, toys.long])
RATES = np.linspace(0.05, 0.6, 19)  # not a multiple of eight: padded lanes


def _one():
    return jax.local_devices()[:1]


@EIGHT.needed
@MAKERS
@pytest.mark.parametrize("backend", ["shard_map", "pmap"])
def test_eight_devices_give_the_bits_of_one_as_wide(make, backend):
    """19 cells on eight devices are three wide, and so is a chunk of three on one."""
    axes = {"rate": RATES}
    assert plan(make(), axes).groups[0].width == 3
    found = sweep(make(), axes, backend=backend)
    toys.assert_equal(found, sweep(make(), axes, devices=_one(), chunk=3))


@EIGHT.needed
@MAKERS
def test_fewer_cells_than_devices(make):
    axes = {"rate": RATES[:5]}
    found = sweep(make(), axes)
    toys.assert_equal(found, sweep(make(), axes, devices=_one(), chunk=1))
    some = sweep(make(), axes, devices=jax.local_devices()[2:5])
    toys.assert_equal(some, sweep(make(), axes, devices=_one(), chunk=2))


@EIGHT.needed
@MAKERS
def test_devices_do_not_talk(make):
    request = Request.make(make(), {"rate": RATES})
    talk = r"all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter"
    program: Any = Compiled(request).program(0, 3).call
    assert "while" in program.as_text()
    assert not re.search(talk, program.as_text())
    # So does the search find what there is to be found?
    mesh = jax.sharding.Mesh(np.asarray(request.devices), ("cell",))
    sharded = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("cell"))
    mean: Any = jax.jit(lambda x: x - x.mean(), in_shardings=sharded)
    assert re.search(talk, mean.lower(np.ones(24)).compile().as_text())


@EIGHT.needed
@MAKERS
@pytest.mark.parametrize("backend", ["shard_map", "pmap"])
def test_one_device_replays_what_eight_ran(tmp_path, make, backend):
    axes = {"rate": RATES}
    kept = sweep(make(), axes, directory=tmp_path, backend=backend)
    for cell in (0, 2, 3, 10, 18):
        found = replay(tmp_path, {"rate": RATES[cell]}, 1)
        assert found.attrs["is_equal"] == 1
        assert found.attrs["replay"].startswith("Equal bit by bit (expected bit")
        wanted = kept.loss.isel(rate=cell, seed=1).values
        assert found.loss.values.tobytes() == wanted.tobytes()


@EIGHT.needed
@MAKERS
@pytest.mark.parametrize("counts", [(8, 1), (1, 8)])
def test_a_run_goes_on_with_other_devices(tmp_path, make, counts):
    before, after = (jax.local_devices()[:n] for n in counts)
    axes = {"rate": RATES[:12]}
    wanted = sweep(make(), axes, directory=tmp_path, devices=before, chunk=4)
    (layout,) = store.read_manifest(tmp_path)["layout"]
    assert layout["chunk"] == layout["width"] * counts[0]
    (tmp_path / "chunks/g000-c00001.npz").unlink()
    kept = (tmp_path / "chunks/g000-c00000.npz").stat().st_ino
    found = sweep(make(), axes, directory=tmp_path, devices=after, resume=True)
    toys.assert_equal(found, wanted)
    assert (tmp_path / "chunks/g000-c00000.npz").stat().st_ino == kept


@EIGHT.needed
@pytest.mark.parametrize("num_cells", [2, 11])
@pytest.mark.parametrize("counts", [(8, 1), (1, 8), (3, 8), (8, 3)])
def test_a_long_run_goes_on_in_mid_run_with_other_devices(
    tmp_path, monkeypatch, counts, num_cells
):
    before, after = (jax.local_devices()[:n] for n in counts)
    axes = {"rate": RATES[:num_cells]}
    wanted = sweep(toys.long(), axes, devices=before, chunk=4)
    write = store.write_arrays

    def interrupted(path, arrays, identity):
        write(path, arrays, identity)
        if path.parent.name == "segments" and arrays["t"] >= 3:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(store, "write_arrays", interrupted)
        with pytest.raises(KeyboardInterrupt):
            sweep(toys.long(), axes, devices=before, directory=tmp_path, chunk=4)
    (checkpoint,) = (tmp_path / "segments").iterdir()
    begun, advance = [], chunks._Long._advance

    def spy(self, stop):
        begun.append(self.t)
        return advance(self, stop)

    monkeypatch.setattr(chunks._Long, "_advance", spy)
    saved, _ = store.read_arrays(checkpoint)
    found = sweep(toys.long(), axes, devices=after, directory=tmp_path, resume=True)
    assert begun[0] == saved["t"] >= 3
    toys.assert_equal(found, wanted)
    toys.assert_equal(load(tmp_path), wanted)
    assert not list((tmp_path / "segments").iterdir())


@EIGHT.needed
def test_a_diverging_lane_stays_in_its_lane():
    axes = {"rate": RATES.copy()}
    calm = sweep(toys.closed(), axes)
    axes["rate"][4] = np.inf
    wild = sweep(toys.closed(), axes)
    others = [i for i in range(19) if i != 4]
    for name in ("loss", "last", "diverged_at"):
        one, two = (x[name].values[others] for x in (calm, wild))
        assert one.tobytes() == two.tobytes()
    assert (wild.diverged_at.values[4] >= 0).all()


@EIGHT.needed
def test_the_cells_of_a_chunk_are_on_different_devices():
    request = Request.make(toys.closed(), {"rate": RATES})
    program = Compiled(request).program(0, 3)
    values = chunks.pad(request, program, 0, np.arange(19))
    out: Any = program.call(np.uint32(0), np.arange(2, dtype=np.int32), values)
    assert len(out[0].sharding.device_set) == 8
    assert {s.data.shape[:2] for s in out[0].addressable_shards} == {(2, 3)}
