"""`--config FILE`: flags from a TOML file, which those of the command line outdo."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
import re
from typing import Any


def words(path: str, given: Sequence[str], switches: Collection[str]) -> list[str]:
    """The words for which a file stands, to be read before those that are given.

        seeds = 8
        eta = 0.1               # a field of HParams
        [opt]
        lr = 0.01               # the flag --opt.lr
        [axis]
        alpha = [0.1, 0.2]      # or what --axis takes, "log:1e-3:1:8"

    Args:
        path: The file.
        given: The words of the command line. Of a field that they fix or sweep, the
            file's own value or axis is left out.
        switches: Flags without a negative form: `false` is as if they were not there.

    Raises:
        ValueError: If the file is no TOML, or a value has no form as a word.
        OSError: If it cannot be read.
    """
    import tomllib

    try:
        content = tomllib.loads(Path(path).expanduser().read_text("utf-8"))
        content = {
            name: value
            for name, value in content.items()
            if value is not False or name not in switches
        }
        return list(_words(content, *_named(given)))
    except ValueError as e:
        raise ValueError(f"Cannot read the configuration {path}: {e}") from e


def _named(given: Sequence[str]) -> tuple[set[str], set[str]]:
    """Fields that words fix by a flag, and fields that they sweep."""
    fixed = {
        _plain(re.sub(r"(^--|\.)(no-)?", r"\1", word.partition("=")[0])[2:])
        for word in given
        if word.startswith("--")
    }
    specs = [
        word.removeprefix("--axis=")
        for before, word in zip(["", *given], given, strict=False)
        if before == "--axis" or word.startswith("--axis=")
    ]
    return fixed, {name for spec in specs for name in _names(spec.partition("=")[0])}


def _words(
    content: Mapping[str, Any], fixed: set[str], swept: set[str], prefix: str = ""
) -> Iterator[str]:
    for key, value in content.items():
        name = prefix + key
        if name in ("config", "json"):
            raise ValueError(f"`{name}` is a flag of the command line alone.")
        if name == "axis":
            if not isinstance(value, Mapping):
                raise ValueError(f"`axis` is a table, got {value!r}.")
            for axis, spec in _flat(value):
                if not _names(axis) & (fixed | swept):
                    yield f"--axis={axis}={_spec(axis, spec)}"
        elif isinstance(value, Mapping):
            yield from _words(value, fixed, swept, f"{name}.")
        elif _plain(name) not in swept:
            yield from _flag(name, value)


def _flat(table: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """`opt.lr = ...` under `[axis]` is a table in a table."""
    for key, value in table.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _flag(name: str, value: Any) -> Iterator[str]:
    if isinstance(value, bool):
        table, dot, key = name.rpartition(".")
        yield f"--{table}{dot}{'' if value else 'no-'}{key}"
    elif isinstance(value, list):
        yield from (f"--{name}", *(_word(name, x) for x in value))
    else:
        yield f"--{name}={_word(name, value)}"


def _spec(axis: str, spec: Any) -> str:
    if not isinstance(spec, list):
        return _word(axis, spec)
    found = [_word(axis, value) for value in spec]
    if split := [word for word in found if set(word) & set(",:/")]:
        raise ValueError(f"the axis {axis!r} has {split[0]!r}: no value has , : or /.")
    return ",".join(found)


def _word(name: str, value: Any) -> str:
    if not isinstance(value, bool | int | float | str):
        raise ValueError(f"{name!r} takes words and numbers, got {value!r}.")
    return str(value)


def _names(axis: str) -> set[str]:
    return {_plain(name.strip()) for name in axis.split("/")}


def _plain(name: str) -> str:
    return name.replace("-", "_").removeprefix("hparams.")
