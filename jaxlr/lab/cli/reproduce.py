"""`jaxlr reproduce`: many experiments, one after another, and all their verdicts."""

import dataclasses
import hashlib
import os
from pathlib import Path
import shlex
import time
from typing import Annotated, TYPE_CHECKING

import tyro

from jaxlr.lab import find
from jaxlr.lab.cli import commands


if TYPE_CHECKING:
    from jaxlr.core import Experiment
    from jaxlr.lab.judging import Judgement

_Names = tyro.conf.Positional[
    Annotated[
        tuple[str, ...],
        tyro.conf.arg(metavar="NAME_OR_PATH ...", help_behavior_hint="(default: all)"),
    ]
]


def reproduce(
    names: _Names = (),
    *,
    smoke: commands.Switch = False,
    resume: commands.Switch = False,
    is_json: commands.Json = False,
) -> commands.Outcome:
    """Judge all claims of all experiments: each verdict as it falls, then one table.

    Args:
        names: The experiments that are run.
        smoke: Run them at their small sizes, in seconds each.
        resume: Go on with the newest call that was stopped, where it stopped; what is
            finished is not run again.
        is_json: Print one JSON object on stdout, all else on stderr.
    """
    from jaxlr.lab import judging, report

    console = report.console()
    known = {name: find.find(name) for name in names}  # misspelled: before any runs
    names = names or tuple(find.names())
    root = _root(smoke, resume)
    judgements, stopped = [], None
    for i, name in enumerate(names, 1):
        directory = root / _folder(name)
        console.print(report.literal(f"{i} of {len(names)}  {name}: {directory}"))
        since = time.perf_counter()
        try:
            judgement = _judgement(name, known.get(name), directory, smoke)
        except KeyboardInterrupt:
            words = ["jaxlr", "reproduce", "--resume", *["--smoke"] * smoke, *known]
            stopped = (
                f"Stopped in {i} of {len(names)}. Go on with `{shlex.join(words)}`."
            )
            break
        judgements.append(judgement)
        for verdict in report.verdicts(judgement):
            console.print(verdict)
        console.print(f"  {time.perf_counter() - since:.0f} s")
    console.print(report.claims_table(judgements))
    status = max((judgement.status for judgement in judgements), default=0)
    if stopped:
        report.error(stopped)
        status = 130
    found = [judging.summary(judgement) for judgement in judgements]
    return commands.Outcome(status, {"directory": root, "experiments": found})


def _judgement(
    name: str, experiment: "Experiment | None", directory: Path, is_small: bool
) -> "Judgement":
    from jaxlr import lab
    from jaxlr.lab import judging

    try:
        experiment = experiment or find.find(name)
        if is_small:
            experiment = experiment.replace(**experiment.smoke)
        results = lab.sweep(experiment, directory=directory, resume=True)
        judgement = judging.judge(experiment, results, directory)
        return dataclasses.replace(judgement, name=name)
    except (Exception, SystemExit) as e:  # the others are worth knowing all the same
        return lab.Judgement(name, problems=(find.sentence(e),))


def _root(is_small: bool, resume: bool) -> Path:
    """The folder of this call's run directories."""
    folder = commands.RUNS / "reproduce" / ("smoke" if is_small else "full")
    if not resume:
        return commands.new(folder)
    if not (found := sorted(folder.glob("*"))):
        raise ValueError(f"There is nothing in {folder} to resume.")
    return found[-1]


def _folder(name: str) -> str:
    """A name's run directory: two files of one name have two."""
    if name in find.names():
        return name
    path = Path(name).expanduser().resolve()
    return f"{path.stem}-{hashlib.sha256(os.fsencode(path)).hexdigest()[:6]}"
