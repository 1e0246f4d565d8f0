"""``precedent reencode``, and a service that goes on while the index is exchanged."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import run
from fastapi.testclient import TestClient
from services.loopback import LoopbackClient

from api.service import create_service
from engine.errors import FingerprintMismatch, QueryError, StoreLocked
from engine.model.checkpoint import save_checkpoint
from engine.model.config import small_network
from engine.model.manifest import read_manifest
from engine.model.network import HashingNetwork
from engine.model.preprocess import Preprocess
from engine.settings import Settings
from indexer.archive import Archive
from indexer.sources.folder import FolderSource


@pytest.fixture(scope="module")
def new(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(7)
    config, preprocess = small_network(0, tower="timm:test_resnet"), Preprocess(size=64)
    network = HashingNetwork(config, preprocess).eval()
    folder = tmp_path_factory.mktemp("new")
    save_checkpoint(folder, network, config, preprocess, (), {})
    return folder


@pytest.fixture
def settings(indexed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Of a copy of the archive, whose model the environment names."""
    settings = indexed.copy(tmp_path / "data")
    monkeypatch.setenv("PRECEDENT_DATA_DIR", str(settings.data_dir))
    monkeypatch.setenv("PRECEDENT_MODEL", str(settings.model))
    monkeypatch.setenv("PRECEDENT_INDEXING__READERS", "1")
    return settings


def within(seconds: float, holds: Callable[[], bool]) -> bool:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if holds():
            return True
        time.sleep(0.05)
    return False


@pytest.mark.slow
def test_the_command_says_what_is_in_force_and_what_is_kept(
    settings: Settings, new: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, fingerprint = read_manifest(settings.model).fingerprint, read_manifest(new).fingerprint
    told = run("reencode", "--model", new)
    assert f"model {fingerprint} is in force (index-{fingerprint}): 35 images encoded" in told
    assert "index is kept: --back" in told
    assert "PRECEDENT_MODEL" in told
    # As it said: the model that the environment names is the wrong one now.
    with pytest.raises(FingerprintMismatch, match=r"reencode --model"):
        run("info")
    monkeypatch.delenv("PRECEDENT_MODEL")
    assert json.loads(run("info", "--json"))["model"] == fingerprint
    again = json.loads(run("reencode", "--model", new, "--json"))
    assert (again["previous"], again["encoded"]) == (None, 0)
    back = json.loads(run("reencode", "--back", "--json"))
    assert (back["model"], back["previous"]) == (old, f"index-{fingerprint}")
    assert json.loads(run("info", "--json"))["points"] == 35
    dropped = json.loads(run("reencode", "--drop-previous", "--json"))
    assert dropped == {"removed": [f"index-{fingerprint}"]}
    assert "none was kept" in run("reencode", "--drop-previous")
    assert json.loads(run("info", "--json"))["model"] == old


@pytest.mark.parametrize("arguments", [[], ["--back", "--drop-previous"]])
def test_one_thing_at_a_time(settings: Settings, arguments: list[str]) -> None:
    with pytest.raises(QueryError, match="--model DIR, --back or --drop-previous"):
        run("reencode", *arguments)


def _dropped() -> list[str]:
    try:
        return json.loads(run("reencode", "--drop-previous", "--json"))["removed"]
    except StoreLocked:
        return []


@pytest.mark.slow
def test_a_running_service_takes_up_the_new_index(
    settings: Settings, indexed: Any, new: Path, tmp_path: Path
) -> None:
    query = indexed.files["ct"][0].read_bytes()

    def hits(client: TestClient) -> list[tuple[str, float]]:
        answer = client.post("/v1/search", files={"file": query}, data={"exact": "true"})
        assert answer.status_code == 200
        return [(hit["id"], hit["similarity"]) for hit in answer.json()["hits"]]

    with LoopbackClient(create_service(settings)) as client:
        before = hits(client)
        run("reencode", "--model", new)
        wanted = read_manifest(new).fingerprint
        assert within(20, lambda: client.get("/healthz").json()["model"] == wanted)
        after = hits(client)
        assert client.get("/").status_code == 200
        # The one before is in use no more, as soon as the last request that had it is answered.
        assert within(20, lambda: _dropped() == ["index"])
        assert hits(client) == after
    assert before[0][0] == after[0][0]  # itself
    assert before != after
    fresh = settings.model_copy(update={"data_dir": tmp_path / "fresh", "model": new})
    (tmp_path / "fresh").mkdir()
    key = (settings.data_dir / "pseudonym.key").read_bytes()
    (tmp_path / "fresh" / "pseudonym.key").write_bytes(key)
    with Archive(fresh, create=True) as archive:
        archive.index(FolderSource([indexed.files["ct"][0].parents[1]], label_from_folder=True))
    with LoopbackClient(create_service(fresh)) as client:
        assert hits(client) == after
