"""Rules of docstrings: every argument described, by phrases that can be understood."""

import ast
from collections.abc import Iterator
import inspect
import itertools
from pathlib import Path
import re

from tests.conformance import source, vocabulary


_SECTION = re.compile(r"^(Args|Attributes):\n((?:[ ]{4,}.*\n|\n)*)", re.M)
_ENTRY = re.compile(
    r"^ {4}(?P<names>\*{0,2}\w+(?: *, *\*{0,2}\w+)*)(?: \([^)]*\))?: ?(?P<text>.*)$"
)


def entries(doc: str) -> dict[str, str]:
    """Argument -> its description, from the sections Args and Attributes."""
    found: dict[str, str] = {}
    for _, section in _SECTION.findall(inspect.cleandoc(doc) + "\n"):
        names: list[str] = []
        for line in section.splitlines():
            if entry := _ENTRY.match(line):
                names = [n.strip().lstrip("*") for n in entry["names"].split(",")]
                found |= dict.fromkeys(names, entry["text"].strip())
            elif line.strip():
                found |= {name: f"{found[name]} {line.strip()}" for name in names}
    return found


def is_telegram(text: str) -> bool:
    """Whether a description leaves out what it is about.

    "Of the factors.", "As `gd`.", "k. Static.", "Static.", "The data.", "".
    """
    words = re.sub(r"\b[Ss]tatic\b[.,;]?", "", text).strip()
    if "->" in words:
        return False  # what a function takes and gives
    words = re.sub(r"^(?:The|An?|Its|Their)\b", "", _LETTER.sub("", words))
    return bool(_LEADING.match(words)) or len(re.findall(r"[^\s.,;:]+", words)) < 2


_LETTER = re.compile(r"^(?:`[^`]*`|[A-Za-z]\w?\*?|\([^)]*\))[.,;:]\s*")
_LEADING = re.compile(r"(?:Of|As|To|From|On|Likewise|Same|See)\b")


def arguments_are_described(root: Path) -> Iterator[str]:
    """Every argument has an entry, a docstring of its own, or is named in the text.

    What overrides a base class's method may leave it to that one's docstring.
    """
    classes = {
        node.name: node
        for file in source.files(root, "jaxlr")
        for node in ast.walk(file.tree)
        if isinstance(node, ast.ClassDef)
    }
    for item in source.public(root):
        for owner, signature in item.signatures():
            nodes = [signature.node, *_lineage(signature, classes)]
            docs = [ast.get_docstring(node) or "" for node in nodes]
            described = {name for doc in docs for name in entries(doc)}
            described |= _fields_described(signature.owner).keys()
            text = " ".join(docs)
            for name, _ in signature.annotated():
                if name in described or re.search(rf"`[^`\n]*\b{name}\b[^`]*`", text):
                    continue
                at = signature.file.at(signature.node)
                yield f"{at}: {owner}({name}) is not described"


def _lineage(signature: source.Signature, classes: dict[str, ast.ClassDef]) -> list:
    """A class and its bases, and their methods of the same name."""
    found: list = []
    ahead = [signature.owner]
    while ahead:
        owner = ahead.pop()
        found.append(owner)
        if isinstance(owner, ast.ClassDef):
            name = getattr(signature.function, "name", None)
            methods = [n for n in owner.body if isinstance(n, source.FUNCTIONS)]
            found += [method for method in methods if method.name == name]
            bases = (classes.get(source.terminal(base)) for base in owner.bases)
            ahead += [base for base in bases if base is not None and base is not owner]
    return found


def _fields_described(owner) -> dict[str, str]:
    """Field -> the docstring beneath it."""
    body = owner.body if isinstance(owner, ast.ClassDef) else []
    found: dict[str, str] = {}
    for field, below in itertools.pairwise(body):
        match field, below:
            case (
                ast.AnnAssign(target=ast.Name(id=name)),
                ast.Expr(value=ast.Constant(value=str(text))),
            ):
                found[name] = " ".join(text.split())
    return found


def no_telegrams(root: Path) -> Iterator[str]:
    """A description says what the argument is, to who reads nothing else first."""
    for item in source.public(root):
        nodes = {item.node: None}
        nodes |= {signature.node: None for _, signature in item.signatures()}
        for node in nodes:
            for name, text in entries(ast.get_docstring(node) or "").items():
                if is_telegram(text):
                    method = "" if node is item.node else f".{node.name}"
                    at = item.file.at(node)
                    yield f"{at}: {item.name}{method}({name}): {text!r}"


def experiments_are_described(root: Path) -> Iterator[str]:
    """Docs of hyper-parameters, metrics and arguments of experiments are no telegrams.

    Those of fields are what the command line and the axes of figures show.
    """
    for file in source.files(root, "experiments"):
        for node in ast.walk(file.tree):
            if not isinstance(node, (ast.ClassDef, *source.FUNCTIONS)):
                continue
            texts = entries(ast.get_docstring(node) or "") | _fields_described(node)
            for name, text in texts.items():
                if is_telegram(text):
                    yield f"{file.at(node)}: {node.name}({name}): {text!r}"


def settings_are_listed(root: Path) -> Iterator[str]:
    """Keywords that a public function passes on stand in its signature, by `passes_on`.

    Published exceptions are those that another library, or the caller, defines.
    """
    published = vocabulary.exceptions(root)
    for item in source.public(root):
        for owner, signature in item.signatures():
            rest = signature.function and signature.function.args.kwarg
            if not rest or rest.arg in published:
                continue
            decorators = map(source.terminal, signature.function.decorator_list)
            if "passes_on" not in decorators:
                at = signature.file.at(signature.node)
                yield f"{at}: {owner}(**{rest.arg}) does not say what it takes"
