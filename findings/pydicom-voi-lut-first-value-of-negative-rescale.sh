#!/usr/bin/env bash
# pydicom 3.0.2: a VOI LUT over Hounsfield units that is written as US maps nothing.
#
# Guess: with unsigned pixels and Rescale Intercept -1024 the first value mapped of a VOI LUT is
# signed, whatever VR the descriptor is written in (PS3.3 C.11.2.1.1: the sign is that of what the
# modality LUT gives); -1024 in an unsigned field is 64512.
# Behaviour: apply_voi_lut takes 64512 for the first value, so every pixel lies below the table and
# gets its first entry: one grey. Written as SS, the same table shows the picture.
# Output seen:
#   descriptor as SS: 256 grey levels
#   descriptor as US: 1 grey levels
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet "pydicom==3.0.2" "numpy==2.4.6"
"$work/venv/bin/python" - <<'PYTHON' | tee "$work/seen"
import warnings

import numpy as np
from pydicom.dataset import Dataset
from pydicom.pixels import apply_modality_lut, apply_voi_lut
from pydicom.sequence import Sequence

warnings.simplefilter("ignore")
stored = np.arange(0, 4096, 16, dtype=np.uint16).reshape(16, 16)
for vr, first in (("SS", -1024), ("US", 64512)):
    table = Dataset()
    table.add_new("LUTDescriptor", vr, [4096, first, 12])
    table.add_new("LUTData", "US", list(range(4096)))
    ds = Dataset()
    ds.RescaleSlope, ds.RescaleIntercept = 1, -1024
    ds.PixelRepresentation, ds.BitsAllocated, ds.BitsStored = 0, 16, 12
    ds.VOILUTSequence = Sequence([table])
    shown = apply_voi_lut(apply_modality_lut(stored, ds), ds)
    print(f"descriptor as {vr}: {len(np.unique(shown))} grey levels")
PYTHON
diff "$work/seen" - <<'SEEN'
descriptor as SS: 256 grey levels
descriptor as US: 1 grey levels
SEEN
