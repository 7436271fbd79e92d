"""Tables as a reader sees them."""

import math

import numpy as np
import pytest

from jaxlr.core import Claim
from jaxlr.lab import report
from jaxlr.lab.judging import Judgement


def shown(capsys, thing):
    report.console().print(thing)
    return capsys.readouterr().out


@pytest.mark.parametrize(
    ("claim", "predicted", "measured", "verdict"),
    [
        (Claim("c", 1.5, 1, 2), "1 to 2", "1.5", "holds"),
        (Claim("c", [1.5, 3.0], high=2), "<= 2", "1.5 to 3 (2 values)", "fails"),
        (Claim("c", [0.5, 0.5], low=0.25), ">= 0.25", "0.5 (2 values)", "holds"),
        (Claim("c", math.nan, 1, 1), "1", "1 NaN", "fails"),
        (Claim("c", [1, math.nan], 0), ">= 0", "1, 1 NaN (2 values)", "fails"),
        (Claim("c", math.inf, low=1), ">= 1", "inf", "holds"),
    ],
)
def test_claim_row(claim, predicted, measured, verdict):
    row = report.claim_row(claim)
    assert tuple(map(str, row)) == ("c", predicted, measured, verdict, "")


def test_claims_table_shows_everything(capsys):
    claim = Claim("[bold]x[/]", 3, 0, 1, "S1 [eq]")
    one = Judgement("mine", (claim,))
    text = shown(capsys, report.claims_table([one]))
    for word in ("[bold]x[/]", "0 to 1", "3", "fails", "S1 [eq]", "Claims"):
        assert word in text
    assert "experiment" not in text
    others = Judgement("silent"), Judgement("broken", problems=("no figure",))
    text = shown(capsys, report.claims_table([one, *others]))
    lines = [" ".join(line.split()) for line in text.splitlines()]
    assert "mine [bold]x[/] 0 to 1 3 fails S1 [eq]" in lines
    assert "silent makes no claims" in lines
    assert "broken no figure error" in lines


def test_a_wide_line_is_not_cut(capsys):
    report.error("x" * 400)
    assert capsys.readouterr().err == "x" * 400 + "\n"


def test_metrics_table(capsys):
    import xarray as xr

    values = {"loss": ("step", np.array([4.0, 2.0])), "last": 2.5}
    text = shown(capsys, report.metrics_table(xr.Dataset(values)))
    lines = [line.split() for line in text.splitlines()]
    assert ["loss", "2", "step", "4.0", "2.0"] in lines
    assert ["last", "2.5"] in lines


def test_compilation_table(capsys):
    from jaxlr.lab.aot import Compilation

    sizes = {"arguments": 2**20, "outputs": 2**30, "aliased": 2**20}
    made = Compilation(
        target="v5e",
        chip="TPU v5e",
        **sizes,
        temporaries=2**31,
        generated_code=0,
        hbm=2**32,
        compiled=None,  # pyright: ignore
    )
    assert made.total == 3 * 2**30
    assert made.fits
    text = shown(capsys, report.compilation_table(made, "first"))
    lines = [line.split() for line in text.splitlines()]
    assert ["total", "3", "GiB", "75", "%"] in lines
    assert ["HBM", "4", "GiB", "fits"] in lines
