"""Whatever experiments the tree contains: contracts, and a smoke run of each."""

import ast
import dataclasses
import importlib

import jax
import jax.random as jr
import numpy as np
import pytest
import xarray as xr

from jaxlr import lab
from jaxlr.core import compat, Experiment, loop
from jaxlr.lab import find
from jaxlr.lab.docs import field_docs
from tests.conformance import newcomer
from tests.conformance.source import ROOT


# The README shows these, one a family: every run of the tests has them. The others are
# slow tests, which continuous integration runs; none is left out.
SHOWN = set(newcomer.rows(ROOT).values())
NAMES = sorted(find.names())


def by_name(*marks):
    """Once for every experiment; with `--dist loadgroup` they share its results."""

    def param(name):
        slow = () if name in SHOWN else (pytest.mark.slow,)
        return pytest.param(name, marks=[pytest.mark.xdist_group(name), *slow, *marks])

    return pytest.mark.parametrize("name", [param(name) for name in NAMES])


@pytest.fixture(scope="session")
def smoke_results():
    """Smoke results by name, each computed once."""
    return {}


def smoke(name):
    experiment = find.find(name)
    return experiment.replace(**experiment.smoke)


def swept(name, cache):
    if name not in cache:
        cache[name] = lab.sweep(smoke(name))
    return cache[name]


@pytest.mark.parametrize("name", NAMES)
def test_contract(name):
    experiment = find.find(name)
    assert isinstance(experiment, Experiment)
    assert experiment.name == name
    assert experiment.smoke, "a smoke size is what the tests can run"
    assert experiment.claims, "an experiment answers a question"
    assert experiment.figure
    assert experiment.axes
    fields = {f.name for f in dataclasses.fields(experiment.hparams)}
    undocumented = fields - set(field_docs(type(experiment.hparams)))
    assert not undocumented
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(experiment.hparams, next(iter(fields)), None)


@pytest.mark.parametrize("name", NAMES)
def test_docstring_states_question_claim_and_falsifier(name):
    doc = ast.get_docstring(ast.parse(find.names()[name].read_text())) or ""
    for word in ("?", "laim", "alsif"):
        assert word in doc


@by_name()
def test_smoke_claims_hold_and_its_figure_draws(name, smoke_results, tmp_path):
    results = swept(name, smoke_results)
    claims = lab.claims(smoke(name), results)
    assert claims
    assert [c.statement for c in claims if not c.holds] == []
    draw = smoke(name).figure
    assert draw is not None
    draw(results).savefig(tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 10_000


@by_name()
def test_results_are_labelled(name, smoke_results):
    results = swept(name, smoke_results)
    assert (results.diverged_at == -1).all()
    for variable in results.data_vars.values():
        if not variable.name.endswith("_length"):
            assert variable.attrs.get("long_name"), variable.name
    fields = {f.name for f in dataclasses.fields(smoke(name).hparams)}
    assert fields <= {*lab.hparams(results), *results.coords}


@by_name()
def test_every_claim_can_be_false(name, smoke_results):
    """On results that are all NaN, no claim holds."""
    results = swept(name, smoke_results)
    broken = results.map(
        lambda x: x.astype(float) * np.nan if x.dtype.kind in "fiu" else x,
        keep_attrs=True,
    )
    claims = lab.claims(smoke(name), broken)
    assert [c.statement for c in claims if c.holds] == []


@by_name()
def test_claims_notice_a_wrong_result(name, smoke_results):
    """Each claim fails on the changes that `tests/<family>/wrong.py` lists for it."""
    family, question = name.split(".")
    forgotten = [v for v in newcomer.has_wrong(ROOT) if f"tests/{family}/" in v]
    assert not forgotten
    tables = importlib.import_module(f"tests.{family}.wrong").WRONG
    wrong = tables[question]
    experiment, results = smoke(name), swept(name, smoke_results)
    unnoticed = {claim.statement for claim in experiment.claims(results)}
    in_order = sorted(unnoticed, key=len)
    for beginning, (metric, *changes) in wrong.items():
        statement = next(s for s in in_order if s.startswith(beginning))
        unnoticed.remove(statement)
        values = results[metric]
        for where, change in changes:
            is_here = xr.ones_like(values, bool)
            for coordinate, value in where.items():
                is_here = (results[coordinate] == value) & is_here
            changed = results.assign({metric: values.where(~is_here, change(values))})
            failing = [c.statement for c in experiment.claims(changed) if not c.holds]
            assert statement in failing, (statement, where)
    assert not unnoticed


@by_name(pytest.mark.full)
def test_claims_hold_at_full_size(name):
    experiment = find.find(name)
    claims = lab.claims(experiment, lab.sweep(experiment))
    assert [c.statement for c in claims if not c.holds] == []


@by_name(pytest.mark.slow)  # a second compile
def test_run_is_pure(name):
    """The same key gives the same bits, another key does not; nothing leaks."""
    experiment = smoke(name)
    run = experiment.run or loop.closed_form(experiment)
    with compat.x64(experiment.x64), jax.checking_leaks():
        compiled = jax.jit(lambda key: run(key, experiment.hparams))
        first, again, other = (compiled(jr.key(seed)) for seed in (0, 0, 1))
    first, again, other = (jax.tree.leaves(x) for x in (first, again, other))
    for a, b in zip(first, again, strict=True):
        np.testing.assert_array_equal(a, b)
    assert any(not np.array_equal(a, b) for a, b in zip(first, other, strict=True))


def is_quick_to_lower(name):
    """In 64-bit types an experiment is lowered to a TPU's for minutes."""
    return name in SHOWN or "x64=True" not in find.names()[name].read_text()


@pytest.mark.aot
@pytest.mark.parametrize(
    "name",
    [
        name if is_quick_to_lower(name) else pytest.param(name, marks=pytest.mark.slow)
        for name in NAMES
    ],
)
@pytest.mark.parametrize("target", ["v5e", pytest.param("v6e", marks=pytest.mark.slow)])
def test_it_compiles_for_a_tpu(name, target):
    """The largest compile group, as `jaxlr compile --smoke` does."""
    pytest.importorskip("libtpu", reason='needs pip install "jaxlr[aot]"')
    fn, arguments = lab.chunk_function(smoke(name), chunk=1)
    assert lab.compile_for(target, fn, *arguments).fits
