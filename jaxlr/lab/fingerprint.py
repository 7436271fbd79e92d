"""What a computation is, as a digest that every process finds and every change alters.

A jaxpr is walked by its structure: primitives, parameters, types, constants, numbers of
variables. What it holds without showing it counts too: host callbacks and the rules of
`custom_vmap`, `custom_jvp` and `custom_vjp` by their bytecode, what they close over,
their defaults, and the globals that they name, as far as to installed packages, which
count by name and version. What is only displayed does not count: files, lines,
docstrings, addresses, names of modules, the order of sets, colors, widths.

Some values are state rather than part of the computation: of what a callback without
results, or a rule for derivatives, could change (a list that it fills, a counter), the
kind counts and not the content. And some no other process has, as a lock or an open
file: a computation that reads one is another in every process, and its digest says so.
"""

from collections.abc import Iterable, Iterator
import contextlib
import dataclasses
import enum
import functools as ft
import hashlib
from pathlib import Path
import re
import secrets
import sys
import sysconfig
import types
from typing import Any, NamedTuple

import jax
from jax.core import AbstractValue
from jax.extend import core
from jax.extend.linear_util import WrappedFun
import jax.numpy as jnp
import jax.random as jr
import numpy as np

from jaxlr.core import checks
from jaxlr.lab import bytecode


KIND = "v2:"  # digests of format 1 have no such prefix: they are of a text
_PROCESS = secrets.token_hex(4)
_OPAQUE: list[Any] = []  # what only this process knows, kept so that it stays itself
_ATOMS = type(None), bool, int, float, complex, str, bytes, range, types.EllipsisType
# Parameters and fields of jax that say where something is from, or how to print it.
_DISPLAYED = {"debug_info", "name_and_src_info", "np_printoptions", "logging_record"}
_AVAL = "shape", "dtype", "weak_type", "sharding", "memory_space", "inner_aval"


class Fingerprint(NamedTuple):
    """What tells computations apart.

    Attributes:
        digest: Digest of the structure, the same in every process.
        held: What host code may read and others may change: equal digests are one
            program only if they hold the same objects.
    """

    digest: str
    held: tuple[Any, ...]


def of(*parts: Any) -> Fingerprint:
    """The fingerprint of jaxprs, functions and plain values, in order."""
    walk = _Walk()
    digest = f"{KIND}{walk.of(parts).hex()[:16]}"
    if walk.opaque:
        names = ", ".join(sorted(walk.opaque))
        digest += f" (of process {_PROCESS} alone: it reads {names})"
    return Fingerprint(digest, tuple(walk.held.values()))


class _Mode(enum.Enum):
    """What is being walked, and thus which of its values count."""

    STRUCTURE = enum.auto()  # a jaxpr: all
    CODE = enum.auto()  # what host code reads: all; what can change is held
    INSIDE = enum.auto()  # what is in an object that is held: all
    SINK = enum.auto()  # what host code without results reads: what cannot change
    RULE = enum.auto()  # what no program reads any more: what cannot change


class _Walk:
    """One walk. Equal parts have equal hashes, whether or not they are one object.

    Attributes:
        held: By its id, what can change.
        opaque: Names of types that cannot be compared between processes.
    """

    def __init__(self):
        self.held: dict[int, Any] = {}
        self.opaque: set[str] = set()
        self._mode = _Mode.STRUCTURE
        self._known: dict[Any, tuple[Any, bytes]] = {}
        self._open: dict[Any, int] = {}

    def of(self, x: Any) -> bytes:
        """The hash of anything."""
        if type(x) in _ATOMS:
            return _hash(type(x).__name__, repr(x))
        if self._mode is _Mode.STRUCTURE and callable(x) and not isinstance(x, type):
            with self._as(_Mode.CODE):
                return self.of(x)
        key = id(x), self._mode
        if key in self._open:  # a cycle
            return _hash("cycle", str(len(self._open) - self._open[key]))
        if key not in self._known:
            self._open[key] = len(self._open)
            try:
                self._known[key] = x, self._compound(x)  # kept: its id stays its own
            finally:
                del self._open[key]
        return self._known[key][1]

    @contextlib.contextmanager
    def _as(self, mode: _Mode):
        before, self._mode = self._mode, mode
        try:
            yield
        finally:
            self._mode = before

    @property
    def _counts(self) -> bool:
        return self._mode in (_Mode.STRUCTURE, _Mode.CODE, _Mode.INSIDE)

    def _hold(self, x: Any) -> contextlib.AbstractContextManager[None]:
        """Hold what can change; returns the mode for what is in it."""
        if self._mode in (_Mode.CODE, _Mode.SINK):
            self.held[id(x)] = x
        return self._as(_Mode.INSIDE if self._mode is _Mode.CODE else self._mode)

    def _all(self, tag: str, *parts: Any) -> bytes:
        return _hash(tag, *map(self.of, parts))

    def _items(self, tag: str, items: Iterable[tuple[Any, Any]]) -> bytes:
        pairs = sorted((self.of(key), i, x) for i, (key, x) in enumerate(items))
        return _hash(tag, *(h for key, _, x in pairs for h in (key, self.of(x))))

    def _compound(self, x: Any) -> bytes:
        match x:
            case core.ClosedJaxpr() | core.Jaxpr():
                with self._as(_Mode.STRUCTURE):
                    return self._jaxpr(getattr(x, "jaxpr", x), getattr(x, "consts", ()))
            case jax.Array() if not checks.known(x):  # a rule cannot use what it holds
                return self._all("variable", jax.typeof(x))
            case AbstractValue():
                parts = (getattr(x, name, None) for name in _AVAL)
                return self._all(type(x).__name__, *parts)
            case core.Primitive():
                return _hash("primitive", x.name)
            case jax.Array() | np.ndarray() | np.generic():
                return self._array(x)
            case np.dtype():
                return _hash("dtype", x.name, x.str)
            case jax.Device():
                return _hash("device", x.platform, str(x.id))
            case jax.sharding.Mesh():
                devices = x.devices.shape, tuple(x.devices.flat)
                return self._all("mesh", x.axis_names, x.axis_types, devices)
            case jax.sharding.AbstractMesh():
                return self._all("mesh", x.axis_names, x.axis_types, x.axis_sizes)
            case jax.tree_util.PyTreeDef():
                kind, aux = x.node_data() or (None, None)
                aux = tuple(aux) if isinstance(aux, list) else aux  # keys of a dict
                return self._all("tree", kind, aux, tuple(x.children()))
            case enum.Enum():
                return self._all("enum", type(x), x.name, x.value)
            case tuple():
                return _hash("tuple", self.of(type(x)), *map(self.of, x))
            case frozenset():
                return _hash("frozenset", *sorted(map(self.of, x)))
            case list() | set() | dict() | bytearray():
                return self._container(x)
            case types.MappingProxyType():
                return self._items("mapping", x.items())
            case type():
                return self._type(x)
            case types.ModuleType():
                return _hash("module", _library(x.__name__))
            case types.CodeType():
                return self._all("code", *bytecode.normal(x))
            case ft.partial():
                return self._all(
                    "partial", x.func, x.args, types.MappingProxyType(x.keywords)
                )
            case types.MethodType():
                return self._all("method", x.__func__, x.__self__)
            case types.BuiltinFunctionType():
                owner = x.__self__
                owner = None if isinstance(owner, types.ModuleType) else owner
                return _hash(
                    "builtin", str(x.__module__), x.__qualname__, self.of(owner)
                )
            case types.FunctionType():
                return self._function(x)
            case property():
                return self._all("property", x.fget, x.fset)
            case classmethod() | staticmethod():
                return self._all(type(x).__name__, x.__func__)
            case WrappedFun():
                return self._all("transformed", x.f, x.transforms)
        return self._object(x)

    def _jaxpr(self, jaxpr: Any, consts: Iterable[Any]) -> bytes:
        numbers: dict[Any, int] = {}

        def atom(x):
            if isinstance(x, core.Literal):
                value = self._array(np.asarray(x.val))
                return _hash("literal", value, self.of(x.aval))
            return _hash(str(numbers.setdefault(x, len(numbers))), self.of(x.aval))

        parts = [*map(self.of, consts), b"constants"]
        parts += [atom(x) for x in (*jaxpr.constvars, *jaxpr.invars)]
        for eqn in jaxpr.eqns:
            name = eqn.primitive.name
            mode = _Mode.STRUCTURE if eqn.outvars else _Mode.SINK
            mode = _Mode.RULE if name.startswith(("custom_jvp", "custom_vjp")) else mode
            with self._as(mode):
                params = eqn.params.items()
                settings = self._items(
                    "parameters", [(k, v) for k, v in params if k not in _DISPLAYED]
                )
            slots = [s for s in type(eqn.ctx).__slots__ if s[0] != "_"]
            context = [(slot, getattr(eqn.ctx, slot, None)) for slot in slots]
            parts += [_hash("equation", name), settings, self._items("", context)]
            parts += [*map(atom, eqn.invars), b"->", *map(atom, eqn.outvars)]
        return _hash("jaxpr", *parts, b"results", *map(atom, jaxpr.outvars))

    def _array(self, x: Any) -> bytes:
        if isinstance(x, jax.Array) and jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            return _hash("key", str(jr.key_impl(x)), self._array(jr.key_data(x)))
        array = np.asarray(x)
        if isinstance(x, np.ndarray):
            with self._hold(x):
                if not self._counts:
                    return _hash("array")
                if array.dtype.hasobject:
                    return self._all("objects", array.shape, tuple(array.flat))
        content = np.ascontiguousarray(array).tobytes()
        return _hash("array", self.of(array.dtype), str(array.shape), content)

    def _container(self, x: Any) -> bytes:
        name = type(x).__name__
        with self._hold(x):
            if not self._counts:
                return _hash(name)
            if isinstance(x, dict):
                return self._items(name, x.items())
            hashes = list(map(self.of, x))
        return _hash(name, *(sorted(hashes) if isinstance(x, set) else hashes))

    def _type(self, cls: type) -> bytes:
        if library := _library(cls.__module__):
            return _hash("type", library, cls.__module__, cls.__qualname__)
        if self._mode is _Mode.STRUCTURE:
            return _hash("type", cls.__qualname__)
        methods = types.FunctionType, classmethod, staticmethod, property
        members = [
            (name, x)
            for name, x in vars(cls).items()
            if (name[:2] != "__" and name != "_abc_impl") or isinstance(x, methods)
        ]
        return _hash(
            "type",
            cls.__qualname__,
            self._items("members", members),
            self.of(cls.__bases__),
        )

    def _function(self, fn: types.FunctionType) -> bytes:
        code, space = fn.__code__, fn.__globals__
        library = _library(space.get("__name__", ""))
        parts = [_hash(library), self.of(code)]
        if library and _library(fn.__module__) and "<locals>" not in fn.__qualname__:
            return _hash("function", fn.__module__, fn.__qualname__, *parts)
        reads, writes, attributes = bytecode.names(code)
        defaults = fn.__defaults__, types.MappingProxyType(fn.__kwdefaults__ or {})
        parts += [self.of(_unshared(defaults) if _is_tracer(library) else defaults)]
        for name, cell in zip(code.co_freevars, fn.__closure__ or (), strict=True):
            parts.append(_hash("closure", name))
            if name in writes and not self._counts:
                self._hold(cell)
                continue
            with contextlib.suppress(ValueError):  # a variable not assigned yet
                value = cell.cell_contents
                value = _unshared(value) if _is_tracer(library) else value
                parts.append(self._member(value, attributes))
        if library:
            return _hash("function", *parts)
        for name in sorted(reads & space.keys()):
            parts.append(_hash("global", name))
            if name in writes and not self._counts:
                self._hold(space)
                continue
            parts.append(self._member(space[name], attributes))
        if self._counts:
            own = [(name, x) for name, x in vars(fn).items() if name[:2] != "__"]
            parts.append(self._items("attributes", own))
        return _hash("function", *parts)

    def _member(self, x: Any, names: set[str], *around: Any) -> bytes:
        """What a name leads to; of a user's module, what is asked of it."""
        if not isinstance(x, types.ModuleType) or _library(x.__name__):
            return self.of(x)
        parts, around = [], (*around, x)
        for name in sorted(names & vars(x).keys()):
            value = vars(x)[name]
            if not any(value is module for module in around):
                parts += [_hash(name), self._member(value, names, *around)]
        return _hash("module", *parts)

    def _object(self, x: Any) -> bytes:
        cls = type(x)
        is_frozen = getattr(getattr(x, "__dataclass_params__", None), "frozen", False)
        if is_frozen or _is_tracer(_library(cls.__module__)):
            return self._content(x) if is_frozen or self._counts else self.of(cls)
        with self._hold(x):
            return self._content(x) if self._counts else self.of(cls)

    def _content(self, x: Any) -> bytes:
        """An object by its fields, by what it wraps, or by what pickle makes of it."""
        cls = type(x)
        library = _library(cls.__module__)
        if dataclasses.is_dataclass(x):
            pairs = [(f.name, getattr(x, f.name, None)) for f in dataclasses.fields(x)]
            if _is_tracer(library):
                pairs = [(k, _unshared(v)) for k, v in pairs if k not in _DISPLAYED]
            return _hash("object", self.of(cls), self._items("fields", pairs))
        if library and hasattr(x, "__wrapped__"):
            return self._all("wrapper", cls, x.__wrapped__)
        if _is_tracer(library) and hasattr(x, "__array__"):
            return self._array(np.asarray(x))
        return self._reduced(x)

    def _reduced(self, x: Any) -> bytes:
        """An object by what pickle takes it apart into."""
        cls = type(x)
        try:
            made = x.__reduce_ex__(4)
            if isinstance(made, str):
                return self._all("global", cls, made)
            make, arguments, state, items, pairs = (*made, None, None, None)[:5]
            contents = tuple(items or ()), tuple(pairs or ())
        except Exception:  # of as many kinds as there are objects that cannot be
            return self._alone(x)
        parts = [self.of(make), self.of(arguments), self.of(contents)]
        for part in state if isinstance(state, tuple) else (state,):
            if isinstance(part, dict):
                parts.append(self._items("state", _lasting(cls, part)))
            else:
                parts.append(self.of(part))
        return _hash("object", self.of(cls), *parts)

    def _alone(self, x: Any) -> bytes:
        """An object that is equal to nothing but itself."""
        self.opaque.add(type(x).__qualname__)
        if not any(known is x for known in _OPAQUE):
            _OPAQUE.append(x)
        index = next(i for i, known in enumerate(_OPAQUE) if known is x)
        return _hash("alone", _PROCESS, str(index))


def _hash(*parts: str | bytes) -> bytes:
    sha = hashlib.sha256()
    for part in parts:
        part = part if isinstance(part, bytes) else part.encode(errors="replace")
        sha.update(len(part).to_bytes(8, "little"))
        sha.update(part)
    return sha.digest()


@ft.cache
def _library(module: str | None) -> str:
    """Name and version of the installed package of a module; of a user's own, empty."""
    top = (module or "").partition(".")[0]
    if top == "__main__":
        return ""
    package = sys.modules.get(top)
    file = getattr(sys.modules.get(module or ""), "__file__", None)
    if file is None:
        is_installed = top in sys.stdlib_module_names
    else:
        path = Path(file)
        is_installed = not {"site-packages", "dist-packages"}.isdisjoint(path.parts)
        is_installed |= path.is_relative_to(sysconfig.get_path("stdlib"))
    is_installed |= top == "jaxlr"  # also in a checkout
    return f"{top} {getattr(package, '__version__', '')}" if is_installed else ""


def _is_tracer(library: str) -> bool:
    """Whether a package makes its objects anew at every trace, and changes none."""
    return library.partition(" ")[0] in ("jax", "jaxlib", "jaxlr", "equinox")


def _unshared(x: Any) -> Any:
    """Lists and dicts as what nobody else can change."""
    if type(x) is dict:
        return types.MappingProxyType({k: _unshared(v) for k, v in x.items()})
    if type(x) in (list, tuple):
        return tuple(map(_unshared, x))
    return x


def _lasting(cls: type, state: dict[Any, Any]) -> list[tuple[Any, Any]]:
    """An object's attributes, without those that are kept from a computation."""
    return [
        (name, x)
        for name, x in state.items()
        if str(name)[:2] != "__"
        and not isinstance(getattr(cls, str(name), None), ft.cached_property)
    ]


def is_of_text(closed: Any, parts: tuple[Any, ...], digest: str) -> bool:
    """Whether a digest is one of format 1: of a trace's text, in colors or without."""
    if digest.startswith(KIND):
        return False
    found = []
    for const in map(jnp.asarray, consts(closed)):
        is_key = jnp.issubdtype(const.dtype, jax.dtypes.prng_key)
        array = np.asarray(jr.key_data(const) if is_key else const)
        content = np.ascontiguousarray(array).tobytes()
        found.append(f"{array.dtype} {array.shape}".encode() + content)
    for use_color in (False, True):
        shown = closed.jaxpr.pretty_print(use_color=use_color)
        text = re.sub(r" at 0x[0-9a-f]+", "", f"{shown} {parts}")
        sha = hashlib.sha256(b"".join([text.encode(), *found]))
        if sha.hexdigest()[:16] == digest:
            return True
    return False


def consts(closed: Any) -> Iterator[Any]:
    """Constants of a closed jaxpr and of those inside it, in order."""
    yield from getattr(closed, "consts", ())
    for eqn in getattr(closed, "jaxpr", closed).eqns:
        for parameter in jax.tree.leaves(list(eqn.params.values())):
            if hasattr(getattr(parameter, "jaxpr", parameter), "eqns"):
                yield from consts(parameter)
