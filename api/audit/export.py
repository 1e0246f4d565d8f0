"""Rows of the audit log as FHIR R4 AuditEvents, shaped on IHE BALP (Basic Audit Log Patterns).

Codes: DICOM PS3.16 (DCM), HL7's audit-event-type, restful-interaction, object-role and
audit-entity-type, and BALP 1.1. What BALP asks for and no row has is left out: the patient, of whom
the index has only a pseudonym, and the text of a query, which is not kept. So no event claims one
of BALP's profiles.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from api.audit.rows import Row

__all__ = ["audit_event"]

_DCM = "http://dicom.nema.org/resources/ontology/DCM"
_TYPE = "http://terminology.hl7.org/CodeSystem/audit-event-type"
_REST = "http://hl7.org/fhir/restful-interaction"
_ENTITY = "http://terminology.hl7.org/CodeSystem/audit-entity-type"
_ROLE = "http://terminology.hl7.org/CodeSystem/object-role"
_SOURCE = "http://terminology.hl7.org/CodeSystem/security-source-type"
_PARTICIPATION = "http://terminology.hl7.org/CodeSystem/v3-ParticipationType"
_BALP_ENTITY = "https://profiles.ihe.net/ITI/BALP/CodeSystem/BasicAuditEntityType"

_Coding = dict[str, str]


def _coding(system: str, code: str, display: str) -> _Coding:
    return {"system": system, "code": code, "display": display}


_RESTFUL = _coding(_TYPE, "rest", "Restful Operation")
_READ = _coding(_REST, "read", "read")
_SEARCH = _coding(_REST, "search", "search")
_CREATE = _coding(_REST, "create", "create")
_UPDATE = _coding(_REST, "update", "update")
_DELETE = _coding(_REST, "delete", "delete")
_AUTHENTICATION = _coding(_DCM, "110114", "User Authentication")
_SECURITY = _coding(_DCM, "110113", "Security Alert")
_ATTRIBUTES = _coding(_DCM, "110137", "User security Attributes Changed")
_LOG_USED = _coding(_DCM, "110101", "Audit Log Used")
_QUERY = _coding(_DCM, "110112", "Query")
_EXPORT = _coding(_DCM, "110106", "Export")
_IMPORT = _coding(_DCM, "110107", "Import")
_DELETED = _coding(_DCM, "110105", "DICOM Study Deleted")
_ACTIVITY = _coding(_DCM, "110100", "Application Activity")

_SPECIAL: Mapping[str, tuple[_Coding, _Coding | None, str]] = {
    "POST /login": (_AUTHENTICATION, _coding(_DCM, "110122", "Login"), "E"),
    "GET /login/oidc/callback": (_AUTHENTICATION, _coding(_DCM, "110122", "Login"), "E"),
    "GET /smart/callback": (_AUTHENTICATION, _coding(_DCM, "110122", "Login"), "E"),
    "POST /logout": (_AUTHENTICATION, _coding(_DCM, "110123", "Logout"), "E"),
    "DELETE /v1/instances": (_DELETED, None, "D"),
    "precedent search": (_QUERY, None, "E"),
    "precedent recommend": (_QUERY, None, "E"),
    "precedent duplicates": (_QUERY, None, "E"),
    "precedent evaluate": (_QUERY, None, "E"),
    "precedent snapshot": (_EXPORT, None, "R"),
    "precedent restore": (_IMPORT, None, "C"),
    "precedent index": (_IMPORT, None, "C"),
    "precedent receive": (_IMPORT, None, "C"),
    "precedent delete": (_DELETED, None, "D"),
    "precedent erase": (_DELETED, None, "D"),
    "precedent retention": (_DELETED, None, "D"),
    "precedent keys create": (_SECURITY, _ATTRIBUTES, "C"),
    "precedent keys revoke": (_SECURITY, _ATTRIBUTES, "D"),
    "POST /v1/keys": (_SECURITY, _ATTRIBUTES, "C"),
    "POST /keys": (_SECURITY, _ATTRIBUTES, "U"),
    "POST /v1/keys/{id}/revoke": (_SECURITY, _ATTRIBUTES, "D"),
    "GET /v1/audit": (_LOG_USED, None, "R"),
    "GET /v1/audit/export": (_LOG_USED, None, "R"),
    "POST /v1/audit/verify": (_LOG_USED, None, "R"),
    "GET /audit": (_LOG_USED, None, "R"),
    "POST /audit": (_LOG_USED, None, "R"),
    "precedent audit search": (_LOG_USED, None, "R"),
    "precedent audit export": (_LOG_USED, None, "R"),
    "precedent audit verify": (_LOG_USED, None, "R"),
    "precedent audit forget": (_LOG_USED, None, "D"),
}
"""Type, subtype and action (C, R, U, D, E) of what is no request for images."""
_BY_METHOD: Mapping[str, tuple[_Coding, _Coding | None, str]] = {
    "GET": (_RESTFUL, _READ, "R"),
    "HEAD": (_RESTFUL, _READ, "R"),
    "POST": (_RESTFUL, _SEARCH, "E"),
    "PUT": (_RESTFUL, _UPDATE, "U"),
    "PATCH": (_RESTFUL, _UPDATE, "U"),
    "DELETE": (_RESTFUL, _DELETE, "D"),
}
_CREATING = ("/v1/instances", "/v1/jobs", "/v1/embed-tokens")
"""Routes to which a POST makes something, rather than asking for it …"""
_CHANGING = "/v1/jobs/{id}/"
"""… and where it changes something."""
_OUTCOMES = {"ok": "0", "refused": "4", "failed": "8"}


def audit_event(row: Row) -> dict[str, Any]:
    """The AuditEvent of a row."""
    document = row.document
    kind, subtype, action = _kind(document)
    event: dict[str, Any] = {
        "resourceType": "AuditEvent",
        "id": f"{row.chain}-{row.seq}",
        "type": kind,
        "subtype": None if subtype is None else [subtype],
        "action": action,
        "recorded": document["at"],
        "outcome": _outcome(document),
        "outcomeDesc": f"{document['outcome']} ({document['status']})",
        "agent": list(_agents(document)),
        "source": {
            "site": document["who"]["tenant"],
            "observer": {"display": "Precedent"},
            "type": [_coding(_SOURCE, "4", "Application Server")],
        },
        "entity": [*_entities(document), _chained(row, document)],
    }
    if event["source"]["site"] is None:
        del event["source"]["site"]
    return {name: value for name, value in event.items() if value is not None}


def _kind(document: Mapping[str, Any]) -> tuple[_Coding, _Coding | None, str]:
    action = document["action"]
    if action in _SPECIAL:
        return _SPECIAL[action]
    method, _, route = action.partition(" ")
    if method == "precedent":
        return _ACTIVITY, None, "E"
    if method == "POST" and route in _CREATING:
        return _RESTFUL, _CREATE, "C"
    if method == "POST" and route.startswith(_CHANGING):
        return _RESTFUL, _UPDATE, "U"
    if method in ("GET", "HEAD") and document["results"] is not None:
        return _RESTFUL, _SEARCH, "E"
    return _BY_METHOD.get(method, (_RESTFUL, None, "E"))


def _outcome(document: Mapping[str, Any]) -> str:
    # 8: the service or command failed; 4: it was asked for what it does not do or give.
    status = document["status"]
    if document["outcome"] == "failed" and 400 <= status < 500:
        return "4"
    return _OUTCOMES.get(document["outcome"], "8")


def _agents(document: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Who asked, from where, and the program that answered."""
    who, address = document["who"], document["address"]
    named: dict[str, Any] = {}
    if who["id"] is not None:
        named["identifier"] = {"system": f"urn:precedent:{who['kind']}", "value": who["id"]}
    named["display"] = who["name"] or who["id"] or who["kind"]
    command = document["action"].startswith("precedent ")
    user = {
        "type": {"coding": [_coding(_PARTICIPATION, "IRCP", "information recipient")]},
        "who": named,
        "requestor": True,
    }
    if address is not None:
        # 1: name of a machine; 2: IP address.
        user["network"] = {"address": address, "type": "1" if command else "2"}
    yield user
    if acting := document["about"].get("acting"):
        # At the site that embeds: as its server says, which the key above vouches for.
        yield {
            "type": {"coding": [_coding(_PARTICIPATION, "IRCP", "information recipient")]},
            "who": {"display": acting},
            "requestor": False,
        }
    yield {
        "type": {"coding": [_coding(_DCM, "110153", "Source Role ID")]},
        "who": {"display": "Precedent"},
        "requestor": False,
    }


def _entities(document: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    for study in document["studies"]:
        yield _resource("urn:dicom:uid", f"urn:oid:{study}", "study")
    for image in document["images"]:
        yield _resource("urn:ietf:rfc:3986", f"urn:uuid:{image}", "image")
    about = document["about"]
    if "key" in about:
        yield {
            "what": {"identifier": {"system": "urn:precedent:key", "value": about["key"]}},
            "type": _coding(_ENTITY, "1", "Person"),
            "role": _coding(_ROLE, "11", "Security User Entity"),
        }
    if "job" in about:
        yield {
            "what": {"identifier": {"system": "urn:precedent:job", "value": str(about["job"])}},
            "type": _coding(_ENTITY, "2", "System Object"),
            "role": _coding(_ROLE, "20", "Job"),
        }
    if document["request"] is not None:
        yield {
            "what": {"identifier": {"value": document["request"]}},
            "type": _coding(_BALP_ENTITY, "XrequestId", "XrequestId"),
        }
    told = {
        "route": document["action"],
        "results": document["results"],
        "verdict": document["verdict"],
        "studies": document["studies_in_all"],
        "images": document["images_in_all"],
    }
    yield {
        "type": _coding(_ENTITY, "2", "System Object"),
        "role": _coding(_ROLE, "24", "Query"),
        "description": "what was asked, without its content, and how much was shown",
        "detail": _details(told),
    }


def _resource(system: str, value: str, description: str) -> dict[str, Any]:
    return {
        "what": {"identifier": {"system": system, "value": value}},
        "type": _coding(_ENTITY, "2", "System Object"),
        "role": _coding(_ROLE, "4", "Domain Resource"),
        "description": description,
    }


def _chained(row: Row, document: Mapping[str, Any]) -> dict[str, Any]:
    """The place of the row in its chain, so that an export can be held against the log."""
    place = {
        "chain": row.chain,
        "row": row.seq,
        "hash": row.hash,
        "previous": document["previous"],
    }
    return {
        "type": _coding(_ENTITY, "4", "Other"),
        "role": _coding(_ROLE, "13", "Security Resource"),
        "description": "place in the audit log",
        "detail": _details(place),
    }


def _details(values: Mapping[str, Any]) -> list[dict[str, str]]:
    return [
        {"type": name, "valueString": str(value)}
        for name, value in values.items()
        if value is not None
    ]
