"""What differs between jax 0.7.2 and the newest, and between machines. Only here."""

from collections.abc import Sequence
import contextlib

import jax


if "enable_x64" in vars(jax):
    _enable_x64 = jax.enable_x64
else:
    from jax.experimental import enable_x64 as _enable_x64  # pyright: ignore


def x64(enabled: bool) -> contextlib.AbstractContextManager:
    """A context in which 64-bit types are on or off."""
    return _enable_x64(enabled)


def line_mesh(devices: Sequence[jax.Device], axis_name: str) -> jax.sharding.Mesh:
    """A one-dimensional mesh over the given devices."""
    kind = (jax.sharding.AxisType.Auto,)
    return jax.make_mesh(
        (len(devices),), (axis_name,), axis_types=kind, devices=devices
    )
