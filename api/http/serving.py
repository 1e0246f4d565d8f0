"""The archive that the service answers from; another index is picked up while the service runs."""

import logging
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Self

from api.http.deps import Readers
from engine.errors import ModelError, PrecedentError, StoreNotFound
from engine.settings import Settings
from engine.store.base import Filter
from engine.store.opening import open_store
from indexer.archive import Archive
from indexer.datadir.disk_space import check_room
from indexer.datadir.layout import DataDir

__all__ = ["Serving"]

_log = logging.getLogger(__name__)

_CHECK_SECONDS = 2.0


@dataclass(slots=True, eq=False)
class _OpenArchive:
    """An open archive and its readers.

    opened: closes the readers, and the archive unless it was given. requests: how many are being
    answered from it.
    """

    archive: Archive
    readers: Readers
    opened: ExitStack = field(default_factory=ExitStack)
    requests: int = 0


class Serving:
    """Gives each request the archive to answer from. Close it, or use it as a context manager.

    A thread checks every two seconds which index is in force. As long as there is none, requests
    are refused. When another index comes into force, new requests get that one; requests that have
    begun keep theirs, which the thread closes after the last of them.

    Args:
        settings: of the archive to open.
        given: an open archive to use instead; it is neither replaced nor closed.

    Raises:
        ModelError, StoreError, LedgerError: the archive cannot be opened. That there is no index
            yet is no error.
    """

    def __init__(self, settings: Settings, given: Archive | None = None) -> None:
        self._settings = settings
        self._lock = threading.Lock()
        self._opening = threading.Lock()
        self._stopped = threading.Event()
        self._current: _OpenArchive | None = None
        self._replaced: list[_OpenArchive] = []
        if given is not None:
            self._current = self._with_readers(given)
        else:
            try:
                self._current = self._open(settings)
            except StoreNotFound as error:
                _log.warning("nothing can be searched yet: %s", error)
        self._watcher: threading.Thread | None = None
        if given is None:
            self._watcher = threading.Thread(target=self._watch, name="serving", daemon=True)
            self._watcher.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._stopped.set()
        if self._watcher is not None:
            self._watcher.join()
        for one in (*self._replaced, self._current):
            if one is not None:
                one.opened.close()

    @contextmanager
    def request(self) -> Iterator[tuple[Archive, Readers]]:
        """Archive and readers for one request. Raises StoreNotFound while there is no index."""
        with self._lock:
            mine = self._current
            if mine is None:
                raise StoreNotFound("there is no index yet; make one with `precedent index PATH…`")
            mine.requests += 1
        try:
            yield mine.archive, mine.readers
        finally:
            with self._lock:
                mine.requests -= 1

    def check_model(self) -> None:
        """Checks that a model is open. Raises ModelError."""
        with self._lock:
            if self._current is None:
                raise ModelError("no model is open yet: it is opened with the index")

    def check_store(self) -> None:
        """Checks that the index answers. Raises StoreError."""
        with self.request() as (archive, _):
            archive.store.count(Filter(), exact=False)

    @contextmanager
    def writing(self) -> Iterator[Archive]:
        """The archive to write into for the block; its index is made if there is none.

        Raises:
            DiskFull: the data folder has no room for more.
            ModelError, StoreError, LedgerError: the archive cannot be opened.
        """
        check_room(self._settings.data_dir, self._settings.indexing.min_free_bytes)
        with self._opening:
            if self._current is None:
                Archive(self._settings, create=True).close()
                self._replace(self._settings)
        with self.request() as (archive, _):
            yield archive

    def _with_readers(self, archive: Archive) -> _OpenArchive:
        server, readers = self._settings.server, self._settings.indexing.readers
        found = _OpenArchive(archive, Readers(archive, readers, server.max_upload_bytes))
        found.opened.enter_context(found.readers)
        return found

    def _open(self, settings: Settings) -> _OpenArchive:
        with ExitStack() as opened:
            found = self._with_readers(opened.enter_context(Archive(settings)))
            # In this order the readers are closed before the archive.
            opened.push(found.opened.pop_all())
            found.opened = opened.pop_all()
            if other := found.archive.ledger.count_rendered_otherwise():
                _log.warning(
                    "%d instances were rendered by another version of Precedent, or with other "
                    "settings; `precedent index PATH… --again` renews their pictures",
                    other,
                )
            return found

    def _watch(self) -> None:
        said = ""
        while not self._stopped.wait(_CHECK_SECONDS):
            self._close_replaced()
            failed = "the index in force cannot be opened"
            try:
                if self._current is None:
                    with self._opening:
                        self._open_first()
                elif self._current.archive.is_replaced:
                    # The data folder names the model of the index in force, not the settings.
                    self._replace(self._settings.model_copy(update={"model": None}))
                else:
                    # Of another process, which was killed: nothing of it may be found any more.
                    failed = "a deletion that was cut short cannot be finished yet"
                    with self.request() as (archive, _):
                        archive.finish_deletions()
                said = ""
            except StoreNotFound:
                continue
            except PrecedentError as error:
                if str(error) != said:
                    _log.error("%s: %s", failed, error)
                said = str(error)

    def _open_first(self) -> None:
        """Opens the first index, once it exists. Raises StoreNotFound if it does not yet."""
        if self._current is not None:
            return
        # Checked on the store alone, because opening an archive loads the model first.
        open_store(
            self._settings, DataDir(self._settings.data_dir).index, None, create=False
        ).close()
        self._replace(self._settings)

    def _replace(self, settings: Settings) -> None:
        new = self._open(settings)
        with self._lock:
            if self._current is not None:
                self._replaced.append(self._current)
            self._current = new
        self._close_replaced()
        _log.warning("another index is in force: model %s", new.archive.manifest.fingerprint)

    def _close_replaced(self) -> None:
        """Closes the archives that another one has replaced and no request is answered from."""
        with self._lock:
            over = [one for one in self._replaced if one.requests == 0]
            self._replaced = [one for one in self._replaced if one.requests > 0]
        for one in over:
            one.opened.close()
