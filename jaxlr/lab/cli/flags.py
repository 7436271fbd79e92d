"""The flags of `jaxlr run`: general ones, and one for every field of HParams."""

from collections.abc import Mapping, Sequence
import dataclasses
from typing import (
    Annotated,
    Any,
    get_origin,
    get_type_hints,
    Literal,
    NotRequired,
    TYPE_CHECKING,
    TypedDict,
)

import tyro

from jaxlr.lab import find
from jaxlr.lab.cli import axes, config


if TYPE_CHECKING:
    from jaxlr.core import Experiment

_Switch = tyro.conf.FlagCreatePairsOff[bool]


def _unset(metavar: str, default: str) -> Any:
    """How help shows a flag whose default, None, says nothing."""
    return tyro.conf.arg(metavar=metavar, help_behavior_hint=f"(default: {default})")


@dataclasses.dataclass(frozen=True)
class General:
    """Flags that every experiment has."""

    config: Annotated[str | None, _unset("FILE", "none")] = None
    """TOML file of flags by their names, and of axes in a table [axis]; flags that are
    given here outdo it."""
    json: _Switch = False
    """Print one JSON object on stdout, all else on stderr."""
    smoke: _Switch = False
    """The small size, which runs in seconds."""
    axis: tyro.conf.UseAppendAction[
        Annotated[
            tuple[str, ...],
            tyro.conf.arg(
                metavar="NAME=SPEC",
                help="Sweep a field: alpha=0.1,0.2 or alpha=log:1e-3:1:8 (or lin, "
                "uniform, loguniform); alpha/beta=1,2/3,4 moves two together. Takes "
                "the place of the experiment's own axis of that field.",
            ),
        ]
    ] = ()
    seeds: Annotated[int | None, _unset("N", "the experiment's own")] = None
    """Independent repetitions of every cell."""
    seed: int = 0
    """Seed of the root key."""
    directory: Annotated[str | None, _unset("DIR", "a new one in runs/NAME/")] = None
    """Where results go."""
    resume: _Switch = False
    """Go on with a run that was stopped: --directory, or the newest unfinished one."""
    force: _Switch = False
    """With --resume: go on even if source, configuration or versions have changed."""
    chunk: Annotated[int | None, _unset("N", "what fits into memory")] = None
    """Cells in flight at once."""
    x64: bool = False
    """Trace under 64-bit types."""
    device: Annotated[
        Literal["cpu", "gpu", "tpu"] | None,
        _unset("{cpu,gpu,tpu}", "the best one here"),
    ] = None
    """Platform to run on."""
    backend: Literal["shard_map", "pmap"] = "shard_map"
    """How cells are spread over devices."""
    every: Annotated[int | None, _unset("N", "the experiment's own")] = None
    """Long runs: keep one row of the curves in N steps."""
    checkpoint_seconds: Annotated[
        float | None, _unset("SECONDS", "the experiment's own")
    ] = None
    """Long runs: time between two checkpoints."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run(General):
    """Sweep an experiment: its plan, results, claims and figure.

    Every hyper-parameter of the experiment is a flag too: `jaxlr run NAME --help`.
    """

    experiment: tyro.conf.Positional[
        Annotated[str, tyro.conf.arg(metavar="NAME_OR_PATH")]
    ]
    """A name from `jaxlr list`, or the path of a file of your own."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan(Run):
    """What `jaxlr run` would do with the same flags; nothing is run or written."""


@dataclasses.dataclass(frozen=True)
class Invocation:
    """What a command line of `run` or `plan` asks for.

    Attributes:
        general: The flags that every experiment has.
        experiment: The experiment, with every flag applied.
        axes: The axes to sweep.
        notes: What the user should know about the two, a sentence each.
    """

    general: General
    experiment: "Experiment"
    axes: Any
    notes: tuple[str, ...]


def parse(args: Sequence[str], command: type[Run] = Run) -> Invocation:
    """Read the arguments of `jaxlr run`, or of `jaxlr plan`.

    Raises:
        ValueError: On misuse that only the experiment can tell.
        SystemExit: By tyro: on `--help`, and on flags that do not exist.
    """
    args, prog = list(args), f"jaxlr {command.__name__.lower()}"
    bare = [arg for arg in args if arg not in ("-h", "--help")]
    general, rest = tyro.cli(General, args=bare, prog=prog, return_unknown_args=True)
    if not rest:
        tyro.cli(command, args=args, prog=prog)  # help, or "missing"
    name = rest[0]
    if name.startswith("-"):
        raise ValueError(
            f"The experiment comes before its own flags: {prog} NAME {name} ..."
        )
    args.remove(name)
    if general.config is not None:
        switches = [f.name for f in dataclasses.fields(General) if f.type is _Switch]
        args = config.words(general.config, args, switches) + args
    experiment = find.find(name)
    x64 = Annotated[bool, tyro.conf.arg(help="Trace under 64-bit types.")]
    hparams = Annotated[_hparams_flags(experiment), tyro.conf.arg(name="")]
    own = [
        ("x64", x64, dataclasses.field(default=experiment.x64)),
        ("hparams", hparams, dataclasses.field(default_factory=dict)),
    ]
    cls = dataclasses.make_dataclass("Run", own, bases=(General,), frozen=True)
    flags = tyro.cli(
        cls,
        args=args,
        prog=f"{prog} {name}",
        description=f"{experiment.name}: {(command.__doc__ or '').splitlines()[0]}",
    )
    return _invocation(flags, experiment, dict(flags.hparams))


def _hparams_flags(experiment: "Experiment") -> Any:
    """A TypedDict whose keys, all optional, are the fields that a word can set."""
    from jaxlr.lab.docs import field_docs

    general = {field.name for field in dataclasses.fields(General)} | {"help"}
    hparams = experiment.hparams
    docs = field_docs(type(hparams))
    flags: dict[str, Any] = {}
    for field in dataclasses.fields(hparams):
        default = getattr(hparams, field.name)
        if (kind := _type(type(hparams), field.name, default)) is None:
            continue
        doc = docs.get(field.name)
        text = f"{doc.text}." if doc and doc.text else ""
        units = f" [{doc.units}]" if doc and doc.units else ""
        name = f"hparams.{field.name}" if field.name in general else None
        flag = tyro.conf.arg(
            name=name, help=text + units, help_behavior_hint=f"(default: {default})"
        )
        flags[field.name] = NotRequired[Annotated[kind, flag]]
    return TypedDict("hyper-parameters", flags)  # pyright: ignore


def _type(cls: type, name: str, default: Any) -> Any:
    """The type of a field's flag; None if its values cannot be written as words."""
    try:
        hint = get_type_hints(cls).get(name)
    except Exception:  # an annotation that cannot be evaluated: the default has to do
        hint = None
    if get_origin(hint) is Literal:
        return hint
    for kind in (bool, int, float, str):
        if isinstance(default, kind):
            return kind
    if isinstance(default, tuple) and len(kinds := {type(x) for x in default}) == 1:
        kind = kinds.pop()
        return tuple[kind, ...] if kind in (bool, int, float, str) else None
    dtype = getattr(default, "dtype", None)
    if dtype is not None and getattr(default, "ndim", 1) == 0:
        return {"b": bool, "i": int, "u": int, "f": float}.get(dtype.kind)
    return None


def _invocation(
    flags: General, experiment: "Experiment", fixed: Mapping[str, Any]
) -> Invocation:
    if flags.force and not flags.resume:
        raise ValueError("--force goes with --resume.")
    changes: dict[str, Any] = {}
    if flags.x64 != experiment.x64:
        changes["x64"] = flags.x64
    for name in ("every", "checkpoint_seconds"):
        if (value := getattr(flags, name)) is not None:
            if experiment.solver is None:
                raise ValueError(
                    f"--{name.replace('_', '-')} is for long runs; "
                    f"{experiment.name} has `run`, not `solver`."
                )
            changes[name] = value
    if flags.smoke:
        experiment = experiment.replace(**experiment.smoke)
    if fixed:
        changes["hparams"] = dataclasses.replace(experiment.hparams, **fixed)
    experiment = experiment.replace(**changes)
    given = [axes.parse_axis(text) for text in flags.axis]
    merged, dropped = axes.merge(experiment.axes, given, fixed)
    notes = tuple(
        f"{name} is fixed by its flag: its axis is dropped." for name in dropped
    )
    return Invocation(flags, experiment, merged, notes)
