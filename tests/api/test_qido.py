"""What is related to a study in QIDO-RS, read by dicomweb-client and asked as OHIF asks."""

import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from dicomweb_client import DICOMwebClient
from fastapi.testclient import TestClient
from oidc_site import bearer
from pydicom.dataset import Dataset
from services.loopback import LoopbackClient
from services.running import served

from api.audit.log import open_log
from api.http.qido.patients import Patients
from api.http.qido.studies import Studies
from api.security.keys import Keys
from api.security.policy import Scope
from api.service import create_service
from engine.errors import SettingsError
from engine.integration_settings import QidoSettings
from engine.settings import Settings, load_settings
from engine.store.base import Filter
from indexer.archive import Archive, TenantArchive
from indexer.sources.folder import FolderSource

sys.path.append(str(Path(__file__).parents[1] / "indexer"))
from patients import ANNA, PATIENTS, STUDIES, identifiers, index_patients

QUERY, *OF_ANNA = (one.uid for one in STUDIES if one.patient is ANNA)
OTHERS = {one.uid: one for one in STUDIES if one.patient is not ANNA}
ROOT = f"/dicomweb/related/{QUERY}"
WADO = "https://pacs.example/dicom-web"
QIDO = QidoSettings(wado_root=f"{WADO}/", sources=("clinic",), patients="pseudonym")
# As OHIF 3.13 asks for its study list.
LIST = (
    "limit=101&offset=0&fuzzymatching=false&includefield=00081030%2C00080060%2C00080090%2C00100030"
)
STUDY, PATIENT, DESCRIPTION = "0020000D", "00100020", "00081030"


@pytest.fixture(scope="module")
def patients(store_root: Path, indexed) -> Settings:
    settings = index_patients(store_root, indexed.settings.model)
    return settings.model_copy(update={"qido": QIDO})


@pytest.fixture(scope="module")
def viewer(patients: Settings) -> Iterator[TestClient]:
    with LoopbackClient(create_service(patients)) as client:
        client.headers["Accept"] = "application/dicom+json"
        yield client


def found(client: TestClient, path: str) -> list[dict[str, Any]]:
    answer = client.get(path)
    if answer.status_code == 204:
        assert answer.content == b""
        return []
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "application/dicom+json"
    return answer.json()


def value(entry: dict[str, Any], tag: str) -> Any:
    return entry[tag].get("Value", [None])[0]


def studies(client: TestClient, path: str) -> list[str]:
    return [value(one, STUDY) for one in found(client, path)]


def test_dicomweb_client_reads_the_list(patients: Settings) -> None:
    with served(create_service(patients)) as address:
        web = DICOMwebClient(url=address + ROOT)
        whole = web.search_for_studies()
        first = web.search_for_studies(limit=2, fuzzymatching=False, fields=["StudyDescription"])
        rest = web.search_for_studies(limit=2, offset=2)
        assert first + rest == whole
        assert web.search_for_studies(offset=3) == []
        (series,) = web.search_for_series(value(whole[0], STUDY))
        narrowed = {"ModalitiesInStudy": "CT", "StudyInstanceUID": QUERY}
        (query,) = web.search_for_studies(search_filters=narrowed)
    read = [Dataset.from_json(one) for one in whole]
    assert {one.StudyInstanceUID for one in read} == set(OTHERS)
    for place, one in enumerate(read, 1):
        rank, score, *about = one.StudyDescription.split()
        year = OTHERS[one.StudyInstanceUID].date[:4]
        assert (rank, about) == (f"#{place}", ["CT", "CHEST", year])
        assert -1 <= float(score) <= 1
        assert one.RetrieveURL == f"{WADO}/studies/{one.StudyInstanceUID}"
        assert (one.ModalitiesInStudy, one.NumberOfStudyRelatedInstances) == ("CT", 3)
        assert (one.StudyDate, one.PatientName) == ("", "")
    scores = [float(one.StudyDescription.split()[1]) for one in read]
    assert scores == sorted(scores, reverse=True)
    made = Dataset.from_json(series)
    assert made.SeriesInstanceUID == f"{read[0].StudyInstanceUID}.1"
    assert made.RetrieveURL.endswith(f"/series/{made.SeriesInstanceUID}")
    assert (made.Modality, made.NumberOfSeriesRelatedInstances) == ("CT", 3)
    assert Dataset.from_json(query).StudyDescription == "Query CT CHEST 2024"


def test_the_list_that_ohif_asks_for(viewer: TestClient) -> None:
    listed = viewer.get(f"{ROOT}/studies?{LIST}")
    assert "warning" not in listed.headers
    assert listed.headers["cache-control"] == "no-store"
    entries = listed.json()
    assert len(entries) == len(OTHERS)
    assert all(one["00080061"]["Value"] for one in entries)
    # Without dates OHIF keeps the order; nothing of a patient is told.
    assert {value(one, "00080020") for one in entries} == {None}
    told = {word for one in STUDIES for word in identifiers(one) if not word.startswith("1.2.")}
    assert not [word for word in told if word in listed.text]
    assert studies(viewer, f"{ROOT}/studies?{LIST}&limit=1".replace("limit=101&", "")) == [
        value(entries[0], STUDY)
    ]
    assert studies(viewer, f"{ROOT}/studies?limit=101&offset=100") == []


def test_the_filters_of_ohifs_list_narrow_it(viewer: TestClient) -> None:
    year = {uid: int(one.date[:4]) for uid, one in OTHERS.items()}
    for asked, expected in (
        ("StudyDescription=*chest*", set(OTHERS)),
        ("StudyDescription=*ABDOMEN*", set()),
        ("ModalitiesInStudy=CT,MR", set(OTHERS)),
        ("ModalitiesInStudy=MR%5CUS", set()),
        ("ModalitiesInStudy=C?", set(OTHERS)),
        # What nobody is told matches nothing: no list of other people under a name.
        ("PatientName=*Smithson*", set()),
        ("PatientName=*", set(OTHERS)),
        ("AccessionNumber=*ACC*", set()),
        (f"00100020=*{PATIENTS[1].id}*", set()),
        # As it makes a range of one date.
        ("StudyDate=20200101-20261130", {uid for uid in OTHERS if year[uid] >= 2020}),
        ("StudyDate=19700102-20191231", {uid for uid in OTHERS if year[uid] <= 2019}),
        ("StudyDate=20190607", {uid for uid in OTHERS if year[uid] == 2019}),
        ("StudyDate=-20180101", set()),
    ):
        entries = found(viewer, f"{ROOT}/studies?{LIST}&{asked}")
        assert {value(one, STUDY) for one in entries} == expected, asked
        places = [value(one, DESCRIPTION).split()[0] for one in entries]
        assert places == [f"#{place}" for place in range(1, len(expected) + 1)]


def test_a_patient_is_answered_exactly(viewer: TestClient, patients: Settings) -> None:
    (query,) = found(viewer, f"{ROOT}/studies?StudyInstanceUID={QUERY}")
    told = value(query, PATIENT)
    assert told not in (None, ANNA.id)
    # As OHIF asks for the other studies of whom it shows, without looking whose they are.
    asked = f"studies?00100020={told}&{LIST}"
    assert set(studies(viewer, f"{ROOT}/{asked}")) == {QUERY, *OF_ANNA}
    assert set(studies(viewer, f"/dicomweb/{asked}")) == {QUERY, *OF_ANNA}
    both = f"{asked}&StudyInstanceUID={OF_ANNA[0]}%5C{next(iter(OTHERS))}"
    assert studies(viewer, f"{ROOT}/{both}") == OF_ANNA[:1]
    for never in (ANNA.id, "", told[:-1], told[:-1] + ("0" if told[-1] != "0" else "1"), "0" * 32):
        for root in (ROOT, "/dicomweb"):
            assert studies(viewer, f"{root}/studies?00100020={never}&{LIST}") == []
    silent = patients.model_copy(update={"qido": QidoSettings()})
    with LoopbackClient(create_service(silent)) as other:
        entries = found(other, f"{ROOT}/studies")
        assert {value(one, PATIENT) for one in entries} == {None}
        assert "00081190" not in entries[0]
        assert studies(other, f"{ROOT}/studies?PatientID={told}") == []


def test_studies_are_found_by_uid_whether_or_not_they_are_related(viewer: TestClient) -> None:
    listed = found(viewer, f"{ROOT}/studies")
    one, other = (value(entry, STUDY) for entry in listed[1::-1])
    for between in ("%5C", ",", "&StudyInstanceUID="):
        named = between.join([OF_ANNA[0], one, "1.2.3.4", other])
        entries = found(viewer, f"{ROOT}/studies?StudyInstanceUID={named}&{LIST}")
        assert [value(entry, STUDY) for entry in entries] == [other, one, OF_ANNA[0]]
        assert entries[:2] == listed[:2]
        assert value(entries[2], DESCRIPTION) == "CT CHEST 2020"
    assert studies(viewer, f"/dicomweb/studies?0020000d={one}") == [one]
    assert studies(viewer, "/dicomweb/studies?StudyInstanceUID=1.2.3.4") == []


def test_series_of_a_study(viewer: TestClient) -> None:
    asked = f"studies/{QUERY}/series?includefield=00080021,00080031,0008103E,00200011"
    for root in (ROOT, "/dicomweb"):
        (series,) = found(viewer, f"{root}/{asked}")
        assert value(series, "0020000E") == f"{QUERY}.1"
        assert (value(series, "00080060"), value(series, "00201209")) == ("CT", 3)
        assert found(viewer, f"{root}/{asked}&Modality=MR") == []
    for path in (f"{ROOT}/studies/1.2.3/series", "/dicomweb/studies/1.2.3/series"):
        assert viewer.get(path).status_code == 404
    assert viewer.get(f"{ROOT}/studies/a/series").status_code == 400


@pytest.mark.parametrize(
    ("parameters", "said"),
    [
        ("limit=-1", "limit is '-1'"),
        ("limit=ten", "limit is 'ten'"),
        ("limit=1&limit=2", "limit is given 2 times"),
        ("offset=1.5", "offset is '1.5'"),
        ("fuzzymatching=maybe", "fuzzymatching is 'maybe'"),
        ("StudyInstanceUID=1.2,x", "StudyInstanceUID is 'x'"),
        ("StudyInstanceUID=" + ",".join(f"1.{n}" for n in range(101)), "101 UIDs"),
        ("StudyDate=20240231", "StudyDate is '20240231'"),
        ("StudyDate=20240101-20230101", "write a date"),
        ("StudyDate=2024", "write a date"),
        ("PatientName=a&00100010=b", "PatientName is given 2 times"),
    ],
)
def test_what_is_malformed_is_said(viewer: TestClient, parameters: str, said: str) -> None:
    answer = viewer.get(f"{ROOT}/studies?{parameters}")
    assert (answer.status_code, answer.json()["code"]) == (400, "query")
    assert answer.headers["content-type"] == "application/problem+json"
    assert said in answer.json()["detail"]


def test_what_is_not_understood_is_passed_over_and_said(viewer: TestClient) -> None:
    for parameters, said in (
        ("fuzzymatching=true", "fuzzymatching parameter is not supported"),
        ("BodyPartExamined=HAND", "BodyPartExamined"),
        ("00101002.00100020=1&Nonsense=2", "OtherPatientIDsSequence.PatientID, Nonsense"),
        ("includefield=all,Nonsense", "Nonsense"),
        ("Smith%22%0d%0aX=1&emptyvaluematching=true", "emptyvaluematching, 1 more."),
    ):
        answer = viewer.get(f"{ROOT}/studies?{parameters}")
        assert len(answer.json()) == len(OTHERS)
        assert answer.headers["warning"].startswith("299 http://localhost/dicomweb ")
        assert said in answer.headers["warning"]
        assert "x" not in answer.headers


def test_what_is_not_there_or_too_much(viewer: TestClient) -> None:
    never = viewer.get("/dicomweb/related/1.2.3/studies")
    assert (never.status_code, never.json()["code"]) == (404, "image-not-found")
    everything = viewer.get(f"/dicomweb/studies?{LIST}")
    assert everything.status_code == 400
    assert "/dicomweb/related/STUDY/studies" in everything.json()["detail"]


def test_there_is_dicom_json_and_nothing_else(viewer: TestClient) -> None:
    path = f"{ROOT}/studies?limit=1"
    for accept in ("*/*", "", "application/*", "application/json;q=.5, application/dicom+json"):
        assert viewer.get(path, headers={"Accept": accept}).status_code == 200
    multipart = 'multipart/related; type="application/dicom+xml"'
    for accept in ("application/json", multipart, "application/dicom+json;q=0", "text/html"):
        refused = viewer.get(path, headers={"Accept": accept})
        assert (refused.status_code, refused.json()["code"]) == (406, "not-acceptable")
    assert viewer.get(f"{path}&accept=text/html").status_code == 406


@pytest.mark.parametrize("why", ["its server lacks them", "it knows them by other UIDs"])
def test_studies_that_the_viewer_cannot_have_are_left_out(patients: Settings, why: str) -> None:
    settings = patients.model_copy(update={"qido": QidoSettings(sources=("elsewhere",))})
    if why == "it knows them by other UIDs":
        clinic = patients.sources["clinic"].model_copy(update={"uids": "replaced"})
        settings = patients.model_copy(update={"sources": {"clinic": clinic}})
    with LoopbackClient(create_service(settings)) as client:
        assert studies(client, f"{ROOT}/studies") == []
        assert studies(client, f"{ROOT}/studies?StudyInstanceUID={QUERY}") == []
        assert client.get(f"/dicomweb/studies/{QUERY}/series").status_code == 404


def test_pictures_that_are_no_dicom_take_no_place(archive: Archive, client: TestClient) -> None:
    # Most of this archive are PNG files.
    everything = studies(client, "/dicomweb/related/1.2.4.0/studies")
    assert set(everything) == {"1.2.4.1", "1.2.4.2", "1.2.4.5", "1.2.4.6"}
    other = archive.of("default")
    other.settings = archive.settings.model_copy(update={"qido": QidoSettings(studies=2)})
    with LoopbackClient(create_service(archive=other)) as few:
        assert studies(few, "/dicomweb/related/1.2.4.0/studies") == everything[:2]


def test_a_study_foreign_to_the_model_is_marked(foreign_client: TestClient) -> None:
    answer = foreign_client.get("/dicomweb/related/1.2.4.0/studies")
    assert "foreign to the model" in answer.headers["warning"]
    assert {" (foreign query) " in value(one, DESCRIPTION) for one in answer.json()} == {True}


def test_two_tenants_and_the_audit_log(indexed, tmp_path: Path) -> None:
    settings = indexed.copy(tmp_path / "data")
    settings = settings.model_copy(update={"qido": QidoSettings(patients="pseudonym")})
    with Archive(settings, tenant="north") as archive:
        # Two of the other one's studies as well, and none of the rest.
        archive.index(FolderSource(indexed.files["ct"][:4]))
        keys = Keys(archive._database)
        mine, theirs = (
            bearer(keys.create("k", [Scope.SEARCH], tenant=one)[1]) for one in ("default", "north")
        )
        with LoopbackClient(create_service(archive=archive)) as client:
            listed = [
                client.get("/dicomweb/related/1.2.4.0/studies", headers=who).json()
                for who in (mine, theirs)
            ]
            told = value(listed[0][0], PATIENT)
            for asked in ("StudyInstanceUID=1.2.4.5", f"PatientID={told}"):
                path = f"/dicomweb/studies?{asked}"
                assert client.get(path, headers=mine).status_code == 200
                assert client.get(path, headers=theirs).status_code == 204
            path = "/dicomweb/related/1.2.4.0/studies/1.2.4.5/series"
            assert client.get(path, headers=mine).status_code == 200
            assert client.get(path, headers=theirs).status_code == 404
            page = client.get("/dicomweb/related/1.2.4.0/studies?limit=1", headers=mine).json()
    assert [value(one, STUDY) for one in listed[1]] == ["1.2.4.1"]
    patients = [{value(one, STUDY): value(one, PATIENT) for one in both} for both in listed]
    assert patients[0]["1.2.4.1"] != patients[1]["1.2.4.1"]
    with open_log(settings) as log:
        rows = [row.document for row in islice(log.between(latest_first=True), 5)]
    seen = [(one["studies"], one["who"]["tenant"], one["status"]) for one in rows]
    assert seen == [
        (["1.2.4.0", value(page[0], STUDY)], "default", 200),
        (["1.2.4.0", "1.2.4.5"], "north", 404),
        (["1.2.4.0", "1.2.4.5"], "default", 200),
        ([], "north", 204),
        ([patients_study(patients[0], told)], "default", 200),
    ]
    assert rows[0]["results"] == 1


def patients_study(patients: dict[str, str], told: str) -> str:
    (found,) = (study for study, patient in patients.items() if patient == told)
    return found


def test_pseudonyms_lead_back_in_their_tenant_alone(patients: Settings) -> None:
    north, south = (Patients(patients, tenant) for tenant in ("north", "south"))
    indexed = "0123456789abcdef" * 2
    told = north.told(indexed)
    assert told is not None
    assert told != south.told(indexed) != indexed
    assert north.indexed(told) == indexed != south.indexed(told)
    assert [north.told(one) for one in (None, "", "HIDDEN-1")] == [None] * 3
    assert north.indexed("HIDDEN-1") is None


def test_a_study_without_modality_has_one_all_the_same(archive: Archive, monkeypatch) -> None:
    found = Studies(TenantArchive(archive, "default"))
    bare = [
        replace(one, record=replace(one.record, modality=None, body_part=None, study_year=None))
        for one in found._store.scroll(Filter())
        if one.record.study == "1.2.4.5"
    ]
    monkeypatch.setattr(found, "_store", type("S", (), {"scroll": lambda *_: iter(bare)})())
    (study,) = found.find(["1.2.4.5"])
    assert study.attributes["ModalitiesInStudy"] == ["OT"]


@pytest.mark.parametrize(
    "written",
    [
        "pacs.example/dicom-web",
        "ftp://pacs.example",
        "http://a:b@pacs",
        "https://pacs/?x",
        "http://",
    ],
)
def test_addresses_that_are_none_are_refused(written: str) -> None:
    with pytest.raises(SettingsError, match=r"qido\.wado_root: .*no address of a DICOMweb server"):
        load_settings(qido={"wado_root": written})


def test_the_document_describes_the_searches(client: TestClient) -> None:
    document = client.get("/openapi.json").json()
    found = document["paths"]["/dicomweb/related/{uid}/studies"]["get"]
    assert {"uid", "limit", "offset", "StudyInstanceUID"} <= {
        one["name"] for one in found["parameters"]
    }
    (example,) = found["responses"]["200"]["content"]["application/dicom+json"]["example"]
    assert Dataset.from_json(json.dumps(example)).StudyDescription.startswith("#1 0.97")
