"""Key Object Selections: images that were found, marked in their own study."""

from collections.abc import Sequence

from pydicom.dataset import Dataset

import engine
from indexer.documents.content import Subject
from indexer.documents.evidence import MAKER, copy_patient_and_study, evidence_of
from indexer.documents.plans import Plan

__all__ = ["TITLES", "key_objects"]

TITLES = {
    "of-interest": ("113000", "DCM", "Of Interest"),
    # IHE's Teaching File and Clinical Trial Export (RAD TF-2, 4.51).
    "teaching": ("TCE001", "IHERADTF", "For Teaching File Export"),
}
_DESCRIPTIONS = {
    "of-interest": "Earlier images similar to a later study of the patient, found by Precedent.",
    "teaching": "Chosen among similar cases that Precedent found.",
}


def key_objects(plan: Plan, subjects: Sequence[Subject]) -> Dataset:
    """The selection as a data set. subjects: images of one study, which it names."""
    from highdicom.ko import KeyObjectSelection, KeyObjectSelectionDocument
    from highdicom.sr import CodedConcept

    frames: dict[str, set[int]] = {}
    by_sop: dict[str, Subject] = {}
    for one in subjects:
        uid = one.header["SOPInstanceUID"]
        by_sop.setdefault(uid, one)
        if one.header.frames > 1:
            frames.setdefault(uid, set()).add(one.record.frame + 1)
    evidence = [evidence_of(one) for one in by_sop.values()]
    content = KeyObjectSelection(
        document_title=CodedConcept(*TITLES[plan.kind]),
        referenced_objects=evidence,
        description=_DESCRIPTIONS[plan.kind],
    )
    made = KeyObjectSelectionDocument(
        evidence=evidence,
        content=content,
        series_instance_uid=plan.series,
        series_number=9902,
        series_description="Key images",
        sop_instance_uid=plan.sop,
        instance_number=1,
        manufacturer=MAKER,
        manufacturer_model_name=MAKER,
        software_versions=engine.__version__,
        content_date=plan.made.date(),
        content_time=plan.made.time(),
        specific_character_set="ISO_IR 192",
    )
    for item in made.ContentSequence:
        for reference in item.get("ReferencedSOPSequence", ()):
            if named := frames.get(reference.ReferencedSOPInstanceUID):
                reference.ReferencedFrameNumber = sorted(named)
    copy_patient_and_study(made, evidence[0])
    return made
