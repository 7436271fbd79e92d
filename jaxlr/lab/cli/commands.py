"""What each command of the command line does. jax is imported by those that need it."""

import dataclasses
import datetime
from pathlib import Path
import secrets
from typing import Annotated, Any, NamedTuple, TYPE_CHECKING

import tyro

from jaxlr.lab import find, progress
from jaxlr.lab.cli import axes


if TYPE_CHECKING:
    import xarray as xr

    from jaxlr.lab.cli.flags import General, Invocation
    from jaxlr.lab.judging import Judgement

RUNS = Path("runs")
Switch = tyro.conf.FlagCreatePairsOff[bool]
Json = Annotated[Switch, tyro.conf.arg(name="json")]  # heeded by `main`


class Outcome(NamedTuple):
    """What a command leaves behind.

    Attributes:
        status: The exit status.
        summary: What `--json` prints.
    """

    status: int
    summary: dict[str, Any]


def list_(*, is_json: Json = False) -> Outcome:
    """Name the shipped experiments and their questions.

    Args:
        is_json: Print one JSON object on stdout, all else on stderr.
    """
    from jaxlr.lab import report

    rows = [(name, find.summary(path), path) for name, path in find.names().items()]
    texts = [row[:2] for row in rows]
    report.console().print(report.table(("experiment", "question"), texts))
    keys = "name", "question", "path"
    return Outcome(0, {"experiments": [dict(zip(keys, r, strict=True)) for r in rows]})


def plan(invocation: "Invocation") -> Outcome:
    """Say what a sweep would do: cells, programs, chunks, memory."""
    from jaxlr import lab
    from jaxlr.lab import report

    directory = _existing(invocation.general, invocation.experiment.name)
    _say(invocation.notes)
    arguments = _arguments(invocation.general, directory)
    found = lab.plan(invocation.experiment, invocation.axes, **arguments)
    report.console().print(str(found), markup=False)
    return Outcome(0, _summary(found))


def run(invocation: "Invocation") -> Outcome:
    """Plan, sweep, judge the claims, draw the figure; say where everything went."""
    from jaxlr import lab
    from jaxlr.lab import judging, report

    general, experiment = invocation.general, invocation.experiment
    directory = _existing(general, experiment.name) or new(RUNS / experiment.name)
    _say((f"{experiment.name}: {directory}", *invocation.notes))
    arguments = _arguments(general, directory)
    found = lab.plan(experiment, invocation.axes, **arguments)
    report.console().print(str(found), markup=False)
    results = lab.sweep(experiment, invocation.axes, **arguments)
    judgement = judging.judge(experiment, results, directory)
    outcome = _conclude(judgement, results, directory)
    return outcome._replace(summary=outcome.summary | {"plan": _summary(found)})


def _arguments(general: "General", directory: Path | None) -> dict[str, Any]:
    """What general flags are to `lab.plan` and `lab.sweep`."""
    resume = "force" if general.force else "grow" if general.grow else general.resume
    return {
        "num_seeds": general.seeds,
        "seed": general.seed,
        "directory": directory,
        "resume": resume,
        "chunk": general.chunk,
        "lanes": general.lanes,
        "devices": _devices(general.device),
        "backend": general.backend,
    }


def _summary(plan: Any) -> dict[str, Any]:
    return dataclasses.asdict(plan) | {"num_chunks": plan.num_chunks}


def _say(sentences: tuple[str, ...]) -> None:
    from jaxlr.lab import report

    for sentence in sentences:
        report.console().print(report.literal(sentence), soft_wrap=True)


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


def show(
    run: _Run,
    others: Annotated[
        tuple[Path, ...], tyro.conf.arg(metavar="OTHER ...", help_behavior_hint="")
    ] = (),
    /,
    *,
    experiment: _Recorded = None,
    is_json: Json = False,
) -> Outcome:
    """Show a run's provenance, claims and figure; of several, what differs.

    Without --experiment no file of its author is executed: the verdicts are those that
    the run recorded. With it, claims are judged and the figure is drawn anew.

    Args:
        run: The run directory.
        others: Runs that it is compared with.
        experiment: The experiment that judges and draws, of one run.
        is_json: Print one JSON object on stdout, all else on stderr.

    Raises:
        ValueError: If there is an `experiment` to judge several runs.
    """
    from jaxlr import lab
    from jaxlr.lab import engine, judging, report, store

    if others:
        if experiment:
            raise ValueError("--experiment judges one run; several are compared.")
        comparison = lab.compare([run, *others])
        for sheet in comparison.sheets():
            report.console().print(sheet)
        _say(comparison.left_out)
        return Outcome(0, comparison.summary())
    run = run.expanduser()
    results = lab.load(run)
    report.console().print(report.attributes_table(results.attrs))
    found = find.find(experiment) if experiment else None
    if found is None and judging.recorded(run) is None:
        manifest = store.read_manifest(run)
        found = engine.swept(run, manifest)
        if found is None and results.attrs["experiment"] in find.names():
            found = find.recorded(manifest)
    if found is None:
        judgement = judging.recall(results, run)
    else:
        judgement = judging.judge(found, results, run)
    outcome = _conclude(judgement, results, run)
    return outcome._replace(summary=outcome.summary | {"attributes": results.attrs})


def watch(run: _Run, /, *, interval: float = 3.0, is_json: Json = False) -> Outcome:
    """Follow a run of another process until it is complete, or has stopped.

    Lanes that are done, an estimate of the time left, and the last value of each
    metric: the median of the lanes. The exit status is 1 if the run stops unfinished.

    Args:
        run: The run directory.
        interval: Seconds between two looks.
        is_json: Look once; print one JSON object on stdout, all else on stderr.

    Raises:
        ValueError: If `interval` is not positive.
    """
    from jaxlr.core import checks
    from jaxlr.lab import watching

    checks.positive("--interval", interval)
    watched = watching.Watched(run.expanduser())
    try:
        sight = watched.look() if is_json else watching.follow(watched, interval)
    except KeyboardInterrupt:
        return Outcome(130, {})
    if sight.state == "stopped":
        _say((f"It stopped unfinished. Go on with --directory {run} --resume.",))
    return Outcome(int(sight.state == "stopped"), dataclasses.asdict(sight))


def replay(
    run: _Run,
    /,
    *,
    cell: _Cell = (),
    seed: int = 0,
    experiment: _Recorded = None,
    is_json: Json = False,
) -> Outcome:
    """Run one cell of a run again, and compare it with what was stored.

    Args:
        run: The run directory.
        cell: The values of the cell's swept fields.
        seed: Index of the seed.
        experiment: The experiment that is run.
        is_json: Print one JSON object on stdout, all else on stderr.

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
    with progress.Progress(None, phase="Replay"):
        results = lab.replay(run.expanduser(), values, seed, experiment=found)
    report.console().print(report.metrics_table(results))
    _say((results.attrs["replay"],))
    is_equal = bool(results.attrs["is_equal"])
    summary = {"replay": results.attrs["replay"], "is_equal": is_equal}
    metrics = {"metrics": report.ends(results)}
    return Outcome(int(not is_equal), summary | metrics)


def compile_(
    experiment: _Name,
    /,
    *,
    target: str,
    smoke: Switch = False,
    chunk: Annotated[
        int | None,
        tyro.conf.arg(metavar="N", help_behavior_hint="(default: the whole group)"),
    ] = None,
    is_json: Json = False,
) -> Outcome:
    """Does an experiment compile for a TPU or GPU, and fit? None is needed.

    A chunk of its largest compile group goes through the real compiler, in 32 bits.

    Args:
        experiment: A name from `jaxlr list`, or the path of a file of your own.
        target: The chip: v4, v5e, v5p, v6e or h100.
        smoke: Compile the small size.
        chunk: Number of cells in flight at once.
        is_json: Print one JSON object on stdout, all else on stderr.
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
        with progress.Progress(None, phase="Compile"):
            compilation = lab.compile_for(target, fn, *args)
    except (DoesNotFitError, NotImplementedError, jax.errors.JaxRuntimeError) as e:
        problem = f"{found.name} does not compile for {target}: {e}{find.line_of(e)}"
        if isinstance(e, DoesNotFitError):
            problem = f"{found.name}: {e}"
        report.error(problem)
        return Outcome(1, {"error": problem})
    report.console().print(report.compilation_table(compilation, found.name))
    if found.x64:
        _say((f"{found.name} runs in 64-bit types elsewhere; 32-bit here.",))
    found = {k: v for k, v in vars(compilation).items() if k != "compiled"}
    fits = compilation.fits
    return Outcome(int(not fits), found | {"total": compilation.total, "fits": fits})


def doctor(*, is_json: Json = False) -> Outcome:
    """Versions, devices, precision, and what would not work here and why.

    Args:
        is_json: Print one JSON object on stdout, all else on stderr.
    """
    from jaxlr.lab import doctor

    return Outcome(0, doctor.diagnose())


def _conclude(
    judgement: "Judgement", results: "xr.Dataset", directory: Path
) -> Outcome:
    """Say what there is and where, the claims last."""
    from jaxlr.lab import judging, report, store

    console = report.console()
    is_complete = bool(results.attrs.get("is_complete", 1))
    if not is_complete:
        _say(
            (
                "The run is unfinished, what is missing is NaN. Go on with "
                f"--directory {directory} --resume.",
            )
        )
    files = {"results": "", "figure": judging.FIGURE, "manifest": store.MANIFEST}
    paths = {what: directory / name for what, name in files.items()}
    paths = {what: path for what, path in paths.items() if path.exists()}
    for what, path in paths.items():
        console.print(report.literal(f"{what:9} {path}"), soft_wrap=True)
    _say(judgement.notes)
    for problem in judgement.problems:
        report.error(problem)
    if judgement.claims:
        console.print(report.claims_table([judgement]))
    elif not judgement.problems and not judgement.notes:
        _say((f"{judgement.name} makes no claims.",))
    summary = judging.summary(judgement) | {"is_complete": is_complete}
    return Outcome(judgement.status, summary | paths)


def _existing(general: "General", name: str) -> Path | None:
    """The run directory that the flags name, or the newest unfinished one."""
    if general.directory is not None:
        return Path(general.directory).expanduser()
    if not general.resume:
        return None
    from jaxlr.lab import judging

    folder = RUNS / name
    found = folder.iterdir() if folder.is_dir() else ()
    unfinished = [p for p in found if p.is_dir() and not (p / judging.CLAIMS).exists()]
    if not unfinished:
        raise ValueError(
            f"There is no unfinished run in {folder}: start one without --resume, or "
            "name one by --directory."
        )
    newest = max(unfinished)
    _say((f"Resuming {newest}",))
    return newest


def new(folder: Path) -> Path:
    """A directory in that folder which nobody else has."""
    now = datetime.datetime.now(datetime.UTC)
    return folder / f"{now:%Y%m%dT%H%M%SZ}-{secrets.token_hex(3)}"


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
