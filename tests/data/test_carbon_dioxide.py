"""The record of the air against statsmodels' own table."""

import sys

import numpy as np
import pytest
from statsmodels.datasets import co2

from jaxlr.data import carbon_dioxide


def test_every_week_has_its_place():
    record = carbon_dioxide()
    table = co2.load_pandas().data["co2"]
    years = (table.index - np.datetime64("1958-01-01")).days.to_numpy() / 365.25
    assert record.values.shape == record.times.shape == (44, 53)
    is_measured = np.isfinite(record.values)
    measured = table.notna().to_numpy()
    assert is_measured.sum() == measured.sum() == 2225
    # In the order of time, to a day and a half where leap years are uneven.
    np.testing.assert_array_equal(record.values[is_measured], table[measured])
    np.testing.assert_allclose(record.times[is_measured], years[measured], atol=0.004)
    assert (np.diff(record.times[is_measured]) > 0).all()


@pytest.mark.misuse
def test_missing_statsmodels_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "statsmodels.datasets", None)
    with pytest.raises(ImportError, match=r'pip install "jaxlr\[data\]"'):
        carbon_dioxide()
