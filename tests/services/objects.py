"""An object store for tests: moto's server, which speaks S3 and checks who asks if it is told to.

with ObjectServer() as objects:
    objects.make_bucket("hospital")
    ...  # objects.settings("s3://hospital/precedent") is what `storage` takes
"""

import json
import secrets
import socket
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
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

    def key_that_may(self, *actions: str) -> dict[str, str]:
        """A key of somebody who may do this, as in "s3:GetObject", and nothing else; it counts
        while :meth:`checking_keys`."""
        name = secrets.token_hex(4)
        statement = {"Effect": "Allow", "Action": list(actions), "Resource": "*"}
        policy = json.dumps({"Version": "2012-10-17", "Statement": [statement]})
        with self.client("iam") as client:
            client.create_user(UserName=name)
            client.put_user_policy(UserName=name, PolicyName="only", PolicyDocument=policy)
            made = client.create_access_key(UserName=name)["AccessKey"]
        return {"access_key": made["AccessKeyId"], "secret_key": made["SecretAccessKey"]}

    @contextmanager
    def checking_keys(self) -> Iterator[None]:
        """Keys that the server does not know are refused, and others may do what they may."""
        self._check_after("0")
        try:
            yield
        finally:
            self._check_after("inf")

    def _check_after(self, requests: str) -> None:
        with httpx.Client(trust_env=False) as client:
            client.post(f"{self.url}/moto-api/reset-auth", content=requests).raise_for_status()

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
