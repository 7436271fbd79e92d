"""What a computation is, as a digest that every process finds and every change alters.

A jaxpr is walked by its structure: primitives, parameters, types, constants, numbers of
variables. What it holds without showing it counts too: host callbacks and the rules of
`custom_vmap`, `custom_jvp` and `custom_vjp` by their bytecode, what they close over,
their defaults, the globals that they name and what they import when they are called, as
far as to installed packages, which count by name and version. Of a user's module that
is what is asked of it by name; where it is passed on, stored, or asked by `getattr`,
its whole file counts, without what that file imports. What only running the code would
tell does not count: what `importlib` or `exec` find, files that are read.

What is only displayed does not count: other files, lines, docstrings, addresses, names
of modules, the order of sets, colors, widths. The order of a dict does, for host code
may follow it: also where the dict was filled in a set's order.

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
import math
from pathlib import Path
import re
import secrets
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
from jaxlr.lab import bytecode, packages


KIND = "v2:"  # digests of format 1 have no such prefix: they are of a text
_PROCESS = secrets.token_hex(4)
_OPAQUE: list[Any] = []  # what only this process knows, kept so that it stays itself
_ATOMS = type(None), bool, int, float, complex, str, bytes, range, types.EllipsisType
_CONTAINERS = list, dict, bytearray
_DESCRIPTORS = (
    types.GetSetDescriptorType,
    types.MemberDescriptorType,
    types.MethodDescriptorType,
    types.WrapperDescriptorType,
    types.ClassMethodDescriptorType,
)
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
        self._lowest = math.inf  # how far out the cycles lead that were met since
        self._cyclic: set[Any] = set()  # known, but by where they were met first

    def of(self, x: Any) -> bytes:
        """The hash of anything."""
        if type(x) in _ATOMS:
            return _hash(type(x).__name__, repr(x))
        if self._mode is _Mode.STRUCTURE and callable(x) and not isinstance(x, type):
            with self._as(_Mode.CODE):
                return self.of(x)
        key = id(x), self._mode
        if key in self._open:  # a cycle
            self._lowest = min(self._lowest, self._open[key])
            return _hash("cycle", str(len(self._open) - self._open[key]))
        if key not in self._known:
            before, self._lowest = self._lowest, math.inf
            self._open[key] = len(self._open)
            try:
                self._known[key] = x, self._compound(x)  # kept: its id stays its own
            finally:
                del self._open[key]
            if self._lowest < len(self._open):
                self._cyclic.add(key)
            self._lowest = min(before, self._lowest)
        elif key in self._cyclic:
            self._lowest = -1
        return self._known[key][1]

    def _unordered(self, items: Iterable[Any]) -> list[Any]:
        """Hashes of a set's items: none knows what another has led to."""
        if _is_flat(items):
            return sorted(map(repr, items))
        hashes = []
        for x in items:
            before = set(self._cyclic)
            hashes.append(self.of(x))
            for key in self._cyclic - before:
                del self._known[key]
            self._cyclic = before
        return sorted(hashes)

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
                parts = [_flat(x)] if _is_flat(x) else list(map(self.of, x))
                return _hash("tuple", self.of(type(x)), *parts, self._attributes(x))
            case frozenset():
                parts = self._unordered(x)
                return _hash("set", self.of(type(x)), *parts, self._attributes(x))
            case set():
                return self._container(x)
            case list() | dict() | bytearray() if type(x) in _CONTAINERS:
                return self._container(x)
            case types.MappingProxyType():
                return self._dict("mapping", x)
            case type():
                return self._type(x)
            case types.ModuleType():
                return self._module(x)
            case types.CodeType():
                return self._all("code", *bytecode.normal(x))
            case ft.partial():
                keywords = self._items("keywords", x.keywords.items())
                return _hash("partial", self.of(x.func), self.of(x.args), keywords)
            case re.Pattern():
                return self._all("pattern", x.pattern, x.flags)
            case ft.cached_property():
                return self._all("cached property", x.func)
            case _ if isinstance(x, _DESCRIPTORS):
                return _hash("descriptor", x.__qualname__)
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
        content = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        return _hash("array", self.of(array.dtype), str(array.shape), content.data)

    def _container(self, x: Any) -> bytes:
        kind = self.of(type(x))
        with self._hold(x):
            if not self._counts:
                return _hash("container", kind)
            if isinstance(x, dict):
                parts = [self._dict("items", x)]
            elif isinstance(x, set):
                parts = self._unordered(x)
            else:
                parts = [_flat(x)] if _is_flat(x) else list(map(self.of, x))
        return _hash("container", kind, *parts, self._attributes(x))

    def _dict(self, tag: str, x: Any) -> bytes:
        """By its order, which host code may follow; jax sorts what it traces."""
        if self._mode is _Mode.STRUCTURE:
            return self._items(tag, x.items())
        return _hash(tag, *(self.of(part) for pair in x.items() for part in pair))

    def _attributes(self, x: Any, known: Iterable[str] = ()) -> bytes:
        """What an instance has beside its items or fields."""
        own = _lasting(type(x), getattr(x, "__dict__", {}))
        own = [(name, value) for name, value in own if name not in set(known)]
        if not own:
            return b""
        with self._hold(x):
            return self._items("attributes", own) if self._counts else b""

    def _module(self, x: types.ModuleType) -> bytes:
        """An installed module, or a user's as a whole."""
        if library := packages.library(x.__name__):
            return _hash("module", library)
        with self._hold(x):
            try:
                return _hash("module", Path(x.__file__ or "").read_bytes())
            except (OSError, AttributeError):  # one made by hand, or a notebook
                return self._alone(x) if self._counts else _hash("module")

    def _type(self, cls: type) -> bytes:
        if library := packages.library(cls.__module__):
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
        library = packages.library(space.get("__name__", ""))
        parts = [_hash(library), self.of(code)]
        if (
            library
            and packages.library(fn.__module__)
            and "<locals>" not in fn.__qualname__
        ):
            return _hash("function", fn.__module__, fn.__qualname__, *parts)
        names = bytecode.names(code)
        defaults = fn.__defaults__, types.MappingProxyType(fn.__kwdefaults__ or {})
        parts += [
            self.of(_unshared(defaults) if packages.is_tracer(library) else defaults)
        ]
        for name, cell in zip(code.co_freevars, fn.__closure__ or (), strict=True):
            parts.append(_hash("closure", name))
            if name in names.writes and not self._counts:
                self._hold(cell)
                continue
            with contextlib.suppress(ValueError):  # a variable not assigned yet
                value = cell.cell_contents
                value = _unshared(value) if packages.is_tracer(library) else value
                parts.append(self._member(name, value, names))
        if library:
            return _hash("function", *parts)
        for name in sorted(names.reads & space.keys()):
            parts.append(_hash("global", name))
            if name in names.writes and not self._counts:
                self._hold(space)
                continue
            parts.append(self._member(name, space[name], names))
        for level, name, members, bound in sorted(names.imports):
            with contextlib.suppress(Exception):  # of as many kinds as modules have
                load = fn.__builtins__["__import__"]  # pyright: ignore
                module = load(name, space, None, members, level)
                parts.append(_hash("import", self._member(bound, module, names)))
        if self._counts:
            own = [(name, x) for name, x in vars(fn).items() if name[:2] != "__"]
            parts.append(self._items("attributes", own))
        return _hash("function", *parts)

    def _member(self, name: str, x: Any, names: bytecode.Names, *around: Any) -> bytes:
        """What a name leads to; of a user's module, what is asked of it."""
        is_users = isinstance(x, types.ModuleType) and not packages.library(x.__name__)
        if not is_users or name in names.whole:
            return self.of(x)
        parts, around = [], (*around, x)
        for name in sorted(names.attributes & vars(x).keys()):
            value = vars(x)[name]
            if not any(value is module for module in around):
                parts += [_hash(name), self._member(name, value, names, *around)]
        return _hash("module", *parts)

    def _object(self, x: Any) -> bytes:
        cls = type(x)
        is_frozen = getattr(getattr(x, "__dataclass_params__", None), "frozen", False)
        if is_frozen or packages.is_tracer(packages.library(cls.__module__)):
            return self._content(x) if is_frozen or self._counts else self.of(cls)
        with self._hold(x):
            return self._content(x) if self._counts else self.of(cls)

    def _content(self, x: Any) -> bytes:
        """An object by its fields, by what it wraps, or by what pickle makes of it."""
        cls = type(x)
        library = packages.library(cls.__module__)
        if dataclasses.is_dataclass(x):
            pairs = [(f.name, getattr(x, f.name, None)) for f in dataclasses.fields(x)]
            if packages.is_tracer(library):
                pairs = [(k, _unshared(v)) for k, v in pairs if k not in _DISPLAYED]
                return _hash("object", self.of(cls), self._items("fields", pairs))
            rest = self._attributes(x, [name for name, _ in pairs])
            return _hash("object", self.of(cls), self._items("fields", pairs), rest)
        if library and hasattr(x, "__wrapped__"):
            return self._all("wrapper", cls, x.__wrapped__)
        if packages.is_tracer(library) and hasattr(x, "__array__"):
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


def _hash(*parts: str | bytes | memoryview) -> bytes:
    sha = hashlib.sha256()
    for part in parts:
        part = part.encode(errors="replace") if isinstance(part, str) else part
        sha.update(len(part).to_bytes(8, "little"))
        sha.update(part)
    return sha.digest()


def _is_flat(items: Iterable[Any]) -> bool:
    return {*_ATOMS}.issuperset(map(type, items))


def _flat(items: Iterable[Any]) -> str:
    """Plain values at once: their representations tell values and types apart."""
    return repr(list(items))


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


def consts(closed: Any) -> Iterator[Any]:
    """Constants of a closed jaxpr and of those inside it, in order."""
    yield from getattr(closed, "consts", ())
    for eqn in getattr(closed, "jaxpr", closed).eqns:
        for parameter in jax.tree.leaves(list(eqn.params.values())):
            if hasattr(getattr(parameter, "jaxpr", parameter), "eqns"):
                yield from consts(parameter)
