#!/usr/bin/env bash
# pydicom 3.0.2: a frame of single bits that begins amid a byte may be read a byte short.
#
# Guess: as_array(index=i) gives frame i of uncompressed pixels of one bit.
# Behaviour: frames follow each other without a gap (PS3.5 8.1.1), so that one may begin amid a
# byte. As many bytes are read as a frame that begins with a byte would take, and where the bits
# before it and behind it need another one, the array is too short and cannot be reshaped. Without
# an index all frames are right.
# Output seen:
#   9 x 9: 8 of 8 frames
#   9 x 11: 6 of 8 frames, then ValueError
#   10 x 15: 4 of 8 frames, then ValueError
#   7 x 9: 2 of 8 frames, then ValueError
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet "pydicom==3.0.2" "numpy==2.4.6"
"$work/venv/bin/python" - <<'PYTHON' | tee "$work/seen"
import numpy as np
from pydicom.pixels import get_decoder
from pydicom.uid import ExplicitVRLittleEndian

FRAMES = 8
decoder = get_decoder(ExplicitVRLittleEndian)
for rows, columns in ((9, 9), (9, 11), (10, 15), (7, 9)):
    frames = np.random.default_rng(0).integers(0, 2, (FRAMES, rows, columns)).astype(np.uint8)
    data = np.packbits(frames.ravel(), bitorder="little").tobytes()
    data += b"\0" * (len(data) % 2)
    header = {
        "rows": rows,
        "columns": columns,
        "number_of_frames": FRAMES,
        "samples_per_pixel": 1,
        "bits_allocated": 1,
        "bits_stored": 1,
        "photometric_interpretation": "MONOCHROME2",
        "pixel_representation": 0,
        "pixel_keyword": "PixelData",
    }
    every, _ = decoder.as_array(data, **header)
    assert np.array_equal(every, frames)
    right, errors = 0, ""
    for index in range(FRAMES):
        try:
            frame, _ = decoder.as_array(data, index=index, **header)
        except ValueError:
            errors = ", then ValueError"
        else:
            right += np.array_equal(frame, frames[index])
    print(f"{rows} x {columns}: {right} of {FRAMES} frames{errors}")
PYTHON
diff "$work/seen" - <<'SEEN'
9 x 9: 8 of 8 frames
9 x 11: 6 of 8 frames, then ValueError
10 x 15: 4 of 8 frames, then ValueError
7 x 9: 2 of 8 frames, then ValueError
SEEN
