"""Searches by a region of a picture: of a file, of an upload, of an image of the archive."""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from conftest import png
from fastapi.testclient import TestClient
from PIL import Image
from services.loopback import LoopbackClient
from test_api_page import Page

from api.service import create_service
from engine.settings import Settings

REGION = "0.25,0.5,0.5,0.375"
EVERYTHING = {"k": 40, "exact": True, "group_by": "none"}


def cut(path: Path) -> bytes:
    """The region of a picture of 96 x 96 pixels, as a file."""
    return png(np.asarray(Image.open(path))[48:84, 24:72])


def found(answer: Any) -> tuple[list[tuple[str, float]], Any]:
    """The hits, and the verdict."""
    assert answer.status_code == 200, answer.text
    told = answer.json()
    return [(hit["id"], round(hit["similarity"], 5)) for hit in told["hits"]], told["ood"]


def searched(client: TestClient, content: bytes, **asked: Any) -> tuple[list[Any], Any]:
    data = {name: str(value) for name, value in {**EVERYTHING, **asked}.items()}
    return found(client.post("/v1/search", files={"file": content}, data=data))


def test_a_region_is_searched_for_as_the_picture_that_was_cut_out(
    client: TestClient, indexed, id_of: Callable[[Path], str]
) -> None:
    path = indexed.files["rings"][0]
    own, content = id_of(path), path.read_bytes()
    expected, _ = searched(client, cut(path))
    whole, _ = searched(client, content)
    assert searched(client, content, region=REGION)[0] == expected != whole
    like = client.post("/v1/search", json={"id": own, "region": REGION, **EVERYTHING})
    # An indexed image is no hit of its own.
    assert found(like)[0] == [hit for hit in expected if hit[0] != own]
    assert like.json()["evidence"]["query_id"] == own
    first = client.post("/v1/search", json={"id": own, "region": REGION, **EVERYTHING, "k": 5})
    page = {"region": REGION, **EVERYTHING, "k": 5, "page": first.json()["next_page"]}
    second = client.post("/v1/search", json={"id": own, **page})
    assert [*found(first)[0], *found(second)[0]] == found(like)[0][:10]


def test_the_verdict_is_on_the_region_alone(calibrated: Settings, indexed, archive) -> None:
    path = indexed.files["stripes"][0]
    (own,) = [one for one, at in archive.paths(ids(archive)).items() if at == path]
    with LoopbackClient(create_service(calibrated)) as client:
        _, expected = searched(client, cut(path))
        _, whole = searched(client, path.read_bytes())
        assert searched(client, path.read_bytes(), region=REGION)[1] == expected != whole
        like = client.post("/v1/search", json={"id": own, "region": REGION, **EVERYTHING})
        assert found(like)[1] == expected


def ids(archive: Any) -> list[str]:
    from engine.store.base import Filter

    return [point.id for point in archive.store.scroll(Filter())]


def test_what_is_no_region_is_told_with_the_way_out(client, indexed, id_of) -> None:
    own = id_of(indexed.files["rings"][0])
    for region, status, said in (
        ("1,2", 400, "four numbers"),
        ("0.8,0,0.5,0.5", 400, "not within the picture"),
        ("0,0,0.1,0.5", 422, "10 x 48 of the picture's 96 x 96 pixels; choose one of 32 x 32"),
    ):
        answer = client.post("/v1/search", json={"id": own, "region": region})
        assert (answer.status_code, said in answer.json()["detail"]) == (status, True)
        file = {"file": indexed.files["rings"][0].read_bytes()}
        answer = client.post("/v1/search/upload", files=file, data={"region": region})
        assert (answer.status_code, said in answer.json()["detail"]) == (status, True)
        answer = client.get("/", params={"like": own, "region": region})
        assert answer.status_code == status
        if status == 422:
            page = Page(answer.text)
            assert page.all("a", href=f"./?like={own}")
            assert any((one["href"] or "").startswith("region?") for one in page.all("a"))
    both = {"like": [own, id_of(indexed.files["rings"][1])], "region": REGION}
    assert client.get("/", params=both).status_code == 400
    assert client.get("/region", params={"like": both["like"]}).status_code == 400
    assert client.get("/region").status_code == 400
    assert client.get("/region", params={"like": "none"}).status_code == 404
    assert client.get("/region", params={"query": "never"}).status_code == 410


@contextmanager
def instead(path: Path, content: bytes | None) -> Iterator[None]:
    """Another file, or none, where an image was indexed from."""
    before = path.read_bytes()
    path.unlink()
    try:
        if content is not None:
            path.write_bytes(content)
        yield
    finally:
        path.write_bytes(before)


def test_without_its_original_an_image_has_no_region(client, indexed, id_of) -> None:
    path = indexed.files["rings"][1]
    own = id_of(path)
    asked = {"id": own, "region": REGION}
    for content, status, code in (
        (None, 410, "source-gone"),
        (indexed.files["rings"][2].read_bytes(), 409, "source-changed"),
    ):
        with instead(path, content):
            answer = client.post("/v1/search", json=asked)
            assert (answer.status_code, answer.json()["code"]) == (status, code)
            answer = client.get("/", params={"like": own, "region": REGION, "where": "modality=CT"})
            page = Page(answer.text)
            assert answer.status_code == status
            assert page.all("a", href=f"./?like={own}&where=modality%3DCT")
            # All of it is found as before.
            assert client.post("/v1/search", json={"id": own}).status_code == 200
    assert client.post("/v1/search", json=asked).status_code == 200


def edges(page: Page) -> list[str | None]:
    """The rectangle that is marked."""
    rectangle = page.all("rect")[-1]
    return [rectangle[name] for name in ("x", "y", "width", "height")]


def test_a_region_is_chosen_on_a_page_and_shown_with_its_answer(client, indexed, id_of) -> None:
    own = id_of(indexed.files["ct"][0])
    shown = Page(client.get("/", params={"like": own, "where": "modality=CT"}).text)
    (link,) = [one["href"] or "" for one in shown.all("a") if "region?" in (one["href"] or "")]
    assert link == f"region?like={own}&where=modality%3DCT"
    page = Page(client.get("/" + link).text)
    assert page.thumbnails() == [f"v1/images/{own}/preview?size=1024"]
    assert edges(page) == ["0.25", "0.25", "0.5", "0.5"]
    (form,) = [one for one in page.all("form", method="get") if one["class"] == "region"]
    assert form["action"] == "./"
    hidden = {one["name"] or "": one["value"] for one in page.all("input", type="hidden")}
    assert hidden == {"like": own, "where": "modality=CT"}
    chosen = {"region_x": "0.25", "region_y": "0.5", "region_w": "0.5", "region_h": "0.375"}
    assert {one["name"] for one in page.all("input", type="number")} == set(chosen)
    led = client.get("/", params={**hidden, **chosen})
    assert led.status_code == 303
    address = led.headers["location"]
    assert "region=0.25%2C0.5%2C0.5%2C0.375" in address
    page = Page(client.get("/" + address.removeprefix("./")).text)
    assert edges(page) == ["0.25", "0.5", "0.5", "0.375"]
    assert "A region of CT CHEST" in page.text
    assert "From left to right 25 to 75 %, from top to bottom 50 to 88 %" in page.text
    # The whole of it with the same filters; and the region stays with other ones.
    assert page.all("a", href=f"./?like={own}&where=modality%3DCT")
    others = [one["href"] or "" for one in page.all("a") if "where=modality" in (one["href"] or "")]
    assert any("region=" in one and "modality%3DMR" in one for one in others)
    named = page.all("input", type="hidden", name="region")
    assert {one["value"] for one in named} == {REGION}
    hits = [src.split("/")[2] for src in page.thumbnails()[1:]]
    told = {"id": own, "region": REGION, "where": ["modality=CT"], "group_by": "study"}
    told = {**told, "exclude_own": "patient"}
    answer = client.post("/v1/search", json=told).json()
    assert hits == [one["id"] for one in answer["hits"]]


def test_a_region_of_an_upload_is_searched_for_as_long_as_it_is_kept(client, indexed) -> None:
    path = indexed.files["rings"][0]
    every = {"k": "40", "exact": "true", "group_by": "none", "exclude_own": "none"}
    sent = Page(client.post("/", files={"file": path.read_bytes()}, data=every).text)
    (link,) = [one["href"] or "" for one in sent.all("a") if "region?" in (one["href"] or "")]
    page = Page(client.get("/" + link).text)
    (source,) = page.thumbnails()
    assert source.startswith("data:image/jpeg;base64,")
    hidden = {one["name"] or "": one["value"] or "" for one in page.all("input", type="hidden")}
    page = Page(client.get("/", params={**hidden, "region": REGION}).text)
    assert "A region of your image" in page.text
    assert page.thumbnails()[0].startswith("data:image/jpeg;base64,")
    expected, _ = searched(client, cut(path))
    hits = re.findall(r"v1/images/([^/]+)/thumbnail", " ".join(page.thumbnails()))
    assert hits == [one for one, _ in expected]
    # It is no picture of the tab's: that would stand in the whole one's place.
    assert not [one for tag, one in page.tags if "data-kept" in one and tag == "figure"]
    small = client.get("/", params={**hidden, "region": "0,0,0.1,0.1"})
    assert small.status_code == 422
    assert "32 x 32" in small.text
    back = [one["href"] or "" for one in Page(small.text).all("a")]
    assert any("query=" in one and "region=" not in one for one in back)
