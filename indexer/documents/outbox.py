"""Sendings of documents: what is to be sent where, what became of it, and when it is tried again.

A sending is a file of the data folder with the plans of its documents: UIDs and similarities, and
nothing of a patient. Each attempt makes the documents again, with the same UIDs, so a kill at any
moment leaves at worst one attempt too many, which a PACS takes for the same instances.
"""

import json
import logging
import re
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

from filelock import FileLock, Timeout

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
from engine.files import write_atomically
from engine.settings import Settings
from engine.tenants import DEFAULT_TENANT
from indexer.archive import TenantArchive
from indexer.datadir.layout import DataDir
from indexer.documents import cstore, stow
from indexer.documents.delivery import Delivery, Fate, Unreachable
from indexer.documents.headers import Headers
from indexer.documents.making import Document, make_document
from indexer.documents.plans import Plan, plan_from, plan_text

__all__ = ["Outbox", "Sending", "destinations_of", "moment"]

logger = logging.getLogger(__name__)

_FORMAT = 1
"""Of the files: one of another format is left alone."""
_ID = re.compile(r"[0-9a-f]{32}")
_LONGEST_PAUSE = 3600.0
_DAY = 86_400.0
_ENDED = ("sent", "failed", "cancelled")


@dataclass(frozen=True, slots=True)
class Sending:
    """Documents on their way to one destination.

    state: "waiting" to be tried (again), "sent" (all are stored), "failed" or "cancelled".
    fates: of the documents, in order. commitment: see :class:`Delivery`.
    attempts: how many there were. next_at, made_at, ended_at: seconds since 1970.
    why: what was in the way last; None = nothing.
    asked_by: who asked for it, for the audit log.
    """

    id: str
    tenant: str
    destination: str
    plans: tuple[Plan, ...]
    state: str
    fates: tuple[Fate, ...]
    made_at: float
    next_at: float
    attempts: int = 0
    ended_at: float | None = None
    commitment: str = "not-asked"
    why: str | None = None
    asked_by: Mapping[str, Any] = field(default_factory=dict)


def destinations_of(settings: Settings, tenant: str) -> dict[str, Destination]:
    """Where a tenant's documents may be sent, by name."""
    return {
        name: one
        for name, one in sorted(settings.destinations.items())
        if (one.tenant or DEFAULT_TENANT) == tenant
    }


class Outbox:
    """The sendings of a data folder.

    Args:
        clock: seconds since 1970.
    """

    def __init__(self, settings: Settings, clock: Callable[[], float] = time.time) -> None:
        self._settings = settings
        self._clock = clock
        self._folder = DataDir(settings.data_dir).root / "outbox"
        self._told: set[str] = set()

    def add(
        self, destination: str, plans: Sequence[Plan], tenant: str, asked_by: Mapping[str, Any]
    ) -> Sending:
        """Notes what is to be sent; it is on disk when this returns.

        Raises:
            DestinationUnknown: the settings give the tenant no such destination.
        """
        self._destination(destination, tenant)
        now = self._clock()
        self._folder.mkdir(mode=0o700, exist_ok=True)
        self._forget_old(now)
        fates = tuple(Fate(plan.sop, "waiting") for plan in plans)
        # A process that is killed before the first attempt leaves it to another.
        pause = self._settings.documents.backoff_seconds
        made = Sending(
            uuid.uuid4().hex, tenant, destination, tuple(plans), "waiting", fates, now, now + pause,
            asked_by=asked_by,
        )  # fmt: skip
        self._write(made)
        return made

    def of(self, sending: str, tenant: str) -> Sending:
        """A sending of the tenant. Raises SendingNotFound."""
        found = self._read(sending) if _ID.fullmatch(sending) else None
        if found is None or found.tenant != tenant:
            raise SendingNotFound(
                f"there is no sending {sending[:64]!r}; what has ended is forgotten after "
                f"{self._settings.documents.keep_days:g} days (setting documents.keep_days)"
            )
        return found

    def all(self, tenant: str) -> list[Sending]:
        """The sendings of a tenant, the newest first."""
        found = [one for one in self._every() if one.tenant == tenant]
        return sorted(found, key=lambda one: (-one.made_at, one.id))

    def due(self) -> list[Sending]:
        """Sendings of all tenants that are to be attempted now, the longest due first."""
        now = self._clock()
        found = [one for one in self._every() if one.state == "waiting" and one.next_at <= now]
        return sorted(found, key=lambda one: (one.next_at, one.id))

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
        with self._held(sending.id) as mine:
            found = self.of(sending.id, sending.tenant)
            if not mine or found.state != "waiting":
                return found
            by_sop = {one.sop: one for one in made}
            done = self._attempted(
                found, lambda plan: by_sop.get(plan.sop) or make_document(plan, archive, headers)
            )
            self._write(done)
            return done

    def retry(self, sending: str, tenant: str) -> Sending:
        """Makes a sending wait for an attempt now, what was refused included.

        Raises:
            SendingNotFound. DocumentError: everything is stored, or it was cancelled.
        """
        return self._change(sending, tenant, ("waiting", "failed"), self._again)

    def cancel(self, sending: str, tenant: str) -> Sending:
        """Ends a sending; what is stored already stays at its destination.

        Raises:
            SendingNotFound. DocumentError: it has ended already.
        """
        return self._change(sending, tenant, ("waiting", "failed"), self._cancelled)

    def _again(self, found: Sending) -> Sending:
        fates = tuple(
            one if one.state == "stored" else Fate(one.sop, "waiting") for one in found.fates
        )
        now = self._clock()
        return replace(
            found, state="waiting", fates=fates, attempts=0, next_at=now, ended_at=None, why=None
        )

    def _cancelled(self, found: Sending) -> Sending:
        return replace(found, state="cancelled", ended_at=self._clock())

    def _change(
        self,
        sending: str,
        tenant: str,
        among: tuple[str, ...],
        change: Callable[[Sending], Sending],
    ) -> Sending:
        self.of(sending, tenant)
        with self._held(sending) as mine:
            found = self.of(sending, tenant)
            if not mine or found.state not in among:
                state = found.state if mine else "being attempted at this moment"
                raise DocumentError(f"sending {sending} is {state}, which cannot be changed so")
            changed = change(found)
            self._write(changed)
            return changed

    def _attempted(self, found: Sending, make: Callable[[Plan], Document]) -> Sending:
        found = replace(found, attempts=found.attempts + 1)
        left = [one.sop for one in found.fates if one.state == "waiting"]
        try:
            to = self._destination(found.destination, found.tenant)
            documents = [make(plan) for plan in found.plans if plan.sop in left]
            delivery = _store(found.destination, to, documents)
        except (Unreachable, SourceError, StoreError) as error:
            why = error.words if isinstance(error, Unreachable) else _source_away(error)
            return self._later(replace(found, why=why))
        except (DestinationUnknown, DocumentError, ImageNotFound, SettingsError) as error:
            # Waiting would not help: whoever has helped can have it tried again.
            return self._ended(found, "failed", str(error))
        by_sop = {one.sop: one for one in delivery.fates}
        fates = tuple(by_sop.get(one.sop, one) for one in found.fates)
        found = replace(found, fates=fates, commitment=delivery.commitment, why=None)
        waiting = next((one for one in fates if one.state == "waiting"), None)
        if waiting is not None:
            return self._later(replace(found, why=waiting.detail))
        refused = next((one for one in fates if one.state == "refused"), None)
        if refused is not None:
            return self._ended(found, "failed", refused.detail)
        return self._ended(found, "sent", None)

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

    @contextmanager
    def _held(self, sending: str) -> Iterator[bool]:
        """Whether this process may change the sending in the block: one does at a time."""
        lock = FileLock(self._folder / f"{sending}.lock", thread_local=False)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            yield False
            return
        try:
            yield True
        finally:
            lock.release()

    def _every(self) -> Iterator[Sending]:
        for path in sorted(self._folder.glob("*.json")) if self._folder.is_dir() else ():
            if _ID.fullmatch(path.stem) and (found := self._read(path.stem)) is not None:
                yield found

    def _read(self, sending: str) -> Sending | None:
        try:
            written = json.loads((self._folder / f"{sending}.json").read_bytes())
        except FileNotFoundError:
            return None
        except ValueError:
            written = {}
        if written.pop("format", None) != _FORMAT:
            if sending not in self._told:
                self._told.add(sending)
                logger.warning("sending %s is left alone: another version noted it", sending)
            return None
        return Sending(
            **{
                **written,
                "plans": tuple(map(plan_from, written["plans"])),
                "fates": tuple(Fate(**one) for one in written["fates"]),
            }
        )

    def _write(self, sending: Sending) -> None:
        text = {
            "format": _FORMAT,
            **asdict(sending),
            "plans": [plan_text(one) for one in sending.plans],
        }
        write_atomically(self._folder / f"{sending.id}.json", json.dumps(text).encode())

    def _forget_old(self, now: float) -> None:
        before = now - self._settings.documents.keep_days * _DAY
        for one in self._every():
            if one.state in _ENDED and (one.ended_at or now) < before:
                for ending in ("json", "lock"):
                    (self._folder / f"{one.id}.{ending}").unlink(missing_ok=True)


def _store(name: str, to: Destination, documents: Sequence[Document]) -> Delivery:
    if isinstance(to, DicomDestination):
        return cstore.store(name, to, documents)
    return stow.store(name, to, documents)


def _source_away(error: Exception) -> str:
    what = "index" if isinstance(error, StoreError) else "source of an image"
    return f"the {what} is not available at the moment"


def moment(seconds: float | None) -> str | None:
    """Seconds since 1970 as ISO 8601, UTC."""
    if seconds is None:
        return None
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")
