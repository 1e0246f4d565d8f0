"""The search page, read as a browser without JavaScript would."""

import base64
from html.parser import HTMLParser
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from api.portal.view import evidence_sentence
from api.schemas import EvidenceDocument
from engine.search.sizes import Size

HOSTILE_LABEL = "<script>alert(1)<script>"


class Page(HTMLParser):
    """Tags with attributes, and the text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def all(self, tag: str, **attributes: str) -> list[dict[str, str | None]]:
        return [
            found
            for name, found in self.tags
            if name == tag and all(found.get(key) == value for key, value in attributes.items())
        ]

    def thumbnails(self) -> list[str]:
        return [src for image in self.all("img") if (src := image["src"]) is not None]


def opened(client: TestClient, address: str = "/", **params: object) -> Page:
    response = client.get(address, params=params)
    assert response.status_code == 200, response.text
    assert response.headers["content-type"].startswith("text/html")
    return Page(response.text)


def test_the_front_page_offers_form_filters_and_images_to_start_from(client) -> None:
    page = opened(client)
    (form,) = page.all("form")
    assert (form["method"], form["enctype"]) == ("post", "multipart/form-data")
    assert page.all("input", type="file", name="file")
    assert page.all("option", value="modality=CT")
    assert page.all("a", href="./?where=modality%3DMR")
    assert len(page.thumbnails()) == 12
    assert client.get("/" + page.thumbnails()[0]).headers["content-type"] == "image/jpeg"
    assert "Not a medical device; for research use only." in page.text


def test_every_field_has_a_label_and_every_picture_a_text(client, indexed, id_of) -> None:
    own = id_of(indexed.files["ct"][0])
    page = opened(client, like=own, where=["study_year=2010..2030"])
    labelled = {label["for"] for label in page.all("label")}
    fields = [*page.all("input"), *page.all("select")]
    assert all(one["id"] in labelled for one in fields if one.get("type") != "hidden")
    assert all(image["alt"] for image in page.all("img"))
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert page.all("html", lang="en")


def test_nothing_on_the_page_needs_what_the_policy_forbids(client, indexed, id_of) -> None:
    page = opened(client, like=id_of(indexed.files["ct"][0]))
    assert not page.all("script")
    assert not page.all("style")
    for _, attributes in page.tags:
        assert not [name for name in attributes if name == "style" or name.startswith("on")]
    for sheet in [*page.all("link")]:
        assert client.get(f"/{sheet['href']}").status_code == 200


def test_an_upload_is_answered_with_a_grid_of_hits(client, indexed, id_of) -> None:
    path: Path = indexed.files["ct"][1]
    response = client.post(
        "/",
        files={"file": ("scan.dcm", path.read_bytes())},
        data={"k": "4", "order": "hamming", "where": ["", "modality=CT"]},
    )
    assert response.status_code == 200
    page = Page(response.text)
    assert "4 similar images" in page.text
    asked, first, *_ = page.thumbnails()
    assert first == f"v1/images/{id_of(path)}/thumbnail"
    jpeg = base64.b64decode(asked.removeprefix("data:image/jpeg;base64,"))
    assert jpeg.startswith(b"\xff\xd8")
    assert len(page.all("meter")) == 4
    assert float(page.all("meter")[0]["value"] or 0) == pytest.approx(1, abs=2e-3)
    assert "0 of 64 bits differ" in page.text
    assert "all 6 images that match the filters were compared" in page.text
    assert "not calibrated" in page.text
    more = f"./?like={id_of(path)}&where=modality%3DCT&k=4&order=hamming"
    assert page.all("a", href=more)
    # The form keeps what was chosen, except the file.
    assert page.all("input", name="k")[0]["value"] == "4"
    assert "selected" in page.all("option", value="hamming")[0]
    assert "selected" in page.all("option", value="modality=CT")[0]


def test_more_like_this_leads_on(client, indexed, id_of) -> None:
    own = id_of(indexed.files["rings"][0])
    page = opened(client, like=own, k=3, where=["labels=rings"])
    hits = [src for src in page.thumbnails() if own not in src]
    assert len(hits) == 3
    assert page.all("a", href=f"./?like={own}&k=3")  # takes the filter away again
    assert page.all("input", type="hidden", name="id", value=own)


def test_the_form_of_an_indexed_image_is_answered_by_an_address(client, indexed, id_of) -> None:
    own = id_of(indexed.files["rings"][0])
    data = {"id": own, "k": "5", "where": ["", "labels=rings"], "order": "content"}
    response = client.post("/", files={"file": ("", b"")}, data=data)
    assert response.status_code == 303
    assert response.headers["location"] == f"./?like={own}&where=labels%3Drings&k=5"


def test_a_new_file_takes_the_place_of_the_image_before(client, indexed, id_of) -> None:
    before, after = indexed.files["rings"][0], indexed.files["ct"][1]
    response = client.post(
        "/", files={"file": after.read_bytes()}, data={"id": id_of(before), "k": "1"}
    )
    assert Page(response.text).thumbnails()[1:] == [f"v1/images/{id_of(after)}/thumbnail"]


def test_filters_without_an_image_narrow_what_is_shown(client) -> None:
    page = opened(client, where=["modality=MR"])
    assert len(page.thumbnails()) == 4
    assert page.all("a", href="./")
    none = opened(client, where=["modality=MR", "labels=ct"])
    assert "No image passes the filters" in none.text


def test_a_file_that_cannot_be_read_is_told_in_a_sentence(client) -> None:
    response = client.post("/", files={"file": ("<b>letter.txt", b"Dear colleague")})
    page = Page(response.text)
    assert response.status_code == 422
    assert page.all("section", role="alert")
    assert "The content is neither DICOM nor NIfTI, PNG, JPEG, JPEG 2000" in page.text
    assert "letter" not in response.text
    assert page.all("form")


@pytest.mark.parametrize(
    ("data", "status", "said"),
    [
        ({"k": "5"}, 400, "Choose an image file first"),
        ({"k": "x"}, 422, "K: Input should be a valid integer"),
    ],
)
def test_mistakes_in_the_form_are_told_on_the_page(client, data, status, said) -> None:
    response = client.post("/", files={"file": ("", b"")}, data=data)
    assert response.status_code == status
    assert response.headers["content-type"].startswith("text/html")
    assert said in Page(response.text).text


def test_mistakes_in_the_address_are_told_on_the_page(client) -> None:
    for params, status in (
        ({"like": "../../etc/passwd"}, 404),
        ({"where": "shoe_size=44"}, 400),
        ({"k": "x"}, 422),
    ):
        response = client.get("/", params=params)
        assert response.status_code == status
        page = Page(response.text)
        assert page.all("section", role="alert")
        assert not page.thumbnails()
        assert page.all("a", href="./?where=modality%3DCT")


def test_a_file_that_is_too_large_is_told_on_the_page(client) -> None:
    for size in (200_001, 2_000_000):
        response = client.post("/", files={"file": b"x" * size})
        assert response.status_code == 413
        assert Page(response.text).all("section", role="alert")


def test_a_foreign_image_gets_a_banner(foreign_client, indexed) -> None:
    response = foreign_client.post("/", files={"file": indexed.files["ct"][0].read_bytes()})
    page = Page(response.text)
    assert page.all("p", role="alert")
    assert "looks foreign to the model (p = 0.01, at or below 0.03; knn 0.01)" in page.text
    assert page.all("meter")


def test_a_refused_image_is_told_why_nothing_is_there(refusing_client, indexed) -> None:
    response = refusing_client.post("/", files={"file": indexed.files["ct"][0].read_bytes()})
    assert response.status_code == 200
    page = Page(response.text)
    assert page.all("p", role="alert")
    assert "Not searched" in page.text
    assert "Nothing was searched: this service refuses what is foreign" in page.text
    assert "similar image" not in page.text
    assert "No image passes the filters" not in page.text
    assert not page.all("meter")


def test_hostile_text_is_shown_and_not_run(client, indexed, id_of) -> None:
    own = id_of(indexed.files[HOSTILE_LABEL][0])
    near = opened(client, like=id_of(indexed.files["rings"][0]), where=[f"labels={HOSTILE_LABEL}"])
    assert HOSTILE_LABEL in near.text
    assert any(own in src for src in near.thumbnails())
    asked = client.get("/", params={"where": ['x"><script>alert(2)</script>']})
    for page in (near, opened(client), Page(asked.text)):
        assert not page.all("script")


def evidence(rung: str, radius: int | None, **more: object) -> EvidenceDocument:
    values: dict[str, object] = {
        "cells": None,
        "cells_in_all": 252,
        "matching": 7211,
        "candidates": 14,
        "estimated": False,
        "facets_estimated": False,
        "facets_at_least": [],
        "compared": 14,
        "approximate": False,
        "ranked": 14,
        "rungs_tried": {},
        "order": "content",
        "model": "m",
        "bits": 64,
        "precision": "fp32",
        "index_precision": "fp32",
        "rendering": "2",
        "rendered_otherwise": 0,
        "note": None,
        "timings_ms": {"encode": 10.4, "rank": 1.6},
    }
    return EvidenceDocument(rung=rung, radius=radius, **{**values, **more})


def test_the_evidence_is_put_in_words() -> None:
    few, many = Size(14), Size(7_200_000, estimated=True)
    assert evidence_sentence(evidence("codes", 7), Size(7211), filtered=False) == (
        "14 of 7,211 images were compared, every image within 7 bits among them; 12 ms."
    )
    assert evidence_sentence(evidence("cells", None, cells=16), Size(7211), filtered=True) == (
        "14 of 7,211 images that match the filters were compared: those in the 16 nearest of 252 "
        "cells; 12 ms."
    )
    assert "every image within 9 bits" in evidence_sentence(
        evidence("codes", 9, cells=16), Size(7211), filtered=False
    )
    assert evidence_sentence(
        evidence("dense", None, rungs_tried={"dense": 14}), few, filtered=True
    ) == ("All 14 images that match the filters were compared; 12 ms.")
    assert evidence_sentence(
        evidence("dense", None, rungs_tried={"codes-3": 2, "dense": 14}), few, filtered=True
    ) == (
        "Too few images passed the coarse filter, so all 14 images that match the filters were "
        "compared; 12 ms."
    )
    assert "All 14 images were compared, as asked" in evidence_sentence(
        evidence("exact", None), few, filtered=False
    )
    estimated = evidence("codes", 3, candidates=128_000, estimated=True)
    assert evidence_sentence(estimated, many, filtered=False).startswith(
        "About 128,000 of about 7,200,000 images were compared"
    )
    noted = evidence("dense", None, note="the codes of many images are near: all were compared")
    assert evidence_sentence(noted, many, filtered=False) == (
        "The codes of many images are near: all were compared; 12 ms."
    )
    older = evidence("exact", None, rendered_otherwise=1)
    assert "1 hit was rendered by another version" in evidence_sentence(
        older, Size(500), filtered=False
    )
    mixed = evidence("exact", None, index_precision="bf16")
    assert evidence_sentence(mixed, few, filtered=False) == (
        "All 14 images were compared, as asked; encoded in fp32, the index in bf16: similarities "
        "may be off by 0.01; 12 ms."
    )
    graph = evidence("dense", None, approximate=True)
    assert "may miss some" in evidence_sentence(graph, many, filtered=False)


def test_pages_follow_each_other_to_the_end_of_the_list(client, indexed, id_of) -> None:
    own = id_of(indexed.files["rings"][0])
    address, shown, pages = f"/?like={own}&k=15&exact=true", [], 0
    while True:
        page = Page(client.get(address).text)
        shown += [src for src in page.thumbnails() if own not in src]
        pages += 1
        following = page.all("a", rel="next")
        if not following:
            break
        address = str(following[0]["href"]).removeprefix(".")
        assert f"like={own}" in address
    assert pages == 3
    whole = opened(client, like=own, k=34, exact="true")
    assert shown == [src for src in whole.thumbnails() if own not in src]
    assert len(shown) == 34
    beyond = opened(client, like=own, k=15, page="exact:300", exact="true")
    assert "There are no more" in beyond.text
    assert beyond.all("a", href=f"./?like={own}&k=15&exact=true")


def test_after_an_upload_more_are_told_of(client, indexed) -> None:
    content = indexed.files["rings"][0].read_bytes()
    page = Page(client.post("/", files={"file": content}, data={"k": "5"}).text)
    assert "There are more" in page.text
    assert not page.all("a", rel="next")
    page = Page(client.post("/", files={"file": content}, data={"k": "100"}).text)
    assert "There are more" not in page.text


def test_one_image_of_each_study_may_be_asked_for(client, indexed, id_of) -> None:
    path = indexed.files["ct"][0]
    files, data = {"file": path.read_bytes()}, {"k": "30", "where": "modality=CT"}
    page = Page(client.post("/", files=files, data={**data, "group_by": "study"}).text)
    assert len(page.all("meter")) == 3
    assert "checked" in page.all("input", name="group_by")[0]
    own = id_of(path)
    response = client.post("/", files={"file": ("", b"")}, data={"id": own, "group_by": "study"})
    assert response.headers["location"] == f"./?like={own}&group_by=study"
    linked = opened(client, like=own, where="modality=CT", group_by="study", k=30)
    assert len(linked.all("meter")) == 3
    assert linked.all("a", href=f"./?like={own}&k=30&group_by=study")
