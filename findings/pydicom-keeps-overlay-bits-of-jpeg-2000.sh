#!/usr/bin/env bash
# pydicom 3.0.2 with pylibjpeg-openjpeg 2.6.0: bits above Bits Stored are values in JPEG 2000 only.
#
# Guess: an overlay in bit 15 of the cells, with Bits Stored 12, is no part of the pixel values in
# any transfer syntax (PS3.5 8.1.1).
# Behaviour: pixel_array masks those bits in uncompressed and RLE frames, and keeps them in the same
# cells compressed with JPEG 2000: white marks, and any automatic window is stretched over them.
# Output seen, largest value:
#   uncompressed: 63
#   RLE: 63
#   JPEG 2000: 32825
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet "pydicom==3.0.2" "numpy==2.4.6" "pylibjpeg==2.1.0" \
    "pylibjpeg-openjpeg==2.6.0"
"$work/venv/bin/python" - <<'PYTHON' | tee "$work/seen"
import warnings

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, JPEG2000Lossless, RLELossless, generate_uid

warnings.simplefilter("ignore")
cells = np.arange(1024, dtype="<u2").reshape(32, 32) // 16
cells[::7] |= 1 << 15
for name, syntax in (
    ("uncompressed", None),
    ("RLE", RLELossless),
    ("JPEG 2000", JPEG2000Lossless),
):
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.SOPInstanceUID = generate_uid()
    ds.Rows = ds.Columns = 32
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    ds.BitsAllocated = ds.BitsStored = 16
    ds.HighBit, ds.PixelRepresentation = 15, 0
    ds.PixelData = cells.tobytes()
    ds["PixelData"].VR = "OW"
    if syntax is not None:
        ds.compress(syntax, generate_instance_uid=False)
    ds.BitsStored, ds.HighBit = 12, 11
    print(f"{name}: {ds.pixel_array.max()}")
PYTHON
diff "$work/seen" - <<'SEEN'
uncompressed: 63
RLE: 63
JPEG 2000: 32825
SEEN
