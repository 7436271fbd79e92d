"""An edited manifest is refused, by the entry that is wrong, wherever it is read."""

import copy
import json
import re

import pytest

from jaxlr.lab import load, replay, RunDirectoryError, sweep
from jaxlr.lab.manifest import signed
from tests.lab import _toys as toys


AXES = {"rate": (0.1, 0.2, 0.3), "size": (3, 4)}


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """A directory of two groups of three cells."""
    directory = tmp_path_factory.mktemp("kept")
    sweep(toys.closed(), AXES, directory=directory, chunk=2)
    return directory


@pytest.fixture
def manifest(kept):
    """Its manifest, which is put back afterwards."""
    path = kept / "manifest.json"
    whole = path.read_text()
    yield json.loads(whole)
    path.write_text(whole)


def _entries(value, path=()):
    """Where the entries of a manifest are, nested ones too."""
    for key in value if isinstance(value, dict) else range(len(value)):
        yield (*path, key)
        if isinstance(value[key], dict | list):
            yield from _entries(value[key], (*path, key))


def _edited(manifest, place, junk):
    edited = copy.deepcopy(manifest)
    *above, last = place
    inner = edited
    for key in above:
        inner = inner[key]
    if junk == "absent":
        del inner[last]
    else:
        inner[last] = junk
    return edited


def _outcome(use, directory, manifest):
    """The error that comes of another manifest; None if there is none."""
    (directory / "manifest.json").write_text(json.dumps(manifest))
    try:
        use(directory)
    except Exception as e:
        return e
    return None


def _resume(directory):
    sweep(toys.closed(), AXES, directory=directory, resume="force")


def _replay(directory):
    replay(directory, {"rate": 0.1, "size": 3}, 0)


USES = load, _resume, _replay


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("junk", ["absent", None, -1, "junk", [], {"a": 1}])
def test_no_edit_is_another_error(kept, manifest, use, junk):
    """Every entry in turn is dropped, or becomes something else."""
    num_refused = 0
    for place in list(_entries(manifest)):
        if place[:2] == ("layout", 1):  # as the first
            continue
        error = _outcome(use, kept, _edited(manifest, place, junk))
        if isinstance(error, RunDirectoryError):
            assert str(kept) in str(error), place
            num_refused += 1
        elif place[:2] != ("config", "hparams"):  # of which the run itself may complain
            assert error is None or isinstance(error, ValueError), (place, error)
    assert num_refused > 20


EDITS = {
    "format is missing|no manifest": lambda m: m.pop("format"),
    "format 99, and .* newer": lambda m: m.update(format=99),
    "layout is missing": lambda m: m.pop("layout"),
    r"layout\[0\].cells is missing": lambda m: m["layout"][0].pop("cells"),
    r"layout\[1\].cells has 77": lambda m: m["layout"][1]["cells"].append(77),
    "cell 1 with seed 0 0 times": lambda m: m["layout"][1]["cells"].remove(1),
    "cell 0 with seed 0 2 times": lambda m: m["layout"][0]["cells"].append(0),
    "cells whose size is not 3": lambda m: m["layout"][0]["cells"].append(1),
    r"layout\[0\].seeds must": lambda m: m["layout"][0].update(seeds=[0, 9]),
    "seed 1 0 times": lambda m: m["layout"][0].update(seeds=[0, 1]),
    r"layout\[0\].width must be at": lambda m: m["layout"][0].update(width=0),
    r"loss.dtype is 'float33'": lambda m: m["layout"][0]["metrics"]["loss"].update(
        dtype="float33"
    ),
    r"loss has the dims": lambda m: m["layout"][0]["metrics"]["loss"].update(dims=[]),
    "num_seeds must be of type int": lambda m: m["config"].update(num_seeds="2"),
    "must have points of 1": lambda m: m["config"]["axes"]["rate"][1][0].append(1),
    "config.seed must be in 0": lambda m: m["config"].update(seed=-1),
    "environment.backend is 'foo'": lambda m: m["environment"].update(backend="foo"),
    "history must be of type list": lambda m: m.update(history="x"),
    "counters has": lambda m: m.update(counters=["nan_at"]),
}


@pytest.mark.parametrize("reason", EDITS)
def test_an_edit_is_named(kept, manifest, reason):
    EDITS[reason](manifest)
    for use in USES:
        error = _outcome(use, kept, manifest)
        assert isinstance(error, RunDirectoryError)
        assert re.search(reason, str(error))
        assert str(kept / "manifest.json") in str(error)


def _exchange(manifest):
    cells = manifest["layout"][0]["cells"]
    cells[0], cells[1] = cells[1], cells[0]


def _another_value(manifest):
    manifest["config"]["axes"]["rate"][1][0][0] = 0.15


def _another_seed(manifest):
    manifest["config"]["seed"] = 1


def _another_chunk(manifest):
    manifest["layout"][0]["chunk"] = 1


@pytest.mark.parametrize(
    "edit", [_exchange, _another_value, _another_seed, _another_chunk]
)
def test_an_edit_that_is_valid_in_itself_does_not_fit_the_chunks(kept, manifest, edit):
    edit(manifest)
    error = _outcome(load, kept, manifest)
    assert isinstance(error, RunDirectoryError)
    assert f"{kept / 'manifest.json'} cannot be read: config, counters" in str(error)
    error = _outcome(load, kept, signed(manifest))
    assert isinstance(error, RunDirectoryError)
    assert "does not belong to this run" in str(error)


def _fewer_metrics(manifest):
    for block in manifest["layout"]:
        del block["metrics"]["last"]


def _no_counters(manifest):
    manifest["counters"] = []


def _no_digest(manifest):
    del manifest["digest"]


@pytest.mark.parametrize("edit", [_fewer_metrics, _no_counters, _no_digest])
@pytest.mark.parametrize("use", USES)
def test_an_edit_costs_no_chunk(kept, manifest, edit, use):
    edit(manifest)
    error = _outcome(use, kept, manifest)
    assert isinstance(error, RunDirectoryError)
    assert str(kept / "manifest.json") in str(error)
    assert "Delete" not in str(error)


def test_messages_quote_long_values_in_part(tmp_path):
    rates = [i / 7 for i in range(3000)]
    directory = tmp_path / "run"
    sweep(toys.closed(num_steps=1), {"rate": rates}, directory=directory, chunk=3000)
    manifest = json.loads((directory / "manifest.json").read_text())
    manifest["config"]["axes"]["rate"][1][-1] = [0.15]
    error = _outcome(load, directory, signed(manifest))
    assert "does not belong to this run" in str(error)
    assert len(str(error)) < 600 + len(str(directory))
    error = _outcome(
        lambda x: sweep(
            toys.closed(num_steps=1), {"rate": rates[1:]}, directory=x, resume=True
        ),
        directory,
        signed(manifest),
    )
    assert "axes.rate: " in str(error)
    assert len(str(error)) < 600 + len(str(directory))
