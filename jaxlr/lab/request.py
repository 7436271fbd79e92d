"""What a sweep is asked to do: its input, validated before anything is traced."""

from collections.abc import Sequence
import dataclasses
import functools as ft
from typing import Any

import jax

from jaxlr.core import checks
from jaxlr.core.types import Experiment
from jaxlr.lab import grid


BACKENDS = ("shard_map", "pmap")


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
    """

    experiment: Experiment
    dims: tuple[grid.Dimension, ...]
    num_seeds: int
    seed: int
    chunk: int | None
    devices: tuple[jax.Device, ...]
    backend: str

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
            backend=checks.choice("backend", backend, BACKENDS),
        )

    @ft.cached_property
    def groups(self) -> tuple[grid.Group, ...]:
        """The compile groups: the cells that share a program."""
        return tuple(grid.groups(self.experiment.hparams, self.dims))

    @property
    def num_cells(self) -> int:
        """Number of cells of the whole sweep."""
        return sum(len(group.cells) for group in self.groups)
