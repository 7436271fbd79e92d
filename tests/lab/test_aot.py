"""Compiling for a TPU or GPU without one."""

import os

import jax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from jaxlr.core import compat
from jaxlr.lab import aot, compile_for


F32 = jnp.float32
TARGETS = ("v4", "v5e", "v5p", "v6e")


@pytest.fixture
def _libtpu():
    pytest.importorskip("libtpu", reason='needs pip install "jaxlr[aot]"')
    if reason := aot.why_not():
        pytest.skip(reason)


@pytest.fixture
def _cuda():
    if reason := aot.why_not("cuda"):
        pytest.skip(reason)


def square(x):
    return jax.ShapeDtypeStruct((x, x), F32)


@pytest.mark.aot
@pytest.mark.usefixtures("_libtpu")
@pytest.mark.parametrize("target", TARGETS)
def test_any_arguments_compile_and_are_measured(target):
    def fn(key, tree, number):
        return jr.normal(key, (8, 128)) + tree["a"] + number

    before = dict(os.environ)
    made = compile_for(target, fn, jr.key(0), {"a": np.ones((8, 128))}, 2.0)
    assert (made.target, made.fits, made.aliased) == (target, True, 0)
    assert made.arguments >= 8 * 128 * 4
    assert made.outputs == 8 * 128 * 4
    assert made.total < made.hbm
    changed = {k for k in os.environ if os.environ[k] != before.get(k)}
    assert changed <= {"TPU_LIBRARY_PATH", "TPU_SKIP_MDS_QUERY"}  # jax's own


@pytest.mark.aot
@pytest.mark.usefixtures("_libtpu")
def test_64_bit_arguments_are_lowered_in_32():
    with compat.x64(True):
        made = compile_for(
            "v5e", lambda x: x @ x, np.ones((8, 128)).T @ np.ones((8, 128))
        )
    assert made.compiled.in_avals[0][0].dtype == F32
    assert made.outputs == 128 * 128 * 4


@pytest.mark.aot
@pytest.mark.usefixtures("_libtpu")
def test_donated_arguments_are_counted_once():
    fn = jax.jit(lambda x: x + 1, donate_argnums=0)
    made = compile_for("v5e", fn, square(40_000))  # twice that is under the limit too
    assert made.aliased == made.outputs >= 4 * 40_000**2
    assert made.total < 1.01 * made.outputs


@pytest.mark.aot
@pytest.mark.misuse
@pytest.mark.usefixtures("_libtpu")
@pytest.mark.parametrize("target", TARGETS)
def test_hbm_overflow_has_sizes_and_the_table_is_the_compilers(target):
    with pytest.raises(aot.DoesNotFitError, match=r"GiB of HBM needed") as caught:
        compile_for(target, lambda x: x @ x, square(200_000))
    error = caught.value
    assert error.memory == "HBM"
    assert error.needed > 140 * 2**30
    assert error.available == aot.CHIPS[target].hbm


@pytest.mark.aot
@pytest.mark.misuse
@pytest.mark.usefixtures("_libtpu")
def test_vmem_overflow_has_sizes():
    def kernel(x, out):
        out[...] = 2 * x[...]

    def fn(x):
        return pl.pallas_call(kernel, out_shape=square(8192))(x)

    with pytest.raises(
        aot.DoesNotFitError, match=r"of VMEM needed.*smaller blocks"
    ) as e:
        compile_for("v5e", fn, square(8192))
    assert (e.value.needed, e.value.available) == (2**28, 2**27)


@pytest.mark.aot
@pytest.mark.usefixtures("_libtpu")
def test_a_kernel_compiles_and_what_a_tpu_lacks_does_not():
    def kernel(x, out):
        out[...] = 2 * x[...]

    def fn(x):
        return pl.pallas_call(kernel, out_shape=square(128))(x)

    assert compile_for("v6e", fn, square(128)).fits
    with pytest.raises(NotImplementedError, match="eig"):
        compile_for("v6e", lambda x: jnp.linalg.eig(x)[0], square(8))


@pytest.mark.aot
@pytest.mark.usefixtures("_cuda")
def test_a_gpu_is_compiled_for_and_measured():
    def fn(key, tree, number):
        return jr.normal(key, (8, 128)) + tree["a"] + number

    made = compile_for("h100", fn, jr.key(0), {"a": np.ones((8, 128))}, 2.0)
    assert (made.target, made.fits, made.outputs) == ("h100", True, 8 * 128 * 4)
    assert not compile_for("h100", lambda x: x @ x, square(200_000)).fits


@pytest.mark.aot
@pytest.mark.misuse
@pytest.mark.usefixtures("_cuda")
@pytest.mark.filterwarnings("ignore:The Pallas Triton backend is deprecated")
def test_shared_memory_overflow_has_sizes():
    def kernel(x, out):
        out[...] = x[...] @ x[...]

    def fn(x):
        params = triton.CompilerParams(num_warps=8)
        return pl.pallas_call(kernel, out_shape=x, compiler_params=params)(x)

    made = compile_for("h100", fn, square(128))
    assert "gpu.triton" in str(made.compiled.as_text())
    with pytest.raises(
        aot.DoesNotFitError, match=r"KiB of shared memory.*smaller"
    ) as e:
        compile_for("h100", fn, square(256))
    assert e.value.memory == "shared memory"
    assert e.value.needed > e.value.available == 227 * 2**10


@pytest.mark.parametrize(
    ("text", "sizes"),
    [
        (
            "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required "
            "for HLO temporaries (18.5G) exceeds available HBM (15.75G).",
            ("HBM", int(18.5 * 2**30), int(15.75 * 2**30)),
        ),
        (
            "XLA:TPU compile permanent error. Ran out of memory in memory space hbm. "
            "Used 512.0M of 256K hbm. Exceeded hbm capacity",
            ("HBM", 2**29, 2**18),
        ),
        (
            "Ran out of memory in memory space vmem. Used 20.00M of 16.00M vmem.",
            ("VMEM", 20 * 2**20, 2**24),
        ),
        (
            "RESOURCE_EXHAUSTED: Allocation (size=268435456) would exceed memory "
            "(size=134217728) :: #allocation2 [shape = 'u8[268435456]{0}', space=vmem",
            ("VMEM", 2**28, 2**27),
        ),
        (
            "RESOURCE_EXHAUSTED: Shared memory size limit exceeded: requested 327680, "
            "available: 232448, context: []",
            ("shared memory", 327680, 232448),
        ),
    ],
)
def test_the_compilers_words_are_read(text, sizes):
    error = aot._overflow("v5e", text)
    assert error is not None
    assert (error.memory, error.needed, error.available) == sizes
    assert aot._overflow("v5e", "INTERNAL: something else (3G)") is None


@pytest.mark.misuse
def test_unknown_target_gives_the_nearest():
    with pytest.raises(ValueError, match=r"did you mean 'v5e'.*v4, v5e, v5p, v6e"):
        compile_for("v5ee", jnp.sin, 1.0)


@pytest.mark.misuse
def test_old_jax_and_missing_compilers_are_refused(monkeypatch):
    monkeypatch.setattr(jax, "__version_info__", (0, 7, 2))
    with pytest.raises(ValueError, match=r"needs jax >= 0\.8"):
        compile_for("v5e", jnp.sin, 1.0)
    with pytest.raises(ValueError, match=r"needs jax >= 0\.9"):
        compile_for("h100", jnp.sin, 1.0)
    monkeypatch.setattr(jax, "__version_info__", (0, 10, 2))
    monkeypatch.setattr(aot.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r'pip install "jaxlr\[aot\]"'):
        compile_for("v5e", jnp.sin, 1.0)
    with pytest.raises(ValueError, match=r'pip install "jaxlr\[aot-cuda\]"'):
        compile_for("h100", jnp.sin, 1.0)
