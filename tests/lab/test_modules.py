"""Files beside an experiment: each folder has its own, and what is edited is new."""

import concurrent.futures
import multiprocessing
import pickle
import sys
from typing import get_type_hints

import pytest

from jaxlr import lab
from jaxlr.lab import fields, find, modules
from tests.lab import _toys as toys


BODY = """
import dataclasses
import helper
import package.inner as inner
import package.other
from helper import Settings
from jaxlr.core import Experiment


@dataclasses.dataclass(frozen=True)
class HParams:
    eta: float = helper.VALUE
    settings: "Settings" = Settings()


def run(key, hparams):
    import late
    from late import VALUE
    import namespace.deep

    assert VALUE == late.VALUE == namespace.deep.VALUE
    return {"x": VALUE * hparams.eta}


def figure(results):
    import figures.style
    return figures.style.VALUE


assert inner.VALUE == package.other.VALUE == helper.VALUE
EXPERIMENT = Experiment(run=run, hparams=HParams(), figure=figure)
"""
HELPER = """
import dataclasses
VALUE = {}


@dataclasses.dataclass(frozen=True)
class Settings:
    value: float = VALUE
"""


@pytest.fixture(autouse=True)
def _clean_modules(monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        del sys.modules[name]


def write(folder, value, body=BODY):
    """An experiment, `one.py`, and all that it imports from beside it."""
    for name, text in {
        "one.py": body,
        "helper.py": HELPER.format(value),
        "late.py": "import helper\nVALUE = helper.VALUE",
        "package/__init__.py": "",
        "package/inner.py": "from helper import VALUE",
        "package/other.py": "from .inner import VALUE",
        "namespace/deep.py": "from late import VALUE",
        "figures/__init__.py": "from . import style",
        "figures/style.py": "from helper import VALUE",
    }.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder / "one.py"


def values(experiment):
    hparams = experiment.hparams
    out = experiment.run(None, hparams)["x"]
    return hparams.eta, hparams.settings.value, out, experiment.figure(None)


@pytest.mark.parametrize("has_package", [False, True])
def test_each_folder_has_its_own(tmp_path, has_package):
    """At once, and by functions that import when they are called."""
    paths = [write(tmp_path / name, value) for name, value in (("a", 2), ("b", 30))]
    if has_package:
        for path in paths:
            (path.parent / "__init__.py").write_text("")
    first, second = map(find.find, paths)
    assert values(first) == (2, 2, 4, 2)
    assert values(second) == (30, 30, 900, 30)
    assert not {"helper", "late", "package", "figures"} & set(sys.modules)
    assert str(tmp_path / "a") not in sys.path


def test_an_edited_file_is_loaded_anew_and_no_other(tmp_path):
    """Also within the second of its byte code, by as many letters."""
    path, other = write(tmp_path / "a", 2), write(tmp_path / "b", 3)
    first, third = find.find(path), find.find(other)
    assert find.find(path).hparams is first.hparams
    (path.parent / "helper.py").write_text(HELPER.format(4))
    second = find.find(path)
    assert values(second) == (4, 4, 16, 4)
    assert find.find(other).hparams is third.hparams
    (path.parent / "late.py").write_text("VALUE = 5")
    assert values(find.find(path)) == (4, 4, 20, 4)
    assert not list(path.parent.rglob("__pycache__"))


def test_what_is_edited_is_new_where_one_file_imports_the_other(tmp_path):
    path = write(tmp_path, 2)
    (tmp_path / "two.py").write_text("from one import EXPERIMENT")
    first, second = find.find(path), find.find(tmp_path / "two.py")
    assert first.hparams is second.hparams
    assert (first.name, second.name) == ("one", "two")


def test_classes_are_found_by_pickle_and_by_annotations(tmp_path):
    experiment = find.find(write(tmp_path, 2))
    settings = experiment.hparams.settings
    assert pickle.loads(pickle.dumps(settings)) == settings
    hints = get_type_hints(type(experiment.hparams))
    assert hints["settings"] is type(settings)


def test_another_process_finds_them_under_the_same_names(tmp_path):
    """As a worker does: it loads the file under its name, then reads what was sent."""
    path = write(tmp_path, 2)
    experiment = find.find(path)
    name = experiment.function.__module__
    sent = pickle.dumps((experiment.hparams, experiment.function))
    process = toys.start(
        f"""
import pickle
from jaxlr.lab import find
find.load_module({name!r}, {str(path)!r})
hparams, function = pickle.loads({sent!r})
print(function(None, hparams)["x"], hparams.settings.value)
"""
    )
    assert toys.finish(process).split() == ["4", "2"]


WORKING = """
import helper
import jax.numpy as jnp
from jaxlr.core import Experiment


def run(key, hparams):
    import late

    return {"x": jnp.float32(late.VALUE) * hparams.value}


EXPERIMENT = Experiment(run=run, hparams=helper.Settings(), axes={"value": (1.0, 2.0)})
"""


@pytest.mark.slow
def test_a_worker_has_the_files_as_they_are_now(tmp_path):
    """Those too that are imported when the experiment is called."""
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=context) as executor:
        for value in (3, 5):
            path = write(tmp_path, 1.0, WORKING)
            (tmp_path / "late.py").write_text(f"VALUE = {value}")
            results = lab.sweep(find.find(path), executor=executor)
            assert results.x.values.ravel().tolist() == [value, 2 * value]


def test_what_is_imported_already_is_not_loaded_twice(tmp_path):
    """Such as jaxlr, where an experiment lies beside its checkout."""
    import jaxlr

    assert not modules._lies_beside("jaxlr", str(toys.ROOT))
    assert not modules._lies_beside("jaxlr", str(tmp_path))
    (tmp_path / "sys.py").write_text("")
    (tmp_path / "random.py").write_text("VALUE = 7")
    (tmp_path / "jax").mkdir()  # a folder of data
    body = BODY.replace("    import late\n", "    import sys, random, jax, late\n")
    body = body.replace('{"x": ', '{"found": (sys, random.VALUE, jax), "x": ')
    experiment = find.find(write(tmp_path, 2, body))
    found = experiment.run(None, experiment.hparams)["found"]
    assert found == (sys, 7, sys.modules["jax"])
    assert jaxlr.core is sys.modules["jaxlr.core"]


def test_a_run_records_names_that_a_move_does_not_change(tmp_path):
    """Functions and classes as fields are compared at resume by their names."""
    for folder in ("a", "b"):
        body = BODY.replace('"Settings" = Settings()', "object = inner.relu")
        path = write(tmp_path / folder, 2, body)
        inner = path.parent / "package" / "inner.py"
        inner.write_text("from helper import VALUE\ndef relu(x): return x")
        found = fields.plain(find.find(path).hparams)
        assert found["settings"] == "package.inner.relu"


def test_a_module_that_is_missing_is_named_as_it_was_written(tmp_path):
    path = write(tmp_path, 2, BODY.replace("import late\n", "import lost\n"))
    with pytest.raises(ModuleNotFoundError, match="No module named 'lost'"):
        values(find.find(path))


def test_a_sibling_that_fails_is_loaded_once_it_is_mended(tmp_path):
    path = write(tmp_path, 2)
    helper = path.parent / "helper.py"
    helper.write_text("1 / 0")
    with pytest.raises(ValueError, match="raised ZeroDivisionError"):
        find.find(path)
    helper.write_text(HELPER.format(3))
    assert values(find.find(path)) == (3, 3, 9, 3)
