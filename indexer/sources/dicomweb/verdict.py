"""Tells an instance that cannot be had from a server that cannot be used.

The first is refused and the work goes on; with the second it ends, to be taken up again later.
A server that fails on one instance, over and over, must not hold up the others; a server that
is out of order must not leave behind an archive of refused instances.
"""

from threading import Lock

from engine.errors import ImageRefused, RefusalReason
from indexer.sources.dicomweb.failure import Failed
from indexer.sources.dicomweb.server import WebServer

__all__ = ["ACCEPT", "Verdict", "gone", "unreadable"]

ACCEPT = 'multipart/related; type="application/dicom"; transfer-syntax=*'
"""An instance in the transfer syntax in which it is stored."""
_UNPROVEN = 3
"""So many instances on which it fails, and none that it delivers: then it is the server."""
_PROBES = 2
_GONE = {404, 410}
_BUSY = {408, 429}
_REFUSED = {401, 403}
_OTHER_FORM = {406, 415}


class Verdict:
    """What threads that fetch from one server learn about it."""

    def __init__(self, server: WebServer) -> None:
        self._server = server
        self._lock = Lock()
        self._delivered: str | None = None
        self._works = False
        self._unproven = 0

    def delivered(self, url: str) -> None:
        """It gave out the instance at this URL."""
        with self._lock:
            self._delivered = url
            self._works = True
            self._unproven = 0

    def on(self, failed: Failed) -> ImageRefused:
        """Why there is nothing of an instance of which only this failure came.

        Raises:
            SourceError: it is not the instance's fault.
        """
        if failed.status in _REFUSED | _BUSY or failed.untrusted:
            raise self._server.error(failed)
        with self._lock:
            if failed.status in _GONE:
                # A gateway whose server is away says the same of everything.
                if not self._works:
                    self._ask()
                return gone()
            if failed.status in _OTHER_FORM:
                return unreadable(
                    f"the server does not send it as it is stored (HTTP {failed.status})"
                )
            if failed.passing or (failed.status or 0) >= 500:
                self._works = False
                self._prove_others_work(failed)
                return unreadable(
                    f"the server fails on it each time ({failed.words}), and not on others"
                )
        return unreadable(f"the server does not send it ({failed.words})")

    def _prove_others_work(self, failed: Failed) -> None:
        self._ask()
        if self._delivered is not None:
            try:
                self._server.ask(self._peek, attempts=_PROBES)
            except Failed as other:
                if other.status not in _GONE:
                    raise self._server.error(failed) from None
                self._delivered = None
            else:
                return
        self._unproven += 1
        if self._unproven >= _UNPROVEN:
            raise self._server.error(failed)

    def _ask(self) -> None:
        """A search that any server has an answer to."""
        try:
            self._server.search(self._server.client.search_for_studies, attempts=_PROBES, limit=1)
        except Failed as failed:
            raise self._server.error(failed) from None
        self._works = True

    def _peek(self) -> None:
        """The beginning of an instance that it once delivered."""
        with self._server.get(self._delivered or "", ACCEPT) as response:
            next(self._server.body(response), None)


def gone() -> ImageRefused:
    return unreadable("the server no longer has it")


def unreadable(detail: str) -> ImageRefused:
    return ImageRefused(RefusalReason.UNREADABLE, detail)
