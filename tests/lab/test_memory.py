import dataclasses
from pathlib import Path
import resource

import jax
import jax.numpy as jnp
import jax.random as jr
import pytest

from jaxlr.core import Experiment
from jaxlr.lab import chunks, memory, plan, planning, store, sweep
from jaxlr.lab.compiled import Compiled
from jaxlr.lab.request import Request
from tests.lab import _toys as toys


MiB = 2**20


def _heavy(key, hparams):
    """About 16 MiB a cell: a carry of 8 MiB, and the next one."""

    def step(x, _):
        return jnp.roll(x, 1) * hparams.rate, jnp.max(x)

    start = jr.normal(key, (256,)) * jnp.ones((8 * 1024, 1)) * hparams.rate
    return {"peak": jax.lax.scan(step, start, None, 2)[1]}


def heavy(num_cells: int) -> Experiment:
    """A sweep whose cells take memory, and little time."""
    rates = [1 + i / num_cells for i in range(num_cells)]
    return Experiment(run=_heavy, hparams=toys.HParams(), axes={"rate": rates})


INSIDE = """
import os, resource, sys
import jax
from jaxlr.lab import memory, plan, sweep
from tests.lab.test_memory import heavy, MiB
kind = {kind!r}
jax.block_until_ready(jax.numpy.ones(3) + 1)
name = "VmData" if kind == "rlimit" else "VmRSS"
limit = memory._own(name) + 400 * MiB
if kind == "rlimit":
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
else:
    os.environ["JAXLR_MEMORY_LIMIT"] = str(limit)
experiment = heavy(num_cells=11 * limit // (16 * MiB))
planned = plan(experiment)
whole = planned.groups[0].bytes / planned.groups[0].width * planned.num_cells
assert whole >= 10 * limit, (whole, limit)
assert planned.num_chunks > 10, planned
results = sweep(experiment)
assert int((results.peak > 0).sum()) == results.peak.size
peak = memory._own("VmHWM")  # ru_maxrss would remember the process that forked this one
assert peak < limit, (peak, limit)
print("inside")
"""


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["rlimit", "variable"])
def test_a_sweep_ten_times_too_large_stays_inside_the_limit(kind):
    """The hard limit is enforced by the kernel, the soft one measured afterwards."""
    if not Path("/proc/self/status").exists():
        pytest.skip("needs Linux")
    out = toys.finish(toys.start(INSIDE.format(kind=kind)))
    assert out == "inside\n"


@pytest.mark.parametrize(
    ("sentence", "num_failures", "num_calls"),
    [("RESOURCE_EXHAUSTED: 8", 2, 3), ("RESOURCE_EXHAUSTED: 8", 9, 3), ("OTHER", 9, 1)],
)
def test_memory_that_is_short_for_a_moment_is_waited_for(
    monkeypatch, sentence, num_failures, num_calls
):
    calls = []

    def call():
        calls.append(0)
        if len(calls) <= num_failures:
            raise jax.errors.JaxRuntimeError(sentence)
        return ["done"]

    monkeypatch.setattr(chunks, "PAUSES", (0.0, 0.0))
    if num_failures < num_calls:
        assert chunks.patiently(call) == ["done"]
    else:
        with pytest.raises(jax.errors.JaxRuntimeError, match=sentence):
            chunks.patiently(call)
    assert len(calls) == num_calls


@pytest.fixture
def host(monkeypatch):
    """Sets what the host has free."""

    def set_free(number):
        monkeypatch.setattr(memory, "host_bytes", lambda: int(number))

    return set_free


def test_the_chunk_follows_the_memory(host):
    experiment, widths = heavy(64), []
    for share in (100, 400, 100_000):
        host(share * MiB)
        planned = plan(experiment)
        (group,) = planned.groups
        assert group.bytes <= share * MiB * memory.SHARE
        assert group.num_chunks == -(-64 // group.width)
        widths.append(group.width)
    assert 1 <= widths[0] < widths[1] < widths[2] == 64


@pytest.mark.misuse
def test_a_cell_that_cannot_fit_is_an_error_before_anything_runs(host, tmp_path):
    host(4 * MiB)
    for use in (plan, sweep):
        with pytest.raises(ValueError, match=r"One cell with its 1 seeds needs .*MiB"):
            use(heavy(64), directory=tmp_path)
    assert not (tmp_path / "manifest.json").exists()


@pytest.mark.misuse
def test_results_that_cannot_fit_are_an_error_before_anything_runs(host):
    host(100_000)
    experiment = toys.closed(num_steps=50_000)
    for use in (plan, sweep):
        with pytest.raises(ValueError, match=r"results alone need 2,000,1.* bytes"):
            use(experiment)


def test_an_explicit_chunk_is_a_ceiling(host, tmp_path):
    host(100_000 * MiB)
    assert plan(heavy(64), chunk=7).groups[0].width == 7
    assert plan(heavy(64), chunk=1000).groups[0].width == 64
    host(100 * MiB)
    assert plan(heavy(64), chunk=1000).groups[0].width < 7
    assert plan(heavy(64), chunk=1).groups[0].width == 1


def test_four_fifths_of_the_memory_are_filled(host):
    """A hundred times as many cells as fit, so that no width is evened out."""
    experiment = heavy(1000)
    host(200 * MiB)
    (group,) = plan(experiment).groups
    cell = group.bytes / group.width
    assert 0.8 * 200 * MiB - 2 * cell < group.bytes <= 0.8 * 200 * MiB


def _sized(key, hparams):
    """About 2 MiB a cell for every 16 of `size`."""

    def step(x, _):
        return jnp.roll(x, 1) * hparams.rate, jnp.max(x)

    start = jr.normal(key, (256,)) * jnp.ones((64 * hparams.size, 1)) * hparams.rate
    return {"peak": jax.lax.scan(step, start, None, 2)[1]}


def test_the_estimate_of_light_groups_is_scaled(host):
    """One group is measured; what the compiler says of the others is the oracle."""
    host(100 * MiB)
    rates = [1 + i / 1000 for i in range(1000)]
    axes = {"size": (16, 128), "rate": rates}
    experiment = Experiment(run=_sized, hparams=toys.HParams(), axes=axes)
    planned = plan(experiment)
    light, large = planned.groups
    assert 6 * large.width < light.width < 10 * large.width
    compiled = Compiled(Request.make(experiment))
    for g, group in enumerate(planned.groups):
        actual = compiled.program(g, group.width).bytes
        assert 0.8 * actual < group.bytes < 1.25 * actual


@pytest.mark.parametrize("num_cells", [2, 64])
def test_what_a_run_closes_over_counts_once_a_device(host, num_cells):
    data = jnp.ones((4 * MiB,))  # 16 MiB

    def summed(key, hparams):
        return {"x": jnp.sum(data * hparams.rate) + jnp.sum(data)}

    rates = [1 + i / num_cells for i in range(num_cells)]
    experiment = Experiment(run=summed, hparams=toys.HParams(), axes={"rate": rates})
    host(100_000 * MiB)
    (group,) = plan(experiment).groups
    assert 16 * MiB <= group.bytes < (16 + 1) * MiB + num_cells * 16 * MiB
    host(12 * MiB)
    for use in (plan, sweep):
        with pytest.raises(ValueError, match="One cell"):
            use(experiment)


@pytest.fixture
def optimist(monkeypatch):
    """An estimate that takes all cells at once, whatever the memory."""

    def fit(compiled, workers):
        request = compiled.request
        widths = [len(group.cells) for group in request.groups]
        cut = {"num_seeds": request.num_seeds}
        return [cut | {"width": n, "chunk": n} for n in widths], [0 for _ in widths]

    monkeypatch.setattr(planning, "fit", fit)


def test_a_program_over_the_budget_is_narrowed(host, optimist, tmp_path):
    host(64 * MiB)
    found = sweep(heavy(8), directory=tmp_path)
    (width,) = _widths(tmp_path)
    assert 1 <= width < 8
    compiled = Compiled(Request.make(heavy(8)))
    small, large = (compiled.program(0, cells).bytes for cells in (width, 8))
    assert small <= compiled.budget < large
    host(1e12)
    toys.assert_equal(found, sweep(heavy(8), chunk=width))
    toys.assert_equal(sweep(heavy(8), directory=tmp_path, resume=True), found)


def _widths(directory):
    return [g["width"] for g in store.read_manifest(directory)["layout"]]


@pytest.mark.parametrize("fits", [2, 1, 0])
def test_a_program_that_the_compiler_refuses_is_narrowed(
    monkeypatch, optimist, tmp_path, fits
):
    program = Compiled.program

    def refusing(self, group, width, num_seeds):
        if width > fits:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Ran out of memory")
        return program(self, group, width, num_seeds)

    monkeypatch.setattr(Compiled, "program", refusing)
    if fits == 0:
        with pytest.raises(ValueError, match="One cell"):
            sweep(toys.closed(), directory=tmp_path)
        return
    found = sweep(toys.closed(), directory=tmp_path)
    assert _widths(tmp_path) == [fits]
    toys.assert_equal(found, sweep(toys.closed(), chunk=fits))


@pytest.mark.parametrize("make", [toys.closed, toys.long])
def test_a_group_that_has_begun_keeps_its_width(tmp_path, monkeypatch, make):
    """Its bits depend on it: nothing is fitted or narrowed anew for want of memory."""
    write = store.write_arrays

    def stopped(*args):
        write(*args)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(store, "write_arrays", stopped)
        with pytest.raises(KeyboardInterrupt):
            sweep(make(), directory=tmp_path, chunk=2)
    folder = "chunks" if make is toys.closed else "segments"
    assert len(list(tmp_path.rglob("*.npz"))) == 1
    assert len(list((tmp_path / folder).iterdir())) == 1

    def refuse(*args, **kwargs):
        raise AssertionError("fitted")

    with monkeypatch.context() as patch:
        patch.setattr(planning, "fit", refuse)
        patch.setattr(Compiled, "budget", 1.0)
        found = sweep(make(), directory=tmp_path, resume=True)
    assert _widths(tmp_path) == [2]
    toys.assert_equal(found, sweep(make(), chunk=2))


def test_other_compiler_errors_are_not_swallowed(monkeypatch, optimist):
    def broken(self, group, width, num_seeds):
        raise jax.errors.JaxRuntimeError("INTERNAL: a bug")

    monkeypatch.setattr(Compiled, "program", broken)
    with pytest.raises(jax.errors.JaxRuntimeError, match="a bug"):
        sweep(toys.closed())


@pytest.mark.parametrize(
    ("intercept", "slope", "budget", "width"),
    [
        *((100, 10, 150, 5), (100, 10, 159, 5), (100, 10, 160, 6)),
        *((100, 10, 109, 0), (100, 10, 0, 0), (0, 1, 1e12, 10**12)),
    ],
)
def test_the_widest_chunk_within_a_budget(intercept, slope, budget, width):
    line = memory.line_through(lambda w: intercept + slope * w, (2, 4))
    assert line == (intercept, slope)
    assert memory.widest(line, budget) == width
    assert width == 0 or intercept + slope * width <= budget


def test_bytes_that_do_not_grow_still_make_a_line():
    intercept, slope = memory.line_through(lambda w: 1000 - w, (2, 4))
    assert slope > 0
    assert memory.widest((intercept, slope), 500) == 0


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """A pretended file system: `machine(files)`; the process has no limits."""

    def pretend(files):
        for name, text in files.items():
            path = tmp_path / name.lstrip("/")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)

    monkeypatch.setattr(memory, "Path", lambda p: tmp_path / p.lstrip("/"))
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (-1, -1))
    monkeypatch.delenv("JAXLR_MEMORY_LIMIT", raising=False)
    pretend({"/proc/meminfo": "MemTotal: 2000 kB\nMemAvailable: 1000 kB\n"})
    pretend({"/proc/self/status": "Name: x\nVmRSS: 10 kB\nVmData: 20 kB\n"})
    return pretend


V1 = "/sys/fs/cgroup/memory/"
CGROUPS = {
    "none": ({"/proc/self/cgroup": ""}, 1000),
    "unlimited": (
        {
            "/proc/self/cgroup": "0::/job\n",
            "/sys/fs/cgroup/job/memory.max": "max\n",
            "/sys/fs/cgroup/job/memory.current": "5\n",
        },
        1000,
    ),
    "own": (
        {
            "/proc/self/cgroup": "0::/job\n",
            "/sys/fs/cgroup/job/memory.max": f"{500 * 1024}\n",
            "/sys/fs/cgroup/job/memory.current": f"{100 * 1024}\n",
        },
        400,
    ),
    "parent": (
        {
            "/proc/self/cgroup": "0::/slurm/job/step\n",
            "/sys/fs/cgroup/slurm/memory.max": f"{300 * 1024}\n",
            "/sys/fs/cgroup/slurm/memory.current": f"{100 * 1024}\n",
            "/sys/fs/cgroup/slurm/job/memory.max": f"{900 * 1024}\n",
            "/sys/fs/cgroup/slurm/job/memory.current": "0\n",
        },
        200,
    ),
    "container": (
        {
            "/proc/self/cgroup": "0::/\n",
            "/sys/fs/cgroup/memory.max": f"{700 * 1024}\n",
            "/sys/fs/cgroup/memory.current": f"{1 * 1024}\n",
        },
        699,
    ),
    "version 1": (
        {
            "/proc/self/cgroup": "3:cpu:/job\n2:memory:/job\n",
            V1 + "job/memory.limit_in_bytes": f"{60 * 1024}\n",
            V1 + "job/memory.usage_in_bytes": f"{20 * 1024}\n",
        },
        40,
    ),
    "used up": (
        {
            "/proc/self/cgroup": "0::/job\n",
            "/sys/fs/cgroup/job/memory.max": "1000\n",
            "/sys/fs/cgroup/job/memory.current": "2000\n",
        },
        0,
    ),
}


@pytest.mark.parametrize("name", CGROUPS)
def test_the_limits_of_cgroups_are_read(machine, name):
    files, kilobytes = CGROUPS[name]
    machine(files)
    assert memory.host_bytes() == kilobytes * 1024


def test_the_limits_of_the_process_are_read(machine, monkeypatch):
    limits = {resource.RLIMIT_DATA: (100 * 1024, -1)}
    monkeypatch.setattr(resource, "getrlimit", lambda k: limits.get(k, (-1, -1)))
    assert memory.host_bytes() == 80 * 1024
    machine({"/proc/self/status": "VmRSS: 10 kB\nVmData: 20 kB\nVmSize: 50 kB\n"})
    limits[resource.RLIMIT_AS] = (90 * 1024, -1)
    assert memory.host_bytes() == 40 * 1024


def test_the_variable_lowers_what_there_is(machine, monkeypatch):
    monkeypatch.setenv("JAXLR_MEMORY_LIMIT", str(60 * 1024))
    assert memory.host_bytes() == 50 * 1024
    monkeypatch.setenv("JAXLR_MEMORY_LIMIT", str(10**12))
    assert memory.host_bytes() == 1000 * 1024
    monkeypatch.setenv("JAXLR_MEMORY_LIMIT", "2GB")
    with pytest.raises(ValueError, match=r"JAXLR_MEMORY_LIMIT.*'2GB'"):
        memory.host_bytes()


def test_devices_of_a_host_share_its_memory(host):
    host(1000)
    (device,) = jax.local_devices()[:1]
    assert memory.available_bytes([device] * 4) == 250


@dataclasses.dataclass
class Accelerator:
    """A device that counts its memory."""

    in_use: int
    platform: str = "gpu"

    def memory_stats(self):
        return {"bytes_limit": 1000, "bytes_in_use": self.in_use}


def test_the_fullest_accelerator_decides():
    assert memory.available_bytes([Accelerator(100), Accelerator(400)]) == 600


def test_bytes_are_said_in_the_unit_that_suits_them():
    sizes = [memory.format_bytes(x) for x in (1, 1536, 2**21, 3 * 2**40)]
    assert sizes == ["1 B", "1.5 KiB", "2 MiB", "3072 GiB"]
