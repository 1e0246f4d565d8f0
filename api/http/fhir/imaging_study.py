"""An indexed study as ImagingStudy of FHIR R4 (4.0.1): what the index knows of it and no more.

Of R4, not of R4B or R5: ``modality`` is a Coding, and there is no ImagingSelection. Members that
are not known are left out, since empty ones are errors.
"""

import hashlib
import re
from collections.abc import Iterable, Mapping
from typing import Any

from engine.integration_settings import FhirSettings
from engine.records import ImageRecord

__all__ = ["FhirStudies", "is_study_uid"]

_DICOM = "http://dicom.nema.org/resources/ontology/DCM"
_UID_SYSTEM, _URI_SYSTEM = "urn:dicom:uid", "urn:ietf:rfc:3986"
_PSEUDONYMS = "urn:precedent:patient"
_NOBODY = "Patient not named"
_OTHER = "OT"
_UID = re.compile(r"[0-9]+(\.[0-9]+)+", re.ASCII)
_LONGEST = 64

_R4_MODALITIES = frozenset(
    [
        *("AR", "AS", "AU", "BDUS", "BI", "BMD", "CD", "CF", "CP", "CR", "CS", "CT", "DD", "DF"),
        *("DG", "DM", "DS", "DX", "EC", "ECG", "EPS", "ES", "FA", "FS", "GM", "HC", "HD", "IO"),
        *("IVOCT", "IVUS", "KER", "KO", "LEN", "LP", "LS", "MA", "MG", "MR", "MS", "NM", "OAM"),
        *("OCT", "OP", "OPM", "OPR", "OPT", "OPV", "OSS", "OT", "PR", "PT", "PX", "REG", "RF"),
        *("RG", "RTDOSE", "RTIMAGE", "RTPLAN", "RTRECORD", "RTSTRUCT", "SEG", "SM", "SMR", "SR"),
        *("SRF", "ST", "TG", "US", "VA", "VF", "XA", "XC"),
    ]
)
"""Modalities in the code system of DICOM's terms that is part of R4 (dicom-dcim)."""


def is_study_uid(written: str | None) -> bool:
    """Whether this is a UID, which then is a valid id of a resource as well."""
    return written is not None and len(written) <= _LONGEST and bool(_UID.fullmatch(written))


class FhirStudies:
    """Makes resources.

    Args:
        settings: what they tell.
        tenant: whose they are; pseudonyms of patients are other ones in each tenant.
        sop_classes: SOP Class UID by id of the image, where it is known.
    """

    def __init__(self, settings: FhirSettings, tenant: str, sop_classes: Mapping[str, str]) -> None:
        self._settings = settings
        self._tenant = tenant
        self._sop_classes = sop_classes

    def resource(self, study: str, images: Iterable[tuple[str, ImageRecord]]) -> dict[str, Any]:
        """The ImagingStudy with this UID. images: ids and records of images of it, at least one."""
        every = list(images)
        years = [record.study_year for _, record in every if record.study_year is not None]
        made: dict[str, Any] = {
            "resourceType": "ImagingStudy",
            "id": study,
            "identifier": [{"system": _UID_SYSTEM, "value": f"urn:oid:{study}"}],
            "status": "available",
            "modality": [
                _modality(code)
                for code in dict.fromkeys(self._modality(record) for _, record in every)
            ],
            "subject": self._subject([record.patient for _, record in every]),
        }
        if years:
            # The index keeps no more of the date, and a time without zone would be invalid.
            made["started"] = f"{min(years):04}"
        if series := self._series(every):
            made["series"] = series
        return made

    def _modality(self, record: ImageRecord) -> str:
        code = record.modality or _OTHER
        if self._settings.only_r4_modalities and code not in _R4_MODALITIES:
            return _OTHER
        return code

    def _subject(self, patients: Iterable[str | None]) -> dict[str, Any]:
        known = next(filter(None, patients), None)
        if known is None or self._settings.patients == "none":
            return {"display": _NOBODY}
        # What the index has is the same for all tenants, and other systems are never told it.
        told = hashlib.sha256(f"{self._tenant}\0{known}".encode()).hexdigest()[:32]
        return {"identifier": {"system": _PSEUDONYMS, "value": told}, "display": _NOBODY}

    def _series(self, images: Iterable[tuple[str, ImageRecord]]) -> list[dict[str, Any]]:
        found: dict[str, dict[str, Any]] = {}
        for image_id, record in images:
            uid = record.series
            if uid is None or not is_study_uid(uid):
                continue
            series = found.setdefault(
                uid, {"uid": uid, "modality": _modality(self._modality(record))}
            )
            sop_class = self._sop_classes.get(image_id)
            if sop_class is None or not is_study_uid(record.sop):
                continue
            instances = series.setdefault("instance", [])
            # Of several frames of an instance, it stands there once.
            if all(one["uid"] != record.sop for one in instances):
                instances.append(
                    {
                        "uid": record.sop,
                        "sopClass": {"system": _URI_SYSTEM, "code": f"urn:oid:{sop_class}"},
                    }
                )
        return list(found.values())


def _modality(code: str) -> dict[str, str]:
    return {"system": _DICOM, "code": code}
