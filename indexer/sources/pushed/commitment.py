"""What nodes say of a request for storage commitment (PS3.4, annex J), over whichever association
they say it."""

import logging
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pynetdicom import build_context
from pynetdicom.presentation import PresentationContext

__all__ = [
    "COMMITMENT_CLASS",
    "COMMITMENT_INSTANCE",
    "CommitmentNodes",
    "CommitmentReport",
    "answer_to",
    "report_context",
    "report_of",
]

COMMITMENT_CLASS = "1.2.840.10008.1.20.1"
"""Storage Commitment Push Model SOP Class."""
COMMITMENT_INSTANCE = "1.2.840.10008.1.20.1.1"
"""Its well-known instance."""

_SUCCESS, _PROCESSING_FAILURE, _INVALID_ARGUMENT = 0x0000, 0x0110, 0x0115
_UID = re.compile(r"\d+(\.\d+)+", re.ASCII)
_LONGEST_UID = 64

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class CommitmentReport:
    """What a node says of one transaction.

    transaction: its UID. committed: SOP Instance UIDs that the node answers for. failed: Failure
    Reasons of the others, by SOP Instance UID; None = it gives none.
    """

    transaction: str
    committed: frozenset[str]
    failed: Mapping[str, int | None]


@dataclass(frozen=True, slots=True)
class CommitmentNodes:
    """The nodes that may report over an association of their own.

    called: by the AE title of each, the titles under which it knows this program.
    take: gets a report and the AE title of who sent it; whether its transaction is known. What was
        said of it is on disk then. May raise OSError.
    """

    called: Mapping[str, frozenset[str]]
    take: Callable[[CommitmentReport, str], bool]


def report_context() -> PresentationContext:
    """The context under which nodes report, as SCP of the class, whether they say so or not."""
    # Nothing that unpacks: a deflated data set may be larger than what was received.
    made = build_context(COMMITMENT_CLASS, [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
    made.scu_role = made.scp_role = True
    return made


def report_of(information: Dataset) -> CommitmentReport:
    """The report in the event information of an N-EVENT-REPORT.

    Raises:
        ValueError: it is none.
    """
    transaction = _uid(information.get("TransactionUID"))
    committed = frozenset(
        _uid(one.get("ReferencedSOPInstanceUID"))
        for one in information.get("ReferencedSOPSequence") or ()
    )
    failed = {
        _uid(one.get("ReferencedSOPInstanceUID")): _reason(one.get("FailureReason"))
        for one in information.get("FailedSOPSequence") or ()
    }
    return CommitmentReport(transaction, committed - failed.keys(), failed)


def answer_to(information: Callable[[], Dataset], sender: str, nodes: CommitmentNodes) -> int:
    """Takes a report; the status for its sender.

    information: decodes what came.
    """
    try:
        report = report_of(information())
    except Exception as error:
        # pydicom fails in many ways, in words that quote what came.
        _log.warning(
            "a report on storage commitment from %r is invalid (%s)", sender, type(error).__name__
        )
        return _INVALID_ARGUMENT
    try:
        known = nodes.take(report, sender)
    except OSError as error:
        _log.error("a report on storage commitment could not be noted: %s", error.strerror)
        return _PROCESSING_FAILURE
    if not known:
        _log.warning(
            "%r reports on storage commitment, transaction %s, for which it was not asked",
            sender,
            report.transaction,
        )
        return _INVALID_ARGUMENT
    return _SUCCESS


def _uid(written: Any) -> str:
    found = str(written or "")
    if len(found) > _LONGEST_UID or not _UID.fullmatch(found):
        raise ValueError("a UID is missing, or is none")
    return found


def _reason(written: Any) -> int | None:
    return written if isinstance(written, int) and 0 <= written <= 0xFFFF else None
