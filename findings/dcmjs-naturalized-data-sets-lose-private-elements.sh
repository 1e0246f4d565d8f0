#!/usr/bin/env bash
# dcmjs 0.52.2: a data set that was naturalized and back has no private elements any more.
#
# Guess: naturalizeDataset and denaturalizeDataset are each other's inverse, as their names say, so
# that a viewer which corrects an element writes back all others.
# Behaviour: private elements, with the creator of their block, are gone without a word, and a
# decimal string of "1.50" is "1.5". The SOP Instance UID stays the same: an archive gets another
# instance under the name of one that it has.
# Output seen:
#   before: SliceThickness 1.50, private (0029,0010) (0029,1001)
#   after: SliceThickness 1.5, private none
#   the same SOP Instance UID
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet "pydicom==3.0.2"
npm install --silent --no-fund --no-audit --prefix "$work/node" "dcmjs@0.52.2" >/dev/null
"$work/venv/bin/python" - "$work/before.dcm" <<'PYTHON'
import sys

from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

image = Dataset()
image.file_meta = FileMetaDataset()
image.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
image.SOPClassUID, image.SOPInstanceUID = CTImageStorage, "1.2.3.1.1"
image.file_meta.MediaStorageSOPClassUID = image.SOPClassUID
image.file_meta.MediaStorageSOPInstanceUID = image.SOPInstanceUID
image.StudyInstanceUID, image.SeriesInstanceUID = "1.2.3", "1.2.3.1"
image.Modality, image.PatientName, image.SliceThickness = "CT", "Doe^A", "1.50"
image.private_block(0x0029, "ACME 1", create=True).add_new(1, "DS", "1000")
image.save_as(sys.argv[1], enforce_file_format=True)
PYTHON
cat >"$work/node/rewrite.cjs" <<'NODE'
const fs = require("fs");
const dcmjs = require("dcmjs");
const { DicomMessage, DicomMetaDictionary } = dcmjs.data;

dcmjs.log.setLevel("error");
const [, , from, to] = process.argv;
const file = DicomMessage.readFile(new Uint8Array(fs.readFileSync(from)).buffer);
const natural = DicomMetaDictionary.naturalizeDataset(file.dict);
file.dict = DicomMetaDictionary.denaturalizeDataset(natural);
fs.writeFileSync(to, Buffer.from(file.write()));
NODE
node "$work/node/rewrite.cjs" "$work/before.dcm" "$work/after.dcm"
"$work/venv/bin/python" - "$work/before.dcm" "$work/after.dcm" <<'PYTHON' | tee "$work/seen"
import sys

from pydicom import dcmread

read = {name: dcmread(path) for name, path in zip(("before", "after"), sys.argv[1:])}
for name, image in read.items():
    private = " ".join(str(tag) for tag in image.keys() if tag.is_private) or "none"
    thickness = image.SliceThickness.original_string.strip()
    print(f"{name}: SliceThickness {thickness}, private {private}")
if len({image.SOPInstanceUID for image in read.values()}) == 1:
    print("the same SOP Instance UID")
PYTHON
diff "$work/seen" - <<'SEEN'
before: SliceThickness 1.50, private (0029,0010) (0029,1001)
after: SliceThickness 1.5, private none
the same SOP Instance UID
SEEN
