"""Experiments by name and by path."""

from pathlib import Path
import shutil
import subprocess
import sys

import pytest

from jaxlr.lab import find


BODY = '''"""A question?

More.
"""
import dataclasses
import jax.numpy as jnp
from jaxlr.core import Experiment


@dataclasses.dataclass(frozen=True)
class HParams:
    eta: float = 0.1


def run(key, hparams):
    return {"x": jnp.zeros(3)}


EXPERIMENT = Experiment(run=run, hparams=HParams())
'''


@pytest.fixture(autouse=True)
def _clean_modules(monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if name.startswith("jaxlr_file_") or name in ("sibling", "shipped"):
            del sys.modules[name]


@pytest.fixture
def mine(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(BODY)
    return path


def find_real_names():
    folder = Path(find.__file__).parents[2] / "experiments"
    return [
        ".".join(path.relative_to(folder).with_suffix("").parts)
        for path in sorted(folder.glob("*/[!_]*.py"))
    ]


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A tree of shipped experiments of our own making."""
    root = tmp_path / "experiments"
    for name, text in {
        "__init__.py": "EXPERIMENT = 1",
        "family/__init__.py": "",
        "family/first.py": BODY,
        "family/annotated.py": BODY.replace("EXPERIMENT =", "EXPERIMENT: object ="),
        "family/_helper.py": BODY,
        "_private/second.py": BODY,
        "common/__init__.py": "",
        "common/sizes.py": "ETA = 0.75\nEXPERIMENT = 1",
        "benchmarks/speed.py": "print('never imported')\nif 1:\n    EXPERIMENT = 1",
        "family/broken.py": "def f(:\n",
    }.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    monkeypatch.setattr(find, "_PACKAGE", tmp_path / "jaxlr")
    return tmp_path


def test_names_are_the_files_that_export(checkout):
    found = find.names()
    assert list(found) == ["family.annotated", "family.broken", "family.first"]
    assert found["family.first"] == checkout / "experiments" / "family" / "first.py"


def test_the_wheels_experiments_come_before_the_ones_beside(checkout):
    inside = checkout / "jaxlr" / "experiments" / "other.py"
    inside.parent.mkdir(parents=True)
    inside.write_text(BODY)
    assert find.names() == {"other": inside}


def test_summary_reads_without_importing(checkout, mine):
    assert find.summary(mine) == "A question?"
    assert "line 1 does not parse" in find.summary(find.names()["family.broken"])
    (checkout / "bare.py").write_text("x = 1 / 0")
    assert find.summary(checkout / "bare.py") == ""


def test_shipped_experiment_has_its_name_and_an_importable_module():
    name = next(iter(find.names()))
    experiment = find.find(name)
    assert experiment.name == name
    assert experiment.function.__module__ == f"experiments.{name}"
    assert find.find(find.names()[name]).name == name
    assert find.find(name).hparams is experiment.hparams


def test_another_package_called_experiments_does_and_takes_no_harm(checkout):
    names = ["family.first", *find_real_names()[:1]]  # the second is imported elsewhere
    for name in names:
        path = checkout / "experiments" / (name.replace(".", "/") + ".py")
        path.parent.mkdir(exist_ok=True)
        path.write_text(BODY)
        before = sys.modules.get(f"experiments.{name}")
        experiment = find.find(name)
        assert experiment.name == name
        assert sys.modules[experiment.function.__module__].__file__ == str(path)
        assert sys.modules.get(f"experiments.{name}") is before


def test_users_file_is_loaded_anew_under_its_own_module(mine, tmp_path):
    first = find.find(mine)
    assert first.name == "mine"
    assert first.hparams.eta == 0.1
    mine.write_text(BODY.replace("0.1", "0.25"))
    assert find.find(str(mine)).hparams.eta == 0.25
    other = tmp_path / "elsewhere" / "mine.py"
    other.parent.mkdir()
    other.write_text(BODY.replace("0.1", "0.5"))
    second = find.find(other)
    assert second.hparams.eta == 0.5
    assert second.function.__module__ != first.function.__module__
    for experiment in (first, second):
        assert experiment.function.__module__ in sys.modules


def test_users_file_may_import_a_sibling_now_and_later(tmp_path):
    (tmp_path / "sibling.py").write_text("VALUE = 0.75")
    path = tmp_path / "mine.py"
    body = BODY.replace("import dataclasses", "import dataclasses\nimport sibling")
    path.write_text(
        body.replace("0.1", "sibling.VALUE").replace(
            "    return {", "    import shipped\n    return {"
        )
    )
    (tmp_path / "shipped.py").write_text("")
    experiment = find.find(path)
    assert experiment.hparams.eta == 0.75
    experiment.function(None, experiment.hparams)


def test_relative_paths_and_bare_file_names(mine, monkeypatch):
    monkeypatch.chdir(mine.parent)
    assert find.find("mine.py").name == "mine"
    assert find.find("./mine.py").name == "mine"


def test_load_module_executes_what_no_import_reaches(mine):
    module = find.load_module("no_such_package.mine", mine)
    assert sys.modules.pop("no_such_package.mine") is module
    name, path = next(iter(find.names().items()))
    assert (
        find.load_module(f"experiments.{name}", path).__name__ == f"experiments.{name}"
    )


SHARING = BODY.replace("\n\n@data", "from ..common import sizes\n\n@data").replace(
    "0.1", "sizes.ETA"
)


def test_a_file_of_another_checkout_is_part_of_its_package(checkout, monkeypatch):
    """By name, by path, and by path where it does not ship; its helpers are its own."""
    path = checkout / "experiments" / "family" / "shares.py"
    path.write_text(SHARING)
    assert find.find("family.shares").hparams.eta == 0.75
    assert find.find(path).name == "family.shares"
    monkeypatch.undo()
    assert "family.shares" not in find.names()
    experiment = find.find(path)
    assert (experiment.name, experiment.hparams.eta) == ("shares", 0.75)
    package = experiment.function.__module__.removesuffix(".family.shares")
    assert sys.modules[f"{package}.common.sizes"].ETA == 0.75
    assert package not in ("experiments", "jaxlr.experiments")
    path.write_text(SHARING.replace("sizes.ETA", "2 * sizes.ETA"))
    assert find.find(path).hparams.eta == 1.5


def test_a_worker_loads_a_file_as_part_of_its_package(checkout):
    path = checkout / "experiments" / "family" / "shares.py"
    path.write_text(SHARING)
    name = find.find(path).function.__module__
    for loaded in [x for x in sys.modules if x.startswith(name.split(".")[0])]:
        del sys.modules[loaded]
    module = find.load_module(name, path)
    assert module.__name__ == name
    assert module.EXPERIMENT.hparams.eta == 0.75


def test_a_wheels_experiments_and_benchmarks_import_each_other(tmp_path):
    """As hatchling lays them out, from another folder; nothing is of the checkout."""
    root = Path(find.__file__).parents[2]
    for source, target in (("jaxlr", "jaxlr"), ("experiments", "jaxlr/experiments")):
        ignored = shutil.ignore_patterns("__pycache__", "results")
        shutil.copytree(root / source, tmp_path / target, ignore=ignored)
    benchmarks = sorted((tmp_path / "jaxlr/experiments/benchmarks").glob("[!_]*.py"))
    assert benchmarks
    (tmp_path / "elsewhere").mkdir()
    code = """
import importlib, pathlib, sys
sys.path.insert(0, sys.argv[1])
from jaxlr.lab import find
names = find.names()
for name, path in names.items():
    module = find.find(name).function.__module__
    assert module == f"jaxlr.experiments.{name}", (name, module)
    assert find.find(path).name == name
for name in sys.argv[2:]:
    importlib.import_module(f"jaxlr.experiments.benchmarks.{name}")
assert not [x for x in sys.modules if x.split(".")[0] == "experiments"]
assert not [x for x in sys.modules if x.startswith("jaxlr_file_")]
print(len(names))
"""
    arguments = [str(tmp_path), *(path.stem for path in benchmarks)]
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path / "elsewhere",
    )
    assert (done.stderr, done.returncode) == ("", 0)
    assert int(done.stdout) == len(find.names())


@pytest.mark.misuse
def test_unknown_name_gives_the_nearest():
    name = next(iter(find.names()))
    with pytest.raises(
        ValueError, match=f"did you mean '{name}'.*valid: .*by its path"
    ):
        find.find(name[:-1])


@pytest.mark.misuse
@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("x = 1", "exports no EXPERIMENT"),
        ("EXPERIMENT = 3", "must be a jaxlr.core.Experiment, got int"),
        ("\n\nx = 1 / 0", "line 3 raised ZeroDivisionError: division by zero"),
        ("def f(:\n", "raised SyntaxError"),
        ("import no_such_module_at_all", "raised ModuleNotFoundError"),
        ("import sys; sys.exit(3)", "raised SystemExit: 3"),
    ],
)
def test_a_bad_file_is_named_with_the_reason(tmp_path, text, match):
    path = tmp_path / "bad.py"
    path.write_text(text)
    with pytest.raises(ValueError, match=f"bad.py.*{match}") as caught:
        find.find(path)
    assert (caught.value.__cause__ is not None) == ("raised" in match)
    is_loaded = any(name.endswith(".bad") for name in sys.modules)
    assert is_loaded == ("raised" not in match)


@pytest.mark.misuse
def test_missing_file_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"no file.*gone\.py"):
        find.find(tmp_path / "gone.py")


def test_the_line_of_an_error_is_the_users_own(tmp_path):
    path = tmp_path / "theirs.py"
    path.write_text("import json\n\n\ndef f():\n    json.loads('{')\n")
    namespace = {}
    exec(compile(path.read_text(), str(path), "exec"), namespace)
    with pytest.raises(ValueError, match="Expecting") as caught:
        namespace["f"]()
    assert find.line_of(caught.value).endswith("theirs.py, line 5)")


def test_no_line_of_ours_is_named():
    with pytest.raises(AttributeError) as caught:
        find.summary(None)  # pyright: ignore
    own = caught.value.__traceback__
    assert own is not None
    assert find.line_of(caught.value.with_traceback(own.tb_next)) == ""
