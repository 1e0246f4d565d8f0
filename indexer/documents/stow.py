"""Sends documents to a DICOMweb server by STOW-RS (PS3.18, 10.5)."""

import json
from base64 import b64encode
from collections.abc import Mapping, Sequence
from pathlib import Path
from secrets import token_hex
from typing import Any

import httpx

from engine.documents_settings import StowDestination
from engine.errors import SettingsError
from indexer.documents.delivery import Delivery, Fate, Unreachable
from indexer.documents.making import Document
from indexer.sources.dicomweb.trust import trusting

__all__ = ["check", "reach", "store"]

_FAILED, _REFERENCED = "00081198", "00081199"
_REFERENCED_SOP, _FAILURE_REASON = "00081155", "00081197"
_MOST_ANSWER = 1024**2
_LATER = {408, 425, 429}
_BUSY = range(0xA700, 0xA800)


def store(name: str, to: StowDestination, documents: Sequence[Document]) -> Delivery:
    """Stores documents by one request. No redirect is followed: credentials go to this address.

    Args:
        name: of the destination in the settings.

    Raises:
        Unreachable: the server does not answer, or cannot store anything now.
        SettingsError: credentials or certificates cannot be used.
    """
    boundary = token_hex(16)
    body = b"".join(
        b"--%s\r\nContent-Type: application/dicom\r\n\r\n%s\r\n" % (boundary.encode(), one.file)
        for one in documents
    )
    kind = f'multipart/related; type="application/dicom"; boundary={boundary}'
    headers = {"Accept": "application/dicom+json", "Content-Type": kind, **_credentials(name, to)}
    certificates = trusting(to.ca_file, f"destinations.{name}.ca_file")
    try:
        # Proxies and .netrc of the environment are not for an archive.
        with httpx.Client(
            verify=certificates, trust_env=False, timeout=to.timeout_seconds
        ) as client:
            url = str(to.url).rstrip("/") + "/studies"
            sent = body + b"--%s--\r\n" % boundary.encode()
            with client.stream("POST", url, content=sent, headers=headers) as answer:
                return _delivery(name, answer.status_code, _read(answer), documents)
    except httpx.HTTPError as error:
        raise Unreachable(
            f"destination {name!r} does not answer ({type(error).__name__}); check "
            f"destinations.{name}.url"
        ) from None


def check(name: str, to: StowDestination) -> None:
    """Reads what a request needs; asks nobody. Raises SettingsError: it cannot be used."""
    _credentials(name, to)
    trusting(to.ca_file, f"destinations.{name}.ca_file")


def reach(name: str, to: StowDestination) -> int:
    """Asks the server for anything, and returns the status of its answer, which is not read.

    Raises:
        Unreachable: it does not answer, is broken, or refuses the credentials.
        SettingsError: as :func:`store`.
    """
    headers = {"Accept": "application/dicom+json", **_credentials(name, to)}
    url = str(to.url).rstrip("/") + "/studies?limit=1"
    certificates = trusting(to.ca_file, f"destinations.{name}.ca_file")
    try:
        with (
            httpx.Client(
                verify=certificates, trust_env=False, timeout=to.timeout_seconds
            ) as client,
            client.stream("GET", url, headers=headers) as answer,
        ):
            status = answer.status_code
    except httpx.HTTPError as error:
        raise Unreachable(
            f"destination {name!r} does not answer ({type(error).__name__}): check "
            f"destinations.{name}.url"
        ) from None
    if status in (401, 403):
        raise Unreachable(
            f"destination {name!r} refuses the credentials (HTTP {status}): correct those of "
            f"destinations.{name}"
        )
    if status >= 500:
        raise Unreachable(f"destination {name!r} is broken (HTTP {status}): its log says why")
    return status


def _read(answer: httpx.Response) -> Any:
    """The answer as DICOM JSON; None = it is none."""
    read = b""
    for piece in answer.iter_bytes():
        read += piece
        if len(read) > _MOST_ANSWER:
            return None
    try:
        return json.loads(read)
    except ValueError:
        return None


def _delivery(name: str, status: int, said: Any, documents: Sequence[Document]) -> Delivery:
    if status in _LATER or status >= 500:
        raise Unreachable(f"destination {name!r} cannot store now (HTTP {status})")
    if status not in (200, 202, 409):
        what = {
            401: "wants other credentials",
            403: "does not allow it",
            404: "has no STOW-RS at this address",
        }.get(status, "refuses the request")
        detail = f"destination {name!r} {what} (HTTP {status}); check destinations.{name}"
        return Delivery(tuple(Fate(one.sop, "refused", str(status), detail) for one in documents))
    said = said if isinstance(said, dict) else {}
    stored = {_value(item, _REFERENCED_SOP) for item in _items(said, _REFERENCED)}
    failed = {
        _value(item, _REFERENCED_SOP): _value(item, _FAILURE_REASON)
        for item in _items(said, _FAILED)
    }
    return Delivery(tuple(_fate(one.sop, status, stored, failed) for one in documents))


def _fate(sop: str, status: int, stored: set[Any], failed: Mapping[Any, Any]) -> Fate:
    if sop in failed:
        reason = failed[sop]
        code = f"0x{reason:04X}" if isinstance(reason, int) else None
        if isinstance(reason, int) and reason in _BUSY:
            return Fate(sop, "waiting", code, "the server is out of resources")
        return Fate(sop, "refused", code, "the server refuses it; its log says why")
    if sop in stored or status == 200:
        return Fate(sop, "stored", str(status))
    return Fate(sop, "refused", str(status), "the server does not say that it stored it")


def _items(said: Mapping[str, Any], tag: str) -> list[Mapping[str, Any]]:
    element = said.get(tag)
    values = element.get("Value") if isinstance(element, dict) else None
    return [one for one in values if isinstance(one, dict)] if isinstance(values, list) else []


def _value(item: Mapping[str, Any], tag: str) -> Any:
    element = item.get(tag)
    values = element.get("Value") if isinstance(element, dict) else None
    value = values[0] if isinstance(values, list) and values else None
    return value if isinstance(value, str | int) else None


def _credentials(name: str, to: StowDestination) -> dict[str, str]:
    token = to.token.get_secret_value() if to.token else _from_file(name, to.token_file)
    if token:
        if not token.isascii():
            raise SettingsError(f"the token of destinations.{name} has characters beyond ASCII")
        return {"Authorization": f"Bearer {token}"}
    password = to.password.get_secret_value() if to.password else _from_file(name, to.password_file)
    if to.username is None or password is None:
        return {}
    written = b64encode(f"{to.username}:{password}".encode()).decode()
    return {"Authorization": f"Basic {written}"}


def _from_file(name: str, path: Path | None) -> str | None:
    if path is None:
        return None
    try:
        found = path.read_text("utf-8").strip()
    except (OSError, ValueError):
        found = ""
    if not found or not found.isprintable():
        raise SettingsError(
            f"the file of a credential that destinations.{name} names (password_file, token_file) "
            "has none; put it there, alone in one line"
        )
    return found
