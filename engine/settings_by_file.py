"""Secrets by file: ``PRECEDENT_…_FILE`` names a file that has the value of ``PRECEDENT_…``.

So passwords lie where an orchestrator puts them, as below /run/secrets, and in no environment that
whoever may look at a container can read.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import get_args, get_origin

from pydantic import BaseModel, SecretStr

from engine.errors import SettingsError
from engine.settings_fields import models_in

__all__ = ["with_files"]

_PREFIX, _SUFFIX = "precedent_", "_file"


def with_files(
    variables: Mapping[str, str | None], settings: type[BaseModel]
) -> Mapping[str, str | None]:
    """The variables, those of secrets that a file has with what it has.

    Args:
        variables: by name, in lower case.
        settings: the class of all settings. One that is called so itself, as
            oidc.client_secret_file, is left as it is.

    Raises:
        SettingsError: a file cannot be read or is empty, or the secret is given twice.
    """
    named = [
        name
        for name in variables
        if name.startswith(_PREFIX)
        and name.endswith(_SUFFIX)
        and _is_secret(settings, name.removeprefix(_PREFIX).removesuffix(_SUFFIX).split("__"))
    ]
    if not named:
        return variables
    found = {name: value for name, value in variables.items() if name not in named}
    for name in named:
        secret = name.removesuffix(_SUFFIX)
        if found.get(secret):
            raise SettingsError(
                f"{secret.upper()} and {name.upper()} are both set; keep one of them"
            )
        found[secret] = _read(name.upper(), variables[name] or "")
    return found


def _read(variable: str, written: str) -> str:
    """What the file has, without the line end. Raises SettingsError: nothing."""
    path = Path(written)
    try:
        found = path.read_text("utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is no text"
        raise SettingsError(
            f"{variable} names {written!r}, which cannot be read ({why}); correct the path, or let "
            "the user of this process read it"
        ) from None
    if not found:
        raise SettingsError(
            f"{variable} names {written!r}, which is empty; write the secret into it, alone"
        )
    return found


def _is_secret(model: type[BaseModel], path: list[str]) -> bool:
    """Whether the setting is a secret, and no setting has this name with _file at its end."""
    name, *rest = path
    field = model.model_fields.get(name)
    if field is None:
        return False
    if rest:
        inner, entries = models_in(field.annotation), get_origin(field.annotation) is dict
        rest = rest[1:] if entries else rest
        return bool(rest) and any(_is_secret(one, rest) for one in inner)
    kinds = (field.annotation, *get_args(field.annotation))
    return SecretStr in kinds and f"{name}{_SUFFIX}" not in model.model_fields
