"""A user's file and the files beside it, as modules in a name space of their own.

The folder of the file is a package that nobody else knows. An absolute import in one
of its modules looks into that folder first, as under `python file.py`, now and when a
function is called later; two experiments thus have each its own `helper`. What has been
loaded is loaded anew once a file of the name space has been edited.
"""

import builtins
from contextvars import ContextVar
import functools as ft
import hashlib
import importlib
from importlib import machinery, util
import os
from pathlib import Path
import re
import sys
from types import ModuleType
from typing import Any


PREFIX = "jaxlr_file_"
# In a worker, what the coordinator calls its own `__main__`.
MAIN: ContextVar[str | None] = ContextVar("main", default=None)
_FOLDERS: dict[str, str] = {}  # package of an experiment's folder -> the folder
_DIGESTS: dict[str, bytes] = {}  # module -> digest of its file when it was loaded


def name_of(path: Path) -> str:
    """The module name of a file that no other file has; in its package, if it has one.

    Args:
        path: The file, absolute.
    """
    folders = [path.parent]
    while all((f / "__init__.py").is_file() for f in (folders[0], folders[0].parent)):
        folders.insert(0, folders[0].parent)
    top, *inner = folders
    digest = hashlib.sha256(os.fsencode(top)).hexdigest()[:8]
    first = f"{PREFIX}{re.sub(r'[^0-9A-Za-z]', '_', top.name)}_{digest}"
    return ".".join((first, *(f.name for f in inner), path.stem.replace(".", "_")))


def plain(name: str) -> str:
    """A module's name, however its file is run; of a notebook's cells, empty.

    Without its name space, which knows where the folder lies; a script by its file.
    """
    if name == "__main__":
        if (told := MAIN.get()) is not None:
            return told
        main = sys.modules[name]
        spec, file = main.__spec__, getattr(main, "__file__", None)
        return spec.name if spec else Path(file or "").stem
    return name.partition(".")[2] if name.startswith(PREFIX) else name


def named(x: Any) -> str:
    """A function's or class's name, with its module's."""
    module = plain(getattr(x, "__module__", None) or "")
    return f"{module}.{x.__qualname__}".removeprefix(".")


def shown(x: Any) -> str:
    """A representation that is the same in every process, however a file is run."""
    if isinstance(x, frozenset) and x:
        return f"frozenset({{{', '.join(sorted(map(shown, x)))}}})"
    main = f"{plain('__main__')}.".lstrip(".")
    text = re.sub(rf" at 0x[0-9a-fA-F]+|\b{PREFIX}\w+\.", "", repr(x))
    return re.sub(r"\b__main__\.", lambda _: main, text)


def is_same(one: str, other: str) -> bool:
    """Whether two names are of one thing: a notebook does not know its module's."""
    one, other = (name.removeprefix("__main__.") for name in (one, other))
    return one == other or one.endswith(f".{other}") or other.endswith(f".{one}")


def load(name: str, path: Path) -> ModuleType:
    """The file as a module of that name, in a name space if it is one of `name_of`.

    There, the module that has been loaded already, unless a file was edited since.

    Args:
        name: Name of the module.
        path: The file, absolute.
    """
    package, folder = name.rpartition(".")[0], str(path.parent)
    if name.startswith(PREFIX):
        _forget_edited(name.partition(".")[0])
        if name in sys.modules:
            return sys.modules[name]
        importlib.invalidate_caches()
        if _Finder not in sys.meta_path:
            sys.meta_path.insert(0, _Finder)
        _FOLDERS[package] = folder
    elif folder not in sys.path:
        sys.path.insert(0, folder)
    _load_package(package, path.parent)
    return _execute(name, path)


def _forget_edited(top: str) -> None:
    """Have nothing loaded of a name space of which a file has been edited."""
    present = [x for x in sys.modules if x == top or x.startswith(f"{top}.")]
    if any(map(_is_edited, present)):
        for name in present:
            del sys.modules[name]


def _execute(name: str, path: Path, folders: list[str] | None = None) -> ModuleType:
    """Run a file as a module, of a package if `folders` say where its files lie."""
    loader = _Loader(name, str(path)) if name.startswith(PREFIX) else None
    spec = util.spec_from_file_location(
        name, path, loader=loader, submodule_search_locations=folders
    )
    if spec is None or spec.loader is None:
        raise ImportError("its name does not end in .py")
    module = util.module_from_spec(spec)
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


def _is_edited(name: str) -> bool:
    path = getattr(sys.modules[name], "__file__", None)
    try:
        return path is not None and _digest(Path(path).read_bytes()) != _DIGESTS[name]
    except (OSError, KeyError):  # moved; or compiled code, of which none is kept
        return name in _DIGESTS


def _digest(text: bytes) -> bytes:
    return hashlib.sha256(text).digest()


def _load_package(name: str, folder: Path) -> None:
    """Have the package of that folder, and those around it."""
    if not name or name in sys.modules:
        return
    parent = name.rpartition(".")[0]
    _load_package(parent, folder.parent)
    init = folder / "__init__.py"
    if init.is_file():
        _execute(name, init, [str(folder)])
    elif name.startswith(PREFIX):
        spec = machinery.ModuleSpec(name, None, is_package=True)
        spec.submodule_search_locations = [str(folder)]
        sys.modules[name] = util.module_from_spec(spec)


class _Loader(machinery.SourceFileLoader):
    """Compiles what the file says now: byte code may be older within its second."""

    def get_code(self, fullname: str) -> Any:
        text = self.get_data(self.path)
        _DIGESTS[fullname] = _digest(text)
        return self.source_to_code(text, self.path)

    def exec_module(self, module: ModuleType) -> None:
        root = module.__name__
        while root and root not in _FOLDERS:
            root = root.rpartition(".")[0]
        if root:
            importer = ft.partial(_import, root)
            vars(module)["__builtins__"] = vars(builtins) | {"__import__": importer}
        super().exec_module(module)


class _Finder:
    """Finds the files beside those that have been loaded."""

    @staticmethod
    def find_spec(fullname: str, path: Any = None, target: Any = None) -> Any:
        if path is None or not fullname.startswith(PREFIX):
            return None
        spec = machinery.PathFinder.find_spec(fullname, path, target)
        if spec is not None and isinstance(spec.loader, machinery.SourceFileLoader):
            spec.loader = _Loader(fullname, spec.loader.path)
        return spec


def _import(root, name, globals=None, locals=None, fromlist=(), level=0):
    """`__import__` of a module in the package `root`, whose folder comes first."""
    top = name.partition(".")[0]
    if level or not _lies_beside(top, _FOLDERS[root]):
        return builtins.__import__(name, globals, locals, fromlist, level)
    module = builtins.__import__(f"{root}.{name}", globals, locals, fromlist)
    return module if fromlist else sys.modules[f"{root}.{top}"]


def _lies_beside(top: str, folder: str) -> bool:
    """Whether a folder has a module of that name which others do not share already."""
    if top == "__main__" or top in sys.builtin_module_names:
        return False
    spec = machinery.PathFinder.find_spec(top, [folder])
    if spec is None:
        return False
    if spec.origin is None:  # a folder without __init__.py: last of all, as for Python
        return top not in sys.modules and util.find_spec(top) is None
    shared = getattr(sys.modules.get(top), "__file__", None)
    return shared is None or os.path.realpath(shared) != os.path.realpath(spec.origin)
