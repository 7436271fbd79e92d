"""Functions of the user's that a sweep calls as it goes, and what becomes of errors."""

from collections.abc import Callable, Mapping
import dataclasses
from typing import Any, TYPE_CHECKING

import numpy as np

from jaxlr.core.types import Experiment
from jaxlr.lab import results
from jaxlr.lab.manifest import Chunk


if TYPE_CHECKING:
    import xarray as xr


class Stopped(KeyboardInterrupt):
    """A hook has raised an exception, which is the cause: the sweep stops."""


@dataclasses.dataclass(frozen=True)
class Hooks:
    """What to call, as `sweep` describes it.

    Attributes:
        on_chunk: Called with the metrics of every chunk that has been finished.
        on_segment: Called with the curves so far of a chunk, and the step.
    """

    on_chunk: Callable[["xr.Dataset"], Any] | None
    on_segment: Callable[["xr.Dataset", int], Any] | None

    def check(self, experiment: Experiment, has_executor: bool) -> None:
        """Refuse what would never be called.

        Raises:
            ValueError: If a hook cannot be called, or there are no segments.
        """
        for name, hook in vars(self).items():
            if not (hook is None or callable(hook)):
                raise ValueError(f"`{name}` must be a function, got {hook!r}.")
        if self.on_segment is None:
            return
        if experiment.solver is None:
            raise ValueError(
                "`on_segment` needs a long run, Experiment(solver=..., num_steps=...): "
                "a `run` has no segments. `on_chunk` hears of every chunk."
            )
        if has_executor:
            raise ValueError(
                "`on_segment` hears of segments that run in this process, and with an "
                "`executor` none does. `on_chunk` hears of every chunk."
            )

    def finished(
        self,
        manifest: Mapping[str, Any],
        chunk: Chunk,
        arrays: Mapping[str, np.ndarray],
    ) -> None:
        """Tell of a chunk that is kept."""
        if self.on_chunk is not None:
            _call(self.on_chunk, results.of_chunk(manifest, chunk, arrays))

    def segments(
        self, manifest: Mapping[str, Any], chunk: Chunk
    ) -> Callable[[dict[str, np.ndarray]], None] | None:
        """What tells of a long run's segments, given what a checkpoint would hold."""
        hook = self.on_segment
        if hook is None:
            return None

        def tell(saved):
            arrays, _ = results.so_far(manifest, chunk, saved)
            _call(hook, results.of_chunk(manifest, chunk, arrays), int(saved["t"]))

        return tell


def _call(hook: Callable[..., Any], *arguments: Any) -> None:
    try:
        hook(*arguments)
    except BaseException as e:
        raise Stopped from e


def ending(stop: KeyboardInterrupt, note: str) -> BaseException:
    """What a sweep raises that has been stopped: what a hook raised, as it is.

    Args:
        stop: What stopped it.
        note: What to say besides.
    """
    raised = stop.__cause__ if isinstance(stop, Stopped) else stop
    if raised is None or isinstance(raised, KeyboardInterrupt):
        said = KeyboardInterrupt(note)
        said.__cause__ = raised
        return said
    raised.add_note(note)
    return raised
