"""The search page, read as a browser without JavaScript would."""

import base64
from html.parser import HTMLParser
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from services.loopback import LoopbackClient

from api.portal.facets import maker
from api.portal.words import evidence_sentence, verdict
from api.schemas import EvidenceDocument, OodDocument
from api.service import create_service
from engine.search.sizes import Size
from indexer.archive import Archive

HOSTILE_LABEL = "<script>alert(1)<script>"
EVERYTHING = {"group_by": "none", "exclude_own": "none"}
EVERY_LINK = "&group_by=none&exclude_own=none"


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
        return [src for image in self.all("img") if (src := image.get("src")) is not None]


def opened(client: TestClient, address: str = "/", **params: object) -> Page:
    response = client.get(address, params=params)
    assert response.status_code == 200, response.text
    assert response.headers["content-type"].startswith("text/html")
    return Page(response.text)


def test_the_front_page_offers_form_filters_and_images_to_start_from(client) -> None:
    page = opened(client)
    (form,) = page.all("form", method="post")
    assert form["enctype"] == "multipart/form-data"
    assert page.all("input", type="file", name="file")
    assert page.all("a", href="./?where=modality%3DMR")
    assert len(page.thumbnails()) == 12
    assert client.get("/" + page.thumbnails()[0]).headers["content-type"] == "image/jpeg"
    assert "Not a medical device; for research use only." in page.text


def test_every_field_has_a_label_and_every_picture_a_text(client, indexed, id_of) -> None:
    own = id_of(indexed.files["ct"][0])
    page = opened(client, like=own, where=["study_year=2010..2030"])
    labelled = {label.get("for") for label in page.all("label")}
    fields = [*page.all("input"), *page.all("select")]
    bare = [one for one in fields if one.get("type") != "hidden" and "id" in one]
    assert bare
    assert all(one["id"] in labelled or "aria-label" in one for one in bare)
    assert all(image["alt"] for image in page.all("img"))
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert page.all("html", lang="en")


def test_nothing_on_the_page_needs_what_the_policy_forbids(client, indexed, id_of) -> None:
    page = opened(client, like=id_of(indexed.files["ct"][0]))
    (script,) = page.all("script")
    assert client.get(f"/{script['src']}").headers["content-type"].startswith("text/javascript")
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
        data={"k": "4", "order": "hamming", "where": ["", "modality=CT"], **EVERYTHING},
    )
    assert response.status_code == 200
    page = Page(response.text)
    assert "4 similar images" in page.text
    asked, first, *_ = page.thumbnails()
    assert first == f"v1/images/{id_of(path)}/thumbnail"
    jpeg = base64.b64decode(asked.removeprefix("data:image/jpeg;base64,"))
    assert jpeg.startswith(b"\xff\xd8")
    assert len(page.all("meter")) == 4
    bars = [float(one["value"] or 0) for one in page.all("meter")]
    assert bars[0] == pytest.approx(1, abs=0.05)
    assert "0 of 64" in page.text
    assert "all 6 images that match the filters were compared" in page.text
    assert "not calibrated" in page.text
    more = f"./?like={id_of(path)}&where=modality%3DCT&k=4&order=hamming{EVERY_LINK}"
    assert page.all("a", href=more)
    # The form keeps what was chosen, except the file.
    assert page.all("input", name="k")[0]["value"] == "4"
    assert "selected" in page.all("option", value="hamming")[0]
    assert page.all("input", type="hidden", name="where", value="modality=CT")


def test_more_like_this_leads_on(client, indexed, id_of) -> None:
    own = id_of(indexed.files["rings"][0])
    page = opened(client, like=own, k=3, where=["labels=rings"])
    hits = [src for src in page.thumbnails() if own not in src]
    assert len(hits) == 3
    assert page.all("a", href=f"./?like={own}&k=3")  # takes the filter away again
    assert page.all("input", type="hidden", name="like", value=own)


def test_the_form_of_an_indexed_image_is_answered_by_an_address(client, indexed, id_of) -> None:
    own = id_of(indexed.files["rings"][0])
    data = {"id": own, "k": "5", "where": ["", "labels=rings"], "order": "content"}
    response = client.post("/", files={"file": ("", b"")}, data=data)
    assert response.status_code == 303
    assert response.headers["location"] == f"./?like={own}&where=labels%3Drings&k=5"


def test_a_new_file_takes_the_place_of_the_image_before(client, indexed, id_of) -> None:
    before, after = indexed.files["rings"][0], indexed.files["ct"][1]
    response = client.post(
        "/", files={"file": after.read_bytes()}, data={"id": id_of(before), "k": "1", **EVERYTHING}
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
    assert page.all("div", role="alert")
    assert "Hits may look alike and mean nothing" in page.text
    assert "p = 0.01, at or below 0.03; knn 0.01" in page.text
    assert page.all("meter")


def test_a_refused_image_is_told_why_nothing_is_there(refusing_client, indexed) -> None:
    response = refusing_client.post("/", files={"file": indexed.files["ct"][0].read_bytes()})
    assert response.status_code == 200
    page = Page(response.text)
    assert page.all("div", role="alert")
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
        assert [one.get("src") for one in page.all("script")] == ["static/portal.js"]


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
    address, shown, pages = f"/?like={own}&k=15&exact=true{EVERY_LINK}", [], 0
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
    whole = opened(client, like=own, k=34, exact="true", **EVERYTHING)
    assert shown == [src for src in whole.thumbnails() if own not in src]
    assert len(shown) == 34
    beyond = opened(client, like=own, k=15, page="exact:300", exact="true", **EVERYTHING)
    assert "There are no more" in beyond.text
    assert beyond.all("a", href=f"./?like={own}&k=15&exact=true{EVERY_LINK}")


def test_one_image_of_each_study_and_none_of_the_own_patient_unless_asked_otherwise(
    client, indexed, id_of
) -> None:
    own = id_of(indexed.files["ct"][0])
    usual = opened(client, like=own, where="modality=CT", k=30)
    # Three studies of CT, of which one is the image's own.
    assert len(usual.all("meter")) == 2
    assert "checked" in usual.all("input", type="checkbox", name="group_by")[0]
    assert "checked" in usual.all("input", type="checkbox", name="exclude_own")[0]
    every = f"./?like={own}&where=modality%3DCT&k=30"
    assert usual.all("a", href=f"{every}&group_by=none")
    assert usual.all("a", href=f"{every}&exclude_own=none")
    whole = opened(client, like=own, where="modality=CT", k=30, **EVERYTHING)
    assert len(whole.all("meter")) == 5
    assert "checked" not in whole.all("input", type="checkbox", name="exclude_own")[0]
    content = {"file": indexed.files["ct"][0].read_bytes()}
    data = {"k": "30", "where": "modality=CT"}
    assert len(Page(client.post("/", files=content, data=data).text).all("meter")) == 2
    # As a browser sends a box that is checked: what it means without the check comes first.
    boxes = {"group_by": ["none", "study"], "exclude_own": "none"}
    assert len(Page(client.post("/", files=content, data={**data, **boxes}).text).all("meter")) == 3


def test_a_study_or_an_instance_can_be_linked_to(client, indexed, id_of) -> None:
    for params in ({"study": "1.2.4.0"}, {"sop": "1.2.3.0"}, {"sop": "1.2.3.0", "frame": 0}):
        page = opened(client, where="modality=CT", **params)
        assert page.thumbnails()[0] == f"v1/images/{id_of(indexed.files['ct'][0])}/thumbnail"
        assert page.all("a", href="studies/1.2.4.0")
        assert len(page.all("meter")) == 2
        # The addresses that lead on keep to what was asked.
        name, uid = next(iter(params.items()))
        assert any(f"{name}={uid}" in (one["href"] or "") for one in page.all("a"))
    missing = client.get("/", params={"study": "1.9.9"})
    assert missing.status_code == 404
    assert "1.9.9" in Page(missing.text).text
    several = client.get("/", params={"study": "1.2.4.0", "sop": "1.2.3.0"})
    assert several.status_code == 400


def test_filters_take_several_values_ranges_and_are_taken_away(client) -> None:
    page = opened(client, where="modality=CT")
    both = "./?where=modality%3DCT&where=modality%3DMR"
    assert page.all("a", href=both)
    page = Page(client.get("/", params={"where": ["modality=CT", "modality=MR"]}).text)
    assert len(page.thumbnails()) == 10
    # Each value is a chip that leads to the other one alone.
    chips = [one["href"] for one in page.all("a") if "href" in one]
    assert {"./?where=modality%3DCT", "./?where=modality%3DMR", "./"} <= set(chips)
    asked = {"where": ["modality=CT", "study_year=2010"], "year_from": "2012", "year_to": ""}
    led = client.get("/", params=asked)
    assert (led.status_code, led.headers["location"]) == (
        303,
        "./?where=modality%3DCT&where=study_year%3D2012..",
    )
    page = Page(client.get(led.headers["location"].removeprefix(".")).text)
    assert len(page.thumbnails()) == 4
    assert "from 2012" in page.text
    assert page.all("input", name="year_from")[0]["value"] == "2012"
    typed = client.get("/", params={"is_labels": "rings", "where": "modality!=CT"})
    assert typed.headers["location"] == "./?where=modality%21%3DCT&where=labels%3Drings"
    wrong = client.get("/", params={"where": "study_year=then..now"})
    assert wrong.status_code == 400


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("SIEMENS", "Siemens Healthineers"),
        ("GE MEDICAL SYSTEMS", "GE Healthcare"),
        ("Philips", "Philips Medical Systems"),
        ("Canon_Medical Systems Corporation", "CANON"),
    ],
)
def test_spellings_of_one_maker_are_one(one: str, other: str) -> None:
    assert maker(one) == maker(other)
    assert maker("Agfa") != maker("Fuji")
    assert maker("Medical Systems") == "medical systems"


def test_the_verdict_is_put_in_words() -> None:
    def told(state: str, p: float, elsewhere: float | None = None) -> OodDocument:
        foreign = state == "foreign"
        return OodDocument(
            verdict=state,
            foreign=foreign,
            p=p,
            alpha=0.03,
            scores={},
            p_values={"knn": p},
            p_elsewhere=elsewhere,
            level=None if elsewhere is None else 0.25,
        )

    states = [verdict(told("known", 0.4)), verdict(told("unfamiliar", 0.2, 0.6))]
    states += [verdict(told("foreign", 0.01)), verdict(None)]
    assert [one.state for one in states] == ["known", "unfamiliar", "foreign", "none"]
    assert len({one.title for one in states}) == 4
    # Numbers are not what a reader sees first.
    assert not any("p =" in one.title + one.meaning for one in states)
    assert states[0].figures == "p = 0.4, above 0.03; knn 0.4"
    expected = "p = 0.2, at or below 0.25; knn 0.2; among images of other scanners p = 0.6"
    assert states[1].figures == expected
    assert states[2].figures == "p = 0.01, at or below 0.03; knn 0.01"
    assert states[3].figures is None


def test_values_that_are_not_listed_can_be_typed(archive: Archive) -> None:
    other = archive.of("default")
    search = archive.settings.search.model_copy(update={"facet_values": 5})
    other.settings = archive.settings.model_copy(update={"search": search})
    with LoopbackClient(create_service(archive=other)) as client:
        page = opened(client, where="modality!=US", k=7)
    (form,) = (one for one in page.all("form") if "Label" in (one.get("aria-label") or ""))
    assert form["method"] == "get"
    assert page.all("input", name="is_labels")
    # It asks for the same otherwise.
    assert page.all("input", type="hidden", name="where", value="modality!=US")
    assert page.all("input", type="hidden", name="k", value="7")
