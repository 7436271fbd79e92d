"""What a sweep is asked to do: its input, validated before anything is traced."""

from collections.abc import Mapping, Sequence
import dataclasses
import functools as ft
from typing import Any

import jax

from jaxlr.core import checks
from jaxlr.core.types import Experiment
from jaxlr.lab import grid, manifest


@dataclasses.dataclass(frozen=True, eq=False)
class Request:
    """The arguments of a sweep that decide its results, validated; `make` makes one.

    Attributes:
        experiment: The experiment to run.
        dims: The sweep's dimensions.
        num_seeds: Number of seeds of every cell.
        seed: Seed of the root key.
        chunk: Largest number of cells of a chunk; None for what fits into memory.
        devices: The devices that share every chunk.
        backend: `"shard_map"` or `"pmap"`.
        lanes: How many seeds, and how many cells on each device, a program computes at
            once; None for what suits the sweep.
    """

    experiment: Experiment
    dims: tuple[grid.Dimension, ...]
    num_seeds: int
    seed: int
    chunk: int | None
    devices: tuple[jax.Device, ...]
    backend: str
    lanes: tuple[int, int] | None

    @classmethod
    def make(
        cls,
        experiment: Experiment,
        axes: Any = None,
        *,
        num_seeds: int | None = None,
        seed: int = 0,
        chunk: int | None = None,
        devices: Sequence[jax.Device] | None = None,
        backend: str = "shard_map",
        lanes: tuple[int, int] | None = None,
    ) -> "Request":
        """Validate; None means what the experiment declares, or all local devices.

        Raises:
            ValueError: On misuse, naming argument, value and what is allowed.
        """
        if not isinstance(experiment, Experiment):
            raise ValueError(f"`experiment` must be an Experiment, got {experiment!r}.")
        devices = jax.local_devices() if devices is None else devices
        if not isinstance(devices, Sequence) or isinstance(devices, str) or not devices:
            raise ValueError(
                f"`devices` must be a sequence of at least one device, got {devices!r}."
            )
        num_seeds = experiment.num_seeds if num_seeds is None else num_seeds
        axes = experiment.axes if axes is None else axes
        return cls(
            experiment,
            dims=grid.dimensions(experiment.hparams, axes),
            num_seeds=checks.count("num_seeds", num_seeds),
            seed=checks.count("seed", seed, least=0, most=2**32 - 1),
            chunk=None if chunk is None else checks.count("chunk", chunk),
            devices=tuple(devices),
            backend=checks.choice("backend", backend, manifest.BACKENDS),
            lanes=None if lanes is None else _checked(lanes),
        )

    @ft.cached_property
    def groups(self) -> tuple[grid.Group, ...]:
        """The compile groups: the cells that share a program."""
        return tuple(grid.groups(self.experiment.hparams, self.dims))

    @ft.cached_property
    def _indices(self) -> dict[str, int]:
        labels = (manifest.label(group.static) for group in self.groups)
        return {name: g for g, name in enumerate(labels)}

    def group_of(self, static: Mapping[str, Any]) -> int:
        """Index of the compile group that has these static fields.

        Raises:
            ValueError: If none has.
        """
        name = manifest.label(static)
        if name not in self._indices:
            raise ValueError(
                f"There is no compile group of {name}, but of "
                f"{'; '.join(self._indices)}: other fields are static than were."
            )
        return self._indices[name]

    @property
    def num_cells(self) -> int:
        """Number of cells of the whole sweep."""
        return sum(len(group.cells) for group in self.groups)


def _checked(lanes: Any) -> tuple[int, int]:
    if not isinstance(lanes, Sequence) or isinstance(lanes, str) or len(lanes) != 2:
        raise ValueError(
            "`lanes` must be two counts, (number of seeds, number of cells) that a "
            f"program computes at once, got {lanes!r}."
        )
    num_seeds, num_cells = lanes
    return checks.count("lanes[0]", num_seeds), checks.count("lanes[1]", num_cells)
