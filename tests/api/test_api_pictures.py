"""Pictures of indexed images: thumbnails, and previews made of the original at that moment."""

import io
import shutil
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pydicom
import pytest
from fastapi.testclient import TestClient
from PIL import Image
from services.loopback import LoopbackClient

from api.service import create_service
from engine.settings import FolderSettings
from engine.store.base import Filter
from indexer.archive import Archive
from indexer.sources.folder import FolderSource

NOWHERE = "00000000-0000-4000-8000-000000000000"


def shown(response) -> np.ndarray:
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == "image/jpeg"
    return np.asarray(Image.open(io.BytesIO(response.content))).astype(int)


def test_a_preview_is_the_original_as_large_as_wanted(client, indexed, id_of) -> None:
    address = f"/v1/images/{id_of(indexed.files['ct'][0])}/preview"
    picture = client.get(address)
    assert shown(picture).shape == (96, 96)
    assert picture.headers["cache-control"] == "private, no-cache"
    assert not Image.open(io.BytesIO(picture.content)).getexif()
    assert shown(client.get(address, params={"size": 32})).shape == (32, 32)
    assert shown(client.get(address, params={"size": 4096})).shape == (96, 96)
    raster = client.get(f"/v1/images/{id_of(indexed.files['stripes'][0])}/preview")
    assert np.abs(shown(raster) - np.asarray(Image.open(indexed.files["stripes"][0]))).mean() < 3


def test_a_window_decides_what_is_black_and_white(client, indexed, id_of) -> None:
    address = f"/v1/images/{id_of(indexed.files['ct'][0])}/preview"
    dark = shown(client.get(address, params={"window": 50, "level": 250}))
    bright = shown(client.get(address, params={"window": 50, "level": 5}))
    assert dark.mean() < 30
    assert bright.mean() > 200


@pytest.mark.parametrize(
    ("params", "status", "said"),
    [
        ({"window": 50}, 400, "together"),
        ({"level": 50}, 400, "together"),
        ({"window": 0, "level": 5}, 400, "width of 1 or more"),
        ({"window": "nan", "level": 5}, 400, "width of 1 or more"),
        ({"window": 50, "level": "inf"}, 400, "width of 1 or more"),
        ({"size": 15}, 400, "size is 15"),
        ({"size": 4097}, 400, "size is 4097"),
        ({"frame": -1}, 400, "frame is -1"),
        ({"frame": 3}, 400, "has only frame 0"),
        ({"frame": 10**30}, 400, "frame is"),
        ({"size": "large"}, 422, "size"),
    ],
)
def test_a_preview_that_cannot_be_made(client, indexed, id_of, params, status, said) -> None:
    response = client.get(f"/v1/images/{id_of(indexed.files['ct'][0])}/preview", params=params)
    assert response.status_code == status
    assert said in response.json()["detail"]


def test_a_window_is_for_grey_values_of_dicom(client, indexed, id_of) -> None:
    address = f"/v1/images/{id_of(indexed.files['rings'][0])}/preview"
    response = client.get(address, params={"window": 50, "level": 5})
    assert (response.status_code, response.json()["code"]) == (400, "query")


@pytest.mark.parametrize("kind", ["thumbnail", "preview"])
def test_a_picture_that_the_browser_has_is_not_sent_again(client, indexed, id_of, kind) -> None:
    address = f"/v1/images/{id_of(indexed.files['mr'][0])}/{kind}"
    etag = client.get(address).headers["etag"]
    for sent in (etag, f'"other", W/{etag}', "*"):
        again = client.get(address, headers={"If-None-Match": sent})
        assert (again.status_code, again.content) == (304, b"")
        assert again.headers["etag"] == etag
        assert again.headers["cache-control"] == "private, no-cache"
    assert client.get(address, headers={"If-None-Match": '"other"'}).status_code == 200
    nowhere = address.replace(address.split("/")[3], NOWHERE)
    for sent in (etag, "*"):
        assert client.get(nowhere, headers={"If-None-Match": sent}).status_code == 404


def test_another_window_is_another_picture(client, indexed, id_of) -> None:
    address = f"/v1/images/{id_of(indexed.files['ct'][1])}/preview"
    asked = [{}, {"size": 64}, {"window": 80, "level": 40}, {"window": 80, "level": 41}]
    etags = {client.get(address, params=params).headers["etag"] for params in asked}
    assert len(etags) == len(asked)
    head = client.head(address)
    assert head.headers["etag"] in etags


@pytest.fixture
def moved(indexed, tmp_path: Path) -> Iterator[tuple[TestClient, Path, str]]:
    """A service over one image of a named source; the image, and its id."""
    folder = tmp_path / "secret-ward"
    folder.mkdir()
    path = folder / "Doe^Jane.dcm"
    shutil.copy(indexed.files["ct"][0], path)
    named = {"ward": FolderSettings(kind="folder", paths=(folder,))}
    update = {"data_dir": tmp_path / "data", "sources": named}
    settings = indexed.settings.model_copy(update=update)
    with Archive(settings, create=True) as archive:
        archive.index(FolderSource([folder], name="ward"))
        (image,) = (point.id for point in archive.store.scroll(Filter()))
    with LoopbackClient(create_service(settings)) as client:
        yield client, path, image


def test_an_original_that_is_gone_or_another_is_told_without_its_path(moved, indexed) -> None:
    client, path, image = moved
    address = f"/v1/images/{image}/preview"
    assert client.get(address).status_code == 200
    shutil.copy(indexed.files["ct"][1], path)
    changed = client.get(address)
    assert (changed.status_code, changed.json()["code"]) == (409, "source-changed")
    path.write_bytes(b"no image any more")
    assert client.get(address).status_code == 422
    path.unlink()
    gone = client.get(address)
    assert (gone.status_code, gone.json()["code"]) == (410, "source-gone")
    assert "sources.ward.paths" in gone.json()["detail"]
    for answer in (changed, gone):
        assert "Doe" not in answer.text
        assert "secret-ward" not in answer.text
    assert client.get(address.replace("preview", "thumbnail")).status_code == 200


def cine(one: Path, shades: list[int]) -> bytes:
    """A DICOM instance like ``one``, with a frame of each of these shades, crossed by a line."""
    made = pydicom.dcmread(one)
    made.SOPInstanceUID = made.file_meta.MediaStorageSOPInstanceUID = "1.2.3.900"
    frames = np.repeat(np.array(shades, np.uint8), 96 * 96).reshape(len(shades), 96, 96)
    frames[:, 40:44] = 255
    frames[:, 90:] = 0
    made.NumberOfFrames = len(shades)
    made.PixelData = frames.tobytes()
    made.WindowCenter, made.WindowWidth = 127.5, 256
    out = io.BytesIO()
    made.save_as(out, enforce_file_format=True)
    return out.getvalue()


def test_frames_and_members_of_archives_have_previews(indexed, tmp_path: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    shades = [10 * n for n in range(12)]
    with zipfile.ZipFile(folder / "cine.zip", "w") as archived:
        archived.writestr("cine.dcm", cine(indexed.files["ct"][0], shades))
    settings = indexed.settings.model_copy(update={"data_dir": tmp_path / "data"})
    with Archive(settings, create=True) as archive:
        archive.index(FolderSource([folder]))
        points = {point.record.frame: point.id for point in archive.store.scroll(Filter())}
        indexed_frames = sorted(points)
    assert len(points) == 8
    with LoopbackClient(create_service(settings)) as client:
        body = {"sop": "1.2.3.900", "k": 1}
        middle = client.post("/v1/search", json=body).json()["evidence"]["query_id"]
        assert middle == points[indexed_frames[3]]
        for frame in indexed_frames[:2]:
            found = client.post("/v1/search", json={**body, "frame": frame})
            assert found.json()["evidence"]["query_id"] == points[frame]
        other = next(n for n in range(12) if n not in points)
        missing = client.post("/v1/search", json={**body, "frame": other})
        assert missing.status_code == 404
        assert ", ".join(map(str, indexed_frames)) in missing.json()["detail"]
        address = f"/v1/images/{middle}/preview"
        assert abs(shown(client.get(address))[:32].mean() - shades[indexed_frames[3]]) < 3
        for frame in (0, other, 11):
            picture = shown(client.get(address, params={"frame": frame}))
            assert abs(picture[:32].mean() - shades[frame]) < 3
        beyond = client.get(address, params={"frame": 12})
        assert (beyond.status_code, beyond.json()["code"]) == (400, "query")
        assert "the file has 12" in beyond.json()["detail"]
        (folder / "cine.zip").unlink()
        assert client.get(address).status_code == 410
