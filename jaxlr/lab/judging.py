"""Verdicts: an experiment's claims about its results, and what went wrong with them."""

import dataclasses
import math
from pathlib import Path
import sys
from typing import Any, TYPE_CHECKING

import numpy as np

from jaxlr.core.types import Claim, Experiment
from jaxlr.lab import find, plot, store


if TYPE_CHECKING:
    import xarray as xr

CLAIMS = "claims.json"
FIGURE = "figure.png"


@dataclasses.dataclass(frozen=True)
class Judgement:
    """What is known of one experiment. Exit statuses come from here, not from tables.

    Attributes:
        name: Name of the experiment.
        claims: Its claims about its results; none if it makes none.
        problems: What went wrong, a sentence each: claims that could not be judged, a
            figure that could not be drawn, a run that failed.
    """

    name: str
    claims: tuple[Claim, ...] = ()
    problems: tuple[str, ...] = ()

    @property
    def has_failed(self) -> bool:
        """Whether a claim does not hold, or anything went wrong."""
        return bool(self.problems) or not all(claim.holds for claim in self.claims)


def claims(experiment: Experiment, results: "xr.Dataset") -> list[Claim]:
    """The experiment's claims about `results`; none if it makes none.

    Args:
        experiment: The experiment that makes the claims.
        results: What `sweep` or `load` returns.

    Raises:
        ValueError: If `experiment.claims` returns no list of at least one `Claim`.
    """
    if experiment.claims is None:
        return []
    found = list(experiment.claims(results) or ())
    if not found:
        raise ValueError("`claims` returned no claim: nothing would be judged.")
    for claim in found:
        if not isinstance(claim, Claim):
            raise ValueError(f"`claims` must return a list of Claim, got {claim!r}.")
    return found


def judge(
    experiment: Experiment, results: "xr.Dataset", directory: str | Path
) -> Judgement:
    """Judge the claims and draw the figure, both kept in the run directory.

    Args:
        experiment: The experiment whose claims and figure are wanted.
        results: What `sweep` or `load` returns.
        directory: The run directory. The file of claims, which marks a run as judged,
            is written only if the run is complete.
    """
    directory, found, problems = Path(directory), [], []
    try:
        found = claims(experiment, results)
        if results.attrs.get("is_complete", 1):
            store.write_json(directory / CLAIMS, [_plain(claim) for claim in found])
    except Exception as e:
        problems.append(f"Claims: {sentence(e)}")
    try:
        _draw(experiment, results, directory / FIGURE)
    except Exception as e:
        problems.append(f"Figure: {sentence(e)}")
    return Judgement(experiment.name, tuple(found), tuple(problems))


def sentence(error: BaseException) -> str:
    """An error as one problem: its kind, what it says, and the user's own line."""
    return f"{type(error).__name__}: {error}{find.line_of(error)}"


def _draw(experiment: Experiment, results: "xr.Dataset", path: Path) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    figure = (experiment.figure or plot.default_figure)(results)
    if not hasattr(figure, "savefig"):
        raise TypeError(
            f"`figure` must return a matplotlib Figure, got {type(figure).__name__}."
        )
    figure.savefig(path, dpi=150)
    if pyplot := sys.modules.get("matplotlib.pyplot"):
        pyplot.close(figure)


def _plain(claim: Claim) -> dict[str, Any]:
    """A claim as JSON; a bound that is not there is null, so is NaN."""

    def number(x):
        return float(x) if math.isfinite(x) else None

    return {
        "statement": claim.statement,
        "low": number(claim.low),
        "high": number(claim.high),
        "measured": [number(x) for x in np.asarray(claim.measured)],
        "holds": claim.holds,
        "source": claim.source,
    }
