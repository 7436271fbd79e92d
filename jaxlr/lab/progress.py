"""One progress bar over all lanes, with an ETA; compile time is shown apart."""

import contextlib
import time


class Progress:
    """Counts lanes (a cell with a seed), fractions allowed, and times the phases.

    A bar appears on a terminal or in a notebook, nowhere else.

    Args:
        num_lanes: Number of lanes in all.
        num_done: Number of those that an earlier process finished.
    """

    def __init__(self, num_lanes: int, num_done: int = 0):
        from rich import progress as rich_progress
        from rich.console import Console

        console = Console(stderr=True)
        self.compile_seconds = 0.0
        self._begun = time.perf_counter()
        self._bar = rich_progress.Progress(
            rich_progress.TextColumn("{task.description}"),
            rich_progress.BarColumn(),
            rich_progress.TaskProgressColumn(),
            rich_progress.TextColumn("left"),
            rich_progress.TimeRemainingColumn(),
            rich_progress.TextColumn("compiled {task.fields[compiled]:.1f} s"),
            console=console,
            disable=not (console.is_terminal or console.is_jupyter),
        )
        self._task = self._bar.add_task(
            "Sweep", total=num_lanes, completed=num_done, compiled=0
        )

    def __enter__(self):
        self._bar.start()
        return self

    def __exit__(self, *_):
        self._bar.stop()

    @contextlib.contextmanager
    def compiling(self):
        """Time spent inside counts as compiling, not as running."""
        begun = time.perf_counter()
        self._bar.update(self._task, description="Compile")
        try:
            yield
        finally:
            self.compile_seconds += time.perf_counter() - begun
            self._bar.update(
                self._task, description="Sweep", compiled=self.compile_seconds
            )

    def advance(self, lanes: float) -> None:
        """Some lanes more are finished."""
        self._bar.advance(self._task, lanes)

    @property
    def run_seconds(self) -> float:
        """Wall time without compiling."""
        return time.perf_counter() - self._begun - self.compile_seconds
