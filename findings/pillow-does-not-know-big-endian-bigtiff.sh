#!/usr/bin/env bash
# Pillow 13.0.0: a BigTIFF file is read in little endian, and unknown in big endian.
#
# Guess: whole-slide scanners and microscopes write BigTIFF in either byte order, and both are read.
# Behaviour: the little-endian file opens; of the big-endian one Image.open says that it cannot
# identify it, as of a text file.
# Output seen:
#   little endian: (8, 8)
#   big endian: UnidentifiedImageError
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet "pillow==13.0.0"
"$work/venv/bin/python" - <<'PYTHON' | tee "$work/seen"
import io
import struct

from PIL import Image

TAGS = {256: 8, 257: 8, 258: 8, 259: 1, 262: 1, 273: 16, 277: 1, 278: 8, 279: 64}


def bigtiff(order):
    """8 x 8 grey pixels: header, pixels, one directory of short values."""
    mark = b"II" if order == "<" else b"MM"
    made = mark + struct.pack(order + "HHHQ", 43, 8, 0, 80) + bytes(range(64))
    made += struct.pack(order + "Q", len(TAGS))
    for tag, value in TAGS.items():
        made += struct.pack(order + "HHQQ", tag, 16, 1, value)
    return made + struct.pack(order + "Q", 0)


for name, order in (("little endian", "<"), ("big endian", ">")):
    try:
        print(f"{name}: {Image.open(io.BytesIO(bigtiff(order))).size}")
    except Exception as error:
        print(f"{name}: {type(error).__name__}")
PYTHON
diff "$work/seen" - <<'SEEN'
little endian: (8, 8)
big endian: UnidentifiedImageError
SEEN
