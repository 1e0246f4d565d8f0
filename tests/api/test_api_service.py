"""What holds for every answer: problems, headers, limits, the OpenAPI document, a server."""

import logging
import statistics
import time
from collections.abc import Iterator
from pathlib import Path

import httpx2
import jsonschema
import pytest
from services.loopback import LoopbackClient
from services.running import served

from api.http.problems import problem_of
from api.service import create_service
from engine.errors import (
    FingerprintMismatch,
    ImageNotFound,
    ImageRefused,
    LedgerError,
    ModelError,
    NotAllowed,
    NotAuthenticated,
    PrecedentError,
    QueryError,
    RefusalReason,
    SettingsError,
    StoreError,
    StoreLocked,
    StoreNotFound,
)
from engine.search.engine import SearchEngine

OPERATIONS = [
    "addInstance",
    "callCdsService",
    "cancelJob",
    "cancelSending",
    "createEmbedToken",
    "createJob",
    "createKey",
    "deleteInstances",
    "exportAudit",
    "getArchiveGrowth",
    "getArchiveMap",
    "getArchiveRefusals",
    "getCalibration",
    "getDrift",
    "getDuplicates",
    "getFacets",
    "getHealth",
    "getImage",
    "getImagingStudy",
    "getJob",
    "getJobEvents",
    "getJobReport",
    "getMetrics",
    "getModel",
    "getPreview",
    "getReadiness",
    "getRelatedStudies",
    "getSending",
    "getSources",
    "getStats",
    "getThumbnail",
    "listCdsServices",
    "listDestinations",
    "listJobs",
    "listKeys",
    "listSendings",
    "makeReport",
    "pauseJob",
    "recommend",
    "recommendSeries",
    "recommendUpload",
    "resumeJob",
    "retryJob",
    "retrySending",
    "revokeKey",
    "search",
    "searchAudit",
    "searchBatch",
    "searchRelatedStudies",
    "searchSeriesOfRelatedStudy",
    "searchSeriesOfStudy",
    "searchStudies",
    "searchUpload",
    "selectEarlierImages",
    "selectForTeaching",
    "sendDocuments",
    "storeInstances",
    "storeInstancesOfStudy",
    "verifyAudit",
    "whoAmI",
]
MAX_UPLOAD = 200_000
ALLOWANCE = 64 * 1024


@pytest.mark.parametrize(
    ("error", "status", "kind", "code"),
    [
        (QueryError("x"), 400, "query", "query"),
        (ImageNotFound("x"), 404, "image-not-found", "image-not-found"),
        (ImageRefused(RefusalReason.TRUNCATED, "x"), 422, "image-refused", "truncated"),
        (ImageRefused(RefusalReason.TOO_LARGE, "x"), 413, "image-refused", "too-large"),
        (NotAuthenticated("x"), 401, "not-authenticated", "not-authenticated"),
        (NotAllowed("x"), 403, "not-allowed", "not-allowed"),
        (StoreError("/secret"), 503, "store", "store"),
        (StoreNotFound("/secret"), 503, "store", "store-not-found"),
        (StoreLocked("/secret"), 503, "store-locked", "store-locked"),
        (FingerprintMismatch("/secret"), 503, "store", "model-mismatch"),
        (LedgerError("/secret"), 503, "ledger", "ledger"),
        (ModelError("/secret"), 503, "model", "model"),
        (SettingsError("/secret"), 500, "internal", "settings"),
        (PrecedentError("/secret"), 500, "internal", "error"),
        (ValueError("/secret"), 500, "internal", "internal"),
    ],
)
def test_every_error_has_its_status_and_code(error, status, kind, code) -> None:
    problem = problem_of(error, "/v1/search")
    assert (problem.status, problem.type) == (status, "urn:precedent:problem:" + kind)
    assert (problem.code, problem.instance) == (code, "/v1/search")
    assert problem.title
    assert problem.detail
    assert "secret" not in problem.model_dump_json()


def test_unknown_addresses_and_methods_are_problems(client) -> None:
    lost = client.get("/v2/nothing")
    assert (lost.status_code, lost.json()["code"]) == (404, "not-found")
    assert lost.json()["instance"] == "/v2/nothing"
    wrong = client.delete("/v1/search")
    assert (wrong.status_code, wrong.json()["code"]) == (405, "method-not-allowed")
    assert wrong.headers["allow"] == "POST"
    for response in (lost, wrong, client.get("/static/none"), client.get("/docs")):
        assert response.headers["content-type"] == "application/problem+json"
        assert {"type", "title", "status", "detail", "code", "instance"} <= set(response.json())


def test_an_unforeseen_error_is_logged_and_tells_nothing(client, monkeypatch, caplog) -> None:
    def broken(_: SearchEngine, image_id: str) -> None:
        raise RuntimeError(image_id)

    monkeypatch.setattr(SearchEngine, "image", broken)
    wanted = "00000000-0000-4000-8000-00000000d0e5"
    with caplog.at_level(logging.ERROR, "precedent.api"):
        response = client.get("/v1/images/" + wanted.upper())
    assert (response.status_code, response.json()["code"]) == (500, "internal")
    assert "content-security-policy" in response.headers
    assert "RuntimeError" in caplog.text
    assert "in broken" in caplog.text
    assert wanted not in response.text + caplog.text


def test_a_store_that_fails_is_a_503_whose_cause_is_in_the_log(client, monkeypatch, caplog) -> None:
    def locked(*_: object) -> None:
        raise StoreLocked("the index in /srv/data is open in another process")

    monkeypatch.setattr(SearchEngine, "facets", locked)
    with caplog.at_level(logging.ERROR, "precedent.api"):
        response = client.get("/v1/facets")
    assert (response.status_code, response.json()["code"]) == (503, "store-locked")
    assert "/srv" not in response.text
    assert "/srv" in caplog.text


@pytest.mark.parametrize(
    "address", ["/", "/healthz", "/v1/facets", "/openapi.json", "/none", "/static/style.css"]
)
def test_every_answer_carries_the_security_headers(client, address) -> None:
    headers = client.get(address).headers
    policy = headers["content-security-policy"]
    for part in (
        "default-src 'none'",
        "img-src 'self' data:",
        "style-src 'self'",
        "script-src 'self'",
        "form-action 'self'",
        "base-uri 'none'",
        "frame-ancestors 'none'",
    ):
        assert part in policy.split("; ")
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "same-origin"
    if not address.startswith("/static"):
        assert headers["cache-control"] == "no-store"


def test_a_declared_length_above_the_limit_is_refused_before_the_body_is_read(client) -> None:
    sent = 0

    def body() -> Iterator[bytes]:
        nonlocal sent
        sent += 1
        yield b"x"

    headers = {
        "Content-Length": str(MAX_UPLOAD + ALLOWANCE + 1),
        "Content-Type": "multipart/form-data; boundary=b",
    }
    response = client.post("/v1/search", content=body(), headers=headers)
    assert response.status_code == response.json()["status"] == 413
    assert response.json()["code"] == "too-large"
    assert sent == 0


def _multipart(size: int, chunk: int = 16_384) -> Iterator[bytes]:
    yield b'--b\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
    for start in range(0, size, chunk):
        yield b"x" * min(chunk, size - start)
    yield b"\r\n--b--\r\n"


@pytest.mark.parametrize("size", [MAX_UPLOAD + 1, MAX_UPLOAD + ALLOWANCE, 30 * MAX_UPLOAD])
def test_a_body_of_unknown_length_is_counted(client, size) -> None:
    headers = {"Content-Type": "multipart/form-data; boundary=b"}
    response = client.post("/v1/search", content=_multipart(size), headers=headers)
    assert "content-length" not in response.request.headers
    assert response.status_code == response.json()["status"] == 413
    assert response.json()["code"] == "too-large"


def test_a_file_at_the_limit_is_looked_at(client) -> None:
    response = client.post("/v1/search", files={"file": b"x" * MAX_UPLOAD})
    assert (response.status_code, response.json()["code"]) == (422, "not-an-image")


def test_a_body_that_is_no_form_is_a_problem(client) -> None:
    cut = client.post("/v1/search", content=b"--x", headers={"Content-Type": "multipart/form-data"})
    assert (cut.status_code, cut.json()["code"]) == (400, "bad-request")
    as_text = client.post("/v1/search", content=b"id", headers={"Content-Type": "text/plain"})
    assert (as_text.status_code, as_text.json()["code"]) == (415, "unsupported-media-type")
    assert "multipart/form-data or application/json" in as_text.json()["detail"]


def test_the_openapi_document_is_stable_and_complete(client) -> None:
    document = client.get("/openapi.json").json()
    operations = {
        operation["operationId"]: operation
        for path in document["paths"].values()
        for operation in path.values()
    }
    assert sorted(operations) == OPERATIONS
    assert document["openapi"].startswith("3.1")
    bodies = operations["search"]["requestBody"]["content"]
    assert list(bodies) == ["application/json", "multipart/form-data"]
    for operation in operations.values():
        assert operation["summary"]
        problems = {
            status: answer
            for status, answer in operation["responses"].items()
            if int(status) >= 400
        }
        assert problems
        for status, answer in problems.items():
            if operation["operationId"].startswith("store") and status in ("409", "503"):
                # What became of each instance, as DICOM has it.
                assert {"application/dicom+json", "application/dicom+xml"} <= set(answer["content"])
            else:
                assert list(answer["content"]) == ["application/problem+json"]
    schemas = document["components"]["schemas"]
    assert not _references(document) - {f"#/components/schemas/{name}" for name in schemas}
    hit = schemas["HitDocument"]["properties"]
    assert not {"path", "patient", "tenant"} & set(hit)


def _references(node: object) -> set[str]:
    if isinstance(node, list):
        return {found for one in node for found in _references(one)}
    if not isinstance(node, dict):
        return set()
    own = {node["$ref"]} if isinstance(node.get("$ref"), str) else set()
    return own | {found for one in node.values() for found in _references(one)}


def test_a_server_opens_its_own_archive_and_lets_go_of_it(indexed, tmp_path: Path) -> None:
    settings = indexed.copy(tmp_path / "data")
    content = indexed.files["ct"][0].read_bytes()
    for _ in range(2):
        with (
            served(create_service(settings)) as address,
            httpx2.Client(base_url=address, timeout=30) as client,
        ):
            assert client.get("/healthz").json()["points"] == 35
            answer = client.post("/v1/search", files={"file": content}, data={"k": 3}).json()
            assert answer["hits"][0]["sop"] == "1.2.3.0"
            chunked = client.post(
                "/v1/search",
                content=_multipart(MAX_UPLOAD + ALLOWANCE),
                headers={"Content-Type": "multipart/form-data; boundary=b"},
            )
            assert chunked.status_code == 413


def test_a_client_that_keeps_its_connection_waits_for_no_acknowledgement(archive) -> None:
    took = []
    with (
        served(create_service(archive=archive)) as address,
        httpx2.Client(base_url=address, timeout=30) as client,
    ):
        for _ in range(15):
            start = time.perf_counter()
            client.get("/healthz")
            took.append(time.perf_counter() - start)
    assert statistics.quantiles(took[1:], n=4)[0] < 0.02


@pytest.mark.slow
def test_before_anything_is_indexed_the_service_waits(indexed, tmp_path: Path) -> None:
    settings = indexed.settings.model_copy(update={"data_dir": tmp_path / "later"})
    with LoopbackClient(create_service(settings)) as client:
        for address in ("/healthz", "/v1/facets"):
            refused = client.get(address)
            assert (refused.status_code, refused.json()["code"]) == (503, "store-not-found")
            assert "indexed yet" in refused.json()["detail"]
        page = client.get("/")
        assert page.status_code == 503
        assert "indexed yet" in page.text
        # Nothing is made but the audit log, which has who asked.
        made = {path.name.partition("-")[0] for path in settings.data_dir.iterdir()}
        assert made == {"audit.sqlite"}
        indexed.copy(tmp_path / "copy")
        copied = sorted((tmp_path / "copy").iterdir(), key=lambda path: path.name == "index")
        for path in copied:
            if not path.name.startswith("audit"):
                path.rename(settings.data_dir / path.name)
        deadline = time.monotonic() + 60
        while client.get("/healthz").status_code != 200 and time.monotonic() < deadline:
            time.sleep(0.1)
        assert client.get("/healthz").json()["points"] == 35
        assert client.get("/v1/facets").status_code == 200


def test_an_index_of_another_model_is_said_at_the_start(indexed, tmp_path: Path) -> None:
    settings = indexed.copy(tmp_path / "other").model_copy(update={"model": None})
    with pytest.raises(FingerprintMismatch), LoopbackClient(create_service(settings)):
        pass


def test_the_examples_of_the_document_are_answers_as_it_describes_them(client) -> None:
    document = client.get("/openapi.json").json()
    checked = []
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            answers = (operation["responses"].get(status, {}) for status in ("200", "201"))
            for media in [one for answer in answers for one in answer.get("content", {}).values()]:
                if "example" in media and "$ref" in media["schema"]:
                    schema = {**media["schema"], "components": document["components"]}
                    jsonschema.Draft202012Validator(schema).validate(media["example"])
                    required = document["components"]["schemas"][
                        media["schema"]["$ref"].rpartition("/")[2]
                    ].get("required", ())
                    assert all(one in media["example"] for one in required)
                    checked.append((method, path))
    assert ("post", "/v1/search") in checked
    assert ("post", "/v1/recommend") in checked
