"""The places where people run experiments, and processes that do so there."""

import os
from pathlib import Path
import queue
import subprocess
import sys
import textwrap

from jupyter_client.manager import start_new_kernel

from tests.lab import _toys as toys
from tests.lab._terminals import Terminal


# What experiments are run on, and where they are defined.
PLACES = (
    ("terminal", "module"),
    ("terminal", "main"),
    ("pipe", "module"),
    ("pipe", "main"),
    ("notebook", "module"),
    ("notebook", "cell"),
)
NAMES = tuple("-".join(place) for place in PLACES)


def start(name: str, folder: Path, definition: str, code: str):
    """A process at a place: it defines experiments, then runs code.

    Args:
        name: One of `NAMES`.
        folder: Its own folder, where its files lie and where it runs.
        definition: Text that defines experiments.
        code: What to do with them.
    """
    medium, home = name.split("-")
    folder.mkdir(exist_ok=True)
    if home == "module":
        (folder / "mine.py").write_text(definition)
        definition = "from mine import *"
    if medium == "notebook":
        return Notebook(folder, [definition, code])
    main = f'if __name__ == "__main__":\n{textwrap.indent(code, "    ")}'
    (folder / "script.py").write_text(f"{definition}\n\n\n{main}")
    return {"terminal": OnTerminal, "pipe": Piped}[medium](folder)


class Piped:
    """A script whose output goes into a pipe."""

    def __init__(self, folder: Path):
        self.process = subprocess.Popen(
            [sys.executable, "script.py"],
            cwd=folder,
            env=os.environ | {"PYTHONPATH": str(toys.ROOT), "JAX_PLATFORMS": "cpu"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def is_running(self) -> bool:
        return self.process.poll() is None

    def kill(self) -> bool:
        """End it by `kill -9`; whether it had not ended by itself."""
        was_running = self.is_running()
        self.process.kill()
        self.process.communicate()
        return was_running

    def finish(self) -> str:
        """What it printed, once it has ended well."""
        text, _ = self.process.communicate()
        assert self.process.returncode == 0, text
        return text


class OnTerminal:
    """A script whose streams are a terminal."""

    def __init__(self, folder: Path):
        command = [sys.executable, "script.py"]
        self.terminal = Terminal(command, folder=folder, num_columns=60)

    def is_running(self) -> bool:
        return self.terminal.process.poll() is None

    def kill(self) -> bool:
        was_running = self.is_running()
        self.terminal.process.kill()
        self.terminal.finish()
        return was_running

    def finish(self) -> str:
        status, text = self.terminal.finish()
        assert status == 0, text
        return text


class Notebook:
    """Cells, run by a kernel of their own."""

    def __init__(self, folder: Path, cells: list[str]):
        env = os.environ | {"PYTHONPATH": str(toys.ROOT), "JAX_PLATFORMS": "cpu"}
        self.manager, self.client = start_new_kernel(cwd=str(folder), env=env)
        self._waiting = {self.client.execute(cell) for cell in cells}
        self._errors: list[str] = []

    def _hear(self, timeout: float) -> None:
        try:
            reply = self.client.get_shell_msg(timeout=timeout)
        except queue.Empty:
            return
        self._waiting.discard(reply["parent_header"]["msg_id"])
        if reply["content"]["status"] != "ok":
            self._errors += reply["content"].get("traceback", ["aborted"])

    def is_running(self) -> bool:
        self._hear(0.01)
        return bool(self._waiting)

    def kill(self) -> bool:
        was_running = self.is_running()
        self.client.stop_channels()
        self.manager.shutdown_kernel(now=True)
        self.manager.cleanup_resources()
        return was_running

    def finish(self) -> str:
        while self._waiting and self.manager.is_alive():
            self._hear(1.0)
        parts = []
        while True:
            try:
                message = self.client.get_iopub_msg(timeout=0.2)
            except queue.Empty:
                break
            parts.append(message["content"].get("text", ""))
        waiting = self._waiting
        self.kill()
        assert not self._errors, "\n".join(self._errors)
        assert not waiting, "".join(parts)
        return "".join(parts)
