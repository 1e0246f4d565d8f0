#!/usr/bin/env bash
# pyjpegls 1.5.1 (CharLS): a zero byte before the end-of-image marker makes a whole frame unreadable.
#
# Guess: a JPEG-LS stream all of whose coded data is there is decoded.
# Behaviour: writers have padded streams to an even length before the marker rather than behind it,
# as one of the JPEG-LS samples of DICOM's working group 4 is (MR1_JLSL; see CharLS issues 365 and
# 437). pyjpegls raises. imagecodecs 2026.3.6, with CharLS 2.4.3, reads one such byte, not two.
# Output seen:
#   0 bytes: pyjpegls read, imagecodecs read
#   1 bytes: pyjpegls RuntimeError, imagecodecs read
#   2 bytes: pyjpegls RuntimeError, imagecodecs JpeglsError
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet "pyjpegls==1.5.1" "imagecodecs==2026.3.6" "numpy==2.4.6"
"$work/venv/bin/python" - <<'PYTHON' | tee "$work/seen"
import imagecodecs
import jpeg_ls
import numpy as np

pixels = np.add.outer(np.arange(64) * 30, np.arange(64) * 20).astype(np.uint16)
whole = bytes(imagecodecs.jpegls_encode(pixels)).rstrip(b"\0")


def by_pyjpegls(frame):
    buffer, _ = jpeg_ls.decode_pixel_data(frame)
    return np.frombuffer(buffer, np.uint16).reshape(pixels.shape)


def outcome(decode, frame):
    try:
        return "read" if np.array_equal(decode(frame), pixels) else "other values"
    except (RuntimeError, ValueError) as error:
        return type(error).__name__


for zeros in range(3):
    padded = whole[:-2] + b"\0" * zeros + whole[-2:]
    seen = outcome(by_pyjpegls, padded), outcome(imagecodecs.jpegls_decode, padded)
    print(f"{zeros} bytes: pyjpegls {seen[0]}, imagecodecs {seen[1]}")
PYTHON
diff "$work/seen" - <<'SEEN'
0 bytes: pyjpegls read, imagecodecs read
1 bytes: pyjpegls RuntimeError, imagecodecs read
2 bytes: pyjpegls RuntimeError, imagecodecs JpeglsError
SEEN
