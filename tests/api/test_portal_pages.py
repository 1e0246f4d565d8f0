"""The pages of a study and of an image, read as a browser without JavaScript would."""

import csv
import io
import re
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from pydicom import dcmread
from services.loopback import LoopbackClient
from test_api_page import HOSTILE_LABEL, Page

from api.audit.log import open_log
from api.security.keys import Keys
from api.security.policy import Scope
from api.service import create_service
from engine.integration_settings import ViewerSettings
from engine.records import Point
from engine.settings import Settings
from engine.store.base import Filter
from indexer.archive import Archive
from indexer.ledger.database import Database

sys.path.append(str(Path(__file__).parents[1] / "indexer"))
from patients import ANNA, STUDIES, index_patients

STUDY = "1.2.4.0"


def opened(client: TestClient, address: str, **params: Any) -> Page:
    answer = client.get(address, params=params or None)
    assert answer.status_code == 200, answer.text
    return Page(answer.text)


def at(href: str | None) -> str:
    """The address of what a page below the search page names."""
    return "/" + (href or "").removeprefix("../")


def pictures(page: Page) -> list[str]:
    """Ids of the images whose thumbnails are shown."""
    found = (re.fullmatch(r"\.\./v1/images/([^/]+)/thumbnail", src) for src in page.thumbnails())
    return [one[1] for one in found if one]


def test_a_found_case_is_opened(client, indexed, id_of) -> None:
    own = id_of(indexed.files["ct"][0])
    hits = Page(client.get("/", params={"like": own, "where": "modality=CT"}).text)
    study = next(one["href"] for one in hits.all("a") if "studies/" in (one["href"] or ""))
    page = opened(client, f"/{study}")
    assert "CT CHEST" in page.text
    image = next(one["href"] for one in page.all("a", **{"class": "picture"}))
    page = opened(client, at(image))
    large = next(src for src in page.thumbnails() if "preview" in src)
    answer = client.get(at(large))
    assert answer.headers["content-type"] == "image/jpeg"
    assert page.all("a", href=f"../{study}")
    beside = next(one["href"] or "" for one in hits.all("a") if "compare" in (one["href"] or ""))
    assert beside.startswith(f"compare?left={own}&right=")
    page = opened(client, f"/{beside}&window=400&level=40")
    pair = [src for src in page.thumbnails() if "size=1024&window=400&level=40" in src]
    assert len(pair) == 2
    assert all(client.get("/" + src).status_code == 200 for src in pair)
    for wrong in ({"right": own}, {"left": own, "query": "x", "right": own}, {"left": own}):
        assert client.get("/compare", params=wrong).status_code in (400, 422)


def test_a_study_shows_its_images_and_related_cases_of_other_patients(
    client, indexed, id_of
) -> None:
    page = opened(client, f"/studies/{STUDY}")
    own = [id_of(path) for path in indexed.files["ct"][:2]]
    related = client.get(f"/v1/studies/{STUDY}/related", params={"k": 12}).json()["hits"]
    assert len(related) > 3
    assert pictures(page) == [*own, *(hit["id"] for hit in related)]
    assert "2 indexed images in 1 series" in page.text
    assert page.all("a", href=f"../{'./?study=' + STUDY}")
    # An open service makes no documents.
    assert not page.all("form", action="../documents")
    missing = client.get("/studies/1.9.9")
    assert missing.status_code == 404
    assert "1.9.9" in Page(missing.text).text
    assert client.get(f"/studies/{STUDY}", params={"page": 2}).status_code == 400


def test_an_image_is_shown_with_a_window_and_a_frame(client, indexed, id_of) -> None:
    first, second = (id_of(path) for path in indexed.files["ct"][:2])
    page = opened(client, f"/images/{first}")
    assert "1 of 2 in its series" in page.text
    assert page.all("a", rel="next", href=f"{second}?") or page.all("a", rel="next", href=second)
    assert page.all("a", href="?window=1500&level=-600")
    shown = opened(client, f"/images/{first}", window="1500", level="-600", frame_number="1")
    assert f"../v1/images/{first}/preview?size=1024&window=1500&level=-600" in shown.thumbnails()
    other = opened(client, f"/images/{first}", frame_number="3")
    assert f"../v1/images/{first}/preview?size=1024&frame=2" in other.thumbnails()
    for wrong in ({"window": "x", "level": "1"}, {"window": "5"}, {"frame_number": "0"}):
        refused = client.get(f"/images/{first}", params=wrong)
        assert (refused.status_code, refused.headers["content-type"][:9]) == (400, "text/html")
    plain = opened(client, f"/images/{id_of(indexed.files['rings'][0])}")
    assert not plain.all("input", name="window")
    assert client.get("/images/none").status_code == 404


def test_an_image_is_turned_and_mirrored_by_its_address(client, indexed, id_of) -> None:
    own = id_of(indexed.files["ct"][0])
    address, page = f"/images/{own}", opened(client, f"/images/{own}", window="400", level="40")
    assert said(page) == {"0"}

    def after(page: Page, *steps: str) -> Page:
        for step in steps:
            (link,) = page.all("a", **{"data-step": step})
            page = opened(client, f"{address}{link['href']}")
        return page

    def classes(page: Page) -> str:
        (large,) = [one for one in page.all("img") if "preview" in (one["src"] or "")]
        assert "window=400" in (large["src"] or "")
        return (large["class"] or "").removeprefix("large").strip()

    # What is seen is mirrored: so a quarter to the right before it is one to the left after it.
    for steps, expected in (
        (("right",), "turned-90"),
        (("left",), "turned-270"),
        (("right", "right"), "turned-180"),
        (("mirror",), "mirrored"),
        (("right", "mirror"), "turned-270 mirrored"),
        (("mirror", "left"), "turned-270 mirrored"),
        (("right", "mirror", "right", "mirror"), ""),
        (("right", "mirror", "stored"), ""),
    ):
        assert classes(after(page, *steps)) == expected, steps
    turned = after(page, "right", "mirror")
    # A quarter to the left, mirrored, and searches use the picture as stored.
    assert said(turned) == {"270", "mirrored", "changed"}
    # The window, the frame and the image after it are chosen for the picture as it is shown.
    assert turned.all("a", href="?window=1500&level=-600&turn=270&mirror=true")
    assert turned.all("input", type="hidden", name="turn", value="270")
    (following,) = turned.all("a", rel="next")
    assert "turn=270&mirror=true" in (following["href"] or "")
    for wrong in ({"turn": "45"}, {"turn": "x"}, {"mirror": "2"}):
        assert client.get(address, params=wrong).status_code == 400


def said(page: Page) -> set[str | None]:
    """What is said of how the picture is turned."""
    shown = [one for _, one in page.tags if "hidden" not in one]
    found = {one["data-turned-by"] for one in shown if "data-turned-by" in one}
    found |= {"mirrored" for one in shown if "data-mirrored-so" in one}
    return found | {"changed" for one in shown if "data-changed" in one}


def test_viewers_open_the_study_and_show_both_side_by_side(archive: Archive) -> None:
    other = archive.of("default")
    viewer = ViewerSettings(kind="ohif", url="https://viewer.example", sources=("folder",))
    other.settings = archive.settings.model_copy(update={"viewers": {"ohif": viewer}})
    with LoopbackClient(create_service(archive=other)) as client:
        page = opened(client, f"/studies/{STUDY}")
    links = [one["href"] or "" for one in page.all("a") if "viewer.example" in (one["href"] or "")]
    assert links[0].startswith(f"https://viewer.example/viewer?StudyInstanceUIDs={STUDY}&")
    assert any(f"StudyInstanceUIDs={STUDY},1.2.4." in one for one in links)


@pytest.fixture(scope="module")
def hostile(indexed, store_root: Path) -> Iterator[TestClient]:
    """An archive whose every field has markup in it."""
    settings = indexed.copy(store_root / "hostile")
    with Archive(settings) as archive:
        points: list[Point] = []
        for point in archive.store.scroll(Filter(), with_z=True):
            markup = {
                name: f'"><img src=x onerror=alert(1)>{HOSTILE_LABEL}{{{{7*7}}}}{name}'
                for name in (
                    *("modality", "body_part", "view", "laterality", "manufacturer", "sex"),
                    *("age_band", "source", "study", "series"),
                )
            }
            markup["body_part"] = '=HYPERLINK("https://evil.example")' + markup["body_part"]
            labels = (f"<svg onload=alert(1)>{point.id[:2]}", HOSTILE_LABEL)
            record = replace(point.record, **markup, labels=labels)
            points.append(replace(point, record=record, missing_frames="<b>frames</b>", z=point.z))
        archive.store.upsert(points)
        archive.store.flush()
    with LoopbackClient(create_service(settings), follow_redirects=False) as client:
        yield client


def test_what_an_archive_says_is_shown_and_never_run(hostile: TestClient) -> None:
    first = Page(hostile.get("/").text)
    image = first.thumbnails()[0].split("/")[2]
    addresses = ["/", f"/?like={image}&k=5&group_by=none&exclude_own=none", f"/images/{image}"]
    studies = [one["href"] or "" for one in first.all("a") if "studies" in (one["href"] or "")]
    addresses.append("/" + studies[0])
    other, third = (src.split("/")[2] for src in first.thumbnails()[1:3])
    refined = f"/?like={image}&like={other}&dislike={third}&group_by=none&exclude_own=none"
    addresses += [refined, f"/collection?image={image}&image={third}&like={other}"]
    addresses += ["/?where=labels%3D%3Csvg+onload%3Dalert(1)%3E", "/studies/%3Cscript%3E"]
    for address in addresses:
        answer = hostile.get(address)
        page = Page(answer.text)
        scripts = [one.get("src") for one in page.all("script")]
        viewer = ["../static/viewer.js"] if address.startswith("/images/") else []
        assert scripts in (["static/portal.js"], ["../static/portal.js", *viewer])
        for tag, attributes in page.tags:
            assert tag not in ("svg", "b", "iframe", "object", "base")
            assert not [name for name in attributes if name.startswith("on") or name == "style"]
            assert not (attributes.get("href") or "").lower().startswith("javascript:")
        assert all("/v1/images/" in f"/{src}" for src in page.thumbnails())
        assert "49" not in re.sub(r"[0-9a-f-]{8,}|\d+ ms|\d\.\d+", "", page.text)
        assert "unsafe" not in answer.headers["content-security-policy"]
    assert HOSTILE_LABEL in first.text
    assert HOSTILE_LABEL in Page(hostile.get(refined).text).text
    exported = {"image": [image, other], "format": "csv"}
    for row in csv.DictReader(io.StringIO(hostile.get("/collection", params=exported).text)):
        assert row["body_part"].startswith("'=HYPERLINK")
        assert not [cell for cell in row.values() if cell[:1] in tuple("=+-@")]


@pytest.fixture(scope="module")
def reporting(indexed, store_root: Path) -> Iterator[tuple[TestClient, Settings]]:
    """A service whose caller may have documents, and send them to one destination."""
    settings = index_patients(store_root, indexed.settings.model)
    away = {"kind": "stow", "url": "http://127.0.0.1:9/dicom-web", "timeout_seconds": 1}
    settings = Settings(**{**settings.model_dump(), "destinations": {"pacs": away}})
    with Database(f"sqlite:///{settings.data_dir / 'ledger.sqlite'}") as database:
        _, key = Keys(database).create("reports", [Scope.SEARCH, Scope.SEND])
    with LoopbackClient(create_service(settings), follow_redirects=False) as client:
        client.headers["Authorization"] = f"Bearer {key}"
        yield client, settings


def test_documents_of_a_study_are_downloaded_and_sent_from_its_page(reporting) -> None:
    client, settings = reporting
    study = STUDIES[0].uid
    page = opened(client, f"/studies/{study}")
    assert page.all("form", action="../documents", method="post")
    assert page.all("button", name="destination", value="pacs")
    asked = {"study": study, "kind": "sr"}
    made = client.post("/documents", data={**asked, "destination": ""})
    assert made.headers["content-type"] == "application/dicom"
    assert dcmread(io.BytesIO(made.content)).PatientID == ANNA.id
    sent = client.post("/documents", data={**asked, "destination": "pacs"})
    assert sent.status_code == 303
    address = sent.headers["location"].partition("#")[0]
    shown = opened(client, "/" + address)
    assert "On its way to pacs" in shown.text
    assert "does not answer" in shown.text
    with open_log(settings) as log:
        row = next(iter(log.between(latest_first=True))).document
    assert row["about"]["destination"] == "pacs"
    wrong = client.post("/documents", data={**asked, "destination": "elsewhere"})
    assert (wrong.status_code, wrong.headers["content-type"][:9]) == (400, "text/html")
    assert client.post("/documents", data={"study": "x", "kind": "sr"}).status_code == 422


def test_pages_of_a_large_study_follow_each_other(indexed, store_root: Path) -> None:
    settings = indexed.copy(store_root / "large")
    with Archive(settings) as archive:
        some = next(iter(archive.store.scroll(Filter(), with_z=True)))
        rng = np.random.default_rng(0)
        made = []
        for number in range(100):
            z = rng.normal(size=some.z.shape).astype(np.float32)  # type: ignore[union-attr]
            record = replace(
                some.record, study="1.9", series=f"1.9.{number // 60}", sop=f"1.9.9.{number}"
            )
            name = f"00000000-0000-4000-8000-{number:012}"
            made.append(replace(some, id=name, record=record, z=z / np.linalg.norm(z)))
        archive.store.upsert(made)
        archive.store.flush()
    with LoopbackClient(create_service(settings)) as client:
        address, shown = "/studies/1.9", []
        while address:
            page = opened(client, address)
            shown += [one for one in pictures(page) if one.startswith("00000000")]
            following = page.all("a", rel="next")
            address = f"/studies/1.9{following[0]['href']}" if following else ""
    assert shown == [one.id for one in made]
    assert "Series 2" in page.text
    assert "Related cases" not in page.text


def test_what_a_page_shows_is_in_the_audit_log(reporting) -> None:
    client, settings = reporting
    page = opened(client, f"/studies/{STUDIES[0].uid}")
    shown = pictures(page)
    pair = {"left": shown[0], "right": shown[-1]}
    assert client.get("/compare", params=pair).status_code == 200
    opened(client, f"/images/{shown[1]}")
    with open_log(settings) as log:
        rows = [row.document for row in log.between(latest_first=True)][:3]
    image, both, study = rows
    assert (study["action"], set(study["images"]) >= set(shown)) == ("GET /studies/{uid}", True)
    assert study["results"] >= 3
    assert (both["action"], both["images"]) == ("GET /compare", list(pair.values()))
    # The images before and after are linked to.
    assert (image["action"], image["images"][0]) == ("GET /images/{id}", shown[1])
    assert set(image["images"]) == set(shown[:3])
