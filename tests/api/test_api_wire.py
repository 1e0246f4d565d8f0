"""What surrounds answers: ids of requests, HEAD, compression, timings, problems, the document."""

import gzip
import json
import re

import jsonschema
import pytest
from openapi_spec_validator import validate
from services.running import served

from api.security.policy import POLICY
from api.service import create_service

SEEN = re.compile(r"[0-9a-f]{32}")


@pytest.mark.parametrize("sent", ["a", "trace-7_b.C", "x" * 64])
def test_a_well_formed_id_of_a_request_is_kept(client, sent) -> None:
    for address in ("/healthz", "/none", "/v1/images/x", "/", "/static/style.css"):
        answer = client.get(address, headers={"X-Request-Id": sent})
        assert answer.headers["x-request-id"] == sent
        if answer.status_code == 404:
            assert answer.json()["request_id"] == sent


@pytest.mark.parametrize("sent", [None, "", "x" * 65, "a b", 'a"b', "a\tb", "ä"])
def test_any_other_is_replaced(client, sent) -> None:
    headers = {} if sent is None else {"X-Request-Id": sent.encode("latin-1")}
    first, second = (client.get("/none", headers=headers) for _ in range(2))
    assert SEEN.fullmatch(first.json()["request_id"])
    assert first.json()["request_id"] == first.headers["x-request-id"]
    assert first.headers["x-request-id"] != second.headers["x-request-id"]


@pytest.mark.parametrize(
    "address",
    [path for method, path in POLICY if method == "GET" and not path.endswith("/events")],
)
def test_head_is_get_without_its_body(client, indexed, id_of, address) -> None:
    names = {"{uid}": "1.2.4.0", "{study}": "1.2.4.0", "{path:path}": "style.css"}
    names["{id}"] = "1" if "/jobs/" in address else id_of(indexed.files["ct"][0])
    for name, value in names.items():
        address = address.replace(name, value)
    plain = {"Accept-Encoding": "identity"}
    get, head = client.get(address, headers=plain), client.head(address, headers=plain)
    assert (head.status_code, head.content) == (get.status_code, b"")
    changing = {"x-request-id", "server-timing", "date", "content-length", "vary"}
    same = [
        {name: value for name, value in answer.headers.items() if name not in changing}
        for answer in (get, head)
    ]
    assert same[0] == same[1]


def test_head_keeps_a_connection_in_order(archive) -> None:
    import httpx2

    with (
        served(create_service(archive=archive)) as url,
        httpx2.Client(base_url=url, timeout=30) as client,
    ):
        for _ in range(3):
            assert client.head("/v1/facets").status_code == 200
            assert client.get("/v1/facets").json()["count"] == 35
            assert client.head("/v1/none").status_code == 404


def test_long_json_is_compressed_for_who_takes_it(client, indexed, id_of) -> None:
    body = {"sop": "1.2.3.0", "k": 35}
    plain = client.post("/v1/search", json=body, headers={"Accept-Encoding": "identity"})
    assert "content-encoding" not in plain.headers
    packed = client.post("/v1/search", json=body, headers={"Accept-Encoding": "gzip"})
    assert packed.headers["content-encoding"] == "gzip"
    assert "accept-encoding" in packed.headers["vary"].lower()
    assert packed.json()["hits"] == plain.json()["hits"]
    short = client.get("/healthz", headers={"Accept-Encoding": "gzip"})
    assert "content-encoding" not in short.headers


def test_pictures_pages_and_what_tells_of_keys_are_never_compressed(client, indexed, id_of) -> None:
    image = id_of(indexed.files["ct"][0])
    addresses = ["/", "/v1/whoami"]
    addresses += [f"/v1/images/{image}/{kind}" for kind in ("thumbnail", "preview")]
    for address in addresses:
        answer = client.get(address, headers={"Accept-Encoding": "gzip"})
        assert answer.status_code == 200
        assert "content-encoding" not in answer.headers, address
        assert answer.content[:2] != gzip.compress(b"")[:2]


def test_the_stages_of_a_search_are_in_a_header(client, indexed) -> None:
    content = indexed.files["ct"][0].read_bytes()
    for answer, stage in (
        (client.post("/v1/search", files={"file": content}), "encode"),
        (client.post("/v1/search", json={"sop": "1.2.3.0"}), "fetch"),
        (client.post("/v1/search/batch", files={"files": content}), "read"),
        (client.get("/v1/studies/1.2.4.0/related"), "rank"),
    ):
        told = dict(part.split(";dur=") for part in answer.headers["server-timing"].split(", "))
        assert stage in told
        assert all(float(ms) <= float(told["total"]) + 0.2 for ms in told.values())
    assert "total;dur=" in client.get("/none").headers["server-timing"]


@pytest.mark.parametrize("path", ["/v1/search", "/v1/search/batch", "/v1/recommend"])
def test_a_body_of_another_type_is_a_415(client, path) -> None:
    for kind in ("text/plain", "application/xml", "application/octet-stream"):
        answer = client.post(path, content=b"x", headers={"Content-Type": kind})
        assert (answer.status_code, answer.json()["code"]) == (415, "unsupported-media-type")
        assert answer.headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize("path", ["/v1/search", "/v1/recommend"])
def test_an_upload_has_an_operation_of_its_own(client, indexed, path) -> None:
    file = {"file": indexed.files["ct"][0].read_bytes()}
    options = {"k": "3", "where": ["modality=CT"]}
    one, other = (client.post(f"{path}{end}", files=file, data=options) for end in ("", "/upload"))
    assert [hit["id"] for hit in one.json()["hits"]] == [hit["id"] for hit in other.json()["hits"]]
    assert len(other.json()["hits"]) > 1
    for sent in ({"data": {"k": "3"}}, {"files": {"k": (None, "3")}}):
        without = client.post(f"{path}/upload", **sent)
        assert (without.status_code, without.json()["errors"][0]["field"]) == (422, "file")
    named = client.post(f"{path}/upload", json={"study": "1.2.4.0"})
    assert named.status_code == 415
    assert "send multipart/form-data" in named.json()["detail"]


def test_an_upload_is_the_only_image_of_its_operation(client, indexed) -> None:
    file = {"file": indexed.files["ct"][0].read_bytes()}
    answer = client.post("/v1/search/upload", files=file, data={"sop": "1.2.3.0"})
    assert (answer.status_code, answer.json()["errors"][0]["field"]) == (422, "sop")


# The document


@pytest.fixture
def document(client):
    return client.get("/openapi.json").json()


def test_the_document_is_openapi_3_1(document) -> None:
    validate(document)
    assert document["servers"] == [{"url": "/", "description": "This service."}]


def _media(document):
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            for where in (operation.get("requestBody", {}), *operation["responses"].values()):
                for kind, media in where.get("content", {}).items():
                    yield f"{method} {path} {kind}", kind, media


def test_all_examples_are_what_the_document_says(document) -> None:
    schemas = document["components"]["schemas"]
    checked = []
    for name, kind, media in _media(document):
        schema = {**media["schema"], "components": document["components"]}
        found = [media["example"]] if "example" in media else []
        found += [one["value"] for one in media.get("examples", {}).values()]
        component = schemas.get(media["schema"].get("$ref", "").rpartition("/")[2], {})
        found += component.get("examples", [])
        for example in found:
            jsonschema.Draft202012Validator(schema).validate(example)
        if not kind.startswith("image/") and media["schema"].get("format") != "binary":
            assert found, f"{name} has no example"
            checked.append(name)
    assert len(checked) > 20


def test_every_operation_says_what_it_asks_for_and_may_answer(document) -> None:
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            assert operation["summary"]
            assert operation["description"], (method, path)
            assert {"401", "403"} <= set(operation["responses"])
            assert operation["security"]
            for parameter in operation.get("parameters", []):
                assert parameter.get("description"), (path, parameter["name"])
    assert document["paths"]["/v1/whoami"]["get"]["security"] == [{"key": []}]
    assert document["paths"]["/v1/jobs"]["get"]["security"] == [{"key": ["index"]}]


def test_clients_made_of_the_document_can_upload(document) -> None:
    schemas = document["components"]["schemas"]
    for name, field in (("Search", "file"), ("Recommend", "file"), ("SearchBatch", "files")):
        form = schemas[f"{name}Upload"]
        assert form["required"] == [field]
        part = form["properties"][field]
        part = part.get("items", part)
        assert (part["type"], part["format"]) == ("string", "binary")
        assert form["additionalProperties"] is False
    assert schemas["SearchBatchUpload"]["properties"]["files"]["maxItems"] == 64
    # Many makers of clients take the first kind of body alone.
    for path in ("/v1/search/upload", "/v1/recommend/upload", "/v1/search/batch", "/v1/instances"):
        bodies = document["paths"][path]["post"]["requestBody"]
        assert (list(bodies["content"]), bodies["required"]) == (["multipart/form-data"], True)
    assert schemas["Body_addInstance"]["properties"]["file"]["format"] == "binary"
    assert schemas["Body_addInstance"]["required"] == ["file"]
    assert "file" not in schemas["SearchRequest"]["properties"]
    assert {"id", "sop", "frame", "series", "study"} <= set(schemas["SearchRequest"]["properties"])


def test_verdict_and_likeness_are_in_the_schema(document) -> None:
    schemas = document["components"]["schemas"]
    verdict = schemas["OodDocument"]["properties"]["verdict"]
    assert verdict["enum"] == ["known", "unfamiliar", "foreign"]
    likeness = json.dumps(schemas["HitDocument"]["properties"]["likeness"])
    assert "number" in likeness
    assert "null" in likeness
