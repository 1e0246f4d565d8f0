"""A node that takes documents, and says later, over an association of its own, whether it keeps
them."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from pydicom.dataset import Dataset
from pydicom.uid import ComprehensiveSRStorage, ExplicitVRLittleEndian
from pynetdicom import AE, build_context, build_role, evt

__all__ = ["CommittingNode", "reference", "report", "stores"]

COMMITMENT, INSTANCE = "1.2.840.10008.1.20.1", "1.2.840.10008.1.20.1.1"
LOCAL = "127.0.0.1"


class CommittingNode:
    """asked: the requests for storage commitment so far. on_asked: called with each of them, before
    it is answered."""

    def __init__(self, on_asked: Callable[[Dataset], None] = lambda _: None) -> None:
        self.stored: list[str] = []
        self.asked: list[Dataset] = []
        self._on_asked = on_asked
        self._ae = AE("NODE")
        self._ae.add_supported_context(ComprehensiveSRStorage, ExplicitVRLittleEndian)
        self._ae.add_supported_context(COMMITMENT)

    def _store(self, event: Any) -> int:
        self.stored.append(str(event.request.AffectedSOPInstanceUID))
        return 0x0000

    def _commit(self, event: Any) -> tuple[int, None]:
        self.asked.append(event.action_information)
        self._on_asked(self.asked[-1])
        return 0x0000, None

    @contextmanager
    def running(self) -> Iterator[int]:
        """Its port."""
        handlers = [(evt.EVT_C_STORE, self._store), (evt.EVT_N_ACTION, self._commit)]
        server = self._ae.start_server((LOCAL, 0), block=False, evt_handlers=handlers)
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()


def report(
    port: int,
    asked: Dataset,
    *,
    failed: Mapping[str, int] | None = None,
    title: str = "NODE",
    called: str = "PRECEDENT",
    roles: bool = True,
    padding: int = 0,
) -> int | None:
    """Reports on a request over an association of its own; the status of the answer, None = there
    was no association.

    failed: Failure Reasons by SOP Instance UID. roles: say that the node is the SCP, as it should.
    padding: bytes that do not belong there.
    """
    said = Dataset()
    said.TransactionUID = asked.TransactionUID
    kept = [one for one in asked.ReferencedSOPSequence if _sop(one) not in (failed or {})]
    if kept:
        said.ReferencedSOPSequence = kept
    for sop, reason in (failed or {}).items():
        one = reference(sop)
        one.FailureReason = reason
        said.FailedSOPSequence = [*said.get("FailedSOPSequence", ()), one]
    if padding:
        said.EncapsulatedDocument = bytes(padding)
    ae = AE(title)
    ae.add_requested_context(COMMITMENT, ExplicitVRLittleEndian)
    negotiated = [build_role(COMMITMENT, scp_role=True)] if roles else None
    link = ae.associate(LOCAL, port, ae_title=called, ext_neg=negotiated)
    if not link.is_established:
        return None
    try:
        if not roles:
            # So do nodes that negotiate none, and report all the same.
            link.accepted_contexts[0]._as_scp = True
        kind = 2 if failed else 1
        status, _ = link.send_n_event_report(said, kind, COMMITMENT, INSTANCE)
        return status.get("Status")
    finally:
        link.release()


def stores(port: int, title: str) -> bool:
    """Whether somebody of this title may store."""
    contexts = [build_context(ComprehensiveSRStorage)]
    link = AE(title).associate(LOCAL, port, contexts, ae_title="PRECEDENT")
    try:
        return bool(link.is_established and link.accepted_contexts)
    finally:
        if link.is_established:
            link.release()


def reference(sop: str) -> Dataset:
    made = Dataset()
    made.ReferencedSOPClassUID, made.ReferencedSOPInstanceUID = ComprehensiveSRStorage, sop
    return made


def _sop(one: Dataset) -> str:
    return str(one.ReferencedSOPInstanceUID)
