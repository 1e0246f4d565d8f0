"""Of images whose UIDs no other system knows, nothing is made that would refer to them."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from services.loopback import LoopbackClient

from api.security.keys import Keys
from api.security.policy import Scope
from api.service import create_service
from engine.integration_settings import ViewerSettings
from engine.records import dicom_point_id
from engine.settings import Settings
from indexer.ledger.database import Database

sys.path.append(str(Path(__file__).parents[1] / "indexer"))
from patients import STUDIES, index_patients

STUDY = STUDIES[0].uid
IMAGE = dicom_point_id(f"{STUDY}.1.1", 0)
FHIR = {"Accept": "application/fhir+json"}
HOOK = {"hook": "imaging-study", "hookInstance": "1", "context": {"studyInstanceUID": STUDY}}
VIEWER = ViewerSettings(kind="ohif", url="https://viewer.example", sources=("clinic",))


@pytest.fixture(scope="module")
def patients(store_root: Path, indexed) -> Settings:
    return index_patients(store_root, indexed.settings.model)


@pytest.fixture
def service(patients: Settings, request: pytest.FixtureRequest) -> Iterator[TestClient]:
    """A service whose source is set as the test says."""
    clinic = patients.sources["clinic"].model_copy(update={"uids": request.param})
    to = {"kind": "dicom", "ae_title": "P", "host": "127.0.0.1", "port": 1}
    written = {**patients.model_dump(), "destinations": {"pacs": to}}
    changed = {"sources": {"clinic": clinic}, "viewers": {"ohif": VIEWER}}
    settings = Settings(**written).model_copy(update=changed)
    with Database(f"sqlite:///{patients.data_dir / 'ledger.sqlite'}") as database:
        _, key = Keys(database).create("all", [Scope.SEND, Scope.SEARCH])
    with LoopbackClient(create_service(settings)) as client:
        client.headers["Authorization"] = f"Bearer {key}"
        yield client


@pytest.mark.parametrize("service", ["replaced"], indirect=True)
def test_what_would_refer_to_them_is_refused_with_the_settings_name(service: TestClient) -> None:
    answers = [
        service.post(f"/v1/studies/{STUDY}/report", json={}),
        service.post(f"/v1/studies/{STUDY}/key-objects", json={}),
        service.post("/v1/key-objects", json={"images": [IMAGE]}),
        service.post("/v1/sendings", json={"destination": "pacs", "report": {"study": STUDY}}),
        service.get(f"/v1/studies/{STUDY}/related", headers=FHIR),
        service.post("/v1/search", json={"id": IMAGE}, headers=FHIR),
        service.get(f"/fhir/ImagingStudy/{STUDY}"),
        service.post("/cds-services/related-studies", json=HOOK),
    ]
    for answer in answers:
        assert (answer.status_code, answer.json()["code"]) == (409, "document"), answer.request.url
        assert 'sources.clinic.uids = "replaced"' in answer.json()["detail"]
    assert service.get("/v1/sendings").json() == {"sendings": []}
    # Searches answer as ever, without links.
    hits = service.get(f"/v1/studies/{STUDY}/related").json()["hits"]
    assert hits
    assert not any(hit["viewers"] for hit in hits)


@pytest.mark.parametrize("service", ["kept"], indirect=True)
def test_otherwise_all_of_it_is_made(service: TestClient) -> None:
    assert service.post(f"/v1/studies/{STUDY}/report", json={}).status_code == 200
    assert service.get(f"/v1/studies/{STUDY}/related", headers=FHIR).status_code == 200
    assert service.get(f"/fhir/ImagingStudy/{STUDY}").status_code == 200
    assert service.post("/cds-services/related-studies", json=HOOK).json()["cards"]
    hits = service.get(f"/v1/studies/{STUDY}/related").json()["hits"]
    assert all(hit["viewers"] for hit in hits)
