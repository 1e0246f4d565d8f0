"""What ``precedent info`` and ``precedent plan`` say of the Qdrant server."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from reached import Reached, reached
from typer.testing import CliRunner

from api.cli.main import app
from engine.model.checkpoint import save_checkpoint
from engine.model.config import small_network
from engine.model.manifest import read_manifest
from engine.model.network import HashingNetwork
from engine.model.preprocess import Preprocess
from engine.store.base import Collection
from engine.store.server_version import RUN_ON

ALL_ON_ONE = "one shard and one copy put everything on one of 3 nodes"


@pytest.fixture
def server() -> Iterator[Reached]:
    with reached("rest") as made:
        yield made


@pytest.fixture
def run(server, tmp_path, monkeypatch):
    monkeypatch.setenv("PRECEDENT_STORE__URL", server.settings.url)
    monkeypatch.setenv("PRECEDENT_STORE__PREFER_GRPC", "false")
    monkeypatch.setenv("PRECEDENT_DATA_DIR", str(tmp_path / "data"))

    def ran(*arguments: object) -> str:
        found = CliRunner().invoke(app, [*map(str, arguments)], env={"COLUMNS": "300"})
        assert found.exit_code == 0, found.output
        return found.stdout

    return ran


@pytest.fixture
def model(tmp_path) -> Path:
    torch.manual_seed(0)
    config, preprocess = small_network(0, tower="timm:test_resnet"), Preprocess(size=64)
    network = HashingNetwork(config, preprocess).eval()
    save_checkpoint(tmp_path / "model", network, config, preprocess, (), {})
    return tmp_path / "model"


def test_info_says_what_is_good_and_what_is_not(server, run, model):
    made_by = read_manifest(model)
    server.create(Collection(made_by.fingerprint, made_by.dim, made_by.bits)).close()
    server.engine.nodes = 3
    server.engine.version = "1.19.0"
    text = run("info", "--model", model)
    lines = [line for line in text.splitlines() if line.lstrip().startswith("server ")]
    (version,) = (line for line in lines if "1.19.0" in line)
    assert "warning: " in version
    assert RUN_ON in version
    (layout,) = (line for line in lines if ALL_ON_ONE in line)
    assert "PRECEDENT_STORE__SHARDS=3" in layout
    assert any("good: " in line and "is green" in line for line in lines)
    told = json.loads(run("info", "--model", model, "--json"))["server"]
    states = {one["name"]: one["state"] for one in told}
    assert states == {
        "version": "warning", "status": "good", "writes": "good", "layout": "warning",
    }  # fmt: skip
    assert all(one["way_out"] for one in told if one["state"] != "good")


def test_a_plan_for_a_cluster_says_that_the_settings_use_one_node(server, run, monkeypatch):
    plan = ("plan", "--images", "1M")
    assert "Warning" not in run(*plan)
    server.engine.nodes = 3
    assert f"Warning: {ALL_ON_ONE}" in run(*plan)
    (warning,) = json.loads(run(*plan, "--json"))["warnings"]
    assert warning.startswith(ALL_ON_ONE)
    monkeypatch.setenv("PRECEDENT_STORE__SHARDS", "3")
    monkeypatch.setenv("PRECEDENT_STORE__REPLICATION_FACTOR", "2")
    assert "Warning" not in run(*plan)


def test_a_plan_needs_no_server(run, monkeypatch):
    monkeypatch.setenv("PRECEDENT_STORE__URL", "http://127.0.0.1:1")
    text = run("plan", "--images", "1M", "--replicas", "2")
    assert "Qdrant nodes" in text
    assert "one shard and one copy put everything on one of 3 nodes" in text
