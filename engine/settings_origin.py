"""Which settings are in force, and where each of them was set. Secrets are not told."""

import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel
from pydantic_settings import TomlConfigSettingsSource

from engine.settings import Settings, config_file
from engine.settings_described import NAME, Described, Group, groups, variable_of

__all__ = ["InForce", "in_force"]

Origin = Literal["default", "file", "environment", "argument", "other settings"]
_USER = re.compile(r"(?<=://)[^/@\s]+(?=@)")
_SECRET_PARAMETER = re.compile(r"(?i)(?<=[?&])([\w-]*(?:key|token|secret|password|sig)\w*)=[^&\s]+")


@dataclass(frozen=True, slots=True)
class InForce:
    """A setting that is in force.

    setting: what it is; its name is here that of the entry, as in "sources.pacs.url". value: as
    JSON; None = it is not set, or a secret. is_set: whether it has a value.
    origin: what set it; "other settings" = it follows from them. place: the file or variable.
    """

    setting: Described
    name: str
    value: Any
    is_set: bool
    origin: Origin
    place: str = ""


def in_force(
    settings: Settings,
    arguments: Iterable[str] = (),
    variables: Mapping[str, str] | None = None,
) -> list[InForce]:
    """All settings in force, in the order of :func:`groups`.

    Args:
        settings: as ``load_settings`` gave them. arguments: names that were given to it.
        variables: the environment; None = that of this process.
    """
    sources = _Sources(set(arguments), os.environ if variables is None else variables)
    found: list[InForce] = []
    for group in groups():
        for place, values in _values(settings, group):
            shown = values.model_dump(mode="json")
            found += [_of(setting, place, values, shown, sources) for setting in group.settings]
    return found


def _values(settings: Settings, group: Group) -> Iterator[tuple[str, BaseModel]]:
    """What is in force of a group, with its name: of entries all of this kind."""
    if not group.name:
        yield "", settings
        return
    name, _, entry = group.name.partition(".")
    found = getattr(settings, name)
    if entry != NAME:
        yield name, found
        return
    for one, values in found.items():
        if isinstance(values, group.model):
            yield f"{name}.{one}", values


def _of(
    setting: Described, place: str, values: BaseModel, shown: Mapping[str, Any], sources: "_Sources"
) -> InForce:
    field = setting.name.rpartition(".")[2]
    name = f"{place}.{field}".lstrip(".")
    value = getattr(values, field)
    origin, where = sources.of(name)
    if origin == "default" and value != _default(values, field):
        origin = "other settings"
    told = None if setting.is_secret else _without_secrets(shown[field])
    return InForce(setting, name, told, value is not None, origin, where)


def _default(values: BaseModel, field: str) -> Any:
    found = type(values).model_fields[field]
    return None if found.is_required() else found.get_default(call_default_factory=True)


def _without_secrets(value: Any) -> Any:
    """A JSON value without the users and passwords that addresses may hold."""
    if isinstance(value, str):
        return _SECRET_PARAMETER.sub(r"\1=…", _USER.sub("…", value))
    if isinstance(value, list):
        return [_without_secrets(one) for one in value]
    if isinstance(value, dict):
        return {name: _without_secrets(one) for name, one in value.items()}
    return value


class _Sources:
    """Where settings can be set: arguments, then variables, then the file."""

    def __init__(self, arguments: set[str], variables: Mapping[str, str]) -> None:
        self._arguments = arguments
        self._variables = {
            name.upper(): (name, value)
            for name, value in variables.items()
            if name.upper().startswith("PRECEDENT_")
        }
        self._file = config_file()
        self._in_file: Mapping[str, Any] = (
            {} if self._file is None else TomlConfigSettingsSource(Settings, self._file).toml_data
        )

    def of(self, name: str) -> tuple[Origin, str]:
        """What set the setting of this name, and the file or variable."""
        if name in self._arguments:
            return "argument", ""
        if (variable := self._variable(name)) is not None:
            return "environment", variable
        if _has(self._in_file, name.split(".")):
            return "file", str(self._file)
        return "default", ""

    def _variable(self, name: str) -> str | None:
        own = variable_of(name)
        for other in (own, f"{own}_FILE"):
            if other in self._variables:
                return self._variables[other][0]
        # A value of a table, as in PRECEDENT_OIDC__SCOPES__SEARCH.
        for other in sorted(self._variables):
            if other.startswith(f"{own}__"):
                return self._variables[other][0]
        # A whole table as JSON.
        parts = name.split(".")
        for count in range(len(parts) - 1, 0, -1):
            table = self._variables.get(variable_of(".".join(parts[:count])))
            if table is not None and _has(_parsed(table[1]), parts[count:]):
                return table[0]
        return None


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return None


def _has(table: Any, path: list[str]) -> bool:
    for part in path:
        if not isinstance(table, Mapping) or part not in table:
            return False
        table = table[part]
    return True
