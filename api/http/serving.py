"""The archive that the service answers from: waited for, and exchanged while it runs."""

import logging
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Self

from api.http.deps import Readers
from engine.errors import PrecedentError, StoreNotFound
from engine.settings import Settings
from engine.store.opening import open_store
from indexer.archive import Archive
from indexer.datadir.layout import DataDir

__all__ = ["Serving"]

_log = logging.getLogger(__name__)

_LOOK_SECONDS = 2.0


@dataclass(slots=True, eq=False)
class _Open:
    """An archive in use. requests: that are being answered from it. retired: another one has
    taken its place."""

    archive: Archive
    readers: Readers
    opened: ExitStack = field(default_factory=ExitStack)
    requests: int = 0
    retired: bool = False


class Serving:
    """What requests are answered from. Close it, or use it as a context manager.

    Where nothing was indexed yet, requests are refused until there is an index. When another one
    comes into force, requests that begin are answered from that; those under way end with the one
    they began with.

    Args:
        settings: of the archive.
        given: an archive to answer from, which is neither exchanged nor closed.
    """

    def __init__(self, settings: Settings, given: Archive | None = None) -> None:
        self._settings = settings
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._now: _Open | None = None
        if given is not None:
            self._now = self._with_readers(given)
        else:
            try:
                self._now = self._opened(settings)
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
        if self._now is not None:
            self._now.opened.close()

    @contextmanager
    def request(self) -> Iterator[tuple[Archive, Readers]]:
        """What to answer one request from. Raises StoreNotFound while there is no index."""
        with self._lock:
            mine = self._now
            if mine is None:
                raise StoreNotFound("there is no index yet; make one with `precedent index PATH…`")
            mine.requests += 1
        try:
            yield mine.archive, mine.readers
        finally:
            with self._lock:
                mine.requests -= 1
                over = mine.retired and mine.requests == 0
            if over:
                mine.opened.close()

    def _with_readers(self, archive: Archive) -> _Open:
        server, readers = self._settings.server, self._settings.indexing.readers
        found = _Open(archive, Readers(archive, readers, server.max_upload_bytes))
        found.opened.enter_context(found.readers)
        return found

    def _opened(self, settings: Settings) -> _Open:
        with ExitStack() as opened:
            found = self._with_readers(opened.enter_context(Archive(settings)))
            # The readers, entered later, are closed first.
            opened.push(found.opened.pop_all())
            found.opened = opened.pop_all()
            return found

    def _watch(self) -> None:
        said = ""
        while not self._stopped.wait(_LOOK_SECONDS):
            try:
                if self._now is None:
                    self._await()
                elif self._now.archive.is_replaced:
                    # Its model came into force with it.
                    self._exchange(self._settings.model_copy(update={"model": None}))
                said = ""
            except StoreNotFound:
                continue
            except PrecedentError as error:
                if str(error) != said:
                    _log.error("the index in force cannot be opened: %s", error)
                said = str(error)

    def _await(self) -> None:
        """Opens the index that was made since. Raises StoreNotFound where there is none."""
        # To open an archive loads its model first.
        open_store(
            self._settings, DataDir(self._settings.data_dir).index, None, create=False
        ).close()
        self._exchange(self._settings)

    def _exchange(self, settings: Settings) -> None:
        new = self._opened(settings)
        over = False
        with self._lock:
            old, self._now = self._now, new
            if old is not None:
                old.retired = True
                over = old.requests == 0
        if old is not None and over:
            old.opened.close()
        _log.warning("another index is in force: model %s", new.archive.manifest.fingerprint)
