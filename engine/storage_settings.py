"""Settings of where thumbnails lie: in the data folder, or in an object store that speaks S3."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, SecretStr, model_validator

from engine.errors import SettingsError
from engine.loopback import is_loopback
from engine.settings_fields import PathSetting, SettingsGroup

__all__ = ["StorageSettings", "refuse_storage_keys"]

_PLACE = re.compile(r"s3://([a-z0-9][a-z0-9.-]{1,61}[a-z0-9])/([\w.-]+(?:/[\w.-]+)*)/?", re.ASCII)
_KEYS = ("access_key", "secret_key")


def _place(written: str) -> str:
    """Checks a bucket with the beginning of the names in it.

    Raises:
        ValueError: it is none. Without a beginning, all of the bucket would be taken for ours.
    """
    match = _PLACE.fullmatch(written)
    if match is None or {".", ".."} & set(match[2].split("/")):
        raise ValueError(
            f"{written[:200]!r} names no bucket and a folder in it; write it as in "
            "s3://hospital/precedent"
        )
    return written.rstrip("/")


def _endpoint(written: str) -> str:
    """Checks the address of an object store.

    Raises:
        ValueError: it is none, or has more than an address.
    """
    try:
        parts = urlsplit(written)
        host, _ = parts.hostname, parts.port
    except ValueError:
        host, parts = None, urlsplit("")
    more = parts.username is not None or parts.query or parts.fragment
    if not host or more or parts.scheme not in ("http", "https"):
        raise ValueError(
            "it is no address of an object store; write it as in https://s3.example:9000, and keys "
            "in fields of their own"
        )
    return written.rstrip("/")


class StorageSettings(SettingsGroup):
    """Where thumbnails lie, if not in the data folder: in an object store that speaks S3, which
    several machines share."""

    thumbnails: Annotated[str, AfterValidator(_place)] | None = None
    """Bucket and folder for them, as in "s3://hospital/precedent", which is this archive's alone;
    None = the data folder."""
    endpoint: Annotated[str, AfterValidator(_endpoint)] | None = None
    """Address of the object store, as in "https://s3.example:9000" or
    "https://s3.eu-central-1.amazonaws.com". No other host is asked."""
    region: Annotated[str, Field(pattern=r"^[a-z0-9-]{1,64}$")] = "us-east-1"
    """The region that requests are signed for."""
    access_key: SecretStr | None = None
    """The name of the key, from the environment or a file alone …"""
    secret_key: SecretStr | None = None
    """… and the key itself, likewise."""
    ca_file: PathSetting | None = None
    """Certificates to trust instead of the usual ones."""
    plain_http: bool = False
    """Allow an endpoint without TLS on another machine than this one."""
    timeout_seconds: Annotated[float, Field(gt=0)] = 10.0
    """For how long one answer is waited for."""
    attempts: Annotated[int, Field(ge=1, le=20)] = 5
    """How often one request is sent at most, when the object store is busy or unreachable; to show
    a thumbnail twice at most."""
    connections: Annotated[int, Field(ge=1, le=64)] = 8
    """How many requests of one process that writes or deletes are under way at once."""

    @model_validator(mode="after")
    def _fits(self) -> "StorageSettings":
        if self.thumbnails is None:
            if self.endpoint is not None:
                raise ValueError(
                    "storage.endpoint is of no use without storage.thumbnails; give that too"
                )
            return self
        if self.endpoint is None:
            raise ValueError(
                "storage.thumbnails needs storage.endpoint, the address of the object store"
            )
        parts = urlsplit(self.endpoint)
        local = is_loopback(parts.hostname or "")
        if parts.scheme == "http" and not local and not self.plain_http:
            raise ValueError(
                "storage.endpoint is without TLS, so that thumbnails could be read on the way; "
                "write https, or set storage.plain_http where the network itself is trusted"
            )
        for name in _KEYS:
            if getattr(self, name) is None:
                variable = f"PRECEDENT_STORAGE__{name.upper()}"
                raise ValueError(
                    f"storage.thumbnails needs a key; give it in {variable}, or in a file that "
                    f"{variable}_FILE names"
                )
        return self

    @property
    def bucket(self) -> str:
        """Of ``thumbnails``; "" = there is none."""
        return (self.thumbnails or "").removeprefix("s3://").partition("/")[0]

    @property
    def folder(self) -> str:
        """What all names in the bucket begin with, with a slash at its end."""
        return (self.thumbnails or "").removeprefix("s3://").partition("/")[2] + "/"


def refuse_storage_keys(written: Mapping[str, Any], file: Path | None) -> None:
    """Refuses keys of the object store in the settings file, which is copied and mailed.

    Raises:
        SettingsError: there is one.
    """
    storage = written.get("storage")
    for name in _KEYS:
        if isinstance(storage, dict) and name in storage:
            variable = f"PRECEDENT_STORAGE__{name.upper()}"
            raise SettingsError(
                f"storage.{name} does not belong into {file}; put it into {variable}, or into a "
                f"file of its own that {variable}_FILE names"
            )
