"""Takes a tenant's instances in while the service runs, and indexes them as they come."""

import hashlib
import logging
import threading
from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import cached_property
from pathlib import Path
from typing import BinaryIO

from fastapi import HTTPException

from api.http.dicomweb_store.instance import Terms
from api.http.serving import Serving
from api.http.shares import Shares
from api.http.turns import IndexerInTurns
from engine.errors import ImageRefused, PrecedentError, RefusalReason, StoreError
from engine.settings import Settings
from indexer.archive import Archive
from indexer.datadir.layout import DataDir
from indexer.files.locators import file_locator
from indexer.ledger.outcomes import Outcome
from indexer.sources.base import ImageSource
from indexer.sources.pushed.arrival import Answer
from indexer.sources.pushed.inbox import Inbox, index_in_rounds

__all__ = ["Intake"]

_log = logging.getLogger(__name__)

_ROUND = 1000
"""Most instances indexed in one round: for so long another tenant waits."""
_WAIT_SECONDS = 60.0
_STOP_SECONDS = 10.0
"""How long open associations may continue when the service ends."""
_READ_BYTES = 1024**2


class Intake:
    """The folder of what is received for one tenant, what fills it and what indexes it. Close it.

    Whose an instance is, the folder alone says, so that it is known after a kill as well.

    Args:
        serving: gives the archive to write into.
        tenant: whose the instances are.
        places: for requests that wait for their instance to be indexed; each takes a thread.
        indexer: indexes the instances of all tenants.
        scp: also take what a PACS pushes.

    Raises:
        StoreLocked: another process receives. SettingsError: nothing can be received.
        ModelError, StoreError, LedgerError: the archive cannot be opened.
    """

    def __init__(
        self,
        settings: Settings,
        serving: Serving,
        tenant: str,
        *,
        places: Shares,
        indexer: IndexerInTurns,
        scp: bool,
    ) -> None:
        self._serving = serving
        self._tenant = tenant
        self._places = places
        self._indexer = indexer
        self._stopped = threading.Event()
        self._round_ended = threading.Condition()
        options = settings.receive
        folder = DataDir(settings.data_dir).received_for(tenant)
        self._private_classes = options.sop_classes
        self._max_nesting = settings.limits.max_nesting
        with ExitStack() as opened:
            self._inbox = opened.enter_context(
                Inbox(folder, options, settings.limits.max_file_bytes, round_size=_ROUND)
            )
            self._inbox.look_back(self._indexed)
            self._rounds = threading.Thread(
                target=self._index_rounds, args=(options.keep,), name="rounds", daemon=True
            )
            if scp:
                from indexer.documents.outbox import commitment_nodes
                from indexer.sources.pushed.storescp import StoreScp

                receiver = StoreScp(options, commitment_nodes(settings))
                port = receiver.start(self._inbox)
                opened.callback(receiver.stop, _STOP_SECONDS)
                _log.warning("%s takes C-STORE on %s:%d", receiver.ae_title, options.host, port)
            self._rounds.start()
            self._opened = opened.pop_all()

    def stop(self) -> None:
        """Takes nothing more in; what waits is indexed after the next start."""
        self._stopped.set()
        self._inbox.close()
        with self._round_ended:
            self._round_ended.notify_all()

    def close(self) -> None:
        """Stops, and returns after the instances that are being indexed."""
        self.stop()
        self._rounds.join()
        self._opened.close()

    @property
    def waiting_bytes(self) -> int:
        """What was received and is not indexed yet."""
        return self._inbox.waiting_bytes

    def terms(self, study: str | None) -> Terms:
        """On which instances are taken that wait to be indexed, as a PACS's do.

        study: UID of the only one that they may be of; None = any.
        """
        sop_classes, syntaxes = self._accepted
        return Terms(self._inbox, study, sop_classes, syntaxes, self._max_nesting)

    @cached_property
    def _accepted(self) -> tuple[frozenset[str], frozenset[str]]:
        """The UIDs of SOP classes and transfer syntaxes: those that are taken by C-STORE."""
        from indexer.sources.pushed import sop_classes

        return (
            frozenset(sop_classes.accepted_sop_classes(self._private_classes)),
            frozenset(sop_classes.accepted_transfer_syntaxes()),
        )

    def take(self, stream: BinaryIO) -> tuple[Outcome, bool]:
        """Takes one instance in and indexes it; returns what became of it, and whether it was in
        the index before, from the same content.

        Raises:
            ImageRefused: it cannot be indexed; nothing of it is kept.
            HTTPException: 429, the tenant has too many under way; 503, it cannot be taken now; sent
                again it is.
        """
        with self._places.held(self._tenant):
            return self._taken(stream)

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
        with self._archive() as archive:
            return archive.outcome(locator)

    def _remove(self, place: Path, locator: str) -> None:
        place.unlink(missing_ok=True)
        with self._archive() as archive:
            archive.ledger.forget([locator])

    def _indexed(self, locators: Sequence[str]) -> Collection[str]:
        with self._archive() as archive:
            return archive.ledger.points_of(locators)

    @contextmanager
    def _archive(self) -> Iterator[Archive]:
        """The archive as the tenant sees it, to write into for the block."""
        with self._serving.writing() as whole:
            yield whole.of(self._tenant)

    def _index_rounds(self, keep: bool) -> None:
        try:
            index_in_rounds(
                self._inbox, self._index, self._indexed, keep=keep, stop=self._stopped.is_set
            )
        except PrecedentError as error:
            _log.error("%s", error)

    def _index(self, source: ImageSource) -> None:
        try:
            with (
                self._serving.writing() as whole,
                self._indexer.turn(whole, self._tenant) as (archive, indexer),
            ):
                report = archive.index(source, stop=self._stopped.is_set, indexer=indexer)
            if self._stopped.is_set():
                raise StoreError("the service ends")
            _log.info("%d received instances indexed", report.indexed)
        finally:
            with self._round_ended:
                self._round_ended.notify_all()


def _later(why: str) -> HTTPException:
    return HTTPException(503, f"{why}; send it again shortly", {"Retry-After": "5"})
