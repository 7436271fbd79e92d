"""A record of the air that statsmodels brings along."""

from typing import NamedTuple

from jaxtyping import Float
import numpy as np

from jaxlr.data._extra import needs_data_extra


_NUM_YEARS, _NUM_WEEKS = 44, 53


class WeeklyRecord(NamedTuple):
    """A number for each week of several years.

    Attributes:
        values: What was measured, NaN where nothing was.
        times: Time of each week, in years from the beginning of the first one.
    """

    values: Float[np.ndarray, "year week"]
    times: Float[np.ndarray, "year week"]


def carbon_dioxide() -> WeeklyRecord:
    """Carbon dioxide in the air of Mauna Loa by week, 1958 to 2001: 44 rows of 53.

    Returns:
        Mole fractions [ppm], and times since the beginning of 1958. 59 weeks were not
        measured, and other places of the grid hold no Saturday.

    Raises:
        ImportError: Without statsmodels, which bundles it.

    References:
        Keeling, Whorf. "Atmospheric Carbon Dioxide Concentrations from Air Samples
        Collected at Mauna Loa Observatory, Hawaii". 2004. Carbon Dioxide Information
        Analysis Center.
    """
    with needs_data_extra("carbon_dioxide"):
        from statsmodels.datasets import co2

    data = co2.load_pandas().data["co2"]  # pyright: ignore
    day = data.index.day_of_year.to_numpy() - 1
    year = data.index.year.to_numpy() - 1958
    values = np.full((_NUM_YEARS, _NUM_WEEKS), np.nan)
    values[year, day // 7] = data.to_numpy()
    middle = (np.arange(_NUM_WEEKS) + 0.5) * 7 / 365.25
    times = np.arange(float(_NUM_YEARS))[:, None] + middle
    times[year, day // 7] = year + (day + 0.5) / 365.25
    return WeeklyRecord(values, times)
