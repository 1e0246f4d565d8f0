"""What groups of settings share: how they are checked, and fields that several of them have."""

from collections.abc import Iterator
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import AfterValidator, BaseModel, ConfigDict

from engine.tenants import is_tenant

__all__ = ["PathSetting", "SettingsGroup", "TenantSetting", "models_in"]


class SettingsGroup(BaseModel):
    """Settings under one name. They do not change, and a name that is not among them is refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


def models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    """The classes of groups that the annotation of a field stands for, of entries by name too; none
    where it is of a value."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is dict:
        yield from models_in(inner[1])
    elif origin is Annotated:
        yield from models_in(inner[0])
    elif origin in (Union, UnionType):
        for one in inner:
            yield from models_in(one)


def _home(path: Path) -> Path:
    """The path with a leading "~" expanded, as a shell would.

    Raises:
        ValueError: nobody knows whose home that is.
    """
    try:
        return path.expanduser()
    except RuntimeError:
        raise ValueError("the home folder that ~ stands for is not known") from None


def _tenant(written: str) -> str:
    """Checks the name of a tenant.

    Raises:
        ValueError: none may be named so.
    """
    if not is_tenant(written):
        raise ValueError(f"{written[:80]!r} is no tenant; write it as in north or ward-3")
    return written


PathSetting = Annotated[Path, AfterValidator(_home)]
TenantSetting = Annotated[str, AfterValidator(_tenant)]
