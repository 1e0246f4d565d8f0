"""Documents over HTTP: downloaded, sent to a real Orthanc, tried again, and nobody's but theirs."""

import io
import json
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
from fastapi.testclient import TestClient
from pydicom import dcmread
from services.loopback import LoopbackClient
from services.orthanc import Orthanc
from services.server import free_ports

from api.security.keys import Keys
from api.security.policy import Scope
from api.service import create_service
from engine.errors import SettingsError
from engine.records import dicom_point_id
from engine.settings import DocumentsSettings, Settings, load_settings
from indexer.ledger.database import Database

sys.path.append(str(Path(__file__).parents[1] / "indexer"))
from patients import ANNA, OTHERS, STUDIES, identifiers, index_patients

ASKED = STUDIES[0]


@pytest.fixture(scope="module")
def patients(store_root: Path, indexed) -> Settings:
    return index_patients(store_root, indexed.settings.model)


@pytest.fixture
def service(patients: Settings) -> Iterator[Callable[..., TestClient]]:
    """A service with these destinations, which takes what is pushed to the port ``receive``."""
    opened = []
    with Database(f"sqlite:///{patients.data_dir / 'ledger.sqlite'}") as database:
        _, key = Keys(database).create("reports", [Scope.SEND])

    def start(receive: int | None = None, **destinations: dict[str, Any]) -> TestClient:
        written = {**patients.model_dump(), "destinations": destinations}
        if receive is not None:
            written["receive"] = {"port": receive, "min_free_bytes": 0}
            written["server"] = {**written["server"], "receive": True}
        written["documents"] = DocumentsSettings(attempts=3, backoff_seconds=0.1)
        client = LoopbackClient(create_service(Settings(**written)))
        client.headers["Authorization"] = f"Bearer {key}"
        opened.append(client)
        return client.__enter__()

    yield start
    for client in opened:
        client.__exit__(None, None, None)


def test_documents_are_downloaded(service: Callable[..., TestClient]) -> None:
    client = service()
    answer = client.post(f"/v1/studies/{ASKED.uid}/report", json={"exclude_own": "study"})
    assert (answer.status_code, answer.headers["content-type"]) == (200, "application/dicom")
    assert answer.headers["cache-control"] == "no-store"
    made = dcmread(io.BytesIO(answer.content))
    assert (made.Modality, made.StudyInstanceUID, made.PatientID) == ("SR", ASKED.uid, ANNA.id)
    assert made.file_meta.MediaStorageSOPInstanceUID in answer.headers["content-disposition"]
    image = dicom_point_id(f"{ASKED.uid}.1.0", 0)
    asked = {"format": "pdf", "id": image, "k": 2}
    pdf = client.post(f"/v1/studies/{ASKED.uid}/report", json=asked)
    assert dcmread(io.BytesIO(pdf.content)).Modality == "DOC"
    earlier = client.post(f"/v1/studies/{ASKED.uid}/key-objects", json={})
    with zipfile.ZipFile(io.BytesIO(earlier.content)) as packed:
        made = [dcmread(io.BytesIO(packed.read(name))) for name in packed.namelist()]
    assert {one.StudyInstanceUID for one in made} == {STUDIES[1].uid, STUDIES[2].uid}
    other = client.post(f"/v1/studies/{STUDIES[4].uid}/report", json={"id": image})
    assert (other.status_code, other.json()["code"]) == (404, "image-not-found")


def test_what_cannot_be_made_or_sent_is_said(service: Callable[..., TestClient]) -> None:
    client = service(pacs={"kind": "dicom", "ae_title": "P", "host": "localhost", "port": 1})
    assert client.get("/v1/destinations").json() == {
        "destinations": [{"name": "pacs", "kind": "dicom"}]
    }
    for body, status, code in (
        ({"destination": "10.0.0.1:104", "report": {"study": ASKED.uid}}, 400, "destination-"),
        ({"destination": "pacs"}, 400, "query"),
        ({"destination": "pacs", "report": {"study": "1.2.3"}}, 404, "image-not-found"),
        ({"destination": "pacs", "host": "evil", "report": {"study": "1.2"}}, 422, "invalid-"),
    ):
        answer = client.post("/v1/sendings", json=body)
        assert answer.status_code == status, answer.text
        assert answer.json()["code"].startswith(code)
    never = client.get("/v1/sendings/" + "0" * 32)
    assert (never.status_code, never.json()["code"]) == (404, "sending-not-found")


@pytest.mark.slow
def test_a_destination_that_is_away_is_tried_again(
    service: Callable[..., TestClient], patients: Settings
) -> None:
    (port,) = free_ports(1)
    away = {"kind": "stow", "url": f"http://127.0.0.1:{port}/dicom-web", "timeout_seconds": 2}
    client = service(pacs=away)
    sent = client.post("/v1/sendings", json={"destination": "pacs", "report": {"study": ASKED.uid}})
    assert (sent.status_code, sent.json()["state"]) == (202, "waiting")
    assert "does not answer" in sent.json()["why"]
    address = sent.headers["location"]
    # On disk is nothing of the patient: the document is made again for each attempt.
    outbox = (patients.data_dir / "outbox").rglob("*")
    kept = b"".join(path.read_bytes() for path in outbox if path.is_file())
    assert sent.json()["id"].encode() in kept
    assert not [word for word in identifiers(ASKED) if word.encode() in kept and word[0] != "1"]
    ended = until(client, address, "failed")
    assert ended["attempts"] == 3
    again = client.post(address + "/retry")
    assert (again.status_code, again.json()["state"]) == (200, "waiting")
    assert client.post(address + "/cancel").json()["state"] in ("cancelled", "waiting")
    assert client.get("/v1/sendings").json()["sendings"][0]["id"] == ended["id"]


def test_credentials_do_not_belong_into_the_settings_file(tmp_path: Path, monkeypatch) -> None:
    file = tmp_path / "precedent.toml"
    file.write_text('[destinations.pacs]\nkind = "stow"\nurl = "http://p/"\ntoken = "x"\n')
    monkeypatch.setenv("PRECEDENT_CONFIG", str(file))
    with pytest.raises(SettingsError, match=r"destinations\.pacs\.token.*token_file"):
        load_settings()


@pytest.mark.slow
def test_a_real_pacs_takes_them(service: Callable[..., TestClient], patients: Settings) -> None:
    user = ("reporter", "loopback only")
    (port,) = free_ports(1)
    with Orthanc(
        user=user,
        modalities={"precedent": ("PRECEDENT", "127.0.0.1", port)},
        more={"DicomServerEnabled": True, "DicomAlwaysAllowStore": True},
    ) as orthanc:
        password = patients.data_dir / "pacs-password"
        password.write_text(user[1] + "\n")
        sources = patients.sources["clinic"].paths[0]
        orthanc.upload(path.read_bytes() for path in sorted(sources.iterdir()))
        client = service(
            port,
            web={
                "kind": "stow",
                "url": orthanc.url,
                "username": user[0],
                "password_file": password,
            },
            node={
                "kind": "dicom",
                "ae_title": orthanc.aet,
                "host": "127.0.0.1",
                "port": orthanc.dicom_port,
                "commitment_seconds": 30,
            },
        )
        teaching = [dicom_point_id(f"{study.uid}.1.1", 0) for study in STUDIES[4:]]
        for destination in ("web", "node"):
            for what in (
                {"report": {"study": ASKED.uid, "exclude_own": "study"}},
                {"report": {"study": ASKED.uid, "format": "pdf"}},
                {"earlier": {"study": ASKED.uid}},
                {"teaching": {"images": teaching}},
            ):
                sent = client.post("/v1/sendings", json={"destination": destination, **what})
                assert sent.status_code == 201, sent.text
                told = sent.json()
                assert {one["state"] for one in told["instances"]} == {"stored"}
                # Orthanc answers over another association.
                wanted = ("not-asked", None) if destination == "web" else ("committed", True)
                assert {(told["commitment"], one["committed"]) for one in told["instances"]} == {
                    wanted
                }
        _check_archive(orthanc, user)


def _check_archive(orthanc: Orthanc, user: tuple[str, str]) -> None:
    def get(path: str) -> Any:
        answer = requests.get(orthanc.root + path, auth=user, timeout=30)
        answer.raise_for_status()
        return answer.json() if "json" in answer.headers["content-type"] else answer.content

    instances = {}
    for one in get("/instances"):
        made = dcmread(io.BytesIO(get(f"/instances/{one}/file")), stop_before_pixels=True)
        instances[str(made.SOPInstanceUID)] = made
    by_study: dict[str, list[str]] = {}
    for made in instances.values():
        by_study.setdefault(str(made.StudyInstanceUID), []).append(str(made.Modality))
        for found in _references(made):
            assert found in instances, f"{made.Modality} refers to what the PACS does not have"
            assert instances[found].PatientID == made.PatientID
    assert sorted(by_study[ASKED.uid]) == ["CT"] * 3 + ["DOC"] * 2 + ["SR"] * 2
    for study in (STUDIES[1], STUDIES[2], *STUDIES[4:]):
        assert sorted(by_study[study.uid]) == ["CT"] * 3 + ["KO"] * 2
    modalities = get(f"/dicom-web/studies?StudyInstanceUID={ASKED.uid}")[0]["00080061"]["Value"]
    assert {"SR", "DOC"} <= {word for one in modalities for word in one.split("\\")}
    for other in OTHERS:
        said = json.dumps([get(f"/instances/{one}/tags") for one in _of(get, ASKED.uid)])
        assert other.id not in said


def _of(get: Callable[[str], Any], study: str) -> list[str]:
    return [
        one
        for one in get("/instances")
        if get(f"/instances/{one}/tags?simplify")["StudyInstanceUID"] == study
    ]


def _references(made: Any) -> Iterator[str]:
    for element in made.iterall():
        if element.keyword == "ReferencedSOPInstanceUID":
            yield str(element.value)


def until(client: TestClient, address: str, state: str) -> dict[str, Any]:
    """The sending, once it is in this state."""
    end = time.monotonic() + 60
    while (found := client.get(address).json())["state"] != state:
        assert time.monotonic() < end, found
        time.sleep(0.2)
    return found
