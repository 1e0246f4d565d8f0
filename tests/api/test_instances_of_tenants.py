"""Instances that tenants hand in: each of its own, also of the same file, and after a kill."""

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from fastapi.testclient import TestClient
from handed_in import picture_file, slice_file
from services.loopback import LoopbackClient

from api.http import work
from api.http.shares import Shares
from api.security.keys import Keys
from api.security.policy import Scope
from api.service import create_service
from engine.model.checkpoint import save_checkpoint
from engine.model.config import small_network
from engine.model.manifest import read_manifest
from engine.model.network import HashingNetwork
from engine.model.preprocess import Preprocess
from engine.settings import Settings
from indexer.archive import Archive
from indexer.datadir.layout import DataDir
from indexer.ledger.database import open_database
from indexer.reencoding.reencode import reencode

ROOT = Path(__file__).parents[2]
PATIENCE = 60.0


@pytest.fixture(scope="module")
def settings(indexed, tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """Those of an archive with nothing in it yet."""
    return indexed.settings.model_copy(
        update={"data_dir": tmp_path_factory.mktemp("tenants") / "data"}
    )


@pytest.fixture(scope="module")
def sent(settings: Settings) -> dict[str, dict[str, str]]:
    """The header with a key for everything, by tenant."""
    data_dir = DataDir(settings.data_dir)
    data_dir.make()
    with open_database(settings, data_dir.ledger) as database:
        return {
            one: {
                "Authorization": "Bearer " + Keys(database).create(one, list(Scope), tenant=one)[1]
            }
            for one in ("default", "north", "south")
        }


@pytest.fixture(scope="module")
def service(settings: Settings, sent) -> Iterator[TestClient]:
    with LoopbackClient(create_service(settings)) as client:
        yield client


def add(client: TestClient, content: bytes, headers: dict[str, str]) -> Any:
    return client.post("/v1/instances", headers=headers, files={"file": ("image", content)})


def received(settings: Settings, tenant: str) -> list[Path]:
    return [*DataDir(settings.data_dir).received_for(tenant).rglob("*.img")]


def test_two_tenants_have_the_same_instance_and_each_deletes_its_own(service, settings, sent):
    content = slice_file(400)
    north, south = (add(service, content, sent[one]) for one in ("north", "south"))
    assert (north.status_code, south.status_code) == (201, 201), north.text + south.text
    told, other = north.json(), south.json()
    assert {told["sop"], other["sop"]} == {"1.2.7.400"}
    # Neither is told that another has it.
    assert told["duplicate"] is other["duplicate"] is False
    assert set(told["ids"]).isdisjoint(other["ids"])
    assert add(service, content, sent["north"]).status_code == 200
    assert service.get("/v1/facets", headers=sent["default"]).status_code in (200, 503)
    for one, document in (("north", told), ("south", other)):
        (image,) = document["ids"]
        url = f"/v1/images/{image}"
        for beside in ("", "/thumbnail", "/preview"):
            assert service.get(url + beside, headers=sent[one]).status_code == 200
            assert service.get(url + beside, headers=sent["default"]).status_code == 404
        assert len(received(settings, one)) == 1
    # What is one UID and another picture for a tenant is the right picture for another.
    changed = slice_file(400, shows=401)
    assert add(service, changed, sent["south"]).json()["code"] == "conflicting-uid"
    assert add(service, changed, sent["default"]).status_code == 201
    gone = service.delete("/v1/instances?sop=1.2.7.400", headers=sent["north"])
    assert gone.json()["instances"] == 1
    assert received(settings, "north") == []
    assert service.get(f"/v1/images/{told['ids'][0]}", headers=sent["north"]).status_code == 404
    for one in ("default", "south"):
        found = service.post("/v1/search", headers=sent[one], json={"sop": "1.2.7.400"})
        assert found.status_code == 200
        assert len(received(settings, one)) == 1


def test_one_tenant_cannot_take_all_places(service, sent, monkeypatch):
    places = Shares(2, 1, work._no_place)
    for one in ("default", "north"):
        monkeypatch.setattr(service.app_state["work"].intake(one), "_places", places)
    with places.held("north"):
        refused = add(service, picture_file(410), sent["north"])
        assert (refused.status_code, refused.headers["Retry-After"]) == (429, "5")
        assert add(service, picture_file(410), sent["default"]).status_code == 201
        with places.held("south"):
            assert add(service, picture_file(411), sent["default"]).status_code == 503
    assert add(service, picture_file(410), sent["north"]).status_code == 201


def test_another_model_reads_what_a_tenant_handed_in(service, settings, sent, tmp_path):
    handed_in = add(service, picture_file(420), sent["north"])
    assert handed_in.status_code == 201
    torch.manual_seed(1)
    config, preprocess = small_network(0, tower="timm:test_resnet"), Preprocess(size=64)
    network = HashingNetwork(config, preprocess).eval()
    save_checkpoint(tmp_path / "model", network, config, preprocess, (), {})
    reencode(settings, tmp_path / "model")
    (image,) = handed_in.json()["ids"]
    until(lambda: model_of(service, sent["north"]) != model_of_settings(settings))
    assert service.get(f"/v1/images/{image}", headers=sent["north"]).status_code == 200
    assert service.get(f"/v1/images/{image}", headers=sent["default"]).status_code == 404
    # The next ones are encoded by the model that is in force now.
    assert add(service, picture_file(421), sent["north"]).status_code == 201


def model_of(service: TestClient, headers: dict[str, str]) -> str:
    told: str = service.get("/v1/model", headers=headers).json()["fingerprint"]
    return told


def model_of_settings(settings: Settings) -> str:
    assert settings.model is not None
    return read_manifest(settings.model).fingerprint


def until(true: Callable[[], Any]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.1)


_KILLED = """
import os, signal, sys
from pathlib import Path
from fastapi.testclient import TestClient
from api.http.turns import IndexerInTurns
from api.service import create_service
from engine.settings import load_settings

def killed(*_):
    os.kill(os.getpid(), signal.SIGKILL)

IndexerInTurns.turn = killed
settings = load_settings(data_dir=Path(sys.argv[1]), model=Path(sys.argv[2]))
with TestClient(create_service(settings), base_url="http://localhost") as client:
    client.post(
        "/v1/instances",
        headers={"Authorization": "Bearer " + sys.argv[3]},
        files={"file": ("image", sys.stdin.buffer.read())},
    )
"""
"""A service that is killed when it is about to index what it has taken in."""


@pytest.mark.slow
def test_what_a_kill_left_is_the_tenants_after_the_next_start(indexed, tmp_path):
    """Killed between the acknowledgement, when the file is on disk, and the index."""
    settings = indexed.copy(tmp_path / "data")
    with open_database(settings, DataDir(settings.data_dir).ledger) as database:
        key = Keys(database).create("theirs", list(Scope), tenant="north")[1]
    sent = {"Authorization": f"Bearer {key}"}
    content = slice_file(430)
    run = [sys.executable, "-c", _KILLED, str(settings.data_dir), str(settings.model), key]
    died = subprocess.run(
        run, input=content, cwd=ROOT, check=False, capture_output=True, timeout=PATIENCE
    )
    assert died.returncode == -signal.SIGKILL, died.stderr
    assert len(received(settings, "north")) == 1
    with LoopbackClient(create_service(settings), headers=sent) as client:
        # Nobody hands anything in.
        until(lambda: client.post("/v1/search", json={"sop": "1.2.7.430"}).status_code == 200)
        assert client.get("/v1/facets").json()["count"] == 1
        again = add(client, content, sent)
        assert (again.status_code, again.json()["sop"]) == (200, "1.2.7.430")
    assert received(settings, "default") == []
    with Archive(settings) as archive:
        assert archive.ledger.counts() == {"done": 35}
