"""Processes on a terminal of a given width, and what they showed there."""

from collections.abc import Sequence
import fcntl
import os
from pathlib import Path
import pty
import struct
import subprocess
import sys
import termios
import threading

from tests.lab import _toys as toys


class Terminal:
    """A process whose three streams are a terminal.

    Args:
        command: Words of the command.
        num_columns: Width of the terminal.
        folder: Where it runs.
        **env: Variables of the environment.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        num_columns: int = 80,
        folder: Path = toys.ROOT,
        **env: str,
    ):
        self._ours, theirs = pty.openpty()
        size = struct.pack("HHHH", 40, num_columns, 0, 0)
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, size)
        inherited = {
            k: v for k, v in os.environ.items() if k not in ("COLUMNS", "LINES")
        }
        ours = {"PYTHONPATH": str(toys.ROOT), "JAX_PLATFORMS": "cpu", "TERM": "xterm"}
        self.process = subprocess.Popen(
            command,
            cwd=folder,
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            env=inherited | ours | env,
        )
        os.close(theirs)
        self._parts: list[bytes] = []
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        while True:
            try:
                part = os.read(self._ours, 65536)
            except OSError:  # what Linux says at its end
                break
            if not part:
                break
            self._parts.append(part)
        os.close(self._ours)

    def finish(self) -> tuple[int, str]:
        """Exit status and all that was shown, once the process has ended."""
        status = self.process.wait()
        self._reader.join()
        return status, b"".join(self._parts).decode().replace("\r\n", "\n")


def on_terminal(code: str, *, num_columns: int = 80, **env: str) -> tuple[int, str]:
    """Exit status and all that a script writes where its three streams are a terminal.

    Args:
        code: The script.
        num_columns: Width of the terminal.
        **env: Variables of the environment.
    """
    command = [sys.executable, "-c", code]
    return Terminal(command, num_columns=num_columns, **env).finish()
