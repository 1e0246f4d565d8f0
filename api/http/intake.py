"""Takes instances in while the service runs, and indexes them as they come."""

import hashlib
import logging
import threading
from collections.abc import Collection, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO, Self

from fastapi import HTTPException

from api.http.serving import Serving
from engine.errors import ImageRefused, PrecedentError, RefusalReason, StoreError
from engine.settings import Settings
from indexer.archive import Archive
from indexer.datadir.layout import DataDir
from indexer.files.locators import file_locator
from indexer.ledger.outcomes import Outcome
from indexer.pipeline.indexing import Indexer
from indexer.sources.base import ImageSource
from indexer.sources.pushed.arrival import Answer
from indexer.sources.pushed.inbox import Inbox, index_in_rounds

__all__ = ["Intake"]

_log = logging.getLogger(__name__)

_AT_ONCE = 8
"""Requests that wait for their instance to be indexed; each takes a thread of the service."""
_WAIT_SECONDS = 60.0
_STOP_SECONDS = 10.0
"""How long open associations may continue when the service ends."""
_READ_BYTES = 1024**2


class Intake:
    """The folder of received instances, what fills it and what indexes it. Close it, or use it as a
    context manager.

    Args:
        serving: gives the archive to write into.
        scp: also take what a PACS pushes.

    Raises:
        StoreLocked: another process receives. SettingsError: nothing can be received.
        ModelError, StoreError, LedgerError: the archive cannot be opened.
    """

    def __init__(self, settings: Settings, serving: Serving, *, scp: bool) -> None:
        self._serving = serving
        self._stopped = threading.Event()
        self._room = threading.BoundedSemaphore(_AT_ONCE)
        self._round_ended = threading.Condition()
        self._indexers = ExitStack()
        self._indexes: tuple[Archive, Indexer] | None = None
        options = settings.receive
        folder = DataDir(settings.data_dir).received
        with ExitStack() as opened:
            self._inbox = opened.enter_context(
                Inbox(folder, options, settings.limits.max_file_bytes)
            )
            self._inbox.look_back(self._indexed)
            self._rounds = threading.Thread(
                target=self._index_rounds, args=(options.keep,), name="rounds", daemon=True
            )
            if scp:
                from indexer.sources.pushed.storescp import StoreScp

                receiver = StoreScp(options)
                port = receiver.start(self._inbox)
                opened.callback(receiver.stop, _STOP_SECONDS)
                _log.warning("%s takes C-STORE on %s:%d", receiver.ae_title, options.host, port)
            self._rounds.start()
            self._opened = opened.pop_all()

    def close(self) -> None:
        """Takes nothing more in, and ends after the instances that are being indexed; what waits is
        indexed after the next start."""
        self._stopped.set()
        self._inbox.close()
        with self._round_ended:
            self._round_ended.notify_all()
        self._rounds.join()
        self._opened.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def take(self, stream: BinaryIO) -> tuple[Outcome, bool]:
        """Takes one instance in and indexes it; returns what became of it, and whether it was in
        the index before, from the same content.

        Raises:
            ImageRefused: it cannot be indexed; nothing of it is kept.
            HTTPException: 503, it cannot be taken now; sent again it is.
        """
        if not self._room.acquire(blocking=False):
            raise _later("too many instances are being taken in")
        try:
            return self._taken(stream)
        finally:
            self._room.release()

    def _taken(self, stream: BinaryIO) -> tuple[Outcome, bool]:
        digest = hashlib.sha256()
        while data := stream.read(_READ_BYTES):
            digest.update(data)
        place = self._inbox.place_of(digest.hexdigest())
        locator = file_locator(place)
        try:
            if place.exists() and (known := self._outcome(locator)) is not None:
                return known, True
        except ImageRefused:
            # As a kill between the refusal and the removal leaves it.
            self._remove(place, locator)
        stream.seek(0)
        arrival = self._inbox.arrive_whole(digest.hexdigest())
        while data := stream.read(_READ_BYTES):
            arrival.write(data)
        match arrival.finish():
            case Answer.STORED:
                pass
            case Answer.TOO_LARGE:
                raise ImageRefused(
                    RefusalReason.TOO_LARGE, "it is larger than limits.max_file_bytes"
                )
            case answer:
                raise _later(answer.comment.partition(";")[0])
        # From here on it is on disk, and would be indexed after a kill too.
        try:
            self._inbox.hurry(place)
        except FileNotFoundError:
            raise _later("another request removed the same at this moment") from None
        found: Outcome | None = None

        def done() -> bool:
            nonlocal found
            found = self._outcome(locator)
            # Another request may have handed in the same, which was refused.
            return found is not None or self._stopped.is_set() or not place.exists()

        try:
            with self._round_ended:
                self._round_ended.wait_for(done, _WAIT_SECONDS)
        except ImageRefused:
            self._remove(place, locator)
            raise
        if found is None:
            raise _later("it is on disk, and will be indexed later")
        return found, False

    def _outcome(self, locator: str) -> Outcome | None:
        with self._serving.writing() as archive:
            return archive.outcome(locator)

    def _remove(self, place: Path, locator: str) -> None:
        place.unlink(missing_ok=True)
        with self._serving.writing() as archive:
            archive.ledger.forget([locator])

    def _indexed(self, locators: Sequence[str]) -> Collection[str]:
        with self._serving.writing() as archive:
            return archive.ledger.points_of(locators)

    def _index_rounds(self, keep: bool) -> None:
        try:
            index_in_rounds(
                self._inbox, self._index, self._indexed, keep=keep, stop=self._stopped.is_set
            )
        except PrecedentError as error:
            _log.error("%s", error)
        finally:
            self._indexers.close()

    def _index(self, source: ImageSource) -> None:
        try:
            with self._serving.writing() as archive:
                report = archive.index(
                    source, stop=self._stopped.is_set, indexer=self._indexer(archive)
                )
            if self._stopped.is_set():
                raise StoreError("the service ends")
            _log.info("%d received instances indexed", report.indexed)
        finally:
            with self._round_ended:
                self._round_ended.notify_all()

    def _indexer(self, archive: Archive) -> Indexer:
        """An indexer of this archive, kept from one round to the next: its reading processes take
        seconds to start."""
        if self._indexes is None or self._indexes[0] is not archive:
            self._indexers.close()
            self._indexes = archive, self._indexers.enter_context(archive.indexer())
        return self._indexes[1]


def _later(why: str) -> HTTPException:
    return HTTPException(503, f"{why}; send it again shortly", {"Retry-After": "5"})
