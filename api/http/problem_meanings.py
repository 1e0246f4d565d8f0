"""What the problems of the HTTP service mean and what to do about them, by their codes.

docs/errors.md is written from here. The detail of a problem says what is wrong this time; this says
what it is in general. A test finds codes that are missing here.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from http import HTTPStatus

from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

import engine.errors
from api.http.problems import NotReady, Problem, problem_of
from engine.errors import ImageRefused, PrecedentError

__all__ = ["GROUPS", "STATUSES", "Meaning", "problems"]


@dataclass(frozen=True, slots=True)
class Meaning:
    """means: what it is. do: the way out."""

    means: str
    do: str


STATUSES = (400, 404, 405, 406, 408, 412, 413, 415, 429, 431, 503)
"""Statuses that the service answers without an error of its own behind them."""

GROUPS: Mapping[str, Mapping[str, Meaning]] = {
    "The request": {
        "invalid-request": Meaning(
            "a field is missing, unknown or out of range; `errors` has each by its name",
            "correct these fields; `/openapi.json` says what they take",
        ),
        "bad-request": Meaning(
            "the body, or the request itself, is not built as its Content-Type or HTTP says",
            "see the detail; leave the building of bodies to a library",
        ),
        "query": Meaning(
            "a search was asked that cannot be answered: an option does not fit, a field or value "
            "is not known, nothing says what hits should be like",
            "see the detail, which names the option and what it takes",
        ),
        "not-found": Meaning(
            "nothing is served at this address, or nothing is there to be removed",
            "compare it with `/openapi.json`, and with the path under which a proxy serves it",
        ),
        "method-not-allowed": Meaning(
            "the address takes another method", "use one that the header Allow names"
        ),
        "not-acceptable": Meaning(
            "the answer does not come in any type that Accept names",
            "ask for one that the detail names, or for `*/*`",
        ),
        "unsupported-media-type": Meaning(
            "the body is of a type that this address does not take",
            "send the Content-Type that the detail names",
        ),
        "too-large": Meaning(
            "the request is larger than `server.max_upload_bytes` or another limit; or the image, "
            "as a reason of refusal",
            "send less, or fewer at once; the administrator may raise the limit",
        ),
        "request-header-fields-too-large": Meaning(
            "address and headers are larger than `server.max_header_bytes`",
            "send fewer or shorter ones: long filters go into the body",
        ),
        "request-timeout": Meaning(
            "headers or body came more slowly than `server` allows",
            "send it over a faster connection, or in smaller parts",
        ),
        "precondition-failed": Meaning(
            "a CDS Hooks request does not say which study", "send it as the detail says"
        ),
        "too-many-requests": Meaning(
            "this key asks too often, or its tenant has as much under way as one may have",
            "wait for as long as Retry-After says; send fewer at a time",
        ),
    },
    "Who asks": {
        "not-authenticated": Meaning(
            "there is no key, token or session with it, or one that is unknown, has expired or was "
            "revoked",
            "send `Authorization: Bearer KEY`; `precedent keys create` makes one",
        ),
        "not-allowed": Meaning(
            "the credential lacks the scope that this needs, or may not be used from there",
            "see the detail; a key with that scope, or a proxy that is set up as "
            "[security.md](security.md) says",
        ),
        "identity-provider": Meaning(
            "a token cannot be checked, because the identity provider does not answer",
            "try again later, or send an API key; `precedent doctor` looks at the provider",
        ),
        "access": Meaning(
            "a key cannot be made as asked: its name, scopes, tenant or end",
            "see the detail, which says what they take",
        ),
        "key-not-found": Meaning(
            "no key of the tenant has this id", "`precedent keys list`, or `GET /v1/keys`, has them"
        ),
    },
    "What is asked for": {
        "image-not-found": Meaning(
            "no indexed image of the tenant has this id or UID",
            "take ids from answers; an image may have been deleted since, or not be indexed yet",
        ),
        "query-expired": Meaning(
            "an upload that was searched for is not kept any more: ten minutes after its last use, "
            "or in another session",
            "send the file again",
        ),
        "job-not-found": Meaning("the tenant has no job of this number", "`GET /v1/jobs` has them"),
        "job": Meaning(
            "the job's state does not allow this: one that has ended cannot be paused",
            "look at the job; `retry` takes up what failed",
        ),
        "document": Meaning(
            "no document, FHIR resource or card can be made of this, or not be sent",
            "see the detail: often the source's UIDs were replaced before indexing",
        ),
        "destination-unknown": Meaning(
            "the settings name no such destination for the tenant",
            "`GET /v1/destinations` has them; the administrator adds `[destinations.NAME]`",
        ),
        "sending-not-found": Meaning(
            "the tenant has no sending of this id", "`GET /v1/sendings` has them"
        ),
        "source-gone": Meaning(
            "the original of an indexed image, or the setting that says where it lies, is gone",
            "bring it back; index with `--delete-vanished` where it is gone for good",
        ),
        "source-changed": Meaning(
            "another file lies in the place of the original, and is not shown as it",
            "index its source again",
        ),
        "source": Meaning(
            "where the original lies cannot be reached, or refuses",
            "try again later; `precedent doctor` tries each source",
        ),
    },
    "The service and what it stands on": {
        "service-unavailable": Meaning(
            "the service is busy, or does one such thing at a time",
            "wait for as long as Retry-After says, and ask again",
        ),
        "not-ready": Meaning(
            "`/readyz`: the service lacks what `missing` names",
            "send requests elsewhere meanwhile; `precedent doctor` says what is wrong",
        ),
        "draining": Meaning("`/readyz`: the service is being ended", "send requests elsewhere"),
        "store-not-found": Meaning(
            "nothing has been indexed yet",
            "`precedent index`; the service answers soon after, without a restart",
        ),
        "store-locked": Meaning(
            "another process has the index open, and does not answer for it",
            "wait until it is done; `precedent doctor` names it",
        ),
        "store-away": Meaning(
            "the Qdrant server is away or busy, for longer than is waited",
            "try again; see the alert PrecedentIndexAway in [runbook.md](runbook.md)",
        ),
        "storage": Meaning(
            "the object store refuses, or has another thumbnail than was put there",
            "the administrator looks at `precedent doctor` and at the keys of the object store",
        ),
        "storage-away": Meaning(
            "the object store that has the thumbnails does not answer, or is busy",
            "try again; `precedent doctor` says whether it can be reached",
        ),
        "store-limit": Meaning(
            "a limit of the Qdrant server (strict mode) stands in the way",
            "ask for less; the administrator raises the limit that the service's log names",
        ),
        "store": Meaning(
            "the index cannot answer", "the service's log says why; `precedent doctor` looks at it"
        ),
        "model-mismatch": Meaning(
            "the index was filled by another model than the one in force",
            "start the service with the index's model, or `precedent reencode`",
        ),
        "model": Meaning(
            "the model cannot be used: absent, damaged or not fitting",
            "the service's log says why; `precedent doctor` looks at it",
        ),
        "ledger": Meaning(
            "the ledger's database cannot be asked",
            "see the alert PrecedentLedgerAway in [runbook.md](runbook.md)",
        ),
        "audit": Meaning(
            "the access cannot be recorded, and without a record nothing is answered",
            "see the alert PrecedentAuditAway in [runbook.md](runbook.md)",
        ),
        "disk-full": Meaning(
            "the data folder has no room for more", "make room; searches go on meanwhile"
        ),
        "settings": Meaning(
            "a setting is missing or out of range, and this needs it",
            "the service's log names it; `precedent settings` has all",
        ),
        "training-data": Meaning(
            "nothing to learn from; commands alone answer this", "see the command's own message"
        ),
        "backup": Meaning(
            "a backup cannot be made or read; commands alone answer this",
            "see the command's own message",
        ),
        "erasure": Meaning(
            "an erasure cannot be done; commands alone answer this",
            "see the command's own message",
        ),
        "error": Meaning(
            "an error that has no code of its own", "the service's log has it, by the request id"
        ),
        "internal": Meaning(
            "an error that was not foreseen: a fault of this program",
            "report it with the lines of the service's log, which name no patient",
        ),
    },
}
"""By what is wrong, and by code. The reasons of refused images are in ``api.refusals``."""


def problems() -> dict[str, Problem]:
    """A problem for each code that the service may answer, without those of refused images."""
    found: list[Exception] = [
        *(one("") for one in _errors()),
        *(HTTPException(status, HTTPStatus(status).phrase) for status in STATUSES),
        RequestValidationError([]),
        NotReady(""),
        NotReady("", draining=True),
        Exception(),
    ]
    told = [problem_of(one, "/") for one in found]
    return {one.code: one for one in told}


def _errors() -> Iterator[type[PrecedentError]]:
    """Every class of the tree but that of refused images, which have codes of their own."""
    for name in engine.errors.__all__:
        found = getattr(engine.errors, name)
        if issubclass(found, PrecedentError) and found is not ImageRefused:
            yield found
