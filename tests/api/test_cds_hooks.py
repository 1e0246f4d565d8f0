"""The service of CDS Hooks, as a client of it sees it.

The documents are checked against what the published OpenAPI document of the CDS Hooks API (1.1, of
the project that specifies it) requires of them: no package has that document, so its required
members, types and codes are written down here once more.
"""

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from conftest import Indexed
from fastapi.testclient import TestClient
from oidc_site import bearer
from pydantic import ValidationError
from services.loopback import LoopbackClient

from api.audit.log import open_log
from api.http.cds_hooks import Card, CardLink, CardSource
from api.security.keys import Keys
from api.security.policy import Scope
from api.service import create_service
from engine.errors import SettingsError
from engine.integration_settings import CdsHooksSettings, ViewerSettings
from engine.settings import load_settings
from engine.store.base import Filter
from indexer.archive import Archive
from indexer.sources.folder import FolderSource

STUDY = "1.2.4.0"
SERVICE = "/cds-services/related-studies"
_TEXT = {"type": "string", "minLength": 1}
DISCOVERY = {
    "type": "object",
    "required": ["services"],
    "properties": {
        "services": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["hook", "description", "id"],
                "properties": {
                    **dict.fromkeys(("id", "hook", "title", "description"), _TEXT),
                    "prefetch": {"type": "object", "additionalProperties": _TEXT},
                },
                "additionalProperties": False,
            },
        }
    },
}
CARDS = {
    "type": "object",
    "required": ["cards"],
    "properties": {
        "cards": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["summary", "indicator", "source"],
                "properties": {
                    "uuid": {"type": "string", "format": "uuid"},
                    "summary": {**_TEXT, "maxLength": 139},
                    "detail": _TEXT,
                    "indicator": {"enum": ["info", "warning", "critical"]},
                    "source": {
                        "type": "object",
                        "required": ["label"],
                        "properties": {"label": _TEXT},
                        "additionalProperties": False,
                    },
                    "links": {
                        "type": "array",
                        "items": {
                            "type": "object",
                            "required": ["label", "url", "type"],
                            "properties": {
                                "label": _TEXT,
                                "url": {"type": "string", "format": "uri", "pattern": "^https?:"},
                                "type": {"enum": ["absolute", "smart"]},
                            },
                            "additionalProperties": False,
                        },
                    },
                },
                "additionalProperties": False,
            },
        }
    },
    "additionalProperties": False,
}


def imaging_study(uid: str) -> dict[str, Any]:
    return {
        "resourceType": "ImagingStudy",
        "id": "7",
        "status": "available",
        "identifier": [
            {"system": "https://ris.example", "value": "77"},
            {"system": "urn:dicom:uid", "value": f"urn:oid:{uid}"},
        ],
        "subject": {"reference": "Patient/1288992"},
    }


def called(client: TestClient, headers: dict[str, str] | None = None, **changed: Any) -> Any:
    usual = {
        "hook": "imaging-study",
        "hookInstance": "d1577c69-dfbe-44ad-ba6d-3e05e953b2ea",
        "context": {"userId": "Practitioner/1", "patientId": "1288992", "studyInstanceUID": STUDY},
    }
    return client.post(SERVICE, json={**usual, **changed}, headers=headers)


def cards(client: TestClient, **changed: Any) -> list[Any]:
    answer = called(client, **changed)
    assert answer.status_code == 200, answer.text
    jsonschema.validate(answer.json(), CARDS, format_checker=jsonschema.FormatChecker())
    found: list[Any] = answer.json()["cards"]
    return found


@pytest.fixture(scope="module")
def linked(archive: Archive) -> Iterator[TestClient]:
    other = archive.of("default")
    viewer = ViewerSettings(kind="ohif", url="https://viewer.example", sources=("folder",))
    hooks = CdsHooksSettings(hook="org.example.study-opened", hits=2, source_label="Similar cases")
    other.settings = archive.settings.model_copy(
        update={"viewers": {"ohif": viewer}, "cds_hooks": hooks}
    )
    with LoopbackClient(create_service(archive=other)) as opened:
        yield opened


def test_the_service_is_discovered(client: TestClient, linked: TestClient) -> None:
    found = client.get("/cds-services").json()
    jsonschema.validate(found, DISCOVERY)
    (service,) = found["services"]
    assert service["hook"] == "imaging-study"
    assert SERVICE.endswith("/" + service["id"])
    named = linked.get("/cds-services").json()["services"][0]
    assert named["hook"] == "org.example.study-opened"


def test_a_card_tells_of_related_cases(client: TestClient) -> None:
    (card,) = cards(client)
    related = client.get(f"/v1/studies/{STUDY}/related", params={"k": 5}).json()["hits"]
    assert card["summary"] == "5 earlier cases look like this study"
    assert (card["indicator"], card["source"]) == ("info", {"label": "Precedent"})
    lines = card["detail"].splitlines()
    assert len(lines) == len(related) == 5
    for line, hit in zip(lines, related, strict=True):
        assert line.endswith(f"similarity {hit['similarity']:.3f}")
        assert (hit["modality"] or "Image") in line
    (page,) = card["links"]
    shown = client.get(page["url"])
    assert shown.status_code == 200
    assert related[0]["because"] in page["url"]
    # The same call gets the same card.
    assert cards(client) == [card]


def test_nothing_in_a_card_tells_whose_a_case_is(client: TestClient, archive: Archive) -> None:
    (card,) = cards(client)
    text = str(card)
    for point in archive.store.scroll(Filter()):
        record = point.record
        for value in (record.patient, record.study, record.series, record.sop):
            assert value is None or value not in text


def test_a_card_opens_the_most_similar_case_in_the_viewer(linked: TestClient) -> None:
    context = {"studyInstanceUID": STUDY}
    (card,) = cards(linked, hook="org.example.study-opened", context=context)
    assert card["source"]["label"] == "Similar cases"
    assert len(card["detail"].splitlines()) == 2
    related = linked.get(f"/v1/studies/{STUDY}/related", params={"k": 2}).json()["hits"][0]
    expected = [one["beside"] or one["url"] for one in related["viewers"]]
    assert [one["url"] for one in card["links"][1:]] == expected


@pytest.mark.parametrize(
    "changed",
    [
        {"context": {"imagingStudy": imaging_study(STUDY)}},
        {"context": {}, "prefetch": {"study": imaging_study(STUDY)}},
        {"context": {"studyInstanceUID": f"urn:oid:{STUDY}"}, "fhirServer": "http://127.0.0.1:1"},
        {
            "context": {},
            "prefetch": {
                "study": {
                    "resourceType": "Bundle",
                    "entry": [
                        {"resource": {"resourceType": "Patient"}},
                        {"resource": imaging_study("1.2.99")},
                        {"resource": imaging_study(STUDY)},
                    ],
                }
            },
        },
    ],
)
def test_the_study_comes_in_several_ways(client: TestClient, changed: dict[str, Any]) -> None:
    assert cards(client, **changed) == cards(client)


def test_there_is_no_card_where_there_is_nothing_to_tell(client: TestClient) -> None:
    assert cards(client, context={"studyInstanceUID": "1.2.99"}) == []


@pytest.mark.parametrize(
    "changed",
    [
        {"context": {}},
        {"context": {"studyInstanceUID": 7}},
        {"context": {"studyInstanceUID": "Weber^Anna"}},
        {"context": {"studyInstanceUID": "1." * 40 + "1"}},
        {"context": {"imagingStudy": "1.2.4.0"}},
        {"context": {}, "prefetch": {"study": None}},
        {"context": {}, "prefetch": {"study": {"resourceType": "Bundle", "entry": [1, {}]}}},
        {
            "context": {},
            "prefetch": {"study": {"resourceType": "ImagingStudy", "identifier": [3]}},
        },
    ],
)
def test_without_a_study_the_context_is_insufficient(
    client: TestClient, changed: dict[str, Any]
) -> None:
    answer = called(client, **changed)
    assert answer.status_code == 412
    assert "context.studyInstanceUID" in answer.json()["detail"]
    assert "Weber" not in answer.text


@pytest.mark.parametrize(
    ("changed", "status"),
    [
        ({"hook": "patient-view"}, 400),
        ({"hook": 3}, 422),
        ({"hookInstance": None}, 422),
        ({"context": []}, 422),
        ({"prefetch": "x"}, 422),
    ],
)
def test_what_is_no_call_is_refused(client: TestClient, changed: Any, status: int) -> None:
    answer = called(client, **changed)
    assert (answer.status_code, answer.json()["status"]) == (status, status)


def test_a_foreign_study_is_warned_of(foreign_client: TestClient) -> None:
    (card,) = cards(foreign_client)
    assert card["indicator"] == "warning"
    assert "outside what the model knows" in card["summary"]


def test_a_refused_study_has_no_card(refusing_client: TestClient) -> None:
    assert cards(refusing_client) == []


def test_cards_are_checked_before_they_leave() -> None:
    good = {
        "uuid": "d1577c69-dfbe-44ad-ba6d-3e05e953b2ea",
        "summary": "s" * 139,
        "detail": "d",
        "indicator": "info",
        "source": CardSource(label="x"),
        "links": [],
    }
    Card(**good)
    for change in ({"summary": "s" * 140}, {"summary": ""}, {"indicator": "hard-stop"}):
        with pytest.raises(ValidationError):
            Card(**{**good, **change})
    with pytest.raises(ValidationError):
        CardSource(label="")
    with pytest.raises(ValidationError):
        CardLink(label="x", url="/here")
    with pytest.raises(SettingsError, match=r"cds_hooks\.source_label"):
        load_settings(cds_hooks={"source_label": ""})


def test_two_tenants(indexed: Indexed, tmp_path: Path) -> None:
    settings = indexed.copy(tmp_path / "data")
    with Archive(settings, tenant="north") as archive:
        archive.index(FolderSource(indexed.files["mr"]))
        keys = Keys(archive._database)
        _, key = keys.create("north", [Scope.SEARCH], tenant="north")
        _, without = keys.create("other", [Scope.INDEX], tenant="north")
        with LoopbackClient(create_service(archive=archive)) as client:
            theirs = called(client, bearer(key))
            mine = called(client, bearer(key), context={"studyInstanceUID": "1.2.4.5"})
            assert called(client).status_code == 401
            assert called(client, bearer(without)).status_code == 403
            assert client.get("/cds-services").status_code == 401
    assert theirs.json() == {"cards": []}
    assert mine.json()["cards"][0]["summary"] == "1 earlier case looks like this study"
    with open_log(settings) as log:
        rows = [row.document for row in islice(log.between(latest_first=True), 4, 5)]
        rows += [row.document for row in islice(log.between(latest_first=True), 3, 4)]
    assert [(one["action"], one["status"], one["results"]) for one in rows] == [
        (f"POST {SERVICE}", 200, None),
        (f"POST {SERVICE}", 200, 1),
    ]
    assert [one["studies"] for one in rows] == [[STUDY], ["1.2.4.5", "1.2.4.6"]]
