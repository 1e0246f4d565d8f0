"""What settings there are, and what each of them means: told from the classes that check them.

What stands under a setting in its class is its meaning. It is read from the source, and only when
somebody asks: whoever starts a command does not wait for it.
"""

import ast
import inspect
import json
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, get_args, get_origin

from pydantic import BaseModel, SecretStr
from pydantic.fields import FieldInfo

from engine.settings import Settings
from engine.settings_fields import models_in

__all__ = ["NAME", "Described", "Group", "groups", "is_secret", "variable_of", "written"]

NAME = "NAME"
"""Stands for the name of an entry, as of a source."""


@dataclass(frozen=True, slots=True)
class Described:
    """A setting.

    name: as in "search.k", or "sources.NAME.url". values: which it may have, for people.
    default: as the file would have it; None = it is not set, or has to be given (``is_needed``).
    by_machine: the default depends on the machine.
    """

    name: str
    meaning: str
    values: str
    default: str | None
    is_needed: bool = False
    by_machine: bool = False
    is_secret: bool = False


@dataclass(frozen=True, slots=True)
class Group:
    """Settings under one name: a table of the file.

    name: "" = they are under none. about: what they are for. kind: of entries of which there are
    several kinds, as "folder" of sources; None = there is one. model: the class that checks them.
    """

    name: str
    about: str
    kind: str | None
    model: type[BaseModel]
    settings: tuple[Described, ...]


@cache
def groups() -> tuple[Group, ...]:
    """All settings, in the order of the settings' classes."""
    plain: list[str] = []
    found: list[Group] = []
    meanings = _meanings(Settings)
    for name, field in Settings.model_fields.items():
        models = list(models_in(field.annotation))
        if not models:
            plain.append(name)
        entries = get_origin(field.annotation) is dict
        for model in models:
            place = f"{name}.{NAME}" if entries else name
            about = " ".join(filter(None, (meanings.get(name), _about(model))))
            kind = _kind(model) if len(models) > 1 else None
            found.append(Group(place, about, kind, model, _settings(model, place)))
    return (Group("", "", None, Settings, _settings(Settings, "", plain)), *found)


def variable_of(name: str) -> str:
    """The variable that sets what has this name."""
    return "PRECEDENT_" + name.upper().replace(".", "__")


def is_secret(field: FieldInfo) -> bool:
    """Whether the value of the field is never shown."""
    return SecretStr in (field.annotation, *get_args(field.annotation))


def written(value: Any) -> str:
    """A value as the file would have it."""
    if isinstance(value, Path):
        value = str(value)
    return json.dumps(value, ensure_ascii=False, default=str)


def _settings(model: type[BaseModel], place: str, names: list[str] | None = None) -> tuple[
    Described, ...
]:  # fmt: skip
    meanings = _meanings(model)
    schema = model.model_json_schema()
    found = []
    for name, field in model.model_fields.items():
        if names is not None and name not in names:
            continue
        found.append(
            Described(
                f"{place}.{name}".lstrip("."),
                meanings.get(name, ""),
                _values(schema["properties"][name], schema.get("$defs", {})),
                _default(field),
                is_needed=field.is_required(),
                by_machine=field.default_factory is not None,
                is_secret=is_secret(field),
            )
        )
    return tuple(found)


def _default(field: FieldInfo) -> str | None:
    if field.is_required() or field.default_factory is not None or field.default is None:
        return None
    return written(field.default)


def _kind(model: type[BaseModel]) -> str:
    (kind,) = get_args(model.model_fields["kind"].annotation)
    return str(kind)


def _about(model: type[BaseModel]) -> str:
    return _one_line(inspect.cleandoc(model.__doc__ or "").partition("\n\n")[0])


@cache
def _meanings(model: type[BaseModel]) -> dict[str, str]:
    """What stands under each field of a class, and of those that it is made from."""
    found: dict[str, str] = {}
    for one in reversed(model.__mro__):
        if not issubclass(one, BaseModel) or one.__module__.partition(".")[0] != "engine":
            continue
        (tree,) = ast.parse(textwrap.dedent(inspect.getsource(one))).body
        if not isinstance(tree, ast.ClassDef):
            continue
        for statement, after in zip(tree.body, tree.body[1:], strict=False):
            if not isinstance(statement, ast.AnnAssign) or not isinstance(after, ast.Expr):
                continue
            if isinstance(after.value, ast.Constant) and isinstance(after.value.value, str):
                found[ast.unparse(statement.target)] = _one_line(after.value.value)
    return found


def _one_line(text: str) -> str:
    return " ".join(text.split()).replace("``", "`")


_TYPES = {
    "integer": "whole number",
    "number": "number",
    "boolean": "true or false",
    "string": "text",
    "object": "table",
}
_FORMATS = {"path": "path", "uri": "address", "password": "secret"}


def _values(schema: Mapping[str, Any], known: Mapping[str, Any]) -> str:
    """Which values a JSON schema allows, in a few words."""
    if "$ref" in schema:
        return _values(known[schema["$ref"].rpartition("/")[2]], known)
    if "const" in schema or "enum" in schema:
        return ", ".join(map(json.dumps, schema.get("enum", [schema.get("const")])))
    if "anyOf" in schema:
        some = [_values(one, known) for one in schema["anyOf"] if one.get("type") != "null"]
        return " or ".join(dict.fromkeys(some))
    if schema.get("type") == "array":
        return f"list of {_values(schema.get('items', {}), known)}"
    kind = schema.get("type", "")
    words = _FORMATS.get(schema.get("format", ""), _TYPES.get(kind, "value"))
    return words + (_bounds(schema) if kind in ("integer", "number") else "")


def _bounds(schema: Mapping[str, Any]) -> str:
    least, above, most = (schema.get(name) for name in ("minimum", "exclusiveMinimum", "maximum"))
    if least is not None and most is not None:
        return f", {_number(least)} to {_number(most)}"
    words = [f"from {_number(least)}"] if least is not None else []
    words += [f"above {_number(above)}"] if above is not None else []
    words += [f"up to {_number(most)}"] if most is not None else []
    return f", {', '.join(words)}" if words else ""


def _number(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:,g}"
