"""Links that open hits in the hospital's viewers: in answers, in FHIR and on the page."""

import html
import re
from collections.abc import Iterator
from urllib.parse import parse_qs, unquote_plus, urlsplit

import pytest
from fastapi.testclient import TestClient
from services.loopback import LoopbackClient

from api.http.viewers import ViewerLinks
from api.service import create_service
from engine.integration_settings import ViewerSettings
from engine.records import ImageRecord
from engine.settings import Settings
from indexer.archive import Archive

OHIF = ViewerSettings(kind="ohif", url="https://viewer.example/", sources=("folder",))
ELSEWHERE = ViewerSettings(kind="stone", url="https://pacs.example", sources=("pacs",))
HIT = ImageRecord(study="1.2.4", series="1.2.5", sop="1.2.6", frame=3, source="pacs")
QUERY = ImageRecord(study="1.2.9", source="pacs")


@pytest.fixture(scope="module")
def linked(archive: Archive) -> Iterator[TestClient]:
    other = archive.of("default")
    viewers = {"ohif": OHIF, "stone": ELSEWHERE}
    other.settings = archive.settings.model_copy(update={"viewers": viewers})
    with LoopbackClient(create_service(archive=other)) as opened:
        yield opened


def link(query: ImageRecord | None = None, record: ImageRecord = HIT, **viewer: object):
    settings = Settings(viewers={"one": ViewerSettings(**{"sources": ("pacs",), **viewer})})
    found = ViewerLinks(settings, query)(record)
    return found[0] if found else None


def test_ohif_opens_the_image_that_was_found() -> None:
    found = link(kind="ohif", url="https://viewer.example/ohif/")
    assert (found.title, found.beside) == ("OHIF", None)
    # In exactly these capitals: with others its page stays black.
    assert found.url == (
        "https://viewer.example/ohif/viewer?StudyInstanceUIDs=1.2.4"
        "&initialSeriesInstanceUID=1.2.5&initialSOPInstanceUID=1.2.6"
    )
    other = link(kind="ohif", url="https://viewer.example", data_source="pacs_2")
    assert other.url.startswith("https://viewer.example/viewer/pacs_2?StudyInstanceUIDs=1.2.4&")
    bare = ImageRecord(study="1.2.4", source="pacs")
    found = link(record=bare, kind="ohif", url="https://viewer.example")
    assert found.url == "https://viewer.example/viewer?StudyInstanceUIDs=1.2.4"


def test_ohif_shows_both_side_by_side() -> None:
    found = link(QUERY, kind="ohif", url="https://viewer.example")
    asked = parse_qs(urlsplit(found.beside).query)
    assert asked == {
        "StudyInstanceUIDs": ["1.2.9,1.2.4"],
        "hangingProtocolId": ["@ohif/hpCompare"],
        "initialSeriesInstanceUID": ["1.2.5"],
        "initialSOPInstanceUID": ["1.2.6"],
    }
    ohif = {"kind": "ohif", "url": "https://viewer.example"}
    # One study that the viewer's server lacks would take the whole page away.
    assert link(ImageRecord(study="1.2.9", source="usb"), **ohif).beside is None
    assert link(ImageRecord(study="1.2.4", source="pacs"), **ohif).beside is None
    assert link(ImageRecord(source="pacs"), **ohif).beside is None


def test_other_viewers() -> None:
    stone = link(QUERY, kind="stone", url="https://pacs.example")
    assert stone.url == "https://pacs.example/stone-webviewer/index.html?study=1.2.4&series=1.2.5"
    assert stone.beside is None
    explorer = link(kind="orthanc-explorer-2", url="https://pacs.example")
    assert explorer.url == (
        "https://pacs.example/ui/app/#/filtered-studies?StudyInstanceUID=1.2.4&expand=study"
    )
    weasis = link(kind="weasis", url="https://pacs.example/dicom-web")
    scheme, _, command = weasis.url.partition("://?")
    assert scheme == "weasis"
    expected = '$dicom:rs --url "https://pacs.example/dicom-web" -r "studyUID=1.2.4"'
    assert unquote_plus(command) == expected
    own = link(
        QUERY,
        template="https://v.example/{study}/{series}/{sop}#{frame}",
        beside="https://v.example/{query_study}+{study}",
        title="Ours",
    )
    assert own.url == "https://v.example/1.2.4/1.2.5/1.2.6#4"
    assert (own.title, own.beside) == ("Ours", "https://v.example/1.2.9+1.2.4")


@pytest.mark.parametrize(
    "record",
    [
        ImageRecord(source="pacs"),
        ImageRecord(study="1.2.4", source="usb"),
        ImageRecord(study="1.2.4"),
        ImageRecord(study="1.2.4&x=y", source="pacs"),
        ImageRecord(study="..", source="pacs"),
        ImageRecord(study="1." * 33 + "1", source="pacs"),
        # The template names the instance.
        ImageRecord(study="1.2.4", source="pacs"),
    ],
)
def test_what_the_viewer_cannot_open_has_no_link(record: ImageRecord) -> None:
    assert link(record=record, template="https://v.example/{study}?{sop}") is None


def test_hits_and_related_studies_have_links(linked: TestClient, client: TestClient) -> None:
    related = linked.get("/v1/studies/1.2.4.0/related", params={"k": 30}).json()["hits"]
    assert {hit["study"] is None for hit in related} == {True, False}
    for hit in related:
        if hit["study"] is None:
            assert hit["viewers"] == []
            continue
        (found,) = hit["viewers"]
        assert (found["name"], found["title"]) == ("ohif", "OHIF")
        assert f"StudyInstanceUIDs={hit['study']}&" in found["url"]
        assert f"StudyInstanceUIDs=1.2.4.0,{hit['study']}&" in found["beside"]
        assert found["url"].endswith(f"initialSOPInstanceUID={hit['sop']}")
    searched = linked.post("/v1/search", json={"sop": "1.2.3.0", "k": 30}).json()["hits"]
    by_study = {hit["study"]: hit["viewers"] for hit in searched if hit["study"]}
    assert by_study["1.2.4.0"][0]["beside"] is None
    assert "1.2.4.0,1.2.4.1&" in by_study["1.2.4.1"][0]["beside"]
    without = client.get("/v1/studies/1.2.4.0/related").json()["hits"]
    assert all(hit["viewers"] == [] for hit in without)


def test_an_upload_is_shown_beside_nothing(linked: TestClient, indexed) -> None:
    content = indexed.files["ct"][0].read_bytes()
    alone = linked.post("/v1/search", files={"file": content}, data={"k": 30}).json()
    many = linked.post("/v1/search/batch", files={"files": content}, data={"k": 30}).json()
    for answer in (alone, many["results"][0]["answer"]):
        links = [one for hit in answer["hits"] for one in hit["viewers"]]
        assert links
        assert {one["beside"] for one in links} == {None}


def test_a_bundle_has_links(linked: TestClient) -> None:
    accept = {"Accept": "application/fhir+json"}
    bundle = linked.get("/v1/studies/1.2.4.0/related?k=3&where=modality=MR", headers=accept).json()
    for entry in bundle["entry"]:
        opened, beside = entry["link"]
        assert (opened["relation"], beside["relation"]) == ("alternate", "related")
        assert f"StudyInstanceUIDs={entry['resource']['id']}&" in opened["url"]
        assert f"1.2.4.0,{entry['resource']['id']}&" in beside["url"]


def test_the_page_opens_hits_in_the_viewer(linked: TestClient, indexed, id_of) -> None:
    image = id_of(indexed.files["ct"][0])
    asked = {"like": image, "k": 30, "group_by": "none", "exclude_own": "none"}
    page = linked.get("/", params={**asked, "where": "modality=CT"}).text
    links = re.findall(r'<a href="(https://viewer[^"]+)"([^>]*)>([^<]+)', page)
    hits = linked.post("/v1/search", json={"id": image, "k": 30, "where": ["modality=CT"]})
    expected = [
        address
        for hit in hits.json()["hits"]
        for one in hit["viewers"]
        for address in (one["url"], one["beside"])
        if address is not None
    ]
    assert [html.unescape(address) for address, _, _ in links] == expected
    assert {text for _, _, text in links} == {"Open in OHIF", "Side by side"}
    assert {attributes.strip() for _, attributes, _ in links} == {
        'target="_blank" rel="noopener noreferrer"'
    }
    # The first page has no hits, and what was chosen there is not opened.
    assert "viewer.example" not in linked.get("/").text
