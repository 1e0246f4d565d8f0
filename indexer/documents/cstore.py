"""Sends documents to a DICOM node by C-STORE, and asks it to commit itself to them."""

import io
import ssl
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian, generate_uid
from pynetdicom import AE, evt
from pynetdicom.sop_class import Verification  # type: ignore[attr-defined]

from engine.documents_settings import DicomDestination
from engine.errors import SettingsError
from indexer.documents.delivery import Asking, Delivery, Fate, Unreachable, with_report
from indexer.documents.making import Document
from indexer.imaging.quiet import hushed
from indexer.sources.dicomweb.trust import trusting
from indexer.sources.pushed.commitment import (
    COMMITMENT_CLASS,
    COMMITMENT_INSTANCE,
    CommitmentNodes,
    CommitmentReport,
    answer_to,
)

__all__ = ["check", "echo", "store"]

_LOOK_SECONDS = 0.1
"""Between looks at whether the node has reported over another association."""
_WARNINGS = range(0xB000, 0xC000)
_BUSY = range(0xA700, 0xA800)


def store(
    name: str, to: DicomDestination, documents: Sequence[Document], asking: Asking | None = None
) -> Delivery:
    """Stores documents over one association.

    Args:
        name: of the destination in the settings.
        asking: where it is noted that the node was asked to commit itself; None = nowhere, and only
            what it says on the same association is heard.

    Raises:
        Unreachable: the node does not answer, or wants no association now.
        SettingsError: certificates cannot be used.
    """
    commitment = _Commitment(asking)
    scu = _scu(to)
    for kind in dict.fromkeys(one.sop_class for one in documents):
        for syntax in (ExplicitVRLittleEndian, ImplicitVRLittleEndian):
            scu.add_requested_context(kind, syntax)
    if to.commitment:
        scu.add_requested_context(COMMITMENT_CLASS)
    link = _associated(name, to, scu, [(evt.EVT_N_EVENT_REPORT, commitment.reported)])
    try:
        delivery = Delivery(tuple(_stored(link, one) for one in documents))
        if to.commitment and link.is_established:
            delivery = commitment.asked(link, delivery, documents, to.commitment_seconds)
        return delivery
    finally:
        if link.is_established:
            link.release()


def check(name: str, to: DicomDestination) -> None:
    """Reads what an association needs; asks nobody. Raises SettingsError: it cannot be used."""
    if to.tls:
        _tls(name, to)


def echo(name: str, to: DicomDestination) -> None:
    """Asks the node whether it is there (C-ECHO).

    Raises:
        Unreachable: it does not answer, or wants no association. SettingsError: as :func:`store`.
    """
    scu = _scu(to)
    scu.add_requested_context(Verification)
    link = _associated(name, to, scu, [])
    try:
        status = link.send_c_echo().get("Status") if link.is_established else None
    finally:
        if link.is_established:
            link.release()
    if status != 0:
        said = "no answer" if status is None else f"status 0x{status:04X}"
        raise Unreachable(f"destination {name!r} takes no C-ECHO ({said}): its log says why")


def _scu(to: DicomDestination) -> AE:
    # Its debug lines have whole data sets.
    hushed("pynetdicom")
    scu = AE(ae_title=to.calling_ae_title)
    scu.connection_timeout = scu.acse_timeout = to.timeout_seconds
    scu.dimse_timeout = scu.network_timeout = to.timeout_seconds
    return scu


def _associated(name: str, to: DicomDestination, scu: AE, handlers: list[Any]) -> Any:
    """An association. Raises Unreachable: there is none."""
    link = scu.associate(
        to.host,
        to.port,
        ae_title=to.ae_title,
        tls_args=(_tls(name, to), to.host) if to.tls else None,
        evt_handlers=handlers,
    )
    if not link.is_established:
        why = "refuses the association" if link.is_rejected else "cannot be reached"
        raise Unreachable(
            f"destination {name!r} {why}: check the AE titles, host and port in "
            f"destinations.{name}, that the node knows {to.calling_ae_title}, and, with TLS on one "
            "side or both, tls, ca_file and cert_file"
        )
    return link


def _stored(link: Any, document: Document) -> Fate:
    if not link.is_established:
        return Fate(document.sop, "waiting", None, "the association broke off")
    accepted = {
        context.transfer_syntax[0]
        for context in link.accepted_contexts
        if context.abstract_syntax == document.sop_class
    }
    if not accepted:
        return Fate(document.sop, "refused", None, "the node does not take this kind of document")
    made: Dataset = dcmread(io.BytesIO(document.file))
    if ExplicitVRLittleEndian not in accepted:
        made = _in_implicit_vr(made)
    status = link.send_c_store(made).get("Status")
    if status is None:
        return Fate(document.sop, "waiting", None, "no answer came in time")
    code = f"0x{status:04X}"
    if status == 0:
        return Fate(document.sop, "stored", code)
    if status in _WARNINGS:
        return Fate(document.sop, "stored", code, "the node stored it with a warning")
    if status in _BUSY:
        return Fate(document.sop, "waiting", code, "the node is out of resources")
    return Fate(document.sop, "refused", code, "the node refuses it; its log says why")


def _in_implicit_vr(made: Dataset) -> Dataset:
    made.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
    again = io.BytesIO()
    made.save_as(again, implicit_vr=True, little_endian=True)
    again.seek(0)
    return dcmread(again)


class _Commitment:
    """The answer of a node to the request that it commit itself."""

    def __init__(self, asking: Asking | None) -> None:
        self._asking = asking
        self._came = threading.Event()
        self._transaction = str(generate_uid(None))
        self._said: CommitmentReport | None = None

    def reported(self, event: Any) -> tuple[int, None]:
        """Handles N-EVENT-REPORT on the association by which it was asked."""
        nodes = CommitmentNodes({}, self._taken)
        return answer_to(
            lambda: event.event_information, event.assoc.acceptor.ae_title, nodes
        ), None

    def _taken(self, report: CommitmentReport, _: str) -> bool:
        if report.transaction != self._transaction:
            return False
        self._said = report
        self._came.set()
        return True

    def asked(
        self, link: Any, delivery: Delivery, documents: Sequence[Document], seconds: float
    ) -> Delivery:
        """The delivery after the node was asked to commit itself to what it stored."""
        offered = any(
            context.abstract_syntax == COMMITMENT_CLASS for context in link.accepted_contexts
        )
        if not offered:
            return Delivery(delivery.fates, "not-offered")
        kinds = {one.sop: one.sop_class for one in documents}
        asked = Dataset()
        asked.TransactionUID = self._transaction
        asked.ReferencedSOPSequence = [
            _reference(one.sop, kinds[one.sop]) for one in delivery.fates if one.state == "stored"
        ]
        if not asked.ReferencedSOPSequence:
            return delivery
        if self._asking is not None:
            # Before: the node may report over another association at once.
            self._asking.begin(self._transaction)
        status, _ = link.send_n_action(asked, 1, COMMITMENT_CLASS, COMMITMENT_INSTANCE)
        if status.get("Status") not in (0x0000, None):
            return Delivery(delivery.fates, "refused")
        # Without a status the association broke off, and the node may have been asked.
        fates = tuple(
            replace(one, transaction=self._transaction) if one.state == "stored" else one
            for one in delivery.fates
        )
        said = self._heard(link, seconds)
        return Delivery(fates if said is None else with_report(fates, said), "asked")

    def _heard(self, link: Any, seconds: float) -> CommitmentReport | None:
        """What the node says in this time, over this association or another one."""
        end = time.monotonic() + seconds
        while True:
            left = end - time.monotonic()
            if self._came.wait(max(0.0, min(_LOOK_SECONDS, left))):
                return self._said
            other = None if self._asking is None else self._asking.report(self._transaction)
            if other is not None or left <= 0:
                return other
            if self._asking is None and not link.is_established:
                return None


def _reference(sop: str, kind: str) -> Dataset:
    made = Dataset()
    made.ReferencedSOPClassUID, made.ReferencedSOPInstanceUID = kind, sop
    return made


def _tls(name: str, to: DicomDestination) -> ssl.SSLContext:
    context = trusting(to.ca_file, f"destinations.{name}.ca_file")
    if to.cert_file is not None:
        try:
            context.load_cert_chain(to.cert_file, to.key_file)
        except (OSError, ValueError):
            raise SettingsError(
                f"settings destinations.{name}.cert_file and key_file are no readable certificate "
                "and its key; name files in PEM"
            ) from None
    return context
