"""Decides whether a failure concerns one instance, which is refused, or the server as a whole.

A failure of the server raises SourceError: the work stops and continues later. A server that fails
on one instance again and again must not hold up the others; a server that is down must not cause
every instance of the archive to be refused.
"""

from threading import Lock

from engine.errors import ImageRefused, RefusalReason
from indexer.sources.dicomweb.failure import Failed
from indexer.sources.dicomweb.server import WebServer

__all__ = ["ACCEPT", "Verdict", "gone", "unreadable"]

ACCEPT = 'multipart/related; type="application/dicom"; transfer-syntax=*'
"""Accept header for an instance in the transfer syntax in which it is stored."""
_UNPROVEN = 3
"""After failures on this many instances, with none delivered, the server is considered down."""
_PROBES = 2
_GONE = {404, 410}
_BUSY = {408, 429}
_REFUSED = {401, 403}
_OTHER_FORM = {406, 415}


class Verdict:
    """What is known of one server's health, shared by the threads that retrieve from it."""

    def __init__(self, server: WebServer) -> None:
        self._server = server
        self._lock = Lock()
        self._delivered: str | None = None
        self._works = False
        self._unproven = 0

    def delivered(self, url: str) -> None:
        """Records that the server delivered the instance at this URL."""
        with self._lock:
            self._delivered = url
            self._works = True
            self._unproven = 0

    def on(self, failed: Failed) -> ImageRefused:
        """The refusal of an instance whose retrieval ended in this failure, after all attempts.

        Raises:
            SourceError: the server as a whole is at fault.
        """
        if failed.status in _REFUSED | _BUSY or failed.untrusted:
            raise self._server.error(failed)
        with self._lock:
            if failed.status in _GONE:
                # A gateway whose server is down answers 404 for everything.
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
        """Makes a search that any working server answers."""
        try:
            self._server.search(self._server.client.search_for_studies, attempts=_PROBES, limit=1)
        except Failed as failed:
            raise self._server.error(failed) from None
        self._works = True

    def _peek(self) -> None:
        """Reads the first bytes of an instance that the server delivered before."""
        with self._server.get(self._delivered or "", ACCEPT) as response:
            next(self._server.body(response), None)


def gone() -> ImageRefused:
    return unreadable("the server no longer has it")


def unreadable(detail: str) -> ImageRefused:
    return ImageRefused(RefusalReason.UNREADABLE, detail)
