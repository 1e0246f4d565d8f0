"""Sends documents to a DICOM node by C-STORE, and asks it to commit itself to them."""

import io
import ssl
import threading
from collections.abc import Sequence
from typing import Any

from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian, generate_uid
from pynetdicom import AE, evt
from pynetdicom.sop_class import (  # type: ignore[attr-defined]
    StorageCommitmentPushModel,
    Verification,
)

from engine.documents_settings import DicomDestination
from engine.errors import SettingsError
from indexer.documents.delivery import Delivery, Fate, Unreachable
from indexer.documents.making import Document
from indexer.imaging.quiet import hushed

__all__ = ["check", "echo", "store"]

_COMMITMENT_INSTANCE = "1.2.840.10008.1.20.1.1"
_WARNINGS = range(0xB000, 0xC000)
_BUSY = range(0xA700, 0xA800)


def store(name: str, to: DicomDestination, documents: Sequence[Document]) -> Delivery:
    """Stores documents over one association.

    Args:
        name: of the destination in the settings.

    Raises:
        Unreachable: the node does not answer, or wants no association now.
        SettingsError: certificates cannot be used.
    """
    asking = _Commitment()
    scu = _scu(to)
    for kind in dict.fromkeys(one.sop_class for one in documents):
        for syntax in (ExplicitVRLittleEndian, ImplicitVRLittleEndian):
            scu.add_requested_context(kind, syntax)
    if to.commitment:
        scu.add_requested_context(StorageCommitmentPushModel)
    link = _associated(name, to, scu, [(evt.EVT_N_EVENT_REPORT, asking.reported)])
    try:
        delivery = Delivery(tuple(_stored(link, one) for one in documents))
        if to.commitment and link.is_established:
            delivery = asking.asked(link, delivery, documents, to.commitment_seconds)
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

    def __init__(self) -> None:
        self._came = threading.Event()
        self._transaction = str(generate_uid(None))
        self._said: Dataset | None = None

    def reported(self, event: Any) -> tuple[int, None]:
        """Handles N-EVENT-REPORT."""
        said = event.event_information
        if said.get("TransactionUID") != self._transaction:
            return 0x0112, None
        self._said = said
        self._came.set()
        return 0x0000, None

    def asked(
        self, link: Any, delivery: Delivery, documents: Sequence[Document], seconds: float
    ) -> Delivery:
        offered = any(
            context.abstract_syntax == StorageCommitmentPushModel
            for context in link.accepted_contexts
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
        status, _ = link.send_n_action(asked, 1, StorageCommitmentPushModel, _COMMITMENT_INSTANCE)
        if status.get("Status") != 0:
            return Delivery(delivery.fates, "refused")
        if not self._came.wait(seconds) or self._said is None:
            return Delivery(delivery.fates, "asked")
        done, failed = (
            {str(one.ReferencedSOPInstanceUID) for one in self._said.get(name, ())}
            for name in ("ReferencedSOPSequence", "FailedSOPSequence")
        )
        return delivery.committed(done, failed, "answered")


def _reference(sop: str, kind: str) -> Dataset:
    made = Dataset()
    made.ReferencedSOPClassUID, made.ReferencedSOPInstanceUID = kind, sop
    return made


def _tls(name: str, to: DicomDestination) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=to.ca_file)
        if to.cert_file is not None:
            context.load_cert_chain(to.cert_file, to.key_file)
    except (OSError, ValueError):
        raise SettingsError(
            f"certificates of destinations.{name} (ca_file, cert_file, key_file) cannot be read; "
            "name files in PEM"
        ) from None
    return context
