"""The outbox: what is to be sent where, what became of it, and when it is tried again.

Each attempt makes the documents again, with the same UIDs, so a kill at any moment leaves at worst
one attempt too many, which a PACS takes for the same instances. What nodes report on storage
commitment is noted before they get an answer, whoever changes the sending at that moment.
"""

import logging
import time
import uuid
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import islice
from typing import Any

from engine.documents_settings import Destination, DicomDestination
from engine.errors import (
    DestinationUnknown,
    DocumentError,
    ImageNotFound,
    SendingNotFound,
    SettingsError,
    SourceError,
    StoreError,
)
from engine.settings import Settings
from engine.tenants import DEFAULT_TENANT
from indexer.archive import TenantArchive
from indexer.datadir.layout import DataDir
from indexer.documents import cstore, stow
from indexer.documents.commitments import Asked, Transactions, called_by_nodes, titles_of
from indexer.documents.delivery import (
    Asking,
    Delivery,
    Fate,
    Unreachable,
    commitment_of,
    with_report,
)
from indexer.documents.headers import Headers
from indexer.documents.making import Document, make_document
from indexer.documents.plans import Plan
from indexer.documents.sendings import Sending, SendingFiles
from indexer.sources.pushed.commitment import CommitmentNodes, CommitmentReport

__all__ = ["Outbox", "commitment_nodes", "destinations_of"]

logger = logging.getLogger(__name__)

_LONGEST_PAUSE = 3600.0
_HOUR, _DAY = 3600.0, 86_400.0
_TIDY_SECONDS = 60.0
"""Between looks at what is not awaited any more, or is to be forgotten."""


def destinations_of(settings: Settings, tenant: str) -> dict[str, Destination]:
    """Where a tenant's documents may be sent, by name."""
    return {
        name: one
        for name, one in sorted(settings.destinations.items())
        if (one.tenant or DEFAULT_TENANT) == tenant
    }


def commitment_nodes(settings: Settings) -> CommitmentNodes | None:
    """The nodes that may report on storage commitment over an association of their own, to the
    outbox of the data folder; None = none is ever asked."""
    called = called_by_nodes(settings)
    return CommitmentNodes(called, Outbox(settings).take) if called else None


class Outbox:
    """The sendings of a data folder.

    Args:
        clock: seconds since 1970.
    """

    def __init__(self, settings: Settings, clock: Callable[[], float] = time.time) -> None:
        self._settings = settings
        self._clock = clock
        folder = DataDir(settings.data_dir).root / "outbox"
        self._files = SendingFiles(folder, settings.documents.commitment_hours * _HOUR)
        self._transactions = Transactions(folder)
        self._tidied = -_TIDY_SECONDS

    def add(
        self, destination: str, plans: Sequence[Plan], tenant: str, asked_by: Mapping[str, Any]
    ) -> Sending:
        """Notes what is to be sent; it is on disk when this returns.

        Raises:
            DestinationUnknown: the settings give the tenant no such destination.
        """
        self._destination(destination, tenant)
        self.tidy()
        now = self._clock()
        fates = tuple(Fate(plan.sop, "waiting") for plan in plans)
        # A process that is killed before the first attempt leaves it to another.
        pause = self._settings.documents.backoff_seconds
        made = Sending(
            uuid.uuid4().hex, tenant, destination, tuple(plans), "waiting", fates, now, now + pause,
            asked_by=asked_by,
        )  # fmt: skip
        self._files.write(made)
        return made

    def of(self, sending: str, tenant: str) -> Sending:
        """A sending of the tenant. Raises SendingNotFound."""
        self._apply_reports()
        return self._of(sending, tenant)

    def _of(self, sending: str, tenant: str) -> Sending:
        found = self._files.read(sending)
        if found is None or found.tenant != tenant:
            raise SendingNotFound(
                f"there is no sending {sending[:64]!r}; what has ended is forgotten after "
                f"{self._settings.documents.keep_days:g} days (setting documents.keep_days)"
            )
        return found

    def newest(self, tenant: str, limit: int) -> list[Sending]:
        """The latest sendings of a tenant, the newest first."""
        self._apply_reports()
        found = islice((one for one in self._files.newest() if one.tenant == tenant), limit)
        return sorted(found, key=lambda one: (-one.made_at, one.id))

    def count(self) -> dict[str, int]:
        """Sendings of all tenants that have not ended, by what they wait for; see
        :meth:`SendingFiles.count`."""
        return self._files.count()

    def naming(self, images: Collection[str], tenant: str) -> list[str]:
        """Ids of the tenant's sendings whose documents name one of these images."""
        return [
            one.id
            for one in self._files.newest()
            if one.tenant == tenant and any(_names(plan, images) for plan in one.plans)
        ]

    def forget_naming(self, images: Collection[str], tenant: str) -> int:
        """Removes the tenant's sendings that name one of these images, in whatever state they are,
        but for one that is being attempted at this moment; returns how many were removed."""
        gone = 0
        for sending in self.naming(images, tenant):
            with self._files.held(sending) as mine:
                if mine:
                    self._files.remove(sending)
                    gone += 1
        return gone

    def due(self) -> list[Sending]:
        """Sendings of all tenants that are to be attempted now, the longest due first."""
        now = self._clock()
        found = [one for one in self._files.waiting(now) if one.next_at <= now]
        return sorted(found, key=lambda one: (one.next_at, one.id))

    def tidy(self) -> None:
        """Puts what nodes have reported into its sendings; once a minute, ends the waiting for
        answers that have not come, and forgets what ended long ago."""
        self._apply_reports()
        now = self._clock()
        if now - self._tidied < _TIDY_SECONDS:
            return
        self._tidied = now
        for one in self._files.overdue(now):
            with self._files.held(one.id) as mine:
                found = self._files.read(one.id) if mine else None
                if found is not None and found.ended_at is not None:
                    self._files.write(self._unanswered(found, now))
        before = now - self._settings.documents.keep_days * _DAY
        self._files.forget(before)
        self._transactions.forget(before)

    def _unanswered(self, found: Sending, now: float) -> Sending:
        awaited = self._settings.documents.commitment_hours * _HOUR
        if found.commitment != "asked" or (found.ended_at or now) + awaited > now:
            return found
        logger.warning(
            "sending %s: %r has not answered the request for storage commitment; it reports to the "
            "AE title, host and port that it has for this program (precedent serve --receive)",
            found.id,
            found.destination,
        )
        return replace(found, commitment="unanswered")

    def take(self, report: CommitmentReport, sender: str) -> bool:
        """Notes what a node reports on storage commitment; whether it was asked in this
        transaction. Then the report is on disk, and in its sending as soon as no attempt of that
        is under way.

        Args:
            sender: AE title of the node.

        Raises:
            OSError: it cannot be noted.
        """
        sending = self._transactions.sending_of(report.transaction)
        found = None if sending is None else self._files.read(sending)
        if found is None:
            return False
        to = self._settings.destinations.get(found.destination)
        if not isinstance(to, DicomDestination) or sender.strip() not in titles_of(to):
            return False
        self._transactions.note(report)
        # What cannot be written now is by the next look.
        with suppress(OSError):
            self._apply_reports()
        return True

    def _apply_reports(self) -> None:
        for transaction in self._transactions.reported():
            sending = self._transactions.sending_of(transaction)
            if sending is None:
                self._transactions.applied(transaction)
                continue
            # Whoever is changing the sending leaves the report to the next look.
            with self._files.held(sending) as mine:
                found = self._files.read(sending) if mine else None
                if found is not None:
                    self._files.write(self._with_report(found, transaction))
                if mine:
                    self._transactions.applied(transaction)

    def _with_report(self, found: Sending, transaction: str) -> Sending:
        report = self._transactions.report(transaction)
        if report is None:
            return found
        fates = with_report(found.fates, report)
        if fates == found.fates:
            return found
        found = replace(found, fates=fates, commitment=commitment_of(fates, found.commitment))
        return self._not_kept(found)

    def _not_kept(self, found: Sending) -> Sending:
        """The sending, with what its destination does not commit itself to as what is in the way;
        it is logged as well."""
        failed = [one for one in found.fates if one.committed is False]
        if not failed:
            return found
        reasons = ", ".join(sorted({one.failure or "no reason" for one in failed}))
        why = (
            f"destination {found.destination!r} does not commit itself to {len(failed)} of "
            f"{len(found.fates)} documents ({reasons}); its log says why"
        )
        logger.error("sending %s: %s", found.id, why)
        return replace(found, why=found.why or why)

    def attempt(
        self,
        sending: Sending,
        archive: TenantArchive,
        headers: Headers,
        made: Sequence[Document] = (),
    ) -> Sending:
        """Tries to send what is not stored yet; the sending as it is then.

        Another process that is at it is left alone.

        Args:
            archive: of the sending's tenant.
            made: its documents, if they were made at this moment.
        """
        with self._files.held(sending.id) as mine:
            found = self._of(sending.id, sending.tenant)
            if not mine or found.state != "waiting":
                return found
            by_sop = {one.sop: one for one in made}
            done = self._attempted(
                found, lambda plan: by_sop.get(plan.sop) or make_document(plan, archive, headers)
            )
            self._files.write(done)
        # What the node has reported since it was asked.
        return self.of(sending.id, sending.tenant)

    def retry(self, sending: str, tenant: str) -> Sending:
        """Makes a sending wait for an attempt now, what was refused included, and what is stored
        and the destination does not commit itself to.

        Raises:
            SendingNotFound. DocumentError: nothing of it is to be sent, or it was cancelled.
        """
        return self._change(sending, tenant, _may_be_tried, self._again)

    def cancel(self, sending: str, tenant: str) -> Sending:
        """Ends a sending; what is stored already stays at its destination.

        Raises:
            SendingNotFound. DocumentError: it has ended already.
        """
        return self._change(
            sending, tenant, lambda one: one.state in ("waiting", "failed"), self._cancelled
        )

    def _again(self, found: Sending) -> Sending:
        # A destination that has not answered is asked anew, with the instances that it has already.
        unsure = (False, None) if found.commitment == "unanswered" else (False,)
        fates = tuple(
            one
            if one.state == "stored" and one.committed not in unsure
            else Fate(one.sop, "waiting")
            for one in found.fates
        )
        return replace(
            found,
            state="waiting",
            fates=fates,
            attempts=0,
            next_at=self._clock(),
            ended_at=None,
            why=None,
            commitment=commitment_of(fates, "not-asked"),
        )

    def _cancelled(self, found: Sending) -> Sending:
        return replace(found, state="cancelled", ended_at=self._clock())

    def _change(
        self,
        sending: str,
        tenant: str,
        may_be: Callable[[Sending], bool],
        change: Callable[[Sending], Sending],
    ) -> Sending:
        self.of(sending, tenant)
        with self._files.held(sending) as mine:
            found = self._of(sending, tenant)
            if not mine or not may_be(found):
                state = found.state if mine else "being attempted at this moment"
                raise DocumentError(f"sending {sending} is {state}, which cannot be changed so")
            changed = change(found)
            self._files.write(changed)
            return changed

    def _attempted(self, found: Sending, make: Callable[[Plan], Document]) -> Sending:
        found = replace(found, attempts=found.attempts + 1)
        left = [one.sop for one in found.fates if one.state == "waiting"]
        try:
            to = self._destination(found.destination, found.tenant)
            documents = [make(plan) for plan in found.plans if plan.sop in left]
            asking = Asked(self._transactions, found.id)
            delivery = _store(found.destination, to, documents, asking)
        except (Unreachable, SourceError, StoreError) as error:
            why = error.words if isinstance(error, Unreachable) else _source_away(error)
            return self._later(replace(found, why=why))
        except (DestinationUnknown, DocumentError, ImageNotFound, SettingsError) as error:
            # Waiting would not help: whoever has helped can have it tried again.
            return self._ended(found, "failed", str(error))
        by_sop = {one.sop: one for one in delivery.fates}
        fates = tuple(by_sop.get(one.sop, one) for one in found.fates)
        commitment = commitment_of(fates, delivery.commitment)
        found = replace(found, fates=fates, commitment=commitment, why=None)
        waiting = next((one for one in fates if one.state == "waiting"), None)
        if waiting is not None:
            return self._later(replace(found, why=waiting.detail))
        refused = next((one for one in fates if one.state == "refused"), None)
        if refused is not None:
            return self._ended(found, "failed", refused.detail)
        return self._not_kept(self._ended(found, "sent", None))

    def _later(self, found: Sending) -> Sending:
        options = self._settings.documents
        if found.attempts >= options.attempts:
            return self._ended(found, "failed", found.why)
        pause = min(options.backoff_seconds * 2 ** (found.attempts - 1), _LONGEST_PAUSE)
        return replace(found, next_at=self._clock() + pause)

    def _ended(self, found: Sending, state: str, why: str | None) -> Sending:
        return replace(found, state=state, why=why, ended_at=self._clock())

    def _destination(self, name: str, tenant: str) -> Destination:
        to = destinations_of(self._settings, tenant).get(name)
        if to is None:
            raise DestinationUnknown(
                f"there is no destination {name[:80]!r} in the settings; GET /v1/destinations "
                "lists those that there are"
            )
        return to


def _names(plan: Plan, images: Collection[str]) -> bool:
    return plan.image in images or any(hit.image in images for hit in plan.hits)


def _may_be_tried(found: Sending) -> bool:
    """Whether something of it is not where it is to be, for all that is known."""
    if found.state == "sent":
        return found.commitment in ("failed", "unanswered")
    return found.state in ("waiting", "failed")


def _store(name: str, to: Destination, documents: Sequence[Document], asking: Asking) -> Delivery:
    if isinstance(to, DicomDestination):
        return cstore.store(name, to, documents, asking)
    return stow.store(name, to, documents)


def _source_away(error: Exception) -> str:
    what = "index" if isinstance(error, StoreError) else "source of an image"
    return f"the {what} is not available at the moment"
