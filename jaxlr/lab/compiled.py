"""Traces and programs of a request, made when first needed.

Programs are kept for the process's life (the most recent ones) under the fingerprint of
their computation, so that a sweep after its plan, or the same sweep again, compiles
nothing, and a changed function is not mistaken for the old one: neither one that is
traced, nor one that is only called, as host callbacks are, as far as a fingerprint
follows what such code names.
"""

from collections import OrderedDict
from collections.abc import Callable
import dataclasses
import functools as ft
import threading
from typing import Any

import jax

from jaxlr.lab import lane as lanes, memory, program, results
from jaxlr.lab.request import Request


_KEPT: OrderedDict[Any, Any] = OrderedDict()
_MAX_KEPT = 128
_LOCK = threading.RLock()


def kept(key: Any, make: Callable[[], Any]) -> Any:
    """`make()`, once for every key, also from several threads."""
    with _LOCK:
        if key not in _KEPT:
            _KEPT[key] = make()
        _KEPT.move_to_end(key)
        while len(_KEPT) > _MAX_KEPT:
            _KEPT.popitem(last=False)
        return _KEPT[key]


def settings() -> dict[str, Any]:
    """Jax's own switches that decide bits; a worker is given the same."""
    names = "default_matmul_precision", "default_prng_impl", "threefry_partitionable"
    return {name: getattr(jax.config, f"jax_{name}") for name in names}


@dataclasses.dataclass(frozen=True, eq=False)
class Compiled:
    """A request's lanes, programs, and the memory that they may take.

    Attributes:
        request: The sweep that is asked for.
    """

    request: Request

    @ft.cached_property
    def _lanes(self) -> dict[int, lanes.Lane]:
        return {}

    def lane(self, group: int) -> lanes.Lane:
        """The traced lane of a group; traced once."""
        if group not in self._lanes:
            request = self.request
            part = request.groups[group]
            try:
                self._lanes[group] = lanes.trace(request.experiment, part)
            except Exception as e:
                if part.static:
                    values = ", ".join(f"{n}={x!r}" for n, x in part.static.items())
                    e.add_note(f"In the compile group of {values}.")
                raise
        return self._lanes[group]

    def program(
        self, group: int, width: int, num_seeds: int | None = None
    ) -> program.Program:
        """The compiled program of a group.

        Args:
            group: Index of the group.
            width: Number of cells that it computes at once on a device.
            num_seeds: Number of seeds that it computes at once; None for all seeds.
        """
        lane, request = self.lane(group), self.request
        layout = {
            "width": width,
            "num_seeds": num_seeds or request.num_seeds,
            "devices": request.devices,
            "backend": request.backend,
        }
        is_x64, switches = request.experiment.x64, tuple(settings().items())
        digest, held = lane.fingerprint
        # The program keeps its lane, and that what is held: no id is used again.
        objects = frozenset(map(id, held))
        return kept(
            (digest, objects, is_x64, switches, *layout.values()),
            lambda: program.compile_program(request.experiment, lane, **layout),
        )

    @ft.cached_property
    def result_bytes(self) -> int:
        """Bytes that the results take on the host."""
        groups = enumerate(self.request.groups)
        parts = [(group, self.lane(i).metrics) for i, group in groups]
        results.check_labels(self.request.dims, parts)
        return results.num_bytes(parts, self.request.num_seeds)

    @ft.cached_property
    def budget(self) -> float:
        """Bytes of one device that a chunk may take; `budget_on` this machine."""
        return self.budget_on(memory.Machine.of(self.request.devices))

    def budget_on(self, machine: memory.Machine) -> float:
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
        available = machine.available_bytes * memory.SHARE
        is_host = machine.platform == "cpu"
        return available - is_host * self.result_bytes / machine.num_devices
