"""Answers with pictures, which only the caller's own browser may keep; and their renderers."""

import hashlib
import queue
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from fastapi import HTTPException, Response

from engine.settings import Settings
from indexer.pipeline.previews import PreviewReader

__all__ = ["PICTURE", "Previews", "etag_of", "picture", "unchanged"]

PICTURE: dict[int | str, dict[str, Any]] = {
    200: {"content": {"image/jpeg": {"schema": {"type": "string", "format": "binary"}}}},
    304: {"description": "The picture with this ETag is still the right one."},
}
"""The ``responses`` of a route that answers with a picture."""
_BUSY_SECONDS = 15.0


def etag_of(*parts: object) -> str:
    """An ETag of what decides about a picture.

    It is compared only after the image was found among the caller's own, so that it tells nothing
    of others'.
    """
    written = "\0".join(map(str, parts)).encode()
    return f'"{hashlib.sha256(written).hexdigest()[:32]}"'


def unchanged(etag: str, if_none_match: str) -> bool:
    """Whether the caller has the picture of this ETag already (RFC 9110, 13.1.2)."""
    known = {tag.strip().removeprefix("W/") for tag in if_none_match.split(",")}
    return etag in known or "*" in known


def picture(etag: str, jpeg: bytes | None) -> Response:
    """The answer with a JPEG; None = 304, the caller has it."""
    # Only the browser may cache it, and must ask each time whether it is still valid.
    headers = {"ETag": etag, "Cache-Control": "private, no-cache"}
    if jpeg is None:
        return Response(status_code=304, headers=headers)
    return Response(jpeg, media_type="image/jpeg", headers=headers)


class Previews:
    """Renderers of previews, started when they are first needed. Close it at the end."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._free = threading.BoundedSemaphore(settings.indexing.readers)
        self._idle: queue.LifoQueue[PreviewReader] = queue.LifoQueue()

    def close(self) -> None:
        with suppress(queue.Empty):
            while True:
                self._idle.get_nowait().close()

    @contextmanager
    def reader(self) -> Iterator[PreviewReader]:
        """A renderer for one picture.

        Raises:
            HTTPException: 503, none became free within 15 seconds.
        """
        if not self._free.acquire(timeout=_BUSY_SECONDS):
            raise HTTPException(
                503, "too many pictures are being made; try again shortly", {"Retry-After": "5"}
            )
        try:
            try:
                reader = self._idle.get_nowait()
            except queue.Empty:
                reader = PreviewReader(self._settings)
            try:
                yield reader
            finally:
                self._idle.put(reader)
        finally:
            self._free.release()
