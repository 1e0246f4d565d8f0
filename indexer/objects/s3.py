"""Objects in a bucket of a store that speaks S3."""

import hashlib
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from threading import Lock
from typing import Any

from engine.errors import StorageAway, StorageError
from engine.storage_settings import StorageSettings
from indexer.objects.base import Kept
from indexer.objects.s3_client import (
    StorageDenied,
    check_library,
    client_of,
    is_missing,
    saying,
)

__all__ = ["BucketObjects"]

_DIGEST = "sha256"
_READING_ATTEMPTS = 2
_AWAY_SECONDS = 5.0


class BucketObjects:
    """The objects of a bucket below a folder. Nothing is asked before it is used.

    With each object its SHA-256 is put, and checked when it is got; copies that others made have
    none. While the store does not answer, ``get`` fails at once for some seconds, so that who
    shows many thumbnails does not wait for each.

    Raises:
        SettingsError: what speaks S3 is not installed.
    """

    def __init__(
        self, settings: StorageSettings, clock: Callable[[], float] = time.monotonic
    ) -> None:
        check_library()
        self._settings = settings
        self._folder = settings.folder
        self._clock = clock
        self._opening = Lock()
        self._clients: dict[int, Any] = {}
        self._away: tuple[float, str] | None = None

    @property
    def place(self) -> str:
        return f"{self._settings.thumbnails} on {self._settings.endpoint}"

    def put(self, objects: Mapping[str, bytes]) -> None:
        def put_one(name: str) -> None:
            data = objects[name]
            self._ask(
                "put thumbnails",
                "put_object",
                Key=self._folder + name,
                Body=data,
                Metadata={_DIGEST: hashlib.sha256(data).hexdigest()},
            )

        self._each(put_one, objects)

    def get(self, name: str) -> bytes | None:
        if self._away is not None and self._clock() < self._away[0]:
            raise StorageAway(self._away[1])
        try:
            found = self._got(name)
        except StorageAway as error:
            self._away = (self._clock() + _AWAY_SECONDS, str(error))
            raise
        self._away = None
        if found is None:
            return None
        data, digest = found
        if digest is not None and digest != hashlib.sha256(data).hexdigest():
            raise StorageError(
                f"{name} in {self.place} is not what was put there; index its file again"
            )
        return data

    def _got(self, name: str) -> tuple[bytes, str | None] | None:
        with self._asking("read thumbnails", _READING_ATTEMPTS) as client:
            try:
                answer = client.get_object(Bucket=self._settings.bucket, Key=self._folder + name)
            except client.exceptions.ClientError as error:
                if is_missing(error):
                    return None
                raise
            with answer["Body"] as body:
                return body.read(), answer["Metadata"].get(_DIGEST)

    def existing(self, names: Collection[str]) -> set[str]:
        found: set[str] = set()

        def look(name: str) -> None:
            with self._asking("read thumbnails") as client:
                try:
                    client.head_object(Bucket=self._settings.bucket, Key=self._folder + name)
                except client.exceptions.ClientError as error:
                    if not is_missing(error):
                        raise
                else:
                    found.add(name)

        self._each(look, names)
        return found

    def delete(self, names: Collection[str]) -> None:
        # One by one: servers differ in the checksum that they want of a list.
        self._each(
            lambda name: self._ask("delete thumbnails", "delete_object", Key=self._folder + name),
            names,
        )

    def names(self) -> Iterator[str]:
        for page in self._pages("list_objects_v2"):
            for one in page.get("Contents", ()):
                yield one["Key"].removeprefix(self._folder)

    @property
    def keeps_versions(self) -> bool | None:
        """Whether the bucket keeps what is deleted or replaced; None = the key may not ask.

        Raises:
            StorageError: it cannot be told.
        """
        try:
            answer = self._ask("read the versioning", "get_bucket_versioning")
        except StorageDenied:
            return None
        # "Suspended" keeps those that were there before.
        return bool(answer.get("Status"))

    def purge(self, names: Collection[str]) -> Kept:  # noqa: ARG002 - all that was deleted
        try:
            if (keeps := self.keeps_versions) is False:
                return Kept()
            left, why = self._purged()
        except StorageAway:
            raise
        except StorageError as error:
            return Kept(None, str(error))
        if keeps is None and not left:
            return Kept(None, "the key may not ask whether the bucket keeps versions")
        return Kept(left, why)

    def _purged(self) -> tuple[int, str]:
        """Removes all versions of deleted objects; how many could not be, and why."""
        left, why = 0, ""
        latest = ""
        for page in self._pages("list_object_versions"):
            markers = page.get("DeleteMarkers", ())
            # Sorted by name, the newest first: that may have been the end of the page before.
            deleted = {one["Key"] for one in markers if one["IsLatest"]} | {latest}
            latest = max(deleted)
            for one in (*page.get("Versions", ()), *markers):
                if one["Key"] not in deleted:
                    continue
                try:
                    self._ask(
                        "delete versions",
                        "delete_object",
                        Key=one["Key"],
                        VersionId=one["VersionId"],
                    )
                except StorageAway:
                    raise
                except StorageError as error:
                    left, why = left + 1, str(error)
        return left, why

    def close(self) -> None:
        with self._opening:
            for client in self._clients.values():
                client.close()
            self._clients.clear()

    def _each(self, do: Callable[[str], object], names: Collection[str]) -> None:
        """Does it for all of these, some at once. The first error is raised when none is under way
        any more."""
        if len(names) <= 1:
            for name in names:
                do(name)
            return
        with ThreadPoolExecutor(min(self._settings.connections, len(names)), "objects") as pool:
            under_way = [pool.submit(do, name) for name in names]
            try:
                for one in under_way:
                    one.result()
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise

    def _pages(self, operation: str) -> Iterator[Any]:
        with self._asking("list what is") as client:
            pages = client.get_paginator(operation)
            yield from pages.paginate(Bucket=self._settings.bucket, Prefix=self._folder)

    def _ask(self, what: str, operation: str, **arguments: Any) -> Any:
        with self._asking(what) as client:
            return getattr(client, operation)(Bucket=self._settings.bucket, **arguments)

    @contextmanager
    def _asking(self, what: str, attempts: int | None = None) -> Iterator[Any]:
        attempts = attempts or self._settings.attempts
        with self._opening:
            if attempts not in self._clients:
                self._clients[attempts] = client_of(self._settings, attempts)
            client = self._clients[attempts]
        with saying(self._settings, what):
            yield client
