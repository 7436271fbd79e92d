"""Rules of size, and of experiments, which leave the loop to `jaxlr.core`."""

import ast
from collections.abc import Iterator
from pathlib import Path

from tests.conformance import source


MOST_LINES = 80
MOST_ARGUMENTS = 10


def functions_are_short(root: Path) -> Iterator[str]:
    """At most 80 lines of code; at most 10 arguments, if not a published signature."""
    published = {
        id(signature.function)
        for item in source.public(root)
        for _, signature in item.signatures()
    }
    for file in source.files(root, "jaxlr", "experiments"):
        lines = source.code_lines(file.text)
        for node in source.functions(file.tree):
            long = len(lines & set(range(node.lineno, (node.end_lineno or 0) + 1)))
            wide = len(source.arguments(node))
            if long > MOST_LINES:
                yield f"{file.at(node)}: {node.name} has {long} lines of code"
            if wide > MOST_ARGUMENTS and id(node) not in published:
                yield f"{file.at(node)}: {node.name} takes {wide} arguments"


_LOOPS = {"scan", "fori_loop", "while_loop"}
_RUNS = {"run", "run_until"}


def experiments_have_no_loop(root: Path) -> Iterator[str]:
    """Experiments hand a Solver to `core.loop`; none loops over its steps by itself.

    A Solver whose step is a whole run looks while it trains, for which there is
    `watch_fn`; but a long run, whose segments count such steps, has no other way.
    Benchmarks loop: they time single steps, and other libraries.
    """
    for file in source.files(root, "experiments"):
        if file.folder == "experiments/benchmarks":
            continue
        inner = {node.name: node for node in source.functions(file.tree)}
        nodes = list(ast.walk(file.tree))
        calls = [node for node in nodes if isinstance(node, ast.Call)]
        is_long = any(
            source.terminal(call) == "Experiment" and "solver" in _keywords(call)
            for call in calls
        )
        for node in nodes:
            if isinstance(node, ast.Call):
                name = source.terminal(node)
                if name in _LOOPS and any(
                    _steps(part, inner, _takes_steps) for part in _given(node)
                ):
                    yield f"{file.at(node)}: a training loop by `{name}`"
                if name == "Solver" and not is_long:
                    if any(_steps(part, inner, _is_run) for part in _given(node)):
                        yield f"{file.at(node)}: a Solver whose step is a run"
                if name == "_replace" and {"step", "init"} & _keywords(node):
                    yield f"{file.at(node)}: wraps a Solver's step"
                if name == "apply_updates":
                    yield f"{file.at(node)}: takes a step of optax"
            if isinstance(node, ast.For | ast.While):
                body = [n for part in node.body for n in ast.walk(part)]
                if any(map(_is_step, body)):
                    yield f"{file.at(node)}: a training loop in Python"


def _keywords(call: ast.Call) -> set[str | None]:
    return {keyword.arg for keyword in call.keywords}


def _given(call: ast.Call) -> list[ast.expr]:
    return [*call.args, *(keyword.value for keyword in call.keywords)]


def _is_step(node: ast.AST) -> bool:
    """`solver.step`, called or handed on; `loop.take_step`."""
    is_attribute = isinstance(node, ast.Attribute) and node.attr == "step"
    return is_attribute or source.terminal(node) == "take_step"


def _takes_steps(node: ast.AST) -> bool:
    return _is_step(node) or _is_run(node)


def _is_run(node: ast.AST) -> bool:
    """`loop.run(...)`, `loop.run_until(...)`."""
    if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
        return False
    return node.func.attr in _RUNS and source.terminal(node.func.value) == "loop"


def _steps(body: ast.AST, inner: dict, is_it, seen: frozenset = frozenset()) -> bool:
    """Whether a body holds what is sought, itself or by the file's functions."""
    for node in ast.walk(body):
        if is_it(node):
            return True
        name = node.id if isinstance(node, ast.Name) else ""
        if name in inner and name not in seen:
            if _steps(inner[name], inner, is_it, seen | {name}):
                return True
    return False


def tests_check_something(root: Path) -> Iterator[str]:
    """A test asserts, itself or by what it calls, and does not return before it has."""
    for file in source.files(root, "tests"):
        inner = {node.name: node for node in source.functions(file.tree)}
        for node in source.functions(file.tree):
            if not node.name.startswith("test_"):
                continue
            asserting = [n.lineno for n in _asserting(node, inner)]
            if not asserting:
                yield f"{file.at(node)}: {node.name} asserts nothing"
            for part in source.own_nodes(node):
                if isinstance(part, ast.Return) and min(asserting) > part.lineno:
                    yield f"{file.at(part)}: {node.name} returns before it asserts"


_ASSERTING = ("assert", "check", "raises", "warns", "fail", "rerun")


def _asserting(node: ast.AST, inner: dict, seen: frozenset = frozenset()):
    """What in a test can make it fail."""
    for part in ast.walk(node):
        name = source.terminal(part)
        called = inner.get(name) if isinstance(part, ast.Call) else None
        if isinstance(part, ast.Assert) or name.lstrip("_").startswith(_ASSERTING):
            yield part
        elif called is not None and name not in seen:
            if any(_asserting(called, inner, seen | {name})):
                yield part
