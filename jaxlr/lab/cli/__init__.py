"""The command line: `jaxlr run`, and what comes before and after a run."""

from collections.abc import Sequence
import sys

import tyro

from jaxlr.lab import find
from jaxlr.lab.cli import commands, flags


_COMMANDS = {
    "list": commands.list_,
    "run": flags.Run,
    "show": commands.show,
    "replay": commands.replay,
    "reproduce": commands.reproduce,
    "compile": commands.compile_,
    "doctor": commands.doctor,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: The arguments; None for those of this process.

    Returns:
        The exit status: 0; 1 if a claim fails or cannot be judged, or a replay or a
        compilation fails; 2 on misuse; 130 on Ctrl-C.

    Raises:
        SystemExit: By tyro: 0 after `--help`, 2 on arguments that it cannot read.
    """
    args = list(sys.argv[1:] if argv is None else argv)
    try:
        if args[:1] == ["run"]:
            return commands.run(flags.parse(args[1:]))
        if command := _COMMANDS.get("".join(args[:1])):
            return tyro.cli(command, args=args[1:], prog=f"jaxlr {args[0]}")
        # Help, or a command misspelled: reading all of them takes twice as long.
        tyro.extras.subcommand_cli_from_dict(
            _COMMANDS,
            prog="jaxlr",
            description="Low-rank and structured learning in JAX: sweeps that answer "
            "questions.",
            args=args or ["--help"],
        )
        return 2
    except KeyboardInterrupt as e:
        _error(str(e) or "Stopped.")
        return 130
    except Exception as e:
        if not _is_for_the_user(e):
            raise
        _error(str(e), e)
        return 2


def _error(message: str, error: BaseException | None = None) -> None:
    from jaxlr.lab import report  # rich takes longer than printing help

    report.error(message + (find.line_of(error) if error else ""))


def _is_for_the_user(error: Exception) -> bool:
    """Whether the message says it all; anything else keeps its traceback."""
    if isinstance(error, ValueError | OSError):
        return True
    from jaxlr import lab

    return isinstance(error, lab.RunDirectoryError)
