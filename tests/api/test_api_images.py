"""Images, thumbnails, facets, health."""

import io
from collections.abc import Iterator

import pytest
from fastapi.testclient import TestClient
from PIL import Image
from services.loopback import LoopbackClient

from api.service import create_service
from engine.store.base import Filter, Ids
from indexer.archive import Archive
from indexer.imaging.thumbnails import thumbnail_name

UNKNOWN = "00000000-0000-0000-0000-000000000000"


def test_an_image_is_described(client, indexed, id_of) -> None:
    own = id_of(indexed.files["ct"][2])
    document = client.get(f"/v1/images/{own}").json()
    assert document["id"] == own
    assert document["sop"] == "1.2.3.2"
    assert (document["modality"], document["body_part"]) == ("CT", "CHEST")
    assert document["study_year"] == 2012
    assert document["labels"] == ["ct"]


def test_a_thumbnail_is_a_jpeg_that_browsers_ask_about_before_showing_it_again(
    client, indexed, id_of
) -> None:
    address = f"/v1/images/{id_of(indexed.files['rings'][0])}/thumbnail"
    response = client.get(address)
    assert response.headers["content-type"] == "image/jpeg"
    assert response.headers["cache-control"] == "private, no-cache"
    with Image.open(io.BytesIO(response.content)) as picture:
        assert picture.format == "JPEG"
        assert picture.size == (96, 96)
    again = client.get(address, headers={"If-None-Match": response.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    assert client.get(address, headers={"If-None-Match": '"other"'}).status_code == 200


@pytest.mark.parametrize("tail", ["", "/thumbnail"])
@pytest.mark.parametrize(
    "image_id",
    [
        UNKNOWN,
        "1",
        "..",
        "../../etc/passwd",
        "..%2F..%2Fetc%2Fpasswd",
        "%2e%2e%2f%2e%2e%2fetc%2fpasswd",
        "..%5c..%5cetc",
        "%00",
        "{" + UNKNOWN + "}",
    ],
)
def test_what_is_no_id_of_an_image_is_a_404(client, image_id, tail) -> None:
    response = client.get(f"/v1/images/{image_id}{tail}")
    assert response.status_code == response.json()["status"] == 404
    assert response.headers["content-type"] == "application/problem+json"
    assert "root:" not in response.text


@pytest.fixture(scope="module")
def spare(indexed, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Archive]:
    """An archive of one's own, to damage."""
    with Archive(indexed.copy(tmp_path_factory.mktemp("spare") / "data")) as archive:
        yield archive


@pytest.fixture(scope="module")
def spare_client(spare: Archive) -> Iterator[TestClient]:
    with LoopbackClient(create_service(archive=spare)) as client:
        yield client


def test_a_deleted_image_shows_no_thumbnail_even_when_its_file_is_left(
    spare: Archive, spare_client: TestClient
) -> None:
    first = next(spare.store.scroll(Filter())).id
    address = f"/v1/images/{first}/thumbnail"
    assert spare_client.get(address).status_code == 200
    spare.store.delete(Filter(must=(Ids((first,)),)))
    assert (spare.data_dir.thumbnails / thumbnail_name(first)).is_file()
    assert spare_client.get(address).status_code == 404


def test_a_lost_thumbnail_is_a_404(spare: Archive, spare_client: TestClient) -> None:
    first = next(spare.store.scroll(Filter())).id
    (spare.data_dir.thumbnails / thumbnail_name(first)).unlink()
    response = spare_client.get(f"/v1/images/{first}/thumbnail")
    assert response.status_code == 404
    assert "no thumbnail" in response.json()["detail"]


def test_facets_are_counted_over_what_the_filters_let_pass(client) -> None:
    whole = client.get("/v1/facets").json()
    assert whole["count"] == 35
    assert whole["facets"]["modality"] == {"CT": 6, "MR": 4}
    assert whole["facets"]["labels"]["stripes"] == 14
    narrow = client.get("/v1/facets", params={"where": ["modality=CT", "study_year=2012.."]})
    assert narrow.json()["count"] == 4
    assert narrow.json()["facets"]["labels"] == {"ct": 4}
    wrong = client.get("/v1/facets", params={"where": "nonsense"})
    assert (wrong.status_code, wrong.json()["code"]) == (400, "query")


def test_health_tells_points_and_model(client, archive) -> None:
    assert client.get("/healthz").json() == {
        "status": "ok",
        "points": 35,
        "model": archive.manifest.fingerprint,
    }
