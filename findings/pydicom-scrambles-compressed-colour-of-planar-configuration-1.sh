#!/usr/bin/env bash
# pydicom 3.0.2 with Pillow 13.0.0: Planar Configuration 1 scrambles the colours of JPEG frames.
#
# Guess: for compressed pixel data Planar Configuration says nothing, since the code stream tells how
# samples lie (PS3.5 8.2); headers keep the 1 of the uncompressed original.
# Behaviour: what Pillow decoded, samples of a pixel side by side, is taken apart as three planes:
# another picture in other colours, without an error.
# Output seen:
#   Planar Configuration 0: 0 of 1024 pixels other than Pillow's
#   Planar Configuration 1: 1024 of 1024 pixels other than Pillow's
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
y, x = np.mgrid[:32, :32] * 8
picture = np.stack([x, y, 255 - x // 2 - y // 2], -1).astype(np.uint8)
stream = io.BytesIO()
Image.fromarray(picture).save(stream, "JPEG", quality=95, subsampling=0)
right = np.asarray(Image.open(io.BytesIO(stream.getvalue())))
for planar in (0, 1):
    found, _ = get_decoder(JPEGBaseline8Bit).as_array(
        encapsulate([stream.getvalue()], has_bot=False),
        index=0,
        rows=32,
        columns=32,
        number_of_frames=1,
        samples_per_pixel=3,
        bits_allocated=8,
        bits_stored=8,
        photometric_interpretation="YBR_FULL_422",
        pixel_representation=0,
        planar_configuration=planar,
        pixel_keyword="PixelData",
    )
    apart = np.abs(found.astype(int) - right).max(axis=-1) > 4
    print(f"Planar Configuration {planar}: {apart.sum()} of {apart.size} pixels other than Pillow's")
PYTHON
diff "$work/seen" - <<'SEEN'
Planar Configuration 0: 0 of 1024 pixels other than Pillow's
Planar Configuration 1: 1024 of 1024 pixels other than Pillow's
SEEN
