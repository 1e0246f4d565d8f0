"""An object store for tests: moto's server, which speaks S3 and checks who asks if it is told to.

with ObjectServer() as objects:
    objects.make_bucket("hospital")
    ...  # objects.settings("s3://hospital/precedent") is what `storage` takes
"""

import secrets
import socket
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from botocore.config import Config
from botocore.session import Session

from engine.storage_settings import StorageSettings
from services.server import HOST, Server

__all__ = ["ObjectServer"]


class ObjectServer(Server):
    """A server that keeps what it has in memory: a stop or kill loses it."""

    name = "moto"

    def __init__(self) -> None:
        super().__init__()
        self.access_key, self.secret_key = secrets.token_hex(10), secrets.token_hex(20)

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.port}"

    def settings(self, place: str, **others: Any) -> StorageSettings:
        """Settings that put thumbnails here, quick to give up."""
        return StorageSettings(
            **{
                "thumbnails": place,
                "endpoint": self.url,
                "access_key": self.access_key,
                "secret_key": self.secret_key,
                "timeout_seconds": 5.0,
                "attempts": 2,
                **others,
            }
        )

    def environment(self, place: str) -> dict[str, str]:
        """The same as variables."""
        return {
            "PRECEDENT_STORAGE__THUMBNAILS": place,
            "PRECEDENT_STORAGE__ENDPOINT": self.url,
            "PRECEDENT_STORAGE__ACCESS_KEY": self.access_key,
            "PRECEDENT_STORAGE__SECRET_KEY": self.secret_key,
        }

    def make_bucket(self, name: str, *, versions: bool = False) -> None:
        with self.client() as client:
            client.create_bucket(Bucket=name)
            if versions:
                client.put_bucket_versioning(
                    Bucket=name, VersioningConfiguration={"Status": "Enabled"}
                )

    def client(self, service: str = "s3") -> Any:
        """A client that may do everything; a context manager."""
        return _Client(
            Session().create_client(
                service,
                region_name="us-east-1",
                endpoint_url=self.url,
                aws_access_key_id=self.access_key,
                aws_secret_access_key=self.secret_key,
                config=Config(s3={"addressing_style": "path"}, proxies={}),
            )
        )

    def keys(self, bucket: str) -> set[str]:
        """The names of all objects in a bucket."""
        with self.client() as client:
            pages = client.get_paginator("list_objects_v2").paginate(Bucket=bucket)
            return {one["Key"] for page in pages for one in page.get("Contents", ())}

    def versions(self, bucket: str) -> list[str]:
        """The names of all versions and of all marks of deletions in a bucket."""
        with self.client() as client:
            pages = client.get_paginator("list_object_versions").paginate(Bucket=bucket)
            return [
                one["Key"]
                for page in pages
                for kind in ("Versions", "DeleteMarkers")
                for one in page.get(kind, ())
            ]

    def _command(self) -> Sequence[str | Path]:
        return [sys.executable, "-m", "moto.server", "-H", HOST, "-p", str(self.port)]

    def _environment(self) -> Mapping[str, str]:
        return {"PYTHONWARNINGS": "ignore"}

    def _answers(self) -> bool:
        with suppress(OSError), socket.create_connection((HOST, self.port), 2):
            return True
        return False


class _Client:
    def __init__(self, client: Any) -> None:
        self._client = client

    def __enter__(self) -> Any:
        return self._client

    def __exit__(self, *_: object) -> None:
        self._client.close()
