"""The one indexer of what is handed in, which tenants use in turns."""

import threading
from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from indexer.archive import Archive
from indexer.pipeline.indexing import Indexer

__all__ = ["IndexerInTurns"]


class IndexerInTurns:
    """An indexer that is kept from one round to the next, because its reading processes take
    seconds to start, and that all tenants share, because each set of them takes memory. Close it
    after the last turn.

    Rounds come one at a time, in the order in which they were asked for: a tenant who hands in much
    waits after each of its rounds until those of the others are done.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._waiting: deque[object] = deque()
        self._opened = ExitStack()
        self._made: tuple[Archive, Indexer] | None = None

    @contextmanager
    def turn(self, whole: Archive, tenant: str) -> Iterator[tuple[Archive, Indexer]]:
        """The archive as the tenant sees it, and an indexer into it, for the block.

        Args:
            whole: the archive that is open now; another one than before gets another indexer.
        """
        mine = object()
        with self._changed:
            self._waiting.append(mine)
            self._changed.wait_for(lambda: self._waiting[0] is mine)
        try:
            if self._made is None or self._made[0] is not whole:
                self.close()
                self._made = whole, self._opened.enter_context(whole.indexer())
            archive = whole.of(tenant)
            yield archive, self._made[1].over(archive.ledger)
        finally:
            with self._changed:
                self._waiting.popleft()
                self._changed.notify_all()

    def close(self) -> None:
        """Ends the reading processes."""
        self._made = None
        self._opened.close()
