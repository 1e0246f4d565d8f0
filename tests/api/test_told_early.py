"""What cannot be written or reached is told before a model is loaded."""

from __future__ import annotations

import json
import os
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from commands import run
from services.brokers import Redis

from engine.errors import JobError, LedgerError, QueryError, StoreError, StoreLocked
from engine.store.edge import EdgeStore
from indexer import archive, encoders


@pytest.fixture(autouse=True)
def no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    def loaded(*_: Any) -> Any:
        pytest.fail("the model was loaded first")

    for module in (archive, encoders):
        monkeypatch.setattr(module, "load_encoder", loaded)


@pytest.mark.parametrize(
    ("command", "option"),
    [
        (("train", "{images}", "--out"), "--out"),
        (("adapt", "{images}", "--out"), "--out"),
        (("calibrate", "{images}", "--out"), "--out"),
        (("evaluate", "--queries", "{images}", "--database", "{images}", "--out"), "--out"),
        (("snapshot",), "FILE"),
        (("jobs", "report", "1", "--output"), "--output"),
        (("sample",), "DIRECTORY"),
    ],
)
def test_a_place_that_cannot_be_written(indexed, tmp_path: Path, command, option, monkeypatch):
    monkeypatch.setenv("PRECEDENT_DATA_DIR", str(indexed.settings.data_dir))
    images = str(indexed.files["stripes"][0].parent)
    (tmp_path / "file").write_text("no folder")
    target = tmp_path / "file" / "out"
    said = f"{option} is '{target}', which cannot be written: .* is no folder; name another"
    with pytest.raises(QueryError, match=said):
        run(*(part.format(images=images) for part in command), target)


@pytest.mark.parametrize("command", [("search", "{image}"), ("index", "{image}"), ("receive",)])
def test_a_ledger_that_does_not_answer(indexed, command, monkeypatch):
    url = "postgresql://me:secret@127.0.0.1:1/ledger"
    monkeypatch.setenv("PRECEDENT_LEDGER__URL", url)
    monkeypatch.setenv("PRECEDENT_RECEIVE__ALLOWED_AE_TITLES", '["PACS"]')
    monkeypatch.setenv("PRECEDENT_DATA_DIR", str(indexed.settings.data_dir))
    image = str(indexed.files["stripes"][0])
    with pytest.raises(LedgerError, match="user and password in PRECEDENT_LEDGER__URL") as told:
        run(*(part.format(image=image) for part in command))
    assert "secret" not in str(told.value)


def refusing_server() -> tuple[ThreadingHTTPServer, str]:
    """A server that takes no key, as Qdrant says it."""

    class Refusing(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(401)
            self.end_headers()
            self.wfile.write(b'{"status":{"error":"Must provide an API key"}}')

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Refusing)
    return server, f"http://127.0.0.1:{server.server_address[1]}"


@pytest.mark.parametrize("command", [("search", "{image}"), ("index", "{image}"), ("serve",)])
@pytest.mark.filterwarnings("ignore:Api key is used with an insecure connection")
def test_a_server_that_refuses_the_key(indexed, command, monkeypatch):
    server, url = refusing_server()
    running = threading.Thread(target=server.serve_forever)
    running.start()
    monkeypatch.setenv("PRECEDENT_STORE__URL", url)
    monkeypatch.setenv("PRECEDENT_STORE__PREFER_GRPC", "false")
    monkeypatch.setenv("PRECEDENT_STORE__API_KEY", "wrong-key")
    monkeypatch.setenv("PRECEDENT_DATA_DIR", str(indexed.settings.data_dir))
    monkeypatch.setenv("PRECEDENT_MODEL", str(indexed.settings.model))
    image = str(indexed.files["stripes"][0])
    try:
        with pytest.raises(StoreError, match=r"refused access.*PRECEDENT_STORE__API_KEY") as told:
            run(*(part.format(image=image) for part in command))
    finally:
        server.shutdown()
        running.join()
        server.server_close()
    assert "wrong-key" not in str(told.value)


@pytest.mark.parametrize("command", [("jobs", "submit", "{image}"), ("worker",)])
@pytest.mark.slow
def test_a_broker_that_refuses_the_password(indexed, command, monkeypatch, tmp_path):
    with Redis("right") as broker:
        monkeypatch.setenv("PRECEDENT_JOBS__BROKER", broker.url.replace("right", "wrong"))
        monkeypatch.setenv("PRECEDENT_DATA_DIR", str(tmp_path / "data"))
        image = str(indexed.files["stripes"][0])
        with pytest.raises(JobError, match=r"refuses user or password.*JOBS__BROKER") as told:
            run(*(part.format(image=image) for part in command))
        assert "wrong" not in str(told.value)
        # No job was made that nobody would be told of.
        assert '{"jobs": []}' in run("jobs", "list", "--json")


@pytest.mark.parametrize("command", [("search", "{image}"), ("index", "{image}"), ("serve",)])
def test_an_index_that_is_in_use_and_does_not_answer(indexed, command, monkeypatch, tmp_path):
    settings = indexed.copy(tmp_path / "data")
    monkeypatch.setattr("engine.store.sharing.store._PATIENCE_SECONDS", 0.0)
    monkeypatch.setenv("PRECEDENT_DATA_DIR", str(settings.data_dir))
    monkeypatch.setenv("PRECEDENT_MODEL", str(settings.model))
    image = str(indexed.files["stripes"][0])
    with (
        EdgeStore.open(settings.data_dir / "index"),
        pytest.raises(StoreLocked, match=f"pid {os.getpid()}"),
    ):
        run(*(part.format(image=image) for part in command))


def test_info_says_what_it_could_not_ask(indexed, monkeypatch, tmp_path):
    settings = indexed.copy(tmp_path / "data")
    monkeypatch.setattr("engine.store.sharing.store._PATIENCE_SECONDS", 0.0)
    place = ["--data-dir", settings.data_dir, "--model", settings.model]
    with EdgeStore.open(settings.data_dir / "index"):
        told = json.loads(run("info", "--json", *place))
        assert (told["points"], told["instances"]) == (None, {"done": 35})
        assert f"pid {os.getpid()}" in told["not_asked"]
        said = run("info", *place)
    assert "points, cells and values are not told: the index in " in said
    assert json.loads(run("info", "--json", *place))["not_asked"] is None
