"""How far a sweep is: a bar where one can be drawn, lines of text elsewhere."""

import contextlib
import datetime
import importlib.util
import sys
import threading
import time


FIRST_LINE, LONGEST_PAUSE = 2.0, 300.0  # seconds; pauses double in between
_NARROW = 60  # columns of a terminal on which the bar stands with its essentials


class Progress:
    """Counts lanes (a cell with a seed), fractions allowed, and times the phases.

    Args:
        num_lanes: Number of lanes in all; None where none is run, but something else
            takes its time.
        num_done: Number of those that an earlier process finished.
        phase: What is done, in a word.
    """

    def __init__(
        self, num_lanes: int | None, num_done: int = 0, *, phase: str = "Sweep"
    ):
        from rich import progress as rich_progress
        from rich.console import Console

        console = Console(stderr=True)
        if console.is_jupyter:
            can_draw = importlib.util.find_spec("ipywidgets") is not None
        else:
            is_pipe = not console.file.isatty()  # of whatever FORCE_COLOR says
            can_draw = not (is_pipe or console.is_dumb_terminal)
        self.compile_seconds = 0.0
        self._num_before = num_done
        self._begun = time.perf_counter()
        self._compiling_since: float | None = None
        columns = [
            rich_progress.TextColumn("{task.description}"),
            rich_progress.BarColumn(40 if console.width >= _NARROW else 10),
        ]
        if num_lanes is not None:
            percentage = rich_progress.TaskProgressColumn()
            columns += [percentage, rich_progress.TimeRemainingColumn()]
            if console.width >= _NARROW:
                columns[3:3] = [rich_progress.TextColumn("left")]
                text = "compiled {task.fields[compiled]:.1f} s"
                columns += [rich_progress.TextColumn(text)]
        self._bar = rich_progress.Progress(
            *columns,
            console=console,
            disable=not can_draw,
            transient=num_lanes is None,
        )
        self._phase = phase
        self._task = self._bar.add_task(
            phase, total=num_lanes, completed=num_done, compiled=0
        )
        self._has_ended = threading.Event()
        self._writer = threading.Thread(target=self._write_lines, daemon=True)

    def __enter__(self):
        self._bar.start()
        if self._bar.disable:
            self._writer.start()
        return self

    def __exit__(self, *_):
        self._bar.stop()
        self._has_ended.set()
        if self._bar.disable:
            self._writer.join()

    def _write_lines(self) -> None:
        pause, has_written = FIRST_LINE, False
        while not self._has_ended.wait(pause):
            self._write_line()
            pause, has_written = min(2 * pause, LONGEST_PAUSE), True
        if has_written:
            self._write_line()

    def _write_line(self) -> None:
        # Nobody may be reading any more; the sweep goes on.
        with contextlib.suppress(OSError, ValueError, AttributeError):
            sys.stderr.write(f"{self.line()}\n")
            sys.stderr.flush()

    def line(self) -> str:
        """The phase, lanes done of all, time since the start, and an estimate."""
        task = self._bar.tasks[0]
        elapsed = f"{clock(time.perf_counter() - self._begun)} elapsed"
        if task.total is None:
            return f"{task.description}: {elapsed}"
        done, total = task.completed, task.total
        new = done - self._num_before
        parts = [f"{task.description}: {int(done)} of {int(total)} lanes", elapsed]
        if 0 < new and done < total:
            parts.append(f"about {clock(self.run_seconds * (total - done) / new)} left")
        return ", ".join(parts)

    @contextlib.contextmanager
    def compiling(self):
        """Time spent inside counts as compiling, not as running."""
        self._compiling_since = begun = time.perf_counter()
        self._bar.update(self._task, description="Compile")
        try:
            yield
        finally:
            self._compiling_since = None
            self.compile_seconds += time.perf_counter() - begun
            self._bar.update(
                self._task, description=self._phase, compiled=self.compile_seconds
            )

    def advance(self, lanes: float) -> None:
        """Some lanes more are finished."""
        self._bar.advance(self._task, lanes)

    @property
    def run_seconds(self) -> float:
        """Wall time without compiling."""
        now = self._compiling_since or time.perf_counter()
        return now - self._begun - self.compile_seconds


def clock(seconds: float) -> str:
    """Seconds as hours, minutes and seconds."""
    return str(datetime.timedelta(seconds=round(seconds)))
