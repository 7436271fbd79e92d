"""The project as syntax trees, for rules that hold for a copy of it too.

A rule is a function of the project's root that yields its violations, each a sentence
that begins with `file:line`. Nothing here imports jaxlr, and nothing lists its parts.
"""

import ast
from collections.abc import Iterator
import dataclasses
import functools as ft
import io
from pathlib import Path
import tokenize
from typing import TypeAlias


ROOT = Path(__file__).parents[2]
Function: TypeAlias = ast.FunctionDef | ast.AsyncFunctionDef
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


@dataclasses.dataclass(frozen=True)
class File:
    """A Python file of the project.

    Attributes:
        root: The project's.
        name: Path from there: "jaxlr/gp/grid.py".
        text: Its source.
    """

    root: Path
    name: str
    text: str = dataclasses.field(repr=False)

    @property
    def tree(self) -> ast.Module:
        """The syntax tree, parsed once for every text."""
        return _parsed(self.text)

    @property
    def folder(self) -> str:
        """Two levels at most: "jaxlr/gp"; "jaxlr" for its own files."""
        return "/".join(self.name.split("/")[:-1][:2])

    @property
    def directory(self) -> str:
        """The directory that holds it: "jaxlr/sensing/solver"."""
        return self.name.rpartition("/")[0]

    @property
    def module(self) -> str:
        """The dotted name, a package's own for its `__init__`."""
        dotted = self.name.removesuffix(".py").replace("/", ".")
        return dotted.removesuffix(".__init__")

    def at(self, node: ast.AST) -> str:
        """Where a node is, for a violation."""
        return f"{self.name}:{getattr(node, 'lineno', 1)}"


@ft.lru_cache(None)
def _parsed(text: str) -> ast.Module:
    return ast.parse(text)


def files(root: Path, *tops: str) -> list[File]:
    """All Python files under these folders of the project."""
    paths = [path for top in tops for path in sorted((root / top).rglob("*.py"))]
    return [
        File(root, path.relative_to(root).as_posix(), path.read_text())
        for path in paths
        if "__pycache__" not in path.parts
    ]


def packages(root: Path) -> list[str]:
    """Names of the folders of jaxlr that are packages."""
    return sorted(path.parent.name for path in (root / "jaxlr").glob("*/__init__.py"))


def terminal(node: ast.AST) -> str:
    """`c` of a call's or an expression's `a.b.c`; "" where there is no name."""
    match node:
        case ast.Call(func=func):
            return terminal(func)
        case ast.Attribute(attr=name) | ast.Name(id=name):
            return name
        case ast.Subscript(value=value):
            return terminal(value)
    return ""


def functions(tree: ast.AST) -> Iterator[Function]:
    """Every function in a tree, methods and inner ones included."""
    return (node for node in ast.walk(tree) if isinstance(node, FUNCTIONS))


def own_nodes(function: ast.AST) -> Iterator[ast.AST]:
    """What a function's body holds without the functions and classes inside it."""
    for child in ast.iter_child_nodes(function):
        if not isinstance(child, (*FUNCTIONS, ast.Lambda, ast.ClassDef)):
            yield child
            yield from own_nodes(child)


def arguments(function: Function) -> list[ast.arg]:
    """Named arguments in the order of the signature."""
    args = function.args
    return [*args.posonlyargs, *args.args, *args.kwonlyargs]


def members(annotation: ast.AST | None) -> set[str]:
    """Names in a union: `int | None` has int and None, `tuple[int, ...]` has tuple."""
    match annotation:
        case None:
            return set()
        case ast.BinOp(op=ast.BitOr(), left=left, right=right):
            return members(left) | members(right)
        case ast.Constant(value=str(text)):
            return members(ast.parse(text, mode="eval").body)
        case ast.Constant(value=None):
            return {"None"}
        case ast.Subscript(value=value, slice=inner) if terminal(value) in (
            "Optional",
            "Annotated",
        ):
            first = inner.elts[0] if isinstance(inner, ast.Tuple) else inner
            return members(first)
    return {terminal(annotation)}


def code_lines(text: str) -> set[int]:
    """Numbers of the lines that hold code: no docstring, comment or blank."""
    docs: set[int] = set()
    for node in ast.walk(_parsed(text)):
        match node:
            case ast.Expr(value=ast.Constant(value=str())):
                docs.update(range(node.lineno, (node.end_lineno or 0) + 1))
    blank = (
        tokenize.COMMENT,
        tokenize.NL,
        tokenize.NEWLINE,
        tokenize.INDENT,
        tokenize.DEDENT,
        tokenize.ENDMARKER,
    )
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in blank:
            lines.update(range(token.start[0], token.end[0] + 1))
    return lines - docs


@dataclasses.dataclass(frozen=True)
class Public:
    """A function or class that a package of jaxlr exports.

    Attributes:
        name: "gp.GridGP", "sensing.theory.rate".
        file: Where it is defined.
        node: Its definition.
    """

    name: str
    file: File
    node: Function | ast.ClassDef = dataclasses.field(repr=False)

    def signatures(self) -> Iterator[tuple[str, "Signature"]]:
        """(name, signature) of what can be called: itself, a class's public methods."""
        if not isinstance(self.node, ast.ClassDef):
            yield self.name, Signature(self.file, self.node, self.node)
            return
        methods = [n for n in self.node.body if isinstance(n, FUNCTIONS)]
        if not any(m.name == "__init__" for m in methods):
            yield self.name, Signature(self.file, self.node, None)
        for method in methods:
            called = method.name in ("__init__", "__call__")
            is_property = any(
                terminal(d) in ("property", "cached_property", "setter")
                for d in method.decorator_list
            )
            if (called or not method.name.startswith("_")) and not is_property:
                name = f"{self.name}.{method.name}"
                yield name, Signature(self.file, self.node, method)


@dataclasses.dataclass(frozen=True)
class Signature:
    """What a caller writes: arguments of a function, or the fields of a class.

    Attributes:
        file: Where it is defined.
        owner: The function itself, or the class that the method belongs to.
        function: The function; None for a class whose fields are its arguments.
    """

    file: File
    owner: Function | ast.ClassDef = dataclasses.field(repr=False)
    function: Function | None = dataclasses.field(repr=False)

    @property
    def node(self) -> Function | ast.ClassDef:
        """What violations point to."""
        return self.function or self.owner

    @property
    def is_record(self) -> bool:
        """Whether these are the fields of a NamedTuple: what functions return."""
        bases = self.owner.bases if isinstance(self.owner, ast.ClassDef) else ()
        return not self.function and "NamedTuple" in map(terminal, bases)

    def annotated(self) -> list[tuple[str, ast.AST | None]]:
        """(argument, annotation), without `self`."""
        if self.function is not None:
            named = [(a.arg, a.annotation) for a in arguments(self.function)]
            is_method = isinstance(self.owner, ast.ClassDef) and not any(
                terminal(d) == "staticmethod" for d in self.function.decorator_list
            )
            return named[1:] if is_method else named
        return [
            (field.target.id, field.annotation)
            for field in self.owner.body
            if isinstance(field, ast.AnnAssign)
            and isinstance(field.target, ast.Name)
            and not field.target.id.startswith("_")
            and terminal(field.annotation) != "ClassVar"
            and not _is_made_inside(field)
        ]


def _is_made_inside(field: ast.AnnAssign) -> bool:
    """Whether a field has `init=False`: no argument."""
    return isinstance(field.value, ast.Call) and any(
        k.arg == "init" and isinstance(k.value, ast.Constant) and not k.value.value
        for k in field.value.keywords
    )


def public(root: Path) -> list[Public]:
    """All functions and classes that the packages of jaxlr export, each once."""
    modules = {file.module: file for file in files(root, "jaxlr")}
    found: dict[int, Public] = {}
    for package in packages(root):
        for name, file, node in _exported(modules, f"jaxlr.{package}", package):
            found.setdefault(id(node), Public(name, file, node))
    return list(found.values())


def _exported(modules, module: str, prefix: str):
    """(name, file, definition) of what a module offers."""
    file = modules[module]
    for node in file.tree.body:
        is_definition = isinstance(node, (*FUNCTIONS, ast.ClassDef))
        if is_definition and not node.name.startswith("_"):
            yield f"{prefix}.{node.name}", file, node
    if not file.name.endswith("__init__.py"):
        return  # what a file imports is not its own
    for node in ast.walk(file.tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                if alias.asname == alias.name:  # `from x import y as y`
                    yield from _resolved(modules, node.module, alias.name, prefix)


def _resolved(modules, module: str, name: str, prefix: str):
    inner = f"{module}.{name}"
    if inner in modules:
        yield from _exported(modules, inner, f"{prefix}.{name}")
        return
    for _, file, node in _exported(modules, module, "") if module in modules else ():
        if node.name == name:
            yield f"{prefix}.{name}", file, node
