"""What the service logs: a line for each request, and nothing of patients, secrets or files."""

import io
import json
import logging
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from fastapi import APIRouter
from services.loopback import LoopbackClient
from services.running import served

import api.security.policy as policy
from api.http.logs import configure_logs
from api.security.keys import Keys
from api.security.policy import Scope
from api.service import create_service
from engine.settings import ServerSettings, Settings
from indexer.ledger.database import Database


@pytest.fixture
def log() -> Iterator[io.StringIO]:
    """What is logged meanwhile, as JSON, down to the least."""
    root = logging.getLogger()
    before, levels = list(root.handlers), {n: logging.getLogger(n).level for n in ("", *_NAMES)}
    stream = io.StringIO()
    configure_logs(ServerSettings(log_format="json", log_level="debug"), stream)
    root.setLevel("DEBUG")
    yield stream
    root.handlers[:] = before
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)


_NAMES = ("api", "engine", "indexer", "precedent")


def lines(log: io.StringIO) -> list[dict[str, object]]:
    return [json.loads(line) for line in log.getvalue().splitlines()]


@pytest.fixture
def settings(indexed, tmp_path: Path) -> Settings:
    return indexed.copy(tmp_path / "data")


@pytest.fixture
def key(settings: Settings) -> str:
    with Database(f"sqlite:///{settings.data_dir / 'ledger.sqlite'}") as database:
        return Keys(database).create("ward", [Scope.SEARCH], tenant="north")[1]


def test_each_request_gets_a_line(settings: Settings, key: str, log: io.StringIO) -> None:
    with LoopbackClient(create_service(settings)) as client:
        client.get("/v1/facets", headers={"Authorization": f"Bearer {key}"})
        client.get("/v1/facets")
        client.head("/v1/facets")
    told = [line for line in lines(log) if line["logger"] == "precedent.requests"]
    assert len(told) == 3
    first, second, third = told
    assert first["route"] == "/v1/facets"
    assert (first["method"], first["status"], first["level"]) == ("GET", 200, "info")
    assert (first["tenant"], first["key"]) == ("north", key.split("_")[1])
    assert first["address"] == "127.0.0.1"
    assert 0 < first["milliseconds"] < 60_000
    assert first["timestamp"].endswith("Z")
    assert (second["status"], second["code"]) == (401, "not-authenticated")
    assert "tenant" not in second
    assert (third["method"], third["status"]) == ("HEAD", 401)


def test_nothing_of_patients_secrets_or_files_is_logged(
    settings: Settings, key: str, log: io.StringIO, indexed
) -> None:
    """Everything that is logged in a run over a real connection, of all libraries, at the lowest
    level, is searched for what was asked and answered."""
    import httpx2

    content = indexed.files["ct"][0].read_bytes()
    bearer = {"Authorization": f"Bearer {key}"}
    with (
        served(create_service(settings)) as address,
        httpx2.Client(base_url=address, timeout=30) as client,
    ):
        client.post("/login", data={"key": key}, headers={"Origin": address})
        cookie = client.cookies.get("__Host-precedent", "")
        sent = {"file": ("Hidden^Somebody.dcm", content)}
        found = client.post("/v1/search", files=sent, headers=bearer)
        assert found.status_code == 200
        client.post("/v1/search", files={"file": ("HIDDEN-2", b"HIDDEN-3")}, headers=bearer)
        client.get("/v1/studies/1.2.4.99/related", headers=bearer)
        client.get("/v1/images/HIDDEN-4", headers=bearer)
        client.get("/v1/facets?where=modality=HIDDEN-5", headers=bearer)
        client.get("/HIDDEN-6?key=HIDDEN-7", headers={"Authorization": "Bearer HIDDEN-8"})
        client.get("/v1/facets", headers={"Authorization": f"Basic {key}", "X-HIDDEN": "HIDDEN-9"})
    # The clients' own, in this process.
    ours = [one for one in lines(log) if not str(one["logger"]).startswith(("http", "asyncio"))]
    text = "\n".join(json.dumps(one) for one in ours)
    assert text.count('"precedent.requests"') == 8
    assert cookie
    for secret in (key, key.split("_")[2], cookie, "prc_", "Hidden", "HIDDEN", "1.2.3.", "1.2.4."):
        assert secret not in text, secret
    for label in indexed.files:
        assert str(indexed.files[label][0]) not in text


def test_of_an_unforeseen_error_type_and_place_are_logged(
    settings: Settings, log: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    router = APIRouter()
    # Source lines are logged, and have only this name.
    secret = "HID" + "DEN"

    @router.get("/login/broken")
    def broken() -> None:
        raise RuntimeError(f"of patient {secret}")

    added = {**policy.POLICY, ("GET", "/login/broken"): None}
    for module in ("api.http.addresses", "api.http.observing"):
        monkeypatch.setattr(f"{module}.POLICY", added)
    app = create_service(settings)
    app.include_router(router)
    with LoopbackClient(app) as client:
        assert client.get("/login/broken").status_code == 500
    error = next(line for line in lines(log) if line["level"] == "error")
    assert "RuntimeError" in str(error["event"])
    assert error["route"] == "/login/broken"
    try:
        raise ValueError(f"of patient {secret}")
    except ValueError:
        logging.getLogger("uvicorn.error").exception("Exception in ASGI application")
    last = lines(log)[-1]
    assert (last["error"], last["level"]) == ("ValueError", "error")
    assert "test_logs.py" in str(last["places"])
    assert secret not in log.getvalue()


def test_people_get_lines_that_they_can_read(settings: Settings) -> None:
    stream, root = io.StringIO(), logging.getLogger()
    before = list(root.handlers)
    try:
        configure_logs(ServerSettings(), stream)
        with LoopbackClient(create_service(settings)) as client:
            client.get("/healthz")
    finally:
        root.handlers[:] = before
    (line,) = [one for one in stream.getvalue().splitlines() if "/healthz" in one]
    assert "route=/healthz" in line
    assert "status=200" in line


def test_lines_for_requests_can_be_left_out(settings: Settings, log: io.StringIO) -> None:
    server = settings.server.model_copy(update={"log_requests": False})
    with LoopbackClient(create_service(settings.model_copy(update={"server": server}))) as client:
        client.get("/healthz")
    assert not [line for line in lines(log) if line["logger"] == "precedent.requests"]


def test_a_client_that_leaves_amid_its_upload_is_no_error(indexed, tmp_path, caplog) -> None:
    request = (
        "POST /v1/search HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100000\r\n"
        "Content-Type: multipart/form-data; boundary=b\r\n\r\n--b\r\n"
    )
    with (
        served(create_service(indexed.copy(tmp_path / "data"))) as address,
        caplog.at_level(logging.INFO),
    ):
        parts = urlsplit(address)
        with socket.create_connection((parts.hostname or "", parts.port or 0)) as connection:
            connection.sendall(request.encode())
        until = time.monotonic() + 60
        while "client left" not in caplog.messages:
            assert time.monotonic() < until, caplog.text
            time.sleep(0.01)
    assert [one.message for one in caplog.records if one.levelno >= logging.ERROR] == []
