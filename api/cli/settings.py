"""``precedent settings``: what is in force, from where, and what it means."""

import shutil
import textwrap
from typing import Annotated, Any

import typer

from api.cli.options import DataDirOption, JsonOption, ModelOption, write_json
from engine.environment import nearest
from engine.errors import QueryError
from engine.settings import load_settings

__all__ = ["settings"]

_WIDEST = 100


def settings(
    names: Annotated[
        list[str] | None,
        typer.Argument(help="Settings or groups, as in search or store.url; all if left out."),
    ] = None,
    changed: Annotated[
        bool, typer.Option("--changed", help="Only those that are not as they come.")
    ] = False,
    data_dir: DataDirOption = None,
    model: ModelOption = None,
    as_json: JsonOption = False,
) -> None:
    """What is in force, from where, and what it means.

    Passwords, keys and tokens are never shown, only whether there is one.
    """
    # Imported here: they read the source of all settings.
    from engine.settings_described import variable_of
    from engine.settings_origin import in_force

    given = {"data_dir": data_dir, "model": model}
    arguments = [name for name, value in given.items() if value is not None]
    found = in_force(load_settings(**given), arguments)
    for name in names or ():
        if not any(_is_of(one.name, name) for one in found):
            _refuse(name, {one.name for one in found})
    shown = [
        one
        for one in found
        if (not names or any(_is_of(one.name, name) for name in names))
        and not (changed and one.origin == "default")
    ]
    if as_json:
        write_json(
            {
                "settings": [
                    {
                        "name": one.name,
                        "variable": variable_of(one.name),
                        "value": one.value,
                        "set": one.is_set,
                        "secret": one.setting.is_secret,
                        "from": one.origin,
                        "place": one.place,
                        "meaning": one.setting.meaning,
                    }
                    for one in shown
                ]
            }
        )
        return
    width = min(_WIDEST, shutil.get_terminal_size().columns)
    for one in shown:
        value = "(set, not shown)" if one.setting.is_secret and one.is_set else _value(one.value)
        origin = " ".join(filter(None, (one.origin, one.place)))
        typer.echo(f"{one.name} = {value}    [{origin}]")
        for line in textwrap.wrap(one.setting.meaning, width - 4):
            typer.echo(f"    {line}")


def _is_of(name: str, asked: str) -> bool:
    return name == asked or name.startswith(f"{asked}.")


def _refuse(name: str, known: set[str]) -> None:
    """Raises QueryError: there is no setting, and no group, of this name."""
    meant = nearest(name, known | {one.partition(".")[0] for one in known})
    hint = f" (is {meant} meant?)" if meant else ""
    raise QueryError(
        f"there is no setting {name!r} in force{hint}; `precedent settings` lists all of them"
    )


def _value(value: Any) -> str:
    from engine.settings_described import written

    return "(not set)" if value is None else written(value)
