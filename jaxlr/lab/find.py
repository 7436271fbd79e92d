"""Find experiments by name or path. Imports nothing heavy, so that listing is instant.

Shipped experiments lie in `jaxlr/experiments` (a wheel) or `experiments/` beside
`jaxlr/` (a checkout); `<family>/<question>.py` is called `<family>.<question>` there.
What several of them share lies in `common/`, and is imported relatively: a file is
loaded as part of its package, whichever way it is found.
"""

import ast
from collections.abc import Mapping
import functools as ft
import importlib
import importlib.util
import os
from pathlib import Path
import sysconfig
import traceback
from types import ModuleType
from typing import Any, TYPE_CHECKING

from jaxlr.lab import modules


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

    What ends in `.py` or contains a separator is a path. A user's file may import those
    beside it, as under `python file.py`, and relatively too. It has them for itself:
    they are loaded in a name space of its folder, anew once one of them is edited.

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
        module = module or modules.load(modules.name_of(path), path)
    except (Exception, SystemExit) as e:
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
    """The experiment that a run's manifest names, if it is one of the shipped ones.

    A path in a manifest is never followed: whoever wrote it could run any code here.

    Raises:
        ValueError: If the experiment does not ship, or cannot be loaded.
    """
    name, path = manifest["experiment"], manifest.get("source_path")
    if name in names():
        return find(name)
    where = f" of {path}" if path else ""
    raise ValueError(
        f"The experiment {name!r}{where} does not ship with jaxlr, and what a run "
        "directory names is not executed. If you trust its file, give it "
        "(`experiment`, `--experiment PATH`)."
    )


def sentence(error: BaseException) -> str:
    """An error as one problem: its kind, what it says, and the user's own line."""
    return f"{type(error).__name__}: {error}{line_of(error)}"


def line_of(error: BaseException) -> str:
    """` (file, line n)` of the last line of the user's own that led to an error."""
    frame = own_frame(error.__cause__) or own_frame(error)
    if frame is None:
        return ""
    return f" ({os.path.relpath(frame.filename)}, line {frame.lineno})"


def own_frame(error: BaseException | None) -> traceback.FrameSummary | None:
    """Where an error's traceback was last in the user's own code; None: nowhere."""
    package = Path(__file__).parents[1]  # unresolved, as tracebacks name files
    paths = sysconfig.get_paths()
    libraries = ("<", paths["stdlib"], paths["purelib"], paths["platlib"])
    for frame in reversed(traceback.extract_tb(error and error.__traceback__)):
        name = frame.filename
        is_experiment = name.startswith(str(package / "experiments"))
        is_library = name.startswith((*libraries, str(package)))
        if is_experiment or not is_library:
            return frame
    return None


def load_module(name: str, path: str | os.PathLike[str]) -> ModuleType:
    """The file as a module of that name: imported, where the name leads to it."""
    path = Path(path).resolve()
    is_ours = name.startswith(modules.PREFIX)
    module = None if is_ours else _imported(name, path)
    return module or modules.load(name, path)


def _imported(name: str, path: Path) -> ModuleType | None:
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError):  # no such parent package; a module without spec
        return None
    if spec is None or spec.origin is None or Path(spec.origin).resolve() != path:
        return None
    return importlib.import_module(name)
