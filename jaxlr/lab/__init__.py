"""The lab: sweep an experiment, keep its results, judge its claims.

Parts are imported when first used, so that the command line starts without jax.
"""

import importlib
from typing import TYPE_CHECKING


if TYPE_CHECKING:
    from jaxlr.lab.aot import compile_for as compile_for
    from jaxlr.lab.comparing import compare as compare, Comparison as Comparison
    from jaxlr.lab.engine import sweep as sweep
    from jaxlr.lab.gate import load as load
    from jaxlr.lab.grid import dimension_name as dimension_name
    from jaxlr.lab.halving import successive_halving as successive_halving
    from jaxlr.lab.judging import claims as claims, Judgement as Judgement
    from jaxlr.lab.picking import best as best
    from jaxlr.lab.planning import (
        chunk_function as chunk_function,
        Plan as Plan,
        plan as plan,
    )
    from jaxlr.lab.plot import draw_seeds as draw_seeds, panels as panels
    from jaxlr.lab.replaying import replay as replay
    from jaxlr.lab.results import hparams as hparams, select as select
    from jaxlr.lab.store import RunDirectoryError as RunDirectoryError

_HOME = {
    "Comparison": "comparing",
    "Judgement": "judging",
    "Plan": "planning",
    "RunDirectoryError": "store",
    "best": "picking",
    "chunk_function": "planning",
    "claims": "judging",
    "compare": "comparing",
    "compile_for": "aot",
    "dimension_name": "grid",
    "draw_seeds": "plot",
    "hparams": "results",
    "load": "gate",
    "panels": "plot",
    "plan": "planning",
    "replay": "replaying",
    "select": "results",
    "successive_halving": "halving",
    "sweep": "engine",
}
__all__ = list(_HOME)  # pyright: ignore


def __getattr__(name: str):
    if name in _HOME:
        return getattr(importlib.import_module(f"jaxlr.lab.{_HOME[name]}"), name)
    raise AttributeError(f"module 'jaxlr.lab' has no attribute {name!r}")


def __dir__():
    return [*globals(), *_HOME]
