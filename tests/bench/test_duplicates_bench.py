"""What the benchmark of duplicates counts."""

import numpy as np
from PIL import Image

from bench.duplicates import COPIES, THRESHOLDS, nearest, pairs, row
from engine.codes import pack_signs
from engine.records import EncodedImages

Z = np.eye(4, dtype=np.float32)


def codes(*bits: int) -> np.ndarray:
    """Codes of 64 bits of which so many are 1."""
    return pack_signs(np.stack([np.where(np.arange(64) < one, 1.0, -1.0) for one in bits]))


def test_pairs_are_compared_row_by_row() -> None:
    one = EncodedImages(Z[[0, 1]], codes(0, 5))
    other = EncodedImages(Z[[0, 2]], codes(3, 5))
    r, bits = pairs(one, other)
    assert r.tolist() == [1.0, 0.0]
    assert bits.tolist() == [3, 0]


def test_the_nearest_is_another_one_that_is_allowed() -> None:
    held = EncodedImages(np.array([[1, 0], [0.8, 0.6], [0.6, 0.8]], np.float32), codes(0, 0, 0))
    allowed = ~np.eye(3, dtype=bool)
    assert nearest(held, allowed).tolist() == [1, 2, 1]
    allowed[0] = False
    assert nearest(held, allowed).tolist()[0] == -1


def test_a_pair_is_found_when_both_thresholds_hold() -> None:
    r = np.array([1.0, 0.99995, 0.9995, 0.9995, 0.5], np.float32)
    found = row("copies", r, np.array([0, 3, 3, 4, 0]))
    assert found["count"] == 5
    shares = [found[f"{least}, {most} bits"] for least, most in THRESHOLDS]
    assert shares == [0.2, 0.6, 0.6, 0.6]
    assert found["of r ≥ 0.999, within 3 bits"] == 0.75


def test_where_no_pair_is_alike_no_share_is_told() -> None:
    assert row("none", np.array([0.1]), np.array([0]))["of r ≥ 0.999, within 3 bits"] is None


def test_copies_show_the_same_picture() -> None:
    image = Image.fromarray(np.tile(np.arange(64, dtype=np.uint8) * 4, (64, 1)))
    for name, copy in COPIES.items():
        shown = np.asarray(copy(image).resize(image.size), np.float64)
        r = np.corrcoef(shown.ravel(), np.asarray(image, np.float64).ravel())[0, 1]
        assert r > 0.99, name
