"""Thumbnails are small, bare JPEGs in a tidy folder."""

import io
import uuid

import numpy as np
import pytest
from PIL import Image

from engine.errors import ImageNotFound
from indexer.imaging.thumbnails import Thumbnails, thumbnail
from indexer.objects.folder import FolderObjects

POINT, OTHER = (str(uuid.UUID(int=one << 120)) for one in (0xAB, 0xCD))


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
    path = tmp_path / "ab" / f"{POINT}.jpg"
    with Thumbnails(FolderObjects(tmp_path)) as thumbnails:
        thumbnails.write({POINT: b"first"})
        assert path.read_bytes() == b"first"
        thumbnails.write({POINT: b"second"})
        assert thumbnails.read(POINT) == path.read_bytes() == b"second"
        assert [file.name for file in path.parent.iterdir()] == [path.name]
        assert thumbnails.existing([POINT, OTHER]) == {POINT}
        thumbnails.delete([POINT, OTHER])
        assert thumbnails.read(POINT) is None
        assert thumbnails.existing([POINT, OTHER]) == set()


def test_a_failed_write_leaves_the_old_one_and_nothing_else(tmp_path):
    path = tmp_path / "ab" / f"{POINT}.jpg"
    thumbnails = Thumbnails(FolderObjects(tmp_path))
    thumbnails.write({POINT: b"first"})
    with pytest.raises(TypeError):
        thumbnails.write({POINT: "text"})
    assert path.read_bytes() == b"first"
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_clearing_takes_thumbnails_and_nothing_else(tmp_path):
    thumbnails = Thumbnails(FolderObjects(tmp_path))
    thumbnails.write({POINT: b"first", OTHER: b"second"})
    (tmp_path / "notes.txt").write_text("of somebody else")
    thumbnails.clear()
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["notes.txt"]


@pytest.mark.parametrize("name", ["../../etc/passwd", "", "ab", "/etc/passwd"])
def test_an_id_cannot_name_another_file(tmp_path, name):
    thumbnails = Thumbnails(FolderObjects(tmp_path))
    for ask in (thumbnails.read, lambda one: thumbnails.write({one: b"x"})):
        with pytest.raises(ImageNotFound):
            ask(name)
    assert not list(tmp_path.iterdir())
