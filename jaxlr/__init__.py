"""Low-rank and structured learning in JAX; parts are imported when first used."""

import importlib
from typing import TYPE_CHECKING


if TYPE_CHECKING:
    from jaxlr import (
        attention as attention,
        core as core,
        covariance as covariance,
        data as data,
        gp as gp,
        kernels as kernels,
        lab as lab,
        linalg as linalg,
        pde as pde,
        sensing as sensing,
        sharpness as sharpness,
        ssm as ssm,
    )

__version__ = "0.1.0"
__all__ = [
    "attention",
    "core",
    "covariance",
    "data",
    "gp",
    "kernels",
    "lab",
    "linalg",
    "pde",
    "sensing",
    "sharpness",
    "ssm",
]


def __getattr__(name: str):
    if name in __all__:
        return importlib.import_module(f"jaxlr.{name}")
    raise AttributeError(f"module 'jaxlr' has no attribute {name!r}")


def __dir__():
    return [*globals(), *__all__]
