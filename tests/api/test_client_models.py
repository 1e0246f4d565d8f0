"""The client and the OpenAPI document say the same: neither can change without the other."""

import inspect
from collections.abc import Callable, Iterator
from typing import Any, get_args

import pytest
from pydantic import BaseModel

from api.client import AsyncClient, Client, administering, calls
from api.client.answers import Problem
from api.client.call import Call

Shape = str | tuple[str, Any] | frozenset[Any]

ELSEWHERE = {
    "getMetrics": "for Prometheus",
    "searchUpload": "`search` sends an image to the address that has it all",
    "recommendUpload": "the same",
    "storeInstances": "for programs that speak DICOMweb",
    "storeInstancesOfStudy": "the same",
    "getImagingStudy": "for programs that speak FHIR",
    "listCdsServices": "for programs that speak CDS Hooks",
    "callCdsService": "the same",
    "searchRelatedStudies": "for programs that speak DICOMweb",
    "searchStudies": "the same",
    "searchSeriesOfStudy": "the same",
    "searchSeriesOfRelatedStudy": "the same",
}
"""Operations that the client does not have, and why."""
NAMES = {"file": "image", "files": "images"}
NUMBERS = {"id": "number"}
"""Of paths of jobs."""
IMAGES = {"id": "image_id"}
SENDINGS = {"id": "sending_id"}
KEYS = {"id": "key_id"}
MODULES = (calls, administering)


@pytest.fixture(scope="module")
def document(client) -> dict[str, Any]:
    told: dict[str, Any] = client.get("/openapi.json").json()
    return told


@pytest.fixture(scope="module")
def asked() -> dict[str, tuple[Callable[..., Call[Any]], Call[Any]]]:
    """The function of each operation, and a call that it makes."""
    found = {}
    for name, function in [pair for module in MODULES for pair in vars(module).items()]:
        if inspect.isfunction(function) and function.__module__ in {
            one.__name__ for one in MODULES
        }:
            if name.startswith("_"):
                continue
            call = function(**_least(function))
            assert call.operation not in found
            found[call.operation] = (function, call)
    return found


def _least(function: Callable[..., Any]) -> dict[str, Any]:
    values = {"number": 7, "images": [b"x"], "image": b"x"}
    return {
        name: values.get(name, "x")
        for name, one in inspect.signature(function).parameters.items()
        if one.default is one.empty
    }


def _operations(document: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield path, method.upper(), operation


def test_every_operation_is_asked_for_as_the_document_says(document, asked) -> None:
    left = {operation["operationId"] for _, _, operation in _operations(document)}
    assert left == {*asked, *ELSEWHERE}
    for path, method, operation in _operations(document):
        if operation["operationId"] in ELSEWHERE:
            continue
        function, call = asked[operation["operationId"]]
        assert call.method == method
        ids = NUMBERS if "/jobs/" in path else SENDINGS if "/sendings/" in path else IMAGES
        ids = KEYS if "/keys/" in path else ids
        renamed = {**NAMES, **ids}
        parameters = [
            one["name"]
            for one in operation.get("parameters", [])
            if one["in"] != "header" and not one.get("deprecated")
        ]
        for media in operation.get("requestBody", {}).get("content", {}).values():
            schema = _resolved(media["schema"], document)
            fields = schema["properties"].items()
            parameters += [name for name, field in fields if not field.get("deprecated")]
        told = {renamed.get(name, name) for name in parameters}
        assert set(inspect.signature(function).parameters) == told, operation["operationId"]
        template = "/".join(part if part[:1] != "{" else "*" for part in path.split("/"))
        sent = "/".join(part if part not in ("x", "7") else "*" for part in call.path.split("/"))
        assert sent == template


def test_both_clients_ask_for_every_operation(asked) -> None:
    named = {function.__name__ for function, _ in asked.values()} - {"job_events"}
    for kind in (Client, AsyncClient):
        assert named <= set(vars(kind))


def test_every_answer_is_read_as_the_document_describes_it(document, asked) -> None:
    pairs: list[tuple[str, type[BaseModel]]] = [("Problem", Problem)]
    for _, _, operation in _operations(document):
        for status in ("200", "201"):
            media = operation["responses"].get(status, {}).get("content", {})
            if "application/json" in media and operation["operationId"] in asked:
                function, _ = asked[operation["operationId"]]
                (answer,) = get_args(inspect.signature(function).return_annotation)
                pairs.append((media["application/json"]["schema"]["$ref"].split("/")[-1], answer))
    compared: dict[str, str] = {}
    for component, answer in pairs:
        mine = answer.model_json_schema(mode="serialization")
        _compare(component, answer.__name__, document, mine, compared)
    assert len(compared) >= 30
    described = {name for name in document["components"]["schemas"] if name.endswith("Document")}
    described -= {"CardsDocument", "ServiceDocument", "ServicesDocument"}  # of CDS Hooks
    assert described <= set(compared)


def _compare(
    theirs: str,
    mine: str,
    document: dict[str, Any],
    schema: dict[str, Any],
    compared: dict[str, str],
) -> None:
    """Asserts that a component and a model have the same fields of the same types, and those that
    they refer to as well. compared: the names of those that were, with which they were."""
    if compared.setdefault(theirs, mine) != mine:
        pytest.fail(f"{theirs} is {mine} and {compared[theirs]} in the client")
    definitions = schema.get("$defs", {})
    found = definitions.get(mine, schema)["properties"]
    told = document["components"]["schemas"][theirs]["properties"]
    assert set(found) == set(told), mine
    for name in told:
        assert _named(_shape(told[name])) == _named(_shape(found[name])), (mine, name)
        for other, own in zip(_references(told[name]), _references(found[name]), strict=True):
            if other not in compared:
                _compare(other, own, document, {**schema, "properties": {}}, compared)
            assert compared[other] == own, (mine, name)


def _resolved(schema: dict[str, Any], document: dict[str, Any]) -> dict[str, Any]:
    if "$ref" in schema:
        found: dict[str, Any] = document["components"]["schemas"][schema["$ref"].split("/")[-1]]
        return found
    return schema


def _shape(schema: dict[str, Any]) -> Shape:
    """The type of a value, without what only describes or bounds it."""
    if "$ref" in schema:
        return ("ref", schema["$ref"])
    if "anyOf" in schema:
        return frozenset(_shape(one) for one in schema["anyOf"])
    match schema.get("type"):
        case "array":
            return ("array", _shape(schema["items"]))
        case "object":
            return ("object", _shape(schema["additionalProperties"]))
        case str(name):
            return name
    # A list of values, all of them texts.
    assert all(isinstance(one, str) for one in schema.get("enum", [schema.get("const")]))
    return "string"


def _named(shape: Shape) -> Shape:
    """The same, whatever it refers to is called."""
    if isinstance(shape, frozenset):
        return frozenset(_named(one) for one in shape)
    if isinstance(shape, tuple):
        return (shape[0], None if shape[0] == "ref" else _named(shape[1]))
    return shape


def _references(schema: Any) -> list[str]:
    if isinstance(schema, list):
        return [found for one in schema for found in _references(one)]
    if not isinstance(schema, dict):
        return []
    own = [schema["$ref"].split("/")[-1]] if "$ref" in schema else []
    return own + [found for one in schema.values() for found in _references(one)]
