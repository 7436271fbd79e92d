"""What the doctor finds, and what it says is missing."""

import importlib.util
import types

import jax
import pytest

from jaxlr.lab import aot, doctor


def test_versions():
    found = doctor.versions()
    assert found["jax"] == jax.__version__
    assert {"python", "jaxlr", "equinox", "numpy", "xarray"} <= set(found)


def test_a_missing_package_is_a_dash(monkeypatch):
    monkeypatch.setattr(doctor, "_PACKAGES", ("no-such-package",))
    assert doctor.versions()["no-such-package"] == "-"


@pytest.mark.parametrize(
    ("package", "what"),
    [
        ("sklearn", "photographs"),
        ("statsmodels", "carbon dioxide"),
        ("distributed", "Dask"),
        ("submitit", "SLURM"),
        ("cloudpickle", "notebook or script"),
        ("ipywidgets", "bar of progress"),
    ],
)
def test_what_is_missing_is_named_and_what_is_there_is_not(monkeypatch, package, what):
    def named(present):
        monkeypatch.setattr(importlib.util, "find_spec", present)
        return any(what in limit.what for limit in doctor.limits([]))

    assert named(lambda name: None if name == package else object())
    assert not named(lambda name: object())


def test_compilation_is_judged_by_aot(monkeypatch):
    monkeypatch.setattr(aot, "why_not", lambda platform: f"No {platform}.")
    for name, reason in (("TPUs", "No tpu."), ("GPUs", "No cuda.")):
        what = f"jaxlr compile for {name}, tests marked aot"
        assert (what, reason) in doctor.limits([])
    monkeypatch.setattr(aot, "why_not", lambda platform: "")
    assert not any("compile" in limit.what for limit in doctor.limits([]))


@pytest.mark.parametrize(
    ("platform", "words"),
    [("cpu", "interpreted"), ("tpu", "float64"), ("gpu", "Triton needs 8.0")],
)
def test_each_platform_has_its_limits(platform, words):
    device = types.SimpleNamespace(platform=platform, compute_capability="7.5")
    text = " ".join(limit.why for limit in doctor.limits([device, device]))
    assert text.count(words) == 1


def test_default_precision_is_read():
    device = types.SimpleNamespace(platform="gpu")
    assert "Default to TF32" in " ".join(x.why for x in doctor.limits([device]))
    with jax.default_matmul_precision("highest"):
        assert "TF32" not in " ".join(x.why for x in doctor.limits([device]))
        assert doctor.machine()["matmul precision"] == "highest"


def test_diagnose_prints_all_and_succeeds_without_devices(monkeypatch, capsys):
    def fail():
        raise RuntimeError("No\nbackend.")

    assert doctor.diagnose()["versions"]["jax"] == jax.__version__
    text = capsys.readouterr().out
    for word in ("Versions", "Machine", "Devices", "would not work", jax.__version__):
        assert word in text
    monkeypatch.setattr(jax, "devices", fail)
    assert doctor.diagnose()["devices"] == []
    assert "none, No backend." in capsys.readouterr().out
