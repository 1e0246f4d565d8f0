"""Images collected of a search, and what they are taken along as: CSV, FHIR, key objects, links."""

import csv
import io
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from pydicom import dcmread
from services.loopback import LoopbackClient
from test_api_page import Page

from api.audit.log import open_log
from api.portal.collection import _cell
from api.security.keys import Keys
from api.security.policy import Scope
from api.service import create_service
from engine.integration_settings import ViewerSettings
from engine.settings import FolderSettings, Settings
from engine.store.base import Filter
from indexer.archive import Archive
from indexer.ledger.database import Database

sys.path.append(str(Path(__file__).parents[1] / "indexer"))
from patients import PATIENTS, index_patients

NOWHERE = "00000000-0000-4000-8000-000000000000"


def table(client: TestClient, **asked: Any) -> list[dict[str, str]]:
    answer = client.get("/collection", params={**asked, "format": "csv"})
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "text/csv; charset=utf-8"
    assert answer.headers["content-disposition"] == 'attachment; filename="collection.csv"'
    assert answer.headers["cache-control"] == "no-store"
    return list(csv.DictReader(io.StringIO(answer.text)))


def test_what_is_liked_and_checked_is_collected(client, indexed, id_of) -> None:
    own, liked, checked = (id_of(path) for path in indexed.files["ct"][:3])
    page = Page(client.get(f"/?like={own}&like={liked}&k=30&group_by=none&exclude_own=none").text)
    (form,) = page.all("form", id="collect")
    assert (form["action"], form["method"]) == ("collection", "get")
    sent = [(one["name"], one["value"]) for one in page.all("input", type="hidden")]
    # The boxes under the hits belong to this form.
    assert page.all("input", name="image", value=checked, form="collect")
    assert {("image", own), ("image", liked)} <= set(sent)
    asked = {"image": [own, liked, checked], "like": [own, liked]}
    page = Page(client.get("/collection", params=asked).text)
    assert "3 images collected" in page.text
    pictures = [f"v1/images/{one}/thumbnail" for one in (own, liked, checked)]
    assert page.thumbnails() == pictures
    assert page.all("a", href=f"./?like={own}&like={liked}")
    # Each can be taken out, and is compared with as before.
    left = f"collection?image={own}&image={liked}&like={own}&like={liked}"
    assert page.all("a", href=left)
    assert "2 images collected" in client.get(f"/{left}").text
    # An open service makes no documents.
    assert not page.all("form", action="collection")
    empty = client.get("/collection")
    assert (empty.status_code, "Nothing is collected" in empty.text) == (200, True)


def test_the_table_has_the_figures_of_the_search_and_nothing_of_a_patient(
    client, indexed, id_of
) -> None:
    own, liked = id_of(indexed.files["ct"][0]), id_of(indexed.files["rings"][0])
    body = {"like": [own, liked], "k": 3, "exclude_own": "none"}
    found = client.post("/v1/recommend", json=body).json()["hits"]
    ids = [hit["id"] for hit in found]
    rows = table(client, image=[own, *ids], like=[own, liked])
    assert [row["id"] for row in rows] == [own, *ids]
    assert [row["similarity"] for row in rows[1:]] == [f"{hit['similarity']:.6f}" for hit in found]
    (pair,) = [
        hit["similarity"]
        for hit in client.post("/v1/search", json={"id": own, "k": 34}).json()["hits"]
        if hit["id"] == liked
    ]
    assert float(rows[0]["similarity"]) == pytest.approx(pair, abs=1e-6)
    first = rows[0]
    assert (first["study"], first["series"], first["sop"]) == ("1.2.4.0", "1.2.5.0", "1.2.3.0")
    assert (first["modality"], first["body_part"], first["study_year"]) == ("CT", "CHEST", "2010")
    alone = table(client, image=own, like=own)
    assert alone[0]["similarity"] == ""
    whole = client.get("/collection", params={"image": own, "format": "csv"}).text
    assert "HIDDEN" not in whole
    assert "Somebody" not in whole
    assert set(first) == {
        *("id", "study", "series", "sop", "frame", "modality", "body_part", "study_year"),
        *("similarity", "viewer"),
    }


def test_an_upload_is_compared_with_as_long_as_it_is_kept(client, indexed, id_of) -> None:
    content = {"file": indexed.files["ct"][1].read_bytes()}
    page = Page(client.post("/", files=content).text)
    (token,) = [str(one["value"]) for one in page.all("input", name="query", type="hidden")][:1]
    image = id_of(indexed.files["ct"][1])
    assert float(table(client, image=image, query=token)[0]["similarity"]) == pytest.approx(
        1, abs=1e-3
    )
    assert table(client, image=image, query="never")[0]["similarity"] == ""
    over = client.get("/collection", params={"image": image, "query": "never"})
    assert "not kept any more" in over.text


def test_studies_of_a_collection_are_a_bundle(client, indexed, id_of) -> None:
    ct = [id_of(indexed.files["ct"][number]) for number in (0, 1, 2)]
    plain = id_of(indexed.files["rings"][0])
    answer = client.get("/collection", params={"image": [*ct, plain], "format": "fhir"})
    assert answer.headers["content-type"] == "application/fhir+json"
    assert "attachment" in answer.headers["content-disposition"]
    bundle = answer.json()
    assert (bundle["resourceType"], bundle["type"]) == ("Bundle", "collection")
    assert [one["resource"]["id"] for one in bundle["entry"]] == ["1.2.4.0", "1.2.4.1"]
    assert [one["resource"]["resourceType"] for one in bundle["entry"]] == ["ImagingStudy"] * 2
    # Members that only results of a search may have are errors in a collection.
    assert not {"total", "link"} & set(bundle)
    assert all("search" not in one for one in bundle["entry"])
    address = bundle["entry"][0]["fullUrl"]
    assert client.get(address[address.index("/fhir") :]).json()["id"] == "1.2.4.0"
    none = client.get("/collection", params={"image": plain, "format": "fhir"})
    assert none.json() == {"resourceType": "Bundle", "type": "collection"}


def test_viewers_open_what_is_collected(archive: Archive, indexed, id_of) -> None:
    other = archive.of("default")
    viewer = ViewerSettings(kind="ohif", url="https://viewer.example", sources=("folder",))
    other.settings = archive.settings.model_copy(update={"viewers": {"ohif": viewer}})
    image = id_of(indexed.files["ct"][0])
    with LoopbackClient(create_service(archive=other)) as client:
        page = Page(client.get("/collection", params={"image": image}).text)
        (row,) = table(client, image=image)
        bundle = client.get("/collection", params={"image": image, "format": "fhir"}).json()
    opened = "https://viewer.example/viewer?StudyInstanceUIDs=1.2.4.0&"
    (link,) = [one for one in page.all("a") if str(one.get("href")).startswith(opened)]
    assert link["rel"] == "noopener noreferrer"
    assert row["viewer"] == link["href"]
    assert bundle["entry"][0]["link"][0]["url"] == link["href"]


def test_uids_that_were_replaced_leave_in_no_form(archive: Archive, indexed, id_of) -> None:
    other = archive.of("default")
    folder = FolderSettings(kind="folder", paths=(indexed.settings.data_dir,), uids="replaced")
    other.settings = archive.settings.model_copy(update={"sources": {"folder": folder}})
    image = id_of(indexed.files["ct"][0])
    with LoopbackClient(create_service(archive=other)) as client:
        (row,) = table(client, image=image)
        page = client.get("/collection", params={"image": image})
        bundle = client.get("/collection", params={"image": image, "format": "fhir"}).json()
    assert (row["study"], row["series"], row["sop"]) == ("", "", "")
    assert "were replaced before they were indexed" in page.text
    assert "entry" not in bundle


@pytest.mark.parametrize(
    ("written", "shown"),
    [
        ("=1+1", "'=1+1"),
        ("+1", "'+1"),
        ("-cmd|' /C calc'!A0", "'-cmd|' /C calc'!A0"),
        ("@SUM(A1)", "'@SUM(A1)"),
        (" \t=1", "'  =1"),
        ("\N{FULLWIDTH EQUALS SIGN}1", "'\N{FULLWIDTH EQUALS SIGN}1"),
        # A spreadsheet whose columns are parted by semicolons would begin a cell there.
        ("CHEST;=1+1", "CHEST,=1+1"),
        ("CHEST\r\n=1+1", "CHEST  =1+1"),
        ("CHEST", "CHEST"),
        (None, ""),
    ],
)
def test_no_cell_is_a_formula(written: str | None, shown: str) -> None:
    assert _cell(written) == shown


def test_mistakes_are_told(client, indexed, id_of) -> None:
    for asked, status in (
        ({"image": NOWHERE}, 404),
        ({"image": "x"}, 404),
        ({"image": id_of(indexed.files["ct"][0]), "like": NOWHERE}, 404),
        ({"image": [f"00000000-0000-4000-8000-{number:012}" for number in range(101)]}, 400),
        ({"format": "pdf"}, 422),
    ):
        answer = client.get("/collection", params=asked)
        assert (answer.status_code, answer.headers["content-type"][:9]) == (status, "text/html")
        assert Page(answer.text).all("section", role="alert")


@pytest.fixture(scope="module")
def sending(indexed, store_root: Path) -> Iterator[tuple[TestClient, Settings, dict[str, str]]]:
    """A service whose caller may have documents; studies of its images, by their ids."""
    root = store_root / "sending"
    root.mkdir()
    settings = index_patients(root, indexed.settings.model)
    away = {"kind": "stow", "url": "http://127.0.0.1:9/dicom-web", "timeout_seconds": 1}
    settings = Settings(**{**settings.model_dump(), "destinations": {"pacs": away}})
    with Archive(settings) as archive:
        studies = {one.id: one.record.study for one in archive.store.scroll(Filter())}
    with Database(f"sqlite:///{settings.data_dir / 'ledger.sqlite'}") as database:
        keys = Keys(database)
        _, key = keys.create("reports", [Scope.SEARCH, Scope.SEND])
        _, other = keys.create("other", [Scope.SEARCH, Scope.SEND], tenant="elsewhere")
    with LoopbackClient(create_service(settings), follow_redirects=False) as client:
        client.headers["Authorization"] = f"Bearer {key}"
        client.other = {"Authorization": f"Bearer {other}"}  # type: ignore[attr-defined]
        yield client, settings, studies


def test_key_objects_of_a_collection_are_downloaded_and_sent(sending) -> None:
    client, settings, studies = sending
    ids = list(studies)
    page = Page(client.get("/collection", params={"image": ids[:2]}).text)
    assert page.all("form", action="collection", method="post")
    made = client.post("/collection", data={"image": ids[:2]})
    assert made.headers["content-type"] == "application/zip"
    with zipfile.ZipFile(io.BytesIO(made.content)) as packed:
        found = [dcmread(io.BytesIO(packed.read(name))) for name in packed.namelist()]
    assert [one.Modality for one in found] == ["KO", "KO"]
    assert [one.StudyInstanceUID for one in found] == [studies[one] for one in ids[:2]]
    assert {one.PatientID for one in found} <= {one.id for one in PATIENTS}
    sent = client.post("/collection", data={"image": ids[:2], "destination": "pacs"})
    assert sent.status_code == 303
    address = sent.headers["location"].partition("#")[0].removeprefix(".")
    assert "On its way to pacs" in client.get(address).text
    with open_log(settings) as log:
        rows = [row.document for row in log.between(latest_first=True)]
    assert any(row["action"] == "POST /collection" and ids[0] in row["images"] for row in rows)
    assert client.post("/collection", data={"destination": "pacs"}).status_code == 422
    wrong = client.post("/collection", data={"image": ids[:1], "destination": "elsewhere"})
    assert (wrong.status_code, wrong.headers["content-type"][:9]) == (400, "text/html")


def test_another_tenant_collects_nothing_of_it(sending) -> None:
    client, _, studies = sending
    ids = list(studies)
    for more in ({}, {"format": "csv"}, {"format": "fhir"}):
        asked = {"image": ids[0], **more}
        assert client.get("/collection", params=asked, headers=client.other).status_code == 404
        asked = {"image": ids[0], "like": ids[1], **more}
        assert client.get("/collection", params=asked, headers=client.other).status_code == 404
    assert client.post("/collection", data={"image": ids}, headers=client.other).status_code == 404
    assert client.get(f"/?like={ids[0]}&dislike={ids[1]}", headers=client.other).status_code == 404


def test_what_is_collected_is_in_the_audit_log(sending) -> None:
    client, settings, studies = sending
    ids = list(studies)
    asked = {"image": ids[:2], "like": [ids[2]], "format": "csv"}
    assert client.get("/collection", params=asked).status_code == 200
    with open_log(settings) as log:
        row = next(iter(log.between(latest_first=True))).document
    assert row["action"] == "GET /collection"
    assert set(row["images"]) == set(ids[:3])
