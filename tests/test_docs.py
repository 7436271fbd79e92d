"""Public names have docstrings, errors a section, solvers a source."""

import ast
from pathlib import Path
import re

import pytest


ROOT = Path(__file__).parents[1]
FILES = sorted([*(ROOT / "jaxlr").rglob("*.py"), *(ROOT / "experiments").rglob("*.py")])


def public(node):
    return not node.name.startswith("_")


def definitions(node):
    """Public functions and classes right inside a module or class."""
    for child in node.body:
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            if public(child):
                yield child


def undocumented(tree):
    """Public functions, classes and methods of a module without a docstring."""
    if not ast.get_docstring(tree):
        yield "module"
    for node in definitions(tree):
        if not ast.get_docstring(node):
            yield node.name
        for member in definitions(node) if isinstance(node, ast.ClassDef) else ():
            if not ast.get_docstring(member):
                yield f"{node.name}.{member.name}"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_public_names_are_documented(path):
    assert not list(undocumented(ast.parse(path.read_text())))


def test_an_undocumented_name_is_seen():
    source = '"""M."""\nclass A:\n    """A."""\n    def f(self): ...\ndef g(): ...'
    assert list(undocumented(ast.parse(source))) == ["A.f", "g"]


def raised_without_section(tree):
    """Public functions that raise an error but have no Raises section."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and public(node):
            raises = [
                n
                for n in ast.walk(node)
                if isinstance(n, ast.Raise)
                and isinstance(n.exc, ast.Call)
                and getattr(n.exc.func, "id", "") == "ValueError"
            ]
            doc = ast.get_docstring(node) or ""
            if raises and "Raises" not in doc:
                yield node.name


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_errors_are_documented(path):
    assert not list(raised_without_section(ast.parse(path.read_text())))


SOLVER_FILES = [
    p for p in FILES if "solver" in p.relative_to(ROOT).with_suffix("").parts
]


@pytest.mark.parametrize("path", SOLVER_FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_algorithms_name_their_source(path):
    """A file that builds a Solver cites a paper."""
    text = path.read_text()
    if "return Solver(" in text:
        assert re.search(r"arXiv[: ]\d{4}\.\d{4,5}|JMLR|ICML|NeurIPS", text)


MARKDOWN = sorted([ROOT / "README.md", *ROOT.glob("docs/**/*.md")])


@pytest.mark.parametrize("path", MARKDOWN, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_and_images_exist(path):
    for target in re.findall(r"\]\(([^)#]+)\)", path.read_text()):
        if "://" not in target:
            assert (path.parent / target).exists(), target
