"""What ``precedent doctor`` says of an index on a Qdrant server."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from behaviours import GreyAfterRestart
from qdrant_client import models
from reached import Reached, reached

from api.cli.main import app
from engine.model.checkpoint import save_checkpoint
from engine.model.config import small_network
from engine.model.manifest import read_manifest
from engine.model.network import HashingNetwork
from engine.model.preprocess import Preprocess
from engine.store.base import Collection

SLEEPY = GreyAfterRestart()


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("model")
    config, preprocess = small_network(0, tower="timm:test_resnet"), Preprocess(size=64)
    network = HashingNetwork(config, preprocess).eval()
    save_checkpoint(folder, network, config, preprocess, (), {})
    return folder


@pytest.fixture
def server() -> Iterator[Reached]:
    with reached("rest", SLEEPY) as made:
        yield made


@pytest.fixture
def doctor(server, model, tmp_path, monkeypatch, capsys):
    """Exit code and findings of the store, by their names."""
    monkeypatch.setenv("PRECEDENT_STORE__URL", server.settings.url)
    monkeypatch.setenv("PRECEDENT_STORE__PREFER_GRPC", "false")
    (tmp_path / "data").mkdir(mode=0o700)

    def looked() -> tuple[int, dict[str, Any]]:
        where = ["--data-dir", str(tmp_path / "data"), "--model", str(model), "--json"]
        code = app(["doctor", *where], standalone_mode=False)
        found = json.loads(capsys.readouterr().out)["findings"]
        of_store = {one["check"]: one for one in found if one["check"].startswith("store.")}
        assert all((one["level"] == "ok") == (one["way_out"] == "") for one in of_store.values())
        return code, of_store

    return looked


@pytest.fixture
def collection(model) -> Collection:
    made_by = read_manifest(model)
    return Collection(made_by.fingerprint, made_by.dim, made_by.bits)


def test_a_server_that_is_well_is_in_order_and_nothing_is_written(server, doctor, collection):
    server.create(collection).close()
    begun = len(server.engine.asked)
    code, found = doctor()
    assert (code, {one["level"] for one in found.values()}) == (0, {"ok"})
    assert {"store.model", "store.status", "store.writes", "store.version"} == set(found)
    looks = {"info", "aliases", "get", "cluster", "shards", "count", "exists"}
    assert set(server.engine.asked[begun:]) <= looks


def test_faults_of_a_cluster_are_named(server, doctor, collection):
    server.create(collection).close()
    server.engine.nodes, server.engine.version = 3, "1.19.0"
    server.engine.made["precedent"].write_consistency_factor = 2
    SLEEPY.restart()
    code, found = doctor()
    assert code == 1
    assert {name: one["level"] for name, one in found.items()} == {
        "store.version": "warning",
        "store.model": "ok",
        "store.status": "warning",
        "store.writes": "error",
        "store.layout": "warning",
    }
    assert "grey" in found["store.status"]["value"]
    assert "everything on one of 3 nodes" in found["store.layout"]["value"]


def test_an_index_of_another_model_or_none_is_an_error(server, doctor, collection):
    code, found = doctor()
    assert (code, found["store.index"]["level"]) == (1, "error")
    assert "has no index 'precedent'" in found["store.index"]["value"]
    server.create(Collection("f" * 16, collection.dim, collection.bits)).close()
    code, found = doctor()
    assert (code, found["store.model"]["level"]) == (1, "error")
    assert "ffffffffffffffff" in found["store.model"]["value"]


def test_a_server_that_is_away_is_named(doctor, monkeypatch):
    monkeypatch.setenv("PRECEDENT_STORE__URL", "http://127.0.0.1:1")
    code, found = doctor()
    assert (code, found["store.server"]["level"]) == (1, "error")
    assert "http://127.0.0.1:1" in found["store.server"]["value"]


def test_upgrade_tells_the_version_of_the_collection(
    server, doctor, collection, model, tmp_path, capsys
):
    def stored() -> tuple[int, list[dict[str, Any]]]:
        where = ["--data-dir", str(tmp_path / "data"), "--model", str(model), "--json"]
        code = app(["upgrade", *where], standalone_mode=False)
        found = json.loads(capsys.readouterr().out)["stored"]
        return code, [one for one in found if one["thing"] == "index"]

    assert stored() == (0, [])
    server.create(collection).close()
    code, (index,) = stored()
    assert (code, index["found"], index["outcome"]) == (0, "1", "nothing")
    info = server.engine.info("precedent")
    noted = {**info.config.metadata["precedent"], "format": 2}
    server.engine.update("precedent", models.UpdateCollection(metadata={"precedent": noted}))
    code, (index,) = stored()
    assert (code, index["outcome"]) == (1, "refused")
    assert "its format is 2, this version knows up to 1); install" in index["how"]
