"""The grammar of `--axis`, and how given axes meet an experiment's own."""

import itertools

import pytest

from jaxlr.core import Axis, LogUniform, Uniform
from jaxlr.lab.cli.axes import merge, parse_axis, scalar


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("alpha=0.1,0.2,0.3", ("alpha", (0.1, 0.2, 0.3))),
        ("alpha=.5", ("alpha", (0.5,))),
        ("alpha=-1,1e-3", ("alpha", (-1, 0.001))),
        ("num-columns=1,2", ("num_columns", (1, 2))),
        ("method=gd,sgd", ("method", ("gd", "sgd"))),
        ("path=a/b", ("path", ("a/b",))),
        ("flag=true,False", ("flag", (True, False))),
        ("alpha=lin:0:1:5", ("alpha", (0.0, 0.25, 0.5, 0.75, 1.0))),
        ("k=lin:2:10:5", ("k", (2, 4, 6, 8, 10))),
        ("k=log:1:1000:4", ("k", (1, 10, 100, 1000))),
        ("alpha=lin:1:2:3", ("alpha", (1.0, 1.5, 2.0))),
        ("alpha=uniform:0:2:8", ("alpha", Uniform(0, 2, 8))),
        ("alpha=loguniform:1e-3:1:8", ("alpha", LogUniform(1e-3, 1, 8))),
        ("a/m=.1,.2/gd,sgd", (("a", "m"), ((0.1, "gd"), (0.2, "sgd")))),
        ("a/b=lin:0:1:2/3,4", (("a", "b"), ((0.0, 3), (1.0, 4)))),
        (
            "a/b=uniform:0:1:4/loguniform:1:2:4",
            (("a", "b"), (Uniform(0, 1, 4), LogUniform(1, 2, 4))),
        ),
    ],
)
def test_spec_reads_as(text, want):
    assert parse_axis(text) == want


def test_kinds_are_kept():
    assert [type(x) for x in parse_axis("a=1,2.0,true,x")[1]] == [int, float, bool, str]
    assert {type(x) for x in parse_axis("a=lin:0:4:3")[1]} == {int}
    assert {type(x) for x in parse_axis("a=lin:0:4.0:3")[1]} == {float}


def test_log_range_is_geometric_with_both_ends():
    name, values = parse_axis("alpha=log:1e-3:1:7")
    assert name == "alpha"
    assert (values[0], values[-1]) == (1e-3, 1.0)
    ratios = [b / a for a, b in itertools.pairwise(values)]
    assert ratios == pytest.approx([10**0.5] * 6)


def test_a_sampler_beside_a_list_draws_as_the_engine_would():
    names, points = parse_axis("a/b=uniform:0:1:2/5,6")
    assert names == ("a", "b")
    assert points == tuple(zip(Uniform(0, 1, 2).draw("a"), (5, 6), strict=True))


@pytest.mark.misuse
@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("alpha", "no NAME="),
        ("=1,2", "no NAME="),
        ("a b=1", "no NAME="),
        ("alpha=", "a value is empty"),
        ("alpha=1,,2", "a value is empty"),
        ("alpha=logg:1:2:3", "did you mean 'log'"),
        ("alpha=log:1:2", "not log:LOW:HIGH:NUM"),
        ("alpha=log:a:2:3", "not log:LOW:HIGH:NUM"),
        ("alpha=lin:1:2:3.5", "not lin:LOW:HIGH:NUM"),
        (
            "alpha=log:0:1:3",
            r"`LOW:HIGH` must be positive and finite, got \(0.0",
        ),
        ("alpha=lin:0:inf:3", r"`LOW:HIGH` must be in \(-inf, inf\), got \(0.0, inf\)"),
        ("alpha=lin:0:1:1", "`NUM` must be an integer >= 2, got 1"),
        ("alpha=uniform:2:1:3", "`low` must be less than `high`"),
        ("alpha=loguniform:0:1:3", "`low` must be positive"),
        ("a/b=1,2", "2 fields, but 1 specs"),
        ("a/a=1/2", "named twice"),
        ("a/b=1,2/3", r"differ in length: \[2, 1\]"),
    ],
)
def test_malformed_spec_gives_reason_and_grammar(text, reason):
    with pytest.raises(ValueError, match=f"(?s){reason}.*An axis is NAME=SPEC"):
        parse_axis(text)


def test_scalar_spells():
    assert [scalar(x) for x in ("3", " -3 ", "3.", "TRUE", "gd")] == [
        3,
        -3,
        3.0,
        True,
        "gd",
    ]


OWN = {"eta": (1, 2), ("a", "b"): ((1, 2), (3, 4)), "method": ("gd", "sgd")}


def test_given_axis_takes_the_place_of_the_own_one():
    axes, dropped = merge(OWN, [("method", ("adam",)), ("new", (0,))], {})
    assert axes == {"eta": (1, 2), ("a", "b"): OWN["a", "b"], "method": ("adam",)} | {
        "new": (0,)
    }
    assert list(axes) == ["eta", ("a", "b"), "method", "new"]
    assert dropped == []


def test_a_joint_axis_replaces_single_ones():
    axes, _ = merge(OWN, [(("eta", "method"), ((5, "gd"),))], {})
    assert axes == {("eta", "method"): ((5, "gd"),), ("a", "b"): OWN["a", "b"]}


def test_a_fixed_field_drops_its_axis():
    axes, dropped = merge(OWN, [], {"eta": 3, "other": 1})
    assert "eta" not in axes
    assert dropped == ["eta"]
    axes, dropped = merge(OWN, [("b", (7,))], {"a": 1})
    assert axes == {"eta": (1, 2), "b": (7,), "method": ("gd", "sgd")}


def test_axes_given_as_tuples_are_kept():
    own = (Axis("eta", (1, 2)), Axis("k", (3,)))
    assert merge(own, [("k", (4,))], {})[0] == {"eta": (1, 2), "k": (4,)}
    assert merge(own, [], {"eta": 3}) == ({"k": (3,)}, ["eta"])
    twice = (Axis("eta", (1,)), Axis("eta", (2,)))  # for the engine to refuse
    assert merge(twice, [], {})[0] is twice


@pytest.mark.misuse
@pytest.mark.parametrize(
    ("given", "fixed", "match"),
    [
        (
            [("eta", (1,))],
            {"eta": 2},
            "'eta' is given twice, by --axis and by its flag",
        ),
        ([("eta", (1,)), ("eta", (2,))], {}, "'eta' is given twice.*another --axis"),
        ([("a", (1,))], {}, "moves a/b together; a cannot change alone. Give b too"),
        ([], {"b": 1}, "moves a/b together; b cannot change alone. Give a too"),
    ],
)
def test_contradictions_are_named(given, fixed, match):
    with pytest.raises(ValueError, match=match):
        merge(OWN, given, fixed)
