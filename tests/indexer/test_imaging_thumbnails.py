"""Thumbnails are small, bare JPEGs in a tidy folder."""

import io
import uuid

import numpy as np
import pytest
from PIL import Image

from engine.errors import ImageNotFound
from indexer.imaging.thumbnails import (
    delete_thumbnail,
    thumbnail,
    thumbnail_path,
    write_thumbnail,
)

POINT = str(uuid.UUID(int=0xAB << 120))


@pytest.mark.parametrize(
    ("shape", "size"),
    [
        ((400, 200), (96, 192)),
        ((200, 400, 3), (192, 96)),
        ((10, 10), (10, 10)),
        ((5000, 8), (1, 192)),
    ],
)
def test_no_side_is_longer_than_asked_and_the_aspect_stays(shape, size):
    jpeg = thumbnail(np.full(shape, 128, dtype=np.uint8), 192)
    image = Image.open(io.BytesIO(jpeg))
    assert image.format == "JPEG"
    assert image.size == size
    assert image.mode == ("RGB" if len(shape) == 3 else "L")
    assert not image.getexif()
    assert abs(int(np.asarray(image).mean()) - 128) <= 1


def test_written_replaced_and_deleted(tmp_path):
    path = write_thumbnail(tmp_path, POINT, b"first")
    assert path == tmp_path / "ab" / f"{POINT}.jpg"
    write_thumbnail(tmp_path, POINT, b"second")
    assert path.read_bytes() == b"second"
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    assert delete_thumbnail(tmp_path, POINT)
    assert not delete_thumbnail(tmp_path, POINT)


def test_a_failed_write_leaves_the_old_one_and_nothing_else(tmp_path):
    path = write_thumbnail(tmp_path, POINT, b"first")
    with pytest.raises(TypeError):
        write_thumbnail(tmp_path, POINT, "text")
    assert path.read_bytes() == b"first"
    assert [file.name for file in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("name", ["../../etc/passwd", "", "ab", "/etc/passwd"])
def test_an_id_cannot_name_another_file(tmp_path, name):
    with pytest.raises(ImageNotFound):
        thumbnail_path(tmp_path, name)
