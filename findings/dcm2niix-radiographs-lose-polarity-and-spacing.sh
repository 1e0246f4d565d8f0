#!/usr/bin/env bash
# dcm2niix 1.0.20260724: a radiograph's NIfTI has neither its polarity nor the size of its pixels.
#
# Guess: NIfTI has no photometric interpretation, so a MONOCHROME1 image is inverted, or its JSON
# says what high values mean; and pixels are as large as Imager Pixel Spacing says, which is all that
# a radiograph has.
# Behaviour: values are copied as they are, and no field of the JSON tells MONOCHROME1 from
# MONOCHROME2: of two radiographs that look opposite the files are alike. Voxels are 1 × 1 mm,
# without a word that this is not known. A reader shows bones black, or measures five times too much.
# Output seen:
#   MONOCHROME1: first row 4000, last row 0, voxels 1.0 x 1.0 mm
#   MONOCHROME2: first row 4000, last row 0, voxels 1.0 x 1.0 mm
#   the same JSON for both
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet "dcm2niix==1.0.20260724" "pydicom==3.0.2" \
  "nibabel==5.4.2" "numpy==2.3.5"
for kind in MONOCHROME1 MONOCHROME2; do
  mkdir -p "$work/$kind/in" "$work/$kind/out"
  "$work/venv/bin/python" - "$work/$kind/in/image.dcm" "$kind" <<'PYTHON'
import sys

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ComputedRadiographyImageStorage, ExplicitVRLittleEndian

path, kind = sys.argv[1:]
image = Dataset()
image.file_meta = FileMetaDataset()
image.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
image.SOPClassUID, image.SOPInstanceUID = ComputedRadiographyImageStorage, "1.2.3.1.1"
image.file_meta.MediaStorageSOPClassUID = image.SOPClassUID
image.file_meta.MediaStorageSOPInstanceUID = image.SOPInstanceUID
image.StudyInstanceUID, image.SeriesInstanceUID = "1.2.3", "1.2.3.1"
image.Modality, image.BodyPartExamined = "CR", "CHEST"
image.PatientName, image.PatientID = "Doe^A", "P1"
image.SeriesNumber = image.InstanceNumber = 1
image.StudyDate, image.StudyTime = "20260101", "120000"
image.ImagerPixelSpacing = ["0.2", "0.2"]
image.SamplesPerPixel, image.PhotometricInterpretation = 1, kind
image.Rows = image.Columns = 32
image.BitsAllocated, image.BitsStored, image.HighBit, image.PixelRepresentation = 16, 12, 11, 0
pixels = np.zeros((32, 32), np.uint16)
pixels[:8] = 4000
image.PixelData = pixels.tobytes()
image.save_as(path, enforce_file_format=True)
PYTHON
  "$work/venv/bin/dcm2niix" -f image -z n -o "$work/$kind/out" "$work/$kind/in" >/dev/null
  "$work/venv/bin/python" - "$work/$kind/out/image.nii" "$kind" <<'PYTHON'
import sys

import nibabel

image = nibabel.load(sys.argv[1])
# The rows of NIfTI are written from the bottom.
rows = image.get_fdata()[:, ::-1, 0]
wide, high = image.header.get_zooms()[:2]
first, last = rows[:, 0].mean(), rows[:, -1].mean()
print(f"{sys.argv[2]}: first row {first:g}, last row {last:g}, voxels {wide} x {high} mm")
PYTHON
done | tee "$work/seen"
cmp "$work/MONOCHROME1/out/image.json" "$work/MONOCHROME2/out/image.json" &&
  echo "the same JSON for both" | tee -a "$work/seen"
diff "$work/seen" - <<'SEEN'
MONOCHROME1: first row 4000, last row 0, voxels 1.0 x 1.0 mm
MONOCHROME2: first row 4000, last row 0, voxels 1.0 x 1.0 mm
the same JSON for both
SEEN
