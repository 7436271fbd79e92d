"""Verdicts: an experiment's claims about its results, and what went wrong with them."""

from collections.abc import Callable, Iterable
import contextlib
import dataclasses
import errno
import io
import json
import math
from pathlib import Path
import sys
from typing import Any, NamedTuple, TYPE_CHECKING

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
        notes: What else the reader should know, a sentence each.
    """

    name: str
    claims: tuple[Claim, ...] = ()
    problems: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def status(self) -> int:
        """Exit status: 3 if anything went wrong, 1 if a claim does not hold, else 0."""
        if self.problems:
            return 3
        return int(not all(claim.holds for claim in self.claims))


@dataclasses.dataclass(frozen=True)
class RecordedClaim(Claim):
    """A claim as its run recorded it.

    Attributes:
        holds: The verdict, which is not judged again.
    """

    holds: bool = False  # pyright: ignore


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
            is written only if the run is complete. Verdicts that it has stay as they
            were recorded; where they differ now, a note says so.
    """
    directory, keeping = store.folder(directory), _Keeping([], [])
    found = []
    try:
        found = claims(experiment, results)
    except Exception as e:
        is_whole = results.attrs.get("is_complete", 1)
        said = keeping.problems if is_whole else keeping.notes
        said.append(f"Claims: {find.sentence(e)}")
    else:
        if results.attrs.get("is_complete", 1):
            keeping.claims(found, directory / CLAIMS)
    keeping.figure(experiment.figure, results, directory / FIGURE)
    return keeping.judgement(experiment.name, found)


def recall(results: "xr.Dataset", directory: str | Path) -> Judgement:
    """The verdicts as they were recorded, without the experiment.

    The figure stays as it is; where none was drawn for a whole run, it is that which
    any results can have.

    Args:
        results: What `load` returns.
        directory: The run directory.

    Raises:
        RunDirectoryError: If the file of claims is not as it was written.
    """
    directory, keeping = store.folder(directory), _Keeping([], [])
    found = recorded(directory)
    if found is None:
        keeping.notes.append(
            "No verdicts are recorded. To have claims judged, and the experiment's own "
            "figure, name it: --experiment PATH."
        )
    if found is None or not (directory / FIGURE).exists():
        keeping.figure(None, results, directory / FIGURE)
    return keeping.judgement(str(results.attrs["experiment"]), found or ())


def recorded(directory: str | Path) -> list[Claim] | None:
    """The claims that a run directory recorded; None if it has not been judged.

    Args:
        directory: The run directory.

    Raises:
        RunDirectoryError: If the file of claims is not as it was written.
    """
    path = store.folder(directory) / CLAIMS
    try:
        return [_from_plain(claim) for claim in json.loads(path.read_text())]
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, KeyError) as e:
        raise store.RunDirectoryError(
            f"{path} cannot be read ({type(e).__name__}: {e}). Delete it, and have the "
            "run judged again: `jaxlr show RUN --experiment PATH`."
        ) from e


def set_aside(directory: Path, number: int) -> None:
    """Rename the claims of a run that is about to grow: they are of what it had.

    Args:
        directory: The run directory.
        number: Number of entries of its history by then, by which they are called.
    """
    with contextlib.suppress(FileNotFoundError):
        (directory / CLAIMS).rename(directory / f"claims-{number}.json")


class _Keeping(NamedTuple):
    """Writes claims and figure to the run directory, and collects what there is to say.

    Attributes:
        problems: What went wrong.
        notes: What else the reader should know; that storage is read-only, too.
    """

    problems: list[str]
    notes: list[str]

    def judgement(self, name: str, found: Iterable[Claim]) -> Judgement:
        return Judgement(name, tuple(found), tuple(self.problems), tuple(self.notes))

    def claims(self, found: list[Claim], path: Path) -> None:
        try:
            old = recorded(path.parent)
        except store.RunDirectoryError as e:
            self.problems.append(str(e))
            return
        if old is None:
            text = json.dumps([to_plain(claim) for claim in found], indent=1)
            self._write(path, text.encode())
            return
        was, now = ({c.statement: c.holds for c in x} for x in (old, found))
        if was != now:
            verdicts = (f"{k!r} {'holds' if v else 'fails'}" for k, v in was.items())
            self.notes.append(
                f"{path} recorded other verdicts and keeps them: "
                f"{', '.join(verdicts) or 'none'}. Delete it to record those of now."
            )

    def figure(
        self, figure_fn: Callable[[Any], Any] | None, results: "xr.Dataset", path: Path
    ) -> None:
        import matplotlib as mpl

        mpl.use("Agg")
        image = io.BytesIO()
        try:
            figure = (figure_fn or plot.default_figure)(results)
            if not hasattr(figure, "savefig"):
                raise TypeError(
                    "`figure` must return a matplotlib Figure, got "
                    f"{type(figure).__name__}."
                )
            figure.savefig(image, format="png", dpi=150)
            if pyplot := sys.modules.get("matplotlib.pyplot"):
                pyplot.close(figure)
        except Exception as e:
            if figure_fn is None or results.attrs.get("is_complete", 1):
                self.problems.append(f"Figure: {find.sentence(e)}")
                return
            self.notes.append(
                "The experiment's own figure cannot be drawn of an unfinished run "
                f"({find.sentence(e)}); it is that which any results can have."
            )
            self.figure(None, results, path)
        else:
            self._write(path, image.getvalue())

    def _write(self, path: Path, content: bytes) -> None:
        try:
            store.write_atomically(path, lambda file: file.write(content))
        except store.RunDirectoryError as e:
            number = getattr(e.__cause__, "errno", None)
            is_read_only = number in (errno.EROFS, errno.EACCES, errno.EPERM)
            (self.notes if is_read_only else self.problems).append(str(e))


def summary(judgement: Judgement) -> dict[str, Any]:
    """A judgement as JSON."""
    return {
        "experiment": judgement.name,
        "claims": [to_plain(claim) for claim in judgement.claims],
        "problems": judgement.problems,
        "notes": judgement.notes,
    }


def to_plain(claim: Claim) -> dict[str, Any]:
    """A claim as JSON: a bound that is not there is null, so is a NaN."""
    low, high = (
        float(x) if math.isfinite(x) else None for x in (claim.low, claim.high)
    )
    measured = np.asarray(claim.measured).tolist()
    return {
        "statement": claim.statement,
        "low": low,
        "high": high,
        "measured": [
            x if math.isfinite(x) else None if math.isnan(x) else str(x)
            for x in measured
        ],
        "holds": claim.holds,
        "source": claim.source,
    }


def _from_plain(plain: dict[str, Any]) -> RecordedClaim:
    low, high = plain["low"], plain["high"]
    return RecordedClaim(
        statement=str(plain["statement"]),
        measured=[math.nan if x is None else float(x) for x in plain["measured"]],
        low=-math.inf if low is None else float(low),
        high=math.inf if high is None else float(high),
        source=str(plain["source"]),
        holds=bool(plain["holds"]),
    )
