"""One part of a request: an instance on its way into the inbox."""

from collections.abc import Collection
from dataclasses import dataclass

from api.http.dicomweb_store.identity import FIRST_BYTES, MOST_BYTES, Identity, identity_of
from api.http.dicomweb_store.refusals import (
    CLASS_NOT_TAKEN,
    DIFFERENT_HEAD,
    NO_STUDY,
    NOT_DICOM,
    OTHER_TYPE,
    SYNTAX_NOT_TAKEN,
    WRONG_STUDY,
    Refusal,
)
from indexer.sources.dicomweb.multipart import media_type
from indexer.sources.pushed.arrival import Answer, Arrival
from indexer.sources.pushed.inbox import Inbox

__all__ = ["Instance", "Outcome", "Terms"]

_TYPES = ("application/dicom", "application/octet-stream", "")
"""Of parts; some senders leave it out, as the whole says it already."""


@dataclass(frozen=True, slots=True)
class Terms:
    """On which instances of a request are taken.

    study: the only one that they may be of; None = any. sop_classes, syntaxes: UIDs of those that
    are taken.
    """

    inbox: Inbox
    study: str | None
    sop_classes: Collection[str]
    syntaxes: Collection[str]
    max_nesting: int


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a part. identity: None = it could not be told which instance it is.
    refusal: None = it is stored. warning: of one that is stored, a Warning Reason (0008,1196)."""

    identity: Identity | None
    refusal: Refusal | None = None

    @property
    def warning(self) -> int | None:
        stored = self.refusal is None and self.identity is not None
        return DIFFERENT_HEAD if stored and self.identity and self.identity.differs else None


class Instance:
    """An instance that is being received: written to disk as it comes, in the form in which C-STORE
    writes it, so that it is the same file however it is sent.

    :meth:`write` its bytes, :meth:`end` it after the last one, and :meth:`keep` it; until that
    nothing of it is received, and :meth:`discard` may be called at any time. Whoever keeps many
    waiting has to :meth:`seal` them, or their files stay open.

    content_type: of the part.
    """

    def __init__(self, terms: Terms, content_type: str) -> None:
        self._terms = terms
        self._head = bytearray()
        self._look_at = FIRST_BYTES
        self._identity: Identity | None = None
        self._arrival: Arrival | None = None
        self._refusal = None if media_type(content_type) in _TYPES else OTHER_TYPE

    def write(self, data: bytes) -> None:
        """Takes the next bytes of the file."""
        if self._refusal is not None:
            return
        if self._arrival is not None:
            self._arrival.write(data)
            return
        self._head += data
        if len(self._head) >= self._look_at:
            self._look()

    def end(self) -> None:
        """To be called after the last byte."""
        if self._refusal is None and self._arrival is None:
            self._look(complete=True)

    def seal(self) -> None:
        """Returns when it is complete on disk, or refused; its file is closed."""
        if self._arrival is not None:
            self._arrival.seal()

    def keep(self) -> Outcome:
        """Receives it; returns when it outlasts a kill and a power cut, or is refused."""
        if self._arrival is not None and self._refusal is None:
            answer = self._arrival.finish()
            if answer is not Answer.STORED:
                self._refusal = Refusal.of(answer)
        return Outcome(self._identity, self._refusal)

    def discard(self) -> None:
        """Removes what has come, unless it is kept."""
        if self._arrival is not None:
            self._arrival.discard()

    def _look(self, *, complete: bool = False) -> None:
        """Looks which instance it is, if enough of it has come."""
        whole = complete or len(self._head) >= MOST_BYTES
        head = bytes(self._head)
        found = identity_of(head, self._terms.max_nesting, complete=whole)
        if found is None and not whole:
            self._look_at = 4 * len(head)
            return
        self._head.clear()
        if not isinstance(found, Identity):
            self._refusal = found or NOT_DICOM
            return
        self._identity = found
        self._refusal = self._refused(found)
        if self._refusal is None:
            self._arrival = self._terms.inbox.arrive(found.sop_class, found.sop, found.syntax)
            self._arrival.write(head[found.start :])

    def _refused(self, found: Identity) -> Refusal | None:
        terms = self._terms
        if terms.study is not None and found.study != terms.study:
            return WRONG_STUDY if found.study else NO_STUDY
        if found.sop_class not in terms.sop_classes:
            return CLASS_NOT_TAKEN
        return None if found.syntax in terms.syntaxes else SYNTAX_NOT_TAKEN
