"""Sends DICOM documents: at once when one is asked for, and again later what did not arrive."""

import logging
import threading
from collections.abc import Sequence
from dataclasses import asdict
from typing import Self

from api.audit.rows import BEGUN, Entry, Who
from api.audit.writer import Writer
from api.http.serving import Serving
from api.security.seen import Seen
from engine.errors import PrecedentError
from engine.settings import Settings
from indexer.archive import TenantArchive
from indexer.documents.headers import Headers
from indexer.documents.making import Document
from indexer.documents.outbox import Outbox
from indexer.documents.plans import Plan
from indexer.documents.sendings import Sending

__all__ = ["Sender"]

_log = logging.getLogger(__name__)

_LOOK_SECONDS = 2.0
_ACTION = "POST /v1/sendings"


class Sender:
    """The outbox of one service, and the reader of headers. Close it, or use it as a context
    manager.

    A thread tries again what is due, whichever process noted it. Each of its attempts has a row in
    the audit log before and after it; without the first nothing is sent.

    Args:
        serving: gives the archive whose originals documents are about.
        audit: None = the log is switched off.
    """

    def __init__(self, settings: Settings, serving: Serving, audit: Writer | None) -> None:
        self.outbox = Outbox(settings)
        self.headers = Headers(settings)
        self._serving = serving
        self._audit = audit
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._work, name="sender", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Ends after the attempt that is under way."""
        self._stopped.set()
        self._thread.join()
        self.headers.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def send(
        self,
        destination: str,
        plans: Sequence[Plan],
        documents: Sequence[Document],
        archive: TenantArchive,
        tenant: str,
        who: Who,
    ) -> Sending:
        """Notes and attempts a sending; it is tried again later if it has to be.

        Raises:
            DestinationUnknown: the settings give the tenant no such destination.
        """
        noted = self.outbox.add(destination, plans, tenant, asdict(who))
        return self.outbox.attempt(noted, archive, self.headers, documents)

    def _work(self) -> None:
        said = ""
        while not self._stopped.wait(_LOOK_SECONDS):
            try:
                self.outbox.tidy()
                for sending in self.outbox.due():
                    if self._stopped.is_set():
                        return
                    self._attempt(sending)
                said = ""
            except (PrecedentError, OSError) as error:
                if str(error) != said:
                    _log.error("documents cannot be sent: %s", error)
                said = str(error)

    def _attempt(self, sending: Sending) -> None:
        self._record(sending, BEGUN, "ok")
        with self._serving.request() as (archive, _):
            own = TenantArchive(archive, sending.tenant)
            done = self.outbox.attempt(sending, own, self.headers)
        self._record(done, 201 if done.state == "sent" else 202, "ok")
        if done.state == "failed":
            _log.error("sending %s to %r has failed: %s", done.id, done.destination, done.why)

    def _record(self, sending: Sending, status: int, outcome: str) -> None:
        if self._audit is None:
            return
        images = dict.fromkeys(
            image for plan in sending.plans for image in (plan.image, *(h.image for h in plan.hits))
        )
        about = {
            "sending": sending.id,
            "destination": sending.destination,
            "attempt": sending.attempts,
        }
        who = Who("service", sending.asked_by.get("id"), "precedent serve", sending.tenant)
        entry = Entry(who, _ACTION, status, outcome, Seen((), tuple(images)), None, None, about)
        self._audit.commit(entry)
