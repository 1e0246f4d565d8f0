"""Entries that settings have by name, as sources: what is said of one that is there in part."""

from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel

from engine.settings_fields import models_in

__all__ = ["setting_at", "without_a_kind"]


def without_a_kind(
    group: str,
    name: str,
    settings: type[BaseModel],
    variables: Iterable[str],
    written: Mapping[str, Any],
    file: Path | str,
) -> str:
    """What is wrong with an entry of which no kind is known, and the way out.

    Args:
        group: as "sources". name: of the entry. settings: the class of all settings.
        variables: names in the environment. written: what the file has. file: its path.
    """
    kinds = " or ".join(f'"{kind}"' for kind in _kinds(settings, group))
    prefix = f"PRECEDENT_{group}__{name}__".upper()
    given = ", ".join(sorted(one for one in variables if one.upper().startswith(prefix)))
    entries = written.get(group, {})
    there: Collection[str] = entries if isinstance(entries, dict) else ()
    if name in there or not given:
        return f"{group}.{name} has no kind; give it kind = {kinds} in {file}"
    meant = next((one for one in there if one.lower() == name), None)
    if meant is not None:
        return (
            f"{given} cannot reach [{group}.{meant}] of {file}: variables stand for names in lower "
            f"case; call it [{group}.{name}] there"
        )
    return (
        f"{given} is set, and there is no [{group}.{name}]; add it to {file} with kind = {kinds}, "
        "or unset the variable"
    )


def setting_at(place: tuple[int | str, ...], settings: type[BaseModel]) -> str:
    """The name of the setting at a place of pydantic's, which names the kinds of entries too."""
    parts = [str(one) for one in place]
    if len(parts) > 2 and parts[2] in _kinds(settings, parts[0]):
        del parts[2]
    return ".".join(parts)


def _kinds(settings: type[BaseModel], group: str) -> list[str]:
    """The kinds of entries of a group, where there are several."""
    field = settings.model_fields.get(group)
    models = [] if field is None else list(models_in(field.annotation))
    return [
        str(get_args(model.model_fields["kind"].annotation)[0]) for model in models if models[1:]
    ]
