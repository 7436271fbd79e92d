"""Processes on a terminal of a given width, and what they showed there."""

import fcntl
import os
import pty
import struct
import subprocess
import sys
import termios

from tests.lab import _toys as toys


def on_terminal(code: str, *, num_columns: int = 80, **env: str) -> tuple[int, str]:
    """Exit status and all that a script writes where its three streams are a terminal.

    Args:
        code: The script.
        num_columns: Width of the terminal.
        **env: Variables of the environment.
    """
    ours, theirs = pty.openpty()
    size = struct.pack("HHHH", 40, num_columns, 0, 0)
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, size)
    inherited = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "LINES")}
    settings = {"PYTHONPATH": str(toys.ROOT), "JAX_PLATFORMS": "cpu", "TERM": "xterm"}
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env=inherited | settings | env,
    )
    os.close(theirs)
    parts = []
    while True:
        try:
            part = os.read(ours, 65536)
        except OSError:  # what Linux says at its end
            break
        if not part:
            break
        parts.append(part)
    os.close(ours)
    return process.wait(), b"".join(parts).decode().replace("\r\n", "\n")
