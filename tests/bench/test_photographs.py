"""Crops of photographs, for the detector that is shown some."""

import numpy as np
import pytest
from PIL import Image

from bench.photographs import photograph_crops


def test_each_photograph_gives_ten_seeded_crops_in_grey(tmp_path):
    rng = np.random.default_rng(0)
    for name, size in (("a.jpg", (300, 200)), ("below/b.PNG", (64, 1500))):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        pixels = rng.integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path)
    (tmp_path / "broken.jpg").write_bytes(b"no picture")
    (tmp_path / "README").write_text("no picture")
    crops = photograph_crops(tmp_path, 1)
    assert len(crops) == 20
    assert {crop.ndim for crop in crops} == {2}
    assert all(min(crop.shape) >= 1 and max(crop.shape) <= 900 for crop in crops)
    for crop, again in zip(crops, photograph_crops(tmp_path, 1), strict=True):
        assert np.array_equal(crop, again)
    other = photograph_crops(tmp_path, 2)
    assert any(one.shape != two.shape for one, two in zip(crops, other, strict=True))


def test_a_folder_without_photographs_is_said(tmp_path):
    with pytest.raises(SystemExit, match="has no photograph"):
        photograph_crops(tmp_path, 0)
