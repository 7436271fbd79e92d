"""What each command of the command line does. jax is imported by those that need it."""

import datetime
from pathlib import Path
import secrets
from typing import Annotated, Any, TYPE_CHECKING

import tyro

from jaxlr.lab import find
from jaxlr.lab.cli import axes


if TYPE_CHECKING:
    import xarray as xr

    from jaxlr.core import Experiment
    from jaxlr.lab.cli.flags import General, Invocation

RUNS = Path("runs")


def list_() -> int:
    """Name the shipped experiments and their questions."""
    from jaxlr.lab import report

    rows = [(name, find.summary(path)) for name, path in find.names().items()]
    report.console().print(report.table(("experiment", "question"), rows))
    return 0


def run(invocation: "Invocation") -> int:
    """Plan, sweep, judge the claims, draw the figure; say where everything went."""
    from jaxlr import lab
    from jaxlr.lab import report

    console = report.console()
    general, experiment = invocation.general, invocation.experiment
    directory = _directory(general, experiment.name)
    for note in invocation.notes:
        console.print(note, markup=False)
    arguments: dict[str, Any] = {
        "num_seeds": general.seeds,
        "seed": general.seed,
        "directory": directory,
        "resume": "force" if general.force else general.resume,
        "chunk": general.chunk,
        "devices": _devices(general.device),
        "backend": general.backend,
    }
    plan = lab.plan(experiment, invocation.axes, **arguments)
    console.print(str(plan), markup=False)
    results = lab.sweep(experiment, invocation.axes, **arguments)
    return _conclude(experiment, results, directory)


_Run = Annotated[Path, tyro.conf.arg(metavar="RUN")]
_Name = Annotated[str, tyro.conf.arg(metavar="NAME_OR_PATH")]
_Recorded = Annotated[
    str | None,
    tyro.conf.arg(
        metavar="NAME_OR_PATH", help_behavior_hint="(default: what the run recorded)"
    ),
]
_Cell = Annotated[
    tuple[str, ...], tyro.conf.arg(metavar="NAME=VALUE ...", help_behavior_hint="")
]
_Switch = tyro.conf.FlagCreatePairsOff[bool]


def show(run: _Run, /, *, experiment: _Recorded = None) -> int:
    """Show a run's provenance and claims, and draw its figure anew.

    Args:
        run: The run directory.
        experiment: The experiment whose claims and figure are shown.
    """
    from jaxlr import lab
    from jaxlr.lab import report, store

    results = lab.load(run)
    report.console().print(report.attributes_table(results.attrs))
    manifest = store.read_manifest(run)
    found = find.find(experiment) if experiment else find.recorded(manifest)
    return _conclude(found, results, run)


def replay(
    run: _Run,
    /,
    *,
    cell: _Cell = (),
    seed: int = 0,
    experiment: _Recorded = None,
) -> int:
    """Run one cell of a run again, and compare it with what was stored.

    Args:
        run: The run directory.
        cell: The values of the cell's swept fields.
        seed: Index of the seed.
        experiment: The experiment that is run.

    Raises:
        ValueError: If a word of `cell` is not NAME=VALUE.
    """
    from jaxlr import lab
    from jaxlr.lab import report

    values = {}
    for text in cell:
        name, has_equals, value = text.partition("=")
        if not has_equals:
            raise ValueError(f"--cell takes NAME=VALUE, got {text!r}.")
        values[name.replace("-", "_")] = axes.scalar(value)
    found = find.find(experiment) if experiment else None
    results = lab.replay(run, values, seed, experiment=found)
    console = report.console()
    console.print(report.metrics_table(results))
    console.print(results.attrs["replay"], markup=False)
    return int(not results.attrs["is_equal"])


def reproduce(
    names: tyro.conf.Positional[
        Annotated[
            tuple[str, ...],
            tyro.conf.arg(
                metavar="NAME_OR_PATH ...", help_behavior_hint="(default: all)"
            ),
        ]
    ] = (),
    *,
    smoke: _Switch = False,
) -> int:
    """Judge all claims of all experiments, in one table.

    Args:
        names: The experiments that are run.
        smoke: Run them at their small sizes, in seconds each.
    """
    from jaxlr import lab
    from jaxlr.lab import judging, report

    console = report.console()
    known = {name: find.find(name) for name in names}  # misspelled: before any runs
    judgements = []
    for name in known or find.names():
        try:
            experiment = known.get(name) or find.find(name)
            if smoke:
                experiment = experiment.replace(**experiment.smoke)
            directory = _new_directory(experiment.name)
            console.print(f"{name}: {directory}", markup=False)
            results = lab.sweep(experiment, directory=directory)
            judgement = judging.judge(experiment.replace(name=name), results, directory)
        except Exception as e:  # the others are worth knowing all the same
            judgement = lab.Judgement(name, problems=(judging.sentence(e),))
        judgements.append(judgement)
    console.print(report.claims_table(judgements))
    return int(any(judgement.has_failed for judgement in judgements))


def compile_(
    experiment: _Name,
    /,
    *,
    target: str,
    smoke: _Switch = False,
    chunk: Annotated[
        int | None,
        tyro.conf.arg(metavar="N", help_behavior_hint="(default: the whole group)"),
    ] = None,
) -> int:
    """Does an experiment compile for a TPU or GPU, and fit? None is needed.

    A chunk of its largest compile group goes through the real compiler, in 32 bits.

    Args:
        experiment: A name from `jaxlr list`, or the path of a file of your own.
        target: The chip: v4, v5e, v5p, v6e or h100.
        smoke: Compile the small size.
        chunk: Number of cells in flight at once.
    """
    import jax

    from jaxlr import lab
    from jaxlr.lab import report
    from jaxlr.lab.aot import DoesNotFitError

    found = find.find(experiment)
    if smoke:
        found = found.replace(**found.smoke)
    fn, args = lab.chunk_function(found, chunk=chunk)
    try:
        compilation = lab.compile_for(target, fn, *args)
    except DoesNotFitError as e:
        report.error(f"{found.name}: {e}")
        return 1
    except (NotImplementedError, jax.errors.JaxRuntimeError) as e:
        report.error(
            f"{found.name} does not compile for {target}: {e}{find.line_of(e)}"
        )
        return 1
    console = report.console()
    console.print(report.compilation_table(compilation, found.name))
    if found.x64:
        console.print(f"{found.name} runs in 64-bit types elsewhere; 32-bit here.")
    return int(not compilation.fits)


def doctor() -> int:
    """Versions, devices, precision, and what would not work here and why."""
    from jaxlr.lab import doctor

    return doctor.diagnose()


def _conclude(experiment: "Experiment", results: "xr.Dataset", directory: Path) -> int:
    """Judge, say what there is and where, the claims last; 0 if nothing fails."""
    from jaxlr.lab import judging, report, store

    console = report.console()
    judgement = judging.judge(experiment, results, directory)
    if not results.attrs.get("is_complete", 1):
        console.print(
            f"The run is unfinished, its missing cells are NaN. Go on with --directory "
            f"{directory} --resume.",
            markup=False,
        )
    files = {"results": "", "figure": judging.FIGURE, "manifest": store.MANIFEST}
    for what, name in files.items():
        if (path := directory / name).exists():
            console.print(f"{what:9} {path}", markup=False, soft_wrap=True)
    for problem in judgement.problems:
        report.error(problem)
    if judgement.claims:
        console.print(report.claims_table([judgement]))
    elif experiment.claims is None:
        console.print(f"{experiment.name} makes no claims.", markup=False)
    return int(judgement.has_failed)


def _directory(general: "General", name: str) -> Path:
    """The run directory that the flags ask for."""
    if general.directory is not None:
        return Path(general.directory)
    if not general.resume:
        return _new_directory(name)
    from jaxlr.lab import judging, report

    folder = RUNS / name
    found = folder.iterdir() if folder.is_dir() else ()
    unfinished = [p for p in found if p.is_dir() and not (p / judging.CLAIMS).exists()]
    if not unfinished:
        raise ValueError(
            f"There is no unfinished run in {folder}: start one without --resume, or "
            "name one by --directory."
        )
    newest = max(unfinished)
    report.console().print(f"Resuming {newest}", markup=False)
    return newest


def _new_directory(name: str) -> Path:
    now = datetime.datetime.now(datetime.UTC)
    return RUNS / name / f"{now:%Y%m%dT%H%M%SZ}-{secrets.token_hex(3)}"


def _devices(platform: str | None) -> list[Any] | None:
    """This process's devices of a platform; None leaves the choice to the engine."""
    if platform is None:
        return None
    import jax

    try:
        return jax.local_devices(backend=platform)
    except RuntimeError as e:
        present = sorted({"cpu", *(device.platform for device in jax.local_devices())})
        raise ValueError(
            f"--device {platform}: there is none here; present: {', '.join(present)}. "
            "`jaxlr doctor` says more."
        ) from e
