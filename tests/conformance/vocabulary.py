"""Rules of words: what counts, truths and functions are called; who checks counts."""

import ast
from collections.abc import Iterator
import functools as ft
from pathlib import Path
import re

from tests.conformance import source


BANNED = {
    "max_num_steps": "max_steps",
    "max_iter": "max_steps",
    "maxiter": "max_steps",
    "num_iters": "num_steps",
    "gradient_norm": "grad_norm",
    "tol": "tolerance",
    "rtol": "tolerance",
    "atol": "tolerance",
}
BANNED_ARGUMENTS = {"ordered": "is_ordered", "reverse": "is_reverse"}


def exceptions(root: Path) -> set[str]:
    """Names that the design page publishes as they are: in its list of exceptions."""
    text = (root / "docs" / "design.md").read_text()
    section = re.search(r"^#+ Published exceptions\n(.*?)(?=^#|\Z)", text, re.S | re.M)
    return set(re.findall(r"`(\w+)`", section[1])) if section else set()


def words(root: Path) -> Iterator[str]:
    """No argument, field or variable of ours has another word's meaning."""
    for file in source.files(root, "jaxlr", "experiments"):
        if file.folder == "experiments/benchmarks":
            continue  # which call other libraries
        for node in ast.walk(file.tree):
            match node:
                case ast.arg(arg=name) | ast.AnnAssign(target=ast.Name(id=name)):
                    banned = BANNED | BANNED_ARGUMENTS
                case ast.Name(id=name, ctx=ast.Store()):
                    banned = BANNED
                case _:
                    continue
            if name in banned:
                yield f"{file.at(node)}: `{name}` is called `{banned[name]}`"


def truths_and_functions(root: Path) -> Iterator[str]:
    """`bool` arguments are `is_*` or `has_*`, `Callable` ones `*_fn`."""
    published = exceptions(root)
    for item in source.public(root):
        for owner, signature in item.signatures():
            for name, annotation in signature.annotated():
                kinds = source.members(annotation)
                at = signature.file.at(signature.node)
                if name in published:
                    continue
                if "bool" in kinds and not name.startswith(("is_", "has_")):
                    yield f"{at}: {owner}({name}: bool) is called is_* or has_*"
                is_function = kinds <= {"Callable", "None"}  # no number, or schedule
                if is_function and "Callable" in kinds and not name.endswith("_fn"):
                    yield f"{at}: {owner}({name}: Callable) is called *_fn"


def exceptions_are_needed(root: Path) -> Iterator[str]:
    """Each published exception is an argument of some public function."""
    names: set[str] = set()
    for item in source.public(root):
        for _, signature in item.signatures():
            names |= {name for name, _ in signature.annotated()}
            rest = signature.function and signature.function.args.kwarg
            names |= {rest.arg} if rest else set()
    for name in sorted(exceptions(root) - names):
        yield f"docs/design.md: no argument is called `{name}`, an exception to nothing"


NO_COUNT = {"tuple", "Sequence"}  # of which the integer is one index, or axis
NO_COUNT |= {"Int", "Num", "Float", "Array"}  # may be traced


def counts(root: Path) -> Iterator[str]:
    """Every argument annotated `int` reaches `checks.count` or `checks.choice`.

    By itself, or by a function it is handed to; in a class, by what is done with the
    field. Fields of a NamedTuple, and of what public functions return, are results.
    """
    checked = _Checked(source.files(root, "jaxlr"))
    items = source.public(root)
    returned = {name for item in items for name in _returned(item)}
    for item in items:
        for owner, signature in item.signatures():
            for name, annotation in signature.annotated():
                kinds = source.members(annotation)
                is_count = "int" in kinds and not kinds & NO_COUNT
                is_result = not signature.function and item.node.name in returned
                if is_count and not (is_result or signature.is_record):
                    if not checked(signature, name):
                        at = signature.file.at(signature.node)
                        yield f"{at}: {owner}({name}: int) reaches no `checks.count`"


def _returned(item: source.Public) -> set[str]:
    """Names in the annotations of what a function returns, a class to itself apart."""
    signatures = [signature for _, signature in item.signatures()]
    annotations = [s.function.returns for s in signatures if s.function]
    nodes = [node for a in annotations if a is not None for node in ast.walk(a)]
    names = {source.terminal(node) for node in nodes}
    return names - ({item.node.name} if isinstance(item.node, ast.ClassDef) else set())


class _Checked:
    """Which arguments are checked: found once, by going round until nothing is new."""

    def __init__(self, files: list[source.File]):
        self.by_name: dict[str, list[ast.AST]] = {}
        self.known: set[tuple[int, str]] = set()
        nodes = [node for file in files for node in ast.walk(file.tree)]
        defs = [n for n in nodes if isinstance(n, (*source.FUNCTIONS, ast.ClassDef))]
        for node in defs:
            self.by_name.setdefault(node.name, []).append(node)
        self.calls = {id(node): list(_calls(node)) for node in defs}
        size = -1
        while size != len(self.known):
            size = len(self.known)
            for node in defs:
                self._visit(node)

    def __call__(self, signature: source.Signature, name: str) -> bool:
        return (id(signature.node), name) in self.known

    def _visit(self, node):
        if isinstance(node, ast.ClassDef):
            for init in self._inits(node):
                if init is not node:
                    return  # its arguments are those of `__init__`
        for call in self.calls[id(node)]:
            for name, is_checked in self._handed(call, node):
                if is_checked:
                    self.known.add((id(node), name))

    def _handed(self, call: ast.Call, node) -> Iterator[tuple[str, bool]]:
        """(argument of `node`, whether the call checks it)."""
        alias = _aliases(node)
        called, given = source.terminal(call), list(call.args)
        if called in ("count", "choice", "check_count"):
            yield from ((n, True) for arg in given[1:] for n in alias(arg))
            yield from ((n, True) for k in call.keywords for n in alias(k.value))
            return
        if called == "partial" and given:
            called, given = source.terminal(given[0]), given[1:]
        for target in self._targets(called):
            names = _parameters(target)
            for position, arg in enumerate(given):
                if isinstance(arg, ast.Starred):
                    break
                for name in alias(arg) if position < len(names) else ():
                    yield name, (id(target), names[position]) in self.known
            for keyword in call.keywords:
                for name in alias(keyword.value) if keyword.arg else ():
                    yield name, (id(target), keyword.arg) in self.known

    def _targets(self, name: str) -> Iterator[ast.AST]:
        for node in self.by_name.get(name, ()):
            yield from self._inits(node)

    def _inits(self, node) -> Iterator[ast.AST]:
        """A class's `__init__`, its own or a base's; else the class; else itself."""
        if not isinstance(node, ast.ClassDef):
            yield node
            return
        inits = [
            n
            for n in node.body
            if isinstance(n, source.FUNCTIONS) and n.name == "__init__"
        ]
        yield from inits or [node]


def _calls(node) -> Iterator[ast.Call]:
    """Calls in a function, or in all methods of a class."""
    return (inner for inner in ast.walk(node) if isinstance(inner, ast.Call))


def _parameters(node) -> list[str]:
    if isinstance(node, ast.ClassDef):
        signature = source.Signature(None, node, None)  # pyright: ignore
        return [name for name, _ in signature.annotated()]
    names = [a.arg for a in source.arguments(node)]
    return names[1:] if names[:1] in (["self"], ["cls"]) else names


def _aliases(node):
    """Expression -> the arguments of `node` that it stands for.

    `x`; `self.x`; `y` after `y = x`; `getattr(self, name)` and `value` in a loop over
    literal names and values.
    """
    return ft.partial(_meant, _loops(node))


@ft.lru_cache(None)
def _loops(node) -> dict[str, list[ast.expr]]:
    """Variable -> what it is given, or takes in turn in loops over literals."""
    found: dict[str, list[ast.expr]] = {}
    for inner in ast.walk(node):
        match inner:
            case ast.Assign(targets=[ast.Name(id=name)], value=value):
                found.setdefault(name, []).append(value)
        if isinstance(inner, ast.For | ast.comprehension):
            target, rows = inner.target, _rows(inner.iter)
            names = target.elts if isinstance(target, ast.Tuple) else [target]
            for row in rows:
                values = row.elts if isinstance(row, ast.Tuple) else [row]
                for name, value in zip(names, values, strict=False):
                    if isinstance(name, ast.Name):
                        found.setdefault(name.id, []).append(value)
    return found


def _rows(node: ast.expr) -> list[ast.expr]:
    if isinstance(node, ast.Tuple | ast.List | ast.Set):
        return node.elts
    is_items = source.terminal(node) == "items" and isinstance(node, ast.Call)
    if is_items and isinstance(node.func, ast.Attribute):
        table = node.func.value
        if isinstance(table, ast.Dict):
            pairs = zip(table.keys, table.values, strict=True)
            return [ast.Tuple([k, v]) for k, v in pairs if k is not None]
    return []


def _meant(loops: dict[str, list[ast.expr]], node: ast.AST) -> set[str]:
    match node:
        case ast.Name(id=name):
            rest = {n: values for n, values in loops.items() if n != name}
            return {name}.union(*(_meant(rest, v) for v in loops.get(name, ())))
        case ast.Attribute(value=ast.Name(id="self"), attr=name):
            return {name}
        case ast.Call(func=ast.Name(id="getattr"), args=[_, key, *_]):
            keys = [key, *loops.get(getattr(key, "id", ""), ())]
            return {str(k.value) for k in keys if isinstance(k, ast.Constant)}
        case ast.IfExp(body=a, orelse=b):
            return _meant(loops, a) | _meant(loops, b)
        case ast.Tuple(elts=elts) | ast.List(elts=elts):
            return set().union(*(_meant(loops, e) for e in elts))
        case ast.Starred(value=value):
            return _meant(loops, value)
    return set()
