"""The flags of `jaxlr run`: general ones, and one for every field of HParams."""

from collections.abc import Mapping, Sequence
import dataclasses
from typing import (
    Annotated,
    Any,
    get_args,
    get_origin,
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
    from jaxlr.lab.fields import Field

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
    grow: _Switch = False
    """With --resume --directory: ask the run for more seeds, or more values of axes."""
    chunk: Annotated[int | None, _unset("N", "what fits into memory")] = None
    """Cells in flight at once."""
    lanes: Annotated[tuple[int, int] | None, _unset("SEEDS CELLS", "what is fast")] = (
        None
    )
    """Seeds, and cells on each device, that are computed at once: their bits then do
    not depend on what else is asked for, now or later."""
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
    flags, without = _hparams_flags(experiment)
    hparams = Annotated[flags, tyro.conf.arg(name="")]
    own = [
        ("x64", x64, dataclasses.field(default=experiment.x64)),
        ("hparams", hparams, dataclasses.field(default_factory=dict)),
    ]
    cls = dataclasses.make_dataclass("Run", own, bases=(General,), frozen=True)
    text = f"{experiment.name}: {(command.__doc__ or '').splitlines()[0]}"
    if without:
        text += f" No flags, to be set in Python: {', '.join(without)}."
    flags = tyro.cli(cls, args=args, prog=f"{prog} {name}", description=text)
    return _invocation(flags, experiment, dict(flags.hparams))


def _hparams_flags(experiment: "Experiment") -> tuple[Any, list[str]]:
    """A TypedDict whose keys, all optional, are the fields that a word can set.

    Returns:
        The type, and the names of the fields that have no flag.
    """
    from jaxlr.lab import fields

    general = {field.name for field in dataclasses.fields(General)} | {"help"}
    flags: dict[str, Any] = {}
    known = fields.of(experiment.hparams)
    for name, field in known.items():
        if (kind := _type(field)) is None:
            continue
        text = f"{field.doc.text}." if field.doc.text else ""
        units = f" [{field.doc.units}]" if field.doc.units else ""
        flag = tyro.conf.arg(
            name=f"hparams.{name}" if name in general else None,
            help=text + units,
            help_behavior_hint=f"(default: {field.default})",
        )
        flags[name] = NotRequired[Annotated[kind, flag]]
    without = [name for name in known if name not in flags]
    return TypedDict("hyper-parameters", flags), without  # pyright: ignore


def _type(field: "Field") -> Any:
    """The type of a field's flag; None if its values cannot be written as words."""
    hints = field.hint, *get_args(field.hint)
    if any(get_origin(hint) is Literal for hint in hints):
        return field.hint
    default, kind = field.default, field.kind
    sequence = next((x for x in hints if get_origin(x) in (tuple, list)), None)
    if isinstance(default, tuple | list) or (default is None and sequence):
        kinds = {type(x) for x in default or ()} or {*get_args(sequence)} - {...}
        kinds = {float} if kinds == {int, float} else kinds
        kind = kinds.pop() if len(kinds) == 1 else None
        if kind not in (bool, int, float, str):
            return None
        is_list = isinstance(default, list) or get_origin(sequence) is list
        kind = list[kind] if is_list else tuple[kind, ...]
    elif getattr(default, "ndim", 0):
        return None
    return kind | None if kind and field.is_optional else kind


def _invocation(
    flags: General, experiment: "Experiment", fixed: Mapping[str, Any]
) -> Invocation:
    if flags.force and not flags.resume:
        raise ValueError("--force goes with --resume.")
    if flags.grow and (flags.force or not flags.resume or flags.directory is None):
        raise ValueError("--grow goes with --resume and --directory, without --force.")
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
        from jaxlr.lab import fields

        changes["hparams"] = fields.replace(experiment.hparams, fixed)
    experiment = experiment.replace(**changes)
    given = [axes.parse_axis(text) for text in flags.axis]
    merged, dropped = axes.merge(experiment.axes, given, fixed)
    notes = tuple(
        f"{name} is fixed by its flag: its axis is dropped." for name in dropped
    )
    return Invocation(flags, experiment, merged, notes)
