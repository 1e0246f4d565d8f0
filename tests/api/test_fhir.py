"""Related studies in FHIR R4: what a FHIR server or client makes of them.

Two libraries that had no part in writing it judge the finished JSON: FHIR.js
(``services/fhir_validator.py`` says what it does not check) and the R4B models of fhir.resources,
which see dates, ids and empty values. What neither sees (scores beyond 0 to 1, the form of UIDs,
that addresses and ids fit, that a modality is still there when it is read back) is tested here.
"""

import io
import json
import re
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import pydicom
import pytest
from conftest import Indexed, dicom, stripes
from fastapi.testclient import TestClient
from fhir.resources.R4B.bundle import Bundle
from fhir.resources.R4B.imagingstudy import ImagingStudy
from oidc_site import bearer
from pydicom.uid import ImplicitVRLittleEndian
from services.fhir_validator import fhir_findings
from services.loopback import LoopbackClient
from services.orthanc import Orthanc
from starlette.requests import Request

from api.audit.log import open_log
from api.http.fhir.bundle import fhir_answer
from api.http.fhir.imaging_study import FhirStudies
from api.security.keys import Keys
from api.security.policy import Scope
from api.service import create_service
from engine.integration_settings import FhirSettings
from engine.records import Hit, ImageRecord, OodVerdict
from engine.settings import DicomWebSettings, Settings
from engine.store.base import Filter
from indexer.archive import Archive, TenantArchive
from indexer.files.sop_class import read_sop_class
from indexer.pipeline.sop_classes import sop_classes
from indexer.sources.folder import FolderSource

FHIR = {"Accept": "application/fhir+json"}
STUDY = "1.2.4.0"
CT = "urn:oid:1.2.840.10008.5.1.4.1.1.2"
DCM = "http://dicom.nema.org/resources/ontology/DCM"


def related(client: TestClient, study: str = STUDY, **params: Any) -> Any:
    answer = client.get(f"/v1/studies/{study}/related", params=params, headers=FHIR)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "application/fhir+json"
    assert "Accept" in answer.headers["vary"]
    return answer.json()


def matches(bundle: Any) -> list[Any]:
    return [one for one in bundle.get("entry", []) if one["search"]["mode"] == "match"]


def outcomes(bundle: Any) -> list[str]:
    return [
        issue["diagnostics"]
        for one in bundle.get("entry", [])
        if one["search"]["mode"] == "outcome"
        for issue in one["resource"]["issue"]
    ]


def with_fhir(archive: Archive, **fhir: Any) -> Iterator[TestClient]:
    other = archive.of("default")
    other.settings = archive.settings.model_copy(update={"fhir": FhirSettings(**fhir)})
    with LoopbackClient(create_service(archive=other)) as opened:
        yield opened


@pytest.fixture(scope="module")
def pseudonymous(archive: Archive) -> Iterator[TestClient]:
    yield from with_fhir(archive, patients="pseudonym")


def test_the_bundle_is_the_answer_in_another_form(client: TestClient) -> None:
    plain = client.get(f"/v1/studies/{STUDY}/related", params={"k": 30}).json()["hits"]
    bundle = related(client, k=30)
    named = [hit for hit in plain if hit["study"] is not None]
    assert 0 < len(named) < len(plain)
    assert bundle["total"] == len(named) == len(matches(bundle))
    assert bundle["link"] == [
        {"relation": "self", "url": f"http://localhost/v1/studies/{STUDY}/related?k=30"}
    ]
    for hit, entry in zip(named, matches(bundle), strict=True):
        score = entry["search"]["score"]
        assert isinstance(score, float)
        assert score == pytest.approx(min(1, max(0, hit["similarity"])))
        study = entry["resource"]
        assert study["id"] == hit["study"]
        assert entry["fullUrl"] == f"http://localhost/fhir/ImagingStudy/{hit['study']}"
        assert study["identifier"] == [
            {"system": "urn:dicom:uid", "value": f"urn:oid:{hit['study']}"}
        ]
        assert study["modality"] == [{"system": DCM, "code": hit["modality"]}]
        # A year, since the index has no more; never a time, which would need a zone.
        assert study["started"] == str(hit["study_year"])
        (series,) = study["series"]
        assert (series["uid"], series["modality"]["code"]) == (hit["series"], hit["modality"])
        (instance,) = series["instance"]
        assert instance == {
            "uid": hit["sop"],
            "sopClass": {"system": "urn:ietf:rfc:3986", "code": CT},
        }
    assert [f"{len(plain) - len(named)} of the images found have no Study Instance UID"] == [
        one.partition(",")[0] for one in outcomes(bundle)
    ]


def test_two_other_libraries_take_it(
    client: TestClient, pseudonymous: TestClient, indexed: Indexed
) -> None:
    content = indexed.files["ct"][0].read_bytes()
    searched = client.post("/v1/search", files={"file": content}, data={"k": 35}, headers=FHIR)
    recommended = client.post("/v1/recommend", json={"study": STUDY}, headers=FHIR)
    bundles = [
        related(client, k=30),
        related(client, where="modality=XA"),
        related(pseudonymous, k=30),
        searched.json(),
        recommended.json(),
    ]
    assert [bundle["total"] for bundle in bundles[:2]] == [4, 0]
    whole = client.get(f"/fhir/ImagingStudy/{STUDY}", headers=FHIR)
    assert whole.headers["content-type"] == "application/fhir+json"
    liked = client.post("/v1/recommend", json={"study": STUDY, "k": 30}).json()["hits"]
    asked = {"image": [hit["id"] for hit in liked], "format": "fhir"}
    collected = client.get("/collection", params=asked).json()
    assert len(collected["entry"]) == 4
    # It does find what is wrong.
    wrong = json.loads(json.dumps(bundles[0]))
    wrong["entry"][0]["resource"]["status"] = "there"
    wrong["entry"][0]["search"]["score"] = "0.5"
    del wrong["entry"][1]["resource"]["series"][0]["instance"][0]["sopClass"]
    *found, in_wrong = fhir_findings([*bundles, whole.json(), collected, wrong])
    assert found == [[]] * 7
    assert len(in_wrong) == 3
    assert Bundle.model_validate_json(json.dumps(collected)).type == "collection"
    for bundle in bundles:
        read = Bundle.model_validate_json(json.dumps(bundle))
        for entry, written in zip(read.entry or [], bundle.get("entry", []), strict=True):
            if isinstance(entry.resource, ImagingStudy):
                codes = [one.code for one in entry.resource.modality]
                assert codes == [one["code"] for one in written["resource"]["modality"]]
                assert 0 <= entry.search.score <= 1
    assert ImagingStudy.model_validate_json(whole.text).series[0].modality.code == "CT"


def test_the_address_of_an_entry_leads_to_its_study(client: TestClient) -> None:
    for entry in matches(related(client, k=30)):
        there = client.get(entry["fullUrl"])
        assert there.status_code == 200
        assert there.json()["id"] == entry["resource"]["id"]
    assert client.get("/fhir/ImagingStudy/1.2.99").status_code == 404
    assert client.get("/fhir/ImagingStudy/x").json()["code"] == "image-not-found"


def test_images_of_one_study_are_one_entry(client: TestClient, indexed: Indexed) -> None:
    content = indexed.files["ct"][0].read_bytes()
    sent = {"k": 35, "where": "modality=CT"}
    answer = client.post("/v1/search", files={"file": content}, data=sent, headers=FHIR)
    first, *_ = matches(answer.json())
    assert answer.json()["total"] == 3
    assert first["resource"]["id"] == STUDY
    assert {one["uid"] for one in first["resource"]["series"][0]["instance"]} == {
        "1.2.3.0",
        "1.2.3.1",
    }
    assert first["search"]["score"] == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize(
    ("accept", "kind"),
    [
        ("application/fhir+json", "fhir"),
        ("Application/FHIR+JSON; fhirVersion=4.0", "fhir"),
        ("application/fhir+json, */*;q=0.1", "fhir"),
        ("*/*, application/fhir+json", "fhir"),
        ("application/fhir+json, application/json", "fhir"),
        ("application/fhir+xml, application/fhir+json;q=0.5", "fhir"),
        ("application/json, application/fhir+json", "own"),
        ("application/json, application/fhir+json;q=0.9", "own"),
        ("application/fhir+json;q=0", "own"),
        ("application/fhir+json;q=x", "own"),
        ("*/*", "own"),
        ("", "own"),
        ("text/html", "own"),
        ("application/fhir+xml, application/json;q=0.2", "own"),
        ("application/fhir+xml", "refused"),
        ("application/fhir+json; fhirVersion=5.0", "refused"),
    ],
)
def test_what_is_asked_for_is_given(client: TestClient, accept: str, kind: str) -> None:
    path = f"/v1/studies/{STUDY}/related?k=1"
    answer = client.get(path, headers={"Accept": accept})
    given = {"application/fhir+json": "fhir", "application/json": "own"}
    assert given.get(answer.headers["content-type"], "refused") == kind
    if kind == "refused":
        assert answer.status_code == 406
        assert "application/fhir+json" in answer.json()["detail"]
    else:
        assert answer.headers["cache-control"] == "no-store"


def test_errors_are_problem_documents(client: TestClient) -> None:
    answer = client.get("/v1/studies/1.2.99/related", headers=FHIR)
    assert (answer.status_code, answer.json()["code"]) == (404, "image-not-found")
    assert answer.headers["content-type"] == "application/problem+json"


def test_nothing_tells_whose_a_study_is(
    client: TestClient, pseudonymous: TestClient, archive: Archive
) -> None:
    patients = {one.record.patient for one in archive.store.scroll(Filter())} - {None}
    assert len(patients) == 10
    bundle = related(client, k=30, exclude_own="none")
    assert not any(one in json.dumps(bundle) for one in (*patients, "HIDDEN", "Hidden"))
    assert [one["resource"]["subject"] for one in matches(bundle)] == [
        {"display": "Patient not named"}
    ] * bundle["total"]
    told = related(pseudonymous, k=30, exclude_own="none")
    names = [one["resource"]["subject"]["identifier"]["value"] for one in matches(told)]
    assert all(re.fullmatch("[0-9a-f]{32}", one) for one in names)
    # They tell patients apart, and what the index has is still known to nobody.
    assert len(set(names)) == len(names)
    assert not set(names) & patients
    assert names == [
        one["resource"]["subject"]["identifier"]["value"]
        for one in matches(related(pseudonymous, k=30, exclude_own="none"))
    ]


def resource(settings: FhirSettings, *images: ImageRecord, tenant: str = "default") -> Any:
    every = [(str(number), image) for number, image in enumerate(images)]
    return FhirStudies(settings, tenant, {"0": CT.removeprefix("urn:oid:")}).resource("1.2", every)


IMAGE = ImageRecord(study="1.2", series="1.2.3", sop="1.2.3.4", patient="p", modality="ANN")


def test_a_modality_that_r4_lacks_may_be_sent_as_other() -> None:
    kept = resource(FhirSettings(), IMAGE)
    other = resource(FhirSettings(only_r4_modalities=True), IMAGE, replace(IMAGE, modality="CT"))
    assert [one["code"] for one in kept["modality"]] == ["ANN"]
    assert [one["code"] for one in other["modality"]] == ["OT", "CT"]
    assert other["series"][0]["modality"]["code"] == "OT"
    unknown = resource(FhirSettings(), replace(IMAGE, modality=None))
    assert unknown["series"][0]["modality"] == {"system": DCM, "code": "OT"}


def test_what_is_not_known_is_left_out() -> None:
    bare = resource(FhirSettings(patients="pseudonym"), ImageRecord(study="1.2"))
    assert set(bare) == {"resourceType", "id", "identifier", "status", "modality", "subject"}
    assert bare["subject"] == {"display": "Patient not named"}
    frames = resource(FhirSettings(), IMAGE, replace(IMAGE, frame=1))
    assert [one["uid"] for one in frames["series"][0]["instance"]] == ["1.2.3.4"]


def test_a_pseudonym_is_another_one_in_each_tenant() -> None:
    told = FhirSettings(patients="pseudonym")
    subjects = [resource(told, IMAGE, tenant=one)["subject"] for one in ("north", "default")]
    assert subjects[0] != subjects[1]


def test_scores_are_numbers_from_0_to_1(archive: Archive) -> None:
    scope = {"type": "http", "method": "GET", "path": "/", "headers": [], "query_string": b""}
    request = Request({**scope, "scheme": "http", "server": ("localhost", 80)})
    raw = {"1.1": -0.4, "1.2": 1.0000002, "1.3": float("nan"), "1.4": 0.25}
    hits = [Hit(uid, r, 3, ImageRecord(study=uid)) for uid, r in raw.items()]
    verdict = OodVerdict(0.001, 0.03, {}, {})
    answer = fhir_answer(request, TenantArchive(archive, "default"), hits, verdict, lambda _: [])
    bundle = json.loads(answer.body)
    scores = {one["resource"]["id"]: one["search"]["score"] for one in matches(bundle)}
    assert scores == {"1.2": 1.0, "1.4": 0.25, "1.1": 0.0, "1.3": 0.0}
    assert "foreign to the model" in outcomes(bundle)[0]
    assert fhir_findings([bundle]) == [[]]


def test_without_its_file_an_image_is_no_instance(indexed: Indexed, tmp_path: Path) -> None:
    settings = indexed.copy(tmp_path / "data")
    folder = tmp_path / "pacs"
    folder.mkdir()
    for number in (20, 22, 24):
        made = dicom(stripes(number), number, modality="US", part="LIVER")
        (folder / str(number)).write_bytes(made)
    with Archive(settings) as archive:
        archive.index(FolderSource([folder]))
        # Another instance under the name of the one, and the other one gone.
        (folder / "22").write_bytes((folder / "20").read_bytes())
        (folder / "24").unlink()
        with LoopbackClient(create_service(archive=archive)) as client:
            bundle = related(client, "1.2.4.10", where="modality=US")
            assert bundle["total"] == 2
            for entry in matches(bundle):
                assert "instance" not in entry["resource"]["series"][0]
            assert outcomes(bundle)[0].startswith("2 of the images found are not listed")
            shown = client.get("/fhir/ImagingStudy/1.2.4.10").json()["series"][0]
            assert shown["instance"][0]["sopClass"]["code"] == CT


def test_the_sop_class_is_read_of_any_encoding(indexed: Indexed) -> None:
    content = indexed.files["ct"][0].read_bytes()
    expected = ("1.2.840.10008.5.1.4.1.1.2", "1.2.3.0")
    assert read_sop_class(io.BytesIO(content)) == expected
    made = pydicom.dcmread(io.BytesIO(content))
    made.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
    made.SpecificCharacterSet = "ISO_IR 100"
    for enforced in (True, False):
        out = io.BytesIO()
        if not enforced:
            del made.file_meta
            made.preamble = None
        made.save_as(out, enforce_file_format=enforced, implicit_vr=True, little_endian=True)
        assert read_sop_class(io.BytesIO(out.getvalue())) == expected
    for other in (b"", content[:140], b"\x89PNG" + b"\0" * 400, content[:200]):
        assert read_sop_class(io.BytesIO(other)) in (None, expected)


@pytest.mark.slow
def test_of_an_instance_on_a_server_the_server_says_the_sop_class(indexed: Indexed) -> None:
    record = ImageRecord(study=STUDY, series="1.2.5.0", sop="1.2.3.0", source="pacs")
    gone = replace(record, sop="1.2.3.99")
    with Orthanc() as orthanc:
        orthanc.upload([indexed.files["ct"][0].read_bytes()])
        source = DicomWebSettings(kind="dicomweb", url=orthanc.url)
        settings = Settings(sources={"pacs": source})
        at = f"{orthanc.url}/studies/{STUDY}/series/1.2.5.0/instances/1.2.3."
        asked = {"there": (record, at + "0"), "gone": (gone, at + "99")}
        asked["elsewhere"] = (record, "http://127.0.0.1:1/studies/1/series/1/instances/1")
        assert sop_classes(asked, settings) == {"there": CT.removeprefix("urn:oid:")}
    assert sop_classes(asked, settings) == {}


def test_two_tenants(indexed: Indexed, tmp_path: Path) -> None:
    settings = indexed.copy(tmp_path / "data")
    settings = settings.model_copy(update={"fhir": FhirSettings(patients="pseudonym")})
    with Archive(settings, tenant="north") as archive:
        # Two of the other one's studies as well, and none of the rest.
        archive.index(FolderSource(indexed.files["ct"][:4]))
        keys = Keys(archive._database)
        mine, theirs = (
            bearer(keys.create("k", [Scope.SEARCH], tenant=one)[1]) for one in ("default", "north")
        )
        with LoopbackClient(create_service(archive=archive)) as client:
            path = f"/v1/studies/{STUDY}/related?k=30"
            found = [client.get(path, headers=FHIR | who).json() for who in (mine, theirs)]
            hidden = client.get("/fhir/ImagingStudy/1.2.4.5", headers=theirs)
            never = client.get("/fhir/ImagingStudy/1.2.4.99", headers=theirs)
            assert client.get("/fhir/ImagingStudy/1.2.4.5", headers=mine).status_code == 200
    assert [bundle["total"] for bundle in found] == [4, 1]
    assert hidden.status_code == never.status_code == 404
    subjects = [
        {one["resource"]["id"]: one["resource"]["subject"] for one in matches(bundle)}
        for bundle in found
    ]
    assert subjects[0]["1.2.4.1"] != subjects[1]["1.2.4.1"]
    with open_log(settings) as log:
        rows = [row.document for row in islice(log.between(latest_first=True), 3)]
    assert [(one["studies"], one["who"]["tenant"], one["status"]) for one in rows] == [
        (["1.2.4.5"], "default", 200),
        (["1.2.4.99"], "north", 404),
        (["1.2.4.5"], "north", 404),
    ]
