"""A sweep made ready: validated, traced, with programs compiled when first needed.

Programs are kept for the process's life (the most recent ones) under the digest of
their computation, so that a sweep after its plan, or the same sweep again, compiles
nothing, and a changed function is never mistaken for the old one.
"""

from collections import OrderedDict
from collections.abc import Callable, Sequence
import dataclasses
import functools as ft
import operator
import threading
from typing import Any

import jax
import numpy as np

from jaxlr.core import errors
from jaxlr.core.types import Experiment
from jaxlr.lab import grid, lane as lanes, memory, program, provenance, results, store


_KEPT: OrderedDict[Any, Any] = OrderedDict()
_MAX_KEPT = 128
_LOCK = threading.RLock()
BACKENDS = ("shard_map", "pmap")


def kept(key: Any, make: Callable[[], Any]) -> Any:
    """`make()`, once for every key, also from several threads."""
    with _LOCK:
        if key not in _KEPT:
            _KEPT[key] = make()
        _KEPT.move_to_end(key)
        while len(_KEPT) > _MAX_KEPT:
            _KEPT.popitem(last=False)
        return _KEPT[key]


def _index(value: Any) -> Any:
    """NumPy integers as Python's; anything else as it is, to be refused by name."""
    return operator.index(value) if isinstance(value, np.integer) else value


@dataclasses.dataclass(frozen=True, eq=False)
class Setup:
    """The arguments of a sweep, validated.

    Attributes:
        experiment: What to run.
        dims: The sweep's dimensions.
        groups: Its compile groups.
        num_seeds: Seeds of every cell.
        seed: The root key's seed.
        devices: Where it runs.
        backend: `"shard_map"` or `"pmap"`.
    """

    experiment: Experiment
    dims: tuple[grid.Dimension, ...]
    groups: tuple[grid.Group, ...]
    num_seeds: int
    seed: int
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
        devices: Sequence[jax.Device] | None = None,
        backend: str = "shard_map",
    ) -> "Setup":
        """Validate; None means what the experiment declares, or all local devices.

        Raises:
            ValueError: On misuse, naming argument, value and what is allowed.
        """
        if not isinstance(experiment, Experiment):
            raise ValueError(f"`experiment` must be an Experiment, got {experiment!r}.")
        num_seeds = _index(experiment.num_seeds if num_seeds is None else num_seeds)
        if not isinstance(num_seeds, int) or num_seeds < 1:
            raise ValueError(f"`num_seeds` must be an integer >= 1, got {num_seeds!r}.")
        seed = _index(seed)
        if not isinstance(seed, int) or not 0 <= seed < 2**32:
            raise ValueError(
                f"`seed` must be an integer in 0..2**32 - 1, got {seed!r}."
            )
        if backend not in BACKENDS:
            raise ValueError(errors.unknown("backend", backend, BACKENDS))
        devices = jax.local_devices() if devices is None else devices
        if not isinstance(devices, Sequence) or isinstance(devices, str) or not devices:
            raise ValueError(
                f"`devices` must be a sequence of at least one device, got {devices!r}."
            )
        devices = tuple(devices)
        hparams = experiment.hparams
        dims = grid.dimensions(hparams, experiment.axes if axes is None else axes)
        groups = tuple(grid.groups(hparams, dims))
        return cls(experiment, dims, groups, num_seeds, seed, devices, backend)

    @property
    def num_cells(self) -> int:
        """Cells of the whole sweep."""
        return sum(len(group.cells) for group in self.groups)

    @ft.cached_property
    def _lanes(self) -> dict[int, lanes.Lane]:
        return {}

    def lane(self, group: int) -> lanes.Lane:
        """The traced lane of a group; traced once."""
        if group not in self._lanes:
            self._lanes[group] = lanes.trace(self.experiment, self.groups[group])
        return self._lanes[group]

    def program(self, group: int, width: int) -> program.Program:
        """The compiled program of a group, `width` cells a device."""
        lane = self.lane(group)
        layout = width, self.num_seeds, self.devices, self.backend
        settings = tuple(provenance.settings().items())
        return kept(
            (lane.digest, self.experiment.x64, settings, *layout),
            lambda: program.compile_program(
                self.experiment,
                lane,
                width=width,
                num_seeds=self.num_seeds,
                devices=self.devices,
                backend=self.backend,
            ),
        )

    def config(self) -> dict[str, Any]:
        """What must be equal for a run to go on."""
        return provenance.config(
            self.experiment, self.dims, self.num_seeds, self.seed, self.devices
        ) | {
            "computation": {
                f"group {g}": self.lane(g).digest for g in range(len(self.groups))
            }
        }

    def manifest(self, widths: Sequence[int]) -> dict[str, Any]:
        """What a run directory records before it starts."""
        lanes = [self.lane(g) for g in range(len(self.groups))]
        is_long = self.experiment.solver is not None
        layout = [
            results.to_layout(group, lane.metrics)
            | {"width": width, "chunk": width * len(self.devices)}
            for group, lane, width in zip(self.groups, lanes, widths, strict=True)
        ]
        return {
            "format": store.FORMAT,
            "experiment": provenance.name_of(self.experiment),
            "source_path": provenance.source_path(self.experiment),
            "config": self.config(),
            "counters": ["diverged_at", "ended_at"] if is_long else ["diverged_at"],
            "field_notes": results.notes_of(type(self.experiment.hparams)),
            "layout": layout,
            "environment": provenance.environment(self.devices, self.backend),
            "is_complete": False,
        }

    @ft.cached_property
    def result_bytes(self) -> int:
        """What the results take on the host."""
        parts = [(g, self.lane(i).metrics) for i, g in enumerate(self.groups)]
        results.check_labels(self.dims, parts)
        return results.num_bytes(parts, self.num_seeds)

    @ft.cached_property
    def budget(self) -> float:
        """Bytes of one device that a chunk may take; the results are set aside.

        Raises:
            ValueError: If the results alone do not fit into the host's memory.
        """
        host = memory.host_bytes()
        if self.result_bytes > host * memory.SHARE:
            raise ValueError(
                f"The results alone need {self.result_bytes:,} bytes of the host's "
                f"{host:,}. Thin the curves (`every`), or sweep fewer cells or seeds."
            )
        available = memory.available_bytes(self.devices) * memory.SHARE
        is_host = self.devices[0].platform == "cpu"
        return available - is_host * self.result_bytes / len(self.devices)
