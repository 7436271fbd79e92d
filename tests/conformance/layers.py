"""Rules of the tree: its page, floors, circles, private names, who may check what."""

import ast
from collections.abc import Iterator
from pathlib import Path
import re
import sys

from tests.conformance import source


_ROOM = re.compile(r"^(?P<indent> *)(?P<name>[\w.]+/?) {2,}(?P<text>\S.*)$")
_FLOOR = re.compile(r"^floor (\d+)\b")


def tree_of(root: Path) -> dict[str, str]:
    """Path -> its line on the design page: the first code block that begins with jaxlr.

    The page indents by two spaces; a folder's name ends in a slash.
    """
    page = root / "docs" / "design.md"
    blocks = re.findall(r"```\n(jaxlr/.*?)```", page.read_text(), re.S)
    rooms: dict[str, str] = {}
    above: list[str] = []
    for line in blocks[0].splitlines() if blocks else ():
        if room := _ROOM.match(line):
            depth = len(room["indent"]) // 2
            above = [*above[:depth], room["name"]]
            rooms["".join(above)] = room["text"]
    return rooms


def floors(root: Path) -> dict[str, int]:
    """Folder of jaxlr -> its floor, as the design page says; "experiments" too."""
    lines = tree_of(root).items()
    found = {path: _FLOOR.match(text) for path, text in lines}
    return {
        path.removeprefix("jaxlr/").rstrip("/"): int(floor[1])
        for path, floor in found.items()
        if floor
    }


def rooms_have_lines(root: Path) -> Iterator[str]:
    """Every folder and file of jaxlr is on the design page, and what is there exists.

    `__init__.py` and `__main__.py` need no line, nor what experiments ask.
    """
    named = tree_of(root)
    paths = [Path(file.name) for file in source.files(root, "jaxlr")]
    there = {str(path) for path in paths if not path.name.startswith("__")}
    there |= {f"{path.parent}/" for path in paths}
    for path in sorted(there - set(named)):
        yield f"docs/design.md: {path} has no line"
    for path in sorted(named):
        if path.startswith("jaxlr") and not (root / path).exists():
            yield f"docs/design.md: there is no {path}"
    for package in source.packages(root):
        if package not in floors(root):
            yield f"docs/design.md: jaxlr/{package}/ has no floor"


def imports(file: source.File) -> Iterator[tuple[ast.AST, str, str]]:
    """(node, module, name) of every import; the name is "" for a whole module.

    Relative ones keep their dots.
    """
    for node in ast.walk(file.tree):
        if isinstance(node, ast.Import):
            yield from ((node, alias.name, "") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = "." * node.level + (node.module or "")
            yield from ((node, base, alias.name) for alias in node.names)


def imports_go_down(root: Path) -> Iterator[str]:
    """A folder of jaxlr imports from lower floors only, and no experiment."""
    floor = floors(root)
    for file in source.files(root, "jaxlr"):
        yield from _upward(file, floor)


def _upward(file: source.File, floor: dict[str, int]) -> Iterator[str]:
    parts = file.name.split("/")
    own = parts[1] if len(parts) > 2 else None  # None: jaxlr's own files
    for node, module, name in imports(file):
        if module.startswith("."):
            yield f"{file.at(node)}: relative import"
        dotted = f"jaxlr.{name}" if module == "jaxlr" and name else module
        if dotted == "jaxlr" and own not in (None, "lab"):  # hides what it reaches
            yield f"{file.at(node)}: imports all of jaxlr"
        if dotted.split(".")[0] == "experiments":
            yield f"{file.at(node)}: imports {dotted}"
        if own is None or not dotted.startswith("jaxlr."):
            continue
        other = dotted.split(".")[1]
        if other != own and floor.get(other, 3) >= floor.get(own, 3):
            yield f"{file.at(node)}: {own} imports {dotted}"


_DEPENDENCIES = {
    *("jaxlr", "jax", "equinox", "optax", "numpy", "jaxtyping", "matplotlib"),
    "scipy",  # which jax needs too
    *sys.stdlib_module_names,
}


def experiments_import_the_library(root: Path) -> Iterator[str]:
    """Experiments import jaxlr, its dependencies, and what experiments share.

    Benchmarks, which measure against other libraries, import these too.
    """
    for file in source.files(root, "experiments"):
        for node, module, name in imports(file):
            if module.startswith("."):
                shared = module == "..common" or (module == ".." and name == "common")
                is_inside = module.startswith(".") and not module.startswith("..")
                is_allowed = shared or module.startswith("..common.")
                is_allowed |= is_inside and file.folder == "experiments/common"
                is_allowed |= file.folder == "experiments/benchmarks"
            else:
                is_allowed = module.split(".")[0] in _DEPENDENCIES
                is_allowed |= file.folder == "experiments/benchmarks"
            if not is_allowed:
                yield f"{file.at(node)}: imports {module} {name}".rstrip()


def no_circles(root: Path) -> Iterator[str]:
    """No module imports, by others, itself; imports inside functions count.

    Those of an `__init__` under `if TYPE_CHECKING` do not: its `__getattr__` imports
    the same by a name computed, which is what makes jaxlr and its lab light.
    """
    files = {file.module: file for file in source.files(root, "jaxlr")}
    edges = {module: _needs(file, files) for module, file in files.items()}
    reach = {module: _reached(module, edges) for module in edges}
    for module in sorted(edges):
        circle = sorted(m for m in reach[module] if module in reach[m])
        if circle and module == circle[0]:
            yield f"{files[module].name}:1: a circle of imports: {', '.join(circle)}"


def _needs(file: source.File, files: dict[str, source.File]) -> set[str]:
    typing_only = {
        id(inner)
        for node in ast.walk(file.tree)
        if file.name.endswith("__init__.py")
        and isinstance(node, ast.If)
        and source.terminal(node.test) == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    found: set[str] = set()
    for node, module, name in imports(file):
        if id(node) not in typing_only:
            inner = f"{module}.{name}"
            found |= {inner if inner in files else module} & set(files)
    return found - {file.module}


def _reached(module: str, edges: dict[str, set[str]]) -> set[str]:
    seen: set[str] = set()
    ahead = [module]
    while ahead:
        new = edges[ahead.pop()] - seen
        seen |= new
        ahead += new
    return seen


_OF_TUPLES = {"_replace", "_asdict", "_fields", "_make", "_field_defaults"}


def private_names_stay(root: Path) -> Iterator[str]:
    """A name that begins with "_" is used where it is defined, and in folders below."""
    everything = source.files(root, "jaxlr", "experiments")
    defined: dict[str, set[str]] = {}
    for file in everything:
        defined.setdefault(file.directory, set()).update(_defined(file))
    for file in everything:
        above = file.directory.split("/")
        folders = ["/".join(above[: i + 1]) for i in range(len(above))]
        known = _OF_TUPLES.union(*(defined.get(folder, ()) for folder in folders))
        for node in ast.walk(file.tree):
            if isinstance(node, ast.Attribute) and _is_private(node.attr):
                if node.attr not in known:
                    yield f"{file.at(node)}: {ast.unparse(node)} is private"
        for node, module, name in imports(file):
            parts = [*module.split("."), *([name] if name else [])]
            for place, part in enumerate(parts):
                home = "/".join(parts[:place])
                if (root / f"{home}.py").exists():  # a module's private name
                    home = "/".join(parts[: place - 1])
                if _is_private(part) and home not in folders:
                    yield f"{file.at(node)}: {module}.{name} is private"


def _is_private(name: str) -> bool:
    return name.startswith("_") and not (name.startswith("__") or name == "_")


def _defined(file: source.File) -> Iterator[str]:
    for node in ast.walk(file.tree):
        match node:
            case ast.FunctionDef(name=name) | ast.ClassDef(name=name):
                yield name
            case ast.Name(id=name, ctx=ast.Store()):
                yield name
            case ast.Attribute(attr=name, ctx=ast.Store()):
                yield name
            case ast.alias(name=name, asname=other):
                yield other or name
    path = file.name.removesuffix(".py").split("/")
    yield from path  # `_gd` of `solver/_gd.py`


def checks_are_in_one_place(root: Path) -> Iterator[str]:
    """What is traced, and what is a count, is asked of `core.checks` alone."""
    for file in source.files(root, "jaxlr"):
        if file.name == "jaxlr/core/checks.py":
            continue
        found: dict[str, None] = {}  # one a line
        for node in ast.walk(file.tree):
            is_alias = isinstance(node, ast.alias) and node.name == "Tracer"
            if is_alias or source.terminal(node) == "Tracer":
                found[f"{file.at(node)}: asks for a Tracer; `checks.known` does"] = None
            if _refuses(node) and _asks_int(node):
                found[f"{file.at(node)}: asks for integers; `checks.count` does"] = None
        yield from found


def _refuses(node: ast.AST) -> bool:
    """Whether a node decides about an error, or compares besides asking a type."""
    if isinstance(node, ast.BoolOp):
        return any(isinstance(n, ast.Compare) for n in ast.walk(node))
    return isinstance(node, ast.If) and any(isinstance(n, ast.Raise) for n in node.body)


def _asks_int(node: ast.AST) -> bool:
    asked = node.test if isinstance(node, ast.If) else node
    return any(
        source.terminal(call) == "isinstance"
        and len(call.args) == 2
        and source.members(call.args[1]) <= {"int", "integer", "Integral"}
        for call in ast.walk(asked)
        if isinstance(call, ast.Call)
    )
