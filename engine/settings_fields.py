"""What groups of settings share: how they are checked, and fields that several of them have."""

from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict

from engine.tenants import is_tenant

__all__ = ["PathSetting", "SettingsGroup", "TenantSetting"]


class SettingsGroup(BaseModel):
    """Settings under one name. They do not change, and a name that is not among them is refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


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
