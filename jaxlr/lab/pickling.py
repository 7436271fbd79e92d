"""What cloudpickle sends by value, made whole again where it arrives.

The classes of a script or notebook are built anew there: empty, then given their
attributes. What was done once, when they were defined, is not done again: equinox does
not see the fields of its modules, and nothing is registered with jax. Such a module
cannot be made, and has no leaves.
"""

import dataclasses
import io
from typing import Any

import cloudpickle
import equinox as eqx
import jax


def dumps(content: Any) -> bytes:
    """What `pickle.loads` makes the same of, also in a process without its classes."""
    file = io.BytesIO()
    _Pickler(file).dump(content)
    return file.getvalue()


class _Pickler(cloudpickle.Pickler):
    def reducer_override(self, obj: Any) -> Any:
        reduced: Any = super().reducer_override(obj)
        is_by_value = isinstance(reduced, tuple) and len(reduced) == 6
        if not (is_by_value and isinstance(obj, type)):
            return reduced
        make, arguments, state, *nothing, set_state = reduced
        if issubclass(obj, eqx.Module):
            fields = {
                field.name: bool(field.metadata.get("static", False))
                for field in dataclasses.fields(obj)  # pyright: ignore
            }
            params = obj.__dataclass_params__  # pyright: ignore
            has_own_init = "__init__" in vars(obj) and not params.init
            arguments = make, arguments, fields, has_own_init
            return _make_module, arguments, state, *nothing, set_state
        if (registration := _registration(obj)) is not None:
            state = set_state, state, registration
            return make, arguments, state, *nothing, _set_registered_state
        return reduced


def _make_module(make, arguments, fields, has_own_init):
    """The empty class, but for its fields, which equinox looks at when it is made.

    Defaults, annotations and methods come with the rest, for they may name the class.
    """
    kind, name, bases, namespace, *rest = arguments
    namespace = namespace | {"__annotations__": dict.fromkeys(fields, object)}
    for field, is_static in fields.items():
        namespace[field] = dataclasses.field(metadata={"static": is_static})
    if has_own_init:  # or equinox makes one, which its subclasses inherit
        namespace["__init__"] = lambda self: None
    return make(kind, name, bases, namespace, *rest)


def _registration(cls: type) -> tuple[list[str], list[str]] | None:
    """Data and static fields of a class that jax knows as a tree.

    Both are empty where methods of the class say so. None for any other class, also
    for one that was registered by functions that jax does not hand out.
    """
    has_methods = hasattr(cls, "tree_flatten") and hasattr(cls, "tree_unflatten")
    if not (has_methods or dataclasses.is_dataclass(cls)):
        return None
    one = object.__new__(cls)
    marks = {}
    if not has_methods:
        marks = {field.name: object() for field in dataclasses.fields(cls)}
        for name, mark in marks.items():
            object.__setattr__(one, name, mark)
    try:
        found = jax.tree_util.default_registry.flatten_one_level(one)
    except Exception:  # its method wants attributes
        found = ((), None)
    if found is None:
        return None
    data = [name for name, mark in marks.items() if any(mark is x for x in found[0])]
    return data, [name for name in marks if name not in data]


def _set_registered_state(cls, state):
    set_state, state, registration = state
    set_state(cls, state)
    if _registration(cls) is not None:  # by an earlier sweep
        return
    if any(registration):
        jax.tree_util.register_dataclass(cls, *registration)
    elif hasattr(cls, "tree_flatten_with_keys"):
        jax.tree_util.register_pytree_with_keys_class(cls)
    else:
        jax.tree_util.register_pytree_node_class(cls)
