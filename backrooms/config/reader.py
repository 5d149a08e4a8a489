"""Reads a TOML table into frozen dataclasses, strictly: an unknown key is an error, and every error names its key."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import MISSING, field, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from backrooms.config.listen import Listen, anchor_unix
from backrooms.errors import ConfigError

T = TypeVar("T")


def option(default: Any, *, least: float | None = None, most: float | None = None) -> Any:
    """A field with its default and, for numbers, the smallest and largest value."""
    return field(default=default, metadata={"least": least, "most": most})


def read_toml(text: str) -> dict[str, Any]:
    """TOML `text` as a table; `ConfigError` says where it is not TOML."""
    try:
        return tomllib.loads(text)
    except RecursionError:
        raise ConfigError("not TOML: nested too deeply") from None
    except ValueError as error:  # a number of thousands of digits is no TOMLDecodeError
        raise ConfigError(f"not TOML: {error}") from None


def read_table(kind: type[T], table: Any, path: str, folder: Path, **extra: Any) -> T:
    """`table` as the dataclass `kind`; `path` is its dotted name, empty for the whole file."""
    if not isinstance(table, Mapping):
        raise ConfigError(f"{path}: must be a table")
    prefix = f"{path}." if path else ""
    hints = get_type_hints(kind)
    known = {f.name: f for f in fields(kind) if f.metadata.get("option", True)}  # type: ignore[arg-type]
    for key in table:
        if key not in known:
            raise ConfigError(f"{prefix}{key}: unknown option")
    values = dict(extra)
    for name, field_ in known.items():
        if name in table:
            value = _read_value(hints[name], table[name], prefix + name, folder)
            _check_range(value, field_.metadata, prefix + name)
            values[name] = value
        elif is_dataclass(hints[name]):
            values[name] = read_table(hints[name], {}, prefix + name, folder)
        elif field_.default is MISSING:
            raise ConfigError(f"{prefix}{name}: must be given")
        else:
            values[name] = _anchor(hints[name], field_.default, folder)
    result = kind(**values)
    if check := getattr(result, "check", None):
        try:
            check()
        except ConfigError as error:
            raise ConfigError(f"{prefix}{error}") from None
    return result


def _read_value(hint: Any, value: Any, path: str, folder: Path) -> Any:
    """`value` as the type `hint`: a table, a list, one of several words, or a plain value."""
    origin, arguments = get_origin(hint), get_args(hint)
    words = arguments if origin is Literal else ()
    if is_dataclass(hint) and isinstance(hint, type):
        return read_table(hint, value, path, folder)
    if origin is tuple:
        if not isinstance(value, list):
            raise ConfigError(f"{path}: must be a list")
        return tuple(_read_value(arguments[0], item, f"{path}[{i}]", folder) for i, item in enumerate(value))
    if words:
        if value not in words:
            raise ConfigError(f"{path}: must be one of {', '.join(words)}")
        return value
    plain = str if hint in (Path, Listen) else hint
    if plain is float and type(value) is int:
        value = _float(value, path)
    if type(value) is not plain:  # exactly: for Python, true is an int too
        raise ConfigError(f"{path}: must be {_PLAIN[plain]}")
    if hint in (Path, Listen) and not value:
        raise ConfigError(f"{path}: must not be empty")
    if plain is str and not value.isprintable():
        raise ConfigError(f"{path}: must not contain control characters")
    return _anchor(hint, _home(value, path) if hint is Path else value, folder)


def _float(value: int, path: str) -> float:
    try:
        return float(value)
    except OverflowError:
        raise ConfigError(f"{path}: is too large") from None


def _home(value: str, path: str) -> Path:
    """The path `value`, in which `~` stands for a home folder."""
    try:
        return Path(value).expanduser()
    except RuntimeError:
        raise ConfigError(f"{path}: {value!r} is in the home folder of a user that does not exist") from None


_PLAIN = {str: "a string", int: "a whole number", float: "a number", bool: "true or false"}


def _check_range(value: Any, metadata: Mapping[str, Any], path: str) -> None:
    least, most = metadata.get("least"), metadata.get("most")
    if least is not None and not value >= least:  # "not >=" refuses nan, too
        raise ConfigError(f"{path}: must be at least {least}")
    if most is not None and not value <= most:
        raise ConfigError(f"{path}: must be at most {most}")


def _anchor(hint: Any, value: Any, folder: Path) -> Any:
    """`value` with its relative paths made absolute."""
    if hint is Path:
        return folder / value
    if hint is Listen:
        return anchor_unix(value, folder)
    if get_origin(hint) is tuple and get_args(hint)[0] is Listen:
        return tuple(anchor_unix(item, folder) for item in value)
    return value
