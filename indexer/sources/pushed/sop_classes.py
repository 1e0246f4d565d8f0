"""What is accepted: SOP classes of storage, also retired ones, and private ones, in every transfer
syntax that is known."""

from collections.abc import Iterable
from typing import cast

from pydicom.uid import ExplicitVRLittleEndian
from pynetdicom import (
    ALL_TRANSFER_SYNTAXES,
    AllStoragePresentationContexts,
    StoragePresentationContexts,
    register_uid,
)
from pynetdicom.service_class import StorageServiceClass
from pynetdicom.sop_class import uid_to_service_class

__all__ = ["RETIRED", "accepted_sop_classes", "accepted_transfer_syntaxes"]

RETIRED = tuple(
    "1.2.840.10008.5.1." + end
    for end in (
        "1.27",  # Stored Print
        "1.29",  # Hardcopy Grayscale Image
        "1.30",  # Hardcopy Color Image
        "4.1.1.3",  # Ultrasound Multi-frame Image
        "4.1.1.5",  # Nuclear Medicine Image
        "4.1.1.6",  # Ultrasound Image
        "4.1.1.8",  # Standalone Overlay
        "4.1.1.9",  # Standalone Curve
        "4.1.1.9.1",  # Waveform, trial
        "4.1.1.10",  # Standalone Modality LUT
        "4.1.1.11",  # Standalone VOI LUT
        "4.1.1.12.3",  # X-Ray Angiographic Bi-Plane Image
        "4.1.1.77.1",  # VL Image, trial
        "4.1.1.77.2",  # VL Multi-frame Image, trial
        "4.1.1.88.1",  # Text SR, trial
        "4.1.1.88.2",  # Audio SR, trial
        "4.1.1.88.3",  # Detail SR, trial
        "4.1.1.88.4",  # Comprehensive SR, trial
        "4.1.1.129",  # Standalone PET Curve
        "4.34.1",  # RT Beams Delivery Instruction, trial
    )
)
"""The retired storage SOP classes (PS3.6, table A-1), which old devices and archives still send."""


def accepted_sop_classes(private: Iterable[str] = ()) -> list[str]:
    """The UIDs of the accepted SOP classes, sorted, and ``private`` ones with them.

    pynetdicom is told that they are of the storage service: it negotiates any class, but serves
    only those that it knows, and ends the association on others.
    """
    of_library = (*AllStoragePresentationContexts, *StoragePresentationContexts)
    known = {cast(str, context.abstract_syntax) for context in of_library}
    accepted = sorted({*known, *RETIRED, *private})
    for uid in accepted:
        if uid_to_service_class(uid) is not StorageServiceClass:
            register_uid(uid, "Storage_" + uid.replace(".", "_"), StorageServiceClass)
    return accepted


def accepted_transfer_syntaxes() -> list[str]:
    """The UIDs of the transfer syntaxes in which instances are accepted, the preferred one first.
    Nothing is unpacked when it comes, so these are all."""
    return list(dict.fromkeys([str(ExplicitVRLittleEndian), *map(str, ALL_TRANSFER_SYNTAXES)]))
