"""The command line: `jaxlr run`, and what comes before and after a run."""

from collections.abc import Sequence
import contextlib
import difflib
import io
import os
import sys
import traceback
from typing import Any

import tyro

import jaxlr
from jaxlr.lab import find
from jaxlr.lab.cli import commands, flags, reproduce


_COMMANDS: dict[str, Any] = {
    "list": commands.list_,
    "plan": flags.Plan,
    "run": flags.Run,
    "watch": commands.watch,
    "show": commands.show,
    "replay": commands.replay,
    "reproduce": reproduce.reproduce,
    "compile": commands.compile_,
    "doctor": commands.doctor,
}
_DESCRIPTION = """Low-rank and structured learning in JAX: sweeps that answer questions.

Exit status: 0 if all is well; 1 if a claim fails, or a replay or a compilation does, or
a run that is watched stops; 2 on misuse, and if something that is needed is missing; 3
if the experiment's own code raises an error; 130 on Ctrl-C and SIGTERM.
`jaxlr --version` prints the version."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: The arguments; None for those of this process.

    Returns:
        The exit status: 0; 1 if a claim fails, or a replay or a compilation does, or a
        run that is watched stops; 2 on misuse, and if something that is needed is
        missing; 3 if the experiment's own code raises an error; 130 on Ctrl-C
        and SIGTERM.

    Raises:
        SystemExit: By tyro: 0 after `--help`, 2 on arguments that it cannot read.
    """
    try:
        status = _main(argv)
        sys.stdout.flush()
        return status
    except BrokenPipeError:  # whoever reads has seen enough, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _main(argv: Sequence[str] | None) -> int:
    args = list(sys.argv[1:] if argv is None else argv)
    if isinstance(
        sys.stdout, io.TextIOWrapper
    ):  # letters that it lacks are spelled out
        sys.stdout.reconfigure(errors="backslashreplace")
    if args == ["--version"]:
        print(f"jaxlr {jaxlr.__version__}")
        return 0
    if "--json" not in args:
        return _outcome(args).status
    with contextlib.redirect_stdout(sys.stderr):
        outcome = _outcome(args)
    from jaxlr.lab import report

    print(report.to_json({"status": outcome.status, **outcome.summary}))
    return outcome.status


def _outcome(args: list[str]) -> commands.Outcome:
    try:
        return _run(args)
    except KeyboardInterrupt as e:
        return _failed(130, str(e) or "Stopped.")
    except BrokenPipeError:
        raise
    except Exception as e:
        if _is_for_the_user(e):
            # Jax's own notes are of several lines.
            notes = [x for x in getattr(e, "__notes__", ()) if "\n" not in x]
            return _failed(2, " ".join([f"{e}{find.line_of(e)}", *notes]))
        traceback.print_exc()
        return commands.Outcome(3, {"error": find.sentence(e)})


def _run(args: list[str]) -> commands.Outcome:
    name = args[0] if args else "--help"
    command = _COMMANDS.get(name)
    if command in (flags.Plan, flags.Run):
        do = commands.plan if command is flags.Plan else commands.run
        return do(flags.parse(args[1:], command))
    if command is not None:
        return tyro.cli(command, args=args[1:], prog=f"jaxlr {name}")
    if not name.startswith("-"):
        nearest = difflib.get_close_matches(name, _COMMANDS, 1)
        hint = f" did you mean {nearest[0]!r}?" if nearest else ""
        valid = ", ".join(_COMMANDS)
        return _failed(2, f"Unknown command {name!r};{hint} valid: {valid}.")
    # Reading all commands takes twice as long.
    return tyro.extras.subcommand_cli_from_dict(
        _COMMANDS, prog="jaxlr", description=_DESCRIPTION, args=args or ["--help"]
    )


def _failed(status: int, message: str) -> commands.Outcome:
    from jaxlr.lab import report  # rich takes longer than printing help

    report.error(message)
    return commands.Outcome(status, {"error": message})


def _is_for_the_user(error: Exception) -> bool:
    """Whether the message says it all; anything else keeps its traceback."""
    if isinstance(error, ImportError):  # a library is missing, whoever asks for it
        return True
    if isinstance(error, ValueError | OSError):
        return find.own_frame(error) is None
    from jaxlr import lab

    return isinstance(error, lab.RunDirectoryError)
