#!/usr/bin/env bash
# pydicom 3.0.2 with Pillow 13.0.0: the colours of JPEG depend on markers that say nothing new.
#
# Guess: a picture whose Photometric Interpretation is true of its code stream has its colours.
# Behaviour: where the Adobe marker says YCbCr, as the header does, Pillow converts to RGB and
# pydicom takes the result for YCbCr and converts again: other colours, and no error. Where nothing
# but the component identifiers "R", "G", "B" and the header say RGB, Pillow is asked for YCbCr,
# which its library does not make of RGB: an error.
# Output seen, of (200, 60, 30):
#   YBR_FULL_422, JFIF marker: [199, 60, 29]
#   YBR_FULL_422, no marker: [199, 60, 29]
#   YBR_FULL_422, Adobe marker that says YCbCr: [60, 255, 79]
#   RGB, identifiers RGB, Adobe marker that says RGB: [200, 60, 30]
#   RGB, identifiers RGB, no marker: RuntimeError
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet "pydicom==3.0.2" "numpy==2.4.6" "pillow==13.0.0"
"$work/venv/bin/python" - <<'PYTHON' | tee "$work/seen"
import io
import warnings

import numpy as np
from PIL import Image
from pydicom.encaps import encapsulate
from pydicom.pixels import get_decoder
from pydicom.uid import JPEGBaseline8Bit

warnings.simplefilter("ignore")
SIDE = 16
ADOBE_YCBCR = b"\xff\xee\x00\x0eAdobe\0\x64\0\0\0\0\x01"
picture = Image.fromarray(np.full((SIDE, SIDE, 3), (200, 60, 30), np.uint8))


def written(**options):
    """The code stream, and where its first marker segment ends: JFIF's or Adobe's."""
    out = io.BytesIO()
    picture.save(out, "JPEG", subsampling=0, quality=95, **options)
    data = out.getvalue()
    return data, 4 + int.from_bytes(data[4:6], "big")


def shown(name, frame, photometric):
    header = {
        "rows": SIDE,
        "columns": SIDE,
        "number_of_frames": 1,
        "samples_per_pixel": 3,
        "bits_allocated": 8,
        "bits_stored": 8,
        "photometric_interpretation": photometric,
        "pixel_representation": 0,
        "planar_configuration": 0,
        "pixel_keyword": "PixelData",
    }
    try:
        colors, _ = get_decoder(JPEGBaseline8Bit).as_array(encapsulate([frame]), index=0, **header)
    except RuntimeError as error:
        print(f"{photometric}, {name}: {type(error).__name__}")
    else:
        print(f"{photometric}, {name}: {colors[3, 3].tolist()}")


data, end = written()
shown("JFIF marker", data, "YBR_FULL_422")
shown("no marker", data[:2] + data[end:], "YBR_FULL_422")
shown("Adobe marker that says YCbCr", data[:2] + ADOBE_YCBCR + data[end:], "YBR_FULL_422")
data, end = written(keep_rgb=True)
shown("identifiers RGB, Adobe marker that says RGB", data, "RGB")
shown("identifiers RGB, no marker", data[:2] + data[end:], "RGB")
PYTHON
diff "$work/seen" - <<'SEEN'
YBR_FULL_422, JFIF marker: [199, 60, 29]
YBR_FULL_422, no marker: [199, 60, 29]
YBR_FULL_422, Adobe marker that says YCbCr: [60, 255, 79]
RGB, identifiers RGB, Adobe marker that says RGB: [200, 60, 30]
RGB, identifiers RGB, no marker: RuntimeError
SEEN
