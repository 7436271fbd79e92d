"""Installed packages, which count by name and version, not by what they do."""

import functools as ft
import importlib.metadata
from pathlib import Path
import sys
import sysconfig


@ft.cache
def library(module: str | None) -> str:
    """Name and version of the installed package of a module; of a user's own, empty."""
    top = (module or "").partition(".")[0]
    if top == "__main__":
        return ""
    loaded = sys.modules.get(module or "", sys.modules.get(top))
    file = getattr(loaded, "__file__", None)
    if file is None:
        is_installed = top in sys.stdlib_module_names
    else:
        path = Path(file)
        is_installed = not {"site-packages", "dist-packages"}.isdisjoint(path.parts)
        is_installed |= path.is_relative_to(sysconfig.get_path("stdlib"))
    is_installed |= top == "jaxlr"  # also in a checkout
    return f"{top} {_version(top)}" if is_installed else ""


@ft.cache
def _version(top: str) -> str:
    """What an installed package, or whoever distributes it, says; of Python's, none."""
    version = getattr(sys.modules.get(top), "__version__", None)
    if isinstance(version, str) or top in sys.stdlib_module_names:
        return version or ""
    by_package = importlib.metadata.packages_distributions()
    names = sorted(set(by_package.get(top, ())))
    return " ".join(map(importlib.metadata.version, names))


def is_tracer(library: str) -> bool:
    """Whether a package makes its objects anew at every trace, and changes none."""
    return library.partition(" ")[0] in ("jax", "jaxlib", "jaxlr", "equinox")
