"""The phantoms by name: one function per anatomy, each drawn from a seeded generator.

Most take ``(rng, size)`` and give a float32 (H, W) image in units like the real ones: HU
for CT, signal for MR, attenuation for radiographs. ``ultrasound`` gives uint8 RGB.
"""

from indexer.sample.phantoms_ct import abdomen_ct, chest_ct
from indexer.sample.phantoms_head import HEAD_T1, HEAD_T2, head_ct, head_mr
from indexer.sample.phantoms_limbs import hand_xray, knee_xray
from indexer.sample.phantoms_motion import angiogram, ultrasound
from indexer.sample.phantoms_mr import breast_mr, cardiac_mr
from indexer.sample.phantoms_xray import chest_xray, mammogram

__all__ = [
    "HEAD_T1",
    "HEAD_T2",
    "abdomen_ct",
    "angiogram",
    "breast_mr",
    "cardiac_mr",
    "chest_ct",
    "chest_xray",
    "hand_xray",
    "head_ct",
    "head_mr",
    "knee_xray",
    "mammogram",
    "ultrasound",
]
