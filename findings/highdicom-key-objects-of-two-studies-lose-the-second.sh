#!/usr/bin/env bash
# highdicom 0.28.2: a key object selection of two studies has evidence of the first alone.
#
# Guess: of references into two studies of a patient either both stand in the evidence, each study as
# an item of its own (PS3.3, C.17.6.2.1), or the constructor refuses them.
# Behaviour: the document is made without a word. Both images are referenced in its content, and only
# those of the first study are in the Current Requested Procedure Evidence Sequence: a viewer does
# not learn where the others lie. The document itself cannot resolve them.
# Output seen:
#   referenced: 1.2.3.1.1.1 1.2.3.2.1.1
#   studies in the evidence: 1.2.3.1
#   1.2.3.1.1.1: in series 1.2.3.1.1
#   1.2.3.2.1.1: ValueError
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet "highdicom==0.28.2" "pydicom==3.0.2"
"$work/venv/bin/python" - <<'PYTHON' | tee "$work/seen"
from highdicom.ko import KeyObjectSelection, KeyObjectSelectionDocument
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sr.codedict import codes
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

EMPTY = (
    "PatientBirthDate PatientSex StudyDate StudyTime StudyID AccessionNumber ReferringPhysicianName"
)


def image(study):
    found = Dataset()
    found.file_meta = FileMetaDataset()
    found.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    found.SOPClassUID, found.Modality = CTImageStorage, "CT"
    found.StudyInstanceUID = study
    found.SeriesInstanceUID, found.SOPInstanceUID = f"{study}.1", f"{study}.1.1"
    found.PatientID, found.PatientName = "P1", "Doe^A"
    for name in EMPTY.split():
        setattr(found, name, "")
    found.Rows = found.Columns = 2
    return found


images = [image("1.2.3.1"), image("1.2.3.2")]
document = KeyObjectSelectionDocument(
    evidence=images,
    content=KeyObjectSelection(codes.DCM.OfInterest, images),
    series_instance_uid="1.2.3.9",
    series_number=1,
    sop_instance_uid="1.2.3.9.1",
    instance_number=1,
    manufacturer="ACME",
)
referenced = [
    item.ReferencedSOPSequence[0].ReferencedSOPInstanceUID
    for item in document.ContentSequence
    if item.ValueType == "IMAGE"
]
print("referenced:", *referenced)
evidence = document.CurrentRequestedProcedureEvidenceSequence
print("studies in the evidence:", *(study.StudyInstanceUID for study in evidence))
for uid in referenced:
    try:
        print(f"{uid}: in series {document.resolve_reference(uid)[1]}")
    except ValueError as error:
        print(f"{uid}: {type(error).__name__}")
PYTHON
diff "$work/seen" - <<'SEEN'
referenced: 1.2.3.1.1.1 1.2.3.2.1.1
studies in the evidence: 1.2.3.1
1.2.3.1.1.1: in series 1.2.3.1.1
1.2.3.2.1.1: ValueError
SEEN
