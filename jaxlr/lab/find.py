"""Find experiments by name or path. Imports nothing heavy, so that listing is instant.

Shipped experiments lie in `jaxlr/experiments` (a wheel) or `experiments/` beside
`jaxlr/` (a checkout); `<family>/<question>.py` is called `<family>.<question>` there.
What several of them share lies in `common/`, and is imported relatively: a file is
loaded as part of its package, whichever way it is found.
"""

import ast
from collections.abc import Mapping
import functools as ft
import hashlib
import importlib
import importlib.util
import os
from pathlib import Path
import sys
import sysconfig
import traceback
from types import ModuleType
from typing import Any, TYPE_CHECKING


if TYPE_CHECKING:
    from jaxlr.core import Experiment


_PACKAGE = Path(__file__).resolve().parents[1]
_SHARED = "common"  # a folder of helpers, not a family


def names() -> dict[str, Path]:
    """Name -> file of every shipped experiment."""
    root = _root()[0]
    files = {
        path: path.relative_to(root).with_suffix("") for path in root.rglob("*.py")
    }
    return {
        ".".join(parts.parts): path
        for path, parts in sorted(files.items())
        if parts.parts[0] != _SHARED
        and not any(part.startswith("_") for part in parts.parts)
        and _exports(path)
    }


def summary(path: Path) -> str:
    """First line of a file's docstring, read without importing it."""
    try:
        doc = ast.get_docstring(_parse(path))
    except SyntaxError as e:
        return f"(line {e.lineno} does not parse: {e.msg})"
    return (doc or "").partition("\n")[0]


def find(name_or_path: str | os.PathLike[str]) -> "Experiment":
    """The experiment of that file, or of that name among the shipped ones.

    What ends in `.py` or contains a separator is a path. A user's file is loaded
    anew, under a module name of its own, with its directory first on `sys.path`: it
    may import files beside it, as under `python file.py`. Where `__init__.py` files
    make its directories a package, it may import relatively too.

    Raises:
        ValueError: On an unknown name, a missing file, or a file whose import fails
            or which exports no `EXPERIMENT`.
    """
    text = os.fspath(name_or_path)
    shipped = names()
    if not (text.endswith(".py") or "/" in text or os.sep in text):
        from jaxlr.core import checks

        try:
            checks.choice("experiment", text, shipped)
        except ValueError as e:
            raise ValueError(f"{e} A file of your own is given by its path.") from None
        return _experiment(text, shipped[text], is_shipped=True)
    path = Path(text).expanduser().resolve()
    if not path.is_file():
        raise ValueError(f"There is no file {text!r} (in {Path.cwd()}).")
    for name, file in shipped.items():
        if file == path:
            return _experiment(name, path, is_shipped=True)
    return _experiment(path.stem, path, is_shipped=False)


def _root() -> tuple[Path, str]:
    """Where the shipped experiments lie, and as which package."""
    if (inside := _PACKAGE / "experiments").is_dir():
        return inside, "jaxlr.experiments"
    return _PACKAGE.parent / "experiments", "experiments"


@ft.lru_cache
def _parse_text(text: str, path: Path) -> ast.Module:
    return ast.parse(text, path)


def _parse(path: Path) -> ast.Module:
    return _parse_text(path.read_text("utf-8"), path)


def _exports(path: Path) -> bool:
    """Whether the file assigns EXPERIMENT at its top level."""
    try:
        body = _parse(path).body
    except SyntaxError:
        return True  # so that it can be named, and its error read
    targets = [target for node in body for target in getattr(node, "targets", ())]
    targets += [node.target for node in body if isinstance(node, ast.AnnAssign)]
    return any(isinstance(t, ast.Name) and t.id == "EXPERIMENT" for t in targets)


def _experiment(name: str, path: Path, *, is_shipped: bool) -> "Experiment":
    from jaxlr.core import Experiment

    try:
        module = _imported(f"{_root()[1]}.{name}", path) if is_shipped else None
        module = module or _execute(_own_name(path), path)
    except Exception as e:
        frames = traceback.extract_tb(e.__traceback__)
        lines = [frame.lineno for frame in frames if frame.filename == str(path)]
        where = f", line {lines[-1]}" if lines else ""
        raise ValueError(
            f"Importing {path}{where} raised {type(e).__name__}: {e}"
        ) from e
    if not hasattr(module, "EXPERIMENT"):
        raise ValueError(
            f"{path} exports no EXPERIMENT; give it one: "
            "EXPERIMENT = Experiment(run=run, hparams=HParams())."
        )
    experiment = module.EXPERIMENT
    if not isinstance(experiment, Experiment):
        raise ValueError(
            f"EXPERIMENT in {path} must be a jaxlr.core.Experiment, got "
            f"{type(experiment).__name__}."
        )
    return experiment.replace(name=name)


def recorded(manifest: Mapping[str, Any]) -> "Experiment":
    """The experiment of a run's manifest, by its name, else by its path.

    Raises:
        ValueError: If neither leads anywhere, or the file cannot be loaded.
    """
    name, path = manifest["experiment"], manifest.get("source_path")
    if name in names():
        return find(name)
    try:
        return find(path or name)
    except ValueError as e:
        raise ValueError(
            f"The experiment {name!r} is not shipped, and was not found where the run "
            f"recorded it; give it (`experiment`, `--experiment`). {e}"
        ) from e


def line_of(error: BaseException) -> str:
    """` (file, line n)` of the last line of the user's own that led to an error."""
    package = Path(__file__).parents[1]  # unresolved, as tracebacks name files
    paths = sysconfig.get_paths()
    libraries = ("<", paths["stdlib"], paths["purelib"], paths["platlib"])
    cause = error.__cause__ and error.__cause__.__traceback__
    frames = traceback.extract_tb(error.__traceback__) + traceback.extract_tb(cause)
    for frame in reversed(frames):
        name = frame.filename
        is_experiment = name.startswith(str(package / "experiments"))
        is_library = name.startswith((*libraries, str(package)))
        if is_experiment or not is_library:
            return f" ({os.path.relpath(name)}, line {frame.lineno})"
    return ""


def load_module(name: str, path: str | os.PathLike[str]) -> ModuleType:
    """The file as a module of that name: imported, where the name leads to it."""
    path = Path(path).resolve()
    return _imported(name, path) or _execute(name, path)


def _imported(name: str, path: Path) -> ModuleType | None:
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError):  # no such parent package; a module without spec
        return None
    if spec is None or spec.origin is None or Path(spec.origin).resolve() != path:
        return None
    return importlib.import_module(name)


def _own_name(path: Path) -> str:
    """A module name that no other file has: in its package, where it has one."""
    parts, folder = [path.stem.replace(".", "_")], path.parent
    while (folder / "__init__.py").is_file():
        parts.insert(0, folder.name)
        folder = folder.parent
    digest = hashlib.sha256(str(folder / parts[0]).encode()).hexdigest()[:8]
    return ".".join([f"jaxlr_file_{parts[0]}_{digest}", *parts[1:]])


def _execute(name: str, path: Path) -> ModuleType:
    folder = str(path.parent)
    if folder not in sys.path:
        # For good: figures and claims may import a sibling when they are called.
        sys.path.insert(0, folder)
    _execute_package(name.rpartition(".")[0], path.parent)
    return _execute_file(name, path)


def _execute_package(name: str, folder: Path) -> None:
    """Have the package of that folder, and those around it, for relative imports."""
    init = folder / "__init__.py"
    if not name or name in sys.modules or not init.is_file():
        return
    _execute_package(name.rpartition(".")[0], folder.parent)
    _execute_file(name, init, [str(folder)])


def _execute_file(
    name: str, path: Path, folders: list[str] | None = None
) -> ModuleType:
    """Run the file as a module, of a package if `folders` say where its files lie."""
    spec = importlib.util.spec_from_file_location(
        name, path, submodule_search_locations=folders
    )
    if spec is None or spec.loader is None:
        raise ImportError("its name does not end in .py")
    module = importlib.util.module_from_spec(spec)
    before = sys.modules.get(name)
    sys.modules[name] = module  # dataclasses and pickle look there
    try:
        spec.loader.exec_module(module)
    except BaseException:
        if before is None:
            del sys.modules[name]
        else:
            sys.modules[name] = before
        raise
    return module
