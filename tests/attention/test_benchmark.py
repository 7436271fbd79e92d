"""The part of the benchmark that only a GPU or TPU would run, in interpret mode."""

import jax
import pytest

from experiments.benchmarks import attention


@pytest.mark.slow
@pytest.mark.parametrize("platform", ["gpu", "tpu"])
def test_kernels_are_timed(platform, monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: platform)
    sizes = {"HEADS": 2, "POSITIONS": 32, "FEATURES": 16, "WINDOWS": (4, 8)}
    for name, value in (sizes | {"MATRIX": 64}).items():
        monkeypatch.setattr(attention, name, value)
    found = attention.of_kernel("pallas_interpret")
    assert set(found) == {"value", "gradient"}
    for report in found.values():
        assert 0 < report["share"] < 1
        assert report["tflops"] > 0
    assert found["value"]["target"].startswith("share >= 0.")
