"""What the service tells of itself: model, counts, sources, duplicates, who asks, readiness."""

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx2
import pytest
from commands import run
from PIL import Image
from services.loopback import LoopbackClient

from api.http.routes.duplicates import SEARCHES
from api.security.keys import Keys
from api.security.policy import Scope
from api.service import create_service
from engine.settings import DicomWebSettings, FolderSettings
from engine.store.tenant import TenantStore
from indexer.archive import Archive
from indexer.ledger.database import Database
from indexer.sources.folder import FolderSource


def test_the_model_is_described(client, archive) -> None:
    told = client.get("/v1/model").json()
    manifest = archive.manifest
    assert told["fingerprint"] == client.get("/healthz").json()["model"] == manifest.fingerprint
    assert (told["bits"], told["dim"], told["input_side"]) == (manifest.bits, manifest.dim, 64)
    assert told["size_bytes"] == (archive.settings.model / "model.safetensors").stat().st_size
    assert (told["precision"], told["licence"], told["judges"]) == ("fp32", None, False)


def test_the_shipped_model_has_a_licence(indexed, tmp_path: Path) -> None:
    settings = indexed.settings.model_copy(update={"data_dir": tmp_path / "data", "model": None})
    with (
        Archive(settings, create=True) as archive,
        LoopbackClient(create_service(archive=archive)) as client,
    ):
        told = client.get("/v1/model").json()
        assert (told["licence"], told["judges"]) == ("Apache-2.0", True)


def test_counts_are_those_of_the_command_line(indexed, tmp_path: Path) -> None:
    settings = indexed.copy(tmp_path / "data")
    place = ("--data-dir", settings.data_dir, "--model", settings.model)
    info = json.loads(run("info", *place, "--json"))
    with LoopbackClient(create_service(settings)) as client:
        told = client.get("/v1/stats").json()
    assert (told["points"], told["model"]) == (info["points"], info["model"]) == (35, info["model"])
    assert told["facets"] == info["facets"]
    assert told["instances"] == {"pending": 0, "done": 35, "refused": 0}
    assert told["index"] == {"profile": "hash", "quantised": False, "cells": None}


def test_places_of_sources_are_for_administrators(indexed, tmp_path: Path) -> None:
    pacs = {"kind": "dicomweb", "url": "https://me:hush@pacs.example/dicom-web"}
    sources = {
        "folder": FolderSettings(kind="folder", paths=(tmp_path / "images",)),
        "pacs": DicomWebSettings.model_validate(pacs),
    }
    settings = indexed.copy(tmp_path / "data").model_copy(update={"sources": sources})
    with Database(f"sqlite:///{settings.data_dir / 'ledger.sqlite'}") as database:
        keys = Keys(database)
        given = {"search": [Scope.SEARCH], "admin": [Scope.SEARCH, Scope.ADMIN]}
        sent = {
            name: {"Authorization": "Bearer " + keys.create(name, scopes)[1]}
            for name, scopes in given.items()
        }
        other = keys.create("other", list(Scope), tenant="elsewhere")[1]
    with LoopbackClient(create_service(settings)) as client:
        plain = client.get("/v1/sources", headers=sent["search"])
        assert plain.json()["sources"] == [
            {"name": "folder", "images": 35, "kind": "folder", "places": None}
        ]
        told = client.get("/v1/sources", headers=sent["admin"])
        assert told.json()["sources"] == [
            {
                "name": "folder",
                "images": 35,
                "kind": "folder",
                "places": [str(tmp_path / "images")],
            },
            {
                "name": "pacs",
                "images": 0,
                "kind": "dicomweb",
                "places": ["https://pacs.example/dicom-web"],
            },
        ]
        assert "hush" not in told.text
        theirs = client.get("/v1/sources", headers={"Authorization": f"Bearer {other}"})
        assert theirs.json()["sources"] == []


def test_the_number_of_cells_is_for_who_may_know_of_all_tenants(
    indexed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = indexed.copy(tmp_path / "data")
    with Database(f"sqlite:///{settings.data_dir / 'ledger.sqlite'}") as database:
        keys = Keys(database)
        sent = {
            scope: {"Authorization": "Bearer " + keys.create("k", [Scope.SEARCH, scope])[1]}
            for scope in Scope
        }
    with LoopbackClient(create_service(settings)) as client:
        monkeypatch.setattr(TenantStore, "cells", range(91))
        told = {
            scope: client.get("/v1/stats", headers=bearer).json()["index"]["cells"]
            for scope, bearer in sent.items()
        }
    assert told == {scope: 91 if scope is Scope.METRICS else None for scope in Scope}


def test_a_key_says_whose_it_is(indexed, tmp_path: Path) -> None:
    settings = indexed.copy(tmp_path / "data")
    with LoopbackClient(create_service(settings)) as client:
        nobody = client.get("/v1/whoami").json()
        assert nobody == {
            "id": None,
            "name": None,
            "scopes": ["index", "search"],
            "tenant": "default",
            "expires_at": None,
            "session": False,
        }
        place = ("--data-dir", settings.data_dir, "--json")
        made = json.loads(
            run("keys", "create", "ward 3", "--scope", "index", "--expires", "2999-01-01", *place)
        )
        assert client.get("/v1/whoami").status_code == 401
        sent = {"Authorization": f"Bearer {made['key']}"}
        told = client.get("/v1/whoami", headers=sent)
        assert told.json() == {
            "id": made["id"],
            "name": "ward 3",
            "scopes": ["index"],
            "tenant": "default",
            "expires_at": "2999-01-01T00:00:00Z",
            "session": False,
        }
        assert made["key"][21:] not in told.text


def test_duplicates_are_those_of_the_command_line(indexed, tmp_path: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    for name, path in (("a", "rings"), ("b", "stripes")):
        shutil.copy(indexed.files[path][0], folder / name)
    # The same pixels in another file are another image, and a duplicate.
    Image.open(indexed.files["rings"][0]).save(folder / "c.bmp")
    settings = indexed.settings.model_copy(update={"data_dir": tmp_path / "data"})
    with Archive(settings, create=True) as archive:
        archive.index(FolderSource([folder]))
    place = ("--data-dir", settings.data_dir, "--model", settings.model)
    (group,) = (json.loads(one) for one in run("duplicates", *place, "--json").splitlines())
    with LoopbackClient(create_service(settings)) as client:
        told = client.get("/v1/duplicates").json()
        assert (told["compared"], told["more"]) == (3, False)
        ids = [one["id"] for one in told["groups"][0]["images"]]
        assert ids == [one["id"] for one in group["images"]]
        assert told["groups"][0]["images"][1]["identical"] is True
        none = client.get("/v1/duplicates", params={"where": "modality=CT"}).json()
        assert none == {"groups": [], "compared": 0, "more": False}
        for params in ({"limit": 0}, {"similarity": 0}, {"max_bits": 99}, {"where": "x"}):
            assert client.get("/v1/duplicates", params=params).status_code == 400
        # Whoever looks for theirs keeps out nobody but themselves.
        with SEARCHES.held("elsewhere"):
            assert client.get("/v1/duplicates").status_code == 200
            with SEARCHES.held("north"):
                assert client.get("/v1/duplicates").status_code == 503
        with SEARCHES.held("default"):
            busy = client.get("/v1/duplicates")
            assert (busy.status_code, busy.headers["Retry-After"]) == (429, "10")


def test_hits_without_uids_are_named_where_a_setting_allows_it(indexed, tmp_path: Path) -> None:
    root = indexed.files["ct"][0].parent.parent
    named = {"pictures": FolderSettings(kind="folder", paths=(root,))}
    shown = indexed.settings.server.model_copy(update={"show_names": True})
    update = {"server": shown, "sources": named}
    settings = indexed.copy(tmp_path / "data").model_copy(update=update)
    content = indexed.files["rings"][3].read_bytes()
    with LoopbackClient(create_service(settings)) as client:
        answer = client.post("/v1/search", files={"file": content}, data={"k": 35})
        hits = answer.json()["hits"]
        assert hits[0]["name"] == "rings/003"
        assert all((hit["name"] is None) == (hit["sop"] is not None) for hit in hits)
        assert str(root) not in answer.text
    settings = settings.model_copy(update={"sources": {}})
    with LoopbackClient(create_service(settings)) as client:
        answer = client.post("/v1/search", files={"file": content}, data={"k": 1})
        assert answer.json()["hits"][0]["name"] == "003"


# Readiness


def test_a_service_that_has_all_it_needs_is_ready(client) -> None:
    told = client.get("/readyz")
    assert told.json() == {"status": "ready", "checked": ["model", "store", "ledger", "audit"]}


def test_what_is_missing_is_named_and_nothing_else(indexed, tmp_path: Path) -> None:
    settings = indexed.settings.model_copy(update={"data_dir": tmp_path / "later"})
    with LoopbackClient(create_service(settings)) as client:
        told = client.get("/readyz")
        assert (told.status_code, told.json()["code"]) == (503, "not-ready")
        alive = client.get("/livez")
        assert (alive.status_code, alive.text) == (200, "alive\n")
        assert told.json()["missing"] == ["model", "store", "ledger"]
        assert str(tmp_path) not in told.text


def test_what_fails_later_makes_the_service_unready(indexed, tmp_path: Path) -> None:
    settings = indexed.copy(tmp_path / "data")
    app = create_service(settings)
    with LoopbackClient(app) as client:
        assert client.get("/readyz").status_code == 200
        app.state.readiness.drain()
        told = client.get("/readyz")
        assert (told.status_code, told.json()["code"]) == (503, "draining")
        assert client.get("/v1/facets").status_code == 200


SERVE = """
import sys
from pathlib import Path
from api.cli.serve import serve_until_stopped
from engine.settings import IndexingSettings, ServerSettings, Settings
settings = Settings(
    data_dir=Path(sys.argv[1]),
    model=Path(sys.argv[2]),
    indexing=IndexingSettings(readers=1),
    server=ServerSettings(port=0, drain_seconds=2),
)
serve_until_stopped(settings, lambda url: print(url, flush=True))
"""


@pytest.mark.slow
def test_a_service_that_is_ended_says_so_while_it_still_answers(indexed, tmp_path: Path) -> None:
    settings = indexed.copy(tmp_path / "data")
    words = [sys.executable, "-c", SERVE, str(settings.data_dir), str(settings.model)]
    process = subprocess.Popen(
        words, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2]
    )
    try:
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        while True:
            try:
                assert httpx2.get(url + "readyz", timeout=30).status_code == 200
                break
            except httpx2.TransportError:
                time.sleep(0.1)
        process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + 2
        while (told := httpx2.get(url + "readyz", timeout=30)).status_code == 200:
            assert time.monotonic() < deadline
        assert told.json()["code"] == "draining"
        assert httpx2.get(url + "v1/facets", timeout=30).status_code == 200
        assert process.wait(30) in (0, -signal.SIGTERM)
    finally:
        process.kill()
        process.communicate()
